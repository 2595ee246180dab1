# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Names, places and helpers that every lab command shares. Source it; it only
# defines things.
# shellcheck disable=SC2034  # many of them are used by those who source it

LAB_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CHECKOUT=$(dirname "$LAB_SRC")
# several labs on one machine differ in this: it begins the names of namespaces
# and machines
LAB_NAME=${NOVA_FASTMIG_LAB_NAME:-nfm}
[[ $LAB_NAME =~ ^[a-z][a-z0-9]{0,7}$ ]] || {
    echo "lab: NOVA_FASTMIG_LAB_NAME '$LAB_NAME': a letter and up to seven letters or digits, lower case" >&2
    exit 1
}
STATE=${NOVA_FASTMIG_LAB_DIR:-/var/lib/nova-fastmig-lab${NOVA_FASTMIG_LAB_NAME:+-$LAB_NAME}}
CACHE=${NOVA_FASTMIG_CACHE_DIR:-/var/cache/nova-fastmig}
RUN=$STATE/run

COMPUTES=(compute1 compute2)
HOSTS=(controller "${COMPUTES[@]}")
FABRIC=$LAB_NAME-fabric              # the namespace with the two switches
MGMT_NET=10.77.0               # APIs, RPC
MIG_NET=10.78.0                # migration traffic
DATA_NET=10.88.0               # the guests' network `nfv`
declare -A ADDRESS=([controller]=10 [compute1]=11 [compute2]=12)
PROBE_IP=$DATA_NET.254         # the controller's own leg on the guests' network

export VENV=/opt/stack/venv    # inside the hosts
GUEST_SRC=/usr/src/nova-fastmig    # the checkout inside the hosts

say() { printf '%s\n' "$*"; }
warn() { printf 'lab: warning: %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }

# Re-run the calling script as root, keeping the settings.
need_root() {
    [ "$EUID" -ne 0 ] || return 0
    command -v sudo >/dev/null ||
        die "root is needed (namespaces, mounts, cgroups) and there is no sudo: run it as root"
    exec sudo --preserve-env=NOVA_FASTMIG_LAB_NAME,NOVA_FASTMIG_LAB_DIR,NOVA_FASTMIG_CACHE_DIR,NOVA_FASTMIG_DEBIAN_MIRROR -- "$0" "$@"
}

# step TITLE FUNCTION [ARG...]: run it, say how long it took.
step() {
    local title=$1 start_us=${EPOCHREALTIME/./} took_ms
    shift
    say "==> $title"
    "$@"
    took_ms=$(((${EPOCHREALTIME/./} - start_us) / 1000))
    printf '    %s: %d.%d s\n' "$title" $((took_ms / 1000)) $((took_ms % 1000 / 100))
}

# logged LOG WHAT COMMAND...: what it prints goes to LOG, whose end is shown if
# it fails.
logged() {
    local log=$1 what=$2
    shift 2
    "$@" >"$log" 2>&1 || {
        tail -5 "$log" >&2
        die "$what failed: see $log"
    }
}

# wait_for SECONDS WHAT COMMAND...: poll until it succeeds.
wait_for() {
    local limit_s=$1 what=$2 end_s
    shift 2
    end_s=$((SECONDS + limit_s))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end_s" ] || die "$what: not there after $limit_s s"
        sleep 0.2
    done
}

# Run FUNCTION HOST for several hosts at the same time; fail if one fails.
each() {
    local function=$1 host pids=() pid failed=0
    shift
    for host in "$@"; do
        # without the locks (lock), for this may go on when the script is killed
        "$function" "$host" 6>&- 9>&- &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    return "$failed"
}

# hold: keep the lab to this process and its children until it ends, as
# lab/demo and the tests need it.
hold() {
    [ -z "${NOVA_FASTMIG_LAB_HELD:-}" ] || return 0
    mkdir -p "$RUN"
    exec 7>"$RUN/held"
    flock --nonblock 7 || die "a lab/demo or a test run is using the lab ($RUN/held)"
    export NOVA_FASTMIG_LAB_HELD=1
}

# One change at a time: `lab/up` and `lab/down` must not overlap, nor come
# between someone who holds the lab.
lock() {
    mkdir -p "$RUN"
    if [ -z "${NOVA_FASTMIG_LAB_HELD:-}" ]; then
        exec 6>"$RUN/held"
        flock --nonblock --shared 6 || die "a lab/demo or a test run is using the lab ($RUN/held)"
    fi
    exec 9>"$RUN/lock"
    flock --nonblock 9 || die "another lab/up, lab/down or lab/use-driver is running ($RUN/lock)"
}

# Remove a directory of the lab's, but never through a mount.
remove_directory() {
    # to its end: pipefail takes a findmnt that cannot write for nothing found
    ! findmnt --noheadings --output TARGET --list | grep "^$1/" >/dev/null || die "$1: something is still mounted below it"
    rm -rf --one-file-system "$1"
}

unit() { echo "nova-fastmig-lab-$(netns "$1")"; }    # of systemd, and the cgroup's name
netns() { echo "$LAB_NAME-$1"; }
mgmt_ip() { echo "$MGMT_NET.${ADDRESS[$1]}"; }
mig_ip() { echo "$MIG_NET.${ADDRESS[$1]}"; }
host_dir() { echo "$STATE/hosts/$1"; }
host_root() { echo "$STATE/hosts/$1/root"; }
is_host() { [ -n "${ADDRESS[$1]:-}" ]; }

# sha256 of the names and contents of the checkout's files, wherever the checkout
# is, and of the words given with -w.
hash_of() {
    local words=()
    while [ "${1:-}" = -w ]; do words+=("$2"); shift 2; done
    {
        printf '%s\n' "${words[@]}"
        [ $# -eq 0 ] || (cd "$CHECKOUT" && find "${@#"$CHECKOUT"/}" -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 -r sha256sum)
    } | sha256sum | cut -c1-16
}
