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

"""A guest that verifies its memory goes through many migrations.

    python -m tests.qemu.soak --migrations 200 [--features all|stock|...]

The migrations are spread over plain and multifd, idle and dirtying, firmware
and direct kernel boot; one guest per combination goes back and forth. After
each migration the guest must verify all of its memory again. Ends with a
summary line; the exit status is 0 only if every migration was without fault.
"""

import argparse
import asyncio
import dataclasses
import itertools
import sys
import time

from tests.qemu import pair
from tests.qemu import report
from tests.qemu import variants

CHANNELS = {'plain': 0, 'multifd': 2}
DIRTY_MIB_PER_S = {'idle': 0, 'dirtying': 32}
BOOTS = ('kernel', 'firmware')


@dataclasses.dataclass
class Migration:
    """One line of the result; a failed migration has no figures."""

    channels: str
    load: str
    boot: str
    number: int
    error: str | None = None
    total_ms: float | None = None
    downtime_ms: float | None = None
    blackout_ms: float | None = None
    packets: dict | None = None
    pages_verified: int | None = None


async def migrate_once(guest_pair, side, channels, record):
    await guest_pair.start_destination(side)
    result = await guest_pair.migrate(multifd_channels=channels,
                                      libvirt=pair.Libvirt())
    record.total_ms = result.total_ms
    record.downtime_ms = result.downtime_ms
    record.blackout_ms = result.blackout_ms
    record.packets = dataclasses.asdict(result.packets)
    result.packets.check()
    verified = guest_pair.guest_status().verified
    await guest_pair.end_source()
    status = await guest_pair.guest_verified_all()
    record.pages_verified = status.verified - verified


async def soak_cell(cell, migrations, side, machine, on_record):
    """One guest, one combination; a fault ends the cell."""
    channels, load, boot = cell
    machine = dataclasses.replace(machine, boot=boot, guest={
        **machine.guest, 'dirty_mib_per_s': DIRTY_MIB_PER_S[load]})
    record = Migration(channels, load, boot, 0)
    try:
        async with pair.Pair(machine, side) as guest_pair:
            await guest_pair.guest_ready()
            for number in range(migrations):
                record = Migration(channels, load, boot, number)
                await migrate_once(guest_pair, side, CHANNELS[channels],
                                   record)
                on_record(record)
    except Exception as e:
        record.error = f'{type(e).__name__}: {e}'
        on_record(record)


def shares(total, parts):
    """total split into so many parts that differ by one at most."""
    return [total // parts + (n < total % parts) for n in range(parts)]


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--migrations', type=int, default=200)
    parser.add_argument('--features', default='all', help=(
        'all, off, stock, or capabilities joined by "+" (default: all)'))
    parser.add_argument('--memory-mib', type=int, default=256)
    parser.add_argument('--window-mib', type=int, default=64,
                        help='how much of it the guest verifies')
    parser.add_argument('--downtime-limit-ms', type=int, default=50)
    parser.add_argument('--output', help='a JSON file')
    return parser.parse_args()


def main():
    options = parse()
    side = variants.sides(options.features)
    side = dataclasses.replace(side, parameters={
        'downtime-limit': options.downtime_limit_ms})
    machine = pair.Machine(memory_mib=options.memory_mib, guest={
        'memory_mib': options.window_mib,
        # all of it twice in four seconds
        'verify_mib_per_s': max(32, options.window_mib // 2)})
    cells = list(itertools.product(CHANNELS, DIRTY_MIB_PER_S, BOOTS))
    records, started = [], time.monotonic()
    content = {'environment': report.environment({'qemu': side.binary}),
               'options': vars(options), 'migrations': records}

    def on_record(record):
        records.append(dataclasses.asdict(record))
        left = ((time.monotonic() - started) / len(records)
                * (options.migrations - len(records)))
        figures = record.error or (
            f'total {record.total_ms} ms, blackout '
            f"{record.packets['blackout_ms']:.1f} ms")
        print(f'{len(records)}/{options.migrations} {record.channels} '
              f'{record.load} {record.boot}: {figures} '
              f'({left / 60:.0f} min left)', flush=True)
        if options.output:
            report.save(options.output, content)

    for cell, count in zip(cells, shares(options.migrations, len(cells)),
                           strict=True):
        if count:
            asyncio.run(soak_cell(cell, count, side, machine, on_record))

    faults = [r for r in records if r['error']]
    good = len(records) - len(faults)
    print(f'{good} of {options.migrations} migrations without fault, '
          f'{sum(r["pages_verified"] or 0 for r in records)} pages verified, '
          f'{len(faults)} faults, {time.monotonic() - started:.0f} s')
    return 0 if good == options.migrations else 1


if __name__ == '__main__':
    sys.exit(main())
