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

"""From many runs to figures: percentiles with confidence intervals.

Pure but for scipy: the same runs always give the same figures. Intervals are
of 95%, by the percentile bootstrap (Efron and Tibshirani, "An Introduction to
the Bootstrap", 1993, chapter 13; ``scipy.stats.bootstrap``), which takes
nothing for granted about the distribution. A percentile of few runs is near
the longest of them, and its interval says so.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

import numpy
from scipy import stats

from nova_fastmig.bench import catalog
from nova_fastmig.bench import scenario

CONFIDENCE = 0.95
RESAMPLES = 2000
# the same for all, so that the same runs give the same intervals
SEED = 20160901

# of Phase
_PHASE_METRICS = {
    'packets_lost': 'packets lost {}',
    'longest_loss_ms': 'longest loss {} (ms)',
    'packets_duplicated': 'packets duplicated {}',
    'packets_reordered': 'packets reordered {}',
    'latency_p50_ms': 'latency {}, median (ms)',
    'latency_p99_ms': 'latency {}, p99 (ms)',
    'latency_max_ms': 'latency {}, longest (ms)',
    'rewritten_mib_per_s': 'guest rewrites {} (MiB/s)',
}
PHASE_METRICS = {
    f'{phase}.{name}': title.format(phase)
    for phase in ('before', 'during', 'after')
    for name, title in _PHASE_METRICS.items()}
# key of Figures -> what it is, for tables and axes
METRICS = {
    'blackout_ms': 'blackout, packets (ms)',
    'gap_ms': 'gap between packets (ms)',
    'packets_lost': 'packets lost',
    'packets_duplicated': 'packets duplicated',
    'packets_reordered': 'packets reordered',
    'downtime_qemu_ms': 'stop to resume, QEMU (ms)',
    'downtime_libvirt_ms': 'downtime, libvirt (ms)',
    'total_ms': 'total (ms)',
    'total_qemu_ms': 'total, QEMU (ms)',
    'setup_ms': 'of it, setup (ms)',
    'first_pass_ms': 'of it, first pass over memory (ms)',
    'further_passes_ms': 'of it, further passes (ms)',
    'completion_ms': 'of it, after the stop (ms)',
    'total_libvirt_ms': 'total, libvirt (ms)',
    'total_nova_ms': 'total, Nova (ms)',
    'bytes_sent': 'bytes sent',
    'iterations': 'passes over memory',
    'post_copy': 'in post-copy (1: yes)',
    'cpu_source_ms': 'CPU, source host (ms)',
    'cpu_destination_ms': 'CPU, destination host (ms)',
    'cpu_window_ms': 'within (ms)',
    'throttle_percent': 'vCPUs throttled by (%)',
    'rewritten_mib_per_s': 'guest rewrites (MiB/s)',
    'disk_mib_per_s': 'guest reads and writes on disk (MiB/s)',
    **PHASE_METRICS,
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    :ivar low: None, as ``high``, of less than two values
    """

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Spread:
    """What values there were.

    :ivar n: how many
    """

    n: int
    least: float
    most: float
    median: Estimate
    p95: Estimate
    p99: Estimate


def _bootstrap(samples: Sequence[Sequence[float]], statistic
               ) -> tuple[float | None, float | None]:
    if min(map(len, samples)) < 2:
        return None, None
    if all(numpy.ptp(sample) == 0 for sample in samples):
        value = float(statistic(*samples))
        return value, value
    found = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, vectorized=True,
        confidence_level=CONFIDENCE, method='percentile',
        rng=numpy.random.default_rng(SEED)).confidence_interval
    return float(found.low), float(found.high)


def _percentile(values: Sequence[float], percent: float) -> Estimate:
    def statistic(sample, axis=-1):
        return numpy.percentile(sample, percent, axis=axis)
    return Estimate(float(statistic(values)),
                    *_bootstrap((values,), statistic))


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are known; None without any."""
    known = numpy.array([value for value in values if value is not None],
                        dtype=float)
    if not len(known):
        return None
    return Spread(len(known), float(known.min()), float(known.max()),
                  *(_percentile(known, percent) for percent in (50, 95, 99)))


def ratio(values: Sequence[float], others: Sequence[float]
          ) -> Estimate | None:
    """Median of these to the median of the others; None without any."""
    if not len(values) or not len(others) or not numpy.median(others):
        return None

    def statistic(these, those, axis=-1):
        # a median of 0 among the resamples has no ratio
        with numpy.errstate(divide='ignore', invalid='ignore'):
            return (numpy.median(these, axis=axis) /
                    numpy.median(those, axis=axis))
    return Estimate(float(statistic(values, others)), *_bootstrap(
        (values, others), statistic))


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is known of a scenario.

    :ivar counted: runs that the figures are of
    :ivar stalled: runs left out as the generator was held up
    :ivar failed: runs left out as something went wrong
    :ivar spreads: key of ``METRICS`` -> spread; without what nobody told
    :ivar steps_ms: medians of the steps of the blackout
    """

    scenario: scenario.Scenario
    runs: int
    counted: int
    stalled: int
    failed: int
    spreads: dict[str, Spread]
    steps_ms: dict[str, float]

    @property
    def title(self) -> str:
        return catalog.title(self.scenario.contender)

    def median(self, metric: str) -> float | None:
        found = self.spreads.get(metric)
        return found.median.value if found else None


