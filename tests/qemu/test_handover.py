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

"""Kill and cut two real QEMUs at each step of the early-resume hand-over.

A proxy between the two follows the conversation and breaks it after any byte
of any message.  The guest counts on its serial port, into another file on
each side.  A guest that never ran twice and lost nothing has written each
number once, in order: first those of the source, then those of the
destination.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import socket
import struct
import tempfile
import unittest

import qemu.qmp as qmp

from tests.qemu import pair
from tests.qemu import variants

TIMEOUT_S = 60
# How long to watch a guest that must not run, in which it counts to ~100.
WATCH_S = 0.3
# MIG_HANDOVER_TIMEOUT_MS in QEMU's migration.c
ANSWER_TIMEOUT_S = 30

# A boot sector that counts in hexadecimal on the serial port:
#
#   start: cli                      digit: rol  $4, %ebx
#          xor  %ax, %ax                   mov  %bl, %al
#          mov  %ax, %ds                   and  $0x0f, %al
#          mov  $0x3f8, %dx                cmp  $10, %al
#   next:  incl 0x600                      sbb  $0x69, %al
#          mov  0x600, %ebx                das
#          mov  $8, %cx                    out  %al, %dx
#                                          loop digit
#   wait:  dec  %ecx                       mov  $'\n', %al
#          jnz  wait                       out  %al, %dx
#          jmp  next                       mov  $0x8000, %ecx
BOOT_SECTOR = bytes.fromhex(
    'fa 31c0 8ed8 baf803 66ff060006 668b1e0006 b90800 66c1c304 88d8 240f '
    '3c0a 1c69 2f ee e2f0 b00a ee 66b900800000 6649 75fc ebd4')
IMAGE_BYTES = 1 << 20

# The return path's messages: mig_rp_message_type, mig_rp_handover
RP_SHUT, RP_PONG = 1, 2
HANDOVER_WORDS = {1: 'ready', 2: 'taken', 3: 'refused'}
RP_MESSAGE_BYTES = 8
COMMAND_BYTES = 5

# Where raw images are locked (block/file-posix.c): a lock on this byte
# keeps others from writing.
LOCK_SHARE_WRITE_BYTE = 200 + 1


@dataclasses.dataclass(frozen=True)
class Break:
    """Where the conversation ends: after some bytes of one message.

    The messages are 'state' (what follows the stop of the guest), 'ready',
    'handover', 'taken' and 'shut'.
    """

    message: str
    forwarded_bytes: int
    # 'close': both see the end of the connection; 'reset': an error;
    # 'silence': neither sees anything
    how: str = 'close'
    # kill -9 of 'source' or 'destination' right then
    kill: str = ''


class Proxy:
    """A TCP connection that can be broken at any byte."""

    def __init__(self, break_at=None):
        self.break_at = break_at
        self.broken = asyncio.Event()
        # asked before a message is forwarded: async on_message(name)
        self.on_message = None
        self.messages = []
        self.state_bytes = 0
        self._server = None
        self._stopped = False   # the guest is, on the source
        self._handover = False  # the next bytes of the source are that
        self._writers = []
        self._tasks = []

    async def start(self, destination_port):
        self._port = destination_port
        self._server = await asyncio.start_server(self._accept, '127.0.0.1')
        return self._server.sockets[0].getsockname()[1]

    async def close(self):
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    def guest_stopped(self):
        """All that the source still sends is the tail of the state."""
        self._stopped = True

    async def _accept(self, reader, writer):
        self._server.close()
        there, to_there = await asyncio.open_connection('127.0.0.1',
                                                        self._port)
        self._writers = [writer, to_there]
        self._tasks = [
            asyncio.create_task(self._forward_stream(reader, to_there)),
            asyncio.create_task(self._forward_answers(there, writer))]

    async def _forward_stream(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self._handover:
                    while len(data) < COMMAND_BYTES:
                        data += await reader.readexactly(
                            COMMAND_BYTES - len(data))
                    await self._forward('handover', data, writer)
                elif self._stopped:
                    start, self.state_bytes = (self.state_bytes,
                                               self.state_bytes + len(data))
                    await self._forward('state', data, writer, start)
                else:
                    await self._forward('', data, writer)
        if not self.broken.is_set():
            writer.close()

    async def _forward_answers(self, reader, writer):
        with contextlib.suppress(ConnectionError,
                                 asyncio.IncompleteReadError):
            while True:
                data = await reader.readexactly(4)
                kind, length = struct.unpack('>HH', data)
                data += await reader.readexactly(length)
                name = ''
                if kind == RP_SHUT:
                    name = 'shut'
                elif kind != RP_PONG and length == 4:
                    name = HANDOVER_WORDS[struct.unpack('>I', data[4:])[0]]
                self._handover |= name == 'ready'
                await self._forward(name, data, writer)
        if not self.broken.is_set():
            writer.close()

    async def _forward(self, name, data, writer, start=0):
        if self.broken.is_set():
            return
        if name and name not in self.messages:
            self.messages.append(name)
            if self.on_message:
                await self.on_message(name)
        at = self.break_at
        if at and at.message == name and (
                start + len(data) >= at.forwarded_bytes):
            data = data[:at.forwarded_bytes - start]
            self.broken.set()
        writer.write(data)
        await writer.drain()
        if self.broken.is_set() and at.how != 'silence':
            # let the peer receive what was forwarded before the break
            await asyncio.sleep(0.05)
            for writer in self._writers:
                if at.how == 'reset':
                    writer.get_extra_info('socket').setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack('ii', 1, 0))
                writer.close()


class Rig:
    """Source and destination of a counting guest, as libvirt runs them."""

    def __init__(self, break_at=None, disk=True, own_image=False,
                 exit_on_error=False, early_resume=True):
        self.proxy = Proxy(break_at)
        # the guest has a disk that it can write to, and that is locked
        self.disk = disk
        # the destination has its own copy of the image
        self.own_image = own_image
        self.exit_on_error = exit_on_error
        self.early_resume = early_resume

    async def __aenter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='handover-'))
        self.sides = []
        try:
            self.image = self.directory / 'image'
            self.image.write_bytes(BOOT_SECTOR.ljust(510, b'\0') + b'\x55\xaa'
                                   + bytes(IMAGE_BYTES - 512))
            self.destination_image = self.image
            if self.own_image:
                self.destination_image = self.directory / 'copy'
                shutil.copyfile(self.image, self.destination_image)
            self.source = await self._start('source', self.image)
            self.destination = await self._start(
                'destination', self.destination_image, '-S',
                '-incoming', 'defer')
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info):
        for side in self.sides:
            await side.stop()
        await self.proxy.close()
        shutil.rmtree(self.directory)

    async def _start(self, name, image, *arguments):
        # both can have an image at once that neither writes to
        read_only = 'off' if self.disk else 'on'
        boot = ['-drive', f'file={image},format=raw,if=virtio,'
                f'read-only={read_only}']
        for directory in pair.FIRMWARE_DIRECTORIES:
            if os.path.isdir(directory):
                boot += ['-L', directory]
        side = pair.Qemu(name, [
            variants.binary('QEMU_PATCHED'), '-nodefaults', '-no-user-config',
            '-display', 'none', '-accel', pair.ACCELERATOR, '-m', '32M',
            '-chardev', f'file,id=serial,path={self.directory / name}.serial',
            '-serial', 'chardev:serial', *boot, *arguments],
            self.directory / f'{name}.log')
        self.sides.append(side)
        await side.start()
        return side

    def output(self, side):
        path = self.directory / f'{side.name}.serial'
        return path.read_text() if path.exists() else ''

    async def until_counting(self, side):
        async with asyncio.timeout(TIMEOUT_S):
            start = len(self.output(side))
            while len(self.output(side)) < start + 100:
                if not side.running:
                    raise RuntimeError(f'{side.name} ended with '
                                       f'{side.process.returncode}: '
                                       f'{side.output()}')
                await asyncio.sleep(0.01)

    async def counts(self, side):
        """Whether the guest runs there."""
        start = len(self.output(side))
        await asyncio.sleep(WATCH_S)
        return len(self.output(side)) > start

    def check_count(self):
        """Each number once and in order, on the source and then there."""
        output = self.output(self.source) + self.output(self.destination)
        lines = output.split('\n')
        for n, line in enumerate(lines[:-1], 1):
            if line != f'{n:08X}':
                raise AssertionError(
                    f'the guest counted ...{lines[max(0, n - 3):n + 2]}, '
                    f'expected {n:08X}; the source counted '
                    f'{self.output(self.source).count(chr(10))}')
        if not f'{len(lines):08X}'.startswith(lines[-1]):
            raise AssertionError(f'the guest ended with {lines[-2:]}')

    async def info(self, side):
        return await side.command('query-migrate')

    async def migrate(self):
        """Migrate until the source's migration ends, or the break."""
        await self.until_counting(self.source)
        capabilities = {'return-path', 'x-early-resume'}
        if not self.early_resume:
            capabilities.remove('x-early-resume')
        await self.source.configure(
            pair.Side(''), capabilities | {'pause-before-switchover'}, {})
        await self.destination.configure(
            pair.Side(''), capabilities, {})
        await self.destination.command(
            'migrate-incoming', uri='tcp:127.0.0.1:0',
            exit_on_error=self.exit_on_error)
        address = (await self.info(self.destination))['socket-address'][0]
        port = await self.proxy.start(int(address['port']))
        await self.source.command('migrate', uri=f'tcp:127.0.0.1:{port}')
        await self.until_status(self.source, 'pre-switchover')
        # what was sent before has passed the proxy
        await asyncio.sleep(0.1)
        self.proxy.guest_stopped()
        await self.source.command('migrate-continue', state='pre-switchover')
        at = self.proxy.break_at
        if at:
            async with asyncio.timeout(TIMEOUT_S):
                await self.proxy.broken.wait()
            if at.kill:
                getattr(self, at.kill).process.kill()
                await getattr(self, at.kill).process.wait()
        else:
            await self.until_status(self.source, *pair.MIGRATION_ENDS)

    async def until_status(self, side, *wanted):
        async with asyncio.timeout(TIMEOUT_S):
            while side.running:
                with contextlib.suppress(qmp.QMPError, EOFError, OSError):
                    status = (await self.info(side)).get('status')
                    if status in wanted:
                        return status
                await asyncio.sleep(0.01)
        raise RuntimeError(f'{side.name} ended with '
                           f'{side.process.returncode}: {side.output()}')


