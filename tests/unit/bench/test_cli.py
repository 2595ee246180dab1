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

import argparse
import dataclasses
import json
import sys
from unittest import mock

import ddt

from nova_fastmig import bench
from nova_fastmig.bench import catalog
from nova_fastmig.bench import cli
from nova_fastmig.bench import engine
from nova_fastmig.bench import plot
from tests.unit.bench import made
from tests.unit.cmd import base


class BenchTestCase(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.file = self.state / 'bench.json'
        engine.save(self.file, made.results(rounds=4))


@ddt.ddt
class TestCompare(BenchTestCase):

    def test_two_contenders(self):
        code, output, error = self.run_command(
            'bench', 'compare', f'{self.file}:virsh', f'{self.file}:nova',
            '-f', 'json')
        self.assertEqual((0, ''), (code, error))
        rows = {(row['Workload'].partition('-')[0], row['Figure']): row
                for row in json.loads(output)}
        self.assertEqual(18, len(rows))
        row = rows['idle', 'blackout, packets (ms)']
        self.assertGreater(row['A'], 2 * row['B'])
        self.assertTrue(row['From'] < row['A / B'] < row['To'])
        self.assertTrue(row['Clear'])

    def test_a_file_and_itself(self):
        code, output, _ = self.run_command(
            'bench', 'compare', str(self.file), str(self.file), '-f', 'json')
        self.assertEqual(0, code)
        rows = json.loads(output)
        self.assertEqual({1.0}, {row['A / B'] for row in rows})
        self.assertEqual({False}, {row['Clear'] for row in rows})

    @ddt.data((':xen', 'must be one of nova, fastmig-patched, virsh'),
              ('.gone', 'No such file'))
    @ddt.unpack
    def test_what_is_not_there(self, more, message):
        code, _, error = self.run_command(
            'bench', 'compare', f'{self.file}{more}', str(self.file))
        self.assertEqual(1, code)
        self.assertIn(message, error)


class TestShow(BenchTestCase):

    def test_the_shortest_blackout_comes_first(self):
        code, output, error = self.run_command(
            'bench', 'show', str(self.file), '-f', 'json')
        self.assertEqual((0, ''), (code, error))
        rows = json.loads(output)
        for workload in {row['Workload'] for row in rows}:
            blackouts = [row['Blackout'] for row in rows
                         if row['Workload'] == workload]
            self.assertEqual(sorted(blackouts), blackouts)
        self.assertIn('8/8', {row['Runs'] for row in rows})

    def test_one_that_never_worked_comes_last(self):
        results = made.results(rounds=4)
        first = results.comparison.scenarios[0].name
        engine.save(self.file, dataclasses.replace(results, runs=tuple(
            dataclasses.replace(run, failures=('why',))
            if run.key.scenario == first else run for run in results.runs)))
        _, output, _ = self.run_command(
            'bench', 'show', str(self.file), '-f', 'json')
        workload = results.comparison.scenarios[0].workload.name
        last = [row for row in json.loads(output)
                if row['Workload'] == workload][-1]
        self.assertEqual(('0/8', None, None),
                         (last['Runs'], last['Blackout'], last['Total']))


class TestPlotAndReport(BenchTestCase):

    def test_kinds(self):
        self.assertEqual(('all', *plot.KINDS), cli.BenchPlot.KINDS)

    def test_one_picture(self):
        picture = self.state / 'total.png'
        self.assertEqual(0, self.run_command(
            'bench', 'plot', str(self.file), 'total', str(picture))[0])
        self.assertTrue(picture.read_bytes().startswith(b'\x89PNG'))

    def test_nothing_for_the_chart(self):
        code, _, error = self.run_command(
            'bench', 'plot', str(self.file), 'cost-of-size',
            str(self.state / 'x.svg'))
        self.assertEqual(1, code)
        self.assertIn('nothing for the chart cost-of-size', error)

    def test_all_pictures(self):
        self.assertEqual(0, self.run_command(
            'bench', 'plot', str(self.file), 'all',
            str(self.state / 'charts'))[0])
        self.assertEqual(
            set(plot.KINDS) - {'cost-of-size'},
            {file.stem for file in (self.state / 'charts').iterdir()})

    def test_report(self):
        report = self.state / 'report.html'
        self.assertEqual(0, self.run_command(
            'bench', 'report', str(self.file), str(report))[0])
        self.assertIn('Live migration, compared', report.read_text())

    def test_what_to_install_is_said(self):
        with mock.patch.dict('sys.modules', {'scipy': None}):
            # as if nothing had imported them yet
            for name in ('analyze', 'html', 'plot'):
                sys.modules.pop(f'nova_fastmig.bench.{name}', None)
                if hasattr(bench, name):
                    delattr(bench, name)
            code, _, error = self.run_command(
                'bench', 'report', str(self.file), str(self.state / 'x'))
        self.assertEqual(1, code)
        self.assertIn('pip install "nova-fastmig[bench]"', error)


class TestProgress(base.CommandTestCase):

    def test_each_run_is_shown_once(self):
        results = made.results(rounds=1)
        first = dataclasses.replace(results, runs=results.runs[:1])
        progress = cli.Progress(first)
        with mock.patch.object(progress._bar.console, 'print') as said:
            progress.show(first)
            progress.show(dataclasses.replace(
                first, runs=results.runs[:2]))
            progress.show(dataclasses.replace(
                first, runs=results.runs[:2], not_run={'x': 'no device'}))
        said.assert_called_once()

    def test_what_cannot_run_is_not_waited_for(self):
        results = made.results()
        turn = next(results.comparison.turns())
        total = len(results.runs)
        self.assertEqual(total, cli.Progress._total(results))
        # two rounds of it
        self.assertEqual(
            total - 2 * len(turn.migrations), cli.Progress._total(
                dataclasses.replace(results, not_run={turn.name: 'no'})))


@ddt.ddt
class TestRunOptions(base.CommandTestCase):

    @ddt.data(
        (('--contenders', 'novva'), "contender 'novva': must be one of"),
        (('--workloads', 'busy'), "workload 'busy': must be one of"),
        (('--comparison', 'slow'), "comparison 'slow': must be one of"))
    @ddt.unpack
    def test_unknown_names(self, arguments, message):
        code, _, error = self.run_command('bench', 'run', *arguments)
        self.assertEqual(1, code)
        self.assertIn(message, error)

    def test_not_without_root(self):
        with mock.patch('os.geteuid', return_value=1000):
            code, _, error = self.run_command('bench', 'run', '--quick')
        self.assertEqual(1, code)
        self.assertIn('needs root', error)

    def test_options_replace_what_the_comparison_has(self):
        args = cli.BenchRun(mock.Mock(), None).get_parser('run').parse_args(
            ['--quick', '--contenders', 'virsh,qemu', '--rounds', '7'])
        comparison = cli.chosen(args)
        self.assertEqual((7, 1), (comparison.rounds, comparison.migrations))
        self.assertEqual(4, len(comparison.scenarios))

    @ddt.data('255', '257', '0', '-2', 'x', '')
    def test_memory_that_a_guest_cannot_have(self, text):
        error = self.assertRaises(argparse.ArgumentTypeError,
                                  cli._memory_mib, text)
        self.assertIn(f'{text!r} is not an even number from 256', str(error))

    def test_size_of_guests(self):
        def guests(*arguments: str, default=catalog.AS_IT_IS) -> list:
            args = cli.BenchRun(mock.Mock(), None).get_parser(
                'run').parse_args(['--workloads', 'idle,idle-4gib,l2fwd-dpdk',
                                   '--contenders', 'virsh', *arguments])
            return [(each.workload.guest.memory_mib,
                     each.workload.guest.vcpus)
                    for each in cli.chosen(args, default).scenarios]
        self.assertEqual([(256, 1), (4096, 1), (512, 1)], guests())
        self.assertEqual([(1024, 2), (4096, 2), (1024, 2)], guests(
            '--memory-mib', '1024', '--vcpus', '2'))
        self.assertEqual([(8192, 2), (4096, 2), (8192, 2)], guests(
            '--vcpus', '2', default=catalog.SEED_SIZE))

    @ddt.data(([], 'full'), (['--hosts', 'FILE'], 'libvirt'),
              (['--hosts', 'FILE', '--comparison', 'features'], 'features'),
              (['--hosts', 'FILE', '--quick'], 'quick'))
    @ddt.unpack
    def test_which_comparison(self, arguments, name):
        args = cli.BenchRun(mock.Mock(), None).get_parser('run').parse_args(
            arguments)
        self.assertEqual(name, cli.chosen(args).name)
