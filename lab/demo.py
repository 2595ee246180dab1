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

"""The demo's part that runs on the lab's controller; ``lab/demo`` calls it.

``prepare`` boots the servers, ``migrate`` live-migrates them under the driver
that the compute hosts run at that time, ``report`` prints the result and
``clean`` removes what ``prepare`` made.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from xml.etree import ElementTree

import libvirt
import openstack

import demo_report
import probe_client
import variants_report

COMPUTES = ('compute1', 'compute2')
# what forwards in the guest -> image, network of each port
DATA_PLANES = {'kernel': ('forwarder', ('nfv',)),
               'dpdk': ('l2fwd', ('nfv', 'nfv-far'))}
MAX_PORTS = max(len(networks) for _, networks in DATA_PLANES.values())
PROBE = pathlib.Path('/opt/lab/bin/probe')

# name of flavor and server -> extra specs
# proceed: a limit that an emulated guest misses is to be reported, not to end
# the migration
SERVERS = {
    'demo-tagged': {'fastmig:enabled': 'true', 'fastmig:on_miss': 'proceed'},
    'demo-untagged': {},
}
RAM_MIB = 256
CLIS = ('nova live-migration', 'openstack server migrate')
# asked directly where the time of a command would be in the way
API = 'API'
JOURNAL = '/var/lib/nova/fastmig/journal.jsonl'
CLI_OPTIONS = {'openstack server migrate': ['--live-migration']}

FINAL_STATUSES = ('completed', 'failed', 'error', 'cancelled')
# an emulated testpmd takes its time
GUEST_START_TIMEOUT_S = {'kernel': 90, 'dpdk': 240}
GUEST_START_RATE = 10  # probes per second
CLI_TIMEOUT_S = 60
MIGRATION_TIMEOUT_S = 120
# often enough to end soon after the migration, rarely enough to leave the
# machine to it; no figure is taken from these polls
POLL_INTERVAL_S = 0.5
VERDICT_TIMEOUT_S = 5
# what the probe sees before and after the migration
SETTLE_S = 1


# ---- servers ----------------------------------------------------------------

def prepare(cloud, args):
    """Boot one server that is tagged as NFV and one that is not."""
    clean(cloud, args)
    args.directory.mkdir(parents=True, exist_ok=True)
    image, networks = DATA_PLANES[args.data_plane]
    image = cloud.image.find_image(image, ignore_missing=False)
    networks = [cloud.network.find_network(each, ignore_missing=False)
                for each in networks]
    servers = []
    for name, extra_specs in SERVERS.items():
        if args.server and name not in args.server:
            continue
        # disk 0: as large as the image
        flavor = cloud.compute.create_flavor(
            name=name, ram=args.ram_mib, vcpus=args.vcpus, disk=0)
        extra_specs = {**extra_specs, **dict(args.extra_spec)}
        if extra_specs:
            cloud.compute.create_flavor_extra_specs(flavor, extra_specs)
        servers.append(cloud.compute.create_server(
            name=name, flavor_id=flavor.id, image_id=image.id,
            # their names tell which is the guest's first
            networks=[{'port': cloud.network.create_port(
                name=f'{name}-{number}', network_id=network.id).id}
                for number, network in enumerate(networks)]))
    for server in servers:
        _wait_until_active(cloud, server)
    for server in servers:
        with _probe(cloud, server, rate=GUEST_START_RATE,
                    answer_within_s=GUEST_START_TIMEOUT_S[args.data_plane]):
            print(f'{server.name}: forwards', flush=True)


def _wait_until_active(cloud, server):
    try:
        cloud.compute.wait_for_server(server, interval=0.5, wait=120)
    except openstack.exceptions.SDKException as error:
        server = cloud.compute.get_server(server.id)
        fault = (server.fault or {}).get('message', 'no fault recorded')
        raise SystemExit(
            f'{server.name}: {error}; Nova says: {fault}') from error


def clean(cloud, args):
    """Remove the demo's servers, flavors and files."""
    servers = [server for name in SERVERS
               for server in cloud.compute.servers(name=f'^{name}$')]
    for server in servers:
        cloud.compute.delete_server(server)
    for server in servers:
        cloud.compute.wait_for_delete(server, interval=0.5, wait=60)
    for name in SERVERS:
        for number in range(MAX_PORTS):
            for port in cloud.network.ports(name=f'{name}-{number}'):
                cloud.network.delete_port(port)
        flavor = cloud.compute.find_flavor(name)
        if flavor is not None:
            cloud.compute.delete_flavor(flavor)
    if args.directory.exists():
        for file in args.directory.iterdir():
            file.unlink()


