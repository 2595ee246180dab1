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

import asyncio
import contextlib
import pathlib
import signal
import tempfile
import unittest

from tests.qemu import gdbstub
from tests.qemu import guest
from tests.qemu import pair
from tests.qemu import variants

LIBVIRT = pair.Libvirt(cont_delay_ms=9)
# A guest that rewrites memory on a slow machine must still converge.
DOWNTIME_LIMIT_MS = 50
IDLE = {'dirty_mib_per_s': 0}
DIRTYING = {'dirty_mib_per_s': 32}


def patched(capabilities=variants.ALL):
    return variants.patched(capabilities,
                            **{'downtime-limit': DOWNTIME_LIMIT_MS})


class LateAnswers:
    """A TCP relay for a migration: what comes back takes its time."""

    def __init__(self, delay_s):
        self.delay_s = delay_s
        self._server = None
        self._tasks = []

    async def start(self, port):
        """Listen; the port to connect to instead of this one."""
        self._port = port
        self._server = await asyncio.start_server(self._accept, '127.0.0.1')
        return self._server.sockets[0].getsockname()[1]

    async def close(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()

    async def _accept(self, reader, writer):
        there, to_there = await asyncio.open_connection('127.0.0.1',
                                                        self._port)
        self._tasks += [
            asyncio.create_task(self._forward(reader, to_there, 0)),
            asyncio.create_task(self._forward(there, writer, self.delay_s))]

    @staticmethod
    async def _forward(reader, writer, delay_s):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()


class Base(unittest.IsolatedAsyncioTestCase):

    async def guest(self, side, tls=False, **machine):
        guest_pair = pair.Pair(pair.Machine(**machine), side, tls=tls)
        await self.enterAsyncContext(guest_pair)
        await guest_pair.guest_ready()
        return guest_pair

    async def hop(self, guest_pair, destination, **options):
        """Migrate the guest and check that it is whole and there once."""
        options = {'libvirt': LIBVIRT, **options}
        source = guest_pair.source_side
        try:
            return await self._hop(guest_pair, source, destination, options)
        except Exception as e:
            e.add_note(f'from {self.describe(source)} to '
                       f'{self.describe(destination)}, {options}')
            raise

    async def freeze_destination(self, side, channels, status, tls=False):
        """Stop the destination's QEMU at a status of the migration.

        Its socket's buffers are small.
        """
        guest_pair = await self.guest(side, tls, guest=DIRTYING)
        source = guest_pair.source
        await guest_pair.start_destination(side)
        uri = await guest_pair.prepare('unix', channels, LIBVIRT)
        await source.command('migrate', uri=uri)
        async with asyncio.timeout(30):
            await source.until(lambda: status in source.migration_statuses,
                               f'the status {status}')
        guest_pair.destination.process.send_signal(signal.SIGSTOP)
        return guest_pair

    async def _hop(self, guest_pair, source, destination, options):
        await guest_pair.start_destination(destination,
                                           paused=bool(options['libvirt']))
        result = await guest_pair.migrate(**options)
        # the STOP of the source comes before the destination's RESUME
        self.assertGreater(result.blackout_ms, 0)
        result.packets.check()
        status = await guest_pair.source.command('query-status')
        self.assertEqual((False, 'postmigrate'),
                         (status['running'], status['status']))
        agreed = set()
        if options['libvirt']:  # needs a return path
            agreed = (variants.TWO_SIDED & source.capabilities
                      & destination.capabilities)
        self.assertEqual(agreed, set(result.source.get('x-features', ())))
        await guest_pair.end_source()
        await guest_pair.guest_verified_all()
        return result

    @staticmethod
    def describe(side):
        capabilities = '+'.join(sorted(side.capabilities)) or 'no features'
        return f'{side.binary} with {capabilities}'


class TestGuest(Base):
    """The guest notices what these tests are there to notice."""

    def corruptible(self):
        return self.guest(variants.stock(), network=False, guest={
            'memory_mib': 8, 'fill_percent': 50})

    async def _flip(self, is_wanted):
        """Flip a bit in the first page that is wanted; return the fault."""
        guest_pair = await self.corruptible()
        base = guest.WINDOW_BASE_MIB << 20
        dump = guest_pair.directory / 'memory'
        await guest_pair.source.command('pmemsave', val=base, size=8 << 20,
                                        filename=str(dump))
        memory = dump.read_bytes()
        page = next(n for n in range(len(memory) // 4096)
                    if is_wanted(memory[n * 4096:n * 4096 + 8]))
        await gdbstub.flip_bit(guest_pair.source,
                               guest_pair.directory / 'gdb',
                               base + page * 4096 + 2048)
        with self.assertRaises(guest.GuestFault) as caught:
            await guest_pair.guest_verified_all(timeout_s=30)
        self.assertIn(f'page {page} at', str(caught.exception))
        # it stopped counting
        before = len(guest_pair.serial())
        with self.assertRaises(guest.GuestFault):
            await guest_pair.wait_serial(guest.STATUS, before, 2)

    async def test_written_page(self):
        await self._flip(any)

    async def test_untouched_page(self):
        await self._flip(lambda start: not any(start))


class TestAnnouncement(Base):
    """When the network is told where the guest is."""

    # so that the destination runs the guest when it is told to, later
    NOT_EARLY = variants.ALL - {'x-early-resume'}
    LATE = pair.Libvirt(cont_delay_ms=100)
    # at least, of the ten in 45 ms
    ANNOUNCEMENTS = 5

    async def _announcements_ms(self, capabilities):
        """After the destination's RESUME, so less than 0 is before it."""
        guest_pair = await self.guest(patched(capabilities), guest=IDLE)
        source = guest_pair.beacons.packets[0].sender
        result = await self.hop(guest_pair, patched(capabilities),
                                libvirt=self.LATE)
        return sorted((each.arrival_s - result.resume_s) * 1000
                      for each in guest_pair.beacons.announcements
                      if each.sender != source)

    async def _first_announcement_ms(self, capabilities):
        return (await self._announcements_ms(capabilities))[0]

    async def test_when_the_source_has_stopped_the_guest(self):
        self.assertLess(await self._first_announcement_ms(self.NOT_EARLY),
                        -self.LATE.cont_delay_ms)

    async def test_more_than_once(self):
        """What the source's host still sends teaches switches the old place.

        So it is repeated, long before this guest runs.
        """
        found_ms = await self._announcements_ms(self.NOT_EARLY)
        before = [each for each in found_ms if each < 0]
        self.assertGreaterEqual(len(before), self.ANNOUNCEMENTS, found_ms)

    async def test_when_the_guest_runs(self):
        self.assertGreater(
            await self._first_announcement_ms(
                self.NOT_EARLY - {'x-early-announce'}), -1)

    async def test_the_guest_goes_on_at_the_source(self):
        """As libvirt has it if it cannot finish at the destination."""
        side = patched(self.NOT_EARLY)
        guest_pair = await self.guest(side, guest=IDLE)
        here = guest_pair.beacons.packets[0].sender
        await guest_pair.start_destination(side)
        uri = await guest_pair.prepare(libvirt=self.LATE)
        guest_pair.beacons.clear()
        await guest_pair.source.command('migrate', uri=uri)
        await guest_pair.source.until(
            lambda: 'completed' in guest_pair.source.migration_statuses,
            'the end of the migration')
        await guest_pair.destination.stop()
        self.assertNotIn(here, self._senders(guest_pair))
        await guest_pair.source.command('cont')
        async with asyncio.timeout(10):
            while here not in self._senders(guest_pair):
                await asyncio.sleep(0.01)
        await guest_pair.guest_verified_all()

    @staticmethod
    def _senders(guest_pair):
        return {each.sender for each in guest_pair.beacons.announcements}


class TestCancel(Base):

    CHANNELS = 2
    SLOW_BYTES_PER_S = 16 << 20
    WITHIN_S = 5
    # what the connections' buffers take is long gone by then
    STUCK_S = 1

    async def test_channels_that_are_stuck(self):
        """The destination does not read any more; the guest goes on here."""
        side = variants.patched(
            frozenset(), **{'max-bandwidth': self.SLOW_BYTES_PER_S})
        guest_pair = await self.freeze_destination(side, self.CHANNELS,
                                                   'active')
        source = guest_pair.source
        await source.command('migrate-set-parameters',
                             **{'max-bandwidth': 64 * self.SLOW_BYTES_PER_S})
        await asyncio.sleep(self.STUCK_S)
        self.assertEqual('active', source.migration_statuses[-1])
        async with asyncio.timeout(self.WITHIN_S):
            await source.command('migrate_cancel')
            await source.until(
                lambda: 'cancelled' in source.migration_statuses,
                'the end of the migration')
        await guest_pair.destination.stop()
        await guest_pair.guest_verified_all()


class TestSwitchoverTimeout(Base):
    """The destination reads nothing while the guest stands still."""

    TIMEOUT_MS = 1500
    # The guest is stopped at once, with far more left than sockets take.
    LIMITS = {'x-switchover-timeout': TIMEOUT_MS, 'downtime-limit': 1000000,
              'max-bandwidth': 16 << 20}
    SLACK_MS = 1500

    async def _stuck(self, channels, tls=False):
        guest_pair = await self.freeze_destination(
            variants.patched(frozenset(), **self.LIMITS), channels,
            'pre-switchover', tls)
        source = guest_pair.source
        since = len(source.events)
        await source.command('migrate-continue', state='pre-switchover')
        async with asyncio.timeout(30):
            await source.wait_event('RESUME', since)
        paused_ms = 1000 * (source.event_s('RESUME', since) -
                            source.event_s('STOP'))
        # the event's clock is another one
        self.assertGreater(paused_ms, self.TIMEOUT_MS * 0.9)
        self.assertLess(paused_ms, self.TIMEOUT_MS + self.SLACK_MS)
        info = await source.command('query-migrate')
        self.assertEqual('failed', info['status'])
        self.assertIn(f'x-switchover-timeout ({self.TIMEOUT_MS} ms)',
                      info['error-desc'])
        await guest_pair.destination.stop()
        await guest_pair.guest_verified_all()

        # and nothing of it is left for the next one
        await source.command('migrate-set-parameters',
                             **{'max-bandwidth': 1 << 30})
        guest_pair.source_side = patched()
        await self.hop(guest_pair, patched())

    async def test_one_channel(self):
        await self._stuck(0)

    async def test_many_channels(self):
        await self._stuck(2)

    async def test_tls(self):
        await self._stuck(0, tls=True)


class TestAllFeatures(Base):
    """Everything on, both sides patched, back and forth."""

    async def _channels(self, **machine):
        guest_pair = await self.guest(patched(), **machine)
        for options in ({}, {'multifd_channels': 2}, {'transport': 'fd'},
                        {'transport': 'unix'}):
            await self.hop(guest_pair, patched(), **options)

    async def test_kernel_idle(self):
        await self._channels(boot='kernel', guest=IDLE)

    async def test_kernel_dirtying(self):
        await self._channels(boot='kernel', guest=DIRTYING)

    async def test_tls(self):
        await self._channels(tls=True, guest=DIRTYING)

    async def test_firmware_idle(self):
        await self._channels(boot='firmware', guest=IDLE)

    async def test_firmware_dirtying(self):
        await self._channels(boot='firmware', guest=DIRTYING)

    async def test_the_same_few_pages(self):
        """Their dirty bits are read again while they wait to be sent."""
        guest_pair = await self.guest(
            patched(), guest={**DIRTYING, 'memory_mib': 1})
        for _ in range(8):
            await self.hop(guest_pair, patched())

    async def test_two_cpus_q35(self):
        await self._channels(machine='q35', cpus=2, guest=DIRTYING)

    async def test_without_libvirt(self):
        """No return path, no pause, and the destination starts by itself.

        What needs a return path must stay off by itself, or be refused.
        """
        sides = variants.ALL - variants.NEED_RETURN_PATH
        guest_pair = await self.guest(patched(sides), guest=IDLE)
        for channels in (0, 2):
            await self.hop(guest_pair, patched(sides), libvirt=None,
                           multifd_channels=channels)

    async def test_by_global(self):
        """The capabilities set on the command line."""
        side = pair.Side(variants.binary('QEMU_PATCHED'), migration_globals={
            feature: 'on' for feature in variants.FEATURES})
        guest_pair = await self.guest(side, guest=IDLE)
        await guest_pair.start_destination(side)
        result = await guest_pair.migrate(libvirt=LIBVIRT)
        self.assertEqual(variants.TWO_SIDED,
                         set(result.source['x-features']))
        await guest_pair.guest_verified_all()


class TestMemory(Base):
    """Everything on, with memory of other kinds than anonymous pages."""

    async def _there_and_back(self, memory_backend):
        guest_pair = await self.guest(patched(), guest=DIRTYING,
                                      memory_backend=memory_backend)
        for channels in (0, 2):
            await self.hop(guest_pair, patched(), multifd_channels=channels)

    async def test_shared(self):
        await self._there_and_back('memory-backend-memfd,share=on')

    async def test_file(self):
        # each QEMU makes a file of its own in the directory
        directory = self.enterContext(tempfile.TemporaryDirectory())
        for share in ('on', 'off'):
            await self._there_and_back(
                f'memory-backend-file,mem-path={directory},share={share}')

    async def test_preallocated(self):
        await self._there_and_back('memory-backend-ram,prealloc=on')

    async def test_hugepages(self):
        need = 2 * pair.Machine().memory_mib // 2  # two QEMUs, 2 MiB pages
        directory = '/sys/kernel/mm/hugepages/hugepages-2048kB'
        present = [int(pathlib.Path(directory, name).read_text())
                   for name in ('free_hugepages', 'nr_overcommit_hugepages')]
        if sum(present) < need:
            self.skipTest(f'{sum(present)} free hugepages of 2 MiB, {need} '
                          f'needed: write to {directory}/nr_hugepages')
        await self._there_and_back(
            'memory-backend-memfd,hugetlb=on,hugetlbsize=2M')

    async def test_balloon(self):
        """Memory that the guest gave back, and takes again."""
        machine = pair.Machine(memory_mib=512)
        guest_pair = await self.guest(patched(), guest=DIRTYING,
                                      memory_mib=machine.memory_mib)
        for size_mib in (384, machine.memory_mib, 320):
            await self._set_balloon(guest_pair, size_mib << 20)
            for channels in (0, 2):
                await self.hop(guest_pair, patched(),
                               multifd_channels=channels)

    async def _set_balloon(self, guest_pair, size_bytes):
        source = guest_pair.source
        await source.command('balloon', value=size_bytes)
        async with asyncio.timeout(60):
            while ((await source.command('query-balloon'))['actual']
                   != size_bytes):
                await asyncio.sleep(0.1)


class TestFeatures(Base):
    """What a feature must show, and each by itself."""

    async def test_each_alone(self):
        guest_pair = await self.guest(patched({}), guest=DIRTYING)
        for feature in variants.FEATURES:
            guest_pair.source_side = patched({feature})
            await self.hop(guest_pair, patched({feature}))

    async def test_early_resume(self):
        """The guest runs long before libvirt says so."""
        delay_ms = 3000
        guest_pair = await self.guest(patched({}), guest=IDLE)
        for capabilities in ({}, {'x-early-resume'}):
            guest_pair.source_side = patched(capabilities)
            result = await self.hop(
                guest_pair, patched(capabilities),
                libvirt=pair.Libvirt(cont_delay_ms=delay_ms))
            if capabilities:
                self.assertLess(result.blackout_ms, delay_ms / 2)
                self.assertLess(result.packets.blackout_ms, delay_ms / 2)
            else:
                self.assertGreater(result.blackout_ms, delay_ms)

    async def test_drained_switchover(self):
        # less than the 40 ms by which TCP delays an acknowledgement
        side = variants.patched({'x-drained-switchover'},
                                **{'downtime-limit': 30})
        guest_pair = await self.guest(side, guest=IDLE)
        for channels in (0, 2):
            result = await self.hop(guest_pair, side,
                                    multifd_channels=channels)
            # the switchover is held back for 10 s at most
            self.assertLess(result.total_ms, 10000)

    async def test_a_destination_that_is_always_behind(self):
        """It holds the switchover back for ten seconds, not for ever."""
        side = variants.patched({'x-drained-switchover'},
                                **{'downtime-limit': 30})
        guest_pair = await self.guest(side, guest=IDLE)
        guest_pair.relay = relay = LateAnswers(0.1)
        self.addAsyncCleanup(relay.close)
        result = await self.hop(guest_pair, side)
        self.assertGreater(result.total_ms, 10000)
        self.assertLess(result.total_ms, 20000)

    async def test_direct_switchover(self):
        """The source does not wait for migrate-continue."""
        guest_pair = await self.guest(patched({}), guest=IDLE)
        for capabilities in ({}, {'x-direct-switchover'}):
            source = guest_pair.source
            guest_pair.source_side = patched(capabilities)
            await self.hop(guest_pair, patched({}))
            self.assertEqual(not capabilities,
                             'pre-switchover' in source.migration_statuses)

    async def test_report_blackout(self):
        """The source's report agrees with the events of both sides."""
        guest_pair = await self.guest(patched({}), guest=IDLE)
        for early_resume in (False, True):
            side = patched({'x-report-blackout'}
                           | ({'x-early-resume'} if early_resume else set()))
            guest_pair.source_side = side
            result = await self.hop(guest_pair, side)
            report = dict(result.source['x-blackout'])
            # both sides have the clock of this machine
            error = report.pop('clock-error')
            self.assertLessEqual(abs(report.pop('clock-offset')), error)
            stop_event = result.stop_s * 1e9
            resume_event = result.resume_s * 1e9
            slack = error + 1000000  # events have microseconds only
            self.assertLessEqual(report['stop'], stop_event + slack)
            self.assertLessEqual(stop_event, report['pages-sent'] + slack)
            self.assertLessEqual(report['devices-loaded'],
                                 resume_event + slack)
            # libvirt's 'cont' comes after the source's last word
            self.assertEqual(early_resume, 'resume' in report)
            steps = ['stop', 'stopped', 'pages-sent', 'devices-sent']
            self.assertEqual(steps, sorted(steps, key=report.get))
            steps = ['stop', 'pages-loaded', 'devices-loaded']
            if early_resume:
                steps.append('resume')
                self.assertLessEqual(resume_event, report['resume'] + slack)
            self.assertEqual(steps, sorted(steps, key=report.get))


class TestMixed(Base):
    """One side is stock, or has the features off."""

    async def _tour(self, **options):
        guest_pair = await self.guest(patched(), guest=DIRTYING)
        stock = pair.Side(variants.binary('QEMU_STOCK'), parameters={
            'downtime-limit': DOWNTIME_LIMIT_MS})
        for destination in (stock, patched(), patched({}), patched(), stock,
                            patched({}), stock):
            await self.hop(guest_pair, destination, **options)

    async def test_plain(self):
        await self._tour()

    async def test_multifd(self):
        await self._tour(multifd_channels=2)

    async def test_without_libvirt(self):
        capabilities = variants.ALL - variants.NEED_RETURN_PATH
        guest_pair = await self.guest(patched(capabilities), guest=IDLE)
        for destination in (variants.stock(), patched(capabilities),
                            patched({})):
            await self.hop(guest_pair, destination, libvirt=None)
