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

"""The lab's hosts, as the rigs use them: commands, packets, processor time.

This runs as root in the network namespace of the lab's controller
(``cli`` sees to that), so that the monitors of the hosts' QEMUs can be reached
and the generator is on the guests' network.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import functools
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import types
import typing as ty

import nova_fastmig
from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import memory
from nova_fastmig.bench import scenario

COMPUTES = ('compute1', 'compute2')
MANAGEMENT_IP = types.MappingProxyType(
    {'compute1': '10.77.0.11', 'compute2': '10.77.0.12'})
CHECKOUT = pathlib.Path(nova_fastmig.__file__).parents[1]
# of an image, and of ports (lab/use-switch), for each data plane
IMAGE = types.MappingProxyType({
    scenario.DataPlane.KERNEL: 'forwarder', scenario.DataPlane.DPDK: 'l2fwd'})
SWITCH = types.MappingProxyType({
    scenario.DataPlane.KERNEL: 'tap', scenario.DataPlane.DPDK: 'vhost-user'})
# DPDK needs SSE 4.2, which an emulated processor has if it is asked to
DPDK_CPU = 'Nehalem'
# what both compute hosts see, and where they see it
SHARED = pathlib.PurePath('/var/lib/nova/instances')
PATCHED = '/opt/nova-fastmig/qemu/bin/qemu-system-x86_64'
DISTRIBUTION = '/usr/bin/qemu-system-x86_64'
EMULATOR = types.MappingProxyType({
    scenario.Qemu.DISTRIBUTION: DISTRIBUTION, scenario.Qemu.PATCHED: PATCHED})

# QEMU's announce-self, as after a migration: the guest before this one had the
# same address and may have ended at the other host, where the switches still
# send packets to
ANNOUNCE = types.MappingProxyType(
    {'initial': 50, 'max': 550, 'rounds': 5, 'step': 100})
# an emulated testpmd takes its time
BOOT_TIMEOUT_S = {scenario.DataPlane.KERNEL: 120, scenario.DataPlane.DPDK: 240}
MIGRATION_TIMEOUT_S = 120
# before the migration, for the guest to do what it is told, and after it, for
# the last packets
SETTLE_S = 1
CPU_INTERVAL_S = 0.05
# the guest's image has so much that it rewrites (lab/guest/build)
WORKING_SET_MIB = 64
# of the guest's disk (lab/probe/protocol.h)
DISK_BLOCKS_PER_MIB = 16


def iso_time(seconds: float) -> str:
    """A time of the epoch, as results have it."""
    return datetime.datetime.fromtimestamp(
        seconds, datetime.UTC).isoformat(timespec='seconds')


def now() -> str:
    return iso_time(time.time())


def image_obstacle(guest: scenario.Guest) -> str | None:
    """Why the image of the lab's guest cannot be this one; None if it can."""
    if (guest.data_plane == scenario.DataPlane.DPDK or
            guest.working_set_mib == WORKING_SET_MIB):
        return None
    return (f'a working set of {guest.working_set_mib} MiB: the '
            f"guest's image has {WORKING_SET_MIB} MiB")


def vhost_user_obstacle(turn: scenario.Turn) -> str | None:
    """Why the hosts' switches cannot be used so; None if they can."""
    if (turn.guest.data_plane == scenario.DataPlane.DPDK and
            scenario.Option.POST_COPY in turn.contender.options):
        return ('post-copy: QEMU refuses it with the vhost-user ports of the '
                "lab's Open vSwitch, whose memory is locked (it has "
                'vhost-postcopy-support off)')
    return None


def obstacle(turn: scenario.Turn) -> str | None:
    """Why the lab's images and switches do not do for a turn."""
    return image_obstacle(turn.guest) or vhost_user_obstacle(turn)


@dataclasses.dataclass(frozen=True)
class Address:
    """A guest's, as ``lab/probe_client.py`` takes that of a port."""

    mac_address: str
    ip_address: str

    @property
    def fixed_ips(self) -> list[dict[str, str]]:
        return [{'ip_address': self.ip_address}]


@dataclasses.dataclass(frozen=True)
class VhostUserPort:
    """One of a guest's two: what arrives at one leaves from the other.

    :ivar bridge: that it is on in the hosts (lab/lib/switch.sh)
    """

    mac_address: str
    name: str
    bridge: str

    @property
    def socket(self) -> str:
        return f'/run/openvswitch/{self.name}'


VHOST_USER_PORTS = (VhostUserPort('52:54:00:be:00:10', 'bench0', 'br-data'),
                    VhostUserPort('52:54:00:be:00:11', 'bench1', 'br-far'))


