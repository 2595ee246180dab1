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

"""A durable file of reports: one JSON object per line.

A record is on the disk when ``append`` returns. A crash can leave the last
line torn; it is left out when the journal is read, and the next record begins
on a line of its own.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import threading
import typing as ty

from oslo_config import cfg
from oslo_log import log as logging

from nova_fastmig import durable

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'journal_path', default='$state_path/fastmig/journal.jsonl',
        help="""
File of the sink ``journal``, which keeps the report of every migration that
left this host, one JSON object per line. ``nova-fastmig report`` reads it.
The directory is made if it is missing. Older files have ``.1``, ``.2``, ...
at the end of their name.
"""),
    cfg.IntOpt(
        'journal_max_bytes', default=10 * 1024 * 1024, min=4096,
        help="""
Size, in bytes, at which the journal is renamed and a new one begun. A report
has one or two KiB. A single report that is larger gets a file of its own.
"""),
    cfg.IntOpt(
        'journal_backup_count', default=5, min=0, max=1000,
        help="""
How many older files of the journal are kept. With 0 a full journal is
deleted, so that only the reports since then are there.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_opts(OPTS, group='fastmig')


class Journal:
    """The journal of one host, written by one process.

    :param path: of the file that records are added to
    :param max_bytes: a file that would grow beyond it is rotated first
    :param backup_count: of rotated files to keep
    """

    def __init__(self, path: str | os.PathLike, max_bytes: int,
                 backup_count: int):
        self._path = pathlib.Path(path)
        self._max_bytes = max_bytes
        self._backup_count = backup_count
        # Migrations end in threads of their own.
        self._lock = threading.Lock()

    @classmethod
    def configured(cls, conf: cfg.ConfigOpts) -> 'Journal':
        """The one that ``[fastmig]`` describes."""
        register_opts(conf)
        return cls(conf.fastmig.journal_path, conf.fastmig.journal_max_bytes,
                   conf.fastmig.journal_backup_count)

    def append(self, record: Mapping[str, ty.Any]) -> None:
        """Add a record; it is durable when this returns.

        :raises: OSError; TypeError or ValueError for what JSON has no form for
        """
        # NaN and infinity have none, although json writes them by default.
        line = json.dumps(record, allow_nan=False).encode() + b'\n'
        with self._lock:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                size = self._path.stat().st_size
                if size and size + len(line) > self._max_bytes:
                    self._rotate()
            self._write(line)

    def _backup(self, number: int) -> pathlib.Path:
        return self._path.with_name(f'{self._path.name}.{number}')

    def _rotate(self) -> None:
        """Rename from the oldest on: a crash leaves a gap, never a loss."""
        if not self._backup_count:
            self._path.unlink()
            return
        for number in range(self._backup_count - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._backup(number).replace(self._backup(number + 1))
        self._path.replace(self._backup(1))

    def _write(self, line: bytes) -> None:
        is_new = not self._path.exists()
        descriptor = os.open(
            self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC,
            0o640)
        with open(descriptor, 'ab', buffering=0) as file:
            size = file.tell()
            if size and os.pread(descriptor, 1, size - 1) != b'\n':
                line = b'\n' + line
            while line:
                line = line[file.write(line):]
            os.fsync(descriptor)
        if is_new:
            durable.sync_directory(self._path.parent)

    def __iter__(self) -> Iterator[dict[str, ty.Any]]:
        """All records, the oldest first; also while others are added.

        Lines that are no JSON object are left out and logged.
        """
        with contextlib.ExitStack() as stack:
            for path, file in reversed(self._open_all(stack)):
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        record = None
                    if isinstance(record, dict):
                        yield record
                    else:
                        LOG.warning('%s, line %d: not a record, left out',
                                    path, number)

    def _open_all(self, stack: contextlib.ExitStack) -> list[
            tuple[pathlib.Path, ty.BinaryIO]]:
        """Open the files, the newest first.

        In this order a rotation in between makes a file appear twice, which
        its inode tells, and never not at all.
        """
        prefix = f'{self._path.name}.'
        numbers = []
        with contextlib.suppress(FileNotFoundError):
            numbers = sorted(
                int(name.removeprefix(prefix))
                for name in os.listdir(self._path.parent)
                if name.startswith(prefix) and
                name.removeprefix(prefix).isdecimal())
        # One more: a rotation may add it between the listing and the opening.
        numbers.append(numbers[-1] + 1 if numbers else 1)
        opened, inodes = [], set()
        for path in [self._path, *map(self._backup, numbers)]:
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(open(path, 'rb'))
                status = os.fstat(file.fileno())
                inode = status.st_dev, status.st_ino
                if inode not in inodes:
                    inodes.add(inode)
                    opened.append((path, file))
        return opened
