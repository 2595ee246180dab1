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

import time

from tempest.common import compute
from tempest.common import waiters
from tempest import config
from tempest.lib.common import api_microversion_fixture
from tempest.lib.common.utils import data_utils
from tempest.lib.common.utils import test_utils
from tempest.lib import exceptions
from tempest import test

from nova_fastmig_tempest_plugin import verdict

CONF = config.CONF

# From here on nova-api checks extra specs.
MICROVERSION = '2.86'


class FastmigTest(test.BaseTestCase):

    credentials = ['primary', 'admin']

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        if not CONF.service_available.nova_fastmig:
            raise cls.skipException('nova-fastmig is not available')

    @classmethod
    def setup_clients(cls):
        super().setup_clients()
        cls.flavors_client = cls.os_admin.flavors_client
        cls.admin_servers_client = cls.os_admin.servers_client
        cls.servers_client = cls.os_primary.servers_client

    def setUp(self):
        super().setUp()
        self.useFixture(api_microversion_fixture.APIMicroversionFixture(
            compute_microversion=MICROVERSION))

    def create_flavor(self, **extra_specs):
        """Make a flavor of the size of Tempest's usual one.

        :param extra_specs: without ``fastmig:``
        :returns: its ID
        """
        like = self.flavors_client.show_flavor(
            CONF.compute.flavor_ref)['flavor']
        flavor = self.flavors_client.create_flavor(
            name=data_utils.rand_name('fastmig'), ram=like['ram'],
            vcpus=like['vcpus'], disk=like['disk'], id='auto')['flavor']
        self.addCleanup(test_utils.call_and_ignore_notfound_exc,
                        self.flavors_client.delete_flavor, flavor['id'])
        if extra_specs:
            self.tag(flavor['id'], **extra_specs)
        return flavor['id']

    def tag(self, flavor_id, **extra_specs):
        self.flavors_client.set_flavor_extra_spec(
            flavor_id, **{f'fastmig:{name}': value
                          for name, value in extra_specs.items()})


class MigrationTest(FastmigTest):

    @classmethod
    def skip_checks(cls):
        super().skip_checks()
        if not CONF.compute_feature_enabled.live_migration:
            raise cls.skipException('live migration is not available')
        if CONF.compute.min_compute_nodes < 2:
            raise cls.skipException('live migration needs two compute hosts; '
                                    'see [compute]min_compute_nodes')

    @classmethod
    def setup_credentials(cls):
        cls.set_network_resources(
            network=True, subnet=True, router=False, dhcp=True)
        super().setup_credentials()

    def create_server(self, flavor_id):
        server, _ = compute.create_test_server(
            self.os_primary, tenant_network=self.get_tenant_network(),
            flavor=flavor_id, wait_until='ACTIVE')
        self.addCleanup(waiters.wait_for_server_termination,
                        self.servers_client, server['id'])
        self.addCleanup(test_utils.call_and_ignore_notfound_exc,
                        self.servers_client.delete_server, server['id'])
        return server['id']

    def host(self, server_id):
        return self.admin_servers_client.show_server(
            server_id)['server']['OS-EXT-SRV-ATTR:host']

    def migrations(self, server_id):
        """Request IDs of the live migrations of a server."""
        return {
            action['request_id'] for action in
            self.admin_servers_client.list_instance_actions(
                server_id)['instanceActions']
            if action['action'] == 'live-migration'}

    def migrate(self, server_id, host=None):
        """Live-migrate a server to its end; returns the request ID.

        :param host: None lets the scheduler choose
        """
        source = self.host(server_id)
        before = self.migrations(server_id)
        self.admin_servers_client.live_migrate_server(
            server_id, host=host, block_migration='auto')
        waiters.wait_for_server_status(
            self.admin_servers_client, server_id, 'ACTIVE')
        request_id, = self.migrations(server_id) - before
        destination = self.host(server_id)
        if host is None:
            self.assertNotEqual(source, destination)
        else:
            self.assertEqual(host, destination)
        return request_id

    def reports(self, server_id, request_id):
        """The reports among the events of an action."""
        action = self.admin_servers_client.show_instance_action(
            server_id, request_id)['instanceAction']
        return [event['event'] for event in action['events']
                if event['event'].startswith(verdict.PREFIX)]

    def wait_for_report(self, server_id, request_id):
        """It comes a moment after Nova has finished the migration."""
        end = time.monotonic() + CONF.fastmig.verdict_timeout
        while not (found := self.reports(server_id, request_id)):
            if time.monotonic() > end:
                raise exceptions.TimeoutException(
                    f'server {server_id}, request {request_id}: no verdict '
                    f'after {CONF.fastmig.verdict_timeout} s')
            time.sleep(1)
        self.assertEqual(1, len(found), found)
        return found[0]
