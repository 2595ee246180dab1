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

"""Measure what the network loses when a guest has been migrated.

By hand, see ``tool``. The hosts' ports are what ``--ports`` says: ``tap`` is
a guest's tap in the integration bridge, as with the firewall drivers
``openvswitch`` and ``noop``; ``bridge`` is a small bridge in between, as with
``iptables_hybrid``.

Nova waits before a migration for Neutron's word that the destination's ports
are wired. For a tap it comes too late: there is none before the migration has
begun, Nova gives up after ``vif_plugging_timeout`` and the migration fails.
``--no-wait`` does under Nova's own driver what its message then recommends
(``[compute]live_migration_wait_for_vif_plug = false``).

For each migration, in ms:

stopped      QEMU's STOP at the source to RESUME at the destination
blackout     the probe's longest run of packets without an answer
network      RESUME to the first packet that was answered: the network's part
later        packets without an answer that were sent after that. A userspace
             datapath on a busy machine loses some at any time
before       the same before the guest was stopped, for comparison
out          packets that the guest has forwarded and that never arrived
activated    RESUME to the binding's activation by Neutron
"""

import argparse
import datetime
import json
import statistics
import sys
import time

from tests.lab import base
from tests.lab import hosts
from tests.lab import tool

PORTS = {'tap': 'noop', 'bridge': 'iptables_hybrid'}
AGENT_FILE = '/etc/neutron/openvswitch_agent.ini'
NOVA_FILE = '/etc/nova/nova.conf.d/network.conf'
SETTLE_S = 3


def use_ports(kind: str) -> None:
    """Have new ports plugged in this way; servers must be booted after it."""
    for host in base.COMPUTE_IPS:
        base.on_host(host, 'sh', '-euc', f'''
            grep -q "^firewall_driver = {PORTS[kind]}$" {AGENT_FILE} && exit
            sed -i "s/^firewall_driver = .*/firewall_driver = {PORTS[kind]}/" \
                {AGENT_FILE}
            systemctl restart neutron-openvswitch-agent''')
    # Neutron learns of it with the agent's next report, and binds no port for
    # an agent that it has not heard of for a while.
    cloud = base.connect()
    base.wait_until(
        f'both agents plug a {kind}', lambda: all(
            agent.is_alive and agent.configuration['ovs_hybrid_plug'] == (
                kind == 'bridge')
            for agent in cloud.network.agents(
                binary='neutron-openvswitch-agent')), interval_s=1)


def use_driver(name: str, waits: bool) -> None:
    """Choose the driver, and whether Nova waits for Neutron's word."""
    content = '' if waits else (
        '[compute]\nlive_migration_wait_for_vif_plug = false\n')
    for host in base.COMPUTE_IPS:
        base.on_host(host, 'sh', '-euc',
                     f'printf "%s" "$1" > {NOVA_FILE}', 'sh', content)
    base.lab('use-driver', name)
    tool.Guest.use(name)


def _activated_at(guest: tool.Guest, source: str,
                  since: float) -> float | None:
    """When Neutron had activated the binding at the destination."""
    port = next(guest.cloud.network.ports(device_id=guest.uuid))
    found = base.on_host(
        source, 'sh', '-c', 'grep -hE "Activated (binding for port $1|the '
        'port bindings at)" /var/log/nova/nova-compute.log | tail -n 1',
        'sh', port.id).split()
    if not found:
        return None
    at = datetime.datetime.fromisoformat(
        f'{found[0]} {found[1]}+00:00').timestamp()
    return at if at > since else None


def _losses(runs: list[tuple[float, float]], resumed_ms: float) -> dict:
    """Sort runs of lost packets by the time when they were sent.

    :param runs: (when the first one was sent, for how long), in ms after the
        guest was stopped
    """
    around = [at + length for at, length in runs
              if at <= resumed_ms < at + length]
    return {
        'network_ms': max(around, default=resumed_ms) - resumed_ms,
        'later_ms': sum(length for at, length in runs if at > resumed_ms),
        'before_ms': sum(length for at, length in runs if at + length < 0),
        'losses': runs}


