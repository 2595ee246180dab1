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

"""Tagged guests on the patched QEMU."""

from lxml import etree

from tests.functional import base


FEATURES = ('x-early-resume', 'x-drained-switchover',
            'x-single-memory-transaction')
QEMU = '{http://libvirt.org/schemas/domain/qemu/1.0}'


def emulator(domain_xml: str) -> str:
    return etree.fromstring(domain_xml).findtext('./devices/emulator')


def arguments(domain_xml: str) -> list[str]:
    return [each.get('value') for each in etree.fromstring(
        domain_xml).iterfind(f'./{QEMU}commandline/{QEMU}arg')]


class PatchedQemu(base.TwoHosts):

    def update_resources(self, *hosts: str) -> None:
        """Let hosts look what they have and tell it."""
        for host in hosts:
            self.restart_compute_service(host)

    def install(self) -> None:
        self.fake.install_patched_qemu(*FEATURES)
        self.update_resources('src', 'dest')

    def runs_on(self, host: str, server: dict) -> str:
        return emulator(self.domain(host, server).XMLDesc(0))

    def assert_not_patched(self, path: str) -> None:
        self.assertNotEqual(str(self.fake.emulator), path)

    def features_switched_on(self) -> set[str]:
        """At the source, for the last migration."""
        switched = [arguments['capabilities']
                    for command, arguments in self.fake.monitor_commands
                    if command == 'migrate-set-capabilities']
        return {each['capability'] for each in switched[-1] if each['state']}


class TestStart(PatchedQemu):

    @base.every_nova
    def test_tagged(self):
        self.install()
        self.assertEqual(str(self.fake.emulator),
                         self.runs_on('src', self.boot_tagged()))

    def test_untagged(self):
        self.install()
        self.assert_not_patched(self.runs_on('src', self.boot()))

    def test_not_there(self):
        """Availability first: the migration is what is refused."""
        self.assert_not_patched(
            self.runs_on('src', self.boot_tagged(qemu='patched')))

    @base.every_nova
    def test_a_hard_reboot_looks_again(self):
        server = self.boot_tagged()
        self.install()
        self._reboot_server(server, hard=True)
        self.assertEqual(str(self.fake.emulator),
                         self.runs_on('src', server))

    def test_the_host_tells(self):
        self.install()
        stats = self.fake_stats('dest')
        self.assertEqual(str(self.fake.emulator), stats['fastmig_emulator'])
        self.assertEqual(' '.join(sorted(FEATURES)),
                         stats['fastmig_qemu_features'])

    def fake_stats(self, host: str) -> dict:
        return self.computes[host].rt.compute_nodes[host].stats


class TestMigration(PatchedQemu):

    def test_patched_at_both_ends(self):
        self.install()
        self.fake.query_migrate = {
            'status': 'completed', 'x-features': ['x-early-resume'],
            'x-blackout': {
                'stop': 10**18, 'stopped': 10**18, 'pages-sent': 10**18,
                'devices-sent': 10**18, 'resume': 10**18 + 4_100_000,
                'clock-offset': 0, 'clock-error': 1}}
        self.fake.behaviour.downtime_ms = 25
        server = self.boot_tagged(qemu='patched')
        self._live_migrate(server)
        verdict = self.wait_for_verdict(server)
        self.assertEqual(
            ('met', 5, 'QEMU, libvirt job statistics', 3),
            tuple(verdict[each] for each in (
                'verdict', 'downtime_ms', 'measured_by', 'features')))
        self.assert_moved(server)
        call, = self.fake.calls
        for name in ('destination_xml', 'persistent_xml'):
            self.assertEqual(str(self.fake.emulator),
                             emulator(call.params[name]))
        self.assertEqual(
            ['-global', 'migration.x-early-resume=on',
             '-global', 'migration.x-single-memory-transaction=on'],
            arguments(call.params['destination_xml']))
        self.assertEqual({'x-early-resume', 'x-drained-switchover'},
                         self.features_switched_on())

    @base.every_nova
    def test_there_and_back(self):
        """The features of an arrival are not those of the next departure."""
        self.install()
        server = self.boot_tagged()
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
        self.flags(qemu_features=['x-drained-switchover'], group='fastmig')
        self._live_migrate(server)
        self._wait_for_server_parameter(
            server, {'OS-EXT-SRV-ATTR:host': 'src'})
        self.assertEqual([], arguments(
            self.fake.calls[1].params['destination_xml']))
        self.assertEqual({'x-drained-switchover'},
                         self.features_switched_on())

    def test_from_patched_to_stock(self):
        self.install()
        server = self.boot_tagged()
        self.fake.remove_patched_qemu()
        self.update_resources('dest')
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
        call, = self.fake.calls
        self.assert_not_patched(emulator(call.params['destination_xml']))
        self.assertEqual([], arguments(call.params['destination_xml']))
        self.assertEqual({'x-drained-switchover'},
                         self.features_switched_on())

    def test_from_stock_to_patched(self):
        server = self.boot_tagged()
        self.install()
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
        call, = self.fake.calls
        self.assertEqual(str(self.fake.emulator),
                         emulator(call.params['destination_xml']))
        self.assertEqual(
            ['-global', 'migration.x-single-memory-transaction=on'],
            arguments(call.params['destination_xml']))
        # Nothing to ask the distribution's QEMU for.
        self.assertEqual([], self.fake.monitor_commands)

    @base.every_nova
    def test_a_destination_with_novas_own_driver(self):
        self.install()
        server = self.boot_tagged()
        self.flags(compute_driver='libvirt.LibvirtDriver')
        self.restart_compute_service('dest')
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
        call, = self.fake.calls
        # libvirt takes its own.
        self.assertIsNone(emulator(call.params['destination_xml']))
        self.assertEqual([], arguments(call.params['destination_xml']))

    def test_untagged(self):
        self.install()
        server = self.boot()
        self._live_migrate(server)
        self.assert_moved(server)
        self.assertEqual([], self.fake.monitor_commands)
        self.assertEqual(
            [], arguments(self.fake.calls[0].params['destination_xml']))


class TestRefusal(PatchedQemu):

    def refusal(self, server: dict) -> str:
        self.api.post_server_action(server['id'], {
            'os-migrateLive': {'host': 'dest', 'block_migration': 'auto'}})
        self._wait_for_migration_status(server, ['error'])
        self._wait_for_state_change(server, 'ACTIVE')
        self.assertEqual([], self.fake.calls)
        self.assert_stayed(server)
        return ' '.join(event['details'] or ''
                        for event in self.action(server)['events'])

    @base.every_nova
    def test_a_destination_without_it(self):
        self.install()
        server = self.boot_tagged(qemu='patched')
        self.fake.remove_patched_qemu()
        refusal = self.refusal(server)
        self.assertIn('fastmig:qemu = patched, but the QEMU', refusal)
        self.assertNotIn('check_can_live_migrate_source', refusal)

    def test_a_guest_that_was_started_without_it(self):
        server = self.boot_tagged(qemu='patched')
        self.install()
        refusal = self.refusal(server)
        self.assertIn('fastmig:qemu = patched, but the QEMU', refusal)
        self.assertIn('check_can_live_migrate_source', refusal)
