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

"""Raw QEMU pairs: how long the guest stands still with each feature.

    python -m tests.qemu.compare --runs 10 [--variants stock,off,all]

Imitates libvirt (return path, pause before switchover, 'cont' a while after
the end). The variants take turns; one guest goes on through all migrations,
so that none of them is favoured.
"""

import argparse
import asyncio
import dataclasses
import sys

from tests.qemu import pair
from tests.qemu import report
from tests.qemu import variants

# What is measured: title -> value of one run
FIGURES = {
    'blackout, packets [ms]': lambda run: run['packets']['blackout_ms'],
    'blackout, STOP to RESUME [ms]': lambda run: run['blackout_ms'],
    "QEMU's downtime [ms]": lambda run: run['downtime_ms'],
    'total [ms]': lambda run: run['total_ms'],
    # what the machine itself adds: the longest pause while nothing stopped
    'longest other pause [ms]': lambda run: run['packets']['noise_ms'],
}


async def measure(options, names, on_run):
    # the boot is the stock binary's: what differs is only the migration
    source = variants.sides(names[0])
    machine = pair.Machine(
        memory_mib=options.memory_mib, cpus=options.cpus,
        machine=options.machine, boot=options.boot, guest={
            'dirty_mib_per_s': options.dirty_mib_per_s,
            'verify_mib_per_s': options.verify_mib_per_s})
    libvirt = pair.Libvirt(cont_delay_ms=options.cont_delay_ms)
    async with pair.Pair(machine, source) as guest_pair:
        await guest_pair.guest_ready()
        for number, name in report.interleaved(names, options.runs):
            side = _with_limit(variants.sides(name), options)
            if guest_pair.source_side.binary != side.binary:
                # the source must be of the variant's binary as well
                await guest_pair.start_destination(side)
                await guest_pair.migrate(libvirt=libvirt)
                await guest_pair.end_source()
            guest_pair.source_side = side
            await asyncio.sleep(options.pause_s)
            await guest_pair.start_destination(side)
            await asyncio.sleep(options.pause_s)
            result = await guest_pair.migrate(
                transport=options.transport, libvirt=libvirt,
                multifd_channels=options.multifd_channels)
            await guest_pair.end_source()
            guest_pair.guest_status()  # raises on a fault
            on_run({'variant': name, 'number': number,
                    'total_ms': result.total_ms,
                    'downtime_ms': result.downtime_ms,
                    'setup_ms': result.source['setup-time'],
                    'blackout_ms': result.blackout_ms,
                    'reported': result.source.get('x-blackout'),
                    'packets': dataclasses.asdict(result.packets)})


def _with_limit(side, options):
    return dataclasses.replace(side, parameters={
        'downtime-limit': options.downtime_limit_ms})


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--variants', default=','.join(variants.EACH), help=(
        'comma-separated: stock, off, all, or capabilities joined by "+"'))
    parser.add_argument('--runs', type=int, default=10, help='per variant')
    parser.add_argument('--memory-mib', type=int, default=512)
    parser.add_argument('--cpus', type=int, default=1)
    parser.add_argument('--machine', default='pc')
    parser.add_argument('--boot', default='kernel',
                        choices=['kernel', 'firmware'])
    parser.add_argument('--transport', default='tcp',
                        choices=['tcp', 'unix', 'fd'])
    parser.add_argument('--multifd-channels', type=int, default=0)
    parser.add_argument('--dirty-mib-per-s', type=int, default=0)
    parser.add_argument('--verify-mib-per-s', type=int, default=4,
                        help='little, as it takes the guest\'s time')
    parser.add_argument('--cont-delay-ms', type=float, default=9)
    parser.add_argument('--downtime-limit-ms', type=int, default=10)
    parser.add_argument('--pause-s', type=float, default=0.5,
                        help='quiet time before each migration')
    parser.add_argument('--output', help='a JSON file')
    return parser.parse_args()


def main():
    options = parse()
    names = options.variants.split(',')
    binaries = {name: variants.sides(name).binary for name in names}
    runs = []
    content = {'environment': report.environment(binaries),
               'options': vars(options), 'runs': runs}

    def on_run(run):
        runs.append(run)
        print(f"{len(runs)}/{len(names) * options.runs} {run['variant']}: "
              f"{run['packets']['blackout_ms']:.1f} ms", file=sys.stderr)
        if options.output:
            report.save(options.output, content)

    asyncio.run(measure(options, names, on_run))
    for title, value in FIGURES.items():
        print()
        print(report.table({name: [value(run) for run in runs
                                   if run['variant'] == name]
                            for name in names}, title))


if __name__ == '__main__':
    main()
