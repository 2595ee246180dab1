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

"""Two QEMUs on this machine and a guest that migrates between them.

    side = Side(binary, capabilities={'x-tcp-nodelay'})
    async with Pair(Machine(memory_mib=512), side) as pair:
        await pair.guest_ready()
        await pair.start_destination(side)
        result = await pair.migrate(libvirt=Libvirt(cont_delay_ms=9))
        print(result.blackout_ms, result.total_ms)
        await pair.end_source()      # the destination is the source now
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import time
import types

import qemu.qmp as qmp

from nova_fastmig.bench import monitor
from tests.qemu import beacons
from tests.qemu import guest as test_guest

# Where Debian keeps the firmware of a QEMU that runs from its build tree.
FIRMWARE_DIRECTORIES = os.environ.get(
    'QEMU_FIRMWARE_DIRECTORIES',
    '/usr/share/seabios:/usr/share/qemu:/usr/lib/ipxe/qemu').split(':')
ACCELERATOR = os.environ.get('QEMU_ACCEL', 'tcg')
CPU_MODEL = os.environ.get('QEMU_CPU', 'qemu64')
# As libvirt sets them, but for the downtime: 0 is unlimited.
PARAMETERS = types.MappingProxyType({'max-bandwidth': 0, 'downtime-limit': 10})
MIGRATION_ENDS = ('completed', 'failed', 'cancelled')
START_TIMEOUT_S = 30


class MigrationFailed(Exception):
    """A migration ended otherwise than with success."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the guest sees; the same on both sides."""

    memory_mib: int = 256
    cpus: int = 1
    machine: str = 'pc'
    # 'kernel': direct kernel boot; 'firmware': SeaBIOS boots from a disk
    boot: str = 'kernel'
    # the test guest's options, see guest/init.c
    guest: dict = dataclasses.field(default_factory=dict)
    # keep the kernel from what the test guest does not need ('pc' only), so
    # that it is never touched: a kernel writes to 1/64 of its memory
    hide_untouched: bool = False
    # a device that sends the guest's beacons to this process
    network: bool = True
    # as for -object, say 'memory-backend-memfd,share=on'
    memory_backend: str = 'memory-backend-ram'
    arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Side:
    """One end of a migration."""

    binary: str
    capabilities: frozenset = frozenset()
    parameters: dict = dataclasses.field(default_factory=dict)
    # for the command line: {'x-tcp-nodelay': 'on'} becomes
    # -global migration.x-tcp-nodelay=on
    migration_globals: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Libvirt:
    """What libvirt adds to a migration.

    Source and destination have a return path, the source waits for
    migrate-continue before the switchover, and the destination starts the
    guest only when it is told to, after libvirt's own work of finishing.
    """

    cont_delay_ms: float = 9


@dataclasses.dataclass
class Result:
    source: dict  # query-migrate
    destination: dict
    # QEMU's own clock, seconds since 1970; None: there was no such event
    stop_s: float | None
    resume_s: float | None
    # the guest's packets around the switchover; None without a network
    packets: beacons.Gap | None

    @property
    def total_ms(self):
        return self.source['total-time']

    @property
    def downtime_ms(self):
        """As the source QEMU computed it."""
        return self.source['downtime']

    @property
    def blackout_ms(self):
        """From the source's STOP event to the destination's RESUME."""
        return (self.resume_s - self.stop_s) * 1000


class Qemu(monitor.Monitor):
    """One QEMU process and its monitor."""

    def __init__(self, name, arguments, log):
        super().__init__(name)
        self.arguments = arguments
        self.log = log
        self.process = None

    async def start(self, *pass_fds):
        ours, theirs = socket.socketpair()
        with theirs, open(self.log, 'ab') as log:
            self.process = await asyncio.create_subprocess_exec(
                # no QEMU outlives a test that is killed
                'setpriv', '--pdeathsig', 'KILL', *self.arguments,
                '-chardev', f'socket,id=monitor,fd={theirs.fileno()}',
                '-mon', 'chardev=monitor,mode=control',
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[theirs.fileno(), *pass_fds])
        self._tasks.append(asyncio.create_task(self._watch_process()))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self.connect(ours)
        except (qmp.ConnectError, TimeoutError) as e:
            raise RuntimeError(f'{self.name}: no QMP session ({e!r}): '
                               f'{self.output()}') from e

    def output(self):
        """What QEMU wrote to its standard output and error."""
        return pathlib.Path(self.log).read_text(errors='replace')

    @property
    def running(self):
        return self.process is not None and self.process.returncode is None

    async def _watch_process(self):
        await self.process.wait()
        await self.wake()

    def check_running(self, what):
        if not self.running:
            raise MigrationFailed(
                f'{self.name}: QEMU ended with {self.process.returncode} '
                f'before {what}: {self.output()}')

    async def configure(self, side, capabilities, parameters):
        await self.configure_migration(
            {*capabilities, *side.capabilities,
             *(name for name, value in side.migration_globals.items()
               if value == 'on')},
            {**PARAMETERS, **parameters, **side.parameters})

    async def stop(self):
        """End the process, whatever state it is in."""
        if self.running:
            self.process.kill()
        if self.process is not None:
            await self.process.wait()
        await self.disconnect()


