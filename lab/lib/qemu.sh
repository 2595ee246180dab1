# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The patched QEMU. tools/build-qemu makes it in a tree like the hosts' own,
# so that it finds their libraries; the compute hosts get what that installs.

QEMU_PREFIX=/opt/nova-fastmig/qemu
QEMU_CACHE=$CACHE/qemu
qemu_key() { echo "$(checkout_hash devstack tools/build-qemu)-$BASE_KEY"; }
qemu_installed() { echo "$QEMU_CACHE/root-$BASE_KEY/upper$QEMU_PREFIX"; }

# Build it, or find that it has been built. tools/build-qemu has a cache of its
# own below QEMU_CACHE.
qemu_build() {
    local dir=$QEMU_CACHE/root-$BASE_KEY
    # trees on base roots that are gone
    find "$QEMU_CACHE" -maxdepth 1 -name 'root-*' ! -path "$dir" -exec rm -rf --one-file-system {} + 2>/dev/null || true
    mkdir -p "$dir/upper" "$dir/work" "$dir/root" "$QEMU_CACHE/cache"
    # the mount ends with the namespace
    unshare --mount --propagation private bash -euc '
        mount -t overlay nfm-qemu -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
        . "$3/lib/common.sh"; . "$3/lib/base.sh"
        in_tree "$2/root" --bind "$CHECKOUT" "$GUEST_SRC" --bind "$4" /var/cache/nova-fastmig/qemu \
            "$GUEST_SRC/tools/build-qemu" install --install-deps --prefix "$5"
    ' bash "$(base_dir)/root" "$dir" "$LAB_SRC" "$QEMU_CACHE/cache" "$QEMU_PREFIX"
    qemu_key >"$QEMU_CACHE/built"
}

# Give the compute hosts what was built, if it was.
qemu_place() {
    local host from root
    from=$(qemu_installed)
    if [ ! -e "$from/manifest.json" ]; then
        say "    none was built (lab/build-qemu does it): the hosts have the distribution's QEMU only"
        return 0
    fi
    [ "$(cat "$QEMU_CACHE/built")" = "$(qemu_key)" ] ||
        warn "the patched QEMU is not of these patches: lab/build-qemu builds it anew"
    for host in "${COMPUTES[@]}"; do
        root=$(host_root "$host")$QEMU_PREFIX
        ! cmp --silent "$from/manifest.json" "$root/manifest.json" || continue
        mkdir -p "$(dirname "$root")"
        rm -rf "$root.new"
        cp -a "$from" "$root.new"
        # guests that run on the old one keep it
        rm -rf "$root"
        mv "$root.new" "$root"
        # it looks what there is when it starts, and every minute
        ! host_leader "$host" >/dev/null || in_host "$host" systemctl try-restart nova-compute.service
    done
    sed -n 's/.*"package_version": *"\(.*\)".*/    \1/p' "$from/manifest.json"
}