class Packets:
    """Sends packets to a guest and looks at what comes back.

    :param checkout: has ``lab/``
    :param program: the generator
    :param options: of ``lab/probe_client.Probe``, if it does not send from
        the lab's controller
    """

    def __init__(self, checkout: pathlib.Path, program: pathlib.Path,
                 **options: str):
        self.commands = checkout / 'lab'
        if not (self.commands / 'probe_client.py').exists():
            raise engine.RigError(
                f'{self.commands} is no lab: bench run needs a checkout of '
                f'nova-fastmig that it is installed from (pip install '
                f'--editable)')
        self._program, self._options = program, options

    def module(self, name: str) -> types.ModuleType:
        """One of the lab's own Python modules."""
        parent = str(self.commands)
        if parent not in sys.path:
            sys.path.append(parent)
        return importlib.import_module(name)

    def probe(self, address: Address, plane: scenario.DataPlane, rate: int,
              answer_within_s: int = 10, **options):
        """lab/probe_client.Probe for a guest with this address."""
        client = self.module('probe_client')
        if plane == scenario.DataPlane.DPDK:
            return client.Probe.two_ports(
                self._program, client.INTERFACE, client.FAR_INTERFACE,
                VHOST_USER_PORTS[0].mac_address, rate, answer_within_s)
        return client.Probe(self._program, address, rate, answer_within_s,
                            **self._options, **options)

    def wait_for_guest(self, address: Address, plane: scenario.DataPlane
                       ) -> None:
        """Wait until the guest sends packets back."""
        try:
            with self.probe(address, plane, 20, BOOT_TIMEOUT_S[plane]):
                pass
        except self.module('probe_client').ProbeError as error:
            raise engine.RigError(f'the guest does not answer: {error}'
                                  ) from error

    def guest_failures(self, probed: dict[str, ty.Any]) -> tuple[str, ...]:
        return tuple(why for good, why in
                     self.module('demo_report').guest_checks(probed)
                     if not good)