async def refusal(side, command, **arguments):
    """The error of a QMP command, or None when it was obeyed."""
    try:
        await side.command(command, **arguments)
    except qmp.ExecuteError as e:
        return str(e)
    return None


class Base(unittest.IsolatedAsyncioTestCase):

    async def asyncSetUp(self):
        # its complaints about slow callbacks only say that QEMU is busy
        asyncio.get_running_loop().set_debug(False)

    async def run_state(self, side):
        return (await side.command('query-status'))['status']

    async def assert_runs_only(self, rig, side):
        """The guest runs on this side, and nothing makes it run twice."""
        await rig.until_counting(side)
        other, = (s for s in rig.sides if s is not side)
        if other.running:
            # it may be about to exit
            with contextlib.suppress(qmp.QMPError, EOFError):
                await refusal(other, 'cont')
            self.assertFalse(await rig.counts(other))
        await rig.until_counting(side)
        rig.check_count()

    async def assert_source_resumed(self, rig):
        await rig.until_status(rig.source, 'failed')
        await self.assert_runs_only(rig, rig.source)
        self.assertEqual('', rig.output(rig.destination))

    async def assert_destination_refuses(self, rig):
        """It says so, and never starts."""
        await rig.until_status(rig.destination, 'failed')
        info = await rig.info(rig.destination)
        self.assertEqual('refused', info['x-handover'])
        self.assertTrue(info['error-desc'])
        self.assertIn("the guest is the source's",
                      await refusal(rig.destination, 'cont'))
        self.assertEqual('', rig.output(rig.destination))

    async def assert_source_in_doubt(self, rig):
        """Paused, says why, and does nothing without release."""
        await rig.until_status(rig.source, 'failed')
        info = await rig.info(rig.source)
        self.assertEqual('given', info['x-handover'])
        self.assertIn('may be running it', info['error-desc'])
        while await self.run_state(rig.source) == 'finish-migrate':
            await asyncio.sleep(0.01)
        self.assertEqual('postmigrate', await self.run_state(rig.source))
        await rig.source.command('migrate_cancel')
        self.assertIn('x-migrate-handover-release',
                      await refusal(rig.source, 'cont'))
        self.assertIn("Can't migrate", await refusal(
            rig.source, 'migrate', uri='tcp:127.0.0.1:1'))
        self.assertFalse(await rig.counts(rig.source))

    async def release(self, rig, **arguments):
        """As management does when the destination is certainly gone."""
        await rig.destination.stop()
        await rig.source.command('x-migrate-handover-release', **arguments)
        await rig.source.command('cont')
        await rig.until_counting(rig.source)


