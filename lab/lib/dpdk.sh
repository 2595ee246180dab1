# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# DPDK in a guest, and Open vSwitch with DPDK, in a tree of their own: the
# lab's hosts have Open vSwitch without it.

DPDK_CACHE=$CACHE/dpdk
# shellcheck disable=SC2034  # lab/with-dpdk makes it
DPDK_NETNS=$LAB_NAME-dpdk
DPDK_PACKAGES=(openvswitch-switch-dpdk dpdk-dev librte-net-virtio25 librte-mempool-ring25
    librte-bus-pci25 librte-bus-vdev25)
dpdk_tree() { echo "$DPDK_CACHE/root-$BASE_KEY"; }
dpdk_key() { echo "$(checkout_hash lab/dpdk)-$BASE_KEY"; }

# dpdk_in_tree [--bind DIRECTORY INSIDE]... COMMAND...: in the tree for it, on
# top of the one with the patched QEMU, where that was built. Only its first
# user may write to it.
dpdk_in_tree() {
    local dir lower
    dir=$(dpdk_tree)
    lower=$(base_dir)/root
    [ ! -d "$QEMU_CACHE/root-$BASE_KEY/upper" ] || lower=$QEMU_CACHE/root-$BASE_KEY/upper:$lower
    mkdir -p "$dir/upper" "$dir/work" "$dir/root"
    exec 8>"$DPDK_CACHE/running"
    flock --nonblock 8 || die "another lab/with-dpdk is running ($DPDK_CACHE/running)"
    # the mount ends with the namespace
    unshare --mount --propagation private bash -euc '
        dir=$1 lower=$2 lib=$3 checkout=$4; shift 4
        mount -t overlay nfm-dpdk -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
        . "$lib/common.sh"; . "$lib/base.sh"
        in_tree "$dir/root" --bind "$checkout" "$GUEST_SRC" --bind /sys /sys "$@"
    ' bash "$dir" "$lower" "$LAB_SRC/lib" "$CHECKOUT" "$@"
}

dpdk_build() {
    [ "$(cat "$DPDK_CACHE/built" 2>/dev/null)" != "$(dpdk_key)" ] || return 0
    mkdir -p "$DPDK_CACHE/guest"
    find "$DPDK_CACHE" -maxdepth 1 -name 'root-*' ! -name "root-$BASE_KEY" -exec rm -rf --one-file-system {} +
    dpdk_in_tree --bind "$DPDK_CACHE/guest" /var/tmp/guest bash -euc '
        src=$1; shift
        export DEBIAN_FRONTEND=noninteractive
        dpkg --status "$@" >/dev/null 2>&1 || {
            apt-get --quiet=2 update
            apt-get --quiet=2 install --yes --no-install-recommends "$@" >/dev/null
        }
        "$src/lab/dpdk/build" /var/tmp/guest' bash "$GUEST_SRC" "${DPDK_PACKAGES[@]}"
    dpdk_key >"$DPDK_CACHE/built"
}
