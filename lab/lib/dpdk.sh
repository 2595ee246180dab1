# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The image of a guest that forwards with DPDK, and the generator that sends with
# DPDK. They are built in a tree of their own, on the base root, from Debian's
# packages of DPDK.

DPDK_CACHE=$CACHE/dpdk
DPDK_PACKAGES=(dpdk-dev libdpdk-dev pkg-config librte-net-virtio25 librte-mempool-ring25
    librte-bus-pci25 librte-bus-vdev25)
# who is behind the guest's ports 0 and 1: the generator's interfaces
DPDK_PEERS=(52:54:00:be:01:00 52:54:00:be:01:01)
# PACKAGE...: install them in a tree, if they are not there
# shellcheck disable=SC2034,SC2016  # lab/lib/switch.sh; expanded in the tree
DPDK_INSTALL='set -eu
    dpkg --status "$@" >/dev/null 2>&1 && exit
    export DEBIAN_FRONTEND=noninteractive
    apt-get --quiet=2 update
    apt-get --quiet=2 install --yes --no-install-recommends "$@" >/dev/null'
dpdk_key() { echo "$(checkout_hash lab/dpdk lab/probe lab/guest/disk lab/lib/dpdk.sh)-$(virt_type)-$BASE_KEY"; }

dpdk_build() {
    [ "$(cat "$DPDK_CACHE/built" 2>/dev/null)" != "$(dpdk_key)" ] || return 0
    local options=() tree=$DPDK_CACHE/root-$BASE_KEY
    # Linux measures an emulated TSC wrong on a busy machine
    [ "$(virt_type)" = kvm ] || options=(clocksource=hpet tsc=unstable no_timer_check)
    mkdir -p "$DPDK_CACHE/out"
    find "$DPDK_CACHE" -maxdepth 1 -name 'root-*' ! -name "root-$BASE_KEY" -exec rm -rf --one-file-system {} +
    in_overlay "$tree" bash -c "$DPDK_INSTALL" bash "${DPDK_PACKAGES[@]}"
    # shellcheck disable=SC2016  # expanded in the tree
    logged "$DPDK_CACHE/build.log" 'the build of image and generator with DPDK' \
        in_overlay "$tree" --bind "$DPDK_CACHE/out" /var/tmp/out sh -euc '
            lab=$1; shift
            "$lab/dpdk/build" /var/tmp/out "$@"
            "$lab/probe/build" --dpdk /var/tmp/out' sh "$GUEST_SRC/lab" \
        "l2fwd.peer0=${DPDK_PEERS[0]}" "l2fwd.peer1=${DPDK_PEERS[1]}" "${options[@]}"
    dpdk_key >"$DPDK_CACHE/built"
}
