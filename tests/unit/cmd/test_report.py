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


import csv
import io
import json

import ddt
import fixtures

from nova_fastmig.cmd import main
from nova_fastmig import journal
from nova_fastmig import model
from nova_fastmig import report
from nova_fastmig.sinks import journal as journal_sink
from tests.unit.cmd import base
from tests.unit import values

ONE, TWO = ('7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f',
            '00000000-1a2b-4c3d-8e9f-0a1b2c3d4e5f')
ABORTED = {'outcome': model.Outcome.ABORTED, 'downtime_ms': None,
           'total_ms': None, 'reason': 'too late'}


class JournalTestCase(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.state / 'fastmig' / 'journal.jsonl'
        self.journal = journal.Journal(self.path, 10 ** 6, 1)

    def add(self, time, server=ONE, **completed) -> None:
        record = journal_sink.to_record(report.make(
            server, 'compute1', 'compute2', values.sla(), (),
            values.completed(**completed)))
        self.journal.append({**record, 'time': time})

    def fill(self) -> None:
        self.add('2026-02-01T00:00:00.000Z')
        self.add('2026-02-02T00:00:00.000Z', TWO, downtime_ms=11)
        self.add('2026-02-03T00:00:00.000Z', **ABORTED)


@ddt.ddt
class TestList(JournalTestCase):

    def times(self, *arguments) -> list[str]:
        code, output, _ = self.run_command(
            'report', 'list', '-f', 'json', *arguments)
        self.assertEqual(0, code)
        return [each['Time'][8:10] for each in json.loads(output)]

    @ddt.data(((), ['01', '02', '03']),
              (('--server', ONE), ['01', '03']),
              (('--verdict', 'missed'), ['02']),
              (('--since', '2026-02-02'), ['02', '03']),
              (('--since', '2026-02-02T00:00:00+00:00'), ['02', '03']),
              (('--since', '2026-02-02T02:00:00+02:00'), ['02', '03']),
              (('--since', '2026-02-02T00:00:00.001Z'), ['03']),
              (('--server', TWO, '--verdict', 'met'), []))
    @ddt.unpack
    def test_filters(self, arguments, times):
        self.fill()
        self.assertEqual(times, self.times(*arguments))

    def test_the_columns(self):
        self.fill()
        _, output, _ = self.run_command('report', 'list', '-f', 'csv')
        rows = list(csv.DictReader(io.StringIO(output)))
        self.assertEqual(
            {'Time': '2026-02-02T00:00:00.000Z', 'Server': TWO,
             'Destination': 'compute2', 'Outcome': 'completed',
             'Verdict': 'missed', 'Downtime (ms)': '11',
             'Max Downtime (ms)': '10', 'Total (ms)': '800',
             'Max Total (ms)': '2000'}, rows[1])

    def test_no_journal(self):
        self.assertEqual([], self.times())

    def test_another_journal(self):
        self.fill()
        moved = self.path.rename(self.state / 'copy')
        self.assertEqual(['01', '02', '03'],
                         self.times('--journal', str(moved)))

    def test_records_of_other_programs(self):
        self.fill()
        for record in ({}, {'version': 2, 'report': {}},
                       {'version': 1, 'report': []}):
            self.journal.append(record)
        self.assertEqual(['01', '02', '03'], self.times())

    def test_fields_that_a_report_does_not_have(self):
        self.journal.append({'version': 1, 'report': {},
                             'time': '2026-02-04T00:00:00Z'})
        _, output, _ = self.run_command('report', 'list', '-f', 'json')
        self.assertIsNone(json.loads(output)[0]['Downtime (ms)'])

    def test_a_time_that_is_none(self):
        stderr = io.StringIO()
        with fixtures.MonkeyPatch('sys.stderr', stderr):
            error = self.assertRaises(
                SystemExit, main.FastMigApp().run,
                ['report', 'list', '--since', 'noon'])
        self.assertEqual(2, error.code)
        self.assertIn("'noon' is not a time such as 2026-02-03",
                      stderr.getvalue())


class TestShow(JournalTestCase):

    def show(self, *arguments) -> dict:
        code, output, error = self.run_command(
            'report', 'show', '-f', 'json', *arguments)
        self.assertEqual((0, ''), (code, error))
        return json.loads(output)

    def test_the_newest_with_everything(self):
        self.fill()
        shown = self.show(ONE)
        for name, value in {
                'time': '2026-02-03T00:00:00.000Z', 'reason': 'too late',
                'downtime.limit_ms': 10, 'downtime.measured_ms': None,
                'total.verdict': 'unknown', 'decisions': []}.items():
            self.assertEqual(value, shown[name], name)

    def test_a_certain_one(self):
        self.fill()
        self.assertEqual('completed', self.show(
            ONE, '--time', '2026-02-01T00:00:00.000Z')['outcome'])

    def test_none(self):
        self.fill()
        for arguments, text in (
                ((TWO[:-1],), f'no report of server {TWO[:-1]}'),
                ((ONE, '--time', 'x'), f'no report of server {ONE} at x')):
            code, _, error = self.run_command('report', 'show', *arguments)
            self.assertEqual(1, code)
            self.assertIn(text, error)


class TestExport(JournalTestCase):

    def test_as_it_is(self):
        self.fill()
        output = self.state / 'out'
        code, _, _ = self.run_command('report', 'export', '--output',
                                      str(output))
        self.assertEqual(0, code)
        self.assertEqual(list(self.journal),
                         [json.loads(line) for line in
                          output.read_text().splitlines()])

    def test_to_standard_output(self):
        self.fill()
        _, output, _ = self.run_command('report', 'export', '--server', TWO)
        line, = output.splitlines()
        self.assertEqual(TWO, json.loads(line)['report']['instance_uuid'])
