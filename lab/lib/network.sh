# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The wires. Everything is inside namespaces; the machine's own network stack
# sees nothing of it.
#
#   nfm-fabric      three plain Linux bridges that learn MAC addresses
#     mgmt          10.77.0.0/24  APIs, RPC, ssh
#     mig           10.78.0.0/24  migration traffic, libvirt to libvirt
#     data          10.88.0.0/24  the guests' network
#   nfm-controller  eth0 on mgmt, probe0 on data
#   nfm-computeN    eth0 on mgmt, eth1 on data (a port of Open vSwitch), eth2 on mig

network_is_up() { [ -e "$RUN/network.done" ] && [ -e "/run/netns/$FABRIC" ]; }

# cable BRIDGE HOST INTERFACE
cable() {
    local bridge=$1 host=$2 interface=$3
    ip -n "$FABRIC" link add "$bridge-$host" type veth peer name "$interface" netns "$(netns "$host")"
    ip -n "$FABRIC" link set "$bridge-$host" master "$bridge" up
    # veth leaves checksums to hardware that is not there; the userspace
    # datapath forwards such packets as they are and guests drop them
    ip netns exec "$(netns "$host")" ethtool -K "$interface" tx off >/dev/null
    ip -n "$(netns "$host")" link set "$interface" up
}

network_up() {
    local host bridge
    if network_is_up; then
        ip -n "$FABRIC" link show mig >/dev/null 2>&1 ||
            die "the network is that of an older checkout, without one for migrations: run lab/down first"
        return 0
    fi
    network_down
    touch "$RUN/network.owned"
    ip netns add "$FABRIC"
    for bridge in mgmt data mig; do
        ip -n "$FABRIC" link add "$bridge" type bridge forward_delay 0 stp_state 0
        ip -n "$FABRIC" link set "$bridge" up
    done
    for host in "${HOSTS[@]}"; do
        ip netns add "$(netns "$host")"
        ip -n "$(netns "$host")" link set lo up
        cable mgmt "$host" eth0
        ip -n "$(netns "$host")" address add "$(mgmt_ip "$host")/24" dev eth0
    done
    cable data controller probe0
    ip -n "$(netns controller)" address add "$PROBE_IP/24" dev probe0
    for host in "${COMPUTES[@]}"; do
        cable data "$host" eth1
        cable mig "$host" eth2
        ip -n "$(netns "$host")" address add "$(mig_ip "$host")/24" dev eth2
    done
    touch "$RUN/network.done"
}

network_down() {
    local name
    rm -f "$RUN/network.done"
    for name in "$FABRIC" "${HOSTS[@]/#/$LAB_NAME-}"; do
        [ ! -e "/run/netns/$name" ] || ip netns delete "$name"
    done
    rm -f "$RUN/network.owned"
    # iproute2 leaves a mount of its directory behind
    if mountpoint -q /run/netns && [ -z "$(ls /run/netns)" ]; then umount /run/netns; fi
}
