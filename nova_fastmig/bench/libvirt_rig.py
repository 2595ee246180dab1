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

"""``virsh migrate`` between the lab's hosts, without Nova.

Other systems' schedules set the downtime limit meanwhile, as those systems do
it through libvirt.
"""

from collections.abc import Iterable
from collections.abc import Iterator
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
from nova_fastmig.bench import qemu_rig
from nova_fastmig.bench import scenario
from nova_fastmig.bench import schedules

NAME = 'bench-libvirt'
ADDRESS = lab_.Address('52:54:00:be:00:01', '10.88.0.211')
# No --persistent: defining the domain costs time in which the guest stands
# still. Bandwidth is unlimited by default.
FLAGS = ('--live', '--p2p')
OPTIONS = {
    # over to post-copy after the first pass, which is the best that it can do
    scenario.Option.POST_COPY: ('--postcopy', '--postcopy-after-precopy'),
    scenario.Option.AUTO_CONVERGE: ('--auto-converge',),
    scenario.Option.PARALLEL: ('--parallel', '--parallel-connections', '2'),
}

# QEMU's last event can be heard after virsh has ended
EVENTS_WITHIN_S = 2

DOMAIN = """\
<domain type='{type}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>{memory_backing}
  <vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><apic/></features>
  <clock offset='utc'>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='hpet' present='no'/>
  </clock>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br-data'/>
      <virtualport type='openvswitch'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'/>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>{arguments}</qemu:commandline>
</domain>
"""


def arguments(capabilities: Iterable[str]) -> str:
    """What QEMU is given beside what libvirt gives it, at both hosts."""
    return ''.join(
        f"<qemu:arg value='-global'/>"
        f"<qemu:arg value='migration.{capability}=on'/>"
        for capability in sorted(capabilities))


def memory_backing(guest: scenario.Guest) -> str:
    """Of a domain; what Nova has for such a guest."""
    if not guest.hugepages:
        return ''
    return (f"<memoryBacking><hugepages><page size='{guest.page_kib}' "
            f"unit='KiB'/></hugepages><access mode='shared'/>"
            f"</memoryBacking>")


def migrate_command(contender: scenario.Contender, destination: str
                    ) -> list[str]:
    """The virsh command of a contender."""
    ip = lab_.MANAGEMENT_IP[destination]
    return ['virsh', 'migrate', *FLAGS,
            *(flag for option in contender.options
              for flag in OPTIONS[option]),
            NAME, f'qemu+tcp://{ip}/system', '--migrateuri', f'tcp://{ip}']


def to_sample(job: dict[str, ty.Any], first_iteration: int
              ) -> schedules.Sample:
    return schedules.Sample(
        job['time_elapsed'],
        job.get('memory_iteration', 0) - first_iteration + 1,
        job.get('data_remaining', 0), job.get('data_processed', 0),
        job.get('data_total', 0))


class Events:
    """What both QEMUs say of a migration, with their own time stamps."""

    NAMES = ('STOP', 'RESUME', 'MIGRATION')

    def __init__(self) -> None:
        self._times_us: dict[tuple[str, str], int] = {}
        self._blackout_ns: dict[str, int] = {}

    @contextlib.contextmanager
    def heard(self, connection: libvirt.virConnect, side: str
              ) -> Iterator[None]:
        """Listen to the QEMU at one side of the connection."""
        ids = [libvirt_qemu.qemuMonitorEventRegister(
            connection, None, name, self._on_event, side)
            for name in self.NAMES]
        try:
            yield
        finally:
            for each in ids:
                libvirt_qemu.qemuMonitorEventDeregister(connection, each)

    def _on_event(self, connection, domain, event, seconds, microseconds,
                  details, side):
        if domain.name() != NAME:
            return
        says = json.loads(details or '{}')
        if event == 'MIGRATION':
            if side == 'source' and says.get('status') == 'completed':
                self._blackout_ns = says.get('x-blackout', {})
                self._times_us[side, 'completed'] = 0
            return
        self._times_us.setdefault((side, event),
                                  seconds * 1_000_000 + microseconds)

    def figures(self) -> dict[str, ty.Any]:
        """Fields of Figures; waits for what has not come yet."""
        needed = {('source', 'STOP'), ('source', 'completed'),
                  ('destination', 'RESUME')}
        deadline_s = time.monotonic() + EVENTS_WITHIN_S
        while (needed - self._times_us.keys() and
               time.monotonic() < deadline_s):
            time.sleep(0.01)
        return to_figures(self._times_us.get(('source', 'STOP')),
                          self._times_us.get(('destination', 'RESUME')),
                          self._blackout_ns)


