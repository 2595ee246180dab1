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

"""What finished migrations teach about the next one. Pure.

A blackout has a part that does not depend on how much memory is left: QEMU's
device state, the destination's loading of it, libvirt's hand-over. It is
learned for each pair of hosts, and taken off the SLA before QEMU gets its
limit.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
import typing as ty

from nova_fastmig import model

# Of one pair of hosts; what is older goes.
WINDOW = 20
# Fewer say nothing.
MIN_OBSERVATIONS = 5
# Four of five migrations were as good as the estimate or better. Up to one of
# five can be an accident and changes nothing.
QUANTILE = 0.8
# One of five was as good as this or better. Only where not even that is good
# enough a migration is hopeless: what is observed without QEMU's own figures
# contains the last pages, so it is more than the fixed part, never less.
LEAST_QUANTILE = 0.2
# Of hosts that a host remembers.
MAX_PAIRS = 512

# Of the stored form.
FORMAT = 1


class Pair(ty.NamedTuple):
    """Names in Nova of the two ends of a migration."""

    source: str
    destination: str


class Versions(ty.NamedTuple):
    """What runs at the two ends, see ``describe``."""

    source: str
    destination: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """One finished migration.

    :ivar at_s: when, in seconds since the epoch
    :ivar fixed_ms: of the blackout, see ``fixed_part_ms``
    :ivar bandwidth_bytes_per_s: that memory was sent with
    """

    at_s: float
    fixed_ms: float
    bandwidth_bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class Record:
    """What is remembered of one pair.

    :ivar observations: the newest one last
    :ivar tried_at_s: when the last trial began, in seconds since the epoch
    """

    versions: Versions
    observations: tuple[Observation, ...]
    tried_at_s: float = 0.0


Table: ty.TypeAlias = Mapping[Pair, Record]


def describe(host: model.HostCaps, driver_version: str) -> str:
    """What of a host makes old observations worthless when it changes."""
    qemu, libvirt = ('.'.join(map(str, version)) for version in (
        host.qemu_version, host.libvirt_version))
    return (f'QEMU {qemu} {host.qemu_series or "as distributed"}, '
            f'libvirt {libvirt}, driver {driver_version}')


def fixed_part_ms(blackout_ms: float,
                  last_pages_ms: float | None) -> float:
    """The part of a blackout that a lower downtime limit does not shorten.

    :param last_pages_ms: that QEMU spent on memory while the guest stood
        still; None if that is unknown. It counts as nothing then, which makes
        the fixed part too long rather than too short
    """
    return max(0.0, blackout_ms - (last_pages_ms or 0.0))


def lesson(completed: model.Completed, early_resume: bool) -> \
        tuple[float, float] | None:
    """What a migration that moved the guest teaches.

    :param early_resume: the guest ran before libvirt had finished, so that
        libvirt's figure is too long
    :returns: the fixed part in ms and the bandwidth in bytes per second; None
        if a figure is missing
    """
    if not completed.bandwidth_bytes_per_s:
        return None
    told = completed.blackout
    last_pages_ms = (None if told is None else
                     max(0.0, told.pages_sent_ms - told.stopped_ms))
    if told is not None and told.resumed_ms is not None:
        blackout_ms = told.resumed_ms
    elif completed.downtime_ms is None or early_resume:
        return None
    else:
        blackout_ms = completed.downtime_ms
    return (fixed_part_ms(blackout_ms, last_pages_ms),
            completed.bandwidth_bytes_per_s)


def _is_possible(observation: Observation) -> bool:
    return (0 <= observation.at_s < math.inf and
            0 <= observation.fixed_ms < math.inf and
            0 < observation.bandwidth_bytes_per_s < math.inf)


def add(table: Table, pair: Pair, versions: Versions,
        observation: Observation) -> Table:
    """The table with one more observation.

    What was observed with other versions is forgotten; so is the pair that
    was not used for the longest time, if there are too many. An observation
    that cannot be right is left out.
    """
    if not _is_possible(observation):
        return table
    known = table.get(pair)
    if known is None or known.versions != versions:
        known = Record(versions, ())
    changed = {**table, pair: dataclasses.replace(
        known, observations=(*known.observations, observation)[-WINDOW:])}
    if len(changed) > MAX_PAIRS:
        del changed[min(
            (each for each in changed if each != pair),
            key=lambda each: changed[each].observations[-1].at_s)]
    return changed


def _quantile(figures: Iterable[float], part: float) -> float:
    """The smallest figure that at least this part of all do not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def estimate(table: Table, pair: Pair, versions: Versions, now_s: float,
             max_age_s: float) -> model.Estimate | None:
    """What to expect of a migration; None if too little is known.

    :param max_age_s: what is older is not used. So a pair on which migrations
        were refused gets another chance
    """
    record = table.get(pair)
    if record is None or record.versions != versions:
        return None
    fresh = [each for each in record.observations
             if abs(now_s - each.at_s) <= max_age_s]
    if len(fresh) < MIN_OBSERVATIONS:
        return None
    fixed = [each.fixed_ms for each in fresh]
    return model.Estimate(
        fixed_ms=_quantile(fixed, QUANTILE),
        least_fixed_ms=_quantile(fixed, LEAST_QUANTILE),
        # The other way round: a lower bandwidth is worse.
        bandwidth_bytes_per_s=-_quantile(
            (-each.bandwidth_bytes_per_s for each in fresh), QUANTILE),
        count=len(fresh))