def measure(guest: tool.Guest, events: tool.QemuEvents,
            agent_late_s: float = 0) -> dict:
    """One migration to the other host.

    :param agent_late_s: for how long the destination's agent does nothing
    """
    source = guest.host()
    destination = next(host for host in base.COMPUTE_IPS if host != source)
    began = time.time()
    with guest.probe() as probe:
        agent = (hosts.service(destination, 'neutron-openvswitch-agent')
                 if agent_late_s else [])
        with hosts.frozen(agent):
            guest.migrate()
            time.sleep(agent_late_s)
        status = guest.finished_migration().status
        time.sleep(SETTLE_S)
    result = probe.result
    stop = events.last(source, guest.uuid, 'STOP')
    resume = events.last(destination, guest.uuid, 'RESUME')
    run = {'status': status, 'source': source, 'destination': destination,
           'stalled': result['blackout_stall_ms'] > 2, 'probe': result}
    if status == 'completed' and stop and resume:
        activated = _activated_at(guest, source, began)
        run |= {
            'stopped_ms': (resume - stop) * 1000,
            'blackout_ms': result['blackout_ms'],
            **_losses([((at - stop) * 1000, count * result['period_ms'])
                       for at, count in result['losses']],
                      (resume - stop) * 1000),
            'out_ms': result['unreturned'] * result['period_ms'],
            'activated_ms': activated and (activated - resume) * 1000,
        }
    return run


FIGURES = ('stopped_ms', 'blackout_ms', 'network_ms', 'later_ms',
           'before_ms', 'out_ms', 'activated_ms')


def line(name: str, run: dict) -> str:
    return f'{name:>8} {run["status"]:>9} ' + ' '.join(
        f'{figure.removesuffix("_ms")} '
        + ('?' if run.get(figure) is None else f'{run[figure]:.0f}')
        for figure in FIGURES) + (' (probe stalled)' if run['stalled']
                                  else '')


def summary(runs: list[dict]) -> dict:
    """(minimum, median, maximum) of each figure, without stalled runs."""
    kept = [run for run in runs if not run['stalled']]
    found = {'runs': len(runs), 'kept': len(kept)}
    for figure in FIGURES:
        values = [run[figure] for run in kept if run.get(figure) is not None]
        if values:
            found[figure] = [round(each(values), 1) for each in (
                min, statistics.median, max)]
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ports', choices=PORTS, default='tap')
    parser.add_argument('--drivers', default='stock,fastmig')
    parser.add_argument('--no-wait', action='store_true',
                        help="under Nova's own driver")
    parser.add_argument('--agent-late', type=float, default=0,
                        help="for how many seconds the destination's agent "
                             'does nothing')
    parser.add_argument('--count', type=int, default=6,
                        help='migrations under each driver')
    parser.add_argument('--json', type=argparse.FileType('w'))
    args = parser.parse_args()
    runs: dict[str, list[dict]] = {}
    use_ports(args.ports)
    with tool.QemuEvents('STOP', 'RESUME') as events:
        for driver in args.drivers.split(','):
            use_driver(driver, not (args.no_wait and driver == 'stock'))
            runs[driver] = []
            with tool.Guest(f'network-{driver}') as guest:
                guest.boot(guest.flavor(enabled='true', on_miss='proceed'))
                for _ in range(args.count):
                    run = measure(guest, events, args.agent_late)
                    runs[driver].append(run)
                    print(line(driver, run), flush=True)
    found = {driver: summary(each) for driver, each in runs.items()}
    print(json.dumps(found, indent=2))
    if args.json:
        json.dump({'ports': args.ports, 'summary': found, 'runs': runs},
                  args.json, indent=2)


if __name__ == '__main__':
    sys.exit(main())
