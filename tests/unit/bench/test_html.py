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
import re

from oslotest import base

from nova_fastmig.bench import analyze
from nova_fastmig.bench import html
from tests.unit.bench import made


class TestReport(base.BaseTestCase):

    def test_everything_is_in_one_file(self):
        text = html.render(made.results(rounds=3))
        self.assertEqual([], re.findall(r'(?:src|href)="(?!data:)', text))
        self.assertGreaterEqual(text.count('data:image/svg+xml'), 5)

    def test_the_seeds_figures_and_ratios(self):
        text = html.render(made.results())
        for row in (('2016, before', '29.0', '1.0', '2070', '1.0'),
                    ('2016, after', '9.0', '3.2', '401', '5.2'),
                    ('2016, before', '26.0', '1.0', '2271', '1.0'),
                    ('2016, after', '5.0', '5.2', '654', '3.5')):
            self.assertIn(''.join(f'<td>{cell}</td>' for cell in row), text)

    def test_each_workload_beside_the_seeds(self):
        text = html.render(made.results(workloads=(
            'idle', 'idle-8gib', 'l2fwd', 'l2fwd-dpdk')))
        tables = text.partition('Beside the seed')[2].split('<table>')
        for name, table in zip(('idle', 'idle-8gib', 'l2fwd', 'l2fwd-dpdk'),
                               tables[1:], strict=False):
            self.assertIn(f'<tr><th>{name}</th>', table)
            for title in ('2016, after', 'nova', 'fastmig-patched', 'virsh'):
                self.assertEqual(1, table.count(f'<td>{title}</td>'), title)

    def test_the_gap_is_beside_the_blackout(self):
        self.assertIn(analyze.METRICS['gap_ms'], html.render(made.results()))

    def test_who_is_ahead(self):
        text = html.render(made.results(rounds=5))
        # of fastmig-patched, which is made to be slower than nova
        self.assertIn('class="behind">not ahead<', text)
        self.assertIn('class="ahead">ahead<', text)

    def test_what_was_left_out_is_said(self):
        results = made.results()
        broken = dataclasses.replace(results.runs[0],
                                     failures=('the guest <fell> over',))
        text = html.render(dataclasses.replace(
            results, runs=(broken, *results.runs[1:])))
        self.assertIn('the guest &lt;fell&gt; over', text)
        self.assertIn('no device', text)
        self.assertIn('<td>3/4</td>', text)

    def test_what_the_guest_is_and_does(self):
        text = html.render(made.results(
            ('virsh',), ('idle', 'idle-hugepages', 'block-io'),
            disk_mib_per_s=7.5))
        self.assertEqual(1, text.count('256 MiB in pages of 2048 KiB'))
        self.assertEqual(1, text.count('reads and writes 8 MiB/s of its disk'))
        self.assertIn('<td>7.5 [7.5, 7.5]</td>', text)

    def test_no_runs_yet(self):
        text = html.render(dataclasses.replace(made.results(), runs=()))
        self.assertNotIn('data:image', text)

    def test_numbers(self):
        self.assertEqual(['-', '9.9', '1234', '128.0 Mi'],
                         [html.number(value) for value in (
                             None, 9.94, 1234.4, 2**27)])
