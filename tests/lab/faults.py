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

"""Break one thing in one phase of a migration; see that nothing is lost.

By hand, see ``tool``. Each case is a line of the file that ``--cases`` names;
those that are there already are not run again. ``--table`` writes the table
of the documentation from it.

After each case, when the fault is over and the host repaired, it is checked
that the guest runs exactly once, or nowhere and Nova says so; that Nova has it
on the host where it runs; that placement has its allocation there and nothing
for the migration; and that it can be migrated.
"""

import argparse
import contextlib
import json
import pathlib
import resource
import signal
import sys
import time

import libvirt

from tests.lab import base
from tests.lab import faults_report
from tests.lab import hosts
from tests.lab import tool

SLOW_MIB_PER_S = 8
FAST_MIB_PER_S = 1000
SOURCE, DESTINATION = 'compute1', 'compute2'
# A fault stays for so long.
FAULT_S = 5
SETTLED_TIMEOUT_S = 150


# ---- phases: hold a migration in one, and let it go on ----------------------

def _let_move(guest):
    """It converges, and its domain is at the destination only."""
    _let_converge(guest)
    base.wait_until('the guest has moved', lambda: (
        guest.domain_state(SOURCE) is None and
        guest.domain_state(DESTINATION) is not None))


@contextlib.contextmanager
def pre_migration(guest):
    """Nova has begun; the destination waits for its ports."""
    agent = hosts.service(DESTINATION, 'neutron-openvswitch-agent')
    with hosts.frozen(agent):
        guest.migrate()
        base.wait_until('Nova prepares the migration', lambda: (
            guest.migration() is not None and
            guest.migration().status == 'preparing'))
        time.sleep(2)
        yield


@contextlib.contextmanager
def pre_copy(guest):
    """Memory is copied, and there is no end of it."""
    guest.migrate()
    guest.running_migration(SOURCE)
    yield
    _let_converge(guest)


@contextlib.contextmanager
def paused(guest):
    """QEMU at the source has stopped the guest and waits for libvirt."""
    with hosts.held_switchover(guest, SOURCE, FAST_MIB_PER_S):
        yield


@contextlib.contextmanager
def switched_over(guest):
    """The guest has moved and Nova does not know yet."""
    guest.migrate()
    guest.running_migration(SOURCE)
    with hosts.frozen(hosts.service(SOURCE, 'nova-compute')):
        _let_move(guest)
        yield


@contextlib.contextmanager
def post_step(guest):
    """The source is in its post step and waits for the destination."""
    guest.migrate()
    guest.running_migration(SOURCE)
    with hosts.frozen(hosts.service(DESTINATION, 'nova-compute')):
        _let_move(guest)
        time.sleep(3)
        yield


def _let_converge(guest) -> None:
    with contextlib.suppress(libvirt.libvirtError, AttributeError):
        guest.limit_bandwidth(SOURCE, FAST_MIB_PER_S)


PHASES = {'pre-migration': pre_migration, 'pre-copy': pre_copy,
          'paused': paused, 'switched over': switched_over,
          'post step': post_step}


# ---- faults: (what it says, how to do it, how to repair it) -----------------

def _kill(what: str, find) -> None:
    # Nothing is shown by a fault that hits nobody.
    hosts.send(signal.SIGKILL, base.wait_until(what, find, timeout_s=10))


def _kill_service(host: str, unit: str):
    def do(guest):
        _kill(f'{unit} of {host}', lambda: hosts.service(host, unit))
    return do


def _kill_qemu(host: str):
    def do(guest):
        _kill(f'the QEMU of {host}', lambda: hosts.qemu(host, guest.uuid))
    return do


def _cut(network: str):
    def do(guest):
        hosts.wire(network, DESTINATION, up=False)
    return do


def _mend(network: str):
    def do(guest):
        hosts.wire(network, DESTINATION, up=True)
    return do


def _kill_broker(guest):
    base.on_host('controller', 'systemctl', 'kill', '--signal=KILL',
                 'rabbitmq-server')


def _restart_agents(guest):
    """Neutron's wait for the answers that are lost, longer each time.

    Their log says that a restart ends that.
    """
    base.on_host('controller', 'systemctl', 'start', 'rabbitmq-server')
    for host in SOURCE, DESTINATION:
        base.on_host(host, 'systemctl', 'restart', 'neutron-openvswitch-agent')


