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

"""Who may use how much of a host's migration bandwidth. Pure.

Migrations that run at the same time on one host share its network. Each
reserves what it needs, and starts when that is free, so that a later one
cannot take from an earlier one what its SLA depends on.
"""

import dataclasses
import math

# A guest goes on writing while its memory is sent. Twice the bandwidth that
# would send all of it once within the time leaves half of the time for that.
HEADROOM = 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """A reservation, or the wish for one.

    :ivar holder: what the migration is known by; its server's UUID
    :ivar until_s: when it ends without being given back, on the clock that
        the caller uses; infinity for never
    """

    holder: str
    bytes_per_s: int
    until_s: float = math.inf


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The reservations of one host.

    :ivar granted: together never more than the capacity
    :ivar waiting: in the order in which they came; nobody overtakes, so one
        that needs much gets its turn
    """

    capacity_bytes_per_s: int
    granted: tuple[Entry, ...] = ()
    waiting: tuple[Entry, ...] = ()

    @property
    def free_bytes_per_s(self) -> int:
        return self.capacity_bytes_per_s - sum(
            entry.bytes_per_s for entry in self.granted)

    def grant_to(self, holder: str) -> Entry | None:
        """The reservation of a migration; None if it has none (yet)."""
        for entry in self.granted:
            if entry.holder == holder:
                return entry
        return None


def needed_bytes_per_s(memory_bytes: int, max_total_ms: int) -> int:
    """What a migration must have to keep its total time.

    :param memory_bytes: of the guest
    """
    return math.ceil(HEADROOM * memory_bytes * 1000 / max_total_ms)


def _serve(ledger: Ledger) -> Ledger:
    """Grant what fits, in the order of waiting."""
    granted, waiting = list(ledger.granted), list(ledger.waiting)
    free = ledger.free_bytes_per_s
    while waiting and waiting[0].bytes_per_s <= free:
        free -= waiting[0].bytes_per_s
        granted.append(waiting.pop(0))
    return dataclasses.replace(ledger, granted=tuple(granted),
                               waiting=tuple(waiting))


def ask(ledger: Ledger, entry: Entry) -> Ledger:
    """Reserve, or wait behind those that wait already.

    One that needs more than there is gets all of it, and so is alone. What
    the same holder had or wanted before is void.
    """
    left = leave(ledger, entry.holder)
    entry = dataclasses.replace(entry, bytes_per_s=min(
        entry.bytes_per_s, ledger.capacity_bytes_per_s))
    return _serve(dataclasses.replace(
        left, waiting=(*left.waiting, entry)))


def leave(ledger: Ledger, holder: str) -> Ledger:
    """Give back a reservation, or wait no more; either may let others in."""
    return _serve(dataclasses.replace(
        ledger, **{name: tuple(entry for entry in getattr(ledger, name)
                               if entry.holder != holder)
                   for name in ('granted', 'waiting')}))


def renew(ledger: Ledger, holder: str, until_s: float) -> Ledger:
    """Let a reservation end at another time."""
    return dataclasses.replace(ledger, granted=tuple(
        dataclasses.replace(entry, until_s=until_s)
        if entry.holder == holder else entry for entry in ledger.granted))


def expire(ledger: Ledger, now_s: float) -> Ledger:
    """End what was not given back in its time."""
    return _serve(dataclasses.replace(
        ledger, granted=tuple(entry for entry in ledger.granted
                              if entry.until_s > now_s)))
