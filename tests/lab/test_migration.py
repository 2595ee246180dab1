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

"""Live migrations of tagged guests between two real hosts."""

import json
import pathlib
import tempfile

import openstack

from tests.lab import base

# The guest writes to 32 MiB of its memory per second: the first of these
# never converges, so that the test can act meanwhile, the second does.
SLOW_MIB_PER_S = 8
FAST_MIB_PER_S = 1000
# Longer than such a migration takes.
PATIENT_MS = '120000'


class DemoTest(base.LabTest):
    """The README's first command, with fewer migrations."""

    def test_demo(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        file = pathlib.Path(directory.name) / 'demo.json'
        base.lab('demo', '--rounds', '1', '--migrations', '1',
                 '--json', str(file))
        document = json.loads(file.read_text())

        runs = document['runs']
        self.assertEqual({'stock', 'fastmig'},
                         {run['driver'] for run in runs})
        for run in runs:
            self.assertEqual([], run['failures'])
            self.assertEqual('completed', run['status'])
            self.assertTrue(run['guest_continuous'])
            if run['driver'] == 'fastmig' and run['server'] == 'tagged':
                self.assertEqual('completed', run['verdict']['outcome'])
            else:
                self.assertIsNone(run['verdict'])


class TaggedGuestTest(base.LabTest):

    def test_there_and_back(self):
        self.boot(self.flavor(enabled='true', on_miss='proceed'))
        with self.probe() as probe:
            for destination in ('compute2', 'compute1'):
                self.migrate()
                self.assert_ends('completed')
                self.assert_on(destination)
        self.assert_unharmed(probe)
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual(10, verdict['max_downtime_ms'])
        self.assertEqual(2000, verdict['max_total_ms'])
        self.assertIsNotNone(verdict['downtime_ms'])
        self.assertIsNotNone(verdict['total_ms'])
        self.assertEqual(
            'met' if verdict['downtime_ms'] <= 10 and
            verdict['total_ms'] <= 2000 else 'missed', verdict['verdict'])

    def test_parallel_connections(self):
        self.boot(self.flavor(enabled='true', on_miss='proceed',
                              parallel_connections='3'))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        with self.probe() as probe:
            self.migrate()
            self.running_migration()
            base.wait_until('QEMU has three channels', lambda:
                            'multifd-channels: 3' in base.on_host(
                                'compute1', 'virsh', 'qemu-monitor-command',
                                '--hmp', self.domain_name,
                                'info migrate_parameters'))
            self.limit_bandwidth('compute1', FAST_MIB_PER_S)
            self.assert_ends('completed')
        self.assert_on('compute2')
        self.assert_unharmed(probe)

    def test_abort_at_the_deadline(self):
        """Out of time before the switchover: the guest never stood still."""
        # time enough for the second migration, also on a busy machine
        self.boot(self.flavor(enabled='true', max_total_ms='6000'))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        with self.probe() as probe:
            self.migrate()
            self.assert_ends('cancelled')
        self.assert_on('compute1')
        self.assert_unharmed(probe)
        # A paused guest would have lost some: a stop and start of QEMU's
        # vCPUs takes longer than the 1 ms between probes.
        self.assertEqual(0, probe.result['lost'], probe.result)
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual(('unknown', 'aborted'),
                         (verdict['verdict'], verdict['outcome']))
        self.assertIn('before the switchover', verdict['reason'])

        # and it can be migrated after that
        self.limit_bandwidth('compute1', FAST_MIB_PER_S)
        self.migrate()
        self.assert_ends('completed')
        self.assert_on('compute2')

    def test_live_migration_abort(self):
        self.boot(self.flavor(enabled='true', max_total_ms=PATIENT_MS))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        with self.probe() as probe:
            self.migrate()
            migration = self.running_migration()
            self.compute.abort_server_migration(migration.id, self.uuid)
            self.assert_ends('cancelled')
        self.assert_on('compute1')
        self.assert_unharmed(probe)
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual('aborted', verdict['outcome'])
        self.assertIn('live-migration-abort', verdict['reason'])

    def test_live_migration_force_complete(self):
        self.boot(self.flavor(enabled='true', max_total_ms=PATIENT_MS))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        with self.probe() as probe:
            self.migrate()
            migration = self.running_migration()
            self.compute.force_complete_server_migration(
                migration.id, self.uuid)
            self.assert_ends('completed')
            base.wait_until('the guest runs again', lambda:
                            self.domain_state('compute2') == (True, True))
        self.assert_on('compute2')
        self.assert_unharmed(probe)
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual(('missed', 'completed'),
                         (verdict['verdict'], verdict['outcome']))

    def test_untagged_guest(self):
        """The stock path: no verdict, and Nova's own downtime steps."""
        self.boot(self.flavor())
        with self.probe() as probe:
            self.migrate()
            self.assert_ends('completed')
        self.assert_on('compute2')
        self.assert_unharmed(probe)
        self.assertIsNone(self.verdict())


class ExtraSpecTest(base.LabTest):

    def test_nova_api_rejects(self):
        for key, value, allowed in (
                ('max_downtime_ms', '0', '1 to 1000'),
                ('on_miss', 'relax', 'abort, proceed, post-copy'),
                ('downtime', '10', "'fastmig:downtime'")):
            error = self.assertRaises(
                openstack.exceptions.BadRequestException, self.flavor,
                **{key: value})
            self.assertIn(allowed, str(error))
            self.doCleanups()

    def test_stored_value_that_is_not_valid(self):
        """As stored by an API without validators: nothing is started."""
        flavor = self.flavor(enabled='true')
        base.on_host(
            'controller', 'mariadb', 'nova_api', '--execute',
            'insert into flavor_extra_specs (flavor_id, `key`, value) '
            'select id, "fastmig:max_downtime_ms", "soon" from flavors '
            f'where flavorid = "{flavor.id}"')
        self.boot(flavor)
        with self.probe() as probe:
            self.migrate()
            self.assert_ends('error')
        self.assert_on('compute1')
        self.assert_unharmed(probe)
        action = next(action for action in self.compute.server_actions(
            self.uuid) if action.action == 'live-migration')
        action = self.compute.get_server_action(action.request_id, self.uuid)
        details = ' '.join(event.details or '' for event in action.events)
        self.assertIn('fastmig:max_downtime_ms', details)
        self.assertIn('soon', details)


class RecoveryTest(base.LabTest):
    """A compute service that dies between switchover and definition."""

    def _unit(self, verb: str, host: str) -> None:
        base.on_host(host, 'systemctl', verb, 'nova-compute')

    def _arrived(self, host: str) -> bool:
        state = self.domain_state(host)
        return state is not None and state[0]

    def _boot(self) -> None:
        self.boot(self.flavor(enabled='true', max_total_ms=PATIENT_MS))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)

    def _migrate_and_kill(self, host: str) -> None:
        """Let a migration from compute1 end without this nova-compute."""
        self.migrate()
        self.running_migration()
        # starts what is not running and waits for it
        self.addCleanup(base.lab, 'up')
        base.on_host(host, 'systemctl', 'kill', '--signal=KILL',
                     'nova-compute')
        self._unit('stop', host)
        self.limit_bandwidth('compute1', FAST_MIB_PER_S)

    def test_destination_dies(self):
        self._boot()
        with self.probe() as probe:
            self._migrate_and_kill('compute2')
            base.wait_until('the guest runs on compute2',
                            lambda: self._arrived('compute2'))
            self.assertEqual((True, False), self.domain_state('compute2'))

            self._unit('start', 'compute2')
            base.wait_until('the guest is defined on compute2', lambda:
                            self.domain_state('compute2') == (True, True))
            self.assert_ends('completed')
        self.assert_on('compute2')
        self.assert_unharmed(probe)

    def test_source_dies(self):
        self._boot()
        with self.probe() as probe:
            self._migrate_and_kill('compute1')
            base.wait_until('the guest is defined on compute2', lambda:
                            self.domain_state('compute2') == (True, True))
            base.wait_until('the guest is gone from compute1', lambda:
                            self.domain_state('compute1') is None)
        self.assert_unharmed(probe)
        # Nova knows nothing of it: the server is deleted at the source, so
        # the domain has to be removed here.
        self.addCleanup(self._remove_domain, 'compute2')

    def _remove_domain(self, host: str) -> None:
        with self._domain(host) as domain:
            if domain is not None:
                domain.destroy()
                domain.undefine()
