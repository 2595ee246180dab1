# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Which compute driver the hosts run: Nova's own or the project's.

declare -A DRIVERS=([stock]=libvirt.LibvirtDriver [fastmig]=fastmig.FastMigDriver)

driver_config() {
    printf '# written by lab/use-driver\n[DEFAULT]\ncompute_driver = %s\n' "${DRIVERS[$1]}"
}

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
        file=$(host_root "$host")/etc/nova/nova.conf.d/driver.conf
        [ "$(cat "$file" 2>/dev/null)" != "$(driver_config "$name")" ] || continue
        driver_config "$name" >"$file"
        in_host "$host" systemctl try-restart nova-compute.service
    done
    say "    $name (${DRIVERS[$name]})"
}

driver_set_on() {
    in_host "$1" systemctl stop nova-compute.service
    driver_config "$driver" >"$(host_root "$1")/etc/nova/nova.conf.d/driver.conf"
    in_host "$1" systemctl start nova-compute.service
}

driver_set() {
    local driver=$1
    [ "$driver" = stock ] || driver_exists compute1 ||
        die "$driver: the hosts cannot import nova_fastmig.driver; is the package installed? (lab/up)"
    each driver_set_on "${COMPUTES[@]}"
    echo "$driver" >"$STATE/driver"
    computes_are_up
}
