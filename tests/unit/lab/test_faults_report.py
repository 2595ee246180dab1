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

import ddt
from oslotest import base

from tests.lab import faults_report

GOOD = {'status': 'ACTIVE', 'task': None, 'host': 'compute1',
        'migration': 'failed', 'runs_on': ['compute1'],
        'domains': {'compute1': (True, True)}, 'allocations': ['compute1'],
        'migration_allocations': []}
DEAD = GOOD | {'status': 'SHUTOFF', 'runs_on': [],
               'domains': {'compute1': (False, True)}}


@ddt.ddt
class TestProblems(base.BaseTestCase):

    @ddt.data(GOOD, DEAD, DEAD | {'status': 'ERROR'})
    def test_none(self, found):
        self.assertEqual([], faults_report.problems(found))

    @ddt.data(
        ({'runs_on': ['compute1', 'compute2']}, 'runs twice'),
        ({'host': 'compute2', 'allocations': ['compute2']},
         'it runs on compute1, Nova says compute2'),
        ({'runs_on': []}, 'it does not run, Nova says ACTIVE'),
        ({'status': 'ERROR'}, 'it runs, Nova says ERROR'),
        ({'allocations': ['compute1', 'compute2']}, 'allocations on'),
        ({'migration_allocations': ['compute1']}, 'the migration keeps'),
        ({'domains': {'compute1': (True, True), 'compute2': (False, True)}},
         'a domain is left on compute2'),
        ({'task': 'migrating'}, 'the task migrating does not end'))
    @ddt.unpack
    def test_one(self, difference, expected):
        self.assertIn(expected,
                      '; '.join(faults_report.problems(GOOD | difference)))


class TestTable(base.BaseTestCase):

    def test_cells(self):
        case = {'phase': 'pre-copy', 'fault': 'source QEMU killed',
                'state': DEAD, 'problems': ['something']}
        error = {'phase': 'paused', 'fault': 'source QEMU killed',
                 'error': 'OSError', 'problems': []}
        text = faults_report.table(
            [case, error], ['source QEMU killed'],
            ['pre-copy', 'paused', 'post step', 'pre-migration'])
        cells = [line.strip(' *-') for line in text.splitlines()
                 if line.startswith('     - ')][4:]
        self.assertEqual(
            ['does not run (SHUTOFF); migration failed. **something',
             'not measured', 'there is none', 'not run'], cells)
