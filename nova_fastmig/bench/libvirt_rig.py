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

"""``virsh migrate`` between two hosts, without Nova.

They are the lab's, or an operator's own; see ``Hosts``.

Other systems' schedules set the downtime limit meanwhile, as those systems do
it through libvirt.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import json
import subprocess
import threading
import time
import typing as ty

import libvirt
import libvirt_qemu

from nova_fastmig.bench import engine
from nova_fastmig.bench import lab as lab_
from nova_fastmig.bench import monitor
from nova_fastmig.bench import qemu_rig
from nova_fastmig.bench import scenario
from nova_fastmig.bench import schedules

NAME = 'bench-libvirt'
# No --persistent: defining the domain costs time in which the guest stands
# still. Bandwidth is unlimited by default.
FLAGS = ('--live', '--p2p')
OPTIONS = {
    # over to post-copy after the first pass, which is the best that it can do
    scenario.Option.POST_COPY: ('--postcopy', '--postcopy-after-precopy'),
    scenario.Option.AUTO_CONVERGE: ('--auto-converge',),
    scenario.Option.PARALLEL: ('--parallel', '--parallel-connections', '2'),
}

# accelerator -> libvirt's name for it
DOMAIN_TYPES = {'tcg': 'qemu', 'kvm': 'kvm'}

# QEMU's last event can be heard after virsh has ended, and libvirt can have
# its statistics a little later
EVENTS_WITHIN_S = 2
STATISTICS_WITHIN_S = 2
# after the attempt to end a migration that lasts too long
ABORTED_WITHIN_S = 10

DOMAIN = """\
<domain type='{type}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>{memory_backing}
  <vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><apic/></features>{cpu}
  <clock offset='utc'>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='hpet' present='{hpet}'/>
  </clock>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>{readonly}
    </disk>
    <controller type='usb' model='none'/>{interfaces}
    <serial type='pty'/>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>{arguments}</qemu:commandline>
</domain>
"""


INTERFACE = """
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='{bridge}'/>{virtualport}
      <model type='virtio'/>
    </interface>"""
VHOST_USER_INTERFACE = """
    <interface type='vhostuser'>
      <mac address='{mac}'/>
      <source type='unix' path='{socket}' mode='server'/>
      <model type='virtio'/>
    </interface>"""


def arguments(capabilities: Iterable[str]) -> str:
    """What QEMU is given beside what libvirt gives it, at both hosts."""
    return ''.join(
        f"<qemu:arg value='-global'/>"
        f"<qemu:arg value='migration.{capability}=on'/>"
        for capability in sorted(capabilities))


class Memory(ty.Protocol):
    """Of two hosts: memory.Memory, hosts.Memory."""

    def obstacle(self, guest: scenario.Guest) -> str | None:
        """Why there is none for a guest; None if there is."""

    def hugepages(self, guest: scenario.Guest
                  ) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Those of a guest, on both sides, while the block runs.

        The block gets a function for when the guest runs, which raises
        RigError if its memory is known to be something else.
        """


class Hosts(ty.Protocol):
    """Two hosts, and what sends packets to the guest: lab.Lab, hosts.Hosts.

    It has the methods of lab.Packets, too.

    :ivar names: theirs; a guest starts at the first
    :ivar memory: theirs
    :ivar address: the guest's
    :ivar bridge: that the guest is plugged into, and linux or openvswitch
    :ivar accelerator: kvm or tcg
    :ivar disk_is_shared: the guest's disk is not the guest's alone: it is
        only read
    :ivar one_clock: both are on one machine
    """

    names: tuple[str, str]
    memory: Memory
    address: lab_.Address
    bridge: tuple[str, str]
    accelerator: str
    disk_is_shared: bool
    one_clock: bool

    def uri(self, host: str) -> str:
        """Of the host's libvirt, from here."""

    def peer_uri(self, host: str) -> str:
        """Of the host's libvirt, from the other host."""

    def migrate_uri(self, host: str) -> str:
        """That the guest's memory is sent to."""

    def virsh(self, host: str) -> list[str]:
        """virsh, connected to the host's libvirt."""

    def emulator(self, qemu: scenario.Qemu) -> str:
        """The path of a QEMU, the same on both hosts."""

    def qemu_obstacle(self, contender: scenario.Contender) -> str | None:
        """Why a contender's QEMU cannot be used; None if it can."""

    def use_switch(self, plane: scenario.DataPlane) -> None:
        """Set up the hosts' switches for guests with this data plane."""

    def plug(self, host: str) -> None:
        """New vhost-user ports for a guest that is not there yet."""

    def unplug(self, host: str) -> None:
        """Remove them, if there are any."""

    def place_disk(self, name: str, plane: scenario.DataPlane) -> str:
        """A disk with what forwards for a guest; its path in the hosts."""

    def remove_disk(self, name: str) -> None:
        """Remove what ``place_disk`` made."""

    def cpu_ms(self, host: str) -> float:
        """Processor time that everything in the host has used."""


