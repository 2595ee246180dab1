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

"""Migrate two servers there and back, many times; see that nothing leaks.

By hand, see ``tool``. One server is tagged and one is not; each round migrates
both at once. Every migration is a line of the file that ``--runs`` names.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import sys
import time

import libvirt

from tests.lab import base
from tests.lab import faults
from tests.lab import faults_report
from tests.lab import hosts
from tests.lab import tool


def _count_on(host: str) -> dict:
    """What can leak on a compute host."""
    counts = {}
    for unit in ('nova-compute', 'libvirtd'):
        pid, = hosts.service(host, unit)
        counts[f'{unit} threads'] = len(
            list(pathlib.Path(f'/proc/{pid}/task').iterdir()))
        counts[f'{unit} files'] = len(
            list(pathlib.Path(f'/proc/{pid}/fd').iterdir()))
    with contextlib.closing(libvirt.open(
            f'qemu+tcp://{base.COMPUTE_IPS[host]}/system')) as connection:
        counts['domains'] = len(connection.listAllDomains())
    counts['QEMUs'] = len(hosts.processes(host, 'qemu-system', '-uuid'))
    for name, command in (
            ('switch ports', 'ovs-vsctl list-ports br-int'),
            ('interfaces', 'ls /sys/class/net'),
            ('definitions', 'ls /etc/libvirt/qemu'),
            ('files in run', 'find /run/libvirt /var/lib/libvirt/qemu '
                             '-name "*instance*"'),
            ('instance files', 'find /var/lib/nova/instances -type f '
                               '-not -path "*/_base/*"')):
        counts[name] = len(base.on_host(host, 'sh', '-c', command).split())
    return counts


def count(guests: list[tool.Guest]) -> dict:
    counts = {f'{host}: {what}': number for host in base.COMPUTE_IPS
              for what, number in _count_on(host).items()}
    counts['ports'] = len(list(guests[0].cloud.network.ports()))
    counts['allocations'] = sum(
        len(faults.allocations(guest, guest.uuid)) for guest in guests)
    return counts


def migrate(guest: tool.Guest) -> dict:
    source = guest.host()
    began_s = time.monotonic()
    guest.migrate()
    status = guest.finished_migration().status
    return {'server': guest._name, 'source': source, 'status': status,
            'seconds': round(time.monotonic() - began_s, 1),
            'problems': faults_report.problems(faults.state(guest))}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--migrations', type=int, default=200)
    parser.add_argument('--runs', type=pathlib.Path, required=True)
    args = parser.parse_args()
    tool.Guest.use('fastmig')
    with (tool.Guest('soak-tagged') as tagged,
          tool.Guest('soak-untagged') as untagged,
          concurrent.futures.ThreadPoolExecutor(2) as pool,
          open(args.runs, 'a') as file):
        guests = [tagged, untagged]
        tagged.boot(tagged.flavor(enabled='true', on_miss='proceed'))
        untagged.boot(untagged.flavor(), host='compute2')
        runs, before = [], None
        with tagged.probe(100, 3600) as one, untagged.probe(100, 3600) as two:
            while len(runs) < args.migrations:
                for run in pool.map(migrate, guests):
                    runs.append(run)
                    print(len(runs), json.dumps(run), file=file, flush=True)
                # Threads and connections that stay are there by now.
                if len(runs) == 20:
                    time.sleep(20)
                    before = count(guests)
            time.sleep(20)
            after = count(guests)
        result = {
            'migrations': len(runs),
            'statuses': {status: sum(run['status'] == status for run in runs)
                         for status in {run['status'] for run in runs}},
            'problems': [run for run in runs if run['problems']],
            'guests': {name: {
                key: probe.result[key] for key in (
                    'counter_continuous', 'corruptions', 'sent', 'lost')}
                for name, probe in (('tagged', one), ('untagged', two))},
            'grown': {what: [before[what], after[what]] for what in after
                      if before and after[what] > before[what]},
            'counts': after,
        }
        print('result', json.dumps(result), file=file, flush=True)
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    sys.exit(main())