# ---- the probe --------------------------------------------------------------

def _probe(cloud, server, **options):
    port, *others = sorted(cloud.network.ports(device_id=server.id),
                           key=lambda port: port.name)
    if others:
        return probe_client.Probe.two_ports(
            PROBE, probe_client.INTERFACE, probe_client.FAR_INTERFACE,
            port.mac_address, **options)
    return probe_client.Probe(PROBE, port, **options)


# ---- what the hosts say -----------------------------------------------------

def _libvirt(host):
    return libvirt.openReadOnly(f'qemu+tcp://{host}/system')


def _domain_state(host, uuid):
    with contextlib.closing(_libvirt(host)) as connection:
        try:
            domain = connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return 'absent'
            raise
        return ', '.join(['running' if domain.isActive() else 'shut off',
                          'persistent' if domain.isPersistent()
                          else 'transient'])


def _completed_job(host, uuid):
    """libvirt's statistics of the migration that brought the domain here."""
    with contextlib.closing(_libvirt(host)) as connection:
        try:
            return connection.lookupByUUIDString(uuid).jobStats(
                libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED
                | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
        except libvirt.libvirtError:
            return {}


def _log_lines(command, request_id):
    """Lines of Nova's logs that have the request id."""
    result = subprocess.run(
        [*command, f'grep -hF {shlex.quote(request_id)} /var/log/nova/*.log'],
        capture_output=True, text=True)
    if result.returncode > 1:
        raise SystemExit(f'{shlex.join(command)}: {result.stderr}')
    return result.stdout.splitlines()


# ---- one migration ----------------------------------------------------------

def _migrations(cloud, server):
    """Status of each of the server's migrations, by id."""
    return {migration.id: migration.status for migration
            in cloud.compute.migrations(server_id=server.id)}


def _wait_for_end(cloud, server, known_ids):
    """Status of the migration that was not known, and the server after it."""
    deadline = time.monotonic() + MIGRATION_TIMEOUT_S
    status = None
    while time.monotonic() < deadline:
        status = next((status for id_, status
                       in _migrations(cloud, server).items()
                       if id_ not in known_ids), None)
        if status in FINAL_STATUSES:
            break
        time.sleep(POLL_INTERVAL_S)
    while True:
        server = cloud.compute.get_server(server.id)
        if server.task_state is None or time.monotonic() > deadline:
            return status, server
        time.sleep(POLL_INTERVAL_S)


def _live_migration_requests(cloud, server):
    """Ids of the requests to live-migrate the server, newest first."""
    return [action.request_id
            for action in cloud.compute.server_actions(server)
            if action.action == 'live-migration']


def _event_names(cloud, server, request_id):
    action = cloud.compute.get_server_action(request_id, server)
    return [event.event for event in action.events]


def _verdict(cloud, server, request_id, expected):
    """The driver reports after Nova is done, so wait a little for it."""
    deadline = time.monotonic() + (VERDICT_TIMEOUT_S if expected else 0)
    while True:
        found = demo_report.verdict(_event_names(cloud, server, request_id))
        if found or time.monotonic() > deadline:
            return found
        time.sleep(POLL_INTERVAL_S)


def _call(cli, server):
    """Run the command; the exit code, what it printed."""
    try:
        result = subprocess.run(
            [*cli.split(), *CLI_OPTIONS.get(cli, []), server.name],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=CLI_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        return None, f'no end after {CLI_TIMEOUT_S} s: {error.stdout}'
    return result.returncode, result.stdout.strip()


def _request(server_id, cloud):
    """Ask Nova's API itself: the commands take seconds to start."""
    # the SDK's own call takes an old microversion, with which nova-api waits
    # for the pre-checks
    response = cloud.compute.post(
        f'/servers/{server_id}/action', microversion='2.96',
        json={'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
    return (0 if response.status_code == 202 else response.status_code,
            response.text)


def _report(host, server_id, started):
    """The driver's own report of the migration, from its journal."""
    deadline = time.monotonic() + VERDICT_TIMEOUT_S
    while True:
        result = subprocess.run(
            ['ssh', host, f'tail -n 1 {JOURNAL}'], capture_output=True,
            text=True)
        if result.stdout:
            record = json.loads(result.stdout)
            if (record['time'] > started and
                    record['report']['instance_uuid'] == server_id):
                return record['report']
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_INTERVAL_S)


def _run(cloud, driver, name, cli, variant=None, **probe_options):
    """One live migration, from the command to everything known about it."""
    server = cloud.compute.find_server(name, ignore_missing=False)
    server = cloud.compute.get_server(server.id)
    source = server.compute_host
    known_ids = set(_migrations(cloud, server))
    known_requests = _live_migration_requests(cloud, server)
    with _probe(cloud, server, **probe_options) as probe:
        if variant:
            # the guest does now what it was told; and a phase before it all
            time.sleep(SETTLE_S)
        started_s = time.time()
        started = datetime.datetime.fromtimestamp(
            started_s, datetime.UTC).isoformat()
        probe.mark()
        exit_code, output = (_call(cli, server) if cli != API else
                             _request(server.id, cloud))
        status = None
        if exit_code == 0:
            status, server = _wait_for_end(cloud, server, known_ids)
        ended_s = time.time()
        probe.mark()
        time.sleep(SETTLE_S)

    destination = server.compute_host
    request_id = next((id_ for id_ in _live_migration_requests(cloud, server)
                       if id_ not in known_requests), None)
    controller_lines, source_lines, verdict = [], [], None
    expected = driver == 'fastmig' and bool(SERVERS[name])
    if request_id:
        controller_lines = _log_lines(['sh', '-c'], request_id)
        source_lines = _log_lines(['ssh', source], request_id)
        verdict = _verdict(cloud, server, request_id, expected)
    reported = {}
    if verdict and variant:
        reported = _report(source, server.id, started) or {}
    moved = destination != source
    # a server that stayed has those of an earlier migration
    job = _completed_job(destination, server.id) if moved else {}
    with contextlib.closing(_libvirt(destination)) as connection:
        qemu = demo_report.version(connection.getVersion())
    result = probe.result
    run = {
        'driver': driver,
        'variant': variant,
        'server': 'tagged' if SERVERS[name] else 'untagged',
        'server_id': server.id,
        'qemu': qemu,
        'cli': cli,
        'cli_exit_code': exit_code,
        'cli_output': output,
        'request_id': request_id,
        'started_s': started_s,
        'ended_s': ended_s,
        'source': source,
        'destination': destination if moved else None,
        'status': status,
        'error': demo_report.first_error(controller_lines + source_lines),
        'post_copy': demo_report.went_post_copy(source_lines),
        'server_status': server.status,
        'domain': {host: _domain_state(host, server.id) for host in COMPUTES},
        'blackout_ms': result['blackout_ms'],
        'gap_ms': result['gap_ms'],
        'downtime_libvirt_ms': job.get('downtime'),
        'total_libvirt_ms': job.get('time_elapsed'),
        'libvirt_job': job,
        'blackout_qemu_ms': (reported.get('blackout') or {}).get('resumed_ms'),
        'report': reported or None,
        **demo_report.nova_times(controller_lines, source_lines),
        'guest_continuous': result['counter_continuous'],
        'verdict': verdict,
        'verdict_expected': expected,
        'probe_stalled':
            result['blackout_stall_ms'] > demo_report.MAX_STALL_MS,
        'probe': result,
    }
    run['failures'] = demo_report.failures(run)
    return run


def migrate(cloud, args):
    """Live-migrate; add each run to the result."""
    name = args.server
    probe_options = {'rate': args.packets_per_s}
    if args.rewrite_mib_per_s is not None:
        probe_options |= {'rewrite_mib_per_s': args.rewrite_mib_per_s,
                          'working_set_mib': args.working_set_mib,
                          'disk_mib_per_s': args.disk_mib_per_s}
    for number in range(args.first, args.first + args.count):
        cli = API if args.variant else CLIS[number % len(CLIS)]
        run = _run(cloud, args.driver, name, cli, args.variant,
                   **probe_options)
        if args.variant:
            run['failures'] += variants_report.failures(run, args.features)
        with open(args.directory / 'runs.jsonl', 'a') as file:
            file.write(json.dumps(run) + '\n')
        print(demo_report.line(run), flush=True)


# ---- report -----------------------------------------------------------------

def _first(path, pattern):
    match = re.search(pattern, pathlib.Path(path).read_text(), re.MULTILINE)
    return match and match[1]


def _accelerator(server_id):
    """What runs the demo's guests: kvm or tcg."""
    for host in COMPUTES:
        with contextlib.closing(_libvirt(host)) as connection:
            try:
                xml = connection.lookupByUUIDString(server_id).XMLDesc()
            except libvirt.libvirtError:
                continue
        type_ = ElementTree.fromstring(xml).get('type')
        return {'kvm': 'kvm', 'qemu': 'tcg'}[type_]
    raise SystemExit(f'the domain {server_id} is on none of '
                     f'{", ".join(COMPUTES)}')


def machine():
    """What migrations are measured on here, but for what runs the guests."""
    with contextlib.closing(_libvirt(COMPUTES[0])) as connection:
        return {
            'cpu': _first('/proc/cpuinfo', r'^model name\s*: (.*)$'),
            'cores': len(os.sched_getaffinity(0)),
            'memory_mib':
                int(_first('/proc/meminfo', r'^MemTotal: *(\d+)')) // 1024,
            'kernel': os.uname().release,
            'qemu': demo_report.version(connection.getVersion()),
            'libvirt': demo_report.version(connection.getLibVersion()),
            'nova': importlib.metadata.version('nova'),
            'nova_fastmig': importlib.metadata.version('nova-fastmig'),
        }


def report(cloud, args):
    """Print the result; fail if anything did."""
    file = args.directory / 'runs.jsonl'
    if not file.exists():
        raise SystemExit('there was no migration to report on')
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    document = {'machine': {**machine(), 'accel': _accelerator(
        runs[0]['server_id'])}, 'runs': runs,
                'summary': (variants_report if args.variants
                            else demo_report).summarize(runs)}
    with open(args.directory / 'demo.json', 'w') as file:
        json.dump(document, file, indent=2)
        file.write('\n')
    print((variants_report if args.variants else demo_report).text(document))
    return 1 if any(run['failures'] for run in runs) else 0


def _extra_spec(given):
    """(name, value) of NAME=VALUE."""
    name, equals, value = given.partition('=')
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f'{given!r}: must be NAME=VALUE')
    return name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--directory', type=pathlib.Path, required=True,
                        help='where the runs are kept')
    commands = parser.add_subparsers(required=True)
    for function in (prepare, migrate, report, clean):
        sub = commands.add_parser(function.__name__, help=function.__doc__)
        sub.set_defaults(function=function)
        if function is migrate:
            sub.add_argument('--driver', choices=('stock', 'fastmig'),
                             required=True)
            sub.add_argument('--server', choices=SERVERS, required=True)
            sub.add_argument('--count', type=int, required=True)
            sub.add_argument('--first', type=int, default=0,
                             help='number of the first one: the commands '
                                  'take turns')
            sub.add_argument('--variant',
                             help='what the compute hosts are set to; its '
                                  'servers are migrated through the API')
            sub.add_argument('--features', default='none',
                             help='those that must be in force: all, none or '
                                  'names with commas between them')
            sub.add_argument('--rewrite-mib-per-s', type=int,
                             help='what the guest is to rewrite of its memory')
            sub.add_argument('--working-set-mib', type=int,
                             help='of how much, with --rewrite-mib-per-s')
            sub.add_argument('--disk-mib-per-s', type=int, default=0,
                             help='what it is to read and write on its disk, '
                                  'with --rewrite-mib-per-s')
            sub.add_argument('--packets-per-s', type=int, default=1000)
        elif function is prepare:
            sub.add_argument('--server', choices=SERVERS, action='append',
                             help='only this one')
            sub.add_argument('--ram-mib', type=int, default=RAM_MIB)
            sub.add_argument('--vcpus', type=int, default=1)
            sub.add_argument('--data-plane', choices=DATA_PLANES,
                             default='kernel',
                             help='what forwards in the guest; dpdk: after '
                                  'lab/use-switch vhost-user')
            sub.add_argument('--extra-spec', type=_extra_spec,
                             action='append', default=[],
                             metavar='NAME=VALUE',
                             help='one more of the flavor')
        elif function is report:
            sub.add_argument('--variants', action='store_true',
                             help='compare variants')
    args = parser.parse_args()
    # what libvirt has to say is in its exceptions; "no such domain" is what
    # we want to hear
    libvirt.registerErrorHandler(lambda *_: None, None)
    return args.function(openstack.connect(), args)


if __name__ == '__main__':
    sys.exit(main())
