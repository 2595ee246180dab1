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

"""What finished migrations teach about the next ones."""

import json
import time

from nova.tests.fixtures import libvirt as fakelibvirt

from tests.functional import base


class TestCalibration(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.journal = self.keep_journal()

    def migrate(self, count: int, **extra_specs) -> None:
        for _ in range(count):
            server = self.boot_tagged(**extra_specs)
            self._live_migrate(server)
            self.wait_for_verdict(server)
            # Room for the next one.
            self._delete_server(server)

    def know_five(self) -> None:
        """As after five migrations like this one; five are enough to know."""
        self.migrate(1)
        stored = self.fake.emulator.parent / 'calibration'
        table = json.loads(stored.read_bytes())
        pair, = table['pairs']
        pair['observations'] *= 5
        stored.write_text(json.dumps(table))
        self.restart_compute_service('src')

    def report(self) -> dict:
        """The last one that is in the journal."""
        def read():
            lines = self.journal.read_text().splitlines()
            self.assertEqual(len(self.fake.calls), len(lines))
            return lines
        self._wait_for_assert(read)
        return json.loads(read()[-1])['report']

    def test_the_limit_follows_and_survives_a_restart(self):
        self.migrate(5)
        self.assertEqual((10, None), (self.report()['downtime_limit_ms'],
                                      self.report()['expected']))
        self.restart_compute_service('src')
        self.migrate(1)
        self.assertEqual(3, self.fake.calls[-1].downtime_limit_ms)
        self.assertEqual(
            (3, {'fixed_ms': 7.0, 'bandwidth_bytes_per_s': float(1 << 30),
                 'count': 5, 'least_fixed_ms': 7.0}),
            (self.report()['downtime_limit_ms'], self.report()['expected']))

    def refused_by(self, server: dict) -> list[tuple[str, str]]:
        """Each host that was tried in vain, and why."""
        return [(event['host'], event['details'])
                for event in self.action(server)['events']
                if event['event'] ==
                'compute_check_can_live_migrate_destination' and
                event['result'] == 'Error']

    def test_without_hope_it_is_refused_by_the_checks(self):
        self.know_five()
        server = self.boot_tagged(max_downtime_ms='7')
        self.api.post_server_action(server['id'], {
            'os-migrateLive': {'host': 'dest', 'block_migration': 'auto'}})
        self._wait_for_migration_status(server, ['error'])
        self._wait_for_state_change(server, 'ACTIVE')
        (host, why), = self.refused_by(server)
        self.assertEqual('dest', host)
        self.assertIn('the flavor allows a downtime of 7 ms, but from host '
                      'src to host dest 7.0 ms do not depend on memory', why)
        self.assertEqual(1, len(self.fake.calls))
        self.assert_stayed(server)

    def test_another_destination_is_tried(self):
        self.know_five()
        # With less memory, so that the scheduler tries it last.
        self.start_compute(hostname='other', host_info=fakelibvirt.HostInfo(
            kB_mem=8 << 20))
        # The one of this process, which the last start has set.
        self.flags(host='src')
        server = self.boot_tagged(max_downtime_ms='7')
        self.api.post_server_action(server['id'], {
            'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
        self._wait_for_migration_status(server, ['completed'])
        self.wait_for_verdict(server)
        self.assertEqual('other', self.api.get_server(
            server['id'])['OS-EXT-SRV-ATTR:host'])
        self.assertEqual(['compute_check_can_live_migrate_destination'] * 2, [
            event['event'] for event in self.action(server)['events']
            if event['event'] == 'compute_check_can_live_migrate_destination'])

    def test_a_trial(self):
        """One migration without hope, after a while."""
        self.flags(calibration_retry_s=1, group='fastmig')
        self.know_five()
        time.sleep(1.1)
        server = self.boot_tagged(max_downtime_ms='7')
        self._live_migrate(server)
        verdict = self.wait_for_verdict(server)
        self.assertEqual('met', verdict['verdict'])
        self.assertTrue(verdict['reason'].startswith('a trial, because'))
        self.assertEqual(1, self.fake.calls[-1].downtime_limit_ms)

    def test_a_file_that_is_no_calibration(self):
        (self.fake.emulator.parent / 'calibration').write_text('{')
        self.restart_compute_service('src')
        self.migrate(1)
        self.assertEqual(10, self.fake.calls[0].downtime_limit_ms)
