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

"""How the variants of ``lab/variants`` compare: summary and table. Pure.

A *run* is one live migration, as in ``demo_report``; its ``report`` is the
driver's own, from its journal.
"""

import statistics

import prettytable

WARM_UP = 'warm-up'
METRICS = (
    # key, title, what it is
    ('blackout_ms', 'packets', 'longest run of lost 1 kHz probes'),
    ('blackout_qemu_ms', 'QEMU', 'from stop to resume, as the two QEMUs '
                                 'measured it'),
    ('downtime_libvirt_ms', 'libvirt', "libvirt's downtime, which includes "
                                       'its work after an early resume'),
    ('total_libvirt_ms', 'total', "libvirt's total time"),
)


def failures(run, expected):
    """What is wrong with the features that were in force, as sentences.

    :param expected: all, none, or names with commas between them
    """
    reported = run['report'] or {'qemu_features': [], 'unused_features': []}
    found = sorted(reported['qemu_features'])
    if expected == 'all':
        good = bool(found) and not reported['unused_features']
    else:
        good = found == sorted(
            [] if expected == 'none' else expected.split(','))
    return [] if good else [
        f'the features in force were {", ".join(found) or "none"}, not '
        f'{expected} ({reported["unused_features"]})']


def spread(values):
    """Of figures in ms; None without any."""
    values = sorted(value for value in values if value is not None)
    if not values:
        return None
    # the quantile of one value is that value
    at = statistics.quantiles(values * 2 if len(values) == 1 else values,
                              n=20, method='inclusive')
    return {'n': len(values), 'min': values[0],
            'median': round(statistics.median(values), 2),
            'p90': round(at[17], 2), 'p95': round(at[18], 2),
            'max': values[-1]}


def summarize(runs):
    """The figures of each variant, in the order of their first runs.

    Runs that failed or in which the probe stalled are not counted.
    """
    summary = {}
    for variant in dict.fromkeys(run['variant'] for run in runs):
        if variant == WARM_UP:
            continue
        members = [run for run in runs if run['variant'] == variant]
        counted = [run for run in members
                   if not run['failures'] and not run['probe_stalled']]
        summary[variant] = {
            'runs': len(members), 'counted': len(counted),
            'failed': sum(bool(run['failures']) for run in members),
            'stalled': sum(run['probe_stalled'] for run in members),
            **{key: spread([run[key] for run in counted])
               for key, _, _ in METRICS}}
    return summary


def _cell(figures, key):
    return '-' if figures is None else f'{figures[key]:.1f}'


def text(document):
    """Everything that ``lab/variants`` prints at its end."""
    machine, runs = document['machine'], document['runs']
    result = prettytable.PrettyTable([
        'variant', 'runs',
        *(f'{METRICS[0][1]} {key}'
          for key in ('median', 'p90', 'p95', 'max')),
        *(f'{title} {key}' for _, title, _ in METRICS[1:]
          for key in ('median', 'p95'))])
    result.align = 'r'
    result.align['variant'] = 'l'
    for variant, figures in document['summary'].items():
        result.add_row([
            variant, f'{figures["counted"]}/{figures["runs"]}',
            *(_cell(figures[METRICS[0][0]], key)
              for key in ('median', 'p90', 'p95', 'max')),
            *(_cell(figures[metric], key) for metric, _, _ in METRICS[1:]
              for key in ('median', 'p95'))])
    lines = [
        f'{machine["cpu"]}, {machine["cores"]} cores, '
        f'{machine["memory_mib"]} MiB; guests under '
        f'{machine["accel"].upper()}; Nova {machine["nova"]}, libvirt '
        f'{machine["libvirt"]}',
        result.get_string(), 'All figures in ms.',
        *(f'{title}: {what}.' for _, title, what in METRICS),
        'runs: counted/all; a run that failed, or in which the probe itself '
        'stalled, does not count.']
    lines += [f'FAILED: run {number} ({run["variant"]}): {failure}'
              for number, run in enumerate(runs, 1)
              for failure in run['failures']]
    return '\n'.join(lines)
