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
import json
import math
import os
import selectors
import time
import typing as ty
import weakref

import libvirt
from oslo_log import log as logging

from nova_fastmig import blackout
from nova_fastmig import model
from nova_fastmig import qmp

LOG = logging.getLogger(__name__)

# The thread that calls libvirt starts before the one that watches. A job that
# is older than both by this much is not the one that is watched.
_HEAD_START_S = 10

_QEMU_EVENTS = ('MIGRATION', 'STOP', 'RESUME')

# A migration has a dozen.
_MAX_MOMENTS = 256


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
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = 0.0 if self._items else deadline_s - time.monotonic()
            woken = self._selector.select(max(0.0, left_s))
            if woken:
                os.eventfd_read(self._wakeups)
            items = []
            while self._items:
                items.append(self._items.popleft())
            # A writer that comes to its second line only now, after an
            # earlier call has taken its item, wakes this one for nothing.
            if items or not woken:
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
class QemuCompleted:
    """The source's QEMU has nothing left to do; libvirt will end it soon.

    :ivar says: the data of its event
    """

    says: dict


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
        self._qemu_callback_ids: list[int] = []

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
        # libvirt does not note on a guest that somebody listens.
        for event in _QEMU_EVENTS:
            try:
                self._qemu_callback_ids.append(
                    qmp.api().qemuMonitorEventRegister(
                        self._connection, None, event, self._on_qemu, None))
            except libvirt.libvirtError as error:
                LOG.warning("No event %s of QEMU, so the blackout is "
                            "libvirt's figure, and the ports are bound to the "
                            "destination by Nova's post step: %s",
                            event, error)
        return self

    def __exit__(self, *exc_info):
        for callback_id in self._qemu_callback_ids:
            try:
                qmp.api().qemuMonitorEventDeregister(
                    self._connection, callback_id)
            except (libvirt.libvirtError, KeyError) as error:
                # KeyError: it is, but of two that were a connection's first
                # at the same time libvirt's Python may remember one only.
                LOG.debug("QEMU's events not deregistered: %s", error)
        for callback_id in self._callback_ids:
            try:
                self._connection.domainEventDeregisterAny(callback_id)
            except libvirt.libvirtError as error:
                # The connection broke; its callbacks are gone with it.
                LOG.debug('Event %d not deregistered: %s', callback_id, error)

    def hears_qemu(self) -> bool:
        """Whether nothing that QEMU said can have been missed so far."""
        try:
            return (len(self._qemu_callback_ids) == len(_QEMU_EVENTS) and
                    bool(self._connection.isAlive()))
        except libvirt.libvirtError:
            return False

    # These run in libvirt's event thread: no logging, no locks.

    def _on_iteration(self, connection, domain, number, opaque):
        if domain.UUIDString() == self._uuid:
            self._mailbox.put(Iteration(number))

    def _on_job_completed(self, connection, domain, stats, opaque):
        if domain.UUIDString() == self._uuid:
            self._mailbox.put(JobCompleted(stats))

    def _on_qemu(self, connection, domain, event, seconds, microseconds,
                 details, opaque):
        if domain.UUIDString() != self._uuid:
            return
        says = _details(details)
        name = says.get('status') if event == 'MIGRATION' else event.lower()
        if isinstance(name, str):
            self._mailbox.put(model.Moment(
                name, seconds * 1_000_000 + microseconds))
        if event == 'MIGRATION' and name == 'completed':
            self._mailbox.put(QemuCompleted(says))


def _details(text: str | None) -> dict:
    """What comes with an event of QEMU's; empty if it is none of that."""
    try:
        says = json.loads(text or '{}')
    except (ValueError, RecursionError):
        return {}
    return says if isinstance(says, dict) else {}


def _count(stats: ty.Mapping[str, ty.Any], name: str) -> int | None:
    """A statistic that cannot be negative, or None."""
    value = stats.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _milliseconds(times: ty.Mapping[str, ty.Any], name: str) -> float | None:
    """One of QEMU's times, after the stop of the guest."""
    start, end = _count(times, 'stop'), _count(times, name)
    if start is None or end is None or end < start:
        return None
    return (end - start) / 1e6


