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

"""``nova-fastmig plot``: pictures of what is in the journal."""

import collections
import datetime

from cliff import command

from nova_fastmig.cmd import report
from nova_fastmig import exception

# The palette of Okabe and Ito, for people who see colours otherwise, too.
COLOURS = {'met': '#009E73', 'missed': '#D55E00', 'unknown': '#999999'}


class CannotPlot(exception.FastMigError):
    """There is nothing to plot, or nothing to plot with."""


def points(records) -> list[tuple[datetime.datetime, float, int, str]]:
    """(end, downtime in ms, its limit, its verdict) of each that has one."""
    found = []
    for record in records:
        downtime = record['report'].get('downtime', {})
        if downtime.get('measured_ms') is not None:
            found.append((datetime.datetime.fromisoformat(record['time']),
                          downtime['measured_ms'], downtime['limit_ms'],
                          downtime['verdict']))
    return found


def _distribution(axes, found) -> None:
    """For each limit, the part of migrations that took no longer."""
    by_limit = collections.defaultdict(list)
    for _, downtime_ms, limit_ms, _ in found:
        by_limit[limit_ms].append(downtime_ms)
    for limit_ms, downtimes in sorted(by_limit.items()):
        drawn = axes.ecdf(downtimes, label=(
            f'limit {limit_ms} ms, {len(downtimes)} migrations'))
        axes.axvline(limit_ms, color=drawn.get_color(), linestyle=':')
    axes.set_xlabel('downtime (ms); dotted: the limit')
    axes.set_ylabel('part of migrations')
    axes.set_xlim(left=0)


def _timeline(axes, found) -> None:
    """Each migration at its time, by verdict, with its limit."""
    for verdict, colour in COLOURS.items():
        of_it = [each for each in found if each[3] == verdict]
        if of_it:
            times, downtimes, _, _ = zip(*of_it, strict=True)
            axes.plot(times, downtimes, 'o', color=colour, label=verdict)
    axes.plot([each[0] for each in found], [each[2] for each in found], '_',
              color='black', label='limit')
    axes.set_ylabel('downtime (ms)')
    axes.set_ylim(bottom=0)
    axes.figure.autofmt_xdate()


KINDS = {'distribution': _distribution, 'timeline': _timeline}


class Plot(command.Command):
    """Draw the downtimes of the migrations that left this host, as PNG."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('kind', choices=KINDS, help=(
            'distribution: which part of the migrations took how long; '
            'timeline: each migration at its time'))
        parser.add_argument('output', metavar='FILE', help='to write')
        report.add_filters(parser)
        return parser

    def take_action(self, parsed_args):
        try:
            from matplotlib import figure
        except ImportError as error:
            raise CannotPlot(
                'matplotlib is not installed; pip install '
                '"nova-fastmig[plot]" brings it') from error
        found = points(report.read(parsed_args))
        if not found:
            raise CannotPlot('the journal has no such report with a downtime')
        picture = figure.Figure(figsize=(8, 5), layout='constrained')
        axes = picture.subplots()
        KINDS[parsed_args.kind](axes, found)
        axes.grid(alpha=0.3)
        axes.legend()
        picture.savefig(parsed_args.output, format='png', dpi=120)