def next_trial_s(record: Record, retry_s: float) -> float:
    """When a migration without hope may be tried again.

    :param retry_s: after the last observation or trial; infinity for never
    :returns: seconds since the epoch
    """
    return retry_s + max([
        record.tried_at_s, *(each.at_s for each in record.observations)])


def is_trial_due(table: Table, pair: Pair, versions: Versions, now_s: float,
                 retry_s: float) -> bool:
    """Whether one migration without hope may be tried now.

    If something has changed for the better, nobody would learn of it
    otherwise before what is known has become too old.
    """
    record = table.get(pair)
    if record is None or record.versions != versions:
        return False
    # A clock that was set back would make the time endless.
    return abs(now_s - next_trial_s(record, 0)) >= retry_s


def begin_trial(table: Table, pair: Pair, now_s: float) -> Table:
    """The table with a trial that begins now."""
    return {**table, pair: dataclasses.replace(table[pair],
                                               tried_at_s=now_s)}


def to_json(table: Table) -> dict[str, ty.Any]:
    """The table as json can write it."""
    return {'format': FORMAT, 'pairs': [
        {**pair._asdict(), 'versions': list(record.versions),
         'tried_at_s': record.tried_at_s,
         'observations': [list(dataclasses.astuple(each))
                          for each in record.observations]}
        for pair, record in table.items()]}


def _number(value: ty.Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{value!r} is not a number')
    return float(value)


def _text(value: ty.Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a text')
    return value


def from_json(stored: ty.Any) -> Table:
    """Read what ``to_json`` made.

    :raises: ValueError if it is anything else
    """
    try:
        if stored['format'] != FORMAT:
            raise ValueError(
                f'format {stored["format"]!r}; {FORMAT} is known')
        table: Table = {}
        for each in stored['pairs']:
            pair = Pair(_text(each['source']), _text(each['destination']))
            versions = Versions(*map(_text, each['versions']))
            for observation in each['observations']:
                table = add(table, pair, versions,
                            Observation(*map(_number, observation)))
            # A file of an older driver has no trials.
            tried_at_s = _number(each.get('tried_at_s', 0.0))
            if pair in table and 0 <= tried_at_s < math.inf:
                table = begin_trial(table, pair, tried_at_s)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f'not a calibration: {error!r}') from error
    return table
