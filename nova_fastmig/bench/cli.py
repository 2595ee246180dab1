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

"""``nova-fastmig bench``: run, show, compare, plot and report.

What only the benchmarks need is imported where it is used: the other commands
work without it.
"""

import argparse
import contextlib
import logging
import math
import os
import pathlib
import shlex
import signal
import sys

from cliff import command
from cliff import lister

from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import scenario
from nova_fastmig import exception

# set in the process that runs in the network of the lab's controller
INSIDE = 'NOVA_FASTMIG_BENCH_INSIDE'


class MissingExtra(exception.FastMigError):
    """What the benchmarks need beside the driver is not installed."""


class CannotRun(exception.FastMigError):
    """Nothing can be run as the command was given."""


@contextlib.contextmanager
def extra():
    """Say what to install if the block imports what is not there."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f'{error}; pip install "nova-fastmig[bench]" '
                           f'brings what the benchmarks need') from error


def _names(text: str) -> list[str]:
    return [name for name in text.split(',') if name]


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a number from 1 to 1000')
    return int(text)


def _memory_mib(text: str) -> int:
    # what the guest's image needs; whole pages of 2 MiB
    if not text.isdecimal() or not 256 <= int(text) <= 2**20 or int(text) % 2:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not an even number from 256 to {2**20}')
    return int(text)


def chosen(args: argparse.Namespace, default: catalog.Size = catalog.AS_IT_IS
           ) -> scenario.Comparison:
    """The comparison that the options describe.

    :param default: of guests, where no option says it
    :raises: catalog.UnknownName
    """
    name = 'quick' if args.quick else args.comparison or (
        'libvirt' if args.hosts else 'full')
    if name not in catalog.PRESETS:
        raise catalog.UnknownName(
            f'comparison {name!r}: must be one of '
            f'{", ".join(catalog.PRESETS)}')
    preset = catalog.PRESETS[name]
    return catalog.comparison(
        name, args.contenders or preset.contenders,
        args.workloads or preset.workloads, args.rounds or preset.rounds,
        args.migrations or preset.migrations,
        catalog.Size(args.memory_mib or default.memory_mib,
                     args.vcpus or default.vcpus))


class Progress:
    """A bar with the time that is left, and a line for each migration."""

    def __init__(self, results: scenario.Results):
        from rich import console
        from rich import progress
        self._console = console.Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn('{task.completed}/{task.total} migrations'),
            progress.BarColumn(), progress.TimeElapsedColumn(),
            progress.TextColumn('left'), progress.TimeRemainingColumn(
                compact=True),
            console=self._console, speed_estimate_period=3600)
        self._task = self._bar.add_task(
            '', total=self._total(results), completed=len(results.runs))

    @staticmethod
    def _total(results: scenario.Results) -> int:
        return sum(len(turn.migrations) for turn in results.comparison.turns()
                   if turn.name not in results.not_run)

    def __enter__(self):
        self._bar.__enter__()
        return self

    def __exit__(self, *exception):
        self._bar.__exit__(*exception)

    def show(self, results: scenario.Results) -> None:
        before = self._bar.tasks[0].completed
        self._bar.update(self._task, total=self._total(results),
                         completed=len(results.runs))
        if len(results.runs) == before:
            return  # something cannot be run
        run = results.runs[-1]
        names = {each.name: f'{catalog.title(each.contender)}, '
                            f'{catalog.title(each.workload)}'
                 for each in results.comparison.scenarios}
        figures = run.figures
        said = ('FAILED: ' + '; '.join(run.failures) if run.failures else
                f'blackout {figures.blackout_ms:.0f} ms, total '
                f'{figures.total_ms or float("nan"):.0f} ms')
        self._bar.console.print(f'{names[run.key.scenario]}: {said}',
                                highlight=False, markup=False)


def _rigs_on_the_lab(lab) -> dict:
    """Who migrates it on the lab, for each control."""
    from nova_fastmig.bench import libvirt_rig
    from nova_fastmig.bench import nova_rig
    from nova_fastmig.bench import qemu_rig
    rigs = {scenario.Control.NOVA: nova_rig.NovaRig(lab),
            scenario.Control.LIBVIRT: libvirt_rig.LibvirtRig(lab),
            scenario.Control.QEMU: qemu_rig.QemuRig(lab)}
    return {(control, plane): rig for control, rig in rigs.items()
            for plane in scenario.DataPlane}


def _rigs_on_hosts(given) -> dict:
    """The same on hosts that are given."""
    from nova_fastmig.bench import hosts
    from nova_fastmig.bench import libvirt_rig
    return {**{(control, plane): hosts.LabOnly()
               for control in scenario.Control
               for plane in scenario.DataPlane},
            (scenario.Control.LIBVIRT, scenario.DataPlane.KERNEL):
                libvirt_rig.LibvirtRig(given)}


@contextlib.contextmanager
def _prepared(lab, rigs):
    """Leave the lab to the migrations: its processor, and its memory."""
    with contextlib.ExitStack() as stack:
        # as lab/demo and the tests expect it
        stack.callback(lab.run, 'use-driver', 'fastmig')
        stack.callback(lab.use_switch, scenario.DataPlane.KERNEL)
        stack.callback(lab.run, 'background', 'normal')
        lab.run('background', 'idle')
        for rig in rigs:
            # guests of a run that was killed
            rig.clean()
        yield


class BenchRun(command.Command):
    """Migrate guests in every way, in turns, and keep the figures.

    It uses the lab of the checkout that the package is installed from, or two
    hosts that are given, and needs root. An interrupted run goes on when it is
    started again with the same options.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--output', metavar='FILE', type=pathlib.Path,
            default='bench.json', help='results; those that are '
            'there are kept (default: %(default)s)')
        parser.add_argument(
            '--comparison',
            help=f'one of {", ".join(catalog.PRESETS)} (default: full, or '
                 f'libvirt with --hosts)')
        parser.add_argument(
            '--quick', action='store_true',
            help='the same as --comparison quick: under five minutes')
        parser.add_argument(
            '--contenders', type=_names, metavar='NAME[,NAME...]',
            help=f'instead of those of the comparison: '
                 f'{", ".join(catalog.CONTENDERS)}')
        parser.add_argument(
            '--workloads', type=_names, metavar='NAME[,NAME...]',
            help=f'instead of those of the comparison: '
                 f'{", ".join(catalog.WORKLOADS)}')
        parser.add_argument(
            '--hosts', metavar='FILE', type=pathlib.Path,
            help='two hosts to use instead of the lab, through libvirt; the '
                 'documentation of the benchmarks says what is in the file')
        parser.add_argument('--rounds', type=_positive,
                            help='how often each contender has its turn')
        parser.add_argument('--migrations', type=_positive,
                            help='of each workload in one turn')
        parser.add_argument(
            '--memory-mib', type=_memory_mib,
            help='of the guests, but for workloads whose name has a size '
                 '(default: 8192 with KVM where the hosts have the memory '
                 'and the cores, otherwise 256, or 512 with DPDK)')
        parser.add_argument(
            '--vcpus', type=_positive,
            help='of the guests (default: 4 with KVM where the hosts have '
                 'the memory and the cores, otherwise 1)')
        return parser

    def take_action(self, parsed_args):
        comparison = chosen(parsed_args)
        with extra():
            from nova_fastmig.bench import hosts
            from nova_fastmig.bench import lab as lab_
            import rich  # noqa: F401
        # a mistake in the file is said first
        place = hosts.Hosts(parsed_args.hosts) if parsed_args.hosts else (
            lab_.Lab())
        if os.geteuid():
            raise CannotRun(f'bench run needs root, for the '
                            f'{"generator" if parsed_args.hosts else "lab"}')
        if parsed_args.hosts:
            rigs, prepared = _rigs_on_hosts(place), contextlib.nullcontext()
        else:
            if not os.environ.get(INSIDE):
                self._enter(place, comparison)
            rigs = _rigs_on_the_lab(place)
            prepared = _prepared(place, set(rigs.values()))
        comparison = chosen(parsed_args, place.guest_size())
        # a QEMU that quits as it was told is an error to it
        logging.getLogger('qemu.qmp').setLevel(logging.CRITICAL)
        command_line = shlex.join(
            [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
        results = engine.begin(parsed_args.output, comparison,
                               place.machine(), command_line)
        # whoever ends it, guests and hosts are tidied up
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with prepared, Progress(results) as progress:
            def keep(made):
                engine.save(parsed_args.output, made)
                progress.show(made)
            results = engine.run(
                results, lambda turn: rigs[
                    turn.contender.control, turn.guest.data_plane], keep,
                lab_.now)
        failed = sum(bool(run.failures) for run in results.runs)
        for name, why in results.not_run.items():
            self.app.stderr.write(f'not run: {name}: {why}\n')
        if failed:
            self.app.stderr.write(f'{failed} migrations failed\n')
        return 1 if failed else 0

    def _enter(self, lab, comparison: scenario.Comparison) -> None:
        """Go on in the network of the lab's controller, and keep the lab."""
        lab.run('up')
        if any(each.workload.guest.data_plane == scenario.DataPlane.DPDK
               for each in comparison.scenarios):
            # while Debian's mirrors can still be reached
            lab.run('use-switch', '--install', timeout_s=1200)
        os.environ[INSIDE] = '1'
        os.execv(lab.commands / 'hold', [  # noqa: S606
            'hold', 'nsenter', f'--net=/run/netns/{lab.name}-controller',
            sys.executable, *sys.argv])


class BenchCompare(lister.Lister):
    """Compare two contenders, or two files of results.

    Each row has the medians of both, and their ratio with its interval; it is
    clear if the interval does not have 1 in it.
    """

    COLUMNS = ('Workload', 'Figure', 'A', 'B', 'A / B', 'From', 'To', 'Clear')

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'a', metavar='A', help='FILE:CONTENDER, or FILE for all of them')
        parser.add_argument('b', metavar='B', help='the same')
        return parser

    def take_action(self, parsed_args):
        with extra():
            from nova_fastmig.bench import analyze
        first, second = (_side(each) for each in (parsed_args.a,
                                                  parsed_args.b))
        rows = []
        for key in first:
            if key not in second:
                continue
            for each in analyze.compare(first[key], second[key]):
                ratio = each.ratio
                rows.append((
                    ', '.join(key), analyze.METRICS[each.metric],
                    *(round(side.median.value, 2) for side in (
                        each.first, each.second)),
                    *((round(value, 3) if value is not None else None
                       for value in (ratio.value, ratio.low, ratio.high))
                      if ratio else (None,) * 3),
                    each.clear))
        if not rows:
            raise CannotRun(f'{parsed_args.a} and {parsed_args.b} have no '
                            f'workload in common that was run')
        return self.COLUMNS, rows


def _side(text: str) -> dict[tuple[str, ...], list[scenario.Run]]:
    """Runs by workload, and by contender where none is named.

    :param text: FILE or FILE:CONTENDER
    """
    file, _, title = text.partition(':')
    results = engine.load(pathlib.Path(file))
    found = {}
    titles = dict.fromkeys(catalog.title(each.contender)
                           for each in results.comparison.scenarios)
    if title and title not in titles:
        raise catalog.UnknownName(f'contender {title!r} of {file}: must be '
                                  f'one of {", ".join(titles)}')
    for each in results.comparison.scenarios:
        if title in ('', catalog.title(each.contender)):
            key = (each.workload.name,) if title else (
                each.workload.name, catalog.title(each.contender))
            found[key] = results.of(each.name)
    return found


class BenchShow(lister.Lister):
    """Show the figures of each contender in each workload.

    Medians, and the blackout's p95 and longest, of the runs that count; those
    with the shortest blackout come first.
    """

    COLUMNS = ('Workload', 'Contender', 'Runs', 'Blackout', 'p95', 'Longest',
               'Lost', 'Stop to resume', 'Total', 'MiB', 'Nova total')

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('results', metavar='FILE', type=pathlib.Path)
        return parser

    def take_action(self, parsed_args):
        with extra():
            from nova_fastmig.bench import analyze
        summaries = analyze.summarize(engine.load(parsed_args.results))
        workloads = analyze.workloads(summaries)

        def order(each):
            blackout = each.median('blackout_ms')
            return (workloads.index(each.scenario.workload),
                    math.inf if blackout is None else blackout)
        return self.COLUMNS, [self._row(each)
                              for each in sorted(summaries, key=order)]

    @staticmethod
    def _row(each) -> tuple:
        def rounded(value: float | None, unit: int = 1) -> float | None:
            return None if value is None else round(value / unit, 1)
        blackout = each.spreads.get('blackout_ms')
        return (
            each.scenario.workload.name, each.title,
            f'{each.counted}/{each.runs}',
            *(rounded(value) for value in (
                (blackout.median.value, blackout.p95.value, blackout.most)
                if blackout else (None,) * 3)),
            *(rounded(each.median(name)) for name in (
                'packets_lost', 'downtime_qemu_ms', 'total_ms')),
            rounded(each.median('bytes_sent'), 2**20),
            rounded(each.median('total_nova_ms')))


class BenchPlot(command.Command):
    """Draw a chart of a file of results, or all that it has something for."""

    KINDS = ('all', 'seed-total', 'seed-downtime', 'blackout', 'total',
             'waterfall', 'distribution', 'cost-of-size',
             'cost-of-dirty-rate')

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('results', metavar='FILE', type=pathlib.Path)
        parser.add_argument('kind', choices=self.KINDS)
        parser.add_argument(
            'output', type=pathlib.Path,
            help='picture to write, whose suffix is its format; for all, a '
                 'directory that SVGs are written to')
        return parser

    def take_action(self, parsed_args):
        with extra():
            from nova_fastmig.bench import analyze
            from nova_fastmig.bench import plot
        results = engine.load(parsed_args.results)
        summaries = analyze.summarize(results)
        if parsed_args.kind != 'all':
            made = plot.KINDS[parsed_args.kind](results, summaries)
            if made is None:
                raise CannotRun(f'{parsed_args.results} has nothing for the '
                                f'chart {parsed_args.kind}')
            made.savefig(parsed_args.output, dpi=120)
            return
        parsed_args.output.mkdir(parents=True, exist_ok=True)
        for kind, draw in plot.KINDS.items():
            made = draw(results, summaries)
            if made is not None:
                made.savefig(parsed_args.output / f'{kind}.svg')


class BenchReport(command.Command):
    """Write one HTML file with figures and charts."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('results', metavar='FILE', type=pathlib.Path)
        parser.add_argument('output', type=pathlib.Path,
                            help='the HTML file to write')
        return parser

    def take_action(self, parsed_args):
        with extra():
            from nova_fastmig.bench import html
        parsed_args.output.write_text(
            html.render(engine.load(parsed_args.results)))
