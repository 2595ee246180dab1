# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The base root: one Debian trixie tree with everything that any host runs.
# It is built once and kept in the cache under a hash of its inputs; the
# hosts are overlays on top of it.

# QEMU 10.0 and libvirt 11.3. Debian 12's QEMU 7.2 corrupts guests that are
# migrated under TCG.
SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

package_list() { sed 's/#.*//' "$LAB_SRC/files/base/packages" | xargs | tr ' ' ,; }

# Where this machine gets Debian from, so that a local mirror is used.
# Security updates come from where the machine's own do.
debian_sources() {
    local label uri main='' security=''
    while read -r label uri; do
        case $label in
        Debian) main=${main:-$uri} ;;
        Debian-Security) security=${security:-$uri} ;;
        esac
    done < <(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages')
    main=${NOVA_FASTMIG_DEBIAN_MIRROR:-${main:-http://deb.debian.org/debian}}
    echo "deb [signed-by=$KEYRING] $main $SUITE main"
    echo "deb [signed-by=$KEYRING] $main $SUITE-updates main"
    [ -z "$security" ] || echo "deb [signed-by=$KEYRING] $security $SUITE-security main"
}

base_packages() {
    local dir root key
    dir=$(base_dir)
    root=$dir/root
    [ ! -e "$dir/packages.done" ] || return 0
    rm -rf --one-file-system "$dir"
    mkdir -p "$dir" "$CACHE/apt"
    local options=(
        --quiet --mode=root --variant=minbase --include="$(package_list)"
        --aptopt='APT::Install-Recommends "false"'
        --dpkgopt=force-unsafe-io
        --dpkgopt='path-exclude=/usr/share/man/*'
        --dpkgopt='path-exclude=/usr/share/doc/*'
        --dpkgopt='path-exclude=/usr/share/locale/*'
        # keep the downloads for the next base root
        --skip=download/empty --skip=essential/unlink
        --setup-hook='mkdir -p "$1/var/cache/apt/archives"'
        --setup-hook="sync-in '$CACHE/apt' /var/cache/apt/archives"
        --customize-hook="sync-out /var/cache/apt/archives '$CACHE/apt'"
        --customize-hook="$LAB_SRC/files/base/extract-kernel"
    )
    for key in Acquire::http::Proxy Acquire::https::Proxy; do
        local value
        value=$(apt-config dump --format '%v%n' "$key" | head -1)
        [ -z "$value" ] || options+=(--aptopt="$key \"$value\"")
    done
    debian_sources | mmdebstrap "${options[@]}" "$SUITE" "$root" -
    # Nothing starts by itself, the distribution's presets (90) included: every
    # host names what it runs in a preset of its own.
    rm -rf "$root"/etc/systemd/system/*.wants "$root/etc/machine-id"
    install -D -m 644 /dev/stdin "$root/etc/systemd/system-preset/80-lab.preset" <<<'disable *'
    touch "$dir/packages.done"
}

# in_tree ROOT [--bind DIRECTORY INSIDE]... COMMAND...: run COMMAND in a root
# that is not booted, with the machine's network, DNS and CA bundle, which may
# hold a private CA. The mounts end with the command.
in_tree() {
    unshare --mount --pid --fork --kill-child --propagation private bash -c '
        set -eu
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -t tmpfs tmpfs "$root/run"
        [ -f "$root/etc/resolv.conf" ] || { rm -f "$root/etc/resolv.conf"; touch "$root/etc/resolv.conf"; }
        mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
        if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
            mount --bind -o ro /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
        fi
        while [ "$1" = --bind ]; do
            mkdir -p "$root/$3"
            mount --bind "$2" "$root/$3"
            shift 3
        done
        exec chroot "$root" env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
            PATH="$VENV/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
            SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
            ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
            ${no_proxy:+no_proxy="$no_proxy"} "$@"' bash "$@"
}

# in_overlay DIRECTORY [--bind DIRECTORY INSIDE]... COMMAND...: run COMMAND in
# an overlay on the base root that is kept in DIRECTORY, with the checkout. One
# command at a time.
in_overlay() {
    local dir=$1
    shift
    mkdir -p "$dir/upper" "$dir/work" "$dir/root"
    # the mount ends with the namespace
    unshare --mount --propagation private bash -euc '
        dir=$1 lower=$2 lib=$3 checkout=$4; shift 4
        mount -t overlay nfm-overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
        . "$lib/common.sh"; . "$lib/base.sh"
        in_tree "$dir/root" --bind "$checkout" "$GUEST_SRC" "$@"
    ' bash "$dir" "$(base_dir)/root" "$LAB_SRC/lib" "$CHECKOUT" "$@"
}

# The machine's own Python index, if it has set one.
python_index() {
    command -v pip3 >/dev/null || return 0
    pip3 config get global.index-url 2>/dev/null || true
}

base_python() {
    local dir root index
    dir=$(base_dir)
    root=$dir/root
    [ ! -e "$dir/python.done" ] || return 0
    rm -rf "${root:?}$VENV"
    index=$(python_index)
    mkdir -p "$CACHE/uv"
    in_tree "$root" --bind "$CACHE/uv" /tmp/uv --bind "$LAB_SRC/files" /tmp/files \
        env UV_CACHE_DIR=/tmp/uv UV_LINK_MODE=copy ${index:+PIP_INDEX_URL="$index" UV_DEFAULT_INDEX="$index"} \
        sh -euc '
        python3 -m venv "$1"
        "$1/bin/pip" install --quiet --disable-pip-version-check uv
        uv pip install --quiet --python "$1/bin/python" --compile-bytecode \
            --requirement /tmp/files/base/requirements.txt --constraint /tmp/files/constraints.txt
    ' sh "$VENV"
    touch "$dir/python.done"
}

# Remove base roots of other inputs, once no host is on one of them any more.
base_forget_others() {
    find "$CACHE/base" -mindepth 1 -maxdepth 1 ! -path "$(base_dir)" -exec rm -rf --one-file-system {} +
}

# Worked out once: the checkout may change while a command runs.
BASE_KEY=$(hash_of -w "$SUITE" -w "$(declare -f base_packages base_python)" \
    "$LAB_SRC/files/base" "$LAB_SRC/files/constraints.txt")
base_dir() { echo "$CACHE/base/$BASE_KEY"; }