class TestHandover(Base):

    async def test_no_fault(self):
        for disk in (True, False):
            with self.subTest(disk=disk):
                async with Rig(disk=disk) as rig:
                    await rig.migrate()
                    await self.assert_runs_only(rig, rig.destination)
                    await rig.destination.command('cont')  # libvirt's
                    await self.assert_runs_only(rig, rig.destination)
                    self.assertEqual(
                        ['state', 'ready', 'handover', 'taken', 'shut'],
                        rig.proxy.messages)

    async def test_check_notices_a_double_run(self):
        """The two outputs of a guest that runs twice are not one count."""
        async with Rig(early_resume=False, disk=False) as rig:
            await rig.migrate()
            await rig.destination.command('cont')
            await rig.until_counting(rig.destination)
            rig.check_count()
            await rig.source.command('cont')
            await rig.until_counting(rig.source)
            with self.assertRaisesRegex(AssertionError, 'expected'):
                rig.check_count()


class TestBeforeTheHandover(Base):
    """The source resumes whatever fails, and the destination never runs."""

    async def _breaks(self):
        async with Rig() as rig:
            await rig.migrate()
            state_bytes = rig.proxy.state_bytes
        self.assertGreater(state_bytes, 1000)
        # how much there is varies a little
        return ([('state', n) for n in (0, state_bytes // 2,
                                        state_bytes * 9 // 10)] +
                [('ready', n) for n in (0, RP_MESSAGE_BYTES - 1)])

    async def test_connection_lost(self):
        for message, forwarded in await self._breaks():
            for how in ('close', 'reset'):
                at = Break(message, forwarded, how)
                with self.subTest(at=at):
                    async with Rig(at) as rig:
                        await rig.migrate()
                        await self.assert_source_resumed(rig)
                        await self.assert_destination_refuses(rig)
                        self.assertNotIn(
                            'x-handover', await rig.info(rig.source))

    async def test_destination_killed(self):
        for message, forwarded in await self._breaks():
            at = Break(message, forwarded, kill='destination')
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await self.assert_source_resumed(rig)

    async def test_source_killed(self):
        for message, forwarded in await self._breaks():
            at = Break(message, forwarded, kill='source')
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await self.assert_destination_refuses(rig)

    async def test_destination_exits(self):
        at = Break('ready', 0)
        async with Rig(at, exit_on_error=True) as rig:
            await rig.migrate()
            await self.assert_source_resumed(rig)
            self.assertEqual(1, await rig.destination.process.wait())

    async def test_cancel(self):
        async with Rig(Break('ready', 0, 'silence')) as rig:
            await rig.migrate()
            await rig.source.command('migrate_cancel')
            await rig.until_status(rig.source, 'cancelled')
            await self.assert_runs_only(rig, rig.source)
            self.assertEqual('', rig.output(rig.destination))


class TestAfterTheHandover(Base):
    """The source does not run the guest, whether or not it knows why."""

    async def test_permission_lost(self):
        for how in ('close', 'reset'):
            for forwarded in range(COMMAND_BYTES):
                at = Break('handover', forwarded, how)
                with self.subTest(at=at):
                    async with Rig(at) as rig:
                        await rig.migrate()
                        await self.assert_destination_refuses(rig)
                        await self.assert_source_in_doubt(rig)
                        self.assertFalse(await rig.counts(rig.destination))
                        await self.release(rig)
                        rig.check_count()

    async def test_answer_lost(self):
        for message, forwarded in (
                ('handover', COMMAND_BYTES), ('taken', 0), ('taken', 4),
                ('taken', RP_MESSAGE_BYTES - 1)):
            at = Break(message, forwarded)
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await self.assert_runs_only(rig, rig.destination)
                    await self.assert_source_in_doubt(rig)
                    info = await rig.info(rig.destination)
                    self.assertEqual(('completed', 'taken'),
                                     (info['status'], info['x-handover']))
                    await self.assert_runs_only(rig, rig.destination)

    async def test_connection_lost_after_the_answer(self):
        for message, forwarded in (('taken', RP_MESSAGE_BYTES), ('shut', 0),
                                   ('shut', RP_MESSAGE_BYTES)):
            at = Break(message, forwarded)
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await rig.until_status(rig.source, 'completed')
                    await self.assert_runs_only(rig, rig.destination)
                    self.assertIn('has taken the guest over',
                                  await refusal(rig.source, 'cont'))

    async def test_silence_after_the_answer(self):
        async with Rig(Break('shut', 0, 'silence')) as rig:
            await rig.migrate()
            await self.assert_runs_only(rig, rig.destination)
            self.assertEqual('device', (await rig.info(rig.source))['status'])
            await asyncio.sleep(ANSWER_TIMEOUT_S)
            await rig.until_status(rig.source, 'completed')
            self.assertIn('has taken the guest over',
                          await refusal(rig.source, 'cont'))
            await self.assert_runs_only(rig, rig.destination)

    async def test_source_killed(self):
        for message, forwarded in (
                ('handover', COMMAND_BYTES), ('taken', 0),
                ('taken', RP_MESSAGE_BYTES), ('shut', 0)):
            at = Break(message, forwarded, kill='source')
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await self.assert_runs_only(rig, rig.destination)

    async def test_source_killed_with_the_permission(self):
        async with Rig(Break('handover', 0, kill='source')) as rig:
            await rig.migrate()
            await self.assert_destination_refuses(rig)

    async def test_destination_killed(self):
        for message, forwarded in (
                ('handover', 0), ('handover', COMMAND_BYTES), ('taken', 0)):
            at = Break(message, forwarded, kill='destination')
            with self.subTest(at=at):
                async with Rig(at) as rig:
                    await rig.migrate()
                    await self.assert_source_in_doubt(rig)
                    await self.release(rig)

    async def test_destination_killed_after_the_answer(self):
        at = Break('taken', RP_MESSAGE_BYTES, kill='destination')
        async with Rig(at) as rig:
            await rig.migrate()
            await rig.until_status(rig.source, 'completed')
            self.assertIn('has taken the guest over',
                          await refusal(rig.source, 'cont'))
            self.assertIn('stale', await refusal(
                rig.source, 'x-migrate-handover-release'))
            self.assertFalse(await rig.counts(rig.source))
            await self.release(rig, stale=True)

    async def test_no_answer(self):
        async with Rig(Break('taken', 0, 'silence')) as rig:
            await rig.migrate()
            self.assertEqual('given',
                             (await rig.info(rig.source))['x-handover'])
            self.assertIn('cannot cancel',
                          await refusal(rig.source, 'migrate_cancel'))
            self.assertIn('not finalized', await refusal(rig.source, 'cont'))
            await self.assert_runs_only(rig, rig.destination)
            await asyncio.sleep(ANSWER_TIMEOUT_S)
            await self.assert_source_in_doubt(rig)
            await self.assert_runs_only(rig, rig.destination)


class TestImages(Base):
    """The destination cannot have the images."""

    def lock(self, image):
        """Keep others from writing to the image, as another QEMU would."""
        fd = os.open(image, os.O_RDWR)
        self.addCleanup(os.close, fd)
        self._set_lock(fd, fcntl.F_RDLCK)
        return fd

    @staticmethod
    def _set_lock(fd, kind):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(
            'hhqqi4x', kind, os.SEEK_SET, LOCK_SHARE_WRITE_BYTE, 1, 0))

    async def test_destination_gives_back(self):
        async with Rig(own_image=True) as rig:
            self.lock(rig.destination_image)
            await rig.migrate()
            # the source hangs up on it, with or without the 'shut' behind it
            self.assertEqual(['state', 'ready', 'handover', 'refused'],
                             rig.proxy.messages[:4])
            await self.assert_source_resumed(rig)
            await self.assert_destination_refuses(rig)
            info = await rig.info(rig.source)
            self.assertEqual('refused', info['x-handover'])
            self.assertIn('could not take the guest over', info['error-desc'])

    async def test_source_cannot_have_them_either(self):
        async with Rig() as rig:
            locks = []

            async def on_message(name):
                if name == 'handover':
                    locks.append(self.lock(rig.image))

            rig.proxy.on_message = on_message
            await rig.migrate()
            self.assertEqual('refused',
                             (await rig.info(rig.source))['x-handover'])
            self.assertIn('lock', await refusal(rig.source, 'cont'))
            self.assertFalse(await rig.counts(rig.source))
            self._set_lock(locks[0], fcntl.F_UNLCK)
            await rig.source.command('cont')
            await self.assert_source_resumed(rig)
            await self.assert_destination_refuses(rig)


if __name__ == '__main__':
    unittest.main()
