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


import json
from unittest import mock

import libvirt

from nova_fastmig import calibration
from nova_fastmig import calibration_store
from nova_fastmig import inspection
from tests.unit.cmd import base
from tests.unit import fake_connection

MIB = 1 << 20
VERSIONS = calibration.Versions('here', 'there')


class TestDryRun(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.connection = fake_connection.Connection()
        for target, name, value in (
                (libvirt, 'open', mock.Mock(return_value=self.connection)),
                (inspection, '_POLL_S', 0)):
            patch = mock.patch.object(target, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def learn(self, destination='compute2', fixed_ms=6.0, mib_s=900,
              source='compute1') -> None:
        store = calibration_store.Store(
            str(self.state / 'fastmig' / 'calibration.json'), 60)
        for _ in range(calibration.MIN_OBSERVATIONS):
            store.add(calibration.Pair(source, destination), VERSIONS,
                      fixed_ms, mib_s * MIB)

    def dry_run(self, *arguments) -> tuple[int, dict]:
        code, output, error = self.run_command(
            'dry-run', '-f', 'json', fake_connection.UUID, *arguments)
        self.assertEqual('', error)
        return code, json.loads(output)

    def test_met(self):
        self.learn()
        code, shown = self.dry_run()
        self.assertEqual(0, code)
        shown.pop('time')
        self.assertEqual(
            {'server': fake_connection.UUID, 'verdict': 'met', 'reason': '',
             'downtime_ms': 10, 'max_downtime_ms': 10, 'total_ms': 646,
             'max_total_ms': 2000, 'memory_bytes': 512 * MIB,
             'dirty_rate_bytes_per_s': 100 * MIB,
             'bandwidth_bytes_per_s': 900.0 * MIB, 'fixed_ms': 6.0,
             'learned_from': '5 migrations'}, shown)
        self.assertEqual([(1, 0)], self.connection.measurements)
        self.assertTrue(self.connection.is_closed)

    def test_missed(self):
        self.learn()
        self.connection.dirty_rate_mib_s = 1000
        code, shown = self.dry_run()
        self.assertEqual((2, 'missed'), (code, shown['verdict']))
        self.assertIn('will not converge', shown['reason'])

    def test_nothing_was_learned(self):
        self.learn(source='compute9')
        code, shown = self.dry_run()
        self.assertEqual((3, 'unknown', 'nothing'), (
            code, shown['verdict'], shown['learned_from']))
        code, shown = self.dry_run('--bandwidth-mib-s', '900')
        self.assertEqual((3, 639), (code, shown['total_ms']))

    def test_the_limits_of_the_flavor(self):
        self.learn()
        self.connection.extra_specs['fastmig:max_downtime_ms'] = '5'
        code, shown = self.dry_run()
        self.assertEqual((2, 5), (code, shown['max_downtime_ms']))

    def test_the_worst_destination_or_a_certain_one(self):
        self.learn('compute2', 6.0, 900)
        self.learn('compute3', 9.5, 800)
        _, shown = self.dry_run()
        self.assertEqual((9.5, 800 * MIB, '10 migrations'), (
            shown['fixed_ms'], shown['bandwidth_bytes_per_s'],
            shown['learned_from']))
        _, shown = self.dry_run('--destination', 'compute2')
        self.assertEqual(6.0, shown['fixed_ms'])

    def test_how_to_measure(self):
        self.learn()
        self.dry_run('--seconds', '3', '--mode', 'dirty-bitmap')
        self.assertEqual([(3, 1)], self.connection.measurements)

    def failure(self, server=fake_connection.UUID) -> str:
        code, _, error = self.run_command('dry-run', server)
        self.assertEqual(1, code)
        self.assertEqual([], self.connection.measurements)
        return error

    def test_a_server_without_an_sla(self):
        self.connection.extra_specs = {}
        self.assertIn('no fastmig:enabled = true', self.failure())

    def test_an_sla_that_is_not_valid(self):
        self.connection.extra_specs['fastmig:on_miss'] = 'shrug'
        self.assertIn("'fastmig:on_miss' = 'shrug' is not valid",
                      self.failure())

    def test_a_server_that_is_elsewhere(self):
        self.assertIn('Domain not found', self.failure('instance-2'))