def _figure(figures: scenario.Figures, metric: str) -> float | None:
    found = figures
    for name in metric.split('.'):
        found = getattr(found, name)
        if found is None:
            return None
    return found


def values(runs: Iterable[scenario.Run], metric: str) -> list[float]:
    """What the counted runs have for a metric."""
    found = (_figure(run.figures, metric) for run in runs if run.counted)
    return [value for value in found if value is not None]


def _steps(runs: list[scenario.Run]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs if run.counted
                          for name in run.figures.steps_ms)
    medians = {name: float(numpy.median(
        [run.figures.steps_ms[name] for run in runs
         if run.counted and name in run.figures.steps_ms]))
        # files of earlier versions have those beside the steps
        for name in names if not name.startswith('clock_')}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def summarize(results: scenario.Results) -> list[Summary]:
    """Each scenario that was run, in the comparison's order."""
    found = []
    for each in results.comparison.scenarios:
        runs = results.of(each.name)
        if not runs:
            continue
        spreads = {metric: spread(values(runs, metric)) for metric in METRICS}
        found.append(Summary(
            each, len(runs), sum(run.counted for run in runs),
            sum(run.stalled and not run.failures for run in runs),
            sum(bool(run.failures) for run in runs),
            {metric: each for metric, each in spreads.items() if each},
            _steps(runs)))
    return found


def workloads(summaries: Iterable[Summary]) -> list[scenario.Workload]:
    """Those that they are of, each once, in their order."""
    return list(dict.fromkeys(each.scenario.workload for each in summaries))


def find(summaries: Iterable[Summary], workload: scenario.Workload,
         title: str) -> Summary | None:
    """That of a contender in a workload."""
    return next((each for each in summaries if each.title == title and
                 each.scenario.workload == workload), None)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one metric of two scenarios compares.

    :ivar ratio: median of the first to that of the second
    :ivar clear: the interval of the ratio does not have 1 in it
    """

    metric: str
    first: Spread
    second: Spread
    ratio: Estimate | None

    @property
    def clear(self) -> bool:
        return (self.ratio is not None and self.ratio.low is not None and
                # neither where resamples have no ratio (NaN)
                (self.ratio.low > 1 or self.ratio.high < 1))


def compare(first: list[scenario.Run], second: list[scenario.Run],
            metrics: Iterable[str] = METRICS) -> list[Comparison]:
    """Each metric that both have."""
    found = []
    for metric in metrics:
        these, those = values(first, metric), values(second, metric)
        if these and those:
            found.append(Comparison(
                metric, spread(these), spread(those), ratio(these, those)))
    return found


@dataclasses.dataclass(frozen=True)
class Rank:
    """This project's best against another contender, in one workload.

    :ivar ahead: the median is the lower one
    """

    workload: str
    title: str
    comparison: Comparison

    @property
    def ahead(self) -> bool:
        return (self.comparison.ratio is not None and
                self.comparison.ratio.value < 1)


def ranks(results: scenario.Results, contender: str = catalog.AFTER
          ) -> list[Rank]:
    """How the contender compares with all others where it is to be ahead."""
    best = catalog.CONTENDERS[contender]
    found = []
    for mine in results.comparison.scenarios:
        if mine.contender != best:
            continue
        runs = results.of(mine.name)
        for other in results.comparison.scenarios:
            if other.workload != mine.workload or other == mine:
                continue
            found += [Rank(catalog.title(mine.workload),
                           catalog.title(other.contender), each)
                      for each in compare(
                          runs, results.of(other.name),
                          ('blackout_ms', 'gap_ms', 'total_qemu_ms',
                           'total_libvirt_ms', 'total_nova_ms'))]
    return found
