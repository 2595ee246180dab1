# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What can be known to fail is said before anything is changed.

# command or file : Debian package
NEEDS=(
    mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ip:iproute2 ethtool:ethtool
    nsenter:util-linux flock:util-linux pgrep:procps git:git ssh-keygen:openssh-client
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)
NEEDS_DISK_MIB=8192
NEEDS_MEMORY_MIB=5120

missing_packages() {
    local need
    for need in "${NEEDS[@]}"; do
        command -v "${need%%:*}" >/dev/null || [ -e "${need%%:*}" ] || echo "${need#*:}"
    done | sort -u
}

install_missing() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these Debian packages, or what your system has for them, are missing: ${missing[*]}"
    say "    installing with apt-get: ${missing[*]}"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}")
    # a machine that has never been updated knows no packages
    "${install[@]}" >/dev/null 2>&1 || { apt-get update --quiet=2 && "${install[@]}" >/dev/null; } ||
        die "apt-get could not install: ${missing[*]}"
}

free_mib() {
    local directory=$1
    while [ ! -d "$directory" ]; do directory=$(dirname "$directory"); done
    df --output=avail -BM "$directory" | tr -dc '0-9'
}

preflight() {
    local available_mib network name directory
    [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m), the lab needs x86_64"
    # a lab that is up has passed already
    if network_is_up; then return 0; fi
    for directory in "$STATE" "$CACHE"; do
        case $directory in
        /*[[:space:],:]*) die "$directory: overlay and bind mounts take no space, comma or colon in a path" ;;
        /*) ;;
        *) die "$directory: an absolute path is needed" ;;
        esac
    done
    if [ ! -e "$(base_dir)/python.done" ]; then
        available_mib=$(free_mib "$CACHE")
        [ "$available_mib" -ge "$NEEDS_DISK_MIB" ] ||
            die "$CACHE has $available_mib MiB free, $NEEDS_DISK_MIB MiB are needed (see NOVA_FASTMIG_CACHE_DIR)"
    fi
    available_mib=$(($(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))
    [ "$available_mib" -ge "$NEEDS_MEMORY_MIB" ] ||
        die "$available_mib MiB of memory are available, $NEEDS_MEMORY_MIB MiB are needed"
    [ -e /dev/net/tun ] || die "/dev/net/tun is missing (kernel module tun): guests have no network without it"
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
        die "the kernel has no overlayfs"
    [ -e /sys/fs/cgroup/cgroup.controllers ] || [ ! -d /run/systemd/system ] ||
        die "the machine's systemd runs with cgroup v1, the unified hierarchy is needed"
    install_missing
    for network in "$MGMT_NET" "$MIG_NET" "$DATA_NET"; do
        # the hosts have namespaces of their own, but somebody who looks for
        # these addresses on the machine should find one network only
        if ip -4 -oneline address show | grep -qF " $network."; then
            die "$network.0/24 is in use on this machine, the lab's hosts are in it"
        fi
    done
    for name in "$FABRIC" "${HOSTS[@]/#/$LAB_NAME-}"; do
        [ ! -e "/run/netns/$name" ] || [ -e "$RUN/network.owned" ] ||
            die "a network namespace $name exists that this lab did not make (another NOVA_FASTMIG_LAB_DIR?)"
    done
}
