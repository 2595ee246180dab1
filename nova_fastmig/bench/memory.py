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

"""The machine's memory, which the lab's hosts share.

A guest that is migrated has its memory on both sides: with ordinary pages what
it has touched, which is not all of a large one. One with hugepages gets
them out of the kernel's pool, which grows for its turn and is as large as it
was afterwards.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import pathlib

from nova_fastmig.bench import engine
from nova_fastmig.bench import scenario

MEMINFO = pathlib.Path('/proc/meminfo')
HUGEPAGES = pathlib.Path('/sys/kernel/mm/hugepages')
SIDES = 2
# what two QEMUs need beside the guest's memory, and some for everything else
RESERVE_MIB = 512


class _Pool:
    """The kernel's pool of pages of one size.

    :param kept: a file with the size that the pool had, as long as it has
        another: whoever changed it may be killed (lab/down looks there, too)
    """

    def __init__(self, directory: pathlib.Path, kept: pathlib.Path):
        self.directory, self._kept = directory, kept

    def _read(self, name: str) -> int:
        return int((self.directory / name).read_text())

    @property
    def size(self) -> int:
        """Without pages that exist only as long as they are used."""
        return self._read('nr_hugepages') - self._read('surplus_hugepages')

    @property
    def free(self) -> int:
        return self._read('free_hugepages') - self._read('resv_hugepages')

    @property
    def used(self) -> int:
        return self._read('nr_hugepages') - self._read('free_hugepages')

    def missing(self, needed: int) -> int:
        """How many pages are to be added for so many to be free."""
        return max(0, needed - self.free)

    def _resize(self, pages: int) -> None:
        file = self.directory / 'nr_hugepages'
        try:
            file.write_text(f'{pages}\n')
        except OSError as error:
            raise engine.RigError(f'{file} cannot be set to {pages}: '
                                  f'{error.strerror}') from error

    def provide(self, needed: int) -> None:
        """Add pages until so many are free.

        :raises: engine.RigError
        """
        size, missing = self.size, self.missing(needed)
        self._kept.write_text(f'{size}\n')
        self._resize(size + missing)
        if self.size < size + missing:
            raise engine.RigError(
                f'{needed} free pages are needed in {self.directory}, and '
                f'the kernel makes no more than {self.free} of them: memory '
                f'is in use, or scattered')

    def restore(self) -> None:
        """Make the pool as large as it was."""
        if self._kept.exists():
            # pages that are still in use go when they are not any more
            self._resize(int(self._kept.read_text()))
            self._kept.unlink()


class Memory:
    """Is there enough of it, and hugepages for a turn.

    :param directory: of files that are kept while something is lent
    """

    def __init__(self, directory: pathlib.Path,
                 meminfo: pathlib.Path = MEMINFO,
                 hugepages: pathlib.Path = HUGEPAGES):
        self._directory = directory
        self._meminfo, self._hugepages = meminfo, hugepages

    def _pool(self, guest: scenario.Guest) -> _Pool:
        name = f'hugepages-{guest.page_kib}kB'
        return _Pool(self._hugepages / name, self._directory / name)

    def _mib(self, name: str) -> int:
        fields = dict(line.split(':') for line
                      in self._meminfo.read_text().splitlines())
        return int(fields[name].split()[0]) // 1024

    @property
    def total_mib(self) -> int:
        """Of the machine."""
        return self._mib('MemTotal')

    def obstacle(self, guest: scenario.Guest) -> str | None:
        """Why the machine has no memory for a guest; None if it has."""
        needed_mib = guest.touched_mib * SIDES
        if guest.hugepages:
            pool = self._pool(guest)
            if not pool.directory.is_dir():
                return (f'the kernel has no pages of {guest.page_kib} KiB: '
                        f'there is no {pool.directory}')
            missing = pool.missing(guest.hugepages * SIDES)
            # those that the pool has already are not available memory
            needed_mib = missing * guest.page_kib // 1024
        available_mib = self._mib('MemAvailable')
        if available_mib < needed_mib + RESERVE_MIB:
            return (f'{available_mib} MiB of memory are available '
                    f'({self._meminfo}), {needed_mib + RESERVE_MIB} MiB are '
                    f'needed: {needed_mib // SIDES} MiB of the guest on both '
                    f'sides, and {RESERVE_MIB} MiB')
        try:
            with self.hugepages(guest):
                return None
        except engine.RigError as error:
            return str(error)

    @contextlib.contextmanager
    def hugepages(self, guest: scenario.Guest
                  ) -> Iterator[Callable[[], None]]:
        """Free hugepages for a guest on both sides while the block runs.

        The block gets a function for when the guest runs, which raises
        RigError if its memory is something else. A guest with the machine's
        ordinary pages needs nothing.

        :raises: engine.RigError
        """
        if not guest.hugepages:
            yield lambda: None
            return
        pool = self._pool(guest)
        # what a run that was killed has left
        pool.restore()
        used = pool.used

        def check() -> None:
            found = pool.used - used
            if found < guest.hugepages:
                raise engine.RigError(
                    f'the guest has {found} pages of {guest.page_kib} KiB '
                    f'({pool.directory}), not {guest.hugepages}')

        try:
            pool.provide(guest.hugepages * SIDES)
            yield check
        finally:
            pool.restore()
