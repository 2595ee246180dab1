# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# One host: a systemd-nspawn machine on an overlay over the base root, with
# systemd as its init, in a network namespace of its own.

# A UUID that stays the same for a host. The DMI UUID would be the machine's
# for all of them, and libvirt refuses to migrate to "the same host".
host_uuid() {
    local sum
    sum=$(md5sum <<<"nova-fastmig lab $1")
    echo "${sum:0:8}-${sum:8:4}-${sum:12:4}-${sum:16:4}-${sum:20:12}"
}

host_role() { echo "${1%[0-9]}"; }

# What the files in lab/files/{common,controller,compute} are filled in with.
fill_in() {
    sed -i -e "s|@HOST@|$1|g" -e "s|@MGMT_IP@|$(mgmt_ip "$1")|g" -e "s|@MIG_IP@|$(mig_ip "$1")|g" \
        -e "s|@HOST_UUID@|$(host_uuid "$1")|g" -e "s|@VIRT_TYPE@|$(virt_type)|g" \
        -e "s|@CPU_MODE@|$(cpu_mode)|g" "${@:2}"
}

# KVM counts only if a vCPU really runs: SeaBIOS must get as far as its banner.
virt_type() {
    local file=$STATE/virt_type
    if [ ! -s "$file" ]; then
        if [ -e /dev/kvm ] && in_tree "$(base_dir)/root" sh -c \
            'timeout 10 qemu-system-x86_64 -accel kvm -nodefaults -display none -debugcon stdio | grep -q -m 1 SeaBIOS' \
            >/dev/null 2>&1; then
            echo kvm >"$file"
        else
            echo qemu >"$file"
        fi
    fi
    cat "$file"
}
cpu_mode() { if [ "$(virt_type)" = kvm ]; then echo host-model; else echo none; fi; }

host_is_mounted() { mountpoint -q "$(host_root "$1")"; }

# Mount the host's root, and write its configuration into it.
host_prepare() {
    local host=$1 dir root key tree wanted
    dir=$(host_dir "$host")
    root=$(host_root "$host")
    key=$BASE_KEY
    wanted=$(hash_of -w "$(virt_type)" "$LAB_SRC/files/common" "$LAB_SRC/files/$(host_role "$host")" "$LAB_SRC/lib/host.sh")
    if [ -e "$dir/base" ] && [ "$(cat "$dir/base")" != "$key" ]; then
        warn "$host: the base root has changed, its state is dropped"
        host_stop "$host"
        rm -rf --one-file-system "$dir"
    fi
    if host_leader "$host" >/dev/null && [ "$(cat "$dir/config" 2>/dev/null)" != "$wanted" ]; then
        say "    $host: its configuration has changed, restarting it"
        host_stop "$host"
    fi
    mkdir -p "$root" "$dir/upper" "$dir/work"
    echo "$key" >"$dir/base"
    host_is_mounted "$host" || mount -t overlay "$(netns "$host")" \
        -o "lowerdir=$(base_dir)/root,upperdir=$dir/upper,workdir=$dir/work" "$root"
    [ "$(cat "$dir/config" 2>/dev/null)" != "$wanted" ] || return 0

    for tree in "$LAB_SRC/files/common" "$LAB_SRC/files/$(host_role "$host")"; do
        cp --recursive --no-dereference --preserve=links,mode --no-target-directory "$tree" "$root"
        (cd "$tree" && find . -type f -printf '%P\0') | (cd "$root" && { xargs -0 grep -lZ '@[A-Z_]*@' || true; }) |
            (cd "$root" && while IFS= read -r -d '' file; do fill_in "$host" "$file"; done)
    done
    host_uuid "$host" | tr -d - >"$root/etc/machine-id"
    echo "$host" >"$root/etc/hostname"
    # nothing that systemd does after an update (ldconfig, catalogs) is due
    touch --reference="$root/usr" "$root/etc/.updated" "$root/var/.updated"
    ssh_keys "$host"
    in_tree "$root" systemctl --quiet preset-all
    echo "$wanted" >"$dir/config"
}

