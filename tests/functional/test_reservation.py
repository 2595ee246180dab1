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

"""Migrations that share the bandwidth of a host.

A server with 2 GiB that may take 600 s needs 7 MiB/s.
"""

from tests.functional import base


class Reservation(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.flags(max_concurrent_live_migrations=2)
        self.fake.behaviour.converges = False

    def reserve(self, host: str, wait_s: int) -> None:
        """Let one host have 10 MiB/s."""
        self.flags(migration_bandwidth_mib_s=10,
                   migration_bandwidth_wait_s=wait_s, group='fastmig')
        self.restart_compute_service(host)

    def boot_tagged(self) -> dict:
        return super().boot_tagged(max_total_ms='600000')

    def free_mib_s(self, host: str) -> int:
        sessions = self.computes[host].driver._sessions
        return sessions._reservations._ledger.free_bytes_per_s >> 20

    def wait_for_calls(self, count: int) -> None:
        self._wait_for_assert(
            lambda: self.assertEqual(count, len(self.fake.calls)))


class TestSource(Reservation):

    def test_the_second_one_waits(self):
        self.reserve('src', wait_s=60)
        first, second = self.boot_tagged(), self.boot_tagged()
        self.start_live_migration(first)
        self.wait_for_calls(1)
        self.assertEqual(3, self.free_mib_s('src'))
        self.start_live_migration(second)
        sessions = self.computes['src'].driver._sessions
        self._wait_for_assert(lambda: self.assertEqual(
            1, len(sessions._reservations._ledger.waiting)))
        self.wait_for_calls(1)
        self.fake.behaviour.converges = True
        for server in (first, second):
            self._wait_for_server_parameter(
                server, {'OS-EXT-SRV-ATTR:host': 'dest'})
            self.assertEqual('met', self.wait_for_verdict(server)['verdict'])
            self.assert_moved(server)
        self.assertEqual([7, 7], [call.params['bandwidth']
                                  for call in self.fake.calls])
        self.assertEqual(10, self.free_mib_s('src'))

    def test_the_second_one_is_refused(self):
        self.reserve('src', wait_s=0)
        first, second = self.boot_tagged(), self.boot_tagged()
        self.start_live_migration(first)
        self.wait_for_calls(1)
        self._live_migrate(second, 'failed')
        verdict = self.wait_for_verdict(second)
        self.assertEqual('refused', verdict['outcome'])
        self.assertIn(
            'the migration needs 7 MiB/s, but of the 10 MiB/s that host src '
            'has for migrations ([fastmig]migration_bandwidth_mib_s) only 3 '
            'are free', verdict['reason'])
        self.assert_stayed(second)
        # One that fails gives back what it had.
        self.fake.behaviour.error = 'the network is gone'
        self.fake.behaviour.converges = True
        self._wait_for_migration_status(first, ['failed'])
        self.wait_for_verdict(first)
        self.assertEqual(10, self.free_mib_s('src'))


class TestDestination(Reservation):

    def test_the_second_one_is_refused(self):
        self.reserve('dest', wait_s=60)
        first, second = self.boot_tagged(), self.boot_tagged()
        self.start_live_migration(first)
        self.wait_for_calls(1)
        self.assertEqual(3, self.free_mib_s('dest'))
        self.api.post_server_action(second['id'], {
            'os-migrateLive': {'host': 'dest', 'block_migration': 'auto'}})
        self._wait_for_migration_status(second, ['error'])
        self.wait_for_calls(1)
        self.assertIn(
            'of the 10 MiB/s that host dest has for migrations',
            ' '.join(each['details'] or ''
                     for each in self.action(second)['events']))
        self.fake.behaviour.converges = True
        self._wait_for_migration_status(first, ['completed'])
        self.wait_for_verdict(first)
        self.assert_moved(first)
        self.assertEqual(10, self.free_mib_s('dest'))