def memory_backing(guest: scenario.Guest) -> str:
    """Of a domain; what Nova has for such a guest."""
    if not guest.hugepages:
        return ''
    return (f"<memoryBacking><hugepages><page size='{guest.page_kib}' "
            f"unit='KiB'/></hugepages><access mode='shared'/>"
            f"</memoryBacking>")


def interfaces(hosts: Hosts, plane: scenario.DataPlane) -> str:
    """Of a domain."""
    if plane == scenario.DataPlane.DPDK:
        return ''.join(VHOST_USER_INTERFACE.format(
            mac=port.mac_address, socket=port.socket)
            for port in lab_.VHOST_USER_PORTS)
    bridge, bridge_type = hosts.bridge
    return INTERFACE.format(
        mac=hosts.address.mac_address, bridge=bridge,
        virtualport="<virtualport type='openvswitch'/>"
        if bridge_type == 'openvswitch' else '')


def domain_xml(hosts: Hosts, turn: scenario.Turn, disk: str) -> str:
    """The guest of a turn."""
    dpdk = turn.guest.data_plane == scenario.DataPlane.DPDK
    cpu = ''
    if dpdk:
        cpu = ("<cpu mode='host-model'/>" if hosts.accelerator == 'kvm' else
               f"<cpu mode='custom'><model>{lab_.DPDK_CPU}</model></cpu>")
    return DOMAIN.format(
        type=DOMAIN_TYPES[hosts.accelerator], name=NAME,
        memory_mib=turn.guest.memory_mib,
        memory_backing=memory_backing(turn.guest), vcpus=turn.guest.vcpus,
        interfaces=interfaces(hosts, turn.guest.data_plane), cpu=cpu,
        # an emulated TSC is measured wrong on a busy machine
        hpet='yes' if dpdk else 'no',
        emulator=hosts.emulator(turn.contender.qemu),
        arguments=arguments(qemu_rig.features(turn.contender)), disk=disk,
        # libvirt leaves owner and label of such a file as they are then
        readonly='<readonly/>' if hosts.disk_is_shared else '')


def disk_obstacle(hosts: Hosts, turn: scenario.Turn) -> str | None:
    """Why the guest's disk cannot be used as a turn does; None if it can."""
    if not hosts.disk_is_shared:
        return None
    for _, workload in turn.migrations:
        if workload.disk_mib_per_s:
            return (f'{workload.kind} writes to the disk, which is only read '
                    f'here; without it, other workloads of this guest run')
    return None


def migrate_command(hosts: Hosts, contender: scenario.Contender, source: str,
                    destination: str) -> list[str]:
    """The virsh command of a contender."""
    return [*hosts.virsh(source), 'migrate', *FLAGS,
            *(flag for option in contender.options
              for flag in OPTIONS[option]),
            NAME, hosts.peer_uri(destination), '--migrateuri',
            hosts.migrate_uri(destination)]


def to_sample(job: dict[str, ty.Any], first_iteration: int
              ) -> schedules.Sample:
    return schedules.Sample(
        job['time_elapsed'],
        job.get('memory_iteration', 0) - first_iteration + 1,
        job.get('data_remaining', 0), job.get('data_processed', 0),
        job.get('data_total', 0))


class Events:
    """What both QEMUs say of a migration, with their own time stamps.

    :param name: of the domain, None if it is the only one that migrates
    """

    NAMES = ('STOP', 'RESUME', 'MIGRATION', 'MIGRATION_PASS')

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._times_us: dict[tuple[str, str], int] = {}
        self._blackout_ns: dict[str, int] = {}

    @contextlib.contextmanager
    def heard(self, connection: libvirt.virConnect, host: str
              ) -> Iterator[None]:
        """Listen to the QEMU at one host, to which the connection is."""
        ids = [libvirt_qemu.qemuMonitorEventRegister(
            connection, None, name, self._on_event, host)
            for name in self.NAMES]
        try:
            yield
        finally:
            for each in ids:
                libvirt_qemu.qemuMonitorEventDeregister(connection, each)

    def _on_event(self, connection, domain, event, seconds, microseconds,
                  details, host):
        if self._name not in (None, domain.name()):
            return
        says = json.loads(details or '{}')
        # the source's MIGRATION tells it
        self._blackout_ns = says.get('x-blackout', self._blackout_ns)
        self._times_us.setdefault((host, monitor.event_name(event, says)),
                                  seconds * 1_000_000 + microseconds)

    def figures(self, source: str, destination: str | None,
                one_clock: bool = True) -> dict[str, ty.Any]:
        """Fields of Figures; waits for what has not come yet.

        :param destination: None if the guest has not got there
        :param one_clock: whether the hosts' times can be compared
        """
        needed = {(source, 'STOP'), (source, 'completed'),
                  (destination, 'RESUME')}
        deadline_s = time.monotonic() + EVENTS_WITHIN_S
        while (destination and needed - self._times_us.keys() and
               time.monotonic() < deadline_s):
            time.sleep(0.01)
        sides = {source: 'source', destination: 'destination'}
        return to_figures(
            {(sides[host], event): each for (host, event), each
             in self._times_us.copy().items() if host in sides},
            self._blackout_ns, one_clock)


