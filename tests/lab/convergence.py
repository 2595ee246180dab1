#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""Abort what never converges, never what does, and how soon the end is seen.

By hand, see ``tool``. The guest writes to 64 MiB of its memory, 32 MiB of them
per second. Each migration is a line of the file that ``--runs`` names.

never   16 MiB/s are sent: each must be aborted by the trend, and the guest
        must not have been stopped
always  64 MiB/s are sent: each must complete
end     how long Nova's source takes to see that libvirt's call has returned,
        under Nova's own driver, which polls, and under this one
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys
import time

from tests.lab import base
from tests.lab import tool

PATIENT_MS = '120000'


def _migrate(guest: tool.Guest, mib_per_s: int, events) -> dict:
    source = guest.host()
    guest.limit_bandwidth(source, mib_per_s)
    began = time.time()
    with guest.probe() as probe:
        guest.migrate()
        status = guest.finished_migration().status
        seconds = time.time() - began
        time.sleep(1)
    stop = events.last(source, guest.uuid, 'STOP')
    result = probe.result
    return {'status': status, 'seconds': round(seconds, 1),
            'stopped': bool(stop and stop > began),
            'verdict': guest.verdict(),
            'probe': {key: result[key] for key in (
                'sent', 'lost', 'blackout_ms', 'sender_stall_ms',
                'counter_continuous', 'corruptions')}}


def never(count: int, write) -> dict:
    runs = []
    with (tool.QemuEvents('STOP') as events,
          tool.Guest('never') as guest):
        guest.boot(guest.flavor(enabled='true', max_total_ms=PATIENT_MS))
        for _ in range(count):
            runs.append(_migrate(guest, 16, events))
            write('never', runs[-1])
    return {'runs': len(runs),
            'aborted by the trend': sum(
                run['status'] == 'cancelled' and
                'will not converge' in (run['verdict'] or {}).get(
                    'reason', '') for run in runs),
            'stopped': sum(run['stopped'] for run in runs),
            'without a lost packet': sum(
                run['probe']['lost'] == 0 for run in runs)}


def always(count: int, write) -> dict:
    runs = []
    with (tool.QemuEvents('STOP') as events,
          tool.Guest('always') as guest):
        guest.boot(guest.flavor(enabled='true', max_total_ms='60000'))
        for _ in range(count):
            runs.append(_migrate(guest, 64, events))
            write('always', runs[-1])
    return {'runs': len(runs), 'completed': sum(
        run['status'] == 'completed' for run in runs)}


def _last(host: str, uuid: str, *words: str) -> float | None:
    """When Nova's log said that last of a server."""
    found = base.on_host(
        host, 'sh', '-c', 'grep -hE "$1" /var/log/nova/nova-compute.log '
        '| grep -F "$2" | tail -n 1', 'sh', '|'.join(words), uuid).split()
    return found and datetime.datetime.fromisoformat(
        f'{found[0]} {found[1]}+00:00').timestamp()


def end(count: int, write) -> dict:
    gaps = {}
    for driver in ('stock', 'fastmig'):
        base.lab('use-driver', driver)
        tool.Guest.use(driver)
        gaps[driver] = []
        with (tool.QemuEvents('STOP') as events,
              tool.Guest(f'end-{driver}') as guest):
            guest.boot(guest.flavor(enabled='true', on_miss='proceed'))
            for _ in range(count):
                source = guest.host()
                run = _migrate(guest, 1000, events)
                returned = _last(source, guest.uuid,
                                 'Migrate API has completed')
                seen = _last(source, guest.uuid,
                             'Migration operation has completed',
                             'Migration operation has ended')
                run['gap_ms'] = (seen - returned) * 1000
                if run['status'] == 'completed':
                    gaps[driver].append(run['gap_ms'])
                write(f'end {driver}', run)
    mean = {driver: statistics.fmean(each) for driver, each in gaps.items()}
    return {'gap_ms': {driver: [round(each(found), 1) for each in (
        min, statistics.median, statistics.fmean, max)]
        for driver, found in gaps.items()},
        'ratio of the means': round(
            mean['stock'] / max(1, mean['fastmig']), 1)}


KINDS = {'never': never, 'always': always, 'end': end}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('--count', type=int, required=True)
    parser.add_argument('--runs', type=pathlib.Path, required=True)
    args = parser.parse_args()
    tool.Guest.use('fastmig')

    def write(kind, run):
        with open(args.runs, 'a') as file:
            file.write(json.dumps({'kind': kind, **run}) + '\n')
        print(kind, run['status'], run['seconds'], run['probe']['lost'],
              run.get('gap_ms', ''), flush=True)

    print(json.dumps(KINDS[args.kind](args.count, write), indent=2))


if __name__ == '__main__':
    sys.exit(main())