def revision() -> dict[str, str]:
    """Which commit of the project measures, if git knows.

    Its version says neither what drives the guests nor what sends packets.
    """
    try:
        found = subprocess.run(  # noqa: S603
            ['git', '-c', f'safe.directory={CHECKOUT}', '-C', str(CHECKOUT),  # noqa: S607
             'describe', '--always', '--dirty'],
            # not that of a project around it
            env=os.environ | {'GIT_CEILING_DIRECTORIES': str(CHECKOUT.parent)},
            capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    return {} if found.returncode else {
        'nova_fastmig_revision': found.stdout.strip()}


class Lab(Packets):
    """The lab of a checkout.

    :param checkout: has ``lab/``
    """

    # ---- for libvirt_rig, see its Hosts

    names = COMPUTES
    address = Address('52:54:00:be:00:01', '10.88.0.211')
    bridge = 'br-data', 'openvswitch'
    disk_is_shared = False
    one_clock = True

    def __init__(self, checkout: pathlib.Path = CHECKOUT):
        name = os.environ.get('NOVA_FASTMIG_LAB_NAME')
        self.name = name or 'nfm'
        self.state = pathlib.Path(os.environ.get(
            'NOVA_FASTMIG_LAB_DIR',
            '/var/lib/nova-fastmig-lab' + (f'-{name}' if name else '')))
        super().__init__(checkout, self.state / 'share/bin/probe')
        self.memory = memory.Memory(self.state / 'run')

    def run(self, command: str, *arguments: str, timeout_s: float = 600
            ) -> str:
        """Run one of the lab's commands; what it printed.

        :raises: engine.RigError
        """
        try:
            result = subprocess.run(  # noqa: S603
                [self.commands / command, *arguments],
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise engine.RigError(f'lab/{command} {" ".join(arguments)}: no '
                                  f'end after {timeout_s} s') from error
        if result.returncode:
            raise engine.RigError(
                f'lab/{command} {" ".join(arguments)} ended with '
                f'{result.returncode}: '
                f'{(result.stdout + result.stderr)[-2000:].strip()}')
        return result.stdout

    def on(self, host: str, *command: str, timeout_s: float = 120) -> str:
        """Run a command in a host; what it printed."""
        return self.run('in', host, *command, timeout_s=timeout_s)

    @functools.cached_property
    def accelerator(self) -> str:
        """kvm or tcg."""
        return {'kvm': 'kvm', 'qemu': 'tcg'}[
            (self.state / 'virt_type').read_text().strip()]

    def guest_size(self) -> catalog.Size:
        """What guests have here where nothing else is said."""
        if self.accelerator != 'kvm':
            return catalog.AS_IT_IS
        return catalog.size_for(len(os.sched_getaffinity(0)),
                                self.memory.total_mib, memory.SIDES)

    @property
    def has_patched_qemu(self) -> bool:
        return all((self.state / 'hosts' / host / 'root' /
                    PATCHED.lstrip('/')).exists() for host in COMPUTES)

    def qemu_obstacle(self, contender: scenario.Contender) -> str | None:
        """Why a contender's QEMU cannot be used; None if it can."""
        if (contender.qemu == scenario.Qemu.PATCHED and
                not self.has_patched_qemu):
            return 'the hosts have no patched QEMU: lab/build-qemu builds it'
        return None

    def machine(self) -> dict[str, ty.Any]:
        """What the results were measured on."""
        script = ('import sys; sys.path.append("/usr/src/nova-fastmig/lab"); '
                  'import json, demo; print(json.dumps(demo.machine()))')
        machine = json.loads(self.on('controller', 'python', '-c', script))
        if self.has_patched_qemu:
            machine['qemu_patched'] = self.on(
                'compute1', PATCHED, '--version').splitlines()[0]
        machine['openvswitch'] = self.on(
            'compute1', 'dpkg-query', '--show', '--showformat=${Version}',
            'openvswitch-switch')
        return {**machine, **revision(), 'accel': self.accelerator}

    # ---- libvirt

    def uri(self, host: str) -> str:
        return f'qemu+tcp://{MANAGEMENT_IP[host]}/system'

    peer_uri = uri

    def migrate_uri(self, host: str) -> str:
        return f'tcp://{MANAGEMENT_IP[host]}'

    def virsh(self, host: str) -> list[str]:
        return [str(self.commands / 'in'), host, 'virsh']

    def emulator(self, qemu: scenario.Qemu) -> str:
        return EMULATOR[qemu]

    # ---- vhost-user ports

    def use_switch(self, plane: scenario.DataPlane) -> None:
        """What the hosts' switches give to guests."""
        self.run('use-switch', SWITCH[plane])

    def plug(self, host: str) -> None:
        """Ports of the host's switch for a guest that is not there yet.

        New ones for each QEMU, as Nova's are: with those that the guest had a
        few seconds ago the switch still has the flows of its announcement,
        and learns where the guest is only when it looks at them next.
        """
        self.on(host, 'ovs-vsctl', '--timeout=20', *(
            word for port in VHOST_USER_PORTS for word in (
                '--', '--if-exists', 'del-port', port.name, '--', 'add-port',
                port.bridge, port.name, '--', 'set', 'Interface',
                port.name, 'type=dpdkvhostuserclient',
                f'options:vhost-server-path={port.socket}')))

    def unplug(self, host: str) -> None:
        self.on(host, 'ovs-vsctl', '--timeout=20', *(
            word for port in VHOST_USER_PORTS for word in (
                '--', '--if-exists', 'del-port', port.name)))

    # ---- guests' disks

    def place_disk(self, name: str, plane: scenario.DataPlane) -> str:
        """A disk with what forwards for a guest; its path in the hosts."""
        self.on('compute1', 'cp', '--sparse=always',
                f'/opt/lab/{IMAGE[plane]}.img', str(SHARED / f'{name}.img'))
        return str(SHARED / f'{name}.img')

    def remove_disk(self, name: str) -> None:
        self.on('compute1', 'rm', '-f', str(SHARED / f'{name}.img'))

    # ---- processor time

    def cpu_ms(self, host: str) -> float:
        """That everything in the host has used since it was started."""
        group = pathlib.Path((self.state / 'run' / f'{host}.cgroup')
                             .read_text().strip())
        while group.name != f'nova-fastmig-lab-{self.name}-{host}':
            if group == group.parent:
                raise engine.RigError(f'{host} has no cgroup of its own')
            group = group.parent
        text = (group / 'cpu.stat').read_text()
        return int(text.split('usage_usec ')[1].split()[0]) / 1000


class CpuRecorder:
    """Processor time of both hosts while the block runs.

    :param hosts: Lab, or whatever has its ``names`` and ``cpu_ms``
    """

    def __init__(self, hosts: ty.Any):
        self._hosts = hosts
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)

    def _sample(self) -> None:
        self._samples.append((time.time(), {
            host: self._hosts.cpu_ms(host) for host in self._hosts.names}))

    def _record(self) -> None:
        while not self._stop.wait(CPU_INTERVAL_S):
            self._sample()

    def __enter__(self):
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()
        self._sample()

    def used(self, source: str, started_s: float, ended_s: float
             ) -> dict[str, float]:
        """Fields of Figures for the time between these."""
        first = max((each for each in self._samples
                     if each[0] <= started_s), default=self._samples[0],
                    key=lambda each: each[0])
        last = min((each for each in self._samples if each[0] >= ended_s),
                   default=self._samples[-1], key=lambda each: each[0])
        used = {host: last[1][host] - first[1][host] for host in first[1]}
        destination, = set(used) - {source}
        return {'cpu_source_ms': round(used[source], 1),
                'cpu_destination_ms': round(used[destination], 1),
                'cpu_window_ms': round((last[0] - first[0]) * 1000, 1)}


def _phase(probed: dict[str, ty.Any]) -> scenario.Phase:
    return scenario.Phase(
        probed['sent'], probed['lost'], probed['duplicates'],
        probed['reordered'], probed['longest_loss_ms'], probed['rtt_p50_ms'],
        probed['rtt_p99_ms'], probed['rtt_max_ms'],
        probed['rewritten_mib_per_s'])


def packet_figures(probed: dict[str, ty.Any]) -> dict[str, ty.Any]:
    """Fields of Figures from what the probe printed."""
    # all 0 where the guest does not tell
    seconds = (probed['last_guest_ns'] - probed['first_guest_ns']) / 1e9
    pages = probed['pages_verified'] - probed['first_pages_verified']
    disk_mib_per_s = None
    if probed['disk_blocks'] is not None and seconds > 0:
        blocks = probed['disk_blocks'] - probed['first_disk_blocks']
        disk_mib_per_s = round(blocks / DISK_BLOCKS_PER_MIB / seconds, 2)
    # none where nobody marked them
    phases = (dict(zip(('before', 'during', 'after'),
                       map(_phase, probed['phases']), strict=True))
              if len(probed['phases']) == 3 else {})
    return {
        **phases,
        'blackout_ms': probed['blackout_ms'],
        'gap_ms': probed['gap_ms'],
        'packets_sent': probed['sent'],
        'packets_lost': probed['lost'],
        'packets_duplicated': probed['duplicates'],
        'packets_reordered': probed['reordered'],
        'latency_p50_ms': probed['rtt_p50_ms'],
        'latency_p99_ms': probed['rtt_p99_ms'],
        'latency_max_ms': probed['rtt_max_ms'],
        'rewritten_mib_per_s':
            round(pages / 256 / seconds, 2) if seconds > 0 else None,
        'disk_mib_per_s': disk_mib_per_s}


def job_figures(job: dict[str, ty.Any], one_clock: bool = True
                ) -> dict[str, ty.Any]:
    """Fields of Figures from libvirt's statistics of a completed job.

    :param one_clock: whether both hosts' clocks are the same one. The
        destination counts from times of the source; libvirt's ``net`` is
        without what lies between the clocks, and without the time that its
        last message took.
    """
    net = '' if one_clock else '_net'
    return {
        'downtime_libvirt_ms': job.get(f'downtime{net}'),
        'total_libvirt_ms': job.get(f'time_elapsed{net}'),
        'bytes_sent': job.get('memory_processed'),
        'iterations': job.get('memory_iteration'),
        'throttle_percent': job.get('auto_converge_throttle')}


class Directions:
    """Which side a guest is on: it goes there and back."""

    def __init__(self, sides: tuple[str, str]) -> None:
        self._pairs = itertools.cycle([sides, sides[::-1]])

    def next(self) -> tuple[str, str]:
        """(source, destination) of the next migration."""
        return next(self._pairs)


@contextlib.contextmanager
def probing(lab: Packets, probe) -> Iterator[None]:
    """Send packets from a little before the block until a little after it."""
    probe_error = lab.module('probe_client').ProbeError
    try:
        with probe:
            time.sleep(SETTLE_S)
            yield
            time.sleep(SETTLE_S)
    except probe_error as error:
        raise engine.RigError(f'the generator: {error}') from error


@contextlib.contextmanager
def watched(lab: Packets, address: Address, workload: scenario.Workload
            ) -> Iterator[tuple[ty.Any, CpuRecorder]]:
    """Send a workload's packets while the block migrates the guest.

    :param lab: has what CpuRecorder asks for, too
    """
    probe = lab.probe(address, workload.guest.data_plane,
                      workload.packets_per_s,
                      rewrite_mib_per_s=workload.rewrite_mib_per_s,
                      working_set_mib=workload.rewritten_mib,
                      disk_mib_per_s=workload.disk_mib_per_s)
    with CpuRecorder(lab) as cpu, probing(lab, probe):
        yield probe, cpu
