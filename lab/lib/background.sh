# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The scheduling policy of what is not a guest, libvirt or the network. Two
# cores have to do for three hosts: what pinning keeps apart in a cloud is kept
# apart by priority while something is measured.

BACKGROUND_UNITS='nova-compute\.service|neutron-openvswitch-agent\.service'

# what the kernel is set to meanwhile: file and value
BACKGROUND_KERNEL=(
    # Each service is a session, and with autogroups each session has the same
    # share of a core, whatever its processes' policy is.
    '/proc/sys/kernel/sched_autogroup_enabled 0'
    # Where this machine is itself a guest, its hypervisor may take away what
    # has been free for two seconds (free page reporting): 2 MiB are then
    # written to for the first time in 4 ms instead of 0.3, which no compute
    # node has. No block of free pages is as large as this order.
    '/sys/module/page_reporting/parameters/page_reporting_order 11'
)

background_is_idle() { [ -e "$RUN/background" ]; }

background_idle() {
    local file value was
    # what it was, for background_kernel_back
    : >>"$RUN/background"
    while read -r file value; do
        [ -e "$file" ] || continue
        was=$(cat "$file")
        # set before, or by another lab, which will undo it
        [ "$was" != "$value" ] || continue
        echo "$file $was" >>"$RUN/background"
        echo "$value" 2>/dev/null >"$file" ||
            warn "$file stays $was: times may be longer, and differ more"
    done < <(printf '%s\n' "${BACKGROUND_KERNEL[@]}")
    background_again
}

# The policy while something is measured, also for what was started since then.
background_again() {
    background_is_idle || return 0
    if [ "$(cat "$(host_dir compute1)/switch" 2>/dev/null)" = vhost-user ]; then
        # A guest that polls its ports, and the threads that poll them, take all
        # of two cores: what runs when a core is left to it would not run, and
        # a port at the destination not be wired. So it gets a share.
        background_policy other -10
    else
        background_policy idle
    fi
}

background_normal() {
    background_policy other
    background_kernel_back
}

# Also for lab/down, as whoever measured may have been killed.
background_kernel_back() {
    local file value
    background_is_idle || return 0
    while read -r file value; do
        echo "$value" >"$file" || warn "$file stays $(cat "$file"); it was $value"
    done <"$RUN/background"
    rm "$RUN/background"
}

# background_policy idle|other [NICE]
background_policy() {
    local policy=$1 nice=${2:-10} host units
    for host in "${HOSTS[@]}"; do
        units=$BACKGROUND_UNITS
        [ "$host" != controller ] || units='.*\.service'
        # shellcheck disable=SC2016  # expanded in the host
        in_host "$host" bash -euc '
            found=""
            while read -r pid unit; do
                [[ $unit =~ ^($2)$ ]] || continue
                found=1
                # thread by thread, as some end meanwhile
                for task in "/proc/$pid/task/"*; do
                    chrt "--$1" --pid 0 "${task##*/}" >/dev/null 2>&1 &&
                        renice --priority "$3" --pid "${task##*/}" >/dev/null 2>&1 || [ ! -e "$task" ]
                done
            done < <(ps -e -o pid= -o unit=)
            [ -n "$found" ]' bash "$policy" "$units" "$nice" ||
            die "$host: the policy of its services cannot be set to $policy"
    done
}
