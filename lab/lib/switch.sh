# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the compute hosts' Open vSwitch gives to servers: taps, or, with DPDK,
# vhost-user ports. Neutron binds ports by what its agent says that there is.

# the generator's second port: a server with DPDK sends there what comes from
# the first
FAR=probe1

switch_file() { echo "$(host_root "$1")/etc/systemd/system/ovs-vswitchd.service.d/dpdk.conf"; }

# Each host has another core for the thread that polls its vhost-user ports,
# where there are two.
switch_config() { # switch_config HOST
    cat <<EOT
# written by lab/use-switch
[Service]
ExecStartPre=$GUEST_SRC/lab/dpdk/enable other_config:pmd-cpu-mask=$((1 << ${1//[!0-9]/} % $(nproc)))
ExecStart=
ExecStart=/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk unix:/run/openvswitch/db.sock --detach \\
    --pidfile=/run/openvswitch/ovs-vswitchd.pid --no-chdir --mlockall \\
    --log-file=/var/log/openvswitch/ovs-vswitchd.log
EOT
}

# What a host was set to, if that was done; as it comes it has taps.
switch_of() { cat "$(host_dir "$1")/switch" 2>/dev/null || echo tap; } # switch_of HOST

switch_install_on() {
    in_tree "$(host_root "$1")" --bind "$CACHE/apt" /var/cache/apt/archives bash -c "$DPDK_INSTALL" bash \
        openvswitch-switch-dpdk
}

# Debian's Open vSwitch with DPDK for the hosts, and the image that forwards
# with DPDK.
switch_install() {
    local host
    dpdk_build </dev/null
    # one after the other: what the first has downloaded the second has, too
    for host in "${COMPUTES[@]}"; do switch_install_on "$host"; done
    cp --update "$DPDK_CACHE/guest/l2fwd.img" "$STATE/share/l2fwd.img"
    # a guest's TSC is emulated under TCG, and the image's kernel told so
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" image l2fwd /opt/lab/l2fwd.img --property hw_time_hpet=true
}

switch_to_tap() { # switch_to_tap HOST
    rm -f "$(switch_file "$1")"
    switch_restart "$1" tap
}

switch_to_vhost_user() { # switch_to_vhost_user HOST
    mkdir -p "$(dirname "$(switch_file "$1")")"
    switch_config "$1" >"$(switch_file "$1")"
    switch_restart "$1" vhost-user
}

switch_restart() { # switch_restart HOST SWITCH
    echo unknown >"$(host_dir "$1")/switch"
    # in this order: the agent sets up a database that is new
    in_host "$1" sh -euc '
        systemctl daemon-reload
        systemctl restart ovsdb-server.service ovs-vswitchd.service
        systemctl restart neutron-openvswitch-agent.service'
    echo "$2" >"$(host_dir "$1")/switch"
}

# switch_set SWITCH: wait until Neutron knows.
switch_set() {
    local host others=()
    for host in "${COMPUTES[@]}"; do
        [ "$(switch_of "$host")" = "$1" ] || others+=("$host")
    done
    [ ${#others[@]} -gt 0 ] || return 0
    for host in "${others[@]}"; do
        [ -z "$(in_host "$host" virsh list --uuid | xargs)" ] ||
            die "$host runs servers, which would lose their ports: delete them first (lab/status shows them)"
        [ "$1" = tap ] || [ -x "$(host_root "$host")/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk" ] ||
            die "$host has no Open vSwitch with DPDK: lab/use-switch --install"
    done
    if [ "$1" = vhost-user ] && ! ip -n "$(netns controller)" link show "$FAR" >/dev/null 2>&1; then
        cable data controller "$FAR" data-far
        ip -n "$(netns controller)" link set "$FAR" address "${DPDK_PEERS[1]}"
    fi
    each "switch_to_${1//-/_}" "${others[@]}"
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" wait-for-switch "$1"
    # what was started anew has the policy of what was there before
    ! background_is_idle || background_policy idle
}
