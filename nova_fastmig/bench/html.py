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

"""The report: one HTML file with the figures, and the charts inside."""

import base64
from collections.abc import Iterable
import io
import typing as ty

import jinja2

from nova_fastmig.bench import analyze
from nova_fastmig.bench import catalog
from nova_fastmig.bench import plot
from nova_fastmig.bench import scenario

# of METRICS, as columns: those that all contenders may have come first
COLUMNS = (
    'blackout_ms', 'gap_ms', 'packets_lost', 'packets_duplicated',
    'packets_reordered', 'downtime_qemu_ms', 'downtime_libvirt_ms',
    'total_qemu_ms', 'setup_ms', 'first_pass_ms', 'further_passes_ms',
    'completion_ms', 'total_libvirt_ms', 'total_nova_ms', 'bytes_sent',
    'iterations', 'post_copy', 'cpu_source_ms', 'cpu_destination_ms',
    'cpu_window_ms', 'rewritten_mib_per_s', 'disk_mib_per_s',
    'throttle_percent')
TITLES = {
    'seed-total': 'Total, as the seed drew it',
    'seed-downtime': 'Downtime, as the seed drew it',
    'blackout': 'Blackout of packets',
    'total': 'Total',
    'waterfall': 'Where the blackout goes',
    'distribution': 'Distribution of blackouts',
    'cost-of-size': 'What the size of an idle guest costs',
    'cost-of-dirty-rate': 'What a dirty rate costs',
}


def number(value: float | None) -> str:
    """With as many digits as say something."""
    if value is None:
        return '-'
    if abs(value) >= 1e6:
        return f'{value / 2**20:.1f} Mi'
    return f'{value:.1f}' if abs(value) < 100 else f'{value:.0f}'


def estimate(found: analyze.Estimate | None) -> str:
    """A figure with its interval."""
    if found is None:
        return '-'
    if found.low is None:
        return number(found.value)
    return (f'{number(found.value)} [{number(found.low)}, '
            f'{number(found.high)}]')


def _picture(made) -> str:
    file = io.BytesIO()
    made.savefig(file, format='svg')
    return base64.b64encode(file.getvalue()).decode()


def _row(title: str, figures: tuple[float | None, ...],
         before: tuple[float | None, ...]) -> dict[str, ty.Any]:
    """Downtime and total with how many times shorter than before."""
    return {'title': title, 'figures': [
        (value, first / value if first and value else None)
        for value, first in zip(figures, before, strict=True)]}


def _beside_seed(summaries: list[analyze.Summary]) -> list[dict[str, ty.Any]]:
    """Every contender beside the seed's figures, for its workloads."""
    tables = []
    for workload in analyze.workloads(summaries):
        seed = catalog.SEED.get(workload.kind)
        if seed is None:
            continue
        made = {each.title: (each.median('blackout_ms'),
                             each.median('total_qemu_ms'))
                for each in summaries if each.scenario.workload == workload}
        before = seed.downtime_before_ms, seed.total_before_ms
        tables.append({'workload': catalog.title(workload), 'rows': [
            _row('2016, before', before, before),
            _row('2016, after',
                 (seed.downtime_after_ms, seed.total_after_ms), before),
            *(_row(title, figures, made.get(catalog.BEFORE, (None, None)))
              for title, figures in made.items())]})
    return tables


def _known(names: Iterable[str], summaries: list[analyze.Summary]
           ) -> list[str]:
    """Those of the metrics that anybody has."""
    return [name for name in names
            if any(name in each.spreads for each in summaries)]


def render(results: scenario.Results) -> str:
    """The report as HTML."""
    summaries = analyze.summarize(results)
    pictures = []
    for kind, draw in plot.KINDS.items():
        made = draw(results, summaries)
        if made is not None:
            pictures.append((TITLES[kind], draw.__doc__.splitlines()[0],
                             _picture(made)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('nova_fastmig.bench', 'templates'),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined)
    environment.filters |= {'number': number, 'estimate': estimate}
    return environment.get_template('report.html').render(
        results=results, summaries=summaries,
        workloads=analyze.workloads(summaries),
        pictures=pictures, metrics=analyze.METRICS,
        columns=_known(COLUMNS, summaries),
        phase_columns=_known(analyze.PHASE_METRICS, summaries),
        seed=_beside_seed(summaries), ranks=analyze.ranks(results),
        before=catalog.BEFORE, best=catalog.AFTER,
        max_stall_ms=scenario.MAX_STALL_MS,
        failures=[run for run in results.runs if run.failures])
