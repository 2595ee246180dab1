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

"""QEMUs on the lab's hosts that are driven over QMP, without libvirt."""

import asyncio
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import time
import typing as ty

import qemu.qmp as qmp

from nova_fastmig.bench import engine
from nova_fastmig.bench import lab as lab_
from nova_fastmig.bench import monitor
from nova_fastmig.bench import scenario
from nova_fastmig.bench import schedules
from nova_fastmig import model

NAME = 'bench-qemu'
TAP = 'bench-qemu'
ADDRESS = lab_.Address('52:54:00:be:00:02', '10.88.0.212')
QMP_PORT, MIGRATION_PORT = 4455, 4456
QMP_TIMEOUT_S = 20
# a migration may last half a second
THROTTLE_INTERVAL_S = 0.05
ENDS = ('completed', 'failed', 'cancelled')
# no limit: QEMU's own default is 1 Gbit/s
PARAMETERS = {'max-bandwidth': 0}

# (capabilities of both sides, of the source alone, parameters of both)
OPTIONS: dict[scenario.Option, tuple[set, set, dict]] = {
    scenario.Option.AUTO_CONVERGE: (set(), {'auto-converge'}, {}),
    scenario.Option.PARALLEL: ({'multifd'}, set(), {'multifd-channels': 2}),
    scenario.Option.XBZRLE: ({'xbzrle'}, set(), {}),
    # a transport of its own: see QemuRig.uri
    scenario.Option.RDMA: (set(), set(), {}),
    scenario.Option.MULTIFD_ZLIB: ({'multifd'}, set(), {
        'multifd-channels': 2, 'multifd-compression': 'zlib'}),
    scenario.Option.MULTIFD_ZSTD: ({'multifd'}, set(), {
        'multifd-channels': 2, 'multifd-compression': 'zstd'}),
    scenario.Option.WITHOUT_A: ({'x-measure-eager-cleanup'}, set(), {}),
    scenario.Option.WITHOUT_B: ({'x-measure-sse2-zero-page'}, set(), {}),
    scenario.Option.WITHOUT_C: ({'x-measure-cpu-state-sync'}, set(), {}),
}
# where the kernel shows them
RDMA_DEVICES = pathlib.Path('/sys/class/infiniband')


def has_rdma_device() -> bool:
    return RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir())


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the two QEMUs are set to for a contender."""

    both: frozenset[str]
    source: frozenset[str]
    parameters: dict[str, ty.Any]


def features(contender: scenario.Contender) -> set[str]:
    """The capabilities of the patched QEMU that a contender uses."""
    if contender.features == ('all',):
        return set(map(str, model.QemuFeature))
    return set(contender.features)


def settings(contender: scenario.Contender) -> Settings:
    both, source = {'return-path'}, set()
    parameters = dict(PARAMETERS)
    for option in contender.options:
        both |= OPTIONS[option][0]
        source |= OPTIONS[option][1]
        parameters |= OPTIONS[option][2]
    both |= features(contender)
    return Settings(frozenset(both), frozenset(source), parameters)


def _memory(guest: scenario.Guest) -> str:
    """What ``-object`` is given; hugepages are there at once, as libvirt's.

    vhost-user works on the guest's memory, and libvirt shares hugepages, too.
    """
    return (f'memory-backend-memfd,id=memory,size={guest.memory_mib}M,'
            f'share=on') + (
        f',hugetlb=on,hugetlbsize={guest.page_kib}K,prealloc=on'
        if guest.hugepages else '')


def _ports(plane: scenario.DataPlane) -> Iterator[str]:
    if plane == scenario.DataPlane.KERNEL:
        yield from (
            '-netdev', f'tap,id=net,ifname={TAP},script=no,downscript=no',
            '-device', f'virtio-net-pci,netdev=net,mac={ADDRESS.mac_address}')
        return
    for port in lab_.VHOST_USER_PORTS:
        yield from (
            '-chardev', f'socket,id={port.name},path={port.socket},server=on,'
                        'wait=off',
            '-netdev', f'vhost-user,id=net-{port.name},chardev={port.name}',
            '-device', f'virtio-net-pci,netdev=net-{port.name},'
                       f'mac={port.mac_address},romfile=')


def _cpu(plane: scenario.DataPlane, accelerator: str) -> str:
    if accelerator == 'kvm':
        return 'host'
    return 'qemu64' if plane == scenario.DataPlane.KERNEL else lab_.DPDK_CPU


def command_line(guest: scenario.Guest, emulator: str, accelerator: str,
                 host: str, disk: str) -> list[str]:
    """A QEMU with this guest; what it has is what libvirt's has, too."""
    machine, memory, plane = 'pc,usb=off', [], guest.data_plane
    if guest.hugepages or plane == scenario.DataPlane.DPDK:
        machine += ',memory-backend=memory'
        memory = ['-object', _memory(guest)]
    return [
        emulator, '-name', f'guest={NAME},debug-threads=on', '-nodefaults',
        '-no-user-config', '-display', 'none', '-machine', machine, *memory,
        '-accel', accelerator,
        '-cpu', _cpu(plane, accelerator),
        '-m', f'{guest.memory_mib}M', '-smp', str(guest.vcpus),
        '-drive', f'file={disk},format=raw,if=virtio,cache=none',
        *_ports(plane), '-serial', 'null', '-device', 'virtio-balloon-pci',
        '-only-migratable',
        '-qmp', f'tcp:{lab_.MANAGEMENT_IP[host]}:{QMP_PORT},server=on,'
                'wait=off']


