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

"""Where the scheduler puts servers whose flavor asks for this driver."""

from tests.functional import base


class TestTraits(base.TwoHosts):

    def traits(self, host: str) -> set[str]:
        provider, = self.placement.get(
            f'/resource_providers?name={host}').body['resource_providers']
        traits = self.placement.get(
            f'/resource_providers/{provider["uuid"]}/traits',
            version='1.6').body['traits']
        return {each for each in traits if 'FASTMIG' in each}

    def boot_on(self, host: str, state: str, trait: str) -> None:
        flavor = self._create_flavor(extra_spec={
            'fastmig:enabled': 'true', f'trait:{trait}': 'required'})
        server = self._create_server(
            flavor_id=flavor, host=host, networks='none',
            expected_state=state)
        self._delete_server(server)

    @base.every_nova
    def test_a_host_with_novas_own_driver(self):
        self.flags(compute_driver='libvirt.LibvirtDriver')
        self.start_compute(hostname='stock')
        self.assertEqual(set(), self.traits('stock'))
        self.assertEqual({'CUSTOM_FASTMIG'}, self.traits('src'))
        self.boot_on('stock', 'ERROR', 'CUSTOM_FASTMIG')
        self.boot_on('src', 'ACTIVE', 'CUSTOM_FASTMIG')

    @base.every_nova
    def test_the_patched_qemu_comes_and_goes(self):
        self.boot_on('dest', 'ERROR', 'CUSTOM_FASTMIG_QEMU')
        self.fake.install_patched_qemu()
        self._run_periodics()
        self.assertEqual({'CUSTOM_FASTMIG', 'CUSTOM_FASTMIG_QEMU'},
                         self.traits('dest'))
        self.boot_on('dest', 'ACTIVE', 'CUSTOM_FASTMIG_QEMU')
        self.fake.remove_patched_qemu()
        self._run_periodics()
        self.assertEqual({'CUSTOM_FASTMIG'}, self.traits('dest'))

    def test_it_does_not_migrate_to_another_driver(self):
        self.flags(compute_driver='libvirt.LibvirtDriver')
        self.start_compute(hostname='stock')
        flavor = self._create_flavor(extra_spec={
            'fastmig:enabled': 'true', 'trait:CUSTOM_FASTMIG': 'required'})
        server = self._create_server(flavor_id=flavor, host='src',
                                     networks='none')
        self.api.post_server_action(server['id'], {
            'os-migrateLive': {'host': 'stock', 'block_migration': 'auto'}})
        self._wait_for_migration_status(server, ['error'])
        self.assertEqual([], self.fake.calls)
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
