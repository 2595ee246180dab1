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


"""What QEMU said while it migrated -> the parts of the blackout. Pure."""

from collections.abc import Sequence
import math

from nova_fastmig import model

STOP = 'stop'
RESUME = 'resume'
# QEMU's statuses of a migration, from the stop of the guest on.
PRE_SWITCHOVER = 'pre-switchover'
DEVICE = 'device'
COMPLETED = 'completed'

# In a switchover the source's QEMU has one of these.
_SWITCHOVER = frozenset({PRE_SWITCHOVER, DEVICE, COMPLETED})

# Whatever says that a switchover took longer is wrong: a clock was set.
_ABSURD_MS = 86_400_000


def is_foreign_stop(moments: Sequence[model.Moment]) -> bool:
    """Whether something else than the switchover has stopped the guest.

    QEMU says that the guest has stopped and then, in a switchover, that it is
    in one. Where it has not said the first, libvirt has to be believed.

    :param moments: in the order in which they came
    """
    is_foreign = False
    for moment in moments:
        if moment.name == STOP:
            is_foreign = True
        elif moment.name == RESUME or moment.name in _SWITCHOVER:
            is_foreign = False
    return is_foreign


def _ms(earlier: model.Moment, later: model.Moment) -> float | None:
    """Between two moments; None if that cannot be right."""
    ms = (later.at_us - earlier.at_us) / 1000
    return ms if 0 <= ms <= _ABSURD_MS else None


def source_pause_ms(moments: Sequence[model.Moment] | None) -> float | None:
    """How long a guest stood still that is at the source in the end.

    :param moments: in the order in which they came; None if its QEMU could
        not be heard
    :returns: 0 if it was never stopped; None if that is not known: nothing
        was heard, it still stands, or a time is wrong
    """
    if moments is None:
        return None
    total_ms, stopped = 0.0, None
    for moment in moments:
        if moment.name == STOP and stopped is None:
            stopped = moment
        elif moment.name == RESUME and stopped is not None:
            ms = _ms(stopped, moment)
            if ms is None:
                return None
            total_ms, stopped = total_ms + ms, None
    return total_ms if stopped is None else None


def _since_stop(moments: Sequence[model.Moment]) -> dict[str, float]:
    """Milliseconds from the switchover's stop to what came after it."""
    stop, after = None, {}
    for moment in moments:
        if moment.name == RESUME:
            stop, after = None, {}
        elif moment.name == STOP and stop is None:
            stop = moment
        elif stop is not None and moment.name not in after:
            after[moment.name] = moment
    since = {name: _ms(stop, moment) for name, moment in after.items()}
    return {name: ms for name, ms in since.items() if ms is not None}


def _between(earlier_ms: float | None, later_ms: float | None) -> float | None:
    """How long a part took; None if an end of it is not known."""
    if earlier_ms is None or later_ms is None:
        return None
    return max(0.0, later_ms - earlier_ms)


def _sum(*parts_ms: float | None) -> float | None:
    return None if None in parts_ms else math.fsum(parts_ms)


def split(completed: model.Completed) -> model.BlackoutParts | None:
    """Take a blackout apart.

    The source's events have times of the source, and so has what the patched
    QEMU tells of both ends. Without the latter nothing is taken from the
    destination: the end is that of libvirt's downtime.

    :returns: None if nothing is known of it
    """
    events = _since_stop(completed.moments or ())
    # libvirt lets QEMU wait with the guest stopped, unless that waits for
    # nobody (x-direct-switchover).
    asked_ms = _between(events.get(PRE_SWITCHOVER), events.get(DEVICE))
    if asked_ms is None and DEVICE in events:
        asked_ms = 0.0
    told = completed.blackout
    if told is None:
        if not events:
            return None
        sent_ms = events.get(COMPLETED)
        return model.BlackoutParts(
            qemu_stop_ms=events.get(PRE_SWITCHOVER, events.get(DEVICE)),
            transfer_ms=_between(events.get(DEVICE), sent_ms),
            # libvirt counts whole milliseconds.
            libvirt_handover_ms=_sum(asked_ms, _between(
                sent_ms, completed.downtime_ms)))
    waited_ms = min(asked_ms or 0.0,
                    _between(told.stopped_ms, told.pages_sent_ms))
    loaded_ms = told.devices_loaded_ms
    pages_ms = _between(told.stopped_ms + waited_ms, told.pages_sent_ms)
    devices_ms = _between(told.pages_sent_ms, told.devices_sent_ms)
    load_ms = _between(told.devices_sent_ms, loaded_ms)
    if told.resumed_ms is None:
        # It did not resume before libvirt said so.
        after_ms, resume_ms = _between(loaded_ms, completed.downtime_ms), None
    else:
        after_ms, resume_ms = 0.0, _between(loaded_ms, told.resumed_ms)
    return model.BlackoutParts(
        qemu_stop_ms=told.stopped_ms,
        last_pages_ms=pages_ms,
        device_state_ms=devices_ms,
        destination_load_ms=load_ms,
        transfer_ms=_sum(pages_ms, devices_ms, load_ms),
        libvirt_handover_ms=_sum(waited_ms, after_ms),
        resume_ms=resume_ms,
        clock_offset_ms=told.clock_offset_ms,
        clock_error_ms=told.clock_error_ms)
