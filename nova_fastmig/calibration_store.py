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

"""Keeps the calibration of this host in a file."""

import json
import math
import pathlib
import threading
import time

from oslo_config import cfg
from oslo_log import log as logging

from nova_fastmig import calibration
from nova_fastmig import durable
from nova_fastmig import model

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'calibration_path', default='$state_path/fastmig/calibration.json',
        help="""
File in which nova-compute keeps what it has learned from finished migrations:
for each destination, the part of the blackout that does not depend on memory,
and the bandwidth. Delete it, with nova-compute stopped, to begin anew.
"""),
    cfg.IntOpt(
        'calibration_max_age_s', default=86400, min=0,
        help="""
For how long, in seconds, a finished migration teaches something about the next
ones. 0 makes no use of what was learned: QEMU's limit is then
``fastmig:max_downtime_ms`` itself, and none is refused for it.
"""),
    cfg.IntOpt(
        'calibration_retry_s', default=3600, min=0,
        help="""
Where the SLA is shorter than what was learned, migrations are refused. This
many seconds after the last one between the two hosts a single one is done
nevertheless, to see whether that is still so; its verdict says that it was a
trial. 0 tries none: migrations are refused until what was learned is older
than ``calibration_max_age_s``.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_opts(OPTS, group='fastmig')


class Store:
    """The calibration of the migrations that leave this host.

    :param path: of its file
    :param max_age_s: see ``calibration.estimate``
    :param retry_s: see ``calibration.next_trial_s``
    """

    def __init__(self, path: str, max_age_s: float,
                 retry_s: float = math.inf):
        self._path = pathlib.Path(path)
        self._max_age_s = max_age_s
        self._retry_s = retry_s
        # Migrations run in threads of their own.
        self._lock = threading.Lock()
        self._table = self._read()

    @classmethod
    def configured(cls, conf: cfg.ConfigOpts) -> 'Store':
        """The one that ``[fastmig]`` describes."""
        register_opts(conf)
        return cls(conf.fastmig.calibration_path,
                   conf.fastmig.calibration_max_age_s,
                   conf.fastmig.calibration_retry_s or math.inf)

    def _read(self) -> calibration.Table:
        try:
            return calibration.from_json(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            LOG.warning('Cannot read %s, so nothing is known from earlier '
                        'migrations: %s', self._path, error)
            return {}

    def add(self, pair: calibration.Pair, versions: calibration.Versions,
            fixed_ms: float, bandwidth_bytes_per_s: float) -> None:
        """Learn from a migration that is finished now.

        It is known until nova-compute ends even if the file cannot be
        written.
        """
        observation = calibration.Observation(
            time.time(), fixed_ms, bandwidth_bytes_per_s)
        with self._lock:
            self._table = calibration.add(
                self._table, pair, versions, observation)
            self._write()

    def _write(self) -> None:
        content = json.dumps(calibration.to_json(self._table), indent=1)
        try:
            durable.replace(self._path, content.encode() + b'\n')
        except OSError as error:
            LOG.warning('Cannot write %s: %s', self._path, error)

    def estimate(self, pair: calibration.Pair,
                 versions: calibration.Versions
                 ) -> model.Estimate | None:
        """What to expect of the next migration."""
        return calibration.estimate(self._table, pair, versions, time.time(),
                                    self._max_age_s)

    def is_trial_due(self, pair: calibration.Pair,
                     versions: calibration.Versions) -> bool:
        """Whether a migration without hope may be tried now."""
        return calibration.is_trial_due(
            self._table, pair, versions, time.time(), self._retry_s)

    def begin_trial(self, pair: calibration.Pair,
                    versions: calibration.Versions) -> bool:
        """Try one now.

        :returns: False if it may not be, for example because another one has
            just begun
        """
        with self._lock:
            if not self.is_trial_due(pair, versions):
                return False
            self._table = calibration.begin_trial(self._table, pair,
                                                  time.time())
            self._write()
            return True

    def next_trial_s(self, pair: calibration.Pair) -> float:
        """When one may be tried again, in seconds since the epoch."""
        return calibration.next_trial_s(self._table[pair], self._retry_s)

    def pairs(self) -> dict[calibration.Pair, calibration.Versions]:
        """Those that something is known about, for the operator."""
        return {pair: record.versions
                for pair, record in self._table.items()}
