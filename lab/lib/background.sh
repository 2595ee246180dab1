# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The scheduling policy of what is not a guest, libvirt or the network. Two
# cores have to do for three hosts: what pinning keeps apart in a cloud is kept
# apart by priority while something is measured.

AUTOGROUP=/proc/sys/kernel/sched_autogroup_enabled
BACKGROUND_UNITS='nova-compute\.service|neutron-openvswitch-agent\.service'

background_is_idle() { [ -e "$RUN/background" ]; }

background_idle() {
    # Each service is a session, and with autogroups each session has the same
    # share of a core, whatever its processes' policy is.
    if [ -e "$AUTOGROUP" ]; then
        background_is_idle || cat "$AUTOGROUP" >"$RUN/background"
        echo 0 >"$AUTOGROUP"
    else
        : >"$RUN/background"
    fi
    background_policy idle
}

background_normal() {
    background_policy other
    autogroups_back
}

# Also for lab/down, as whoever measured may have been killed.
autogroups_back() {
    local was
    background_is_idle || return 0
    was=$(cat "$RUN/background")
    [ -z "$was" ] || echo "$was" >"$AUTOGROUP"
    rm "$RUN/background"
}

background_policy() {
    local policy=$1 host units
    for host in "${HOSTS[@]}"; do
        units=$BACKGROUND_UNITS
        [ "$host" != controller ] || units='.*\.service'
        # shellcheck disable=SC2016  # expanded in the host
        in_host "$host" bash -euc '
            found=""
            while read -r pid unit; do
                [[ $unit =~ ^($2)$ ]] || continue
                found=1
                chrt --all-tasks "--$1" --pid 0 "$pid" 2>/dev/null || [ ! -e "/proc/$pid" ]
            done < <(ps -e -o pid= -o unit=)
            [ -n "$found" ]' bash "$policy" "$units" ||
            die "$host: the policy of its services cannot be set to $policy"
    done
}
