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

"""What a report has beside the verdict."""

import json

from tests.functional import base


class TestReport(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.journal = self.keep_journal()

    def report(self, status='completed', **extra_specs) -> dict:
        """That of one migration, from the journal."""
        server = self.boot_tagged(**extra_specs)
        self._live_migrate(server, status)
        self.wait_for_verdict(server)
        self._wait_for_assert(
            lambda: self.assertTrue(self.journal.exists() and
                                    self.journal.read_text()))
        line, = self.journal.read_text().splitlines()
        return json.loads(line)['report']

    def test_a_guest_that_moved(self):
        made = self.report()
        # 7 ms of downtime are libvirt's.
        self.assertEqual(
            {'qemu_stop_ms': 0.5, 'transfer_ms': 3.0,
             'libvirt_handover_ms': 3.5},
            {name: value for name, value in made['parts'].items()
             if value is not None})
        self.assertIsNone(made['source_pause_ms'])
        self.assertEqual(0, made['nova']['waited_ms'])
        for name in 'before_ms', 'after_ms':
            self.assertTrue(0 <= made['nova'][name] < 300_000, name)

    def test_one_that_was_never_stopped(self):
        self.fake.behaviour.converges = False
        self.fake.behaviour.pass_s = 0.05
        made = self.report('cancelled', max_total_ms='300')
        self.assertEqual((None, None, 'aborted'), (
            made['parts'], made['nova']['after_ms'], made['outcome']))
        self.assertEqual(0, made['source_pause_ms'])

    def test_one_that_was_stopped_in_vain(self):
        self.fake.behaviour.hangs = True
        self.flags(switchover_timeout_ms=200, group='fastmig')
        made = self.report('cancelled', max_total_ms='60000')
        self.assertEqual((None, 250, 'aborted'), (
            made['parts'], made['source_pause_ms'], made['outcome']))