def to_blackout(times: ty.Mapping[str, ty.Any]) -> model.Blackout | None:
    """Read ``x-blackout`` of QEMU's query-migrate.

    :param times: nanoseconds, all of the source's clock
    :returns: None unless everything that cannot be missing is there
    """
    needed = [_milliseconds(times, name) for name in (
        'stopped', 'pages-sent', 'devices-sent')]
    error_ns = _count(times, 'clock-error')
    resumed = _milliseconds(times, 'resume')
    # Absent is one thing, impossible another.
    if (None in needed or error_ns is None or
            resumed is None and 'resume' in times):
        return None
    offset_ns = times.get('clock-offset')
    stopped, pages_sent, devices_sent = needed
    return model.Blackout(
        stopped_ms=stopped,
        pages_sent_ms=pages_sent,
        devices_sent_ms=devices_sent,
        pages_loaded_ms=_milliseconds(times, 'pages-loaded'),
        devices_loaded_ms=_milliseconds(times, 'devices-loaded'),
        resumed_ms=resumed,
        clock_error_ms=error_ns / 1e6,
        clock_offset_ms=(offset_ns / 1e6 if type(offset_ns) is int
                         else None))


# Of query-migrate, and of the event MIGRATION at the end.
_QEMU_FIGURES = {'x-blackout', 'x-features'}


def _agreed(qemu: ty.Mapping[str, ty.Any]) -> \
        frozenset[model.QemuFeature] | None:
    """Read ``x-features`` of QEMU's query-migrate; it is absent for none."""
    if not qemu:
        return None
    features = qemu.get('x-features')
    if not isinstance(features, list):
        features = []
    return frozenset(feature for feature in model.QemuFeature
                     if feature in features)


def to_completed(stats: ty.Mapping[str, ty.Any],
                 qemu: ty.Mapping[str, ty.Any],
                 moments: ty.Sequence[model.Moment] = ()) -> model.Completed:
    """Read the statistics of a migration that moved the guest.

    libvirt's ``downtime`` runs from the source's stop to the end of libvirt's
    Finish at the destination, which starts the vCPUs there unless QEMU has
    done that before; ``time_elapsed`` from the start of the job to its end.

    :param stats: libvirt's
    :param qemu: what the source's QEMU said at its end; empty if nothing is
        known of it
    :param moments: of the source's QEMU
    """
    downtime_ms = _count(stats, 'downtime')
    total_ms = _count(stats, 'time_elapsed')
    if None not in (downtime_ms, total_ms) and downtime_ms > total_ms:
        LOG.warning('A downtime of %d ms in a migration of %d ms cannot be, '
                    'so neither is known', downtime_ms, total_ms)
        downtime_ms = total_ms = None
    times = qemu.get('x-blackout')
    if not isinstance(times, dict):
        times = {}
    return model.Completed(
        model.Outcome.COMPLETED, reason='',
        downtime_ms=downtime_ms,
        total_ms=total_ms,
        blackout=to_blackout(times),
        agreed_features=_agreed(qemu),
        # QEMU's average over the whole migration, once that is completed.
        bandwidth_bytes_per_s=_count(stats, 'memory_bps'),
        # A guest that was paused before, as force-complete does it, stays so
        # until libvirt starts it.
        resumed_by_qemu='resume' in times if times else None,
        moments=tuple(moments))