def to_figures(times_us: Mapping[tuple[str, str], int],
               blackout_ns: dict[str, int], one_clock: bool
               ) -> dict[str, ty.Any]:
    """Fields of Figures.

    :param times_us: (source or destination, monitor.event_name) -> when
        that QEMU told it first, in its host's time
    :param blackout_ns: a patched QEMU's own ``x-blackout``, which is taken
        where it is there; it has the source's time
    :param one_clock: whether the hosts' times can be compared
    """
    def between_ms(first: tuple[str, str], last: tuple[str, str]
                   ) -> float | None:
        if not {first, last} <= times_us.keys():
            return None
        return (times_us[last] - times_us[first]) / 1e3

    steps_ms = qemu_rig.steps_ms(blackout_ns)
    downtime_ms = steps_ms.get('resumed_ms')
    if downtime_ms is None and one_clock:
        downtime_ms = between_ms(('source', 'STOP'),
                                 ('destination', 'RESUME'))
    return {
        'downtime_qemu_ms': downtime_ms, 'steps_ms': steps_ms,
        'total_qemu_ms': between_ms(('source', 'setup'),
                                    ('source', 'completed')),
        **qemu_rig.parts_ms({event: each for (side, event), each
                             in times_us.items() if side == 'source'}),
        'post_copy': ('source', 'postcopy-active') in times_us}


def completed_job(domain: libvirt.virDomain, post_copy: bool = False
                  ) -> dict[str, ty.Any]:
    """libvirt's statistics of the migration that the domain came with.

    :param post_copy: it went over to that; libvirt has none of some of those
    :raises: engine.RigError if it has none
    """
    deadline_s = time.monotonic() + STATISTICS_WITHIN_S
    while True:
        job = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED |
                              libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
        if 'time_elapsed' in job:
            return job
        if time.monotonic() > deadline_s:
            if post_copy:
                return {}
            raise engine.RigError(
                f'libvirt has no statistics of the migration after '
                f'{STATISTICS_WITHIN_S} s: {job}')
        time.sleep(0.05)


@functools.cache
def listen() -> None:
    """Let libvirt deliver events; for connections that are opened later."""
    # libvirt's own way to report an error is to print it
    libvirt.registerErrorHandler(lambda context, error: None, None)
    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run, name='libvirt-events', daemon=True).start()