def to_figures(stop_us: int | None, resume_us: int | None,
               blackout_ns: dict[str, int]) -> dict[str, ty.Any]:
    """Fields of Figures.

    :param stop_us: when the source said that it had stopped the guest
    :param resume_us: when the destination said that it runs it; both hosts
        are on one machine, so their clocks are one
    :param blackout_ns: a patched QEMU's own ``x-blackout``, which is taken
        where it is there
    """
    steps_ms = qemu_rig.steps_ms(blackout_ns)
    downtime_ms = steps_ms.get('resumed_ms')
    if downtime_ms is None and None not in (stop_us, resume_us):
        downtime_ms = (resume_us - stop_us) / 1e3
    return {'downtime_qemu_ms': downtime_ms, 'steps_ms': steps_ms}


@functools.cache
def listen() -> None:
    """Let libvirt deliver events; for connections that are opened later."""
    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run, name='libvirt-events', daemon=True).start()


class LibvirtGuest:
    def __init__(self, lab: lab_.Lab, contender: scenario.Contender):
        self._lab, self._contender = lab, contender
        self._directions = lab_.Directions()
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
                    with contextlib.suppress(libvirt.libvirtError):
                        domain.abortJob()
                    process.wait()
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
        source, destination = self._directions.next()
        command = migrate_command(self._contender, destination)
        events = Events()
        with connected(source) as here, connected(destination) as there, \
                events.heard(here, 'source'), \
                events.heard(there, 'destination'):
            domain = here.lookupByName(NAME)
            domain.migrateSetMaxDowntime(self._rule.initial_ms)
            with lab_.watched(self._lab, ADDRESS, workload) as (probe, cpu):
                started_s, time_text = time.time(), lab_.now()
                process = subprocess.Popen(  # noqa: S603
                    [self._lab.commands / 'in', source, *command],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True)
                limits = self._follow(process, domain)
                ended_s = time.time()
                output = process.communicate()[0].strip()
            if process.returncode:
                raise engine.RigError(f'{" ".join(command)}: {output}')
            job = there.lookupByName(NAME).jobStats(
                libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED |
                libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
            return scenario.Run(
                key, time_text, source, scenario.Figures(
                    **lab_.packet_figures(probe.result),
                    **lab_.job_figures(job),
                    **events.figures(),
                    **cpu.used(source, started_s, ended_s)),
                self._lab.guest_failures(probe.result),
                probe.result['blackout_stall_ms'], tuple(limits))


@contextlib.contextmanager
def connected(host: str) -> Iterator[libvirt.virConnect]:
    with contextlib.closing(libvirt.open(
            f'qemu+tcp://{lab_.MANAGEMENT_IP[host]}/system')) as connection:
        yield connection


class LibvirtRig:
    """libvirt, as ``virsh`` uses it, on the lab's hosts."""

    def __init__(self, lab: lab_.Lab):
        self._lab = lab
        # libvirt's own way to report an error is to print it
        libvirt.registerErrorHandler(lambda context, error: None, None)
        listen()

    def obstacle(self, turn: scenario.Turn) -> str | None:
        unfit = (lab_.image_obstacle(turn.guest) or
                 self._lab.memory.obstacle(turn.guest))
        if unfit:
            return unfit
        unknown = set(turn.contender.options) - OPTIONS.keys()
        if unknown:
            return f'no virsh command for {", ".join(sorted(unknown))}'
        return self._lab.qemu_obstacle(turn.contender)

    def _destroy(self) -> None:
        for host in lab_.COMPUTES:
            with connected(host) as connection, \
                    contextlib.suppress(libvirt.libvirtError):
                connection.lookupByName(NAME).destroy()
        self._lab.remove_disk(NAME)

    @contextlib.contextmanager
    def guest(self, turn: scenario.Turn) -> Iterator[engine.Guest]:
        self._destroy()
        xml = DOMAIN.format(
            type={'tcg': 'qemu', 'kvm': 'kvm'}[self._lab.accelerator],
            name=NAME, memory_mib=turn.guest.memory_mib,
            memory_backing=memory_backing(turn.guest),
            vcpus=turn.guest.vcpus, mac=ADDRESS.mac_address,
            emulator=lab_.EMULATOR[turn.contender.qemu],
            arguments=arguments(qemu_rig.features(turn.contender)),
            disk=self._lab.place_disk(NAME))
        with self._lab.memory.hugepages(turn.guest) as check:
            try:
                with connected(lab_.COMPUTES[0]) as connection:
                    libvirt_qemu.qemuMonitorCommand(
                        connection.createXML(xml), json.dumps({
                            'execute': 'announce-self',
                            'arguments': dict(lab_.ANNOUNCE)}), 0)
                self._lab.wait_for_guest(ADDRESS)
                check()
                yield LibvirtGuest(self._lab, turn.contender)
            except libvirt.libvirtError as error:
                raise engine.RigError(f'libvirt: {error}') from error
            finally:
                self._destroy()
