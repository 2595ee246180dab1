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

"""nova-api checks the tags of flavors."""

from tempest.lib import decorators
from tempest.lib import exceptions

from nova_fastmig_tempest_plugin.tests import base


class TestFlavors(base.FastmigTest):

    @classmethod
    def setup_credentials(cls):
        cls.set_network_resources()
        super().setup_credentials()

    @decorators.idempotent_id('0f4f6b1e-5f39-4a3e-8a35-5dd4f1e7c4f1')
    def test_valid_tags(self):
        flavor_id = self.create_flavor(
            enabled='true', max_downtime_ms='10', max_total_ms='2000',
            on_miss='proceed', parallel_connections='1', qemu='any')
        specs = self.flavors_client.list_flavor_extra_specs(
            flavor_id)['extra_specs']
        self.assertEqual('proceed', specs['fastmig:on_miss'])

    @decorators.attr(type='negative')
    @decorators.idempotent_id('5e0f2b0a-9d55-4f6e-a2ab-9cf2f1e6d0a3')
    def test_invalid_tags(self):
        """The value or the key is refused, and the flavor stays as it was."""
        flavor_id = self.create_flavor(enabled='true')
        for key, value in (('enabled', 'perhaps'),
                           ('max_downtime_ms', 'soon'),
                           ('max_downtime_ms', '0'),
                           ('max_total_ms', '-1'),
                           ('on_miss', 'ignore'),
                           ('parallel_connections', '0'),
                           ('qemu', 'stock'),
                           ('no_such_key', '1')):
            self.assertRaises(exceptions.BadRequest, self.tag, flavor_id,
                              **{key: value})
        self.assertEqual(
            {'fastmig:enabled': 'true'},
            self.flavors_client.list_flavor_extra_specs(
                flavor_id)['extra_specs'])
