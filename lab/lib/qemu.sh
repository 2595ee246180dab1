# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The patched QEMU. tools/build-qemu makes it in a tree like the hosts' own,
# so that it finds their libraries; the compute hosts get what that installs.

QEMU_PREFIX=/opt/nova-fastmig/qemu
QEMU_CACHE=$CACHE/qemu
qemu_key() { echo "$(checkout_hash devstack tools/build-qemu)-$BASE_KEY"; }
qemu_installed() { echo "$QEMU_CACHE/root-$BASE_KEY/upper$QEMU_PREFIX"; }

# qemu_in_tree [--bind DIRECTORY INSIDE]... COMMAND...: run COMMAND in the tree
# for it, an overlay on the base root, with the checkout and the cache of
# tools/build-qemu.
qemu_in_tree() {
    mkdir -p "$QEMU_CACHE/cache"
    # an overlay can be mounted once at a time
    exec 8>"$QEMU_CACHE/running"
    flock --nonblock 8 || die "another lab/with-qemu or lab/build-qemu is running ($QEMU_CACHE/running)"
    in_overlay "$QEMU_CACHE/root-$BASE_KEY" --bind "$QEMU_CACHE/cache" /var/cache/nova-fastmig/qemu "$@"
}

# Build it, or find that it has been built. tools/build-qemu has a cache of its
# own below QEMU_CACHE.
qemu_build() {
    # trees on base roots that are gone
    find "$QEMU_CACHE" -maxdepth 1 -name 'root-*' ! -name "root-$BASE_KEY" -exec rm -rf --one-file-system {} + 2>/dev/null || true
    qemu_in_tree "$GUEST_SRC/tools/build-qemu" install --install-deps --prefix "$QEMU_PREFIX"
    qemu_key >"$QEMU_CACHE/built"
}

# Run what drives QEMUs directly, in the checkout.
qemu_run() {
    local index venv=/opt/nova-fastmig/qemu-tests
    index=$(python_index)
    qemu_in_tree --bind /sys /sys env ${index:+PIP_INDEX_URL="$index"} \
        QEMU_STOCK=/usr/bin/qemu-system-x86_64 QEMU_PATCHED="$QEMU_PREFIX/bin/qemu-system-x86_64" \
        QEMU_TEST_GUEST=/var/tmp/qemu-guest PYTHONDONTWRITEBYTECODE=1 \
        bash -euc '
        src=$1 venv=$2; shift 2
        cd "$src"
        if ! cmp --silent tests/qemu/requirements.txt "$venv/requirements.txt"; then
            python3 -m venv --clear "$venv"
            "$venv/bin/pip" install --quiet --disable-pip-version-check \
                --requirement tests/qemu/requirements.txt --constraint tests/constraints.txt
            cp tests/qemu/requirements.txt "$venv/"
        fi
        export PATH=$venv/bin:$PATH
        exec "$@"' bash "$GUEST_SRC" "$venv" "$@"
}

# Have the compute hosts a patched QEMU?
qemu_is_placed() {
    local host
    for host in "${COMPUTES[@]}"; do
        [ -e "$(host_root "$host")$QEMU_PREFIX/manifest.json" ] || return 1
    done
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
