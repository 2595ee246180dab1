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

import errno
import pathlib

import fixtures
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import memory
from nova_fastmig.bench import scenario

HUGEPAGES = catalog.HUGEPAGES
# of 256 MiB, on one side and on both
ONE_SIDE, BOTH_SIDES = 128, 256


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


class FakeKernel(fixtures.Fixture):
    """Files as Linux has them; what is written to nr_hugepages has effect.

    :ivar most: pages that it can make
    :ivar error: that it answers with
    """

    def __init__(self, directory: pathlib.Path):
        self.meminfo = directory / 'meminfo'
        self.hugepages = directory / 'hugepages'
        self.pool = self.hugepages / 'hugepages-2048kB'
        self.most, self.error = 10**6, None
        self._size = self._used = 0

    def _setUp(self):
        self.pool.mkdir(parents=True)
        self.make_available(4096)
        self.resize(0)
        write_text = pathlib.Path.write_text

        def write(path, text):
            if path != self.pool / 'nr_hugepages':
                write_text(path, text)
            elif self.error:
                raise self.error
            else:
                self.resize(int(text))

        self.useFixture(fixtures.MonkeyPatch('pathlib.Path.write_text',
                                             write))

    def make_available(self, mib: int) -> None:
        with open(self.meminfo, 'w') as file:
            file.write(f'MemTotal:       99999999 kB\n'
                       f'MemAvailable:   {mib * 1024} kB\n'
                       f'HugePages_Total:       0\n')

    def _show(self) -> None:
        total = max(self._size, self._used)
        for name, pages in (('nr', total), ('free', total - self._used),
                            ('resv', 0), ('surplus', total - self._size)):
            with open(self.pool / f'{name}_hugepages', 'w') as file:
                file.write(f'{pages}\n')

    def resize(self, pages: int) -> None:
        self._size = min(pages, self.most)
        self._show()

    def use(self, pages: int) -> None:
        """By guests, those that are there already included."""
        self._used = pages
        self._show()

    @property
    def size(self) -> int:
        return self._size


class TestMemory(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.kernel = self.useFixture(FakeKernel(self.directory))
        self.memory = memory.Memory(self.directory, self.kernel.meminfo,
                                    self.kernel.hugepages)

    def assert_as_before(self, size: int = 0) -> None:
        self.assertEqual(size, self.kernel.size)
        self.assertEqual([], list(self.directory.glob('hugepages-*')))

    def test_ordinary_pages_on_both_sides(self):
        guest = scenario.Guest(memory_mib=1024)
        self.assertIsNone(self.memory.obstacle(guest))
        self.kernel.make_available(1663)
        self.assertEqual(
            f'1663 MiB of memory are available ({self.kernel.meminfo}), 1664 '
            f'MiB are needed: 576 MiB of the guest on both sides, and 512 '
            f'MiB', self.memory.obstacle(guest))
        self.kernel.make_available(1664)
        self.assertIsNone(self.memory.obstacle(guest))

    def test_ordinary_pages_need_no_pool(self):
        with self.memory.hugepages(scenario.Guest()) as check:
            check()
            self.assertEqual(0, self.kernel.size)

    def test_pages_for_the_block(self):
        with self.memory.hugepages(HUGEPAGES) as check:
            self.assertEqual(BOTH_SIDES, self.kernel.size)
            self.kernel.use(ONE_SIDE)
            check()
            self.kernel.use(0)
        self.assert_as_before()

    def test_what_is_in_use_is_not_free(self):
        self.kernel.resize(100)
        self.kernel.use(90)
        with self.memory.hugepages(HUGEPAGES):
            self.assertEqual(90 + BOTH_SIDES, self.kernel.size)
        self.assert_as_before(100)

    def test_what_is_free_is_used(self):
        self.kernel.resize(1000)
        self.kernel.make_available(600)
        self.assertIsNone(self.memory.obstacle(HUGEPAGES))
        with self.memory.hugepages(HUGEPAGES):
            self.assertEqual(1000, self.kernel.size)
        self.assert_as_before(1000)

    def test_given_back_whatever_happens(self):
        def fail():
            with self.memory.hugepages(HUGEPAGES):
                # and the guest is still there
                self.kernel.use(ONE_SIDE)
                raise Interrupted
        self.assertRaises(Interrupted, fail)
        self.assert_as_before()

    def test_a_run_that_was_killed(self):
        self.kernel.resize(10)
        killed = self.memory.hugepages(HUGEPAGES)
        killed.__enter__()
        self.assertEqual('10\n', (self.directory / 'hugepages-2048kB')
                         .read_text())
        with self.memory.hugepages(HUGEPAGES):
            self.assertEqual(BOTH_SIDES, self.kernel.size)
        self.assert_as_before(10)

    def test_a_guest_without_them(self):
        with self.memory.hugepages(HUGEPAGES) as check:
            self.kernel.use(ONE_SIDE - 1)
            error = self.assertRaises(engine.RigError, check)
        self.assertIn('has 127 pages of 2048 KiB', str(error))
        self.assertIn('not 128', str(error))

    def test_too_few_pages(self):
        self.kernel.most = 200
        self.assertEqual(
            f'256 free pages are needed in {self.kernel.pool}, and the '
            f'kernel makes no more than 200 of them: memory is in use, or '
            f'scattered', self.memory.obstacle(HUGEPAGES))
        self.assert_as_before()

    def test_too_little_memory_for_pages(self):
        self.kernel.make_available(1000)
        found = self.memory.obstacle(HUGEPAGES)
        self.assertIn('1000 MiB of memory are available', found)
        self.assertIn('1024 MiB are needed', found)

    def test_a_kernel_without_hugepages(self):
        self.memory = memory.Memory(self.directory, self.kernel.meminfo,
                                    self.directory / 'gone')
        self.assertEqual(
            f'the kernel has no pages of 2048 KiB: there is no '
            f'{self.directory}/gone/hugepages-2048kB',
            self.memory.obstacle(HUGEPAGES))

    def test_a_kernel_that_refuses(self):
        self.kernel.error = OSError(errno.EINVAL, 'Invalid argument')
        found = self.memory.obstacle(HUGEPAGES)
        self.assertIn('nr_hugepages cannot be set to', found)
        self.assertIn('Invalid argument', found)
