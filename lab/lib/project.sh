# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What is built from this checkout: the package, the guest's image, the probe.

# Files as git sees them: tracked ones and new ones that are not ignored.
checkout_files() { git -c safe.directory="$CHECKOUT" -C "$CHECKOUT" ls-files -z --cached --others --exclude-standard "$@"; }

checkout_hash() {
    # files deleted from the work tree are still listed
    (cd "$CHECKOUT" && checkout_files "$@" | while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done |
        sort -z | xargs -0 -r sha256sum) | sha256sum | cut -c1-16
}

guest_image() {
    local out=$STATE/share wanted
    [ -x "$LAB_SRC/guest/build" ] || return 0
    wanted=$(checkout_hash lab/guest lab/probe)-$BASE_KEY
    [ "$(cat "$out/.built" 2>/dev/null)" != "$wanted" ] || return 0
    mkdir -p "$out"
    logged "$out/build.log" 'the build of guest image and probe' build_guest_image
    echo "$wanted" >"$out/.built"
}

build_guest_image() {
    in_tree "$(base_dir)/root" --bind "$CHECKOUT" "$GUEST_SRC" --bind "$out" /opt/lab sh -euc "
        $GUEST_SRC/lab/guest/build /opt/lab /usr/lib/nova-fastmig-lab/kernel
        $GUEST_SRC/lab/probe/build /opt/lab/bin"
}

# The package as a wheel, under a hash of its sources.
PACKAGE_FILES=(nova_fastmig setup.cfg setup.py pyproject.toml requirements.txt README.rst LICENSE etc)

project_wheel() {
    local out=$STATE/share/wheel wanted version
    [ -e "$CHECKOUT/setup.cfg" ] || return 0
    wanted=$(checkout_hash "${PACKAGE_FILES[@]}")
    [ "$(cat "$out/.built" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$out"
    mkdir -p "$out/source"
    # a copy: setuptools writes next to what it builds
    (cd "$CHECKOUT" && checkout_files "${PACKAGE_FILES[@]}" | while IFS= read -r -d '' file; do
        [ ! -f "$file" ] || printf '%s\0' "$file"
    done | xargs -0 cp --parents --target-directory="$out/source")
    version=$(git -c safe.directory="$CHECKOUT" -C "$CHECKOUT" describe --tags --abbrev=0 2>/dev/null || echo 0.1.0)
    in_tree "$(base_dir)/root" --bind "$out" /opt/lab env PBR_VERSION="$version.dev0" \
        pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/lab /opt/lab/source ||
        die "the package does not build"
    rm -rf "$out/source"
    echo "$wanted" >"$out/.built"
}

project_install() {
    local host=$1 wheel=$STATE/share/wheel unit=nova-compute installed wanted
    [ "$host" != controller ] || unit=openstack-api@nova
    [ -e "$wheel/.built" ] || return 0
    installed=$(host_root "$host")/var/lib/nova-fastmig-lab/package
    wanted=$(cat "$wheel/.built")
    [ "$(cat "$installed" 2>/dev/null)" != "$wanted" ] || return 0
    in_host "$host" sh -euc '
        uv pip install --quiet --offline --python "$1/bin/python" --no-deps --reinstall --compile-bytecode /opt/lab/wheel/*.whl
        # what runs has the old code; what does not run is left alone
        systemctl try-restart "$2.service"' sh "$VENV" "$unit"
    mkdir -p "$(dirname "$installed")"
    echo "$wanted" >"$installed"
}
