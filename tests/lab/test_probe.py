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

"""The probe and the forwarder themselves, against disturbances of known size.

The forwarder runs as an ordinary process here, at the other end of a cable.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from oslotest import base

from lab import probe_client
from tests.lab import base as lab_base

LAB = pathlib.Path(__file__).parents[2] / 'lab'
PAGE = 4096
MEMORY_MIB = 8
CORRUPT_PAGE = 100
DISK_START_MIB, DISK_MIB = 1, 2
BLOCK = 64 << 10
CORRUPT_BLOCK = 10


def run(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout


class ProbeTest(base.BaseTestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        build = pathlib.Path(directory.name)
        run(LAB / 'probe/build', build)
        run('gcc', '-std=gnu11', '-O2', '-Wall', '-Wextra', '-Werror',
            '-pthread', '-o', build / 'forwarder', LAB / 'guest/forwarder.c')

        self.build = build
        self.near, self.far = f'probe-{os.getpid()}', f'guest-{os.getpid()}'
        for name in (self.near, self.far):
            run('ip', 'netns', 'add', name)
            self.addCleanup(run, 'ip', 'netns', 'delete', name)
        run('ip', '-n', self.near, 'link', 'add', 'near', 'type', 'veth',
            'peer', 'name', 'far', 'netns', self.far)
        run('ip', '-n', self.near, 'link', 'set', 'near', 'up')
        run('ip', '-n', self.far, 'link', 'set', 'far', 'up')
        mac = json.loads(run('ip', '-n', self.far, '-json', 'link', 'show',
                             'far'))[0]['address']

        # where files can be read and written past the cache
        disk = tempfile.NamedTemporaryFile(dir='/var/tmp')  # noqa: S108
        self.addCleanup(disk.close)
        disk.truncate(DISK_START_MIB + DISK_MIB + 1 << 20)
        self.disk = pathlib.Path(disk.name)
        self.forwarder = self.start(
            self.far, build / 'forwarder', 'far', str(MEMORY_MIB),
            str(MEMORY_MIB), disk.name, str(DISK_START_MIB), str(DISK_MIB))
        # its first heartbeat
        self.assertIn('corruptions 0', self.forwarder.stdout.readline())
        self.command = [
            build / 'probe', '--interface', 'near', '--mac', mac,
            '--source', '192.0.2.1', '--destination', '192.0.2.2',
            '--answer-within', '5']
        self.start_probe()

    def start(self, namespace, *command):
        process = subprocess.Popen(
            ['ip', 'netns', 'exec', namespace, *command], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def start_probe(self, *arguments):
        self.probe = self.start(self.near, *self.command, *arguments)
        self.assertEqual('ready\n', self.probe.stderr.readline())

    def rewritten_mib_per_s(self):
        result = self.result()
        return ((result['pages_verified'] - result['first_pages_verified'])
                * PAGE / 2**20 * 1e9 /
                (result['last_guest_ns'] - result['first_guest_ns']))

    def result(self):
        self.probe.send_signal(signal.SIGTERM)
        return json.loads(self.probe.communicate()[0])

    def test_nothing_happens(self):
        time.sleep(1)
        result = self.result()
        self.assertEqual(result['sent'], result['received'])
        self.assertEqual(0, result['blackout_ms'])
        self.assertEqual(0, result['reordered'])
        self.assertEqual(result['first_boot_id'], result['last_boot_id'])
        self.assertEqual(
            pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(),
            result['first_boot_id'] + '\n')
        self.assertTrue(result['counter_continuous'])
        self.assertEqual(0, result['corruptions'])

    def test_lost_frames_are_a_blackout(self):
        down_s = time.time()
        run('ip', '-n', self.far, 'link', 'set', 'far', 'down')
        time.sleep(0.1)
        run('ip', '-n', self.far, 'link', 'set', 'far', 'up')
        up_s = time.time()
        time.sleep(1)
        result = self.result()
        self.assertGreaterEqual(result['blackout_ms'], 99)
        self.assertLessEqual(result['blackout_ms'], (up_s - down_s) * 1000 + 5)
        self.assertAlmostEqual(down_s, result['blackout_at'], delta=0.1)
        self.assertTrue(result['counter_continuous'])

    def test_late_answers_are_a_gap(self):
        self.forwarder.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        self.forwarder.send_signal(signal.SIGCONT)
        time.sleep(1)
        result = self.result()
        self.assertEqual(0, result['lost'])
        self.assertGreaterEqual(result['gap_ms'], 99)
        self.assertGreaterEqual(result['rtt_max_ms'], 95)

    def test_phases(self):
        time.sleep(0.3)
        self.probe.send_signal(signal.SIGUSR1)
        self.forwarder.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        self.forwarder.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        self.probe.send_signal(signal.SIGUSR1)
        run('ip', '-n', self.far, 'link', 'set', 'far', 'down')
        time.sleep(0.1)
        run('ip', '-n', self.far, 'link', 'set', 'far', 'up')
        time.sleep(0.3)
        # there are no more
        self.probe.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        result = self.result()
        before, during, after = result['phases']
        for key in ('sent', 'received', 'lost', 'duplicates', 'reordered'):
            self.assertEqual(result[key], sum(
                phase[key] for phase in result['phases']))
        self.assertLess(before['rtt_max_ms'], 95)
        # late, not lost
        self.assertEqual((0, 0), (before['lost'], during['lost']))
        self.assertGreaterEqual(during['rtt_max_ms'], 95)
        self.assertGreaterEqual(during['sent'], 390)
        self.assertEqual(result['blackout_ms'], after['longest_loss_ms'])
        self.assertGreaterEqual(after['longest_loss_ms'], 90)
        # a pass a second, where nobody says how fast
        self.assertGreater(before['rewritten_mib_per_s'], MEMORY_MIB / 4)
        self.assertLess(before['rewritten_mib_per_s'], MEMORY_MIB * 4)

    def test_without_a_mark_there_is_one_phase(self):
        time.sleep(0.2)
        result = self.result()
        phase, = result['phases']
        self.assertEqual(result['sent'], phase['sent'])

    def test_the_guest_rewrites_as_fast_as_it_is_told(self):
        time.sleep(0.5)
        self.assertGreater(self.rewritten_mib_per_s(), MEMORY_MIB / 4)
        self.start_probe('--rewrite', '0')
        time.sleep(0.5)
        # the first answer may come from before the guest did as it was told
        self.assertLess(self.rewritten_mib_per_s(), 1)
        self.start_probe('--rewrite', str(4 * MEMORY_MIB))
        time.sleep(0.5)
        self.assertGreater(self.rewritten_mib_per_s(), 1.5 * MEMORY_MIB)

    def disk_mib_per_s(self, result):
        return ((result['disk_blocks'] - result['first_disk_blocks'])
                * BLOCK / 2**20 * 1e9 /
                (result['last_guest_ns'] - result['first_guest_ns']))

    def test_the_guest_uses_its_disk_as_fast_as_it_is_told(self):
        time.sleep(0.2)
        self.assertIsNone(self.result()['disk_blocks'])
        self.assertEqual(0, self.disk.stat().st_blocks)
        self.start_probe('--disk', str(DISK_MIB))
        time.sleep(2)
        result = self.result()
        self.assertAlmostEqual(DISK_MIB, self.disk_mib_per_s(result),
                               delta=DISK_MIB / 4)
        self.assertEqual(0, result['disk_faults'])
        # a probe that does not ask for it ends it
        self.start_probe()
        time.sleep(0.2)
        self.result()
        before = self.disk.read_bytes()
        time.sleep(0.5)
        self.assertEqual(before, self.disk.read_bytes())
        # nothing outside its part of the disk was written to
        start, end = DISK_START_MIB << 20, DISK_START_MIB + DISK_MIB << 20
        self.assertEqual(set(b'\0'), {*before[:start], *before[end:]})
        # each block has its number: word 0 of block 1 that of its sector
        self.assertEqual(BLOCK // 512, int.from_bytes(
            before[start + BLOCK:start + BLOCK + 4], 'little'))

    def test_working_sets(self):
        """More, less and more again, in the middle of passes."""
        self.assertEqual(MEMORY_MIB, self.result()['working_set_mib'])
        for mib in (4 * MEMORY_MIB, MEMORY_MIB // 2, 2 * MEMORY_MIB):
            self.start_probe('--working-set', str(mib), '--rewrite', '100')
            time.sleep(0.7)
            result = self.result()
            self.assertEqual(mib, result['working_set_mib'])
            self.assertEqual(0, result['corruptions'])
            self.assertGreater(
                result['pages_verified'] - result['first_pages_verified'],
                1000)

    def test_wrong_blocks_are_found(self):
        self.result()
        self.start_probe('--disk', str(DISK_MIB))
        time.sleep(0.8)
        with open(self.disk, 'r+b') as disk:
            # a block that was written by now, as if the write were lost
            disk.seek((DISK_START_MIB << 20) + CORRUPT_BLOCK * BLOCK)
            disk.write(b'\0' * BLOCK)
            os.fsync(disk.fileno())
        # a whole pass takes a second
        time.sleep(1.2)
        self.assertEqual(1, self.result()['disk_faults'])
        self.assertIn(f'block {CORRUPT_BLOCK} word 0 is 0 instead of '
                      f'{1 << 32 | CORRUPT_BLOCK * (BLOCK // 512):#x}',
                      self.forwarder.stdout.readline())

    def cut_between_two_ports(self, *command):
        """A bridge stands in for testpmd: it has no stamp either.

        :param command: the probe with its interfaces, near and near1
        """
        run('ip', '-n', self.near, 'link', 'add', 'near1', 'type', 'veth',
            'peer', 'name', 'far1', 'netns', self.far)
        # frames for other addresses are those that a switch has flooded
        run('ip', '-n', self.near, 'link', 'set', 'near1', 'address',
            '02:00:00:00:00:01', 'up')
        run('ip', '-n', self.far, 'link', 'add', 'bridge', 'type', 'bridge')
        for name in ('far', 'far1', 'bridge'):
            if name != 'bridge':
                run('ip', '-n', self.far, 'link', 'set', name, 'master',
                    'bridge')
            run('ip', '-n', self.far, 'link', 'set', name, 'up')
        self.forwarder.kill()
        self.probe.kill()
        self.command = [*command, '--mac', '02:00:00:00:00:01',
                        '--answer-within', '5']
        self.start_probe()
        time.sleep(0.5)
        run('ip', '-n', self.far, 'link', 'set', 'far1', 'down')
        time.sleep(0.1)
        run('ip', '-n', self.far, 'link', 'set', 'far1', 'up')
        time.sleep(1.5)
        result = self.result()
        self.assertGreaterEqual(result['blackout_ms'], 90)
        self.assertGreater(result['received'], 500)
        self.assertLess(result['silent_at_end_ms'], 100)
        self.assertEqual(0, result['duplicates'] + result['reordered'])
        self.assertIsNone(result['counter_continuous'])
        self.assertIsNone(result['first_boot_id'])

    def test_a_forwarder_with_two_ports(self):
        self.cut_between_two_ports(
            self.build / 'probe', '--interface', 'near', '--far', 'near1')

    @lab_base.long
    def test_a_forwarder_with_two_ports_with_dpdk(self):
        """The probe that lab/use-switch --install builds."""
        self.cut_between_two_ports(*probe_client.dpdk_command(
            lab_base.STATE / 'share/bin/probe', 'near', 'near1'))

    def find_block(self, memory):
        """Address of the memory that the forwarder verifies.

        The lower half of a page's first word is the number of the page.
        """
        with open(f'/proc/{self.forwarder.pid}/maps') as maps:
            regions = [line.split()[0].split('-') for line in maps
                       if line.split()[1:2] == ['rw-p']]
        for region in regions:
            start, end = (int(address, 16) for address in region)
            memory.seek(start)
            content = memory.read(end - start)
            for offset in range(0, len(content) - CORRUPT_PAGE * PAGE, PAGE):
                if all(content[offset + page * PAGE:offset + page * PAGE + 4]
                       == page.to_bytes(4, 'little')
                       for page in (CORRUPT_PAGE, 2, 1)):
                    return start + offset
        self.fail('no memory of the forwarder looks like the block')

    def test_wrong_memory_is_found(self):
        with open(f'/proc/{self.forwarder.pid}/mem', 'r+b', 0) as memory:
            block = self.find_block(memory)
            memory.seek(block + CORRUPT_PAGE * PAGE)
            memory.write(b'\xff' * 8)
        # a whole pass takes a second
        time.sleep(1.5)
        self.assertEqual(1, self.result()['corruptions'])
        self.assertIn(f'page {CORRUPT_PAGE} word 0 is 0xffffffffffffffff',
                      self.forwarder.stdout.readline())
