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

"""Follows one migration: events wake it up, polling stands behind them."""

import collections
import dataclasses
import os
import selectors
import time
import typing as ty
import weakref

import libvirt
from oslo_log import log as logging

from nova_fastmig import model

LOG = logging.getLogger(__name__)


class Mailbox:
    """Hands values to one waiting thread, from any thread.

    libvirt calls its callbacks in a native thread. Under eventlet that thread
    may not touch green locks, so the waiting thread sleeps on a descriptor,
    which works the same with eventlet and without. An eventfd never makes the
    writer wait, and eventlet leaves its calls alone.

    The descriptor lives as long as anyone can still put something in: closing
    it earlier could let a late event write into a file that has got its
    number.
    """

    def __init__(self):
        self._items: collections.deque = collections.deque()
        self._wakeups = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._wakeups)
        # eventlet replaces the default by one that it can wait with; without
        # eventlet it has no limit to the number of a descriptor.
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeups, selectors.EVENT_READ)
        weakref.finalize(self, self._selector.close)

    def put(self, item: ty.Any) -> None:
        self._items.append(item)
        os.eventfd_write(self._wakeups, 1)

    def take(self, timeout_s: float) -> list:
        """Wait for values.

        :returns: all that have come, in order; empty after the timeout
        """
        if self._items:
            timeout_s = 0.0
        if self._selector.select(max(0.0, timeout_s)):
            os.eventfd_read(self._wakeups)
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items


@dataclasses.dataclass(frozen=True)
class Ended:
    """The migration call has returned.

    :ivar error: what it raised, if anything
    """

    error: Exception | None


@dataclasses.dataclass(frozen=True)
class Iteration:
    """QEMU has begun another pass over the guest's memory."""

    number: int


@dataclasses.dataclass(frozen=True)
class JobCompleted:
    """libvirt's statistics of the finished job."""

    stats: dict


@dataclasses.dataclass(frozen=True)
class Wake:
    """Nothing but a reason to look."""


class Events:
    """libvirt's events about one domain, put into a Mailbox.

    A context manager; where libvirt refuses an event, polling has to do.

    :param connection: the virConnect that Nova's event loop serves
    :param uuid: of the domain
    """

    def __init__(self, connection, uuid: str, mailbox: Mailbox):
        self._connection = connection
        self._uuid = uuid
        self._mailbox = mailbox
        self._callback_ids: list[int] = []

    def __enter__(self):
        for event_id, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
                 self._on_iteration),
                (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                 self._on_job_completed)):
            try:
                self._callback_ids.append(
                    self._connection.domainEventRegisterAny(
                        None, event_id, callback, None))
            except libvirt.libvirtError as error:
                LOG.warning('No libvirt event %d, polling instead: %s',
                            event_id, error)
        return self

    def __exit__(self, *exc_info):
        for callback_id in self._callback_ids:
            try:
                self._connection.domainEventDeregisterAny(callback_id)
            except libvirt.libvirtError as error:
                # The connection broke; its callbacks are gone with it.
                LOG.debug('Event %d not deregistered: %s', callback_id, error)

    # These two run in libvirt's event thread: no logging, no locks.

    def _on_iteration(self, connection, domain, number, opaque):
        if domain.UUIDString() == self._uuid:
            self._mailbox.put(Iteration(number))

    def _on_job_completed(self, connection, domain, stats, opaque):
        if domain.UUIDString() == self._uuid:
            self._mailbox.put(JobCompleted(stats))


def _count(stats: ty.Mapping[str, ty.Any], name: str) -> int | None:
    """A statistic that cannot be negative, or None."""
    value = stats.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def to_completed(stats: ty.Mapping[str, ty.Any]) -> model.Completed:
    """Read libvirt's statistics of a migration that moved the guest.

    ``downtime`` runs from the source's stop to the end of libvirt's Finish at
    the destination, which starts the vCPUs there; ``time_elapsed`` from the
    start of the job to its end.
    """
    return model.Completed(
        model.Outcome.COMPLETED, reason='',
        downtime_ms=_count(stats, 'downtime'),
        total_ms=_count(stats, 'time_elapsed'))


class Watch:
    """One migration from its start to its end.

    :param guest: FastGuest
    :param total_limit_ms: when to look even if nothing happens
    :param poll_interval_s: how long to wait for an event
    """

    def __init__(self, guest, mailbox: Mailbox, total_limit_ms: int,
                 poll_interval_s: float):
        self._guest = guest
        self._mailbox = mailbox
        self._total_limit_s = total_limit_ms / 1000
        self._poll_interval_s = poll_interval_s
        self._started_s = time.monotonic()
        self._completed: JobCompleted | None = None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _timeout_s(self) -> float:
        until_deadline_s = self._total_limit_s - self._elapsed_s()
        # Just past the deadline, so that the policy sees it as over.
        if until_deadline_s > 0:
            return min(self._poll_interval_s, until_deadline_s + 0.001)
        return self._poll_interval_s

    def run(self, look: ty.Callable[[float, dict], None]) -> Ended:
        """Call ``look`` on each event and poll, and at the deadline.

        :param look: gets the milliseconds since libvirt's start and libvirt's
            statistics of the job, empty if there are none
        :returns: when the migration call has returned
        """
        while True:
            ended = None
            # All of them: the statistics can come together with the end.
            for item in self._mailbox.take(self._timeout_s()):
                if isinstance(item, Ended):
                    ended = item
                elif isinstance(item, JobCompleted):
                    self._completed = item
            if ended is not None:
                return ended
            stats = self._guest.job_stats()
            job_elapsed_ms = _count(stats, 'time_elapsed')
            if job_elapsed_ms is not None:
                # libvirt's start is later than ours, and the one that counts.
                self._started_s = time.monotonic() - job_elapsed_ms / 1000
            look(self._elapsed_s() * 1000, stats)

    def completed_stats(self, timeout_s: float) -> dict | None:
        """Statistics of the finished job, or None if they do not come.

        libvirt sends them when it has torn the source down, which can be
        after the migration call has returned.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._completed is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            for item in self._mailbox.take(left_s):
                if isinstance(item, JobCompleted):
                    self._completed = item
        return self._completed.stats
