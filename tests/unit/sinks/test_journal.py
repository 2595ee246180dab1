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


import datetime
import pathlib

import fixtures
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils import fixture as time_fixture
from oslotest import base

from nova_fastmig import journal
from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig import sinks
from nova_fastmig.sinks import journal as journal_sink
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'


class TestJournalSink(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'journal.jsonl')
        journal.register_opts(cfg.CONF)
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            group='fastmig', journal_path=str(self.path))
        self.useFixture(time_fixture.TimeFixture(
            datetime.datetime(2026, 2, 3, 4, 5, 6, 789000)))

    def test_a_report_comes_back_from_the_file(self):
        made = sinks.Sinks(['journal'])
        made.emit(None, fastmig_report.make(
            UUID, 'compute1', 'compute2', values.sla(),
            (model.Decision(model.Action.ABORT, 'late'),),
            values.completed(outcome=model.Outcome.ABORTED, reason='late',
                             downtime_ms=None)))
        made.join()
        record, = journal.Journal(self.path, 1, 0)
        self.assertEqual((1, '2026-02-03T04:05:06.789Z'),
                         (record['version'], record['time']))
        for name, value in {
                'instance_uuid': UUID, 'source': 'compute1',
                'destination': 'compute2', 'outcome': 'aborted',
                'reason': 'late', 'verdict': 'unknown',
                'downtime': {'limit_ms': 10, 'measured_ms': None,
                             'measured_by': 'not measured',
                             'verdict': 'unknown'},
                'decisions': [{'action': 'abort', 'reason': 'late'}],
        }.items():
            self.assertEqual(value, record['report'][name], name)

    def test_shapes_that_json_does_not_have(self):
        self.assertEqual(
            {'a': ['x', 'y'], '1': [[1, {'b': ['z']}]], 'c': None},
            journal_sink._plain(
                {'a': frozenset({'y', 'x'}), 1: ((1, {'b': {'z'}}),),
                 'c': None}))