hosts_prepare() {
    each host_prepare "${HOSTS[@]}"
    base_forget_others
}

# root@controller may ssh to the computes.
ssh_keys() {
    local root key=$STATE/ssh/id_ed25519
    root=$(host_root "$1")
    install -d -m 700 "$STATE/ssh" "$root/root/.ssh"
    (
        flock 8
        [ -e "$key" ] || ssh-keygen -q -t ed25519 -N '' -C root@controller -f "$key"
    ) 8>"$STATE/ssh/lock"
    if [ "$1" = controller ]; then
        install -m 600 "$key" "$root/root/.ssh/id_ed25519"
    else
        install -m 600 "$key.pub" "$root/root/.ssh/authorized_keys"
    fi
}

# The recorded pid of a running host's init (leader) or of its nspawn; fails if
# there is none. A pid may have been reused since: ours is in our namespace.
host_pid() {
    local host=$1 what=$2 pid
    read -r pid 2>/dev/null <"$RUN/$host.$what" || return 1
    [ "/proc/$pid/ns/net" -ef "/run/netns/$(netns "$host")" ] && echo "$pid"
}
host_leader() { host_pid "$1" leader; }

host_start() {
    local host=$1 nspawn
    if host_leader "$host" >/dev/null; then return 0; fi
    # else an interrupted run has left a host that is just booting
    if ! nspawn=$(host_pid "$host" nspawn); then
        host_boot "$host"
        read -r nspawn <"$RUN/$host.nspawn"
    fi
    wait_for 30 "$host: init (see $STATE/log/$host.console)" host_find_leader "$host" "$nspawn"
    wait_for 30 "$host: systemd" in_host "$host" test -S /run/systemd/private
    # "degraded" is for `lab/status` to report
    in_host "$host" systemctl is-system-running --wait --quiet || true
}

host_boot() {
    local host=$1 root nspawn
    root=$(host_root "$host")
    local options=(
        --quiet --directory="$root" --machine="$(netns "$host")" --hostname="$host"
        --boot --register=no --keep-unit --console=pipe
        --resolv-conf=off --timezone=off --link-journal=no
        --capability=all
        --bind-ro="$CHECKOUT:$GUEST_SRC" --bind="$STATE/share:/opt/lab"
    )
    if [ "$host" != controller ]; then
        # as an NFS export would be
        options+=(--bind="$STATE/instances:/var/lib/nova/instances")
        [ "$(virt_type)" != kvm ] || options+=(--bind=/dev/kvm)
    fi
    # nspawn's own --network-namespace-path would come with the machine's /sys,
    # where the host's interfaces are not
    local command=(nsenter --net="/run/netns/$(netns "$host")" systemd-nspawn "${options[@]}")
    # what the control plane does is done on other machines in a cloud: here it
    # takes the time that the compute hosts leave
    [ "$host" != controller ] || command=(nice -n 10 "${command[@]}")
    mkdir -p "$STATE/share" "$STATE/instances" "$STATE/log"
    # QEMU's and libvirt's host side writes to /sys and /proc/sys
    export SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    if [ -d /run/systemd/system ]; then
        systemctl reset-failed "$(unit "$host").service" 2>/dev/null || true
        systemd-run --quiet --collect --unit="$(unit "$host")" --slice=machine.slice \
            --property=Delegate=yes --property=KillMode=mixed --property=TasksMax=infinity \
            --property="StandardOutput=append:$STATE/log/$host.console" \
            --setenv=SYSTEMD_NSPAWN_API_VFS_WRITABLE --setenv=SYSTEMD_NSPAWN_UNIFIED_HIERARCHY \
            "${command[@]}" </dev/null
        nspawn=$(systemctl show --property MainPID --value "$(unit "$host").service")
    else
        # No systemd to ask for a cgroup: make one. nspawn wants to see the
        # unified hierarchy alone, and its own directory on a tmpfs.
        setsid unshare --mount --propagation private bash -c '
            set -eu
            group=$1; shift
            umount --recursive --lazy /sys/fs/cgroup
            mount -t cgroup2 cgroup2 /sys/fs/cgroup
            mkdir -p "/sys/fs/cgroup/$group" /run/systemd/nspawn
            echo $$ >"/sys/fs/cgroup/$group/cgroup.procs"
            mount -t tmpfs tmpfs /run/systemd/nspawn
            exec "$@"' bash "$(unit "$host")" "${command[@]}" \
            </dev/null >>"$STATE/log/$host.console" 2>&1 6>&- 7>&- 8>&- 9>&- &
        nspawn=$!
    fi
    echo "$nspawn" >"$RUN/$host.nspawn"
}

