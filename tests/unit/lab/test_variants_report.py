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
import copy

import ddt
from oslotest import base

from lab import variants_report

RUN = {
    'variant': 'all', 'failures': [], 'probe_stalled': False,
    'blackout_ms': 7.0, 'blackout_qemu_ms': 5.25, 'downtime_libvirt_ms': 19,
    'total_libvirt_ms': 800,
    'report': {'qemu_features': ['x-a', 'x-b'], 'unused_features': []},
}
MACHINE = {'cpu': 'a CPU', 'cores': 2, 'memory_mib': 4096, 'accel': 'tcg',
           'nova': '34.0.0', 'libvirt': '11.3.0'}


def run(**changes) -> dict:
    return copy.deepcopy(RUN) | changes


@ddt.ddt
class TestFailures(base.BaseTestCase):

    @ddt.data('all', 'x-a,x-b', 'x-b,x-a')
    def test_as_expected(self, expected):
        self.assertEqual([], variants_report.failures(run(), expected))

    @ddt.data('none', 'x-a', 'x-a,x-b,x-c')
    def test_others(self, expected):
        failure, = variants_report.failures(run(), expected)
        self.assertIn(f'were x-a, x-b, not {expected}', failure)

    def test_not_all(self):
        made = run(report={'qemu_features': ['x-a'],
                           'unused_features': [['x-b', 'why']]})
        failure, = variants_report.failures(made, 'all')
        self.assertIn('why', failure)

    def test_the_stock_driver_reports_nothing(self):
        self.assertEqual([], variants_report.failures(
            run(report=None), 'none'))
        self.assertEqual(1, len(variants_report.failures(
            run(report=None), 'all')))


class TestSpread(base.BaseTestCase):

    def test_none(self):
        self.assertIsNone(variants_report.spread([None, None]))

    def test_one(self):
        self.assertEqual(
            {'n': 1, 'min': 3, 'median': 3, 'p90': 3, 'p95': 3, 'max': 3},
            variants_report.spread([None, 3]))

    def test_many(self):
        self.assertEqual(
            {'n': 101, 'min': 0, 'median': 50, 'p90': 90, 'p95': 95,
             'max': 100}, variants_report.spread(list(range(100, -1, -1))))


class TestSummary(base.BaseTestCase):

    RUNS = [
        run(variant=variants_report.WARM_UP, blackout_ms=999.0),
        run(variant='stock', blackout_ms=40.0, blackout_qemu_ms=None),
        run(), run(blackout_ms=9.0),
        run(blackout_ms=500.0, failures=['lost']),
        run(blackout_ms=400.0, probe_stalled=True)]

    def test_what_counts(self):
        summary = variants_report.summarize(self.RUNS)
        self.assertEqual(['stock', 'all'], list(summary))
        self.assertEqual(
            (4, 2, 1, 1, 8.0, 9.0),
            tuple(summary['all'][each] for each in (
                'runs', 'counted', 'failed', 'stalled')) +
            tuple(summary['all']['blackout_ms'][each]
                  for each in ('median', 'max')))
        self.assertIsNone(summary['stock']['blackout_qemu_ms'])

    def test_text(self):
        text = variants_report.text({
            'machine': MACHINE, 'runs': self.RUNS,
            'summary': variants_report.summarize(self.RUNS)})
        row, = (line for line in text.splitlines()
                if line.startswith('| all '))
        self.assertEqual(
            ['all', '2/4', '8.0', '8.8', '8.9', '9.0', '5.2', '5.2', '19.0',
             '19.0', '800.0', '800.0'],
            [cell.strip() for cell in row.strip('|').split('|')])
        self.assertIn('FAILED: run 5 (all): lost', text)
        self.assertNotIn('999', text)
