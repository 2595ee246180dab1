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

import io

import ddt
from oslotest import base

from nova_fastmig.bench import analyze
from nova_fastmig.bench import catalog
from nova_fastmig.bench import plot
from tests.unit.bench import made


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def drawn(kind, results):
    return plot.KINDS[kind](results, analyze.summarize(results))


@ddt.ddt
class TestPlot(base.BaseTestCase):

    @ddt.data(*plot.KINDS)
    def test_every_kind_can_be_written(self, kind):
        results = made.results(
            ('nova', 'fastmig-patched', 'seed-after'),
            ('idle', 'idle-1gib', 'l2fwd', 'dirty-64'))
        file = io.BytesIO()
        drawn(kind, results).savefig(file, format='svg')
        self.assertIn(b'<svg', file.getvalue())

    @ddt.data(*sorted(set(plot.KINDS) - {'blackout', 'total', 'distribution'}))
    def test_nothing_to_draw(self, kind):
        self.assertIsNone(drawn(kind, made.results(
            ('virsh', 'qemu'), ('idle',))))

    def test_the_seeds_figures_are_beside_these(self):
        results = made.results(rounds=4)
        found = texts(drawn('seed-total', results))
        for each in catalog.SEED.values():
            self.assertIn(str(each.total_before_ms), found)
            self.assertIn(str(each.total_after_ms), found)
        self.assertIn('5.2 x', found)  # 2070 / 401
        # 29 / 9
        self.assertIn('3.2 x', texts(drawn('seed-downtime', results)))

    def test_workloads_of_one_kind_are_each_there(self):
        _, axes = drawn('seed-total', made.results(
            workloads=('l2fwd', 'l2fwd-dpdk'))).axes
        self.assertEqual(
            ['l2fwd', 'l2fwd-dpdk'],
            [label.get_text() for label in axes.get_xticklabels()])

    def test_a_waterfall_ends_at_the_last_step(self):
        axes, = drawn('waterfall', made.results()).axes
        ends = {round(bar.get_x() + bar.get_width(), 3)
                for bar in axes.patches if bar.get_width()}
        self.assertEqual(set(made.STEPS.values()), ends)

    def test_bars_have_the_workloads_names(self):
        """Two of them forward, one with DPDK."""
        axes, = drawn('waterfall', made.results(
            ('qemu-patched',), ('l2fwd', 'l2fwd-dpdk'))).axes
        self.assertEqual(
            {'qemu-patched, l2fwd', 'qemu-patched, l2fwd-dpdk'},
            {label.get_text() for label in axes.get_yticklabels()})

    def test_a_distribution_counts_all_runs(self):
        figure = drawn('distribution', made.results(
            ('virsh',), ('idle',)))
        line, = figure.axes[0].get_lines()
        self.assertEqual('virsh (4)', line.get_label())
        self.assertEqual([10, 11, 12, 13], list(line.get_xdata())[1:])
