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

import dataclasses
import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig.bench import analyze
from nova_fastmig.bench import catalog
from nova_fastmig.bench import scenario
from tests.unit.bench import made

_values = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=30)


class TestSpread(base.BaseTestCase):

    def test_of_known_values(self):
        found = analyze.spread([*range(1, 102), None])
        self.assertEqual((101, 1, 101), (found.n, found.least, found.most))
        self.assertEqual([51, 96, 100], [
            each.value for each in (found.median, found.p95, found.p99)])

    def test_the_interval_has_the_median_and_narrows(self):
        few = analyze.spread([1, 5, 9, 13, 17])
        many = analyze.spread([1, 5, 9, 13, 17] * 40)
        for each in (few, many):
            self.assertLessEqual(each.median.low, each.median.value)
            self.assertGreaterEqual(each.median.high, each.median.value)
        self.assertLess(many.median.high - many.median.low,
                        few.median.high - few.median.low)

    def test_nothing(self):
        self.assertIsNone(analyze.spread([None]))

    def test_one_value_has_no_interval(self):
        self.assertEqual(analyze.Estimate(7, None, None),
                         analyze.spread([7]).median)

    def test_all_the_same(self):
        self.assertEqual(analyze.Estimate(7, 7, 7),
                         analyze.spread([7] * 5).p99)

    @settings(deadline=None, max_examples=25)
    @given(_values)
    def test_order(self, values):
        found = analyze.spread(values)
        ordered = [found.least, found.median.value, found.p95.value,
                   found.p99.value, found.most]
        for low, high in zip(ordered, ordered[1:], strict=False):
            self.assertLessEqual(low, high * (1 + 1e-12))
        self.assertEqual(found, analyze.spread(values))


class TestRatio(base.BaseTestCase):

    def test_known(self):
        found = analyze.ratio([20, 21, 22, 23, 24], [10, 11, 11, 11, 12])
        self.assertEqual(2, found.value)
        self.assertGreater(found.low, 1)

    def test_none(self):
        self.assertIsNone(analyze.ratio([], [1]))
        self.assertIsNone(analyze.ratio([1], []))
        self.assertIsNone(analyze.ratio([1], [0]))


class TestSummaries(base.BaseTestCase):

    def test_stalled_and_failed_runs_are_left_out_and_counted(self):
        results = made.results(('nova',), ('idle',), 2, 2)
        runs = list(results.runs)
        runs[0] = dataclasses.replace(runs[0], probe_stall_ms=5.1)
        runs[1] = dataclasses.replace(runs[1], failures=('it broke',))
        summary, = analyze.summarize(dataclasses.replace(
            results, runs=tuple(runs)))
        self.assertEqual((4, 2, 1, 1), (
            summary.runs, summary.counted, summary.stalled, summary.failed))
        spread = summary.spreads['blackout_ms']
        self.assertEqual((2, 12, 13), (spread.n, spread.least, spread.most))

    def test_what_nobody_told_is_not_there(self):
        summary, = analyze.summarize(made.results(('nova',), ('idle',)))
        self.assertNotIn('downtime_qemu_ms', summary.spreads)
        self.assertIsNone(summary.median('downtime_qemu_ms'))
        self.assertEqual({}, summary.steps_ms)

    def test_steps_are_in_their_order(self):
        summary, = analyze.summarize(made.results(
            ('fastmig-patched',), ('idle',)))
        self.assertEqual(list(made.STEPS), list(summary.steps_ms))

    def test_scenarios_without_runs_are_left_out(self):
        results = made.results()
        self.assertEqual([], analyze.summarize(dataclasses.replace(
            results, runs=())))


class TestCompare(base.BaseTestCase):

    def test_a_clear_difference(self):
        results = made.results(rounds=5)
        nova, virsh = (
            [run for run in results.runs if catalog.CONTENDERS[name].name
             == run.key.scenario.partition('/')[0]]
            for name in ('nova', 'virsh'))
        found = {each.metric: each for each in analyze.compare(virsh, nova)}
        self.assertAlmostEqual(3, found['blackout_ms'].ratio.value, delta=0.6)
        self.assertTrue(found['blackout_ms'].clear)
        self.assertFalse(found['bytes_sent'].clear)
        self.assertNotIn('total_nova_ms', found)

    def test_nothing_is_clear_without_a_ratio(self):
        # a median of 0 among the resamples of both
        spread = analyze.spread([0, 1])
        for low, high in ((math.nan, math.nan), (None, None)):
            self.assertFalse(analyze.Comparison(
                'blackout_ms', spread, spread,
                analyze.Estimate(1, low, high)).clear)

    def test_what_was_not_told_in_a_phase(self):
        phase = scenario.Phase(900, 0, 0, 0, 0, None, None, None)
        runs = [made.results(during=phase).runs[0]]
        self.assertEqual([], analyze.values(runs, 'during.latency_p50_ms'))
        self.assertEqual([], analyze.values(runs, 'before.latency_p50_ms'))

    def test_ranks(self):
        found = {(each.workload, each.title, each.comparison.metric):
                 each.ahead for each in analyze.ranks(made.results(rounds=4))}
        self.assertEqual({
            (kind, title, metric): title == 'virsh'
            for kind in ('idle', 'l2fwd') for title in ('nova', 'virsh')
            for metric in ('blackout_ms', 'gap_ms', 'total_qemu_ms',
                           'total_libvirt_ms')},
            found)