class LibvirtGuest:
    def __init__(self, hosts: Hosts, turn: scenario.Turn):
        self._hosts = hosts
        self._contender = contender = turn.contender
        self._plane = turn.guest.data_plane
        self._directions = lab_.Directions(turn.sides(hosts.names))
        self._rule = schedules.rule(contender.schedule,
                                    contender.downtime_limit_ms)

    def _follow(self, process: subprocess.Popen, domain: libvirt.virDomain
                ) -> list[tuple[float, int]]:
        """Let the schedule set the limit until the command ends.

        :returns: (ms after the start, limit)
        """
        samples: list[schedules.Sample] = []
        limits: list[tuple[float, int]] = []
        first_iteration = None
        started_s = time.monotonic()
        while True:
            try:
                process.wait(self._rule.interval_ms / 1000)
                return limits
            except subprocess.TimeoutExpired:
                if (time.monotonic() - started_s >
                        lab_.MIGRATION_TIMEOUT_S):
                    # post-copy cannot be aborted
                    with contextlib.suppress(libvirt.libvirtError):
                        domain.abortJob()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(ABORTED_WITHIN_S)
                    process.kill()
                    return limits
            if self._contender.schedule == 'fixed':
                continue
            try:
                job = domain.jobStats()
                if 'time_elapsed' not in job:
                    continue
                if first_iteration is None:
                    first_iteration = job.get('memory_iteration', 0)
                samples.append(to_sample(job, first_iteration))
                decision = self._rule.decide(samples)
                if decision.downtime_limit_ms is not None and (
                        not limits or
                        limits[-1][1] != decision.downtime_limit_ms):
                    domain.migrateSetMaxDowntime(decision.downtime_limit_ms)
                    limits.append((job['time_elapsed'],
                                   decision.downtime_limit_ms))
                if decision.abort:
                    domain.abortJob()
            except libvirt.libvirtError:
                continue  # the migration has just ended

    def migrate(self, key: scenario.Key,
                workload: scenario.Workload) -> scenario.Run:
        hosts = self._hosts
        source, destination = self._directions.next()
        command = migrate_command(hosts, self._contender, source, destination)
        events = Events(NAME)
        if self._plane == scenario.DataPlane.DPDK:
            hosts.plug(destination)
        with connected(hosts.uri(source)) as here, \
                connected(hosts.uri(destination)) as there, \
                events.heard(here, source), \
                events.heard(there, destination):
            domain = here.lookupByName(NAME)
            domain.migrateSetMaxDowntime(self._rule.initial_ms)
            with lab_.watched(hosts, hosts.address, workload) as (probe, cpu):
                probe.mark()
                started_s, time_text = time.time(), lab_.now()
                process = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True)
                limits = self._follow(process, domain)
                ended_s = time.time()
                probe.mark()
                output = process.communicate()[0].strip()
            if process.returncode:
                raise engine.RigError(f'{" ".join(command)}: {output}')
            heard = events.figures(source, destination, hosts.one_clock)
            job = completed_job(there.lookupByName(NAME), heard['post_copy'])
            return scenario.Run(
                key, time_text, source, scenario.Figures(
                    **lab_.packet_figures(probe.result),
                    **lab_.job_figures(job, hosts.one_clock),
                    **heard,
                    **cpu.used(source, started_s, ended_s)),
                hosts.guest_failures(probe.result),
                probe.result['blackout_stall_ms'], tuple(limits))


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """What libvirt has to complain about, as RigError."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise engine.RigError(f'libvirt: {error}') from error


@contextlib.contextmanager
def connected(uri: str) -> Iterator[libvirt.virConnect]:
    """A connection to libvirt.

    :raises: engine.RigError
    """
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise engine.RigError(f'{uri}: {error}') from error
    with contextlib.closing(connection):
        yield connection


class LibvirtRig:
    """libvirt, as ``virsh`` uses it, on two hosts."""

    def __init__(self, hosts: Hosts):
        self._hosts = hosts
        listen()

    def obstacle(self, turn: scenario.Turn) -> str | None:
        unfit = (lab_.obstacle(turn) or
                 disk_obstacle(self._hosts, turn) or
                 self._hosts.memory.obstacle(turn.guest))
        if unfit:
            return unfit
        unknown = set(turn.contender.options) - OPTIONS.keys()
        if unknown:
            return f'no virsh command for {", ".join(sorted(unknown))}'
        return self._hosts.qemu_obstacle(turn.contender)

    def clean(self) -> None:
        """Remove a guest that may be there."""
        for host in self._hosts.names:
            with connected(self._hosts.uri(host)) as connection, \
                    contextlib.suppress(libvirt.libvirtError):
                domain = connection.lookupByName(NAME)
                # those that are started here are not
                if domain.isPersistent():
                    raise engine.RigError(f'{host} has a persistent domain '
                                          f'{NAME}, which is not from here')
                domain.destroy()
            self._hosts.unplug(host)
        self._hosts.remove_disk(NAME)

    @contextlib.contextmanager
    def guest(self, turn: scenario.Turn) -> Iterator[engine.Guest]:
        hosts, plane = self._hosts, turn.guest.data_plane
        first, _ = turn.sides(hosts.names)
        self.clean()
        hosts.use_switch(plane)
        with spoken(), hosts.memory.hugepages(turn.guest) as check:
            xml = domain_xml(hosts, turn, hosts.place_disk(NAME, plane))
            try:
                if plane == scenario.DataPlane.DPDK:
                    hosts.plug(first)
                with connected(hosts.uri(first)) as connection:
                    libvirt_qemu.qemuMonitorCommand(
                        connection.createXML(xml), json.dumps({
                            'execute': 'announce-self',
                            'arguments': dict(lab_.ANNOUNCE)}), 0)
                hosts.wait_for_guest(hosts.address, plane)
                check()
                yield LibvirtGuest(hosts, turn)
            finally:
                self.clean()
