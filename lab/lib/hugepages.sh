# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The kernel's pools of hugepages, which a benchmark makes larger while a guest
# needs them (nova_fastmig/bench/memory.py).

# For lab/down, as whoever measured may have been killed: the file has the size
# that a pool had. Pages in use go when they are not any more.
hugepages_back() {
    local file pool
    for file in "$RUN"/hugepages-*kB; do
        [ -e "$file" ] || continue
        pool=/sys/kernel/mm/hugepages/${file##*/}/nr_hugepages
        cat "$file" >"$pool" || warn "$pool stays $(cat "$pool"); it was $(cat "$file")"
        rm "$file"
    done
}
