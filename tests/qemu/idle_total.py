# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""How long the migration of an idle guest takes, by its size.

    python -m tests.qemu.idle_total --runs 5 [--sizes-gib 1,2,4,8,16]

All but some 100 MiB of the guest's memory was never touched; with
--kernel-knows-all its kernel has written to another 1/64 of it. Sizes and
variants take turns; each run boots a guest of its own and migrates it once,
so that no memory was populated by an earlier migration.

Where this machine is itself a guest, its hypervisor may take free memory away
(free page reporting). The destination's first write to a page then waits for
the hypervisor, which a compute node does not do: before each migration some
memory is written to and freed again.
"""

import argparse
import asyncio
import dataclasses
import mmap
import sys

from tests.qemu import pair
from tests.qemu import report
from tests.qemu import variants


MADV_POPULATE_WRITE = 23  # from <asm-generic/mman-common.h>


def populate_free_memory(size_mib):
    """Make this machine have so much free memory without its hypervisor.

    It stays so for two seconds: PAGE_REPORTING_DELAY in Linux.
    """
    with mmap.mmap(-1, size_mib << 20,
                   flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(MADV_POPULATE_WRITE)


async def measure(size_gib, name, options):
    side = variants.sides(name)
    machine = pair.Machine(
        memory_mib=size_gib * 1024,
        hide_untouched=not options.kernel_knows_all, guest={
            # a small window: what is in it has to be sent
            'memory_mib': 16, 'dirty_mib_per_s': 0,
            'verify_mib_per_s': options.verify_mib_per_s})
    async with pair.Pair(machine, side) as guest_pair:
        await guest_pair.guest_ready()
        await guest_pair.start_destination(side)
        await asyncio.sleep(options.pause_s)
        if options.free_memory_mib:
            populate_free_memory(options.free_memory_mib)
        result = await guest_pair.migrate(
            libvirt=pair.Libvirt(), transport=options.transport,
            multifd_channels=options.multifd_channels)
        guest_pair.guest_status()  # raises on a fault
        return {'size_gib': size_gib, 'variant': name,
                'total_ms': result.total_ms,
                'setup_ms': result.source['setup-time'],
                'downtime_ms': result.downtime_ms,
                'blackout_ms': result.blackout_ms,
                'packets': dataclasses.asdict(result.packets),
                'ram': result.source['ram']}


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--sizes-gib', default='1,2,4,8,16')
    parser.add_argument('--variants', default='off,all', help=(
        'comma-separated: stock, off, all, or capabilities joined by "+"'))
    parser.add_argument('--runs', type=int, default=5,
                        help='per size and variant')
    parser.add_argument('--transport', default='tcp',
                        choices=['tcp', 'unix', 'fd'])
    parser.add_argument('--multifd-channels', type=int, default=0)
    parser.add_argument('--kernel-knows-all', action='store_true')
    parser.add_argument('--verify-mib-per-s', type=int, default=4)
    parser.add_argument('--pause-s', type=float, default=1)
    parser.add_argument('--free-memory-mib', type=int, default=256, help=(
        'how much to write to and free before each migration (default: 256; '
        '0: leave it as it is)'))
    parser.add_argument('--output', help='a JSON file')
    return parser.parse_args()


def main():
    options = parse()
    names = options.variants.split(',')
    sizes = [int(s) for s in options.sizes_gib.split(',')]
    cases = [(size, name) for size in sizes for name in names]
    binaries = {name: variants.sides(name).binary for name in names}
    runs = []
    content = {'environment': report.environment(binaries),
               'options': vars(options), 'runs': runs}
    for _, (size, name) in report.interleaved(cases, options.runs):
        run = asyncio.run(measure(size, name, options))
        runs.append(run)
        print(f'{len(runs)}/{len(cases) * options.runs} {size} GiB {name}: '
              f"{run['total_ms']} ms", file=sys.stderr)
        if options.output:
            report.save(options.output, content)
    for size in sizes:
        print()
        print(report.table(
            {name: [run['total_ms'] for run in runs
                    if (run['size_gib'], run['variant']) == (size, name)]
             for name in names}, f'{size} GiB, total [ms]'))


if __name__ == '__main__':
    main()
