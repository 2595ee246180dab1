# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the compute hosts' Open vSwitch gives to servers: taps, or, with DPDK,
# vhost-user ports. Neutron binds ports by what its agent says that there is.

# A server with DPDK sends what comes from the network `nfv` to the network
# `nfv-far`: a bridge far in the fabric, eth3 and br-far in the compute hosts,
# and the generator's interface there. They are there as long as they are needed:
# Open vSwitch looks at every port for each packet.
FAR=probe1

# the second has how DPDK keeps packet buffers
SWITCH_PACKAGES=(openvswitch-switch-dpdk librte-mempool-ring25)

far_up() {
    local host
    ! ip -n "$FABRIC" link show far >/dev/null 2>&1 || return 0
    ip -n "$FABRIC" link add far type bridge forward_delay 0 stp_state 0
    ip -n "$FABRIC" link set far up
    cable far controller "$FAR"
    ip -n "$(netns controller)" link set "$FAR" address "${DPDK_PEERS[1]}"
    for host in "${COMPUTES[@]}"; do cable far "$host" eth3; done
}

switch_file() { echo "$(host_root "$1")/etc/systemd/system/ovs-vswitchd.service.d/dpdk.conf"; }
agent_file() { echo "$(host_root "$1")/etc/systemd/system/neutron-openvswitch-agent.service.d/far.conf"; }

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
ExecStartPost=/usr/bin/ovs-vsctl add-br br-far -- set bridge br-far datapath_type=netdev -- add-port br-far eth3
EOT
}

agent_config() {
    local agent=/opt/stack/venv/bin/neutron-openvswitch-agent
    cat <<EOT
# written by lab/use-switch
[Service]
ExecStart=
ExecStart=$agent --config-file /etc/neutron/neutron.conf --config-file /etc/neutron/openvswitch_agent.ini \\
    --config-file /etc/neutron/far.ini
EOT
}

# What a host was set to, if that was done; as it comes it has taps.
switch_of() { cat "$(host_dir "$1")/switch" 2>/dev/null || echo tap; } # switch_of HOST

switch_install_on() {
    in_tree "$(host_root "$1")" --bind "$CACHE/apt" /var/cache/apt/archives bash -c "$DPDK_INSTALL" bash \
        "${SWITCH_PACKAGES[@]}"
}

# Debian's Open vSwitch with DPDK for the hosts, the image that forwards with
# DPDK, the generator that sends with it, and the network nfv-far.
switch_install() {
    local host
    dpdk_build </dev/null
    # one after the other: what the first has downloaded the second has, too
    for host in "${COMPUTES[@]}"; do switch_install_on "$host"; done
    cp --update "$DPDK_CACHE/out/l2fwd.img" "$STATE/share"
    cp --update "$DPDK_CACHE/out/probe-dpdk" "$STATE/share/bin"
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" dpdk /opt/lab/l2fwd.img
}

switch_to_tap() { # switch_to_tap HOST
    rm -f "$(switch_file "$1")" "$(agent_file "$1")"
    switch_restart "$1" tap
}

switch_to_vhost_user() { # switch_to_vhost_user HOST
    mkdir -p "$(dirname "$(switch_file "$1")")" "$(dirname "$(agent_file "$1")")"
    switch_config "$1" >"$(switch_file "$1")"
    agent_config >"$(agent_file "$1")"
    install -m 644 /dev/stdin "$(host_root "$1")/etc/neutron/far.ini" <<<$'[ovs]\nbridge_mappings = data:br-data,far:br-far'
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

# switch_set SWITCH HOST...: change these, and wait until Neutron knows.
switch_set() {
    local switch=$1 host
    shift
    for host in "$@"; do
        [ -z "$(in_host "$host" virsh list --uuid | xargs)" ] ||
            die "$host runs servers, which would lose their ports: delete them first (lab/status shows them)"
        [ "$switch" = tap ] || [ -x "$(host_root "$host")/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk" ] ||
            die "$host has no Open vSwitch with DPDK: lab/use-switch --install"
    done
    each "switch_to_${switch//-/_}" "$@"
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" wait-for-switch "$switch"
    background_again
}
