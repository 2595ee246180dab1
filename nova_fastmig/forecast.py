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

"""Would a migration keep its SLA now? Pure."""

import dataclasses
import math

from nova_fastmig import model


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a migration would meet. None is for what is unknown.

    :ivar memory_bytes: of the guest
    :ivar dirty_rate_bytes_per_s: what it dirties
    :ivar bandwidth_bytes_per_s: that the migration would have
    :ivar fixed_ms: of the blackout, whatever remains to be sent
    """

    memory_bytes: int
    dirty_rate_bytes_per_s: float
    bandwidth_bytes_per_s: float | None
    fixed_ms: float | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What to expect, judged like a report.

    :ivar verdict: MET if both would be, MISSED if one would not
    :ivar reasons: for every part that is not MET
    """

    downtime: model.Judgement
    total: model.Judgement
    verdict: model.Verdict
    reasons: tuple[str, ...]


FORECAST = 'forecast'
_MIB = 1 << 20


def _judge(limit_ms: int, expected_ms: float | None,
           verdict: model.Verdict | None = None) -> model.Judgement:
    if expected_ms is None:
        return model.Judgement(limit_ms, None, FORECAST,
                               verdict or model.Verdict.UNKNOWN)
    # Rounded first, or an error in the last digit costs a millisecond.
    expected_ms = math.ceil(round(expected_ms, 6))
    return model.Judgement(
        limit_ms, expected_ms, FORECAST,
        model.Verdict.MET if expected_ms <= limit_ms else model.Verdict.MISSED)


def _downtime(sla: model.Sla,
              conditions: Conditions) -> tuple[model.Judgement, str]:
    """The fixed part, and as much again for memory as the SLA leaves."""
    fixed_ms = conditions.fixed_ms
    if fixed_ms is None:
        return (_judge(sla.max_downtime_ms, None),
                'nothing is known yet of the part of the blackout that does '
                'not depend on memory')
    # QEMU's limit is a whole number of milliseconds, at least one.
    limit_ms = max(1, math.floor(sla.max_downtime_ms - fixed_ms))
    judgement = _judge(sla.max_downtime_ms, fixed_ms + limit_ms)
    return judgement, (
        f'{fixed_ms:.1f} ms of the blackout do not depend on memory, '
        f'{sla.max_downtime_ms} ms are allowed'
        if judgement.verdict is model.Verdict.MISSED else '')


def _total(sla: model.Sla,
           conditions: Conditions) -> tuple[model.Judgement, str]:
    """Until what remains fits the switchover.

    A pass that sends r bytes takes r / bandwidth, and meanwhile the guest
    dirties that times its rate, which is the next pass. The sum of them all,
    down to what fits the switchover, takes
    (memory - fits) / (bandwidth - dirty rate).
    """
    bandwidth = conditions.bandwidth_bytes_per_s
    if bandwidth is None:
        return _judge(sla.max_total_ms, None), 'the bandwidth is not known yet'
    fixed_ms = conditions.fixed_ms or 0
    switchover_ms = max(1, sla.max_downtime_ms - fixed_ms)
    to_send = max(0, conditions.memory_bytes -
                  bandwidth * switchover_ms / 1000)
    surplus = bandwidth - conditions.dirty_rate_bytes_per_s
    rates = (f'{conditions.memory_bytes / _MIB:.0f} MiB at '
             f'{bandwidth / _MIB:.1f} MiB/s, dirtied at '
             f'{conditions.dirty_rate_bytes_per_s / _MIB:.1f} MiB/s')
    if to_send and surplus <= 0:
        return (_judge(sla.max_total_ms, None, model.Verdict.MISSED),
                f'will not converge: {rates}')
    judgement = _judge(
        sla.max_total_ms,
        (to_send / surplus * 1000 if to_send else 0) + switchover_ms +
        fixed_ms)
    return judgement, (
        f'takes too long: {rates}'
        if judgement.verdict is model.Verdict.MISSED else '')


def make(sla: model.Sla, conditions: Conditions) -> Forecast:
    """Judge a migration that does not take place."""
    downtime, why_downtime = _downtime(sla, conditions)
    total, why_total = _total(sla, conditions)
    verdicts = {downtime.verdict, total.verdict}
    worst = next(verdict for verdict in (
        model.Verdict.MISSED, model.Verdict.UNKNOWN, model.Verdict.MET)
        if verdict in verdicts)
    return Forecast(downtime, total, worst,
                    tuple(filter(None, (why_downtime, why_total))))