# of x-blackout, and as the driver's own report calls them
STEPS = {'stopped': 'stopped_ms', 'pages-sent': 'pages_sent_ms',
         'devices-sent': 'devices_sent_ms', 'pages-loaded': 'pages_loaded_ms',
         'devices-loaded': 'devices_loaded_ms', 'resume': 'resumed_ms'}


def steps_ms(times: dict[str, int]) -> dict[str, float]:
    """Steps after the stop.

    :param times: ``x-blackout`` of query-migrate, nanoseconds; empty where
        there is none
    """
    return {name: round((times[step] - times['stop']) / 1e6, 3)
            for step, name in STEPS.items() if step in times}


def parts_ms(times_us: Mapping[str, int]) -> dict[str, float]:
    """What QEMU's total consists of, as fields of Figures.

    :param times_us: monitor.event_name -> when the source's QEMU told it
        first; with one that is missing there are no parts
    """
    try:
        setup, began, stopped, completed = (
            times_us[name] for name in ('setup', 'pass-1', 'STOP',
                                        'completed'))
        # the last pass begins when the guest has been stopped
        first_ended = min(times_us['pass-2'], stopped)
    except KeyError:
        return {}
    return {'setup_ms': (began - setup) / 1e3,
            'first_pass_ms': (first_ended - began) / 1e3,
            'further_passes_ms': (stopped - first_ended) / 1e3,
            'completion_ms': (completed - stopped) / 1e3}


