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

"""Plan and what was seen -> Decision. Pure."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import statistics
import typing as ty

from nova_fastmig import model

# A trend is taken from the starts of this many passes over dirtied memory.
# Each one more makes it surer and later.
WINDOW = 4

# The trend is not trusted further than this: from now on everything may go an
# eighth better. Rates are unsteady, and libvirt counts in whole milliseconds.
TOLERANCE = 1 / 8

# QEMU switches over when what remains fits the downtime limit. Where it has
# come so near, the next pass can be the last one by mere luck.
NEAR = 2

# More memory, or more bytes per second, than any host has.
ABSURD_BYTES = 1 << 50

_MIB = 1 << 20
_BEFORE = ' before the switchover'


@dataclasses.dataclass(frozen=True)
class Sample:
    """Statistics of a running migration at one moment.

    None is for what is unknown.

    :ivar elapsed_ms: since libvirt's start
    :ivar iteration: QEMU's pass over the memory; the first one sends all of
        it, the others what was dirtied during the one before
    :ivar total_bytes: the guest's memory
    :ivar remaining_bytes: still to be sent in this pass
    :ivar bandwidth_bytes_per_s: of the migration just now
    :ivar dirty_rate_bytes_per_s: what the guest dirties
    """

    elapsed_ms: int | None
    iteration: int | None
    total_bytes: int | None
    remaining_bytes: int | None
    bandwidth_bytes_per_s: int | None
    dirty_rate_bytes_per_s: int | None


def to_sample(stats: Mapping[str, ty.Any]) -> Sample:
    """Read libvirt's statistics of a running job.

    A statistic that is missing, or is no count, is unknown.
    """
    def count(name: str) -> int | None:
        value = stats.get(name)
        if (isinstance(value, int) and not isinstance(value, bool) and
                0 <= value <= ABSURD_BYTES):
            return value
        return None

    dirty_pages, page_bytes = map(count, ('memory_dirty_rate',
                                          'memory_page_size'))
    return Sample(
        elapsed_ms=count('time_elapsed'),
        iteration=count('memory_iteration'),
        total_bytes=count('memory_total'),
        remaining_bytes=count('memory_remaining'),
        bandwidth_bytes_per_s=count('memory_bps'),
        dirty_rate_bytes_per_s=(
            None if dirty_pages is None or page_bytes is None
            else dirty_pages * page_bytes))


def _is_usable(sample: Sample) -> bool:
    """Whether everything is known and possible.

    QEMU has no dirty rate in its first second and says 0 then. The first pass
    tells nothing: pages that were never touched go many times as fast as
    others, and nobody knows how many of what is left are such.
    """
    figures = dataclasses.astuple(sample)
    return (None not in figures and
            all(0 <= figure <= ABSURD_BYTES for figure in figures) and
            sample.iteration > 1 and
            sample.remaining_bytes <= sample.total_bytes and
            sample.bandwidth_bytes_per_s > 0 and
            sample.dirty_rate_bytes_per_s > 0)


def remember(history: tuple[Sample, ...],
             sample: Sample) -> tuple[Sample, ...]:
    """What is worth knowing of a migration after one more sample.

    :param history: what this function returned for the sample before; empty
        at the start
    :returns: the first usable samples of the last WINDOW passes
    """
    if not _is_usable(sample):
        return history
    if history:
        last = history[-1]
        if sample.elapsed_ms <= last.elapsed_ms:
            return history
        if sample.iteration < last.iteration:
            # Another attempt, or one of the two is wrong.
            return (sample,)
        if sample.iteration == last.iteration:
            return history
    return (*history, sample)[-WINDOW:]


def _decline_bytes_per_s(passes: Sequence[Sample]) -> float:
    """How fast what remains goes down from pass to pass, at best.

    The better of what any two of the passes show, and what bandwidth and
    dirty rate promise, each within the tolerance. So one wrong figure can only
    make this too good.
    """
    seen = max(
        (earlier.remaining_bytes - later.remaining_bytes) * 1000 /
        (later.elapsed_ms - earlier.elapsed_ms)
        for earlier, later in itertools.combinations(passes, 2))
    promised = (
        (1 + TOLERANCE) * statistics.median(
            each.bandwidth_bytes_per_s for each in passes) -
        (1 - TOLERANCE) * statistics.median(
            each.dirty_rate_bytes_per_s for each in passes))
    return max((1 + TOLERANCE) * seen, promised)


def _why_not_in_time(plan: model.Plan, elapsed_ms: float,
                     samples: Sequence[Sample]) -> str:
    """Why the trend says that there is no switchover before the deadline.

    :returns: empty where it does not say so, or where there is no trend
    """
    passes = functools.reduce(remember, samples, ())
    if len(passes) < WINDOW:
        return ''
    last = passes[-1]
    longest_pass_ms = max(later.elapsed_ms - earlier.elapsed_ms
                          for earlier, later in itertools.pairwise(passes))
    # Too long ago, or not yet: this is not what happens now.
    if not 0 <= elapsed_ms - last.elapsed_ms + 1 <= 3 * longest_pass_ms:
        return ''
    # QEMU goes by what it was told to expect, or by what it has seen.
    fits_bytes = plan.downtime_limit_ms / 1000 * max(
        (plan.switchover_bandwidth_mib_s or 0) * _MIB,
        *(each.bandwidth_bytes_per_s for each in passes))
    if min(each.remaining_bytes for each in passes) <= NEAR * fits_bytes:
        return ''
    decline = _decline_bytes_per_s(passes)
    left_ms = plan.total_limit_ms - last.elapsed_ms
    if decline * left_ms / 1000 >= last.remaining_bytes - fits_bytes:
        return ''
    return (
        f'will not converge in the {plan.total_limit_ms - elapsed_ms:.0f} ms '
        f'left: {last.remaining_bytes / _MIB:.1f} MiB remain, '
        f'{fits_bytes / _MIB:.1f} MiB fit the switchover; bandwidth '
        f'{last.bandwidth_bytes_per_s / _MIB:.1f} MiB/s, dirty rate '
        f'{last.dirty_rate_bytes_per_s / _MIB:.1f} MiB/s')


def _out_of_time(plan: model.Plan, elapsed_ms: float, why: str,
                 post_copy_possible: bool,
                 give_up_ms: int | None) -> model.Decision:
    """What the flavor wants if there is no switchover within the limit."""
    match plan.sla.on_miss:
        case model.OnMiss.ABORT:
            return model.Decision(model.Action.ABORT, why)
        case model.OnMiss.POST_COPY if post_copy_possible:
            return model.Decision(model.Action.POST_COPY, why)
        case model.OnMiss.POST_COPY:
            return model.Decision(
                model.Action.ABORT, f'{why}; post-copy is not possible')
        case model.OnMiss.PROCEED if give_up_ms and elapsed_ms > give_up_ms:
            return model.Decision(
                model.Action.ABORT,
                f'{elapsed_ms:.0f} ms are over and Nova gives up after '
                f'{give_up_ms} ms ([libvirt]live_migration_completion_timeout)'
            )
    return model.Decision(
        model.Action.CONTINUE,
        f'{why.removesuffix(_BEFORE)}; the flavor says to proceed')


def hanging(plan: model.Plan, how_long: str) -> str:
    """Why a switchover is not waited for any longer.

    :param how_long: the guest has stood still, in words, with the unit
    """
    return (f'the guest has stood still for {how_long} and the '
            f'switchover has not finished; {plan.switchover_limit_ms} ms are '
            f'allowed ([fastmig]switchover_timeout_ms)')


def decide(plan: model.Plan, elapsed_ms: float, paused: bool,
           post_copy_started: bool,
           post_copy_possible: bool,
           give_up_ms: int | None,
           samples: Sequence[Sample] = (),
           paused_ms: float = 0) -> model.Decision:
    """Say what to do with a running migration.

    The limits of the plan are never relaxed here: a migration that runs out
    of time, or that will by the trend of what was seen, is aborted, or goes
    the way that the flavor chose with ``fastmig:on_miss``.

    :param elapsed_ms: since libvirt's start
    :param paused: the guest stands still already, so the switchover is under
        way and interrupting it could only make the blackout longer, unless it
        hangs
    :param post_copy_started: there is no way back from post-copy
    :param post_copy_possible: False for a guest that cannot do it, and after
        a failed attempt
    :param give_up_ms: when a migration that may proceed is aborted after
        all; None for never
    :param samples: in their order; all of them, or what ``remember`` keeps.
        Those that cannot be right are left out, and without enough of them
        only the time decides
    :param paused_ms: for how long the guest is known to stand still in the
        switchover
    """
    is_over = elapsed_ms > plan.total_limit_ms
    late = f'{elapsed_ms:.0f} ms of {plan.total_limit_ms} ms are over'
    if (paused and not post_copy_started and
            paused_ms > plan.switchover_limit_ms):
        return model.Decision(
            model.Action.ABORT,
            hanging(plan, f'{paused_ms:.0f} ms'))
    if post_copy_started or paused:
        what = 'post-copy' if post_copy_started else 'the switchover'
        return model.Decision(
            model.Action.CONTINUE,
            f'{late}; {what} is under way' if is_over
            else 'within the time limit')
    why = (late + _BEFORE if is_over
           else _why_not_in_time(plan, elapsed_ms, samples))
    if not why:
        return model.Decision(model.Action.CONTINUE, 'within the time limit')
    return _out_of_time(plan, elapsed_ms, why, post_copy_possible,
                        give_up_ms if is_over else None)
