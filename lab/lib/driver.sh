# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Which compute driver the hosts run, Nova's own or the project's, and on which
# QEMU tagged servers run under it.

declare -A DRIVERS=([stock]=libvirt.LibvirtDriver [fastmig]=fastmig.FastMigDriver)
# shellcheck disable=SC2034  # lab/use-driver checks against it
QEMUS=(patched distribution)

# driver_config DRIVER QEMU FEATURES CALIBRATION [LIBVIRT_OPTION...]
driver_config() {
    printf '# written by lab/use-driver\n[DEFAULT]\ncompute_driver = %s\n' "${DRIVERS[$1]}"
    [ $# -le 4 ] || printf '%s\n' '[libvirt]' "${@:5}"
    [ "$1" = fastmig ] || return 0
    # Every run has the limit of its flavor: a comparison is none if earlier
    # runs decide about later ones.
    printf '[fastmig]\nsinks = log,instance_action,journal\n'
    [ "$4" = on ] || printf 'calibration_max_age_s = 0\n'
    [ "$2" = patched ] || printf 'emulator =\n'
    case $3 in
    all) ;;
    none) printf 'qemu_features =\n' ;;
    *) printf 'qemu_features = %s\n' "$3" ;;
    esac
}

driver_file() { echo "$(host_root "$1")/etc/nova/nova.conf.d/driver.conf"; }

# Is the project's driver installed and complete enough to be loaded?
driver_exists() { in_host "$1" python -c 'import nova_fastmig.driver' 2>/dev/null; }

# The driver used last, or the project's if there is one.
driver_default() {
    local name host file
    if [ -s "$STATE/driver" ]; then
        name=$(cat "$STATE/driver")
    elif driver_exists compute1; then
        name=fastmig
    else
        name=stock
    fi
    for host in "${COMPUTES[@]}"; do
        file=$(driver_file "$host")
        [ "$(cat "$file" 2>/dev/null)" != "$(driver_config "$name" patched all off)" ] || continue
        driver_config "$name" patched all off >"$file"
        in_host "$host" systemctl try-restart nova-compute.service
    done
    say "    $name (${DRIVERS[$name]})"
}

# Which start of nova-compute on a host this is, all of its configuration, and
# the hugepages, which it counts when it starts.
driver_running() {
    in_host "$1" sh -c 'systemctl is-active --quiet nova-compute.service &&
        systemctl show --property InvocationID --value nova-compute.service &&
        cat /etc/nova/*.conf /etc/nova/nova.conf.d/*.conf /sys/kernel/mm/hugepages/*/nr_hugepages | sha256sum'
}

driver_restart_on() { in_host "$1" systemctl restart nova-compute.service; }

# driver_title DRIVER QEMU FEATURES CALIBRATION: what the hosts run then. Nova's
# own driver has none of the rest.
driver_title() {
    local title="$1 (${DRIVERS[$1]})"
    if [ "$1" = fastmig ]; then
        if [ "$2" = patched ] && qemu_is_placed; then
            title+=", QEMU: patched, features: $3"
        else
            title+=", QEMU: distribution"
        fi
        title+=", calibration: $4"
    fi
    echo "$title"
}

# driver_set DRIVER QEMU FEATURES CALIBRATION [LIBVIRT_OPTION...]
driver_set() {
    local driver=$1 host others=()
    [ "$driver" = stock ] || driver_exists compute1 ||
        die "$driver: the hosts cannot import nova_fastmig.driver; is the package installed? (lab/up)"
    # A restart takes a quarter of a minute.
    for host in "${COMPUTES[@]}"; do
        driver_config "$@" >"$(driver_file "$host")"
        [ "$(driver_running "$host")" = "$(cat "$STATE/driver.$host" 2>/dev/null || echo none)" ] ||
            others+=("$host")
    done
    echo "$driver" >"$STATE/driver"
    [ ${#others[@]} -gt 0 ] || return 0
    # not SIGHUP: it ends a nova-compute that runs in native threads
    each driver_restart_on "${others[@]}"
    computes_are_up
    # what was started anew has the policy of what was there before
    background_again
    for host in "${others[@]}"; do driver_running "$host" >"$STATE/driver.$host"; done
}