class QemuGuest:
    """A guest on one of two QEMUs.

    :param rig: starts and ends QEMUs
    :param run: runs a coroutine to its end
    """

    def __init__(self, rig: 'QemuRig', turn: scenario.Turn, run):
        self._rig, self._turn, self._run = rig, turn, run
        sides = turn.sides(lab_.COMPUTES)
        self._directions = lab_.Directions(sides)
        self._rule = schedules.rule(turn.contender.schedule,
                                    turn.contender.downtime_limit_ms)
        self._here = run(rig.start(sides[0], turn))
        run(self._here.command('announce-self', **lab_.ANNOUNCE))
        self._there: monitor.Monitor | None = None
        # of the present migration
        self._limits: list[tuple[float, int]] = []
        self._throttle_percent = 0

    async def _prepare(self, uri: str) -> None:
        wanted = settings(self._turn.contender)
        limit = {'downtime-limit': self._rule.initial_ms}
        await self._here.configure_migration(
            wanted.both | wanted.source, wanted.parameters | limit)
        await self._there.configure_migration(
            wanted.both, wanted.parameters)
        await self._there.command('migrate-incoming', uri=uri)

    async def _end(self, seen: int) -> None:
        status = None
        while status not in ENDS:
            status = await self._here.migration_status(seen)
            seen += 1
        if status != 'completed':
            info = await self._here.command('query-migrate')
            raise engine.RigError(f'the migration {status}: '
                                  f'{info.get("error-desc", "no reason")}')
        await self._there.wait_event('RESUME')

    async def _migrate(self, uri: str):
        first = len(self._here.events)
        seen = len(self._here.migration_statuses)
        await self._here.command('migrate', uri=uri)
        following = [asyncio.create_task(each) for each in (
            self._follow(), self._watch_throttle())]
        try:
            async with asyncio.timeout(lab_.MIGRATION_TIMEOUT_S):
                await self._end(seen)
        except TimeoutError:
            raise engine.RigError(
                f'no end after {lab_.MIGRATION_TIMEOUT_S} s') from None
        finally:
            for each in following:
                each.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        info = await self._here.command('query-migrate')
        told = self._here.times_us(first)
        resume_us = self._there.times_us()['RESUME']
        return info, resume_us - told['STOP'], parts_ms(told)

    async def _follow(self) -> None:
        """Let the schedule set the limit, until it is cancelled."""
        self._limits = []
        samples: list[schedules.Sample] = []
        while True:
            await asyncio.sleep(self._rule.interval_ms / 1000)
            info = await self._here.command('query-migrate')
            ram = info.get('ram')
            if info.get('status') != 'active' or not ram:
                continue
            samples.append(schedules.Sample(
                info['total-time'], ram['dirty-sync-count'],
                ram['remaining'], ram['transferred'], ram['total']))
            decision = self._rule.decide(samples)
            if decision.downtime_limit_ms is not None:
                await self._here.command(
                    'migrate-set-parameters',
                    downtime_limit=decision.downtime_limit_ms)
                self._limits.append((info['total-time'],
                                     decision.downtime_limit_ms))
            if decision.abort:
                await self._here.command('migrate_cancel')

    async def _watch_throttle(self) -> None:
        """Remember what auto-converge takes from the vCPUs."""
        self._throttle_percent = 0
        while scenario.Option.AUTO_CONVERGE in self._turn.contender.options:
            await asyncio.sleep(THROTTLE_INTERVAL_S)
            info = await self._here.command('query-migrate')
            self._throttle_percent = max(
                self._throttle_percent,
                info.get('cpu-throttle-percentage', 0))

    def migrate(self, key: scenario.Key,
                workload: scenario.Workload) -> scenario.Run:
        source, destination = self._directions.next()
        rig = self._rig
        uri = rig.uri(destination, self._turn.contender)
        with monitored():
            self._there = self._run(rig.start(
                destination, self._turn, '-incoming', 'defer'))
            self._run(self._prepare(uri))
            with lab_.watched(rig.lab, ADDRESS, workload) as (probe, cpu):
                probe.mark()
                started_s, time_text = time.time(), lab_.now()
                info, downtime_us, parts = self._run(self._migrate(uri))
                ended_s = time.time()
                probe.mark()
            self._run(rig.end(source, self._here))
        self._here, self._there = self._there, None
        steps = steps_ms(info.get('x-blackout', {}))
        return scenario.Run(
            key, time_text, source, scenario.Figures(
                **lab_.packet_figures(probe.result),
                # the event STOP comes when vhost-user backends have stopped
                downtime_qemu_ms=steps.get(
                    'resumed_ms', downtime_us / 1e3),
                total_qemu_ms=info['total-time'],
                steps_ms=steps,
                **parts,
                bytes_sent=info['ram']['transferred'],
                iterations=info['ram']['dirty-sync-count'],
                throttle_percent=self._throttle_percent,
                **cpu.used(source, started_s, ended_s)),
            rig.lab.guest_failures(probe.result),
            probe.result['blackout_stall_ms'], tuple(self._limits))

    def close(self) -> None:
        for each in (self._here, self._there):
            if each is not None:
                self._run(each.disconnect())


@contextlib.contextmanager
def monitored() -> Iterator[None]:
    """What a monitor has to complain about, as RigError."""
    try:
        yield
    except (qmp.QMPError, monitor.Ended, ValueError, OSError) as error:
        raise engine.RigError(f'{type(error).__name__}: {error}') from error


def option_obstacle(lab: lab_.Lab, contender: scenario.Contender
                    ) -> str | None:
    """What a contender asks of QEMU that is not here."""
    if scenario.Option.RDMA in contender.options and not has_rdma_device():
        return f'no RDMA device ({RDMA_DEVICES})'
    unknown = set(contender.options) - OPTIONS.keys()
    if unknown:
        return f'no capability for {", ".join(sorted(unknown))}'
    return lab.qemu_obstacle(contender)


