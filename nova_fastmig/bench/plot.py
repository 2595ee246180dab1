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

"""Charts of a file of results.

Each function draws one from the results and what ``analyze.summarize`` made of
them, or returns None where they have nothing for it. ``KINDS`` has them by
name.
"""

from collections.abc import Iterable
import itertools

from matplotlib import figure

from nova_fastmig.bench import analyze
from nova_fastmig.bench import catalog
from nova_fastmig.bench import scenario

# The palette of Okabe and Ito, for people who see colours otherwise, too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
           '#999999', '#F0E442')
SEED_COLOUR, BEFORE_COLOUR, AFTER_COLOUR = '#999999', '#D55E00', '#009E73'

Summaries = list[analyze.Summary]


def _figure(width: float = 8, height: float = 4.5) -> figure.Figure:
    return figure.Figure(figsize=(width, height), layout='constrained')


def _seed(summaries: Summaries, metric: str, fields: tuple,
          label: str) -> figure.Figure | None:
    """The seed's chart beside the same chart of these results."""
    found = []
    for workload in analyze.workloads(summaries):
        pair = [each.spreads[metric] for each in (
            analyze.find(summaries, workload, title)
            for title in (catalog.BEFORE, catalog.AFTER))
            if each and metric in each.spreads]
        if workload.kind in catalog.SEED and len(pair) == 2:
            found.append((catalog.title(workload), *pair))
    if not found:
        return None
    made = _figure(6 + len(found))
    seed_axes, axes = made.subplots(1, 2)
    for panel, title, names in (
            (seed_axes, 'OPNFV KVM4NFV, 2016', list(catalog.SEED)),
            (axes, 'these results, medians', [name for name, *_ in found])):
        panel.set_title(title)
        panel.set_ylabel(label)
        panel.set_xticks(range(len(names)), names)
        panel.grid(axis='y', alpha=0.3)
    for place, seed in enumerate(catalog.SEED.values()):
        _pair(seed_axes, place, *(getattr(seed, field) for field in fields))
    for place, (_, before, after) in enumerate(found):
        _pair(axes, place, before.median.value, after.median.value, before,
              after)
    seed_axes.legend(['before', 'after'])
    axes.legend([catalog.BEFORE, catalog.AFTER])
    for panel in (seed_axes, axes):
        panel.margins(y=0.15)
    return made


def _errors(spread: analyze.Spread | None) -> list[list[float]] | None:
    if spread is None or spread.median.low is None:
        return None
    return [[spread.median.value - spread.median.low],
            [spread.median.high - spread.median.value]]


def _pair(axes, place: int, before: float, after: float,
          before_spread=None, after_spread=None) -> None:
    for offset, value, colour, spread in (
            (-0.2, before, BEFORE_COLOUR, before_spread),
            (0.2, after, AFTER_COLOUR, after_spread)):
        bars = axes.bar(place + offset, value, 0.38, color=colour,
                        yerr=_errors(spread), capsize=4)
        axes.bar_label(bars, fmt='{:.0f}', padding=2)
    axes.annotate(f'{before / after:.1f} x' if after else '',
                  (place, 0), xytext=(0, 6), textcoords='offset points',
                  ha='center', fontweight='bold')


def seed_total(results: scenario.Results, summaries: Summaries
               ) -> figure.Figure | None:
    """Total before and after, idle and l2fwd, as the seed drew it."""
    return _seed(summaries, 'total_qemu_ms',
                 ('total_before_ms', 'total_after_ms'), 'total (ms)')


def seed_downtime(results: scenario.Results, summaries: Summaries
                  ) -> figure.Figure | None:
    """Blackout before and after, idle and l2fwd, as the seed drew it."""
    return _seed(summaries, 'blackout_ms',
                 ('downtime_before_ms', 'downtime_after_ms'),
                 'downtime / blackout of packets (ms)')


def _bars(summaries: Summaries, metric: str) -> figure.Figure | None:
    summaries = [each for each in summaries if metric in each.spreads]
    if not summaries:
        return None
    workloads = analyze.workloads(summaries)
    rows = max(sum(each.scenario.workload == workload for each in summaries)
               for workload in workloads)
    made = _figure(4.2 * len(workloads) + 2, 0.28 * rows + 1.6)
    for axes, workload in zip(made.subplots(1, len(workloads),
                                            squeeze=False)[0], workloads,
                              strict=True):
        ordered = sorted((each for each in summaries
                          if each.scenario.workload == workload),
                         key=lambda each: -each.median(metric))
        for place, each in enumerate(ordered):
            spread = each.spreads[metric]
            fastmig = each.scenario.contender.driver == scenario.Driver.FASTMIG
            bars = axes.barh(
                place, spread.median.value, xerr=_errors(spread), capsize=3,
                color=AFTER_COLOUR if fastmig else COLOURS[0])
            axes.bar_label(bars, fmt=' {:.0f}', padding=2)
        axes.set_yticks(range(len(ordered)),
                        [each.title for each in ordered])
        axes.set_title(workload.name, fontsize='small')
        axes.set_xlabel(analyze.METRICS[metric])
        axes.margins(x=0.12)
        axes.grid(axis='x', alpha=0.3)
    return made