def _fill_disk(guest):
    """Where libvirt keeps the definitions of domains."""
    base.on_host(DESTINATION, 'sh', '-euc', '''
        mkdir -p /run/definitions
        cp -a /etc/libvirt/qemu/. /run/definitions
        mount -t tmpfs -o size=256k full /etc/libvirt/qemu
        cp -a /run/definitions/. /etc/libvirt/qemu
        dd if=/dev/zero of=/etc/libvirt/qemu/full bs=4k 2>/dev/null || true''')


def _empty_disk(guest):
    base.on_host(DESTINATION, 'sh', '-euc', '''
        rm /etc/libvirt/qemu/full
        cp -a /etc/libvirt/qemu/. /run/definitions
        umount /etc/libvirt/qemu
        cp -a /run/definitions/. /etc/libvirt/qemu
        rm -r /run/definitions''')


def _refuse_memory(guest):
    """No more address space for libvirt's next QEMU, nor for this one."""
    for pid in (hosts.service(DESTINATION, 'libvirtd') +
                hosts.qemu(DESTINATION, guest.uuid)):
        _limit(pid, 200 << 20)


def _allow_memory(guest):
    for pid in (hosts.service(DESTINATION, 'libvirtd') +
                hosts.qemu(DESTINATION, guest.uuid)):
        _limit(pid, -1)


def _limit(pid: int, size: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (size, hard))


FAULTS = {
    'source QEMU killed': (_kill_qemu(SOURCE), None),
    'destination QEMU killed': (_kill_qemu(DESTINATION), None),
    'source libvirtd killed': (_kill_service(SOURCE, 'libvirtd'), None),
    'destination libvirtd killed':
        (_kill_service(DESTINATION, 'libvirtd'), None),
    'source nova-compute killed':
        (_kill_service(SOURCE, 'nova-compute'), None),
    'destination nova-compute killed':
        (_kill_service(DESTINATION, 'nova-compute'), None),
    'conductor killed': (_kill_service('controller', 'nova-conductor'), None),
    'RabbitMQ killed': (_kill_broker, _restart_agents),
    'migration network cut': (_cut('mig'), _mend('mig')),
    'management network cut': (_cut('mgmt'), _mend('mgmt')),
    'destination disk full': (_fill_disk, _empty_disk),
    'destination memory refused': (_refuse_memory, _allow_memory),
}


# ---- one case ---------------------------------------------------------------

def _repair(guest) -> None:
    """What an operator's tools would start again, and nothing else."""
    for host, units in (('controller', ('rabbitmq-server', 'nova-conductor',
                                        'nova-scheduler')),
                        (SOURCE, ('libvirtd', 'nova-compute')),
                        (DESTINATION, ('libvirtd', 'nova-compute'))):
        for unit in units:
            base.on_host(host, 'systemctl', 'start', unit)


def _settled(guest) -> bool:
    migration = guest.migration()
    server = guest.compute.get_server(guest.uuid)
    return ((migration is None or
             migration.status in base.FINAL_STATUSES) and
            server.task_state is None)


def allocations(guest, consumer: str) -> set[str]:
    """Hosts at which placement has something for a consumer."""
    def ask(path: str, name: str):
        return guest.cloud.placement.get(
            path, microversion='1.28').json()[name]

    names = {provider['uuid']: provider['name'] for provider in ask(
        '/resource_providers', 'resource_providers')}
    return {names[uuid] for uuid in ask(f'/allocations/{consumer}',
                                        'allocations')}


def state(guest) -> dict:
    """Where everything is."""
    server = guest.compute.get_server(guest.uuid)
    migration = guest.migration()
    domains = {host: guest.domain_state(host) for host in base.COMPUTE_IPS}
    return {
        'status': server.status, 'task': server.task_state,
        'host': server.compute_host,
        'migration': migration and migration.status,
        'runs_on': [host for host, found in domains.items()
                    if found and found[0]],
        'domains': {host: found for host, found in domains.items() if found},
        'allocations': sorted(allocations(guest, guest.uuid)),
        'migration_allocations': sorted(
            allocations(guest, migration.uuid)) if migration else [],
    }


