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

"""Migrations that must not begin."""

import ddt
import fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as nova_driver

from tests.functional import base


class Refused(base.TwoHosts):

    def refusal(self, server: dict, host: str | None = 'dest') -> str:
        """Ask for a live migration and read from the API why there is none."""
        self.api.post_server_action(server['id'], {
            'os-migrateLive': {'host': host, 'block_migration': 'auto'}})
        self._wait_for_migration_status(server, ['error'])
        self._wait_for_state_change(server, 'ACTIVE')
        self.assertEqual([], self.fake.calls)
        self.assert_stayed(server)
        failed, = (
            event for event in self.action(server)['events']
            if event['event'] == 'compute_check_can_live_migrate_destination')
        self.assertEqual(('Error', 'dest'), (failed['result'], failed['host']))
        return failed['details']


@ddt.ddt
class TestRefused(Refused):
    """What was stored without validation meets nova-compute.

    The tests create their flavors with a microversion that does not validate
    extra specs.
    """

    @ddt.data(
        ({'max_downtime_ms': '0'},
         "'fastmig:max_downtime_ms' = '0' is not valid; allowed: a whole "
         'number from 1 to 1000'),
        ({'on_miss': 'shrug'},
         "'fastmig:on_miss' = 'shrug' is not valid; allowed: abort, proceed, "
         'post-copy'),
        ({'max_downtime': '5'},
         "'fastmig:max_downtime' = '5' is not valid; allowed: one of the "
         'keys fastmig:enabled'),
        ({'enabled': 'perhaps'},
         "'fastmig:enabled' = 'perhaps' is not valid; allowed: true or "
         'false'))
    @ddt.unpack
    def test_an_invalid_extra_spec(self, extra_specs, message):
        server = self.boot(**{'enabled': 'true', **extra_specs})
        self.assertIn(message, self.refusal(server))

    def test_bounds_of_the_operator(self):
        server = self.boot_tagged(max_total_ms='5000')
        self.flags(highest_max_total_ms=4999, group='fastmig')
        self.assertIn(
            "'fastmig:max_total_ms' = '5000' is not valid; allowed: a whole "
            'number from 100 to 4999', self.refusal(server))

    def test_no_patched_qemu(self):
        server = self.boot_tagged(qemu='patched')
        self.assertIn('asks for fastmig:qemu = patched, but the QEMU',
                      self.refusal(server))

    def test_post_copy_not_permitted(self):
        server = self.boot_tagged(on_miss='post-copy')
        self.assertIn('[libvirt]live_migration_permit_post_copy is off',
                      self.refusal(server))

    def test_a_device_of_the_host(self):
        server = self.boot_tagged()
        self.domain('src', server).plug_in(
            '<hostdev mode="subsystem" type="pci" managed="yes"><source>'
            '<address domain="0x0000" bus="0x81" slot="0x00" function="0x1"/>'
            '</source></hostdev>')
        self.assertRegex(
            self.refusal(server),
            r'the guest has the PCI device 0000:81:00.1 of host \w+ '
            r"\('passthrough' is not in \[fastmig\]permitted_obstacles\)")
        self.flags(permitted_obstacles=['passthrough'], group='fastmig')
        self._live_migrate(server)
        verdict = self.wait_for_verdict(server)
        self.assertEqual('met', verdict['verdict'])
        self.assertIn('the PCI device 0000:81:00.1', verdict['reason'])

    def test_disks_that_are_not_shared(self):
        for name, value in (('_check_shared_storage_test_file', False),
                            ('_assert_dest_node_has_enough_disk', None)):
            self.useFixture(fixtures.MockPatchObject(
                nova_driver.LibvirtDriver, name, return_value=value))
        self.assertRegex(
            self.refusal(self.boot_tagged()),
            r'the guest has disks on host \w+ that are not shared '
            r"\('block-migration' is not in \[fastmig\]permitted_obstacles\)")

    def test_the_ends_do_not_agree_on_tls(self):
        server = self.boot_tagged()
        self.flags(live_migration_with_native_tls=True, group='libvirt')
        self.restart_compute_service('dest')
        self.flags(live_migration_with_native_tls=False, group='libvirt')
        self.assertIn(
            '[libvirt]live_migration_with_native_tls is on on host dest and '
            'off on host', self.refusal(server))

    def test_the_scheduler_chooses(self):
        """The host that was asked tells; the conductor only counts hosts."""
        server = self.boot_tagged(on_miss='shrug')
        self.assertIn("'fastmig:on_miss' = 'shrug' is not valid",
                      self.refusal(server, host=None))


class TestHugepages(Refused):
    """Pages that something else than Nova has taken."""

    def host_info(self):
        made = fakelibvirt.HostInfo(cpu_nodes=1, cpu_sockets=1, cpu_cores=2,
                                    cpu_threads=1)
        cell, = made.numa_topology.cells
        cell.mempages = fakelibvirt.create_mempages([
            (4, (made.kB_mem - 2048 * 1024) // 4), (2048, 1024)])
        return made

    def boot_with_1_gib(self, free_pages: int) -> dict:
        for host in self.computes:
            self.fake.hosts[host].free_pages = {0: {2048: free_pages}}
        flavor = self._create_flavor(memory_mb=1024, vcpu=1, extra_spec={
            'fastmig:enabled': 'true', 'hw:mem_page_size': '2048'})
        return self._create_server(flavor_id=flavor, host='src',
                                   networks='none')

    def test_too_few_are_free(self):
        self.assertIn(
            'the guest needs 512 free hugepages of 2048 KiB on a NUMA node of '
            'host dest, but 511 are free',
            self.refusal(self.boot_with_1_gib(511)))

    def test_enough_are_free(self):
        server = self.boot_with_1_gib(512)
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