def blackout(results: scenario.Results, summaries: Summaries
             ) -> figure.Figure | None:
    """Every contender's blackout: median and its interval."""
    return _bars(summaries, 'blackout_ms')


def total(results: scenario.Results, summaries: Summaries
          ) -> figure.Figure | None:
    """Every contender's total: median and its interval."""
    return _bars(summaries, 'total_qemu_ms')


def waterfall(results: scenario.Results, summaries: Summaries
              ) -> figure.Figure | None:
    """Where the blackout goes, step by step, for those that tell."""
    summaries = [each for each in summaries if each.steps_ms]
    if not summaries:
        return None
    made = _figure(9, 0.5 * len(summaries) + 1.8)
    axes = made.subplots()
    names = list(dict.fromkeys(itertools.chain.from_iterable(
        each.steps_ms for each in summaries)))
    colours = dict(zip(names, itertools.cycle(COLOURS), strict=False))
    for place, each in enumerate(reversed(summaries)):
        begin_ms = 0.0
        for name, end_ms in each.steps_ms.items():
            axes.barh(place, end_ms - begin_ms, left=begin_ms,
                      color=colours[name], edgecolor='white')
            begin_ms = end_ms
        axes.annotate(f' {begin_ms:.1f}', (begin_ms, place), va='center')
    axes.set_yticks(range(len(summaries)), [
        f'{each.title}, {catalog.title(each.scenario.workload)}'
        for each in reversed(summaries)])
    axes.set_xlabel("ms after the guest's stop, medians; both QEMUs' own "
                    'figures')
    axes.margins(x=0.08)
    axes.legend([axes.barh(0, 0, color=colours[name]) for name in names],
                ['until ' + name.removesuffix('_ms').replace('_', ' ')
                 for name in names], fontsize='small',
                loc='upper center', bbox_to_anchor=(0.5, -0.2), ncols=3)
    return made


def distribution(results: scenario.Results, summaries: Summaries
                 ) -> figure.Figure | None:
    """For each contender, the part of migrations that took no longer."""
    summaries = [each for each in summaries if 'blackout_ms' in each.spreads]
    if not summaries:
        return None
    workloads = analyze.workloads(summaries)
    made = _figure(5 * len(workloads), 5)
    styles = list(itertools.product(('-', '--', ':', '-.'), COLOURS))
    titles = list(dict.fromkeys(each.title for each in summaries))
    for axes, workload in zip(made.subplots(1, len(workloads),
                                            squeeze=False)[0], workloads,
                              strict=True):
        for each in summaries:
            if each.scenario.workload != workload:
                continue
            line, colour = styles[titles.index(each.title) % len(styles)]
            blackouts = analyze.values(results.of(each.scenario.name),
                                       'blackout_ms')
            axes.ecdf(blackouts, label=f'{each.title} ({len(blackouts)})',
                      color=colour, linestyle=line)
        axes.set_xscale('symlog', linthresh=10)
        axes.set_title(workload.name, fontsize='small')
        axes.set_xlabel('blackout of packets (ms)')
        axes.set_ylabel('part of migrations')
        axes.grid(alpha=0.3)
        axes.legend(fontsize='x-small')
    return made


def _cost(summaries: Summaries, kinds: Iterable[str], place,
          label: str) -> figure.Figure | None:
    chosen = [each for each in summaries
              if each.scenario.workload.kind in kinds]
    if len({place(each) for each in chosen}) < 2:
        return None
    made = _figure(9, 4.5)
    for axes, metric in zip(made.subplots(1, 2),
                            ('total_qemu_ms', 'blackout_ms'), strict=True):
        for title, colour in zip(
                dict.fromkeys(each.title for each in chosen),
                itertools.cycle(COLOURS), strict=False):
            points = sorted(
                (place(each), each.spreads[metric]) for each in chosen
                if each.title == title and metric in each.spreads)
            if points:
                axes.plot([x for x, _ in points],
                          [spread.median.value for _, spread in points],
                          'o-', color=colour, label=title)
        axes.set_xlabel(label)
        axes.set_ylabel(analyze.METRICS[metric])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    return made


def cost_of_size(results: scenario.Results, summaries: Summaries
                 ) -> figure.Figure | None:
    """Total and blackout of idle guests by their size."""
    return _cost(summaries, ('idle',), lambda each:
                 each.scenario.workload.guest.memory_mib,
                 'memory of the idle guest (MiB)')


def cost_of_dirty_rate(results: scenario.Results, summaries: Summaries
                       ) -> figure.Figure | None:
    """Total and blackout by how fast the guest rewrites its memory."""
    smallest = min((each.workload.guest.memory_mib for each
                    in results.comparison.scenarios), default=0)
    return _cost(
        [each for each in summaries
         if each.scenario.workload.guest.memory_mib == smallest
         and each.scenario.workload.working_set_mib is None],
        ('idle', 'l2fwd', 'dirty'), lambda each:
        each.scenario.workload.rewrite_mib_per_s,
        'memory that the guest rewrites (MiB/s)')


KINDS = {
    'seed-total': seed_total,
    'seed-downtime': seed_downtime,
    'blackout': blackout,
    'total': total,
    'waterfall': waterfall,
    'distribution': distribution,
    'cost-of-size': cost_of_size,
    'cost-of-dirty-rate': cost_of_dirty_rate,
}