def _migrates(guest) -> str:
    """Migrate it once more; started by hand if it does not run.

    :returns: what came of it
    """
    server = guest.compute.get_server(guest.uuid)
    done = []
    if server.status == 'ERROR' or server.task_state:
        guest.compute.reset_server_state(guest.uuid, 'active')
        done.append('reset-state')
    if not any(found and found[0] for found in map(
            guest.domain_state, base.COMPUTE_IPS)):
        guest.compute.reboot_server(guest.uuid, 'HARD')
        done.append('hard reboot')
    base.wait_until('the server is active', lambda: (
        lambda server: server.status == 'ACTIVE' and
        server.task_state is None)(guest.compute.get_server(guest.uuid)),
        timeout_s=90)
    # A nova-compute that has lost its libvirt disables itself until it has
    # connected again, which a periodic task sees to at the latest.
    base.wait_until('both computes are up and enabled', lambda: all(
        (service.state, service.status) == ('up', 'enabled')
        for service in guest.compute.services(binary='nova-compute')),
        timeout_s=150)
    host = guest.host()
    with contextlib.suppress(libvirt.libvirtError, AttributeError):
        guest.limit_bandwidth(host, FAST_MIB_PER_S)
    guest.migrate()
    status = guest.finished_migration().status
    done.append(f'migration {status}')
    if status == 'completed' and guest.host() == host:
        done.append('but it has not moved')
    return ', '.join(done)


def run(phase: str, fault: str) -> dict:
    """One case, on a server of its own."""
    do, undo = FAULTS[fault]
    result = {'phase': phase, 'fault': fault}
    with tool.Guest(f'{phase}-{fault}'.replace(' ', '-')) as guest:
        guest.boot(guest.flavor(enabled='true', max_total_ms='120000'))
        guest.limit_bandwidth(SOURCE, SLOW_MIB_PER_S)
        began = time.time()
        done = False
        try:
            with PHASES[phase](guest):
                done = True
                do(guest)
                time.sleep(FAULT_S)
        finally:
            # If the phase was not reached, that is the error to be seen.
            if done and undo:
                undo(guest)
            _repair(guest)
        try:
            base.wait_until('it has settled', lambda: _quietly(
                lambda: _settled(guest)), timeout_s=SETTLED_TIMEOUT_S,
                interval_s=1)
        except AssertionError as error:
            result['unsettled'] = str(error)
        # power states are synchronised by events that come a little later
        with contextlib.suppress(AssertionError):
            base.wait_until(
                'nothing is wrong',
                lambda: not faults_report.problems(state(guest)),
                timeout_s=30, interval_s=1)
        result['seconds'] = round(time.time() - began)
        result['state'] = state(guest)
        result['problems'] = faults_report.problems(result['state'])
        result['verdict'] = _quietly(guest.verdict)
        try:
            result['again'] = _migrates(guest)
        except Exception as error:
            result['again'] = f'{type(error).__name__}: {error}'
        if 'migration completed' not in result['again']:
            result['problems'].append('it does not migrate again')
        result['end'] = faults_report.problems(state(guest))
    return result


def _quietly(ask):
    """None while the API does not answer."""
    try:
        return ask()
    except Exception:
        return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=pathlib.Path, required=True)
    parser.add_argument('--phase', choices=PHASES, action='append')
    parser.add_argument('--fault', choices=FAULTS, action='append')
    parser.add_argument('--table', type=pathlib.Path)
    args = parser.parse_args()
    cases = ([json.loads(line)
              for line in args.cases.read_text().splitlines()]
             if args.cases.exists() else [])
    done = {(case['phase'], case['fault']) for case in cases}
    if not args.table or args.phase or args.fault:
        # Its own QEMU would not wait for libvirt in the switchover.
        base.lab('use-driver', 'fastmig', '--qemu', 'distribution')
        tool.Guest.use('fastmig')
        for fault in args.fault or FAULTS:
            for phase in args.phase or PHASES:
                if ((phase, fault) in done or
                        (phase, fault) in faults_report.NOTHING_THERE):
                    continue
                try:
                    case = run(phase, fault)
                except Exception as error:
                    case = {'phase': phase, 'fault': fault, 'problems': [],
                            'error': f'{type(error).__name__}: {error}'}
                cases.append(case)
                with open(args.cases, 'a') as file:
                    file.write(json.dumps(case) + '\n')
                words = case.get('error') or faults_report.outcome(case)
                print(f'{phase}, {fault}: {words} ({case.get("again")})',
                      flush=True)
    if args.table:
        args.table.write_text(faults_report.table(cases, FAULTS, PHASES))
    return 1 if any(case['problems'] for case in cases) else 0


if __name__ == '__main__':
    sys.exit(main())
