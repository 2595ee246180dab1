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

"""Reserves this host's migration bandwidth, see ``ledger``."""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import threading
import time

from oslo_config import cfg

from nova_fastmig import exception
from nova_fastmig import ledger

OPTS = [
    cfg.IntOpt(
        'migration_bandwidth_mib_s', default=0, min=0,
        help="""
Bandwidth, in MiB per second, that migrations of tagged servers from or to this
host share by reservation. 0 reserves nothing: migrations that run at the same
time then slow each other down.

Set it to what the network of ``[libvirt]live_migration_inbound_addr`` really
carries, less what other traffic there needs. Migrations of untagged servers
reserve nothing; ``[libvirt]live_migration_bandwidth`` limits each of them.
"""),
    cfg.IntOpt(
        'migration_bandwidth_wait_s', default=60, min=0,
        help="""
How long, in seconds, a migration waits at the source until the bandwidth that
it needs is free; then it is refused. 0 refuses at once. The time is not part
of ``fastmig:max_total_ms``. A destination without room is never waited for:
Nova tries another one.
"""),
]

_MIB = 1 << 20


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_opts(OPTS, group='fastmig')


@dataclasses.dataclass(frozen=True)
class Grant:
    """Bandwidth for one migration.

    :ivar bytes_per_s: None where nothing is reserved on this host
    :ivar waited_ms: until it was free
    """

    bytes_per_s: int | None
    waited_ms: int


class Reservations:
    """The migration bandwidth of one host.

    :param host: its name, for messages
    :param capacity_bytes_per_s: 0 for a host on which nothing is reserved
    """

    def __init__(self, host: str, capacity_bytes_per_s: int):
        self._host = host
        self._ledger = ledger.Ledger(capacity_bytes_per_s)
        self._changed = threading.Condition()

    @classmethod
    def configured(cls, conf: cfg.ConfigOpts) -> 'Reservations':
        """The one that ``[fastmig]`` describes."""
        register_opts(conf)
        return cls(conf.host, conf.fastmig.migration_bandwidth_mib_s * _MIB)

    @contextlib.contextmanager
    def hold(self, holder: str, bytes_per_s: int,
             wait_s: float) -> Iterator[Grant]:
        """Have bandwidth for the time of a migration; at the source.

        :param wait_s: until it is free
        :raises: PlanRefused if it is not free by then
        """
        grant = self.take(holder, bytes_per_s, wait_s)
        try:
            yield grant
        finally:
            self.give_back(holder)

    def take(self, holder: str, bytes_per_s: int, wait_s: float = 0,
             lease_s: float = math.inf) -> Grant:
        """Have bandwidth until ``give_back``; at the destination.

        :param lease_s: when it is free again without ``give_back``: the
            source that would cause that may be dead
        :raises: PlanRefused if it is not free after ``wait_s``
        """
        if not self._ledger.capacity_bytes_per_s:
            return Grant(None, 0)
        began_s = time.monotonic()
        with self._changed:
            self._update(ledger.ask(
                ledger.expire(self._ledger, began_s),
                ledger.Entry(holder, bytes_per_s, began_s + lease_s)))
            try:
                while (entry := self._ledger.grant_to(holder)) is None:
                    now_s = time.monotonic()
                    if now_s >= began_s + wait_s:
                        raise self._refusal(bytes_per_s, wait_s)
                    self._changed.wait(min(
                        began_s + wait_s,
                        *(each.until_s for each in self._ledger.granted)
                    ) - now_s)
                    self._update(ledger.expire(self._ledger,
                                               time.monotonic()))
            except BaseException:
                self._update(ledger.leave(self._ledger, holder))
                raise
        return Grant(entry.bytes_per_s,
                     round((time.monotonic() - began_s) * 1000))

    def renew(self, holder: str, lease_s: float) -> None:
        """Count the lease anew; nothing happens to who has nothing."""
        with self._changed:
            self._update(ledger.renew(self._ledger, holder,
                                      time.monotonic() + lease_s))

    def give_back(self, holder: str) -> None:
        """Free what a migration had; nothing happens if it had nothing."""
        with self._changed:
            self._update(ledger.leave(self._ledger, holder))

    def _update(self, changed: ledger.Ledger) -> None:
        if changed.granted != self._ledger.granted:
            self._changed.notify_all()
        self._ledger = changed

    def _refusal(self, bytes_per_s: int,
                 wait_s: float) -> exception.PlanRefused:
        now = self._ledger
        return exception.PlanRefused([
            f'the migration needs {bytes_per_s / _MIB:.0f} MiB/s, but of the '
            f'{now.capacity_bytes_per_s / _MIB:.0f} MiB/s that host '
            f'{self._host} has for migrations '
            f'([fastmig]migration_bandwidth_mib_s) only '
            f'{now.free_bytes_per_s / _MIB:.0f} are free, with '
            f'{len(now.granted)} running and {len(now.waiting) - 1} waiting '
            f'before it; waited for {wait_s:g} s'])
