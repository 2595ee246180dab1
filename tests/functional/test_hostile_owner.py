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

"""The owner of a server cannot set or change its SLA.

Only the flavor counts, and flavors are the operator's. Whoever may boot a
server chooses its name, metadata, image and the image's properties.
"""

import copy

from oslo_utils.fixture import uuidsentinel as uuids

from tests.functional import base

SPECS = {'fastmig:enabled': 'true', 'fastmig:max_downtime_ms': '1000',
         'fastmig:max_total_ms': '600000', 'fastmig:on_miss': 'proceed',
         'fastmig:parallel_connections': '16', 'fastmig:qemu': 'any'}
# For whoever would paste it into the domain's XML as it is.
NAME = ('</nova:name><nova:flavor><nova:extraSpecs><nova:extraSpec '
        'name="fastmig:enabled">true</nova:extraSpec></nova:extraSpecs>'
        '</nova:flavor><nova:name>')


class TestHostileOwner(base.TwoHosts):

    def boot_hostile(self, **extra_specs) -> dict:
        """A server on host src whose owner has tried everything.

        :param extra_specs: of the flavor, without the namespace
        """
        image = copy.deepcopy(self.glance.show(
            None, self.glance.auto_disk_config_enabled_image['id']))
        image['id'] = uuids.hostile_image
        image['properties'] = {
            **image['properties'], **SPECS,
            **{key.replace(':', '_'): value for key, value in SPECS.items()}}
        self.glance.create(None, image)
        flavor = self._create_flavor(extra_spec={
            f'fastmig:{key}': value for key, value in extra_specs.items()})
        body = self._build_server(name=NAME, image_uuid=image['id'],
                                  flavor_id=flavor, host='src',
                                  networks='none')
        body['metadata'] = SPECS
        server = self.admin_api.post_server({'server': body})
        return self._wait_for_state_change(server, 'ACTIVE')

    def test_a_server_does_not_become_tagged(self):
        server = self.boot_hostile()
        self._live_migrate(server)
        self.assert_moved(server)
        call, = self.fake.calls
        self.assertTrue(call.has('PERSIST_DEST'))
        self.assertFalse(call.has('PARALLEL'))
        self.assertEqual([], self.verdicts(server))

    def test_nor_when_it_arrives(self):
        server = self.boot_hostile()
        arrived = self.fake.hosts['dest'].createXML(
            self.domain('src', server).XMLDesc(0), 0)
        self.restart_compute_service('dest')
        self.assertFalse(arrived.isPersistent())

    def test_limits_stay_those_of_the_flavor(self):
        server = self.boot_hostile(enabled='true', max_downtime_ms='5',
                                   max_total_ms='1500')
        self._live_migrate(server)
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('missed', 5, 1500),
                         (verdict['verdict'], verdict['max_downtime_ms'],
                          verdict['max_total_ms']))
        call, = self.fake.calls
        self.assertEqual(5, call.downtime_limit_ms)
        self.assertNotIn('parallel.connections', call.params)
        self.assert_moved(server)