async def until_it_listens(address: tuple[str, int], what: str) -> None:
    """Wait for a QEMU's monitor: qemu.qmp logs an error where there is none.

    :param address: (host, port)
    :raises: engine.RigError
    """
    deadline_s = time.monotonic() + QMP_TIMEOUT_S
    while True:
        try:
            _, writer = await asyncio.open_connection(*address)
            writer.close()
            await writer.wait_closed()
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise engine.RigError(f'{what} has no monitor: {error}'
                                      ) from error
            await asyncio.sleep(0.1)


class QemuRig:
    """QEMU over QMP, on the lab's hosts."""

    def __init__(self, lab: lab_.Lab):
        self.lab = lab
        self._disk: str | None = None

    def obstacle(self, turn: scenario.Turn) -> str | None:
        return (lab_.obstacle(turn) or
                self.lab.memory.obstacle(turn.guest) or
                option_obstacle(self.lab, turn.contender))

    def uri(self, host: str, contender: scenario.Contender) -> str:
        """That the guest's memory is sent to."""
        transport = ('rdma' if scenario.Option.RDMA in contender.options
                     else 'tcp')
        return f'{transport}:{lab_.MANAGEMENT_IP[host]}:{MIGRATION_PORT}'

    async def start(self, host: str, turn: scenario.Turn, *arguments: str
                    ) -> monitor.Monitor:
        """Start a QEMU in a host; its monitor.

        :raises: engine.RigError
        """
        # in a thread, as the event loop has to run for Ctrl-C to end this
        await asyncio.to_thread(self._start, host, turn, arguments)
        address = lab_.MANAGEMENT_IP[host], QMP_PORT
        made = monitor.Monitor(f'{turn.contender.qemu} QEMU on {host}')
        await until_it_listens(address, made.name)
        await made.connect(address)
        return made

    def _start(self, host: str, turn: scenario.Turn,
               arguments: tuple[str, ...]) -> None:
        self._plug(host, turn.guest.data_plane)
        line = command_line(
            turn.guest, lab_.EMULATOR[turn.contender.qemu],
            self.lab.accelerator, host, self._disk)
        self.lab.on(host, 'systemd-run', '--quiet', '--collect',
                    f'--unit={NAME}', *line, *arguments)

    async def end(self, host: str, ended: monitor.Monitor) -> None:
        """End the QEMU that the guest has left."""
        await ended.disconnect()
        await asyncio.to_thread(self._stop, host)

    def _stop(self, host: str) -> None:
        self.lab.on(host, 'sh', '-c', f'systemctl stop {NAME} 2>/dev/null; '
                    f'systemctl reset-failed {NAME} 2>/dev/null; '
                    f'ovs-vsctl --if-exists del-port br-data {TAP}; '
                    f'ip link delete {TAP} 2>/dev/null; true')
        self.lab.unplug(host)

    def clean(self) -> None:
        """End a guest that may be there."""
        for host in lab_.COMPUTES:
            self._stop(host)

    def _plug(self, host: str, plane: scenario.DataPlane) -> None:
        """A new port for each QEMU, as libvirt makes it.

        With one that the guest had a few seconds ago, Open vSwitch still has
        the flow that sends its announcement on, and learns where the guest is
        only when it looks at its flows the next time, up to 500 ms later.
        """
        if plane == scenario.DataPlane.DPDK:
            self.lab.plug(host)
            return
        self.lab.on(host, 'sh', '-euc',
                    f'ip tuntap add {TAP} mode tap vnet_hdr; '
                    f'ip link set {TAP} up; ovs-vsctl add-port br-data {TAP}')

    @contextlib.contextmanager
    def guest(self, turn: scenario.Turn) -> Iterator[engine.Guest]:
        plane = turn.guest.data_plane
        self.clean()
        self.lab.use_switch(plane)
        with self.lab.memory.hugepages(turn.guest) as check, \
                asyncio.Runner() as runner:
            guest = None
            try:
                self._disk = self.lab.place_disk(NAME, plane)
                with monitored():
                    guest = QemuGuest(self, turn, runner.run)
                self.lab.wait_for_guest(ADDRESS, plane)
                check()
                yield guest
            finally:
                if guest is not None:
                    guest.close()
                self.clean()
                self.lab.remove_disk(NAME)