host_find_leader() {
    local host=$1 nspawn=$2 pid
    for pid in $(pgrep -P "$nspawn"); do
        [ "/proc/$pid/ns/net" -ef "/run/netns/$(netns "$host")" ] || continue
        [ "$(cat "/proc/$pid/comm")" = systemd ] || continue
        echo "$pid" >"$RUN/$host.leader"
        # where commands from outside go, so that they end with the host
        printf '%s%s\n' "$(findmnt --noheadings --first-only --types cgroup2 --output TARGET)" \
            "$(sed -n 's/^0:://p' "/proc/$pid/cgroup")" >"$RUN/$host.cgroup"
        return 0
    done
    return 1
}

# in_host HOST COMMAND...: run COMMAND inside, with a login-like environment;
# exec_in_host becomes it.
exec_in_host() {
    local host=$1 leader group pid_file=$RUN/$1.leader
    shift
    leader=$(host_leader "$host") || die "$host is not running ($pid_file): start it with lab/up"
    read -r group <"$RUN/$host.cgroup"
    local environment=(
        HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 TERM="${TERM:-dumb}"
        PATH="$VENV/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    )
    if [ "$host" = controller ]; then environment+=(
        # `openstack` and openstacksdk need OS_CLOUD only (clouds.yaml), `nova` the rest
        OS_CLOUD=lab OS_AUTH_URL="http://$(mgmt_ip controller):5000/v3" OS_USERNAME=admin OS_PASSWORD=secret
        OS_PROJECT_NAME=admin OS_USER_DOMAIN_ID=default OS_PROJECT_DOMAIN_ID=default
        OS_IDENTITY_API_VERSION=3 OS_REGION_NAME=RegionOne OS_COMPUTE_API_VERSION=2.96
    ); fi
    echo "$BASHPID" >"$group/cgroup.procs" || true
    # nsenter waits outside for the command, which ends with it however that ends.
    # Neither keeps the locks (lock) of a script that was killed.
    exec nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wdns=/root \
        setpriv --pdeathsig TERM env -i "${environment[@]}" "$@" 6>&- 9>&-
}

in_host() {
    (exec_in_host "$@")
}

# Shut the host down as a power button would, and unmount it.
host_stop() {
    local host=$1 leader nspawn
    if nspawn=$(host_pid "$host" nspawn); then
        if leader=$(host_leader "$host"); then
            kill -s SIGRTMIN+4 "$leader"
            gone_within 20 "$nspawn" || warn "$host: did not shut down within 20 s, killing it"
        fi
        # all of the host ends with its nspawn
        if [ -e "/proc/$nspawn" ]; then
            kill -KILL "$nspawn" 2>/dev/null || true
            gone_within 10 "$nspawn" || die "$host: nspawn ($nspawn) does not end"
        fi
    fi
    remove_cgroup "$host"
    rm -f "$RUN/$host.leader" "$RUN/$host.nspawn" "$RUN/$host.cgroup"
    if host_is_mounted "$host"; then umount "$(host_root "$host")"; fi
}

# gone_within SECONDS PID
gone_within() {
    local end_s=$((SECONDS + $1))
    while [ -e "/proc/$2" ]; do
        [ "$SECONDS" -lt "$end_s" ] || return 1
        sleep 0.1
    done
}

# Where systemd made the cgroup it has removed it already.
remove_cgroup() {
    local mount group
    mount=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || return 0
    group=$mount/$(unit "$1")
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} \;
}