class Pair:
    """A guest on a source QEMU and, in turn, destinations for it.

    :param tls: encrypt the migrations, as with libvirt's VIR_MIGRATE_TLS
    """

    def __init__(self, machine, source, directory=None, tls=False):
        self.machine = machine
        self.tls = tls
        self.source_side = source
        self.destination_side = None
        self.source = self.destination = None
        # what the source connects to instead of the destination
        self.relay = None
        self._parent_directory = directory
        self._started = []

    async def __aenter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(
            prefix='qemu-pair-', dir=self._parent_directory))
        self.serial_path = self.directory / 'serial'
        self.beacons = beacons.Receiver() if self.machine.network else None
        if self.tls:
            self.directory.joinpath('keys.psk').write_text(
                f'qemu:{secrets.token_hex(32)}\n')
        try:
            files = await asyncio.to_thread(test_guest.files)
            self._boot = await asyncio.to_thread(self._boot_arguments, files)
            self.source = await self._start('source', self.source_side)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info):
        for process in self._started:
            await process.stop()
        if self.beacons:
            self.beacons.close()
        shutil.rmtree(self.directory)

    def _boot_arguments(self, files):
        options = test_guest.command_line(self.machine.memory_mib,
                                          self.machine.guest, ACCELERATOR,
                                          self.machine.hide_untouched)
        if self.machine.boot == 'kernel':
            return ['-kernel', str(files.kernel), '-initrd',
                    str(files.initramfs), '-append', options]
        if self.machine.boot != 'firmware':
            raise ValueError(f"boot '{self.machine.boot}': must be 'kernel' "
                             "or 'firmware'")
        disk = self.directory / 'disk.img'
        test_guest.make_disk(files, disk, options)
        return ['-drive', f'file={disk},format=raw,if=virtio']

    def _arguments(self, side, name, network):
        m = self.machine
        arguments = [
            side.binary, '-nodefaults', '-no-user-config', '-display', 'none',
            '-name', f'guest={name},debug-threads=on',
            '-machine', f'{m.machine},memory-backend=ram',
            '-accel', ACCELERATOR, '-cpu', CPU_MODEL,
            '-m', f'{m.memory_mib}M', '-smp', str(m.cpus),
            '-object', f'{m.memory_backend},id=ram,size={m.memory_mib}M',
            '-chardev', f'file,id=serial,path={self.serial_path},append=on',
            '-serial', 'chardev:serial', '-device', 'virtio-balloon-pci',
            '-only-migratable']
        for directory in FIRMWARE_DIRECTORIES:
            if os.path.isdir(directory):
                arguments += ['-L', directory]
        if network:
            arguments += [
                '-netdev', 'dgram,id=net,local.type=fd,'
                f'local.str={network.fileno()}',
                '-device', 'virtio-net-pci,netdev=net,romfile=']
        if self.tls:
            # a destination is the next source
            for endpoint in 'client', 'server':
                arguments += [
                    '-object', f'tls-creds-psk,id={endpoint},'
                    f'endpoint={endpoint},dir={self.directory}']
        for key, value in side.migration_globals.items():
            arguments += ['-global', f'migration.{key}={value}']
        return arguments + self._boot + list(m.arguments)

    async def _start(self, name, side, *arguments):
        name = f'{name}-{len(self._started)}'
        with (self.beacons.sender() if self.beacons
              else contextlib.nullcontext()) as network:
            process = Qemu(
                name, [*self._arguments(side, name, network), *arguments],
                self.directory / f'{name}.log')
            self._started.append(process)
            await process.start(*[network.fileno()] if network else [])
        return process

    # ------------------------------------------------------------ the guest

    def serial(self):
        """The guest's console, from its boot through all migrations."""
        try:
            return self.serial_path.read_text(errors='replace')
        except FileNotFoundError:
            return ''

    async def wait_serial(self, pattern, since=0, timeout_s=120):
        """Wait for a match in the console after so many characters."""
        deadline = time.monotonic() + timeout_s
        while True:
            output = self.serial()
            test_guest.check_faults(output)
            match = re.compile(pattern, re.MULTILINE).search(output, since)
            if match:
                return match
            if time.monotonic() > deadline:
                raise TimeoutError(f"no match of '{pattern}' within "
                                   f'{timeout_s} s on the guest\'s console: '
                                   f'...{output[since:][-2000:]}')
            await asyncio.sleep(0.05)

    async def guest_ready(self, timeout_s=120):
        """Wait until the guest verifies its memory; return its status."""
        match = await self.wait_serial(test_guest.STATUS, 0, timeout_s)
        if self.beacons:
            async with asyncio.timeout(timeout_s):
                await self.beacons.running()
        return test_guest.Status.from_match(match)

    def guest_status(self):
        """The guest's last status; raises if it found a fault."""
        return test_guest.last_status(self.serial())

    async def guest_verified_all(self, timeout_s=120):
        """Wait until the guest has verified all of its memory once more."""
        passes = self.guest_status().passes
        deadline = time.monotonic() + timeout_s
        # two, because the present one began before the call
        while self.guest_status().passes < passes + 2:
            if time.monotonic() > deadline:
                raise TimeoutError(f'the guest verified its memory less than '
                                   f'twice within {timeout_s} s: '
                                   f'...{self.serial()[-2000:]}')
            await asyncio.sleep(0.05)
        return self.guest_status()

    # ------------------------------------------------------- the migration

    async def start_destination(self, side, paused=True):
        """Start a QEMU that can take the guest.

        With paused, as libvirt starts it, the guest stays stopped there
        until 'cont'.
        """
        self.destination_side = side
        self.destination = await self._start(
            'destination', side, '-incoming', 'defer',
            *(['-S'] if paused else []))

    async def _connect(self, transport):
        """Open the migration's channel; return the source's URI."""
        if transport == 'unix':
            uri = f'unix:{self.directory}/{self.destination.name}.migration'
            await self.destination.command('migrate-incoming', uri=uri)
            return uri
        if transport not in ('tcp', 'fd'):
            raise ValueError(f"transport '{transport}': must be 'tcp', "
                             "'unix' or 'fd'")
        await self.destination.command('migrate-incoming',
                                       uri='tcp:127.0.0.1:0')
        info = await self.destination.command('query-migrate')
        port = info['socket-address'][0]['port']
        if transport == 'tcp':
            if self.relay:
                port = await self.relay.start(int(port))
            return f'tcp:127.0.0.1:{port}'
        # libvirt opens the connection itself and hands it over
        with socket.create_connection(('127.0.0.1', int(port))) as connection:
            self.source.qmp.send_fd_scm(connection.fileno())
            await self.source.command('getfd', fdname='migration')
        return 'fd:migration'

    async def prepare(self, transport='tcp', multifd_channels=0, libvirt=None):
        """Set both sides up; return the URI for the 'migrate' command."""
        capabilities, source_only, parameters = set(), set(), {}
        if multifd_channels:
            capabilities.add('multifd')
            parameters['multifd-channels'] = multifd_channels
        if libvirt:
            capabilities.add('return-path')
            source_only.add('pause-before-switchover')
        await self.source.configure(
            self.source_side, capabilities | source_only,
            {**parameters, **self._tls('client')})
        await self.destination.configure(
            self.destination_side, capabilities,
            {**parameters, **self._tls('server')})
        return await self._connect(transport)

    def _tls(self, endpoint):
        return {'tls-creds': endpoint} if self.tls else {}

    async def migrate(self, transport='tcp', multifd_channels=0, libvirt=None,
                      timeout_s=120):
        """Migrate the guest and wait until it runs at the destination.

        The 'events' capability is always on. Without 'libvirt' the
        destination must have been started with paused=False.
        """
        uri = await self.prepare(transport, multifd_channels, libvirt)
        first_event = len(self.source.events)
        seen = len(self.source.migration_statuses)
        if self.beacons:
            self.beacons.clear()
        await self.source.command('migrate', uri=uri)
        try:
            async with asyncio.timeout(timeout_s):
                await self._drive(seen, libvirt)
        except TimeoutError:
            raise MigrationFailed(
                f'not completed within {timeout_s} s: '
                f'{await self._both_states()}') from None
        packets = None
        if self.beacons:
            packets = await self.beacons.switchover(timeout_s=10)
        return Result(await self.source.command('query-migrate'),
                      await self.destination.command('query-migrate'),
                      self.source.event_s('STOP', first_event),
                      self.destination.event_s('RESUME'), packets)

    async def _drive(self, seen, libvirt):
        source, destination = self.source, self.destination
        status = None
        while status not in MIGRATION_ENDS:
            status = await source.migration_status(seen)
            seen += 1
            if status == 'pre-switchover' and libvirt:
                await source.command('migrate-continue',
                                     state='pre-switchover')
        if status != 'completed':
            raise MigrationFailed(f'{status}: {await self._both_states()}')
        await destination.until(
            lambda: destination.migration_statuses
            and destination.migration_statuses[-1] in MIGRATION_ENDS,
            'the end of the migration')
        if destination.migration_statuses[-1] != 'completed':
            raise MigrationFailed(f'destination: {await self._both_states()}')
        if libvirt:
            await asyncio.sleep(libvirt.cont_delay_ms / 1000)
            await destination.command('cont')
        await destination.wait_event('RESUME')

    async def _both_states(self):
        states = []
        for process in (self.source, self.destination):
            if not process.running:
                states.append(f'{process.name}: ended with '
                              f'{process.process.returncode}: '
                              f'{process.output()}')
                continue
            info = await process.command('query-migrate')
            states.append(f"{process.name}: {info.get('status')} "
                          f"{info.get('error-desc', '')}".strip())
        return '; '.join(states)

    async def end_source(self):
        """End the old source: the destination is the next one's source."""
        await self.source.stop()
        self.source, self.source_side = self.destination, self.destination_side
        self.destination = self.destination_side = None