class Watch:
    """One migration from its start to its end.

    :param guest: FastGuest
    :param total_limit_ms: when to look even if nothing happens
    :param poll_interval_s: how long to wait for an event
    :param is_patched: the source's QEMU has more to tell than others
    """

    def __init__(self, guest, mailbox: Mailbox, total_limit_ms: int,
                 poll_interval_s: float, is_patched: bool = False):
        self._guest = guest
        self._moments: collections.deque[model.Moment] = collections.deque(
            maxlen=_MAX_MOMENTS)
        self._mailbox = mailbox
        self._total_limit_s = total_limit_ms / 1000
        self._poll_interval_s = poll_interval_s
        self._is_patched = is_patched
        self._made_s = self._started_s = time.monotonic()
        self._has_jobs_clock = False
        self._completed: JobCompleted | None = None
        self._qemu: dict = {}
        self._looked_s = self._made_s
        self._look_in_ms: float | None = None

    @property
    def moments(self) -> tuple[model.Moment, ...]:
        """What the source's QEMU has said, in the order in which it came."""
        return tuple(self._moments)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _set_clock(self, job_elapsed_ms: int | None) -> None:
        """Count from libvirt's start, which is later than ours.

        A job has one start: a figure that says it was later than an earlier
        figure said is wrong, and so is one from long before us.
        """
        if job_elapsed_ms is None:
            return
        now_s = time.monotonic()
        started_s = now_s - job_elapsed_ms / 1000
        if started_s < self._made_s - _HEAD_START_S:
            LOG.warning("libvirt's job cannot run for %d ms, counting without "
                        'it', job_elapsed_ms)
        elif not self._has_jobs_clock or started_s < self._started_s:
            self._started_s = started_s
            self._has_jobs_clock = True

    def _timeout_s(self) -> float:
        since_s = time.monotonic() - self._looked_s
        until_s = [self._total_limit_s - self._elapsed_s()]
        if self._look_in_ms is not None and self._look_in_ms > 0:
            # One that has passed since the look is still to be seen.
            until_s.append(max(1e-9, self._look_in_ms / 1000 - since_s))
        # Just past the deadline, so that the policy sees it as over.
        return max(0.0, min(
            self._poll_interval_s - since_s,
            *(each + 0.001 for each in until_s if each > 0), math.inf))

    def _ask_qemu(self, item: QemuCompleted) -> None:
        """Keep what a patched QEMU has to tell at its end.

        One whose event says nothing has to be asked, and it lives for as long
        as libvirt's last step at the destination takes: it is often gone.
        """
        if not self._is_patched:
            return
        self._qemu = (item.says if item.says.keys() & _QEMU_FIGURES
                      else self._guest.query_migrate())
        LOG.debug('QEMU says at its end: %s', self._qemu)

    def _keep(self, item: ty.Any) -> None:
        """Keep what says something of the migration, whenever it comes."""
        if isinstance(item, JobCompleted):
            self._completed = item
        elif isinstance(item, QemuCompleted):
            self._ask_qemu(item)
        elif isinstance(item, model.Moment):
            self._moments.append(item)

    def run(self, look: ty.Callable[[float, dict], float | None],
            switched: ty.Callable[[], None] = lambda: None) -> Ended:
        """Call ``look`` on each event and poll, and at the deadline.

        Not on events of QEMU's own, which are only kept.

        :param look: gets the milliseconds since libvirt's start and libvirt's
            statistics of the job, empty if there are none. It may return the
            milliseconds until another deadline
        :param switched: called when the source's QEMU has given the guest
            away; must not block
        :returns: when the migration call has returned
        """
        while True:
            ended = None
            items = self._mailbox.take(self._timeout_s())
            # All of them: the statistics can come together with the end.
            for item in items:
                if isinstance(item, Ended):
                    ended = item
                elif isinstance(item, QemuCompleted):
                    switched()
                self._keep(item)
            if ended is not None:
                return ended
            if items and all(isinstance(item, model.Moment | QemuCompleted)
                             for item in items):
                # Most of them come while the guest stands still: whoever asks
                # libvirt and QEMU something now makes that longer.
                continue
            stats = self._guest.job_stats()
            self._set_clock(_count(stats, 'time_elapsed'))
            self._look_in_ms = look(self._elapsed_s() * 1000, stats)
            self._looked_s = time.monotonic()

    def completed(self, timeout_s: float) -> model.Completed:
        """The statistics of a migration that has moved the guest.

        libvirt sends its own when it has torn the source down, which can be
        after the migration call has returned. A busy host hands them over
        late, and what QEMU said before them too.

        :param timeout_s: how long to wait for them
        """
        deadline_s = time.monotonic() + timeout_s
        while self._completed is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return to_completed({}, self._qemu, self._moments)
            for item in self._mailbox.take(left_s):
                self._keep(item)
        return to_completed(self._completed.stats, self._qemu, self._moments)

    def stayed(self, outcome: model.Outcome, reason: str, timeout_s: float,
               hears_qemu: bool) -> model.Completed:
        """The end of a migration that has not moved the guest.

        :param timeout_s: how long to wait for the event that the guest goes
            on, if it was stopped; it can come after the call has returned
        :param hears_qemu: whether that can be heard
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            is_over = (left_s <= 0 or
                       blackout.source_pause_ms(self._moments) is not None)
            items = self._mailbox.take(0 if is_over else left_s)
            self._moments.extend(
                item for item in items if isinstance(item, model.Moment))
            if is_over:
                return model.Completed(
                    outcome, reason, None, None,
                    moments=tuple(self._moments) if hears_qemu else None)
