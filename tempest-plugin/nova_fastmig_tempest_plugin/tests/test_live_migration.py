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

"""Live migration there and back."""

from tempest import config
from tempest.lib.common.utils import test_utils
from tempest.lib import decorators

from nova_fastmig_tempest_plugin.tests import base
from nova_fastmig_tempest_plugin import verdict

CONF = config.CONF


class TestLiveMigration(base.MigrationTest):

    def _flavor(self):
        for flavor in self.flavors_client.list_flavors()['flavors']:
            if flavor['name'] == CONF.fastmig.flavor_name:
                return flavor['id']
        self.fail(f'there is no flavor {CONF.fastmig.flavor_name!r}; see '
                  f'[fastmig]flavor_name')

    def _limits(self, flavor_id):
        specs = self.flavors_client.list_flavor_extra_specs(
            flavor_id)['extra_specs']
        self.assertEqual('true', specs['fastmig:enabled'])
        return {name: int(specs[f'fastmig:{name}'])
                for name in ('max_downtime_ms', 'max_total_ms')
                if f'fastmig:{name}' in specs}

    def _check(self, line, limits):
        report = verdict.parse(line)
        self.assertIsNotNone(report, line)
        self.assertEqual('completed', report['outcome'], line)
        self.assertIn(report['verdict'], CONF.fastmig.accepted_verdicts, line)
        for name, limit in limits.items():
            self.assertEqual(limit, report[name], line)
        self.assertIsNotNone(report['total_ms'], line)

    @decorators.idempotent_id('1d3b8a52-6a1c-4a0e-9e53-0f0f4dbb6d2e')
    @decorators.attr(type='slow')
    def test_tagged_server(self):
        """There and back; each time with a verdict on the flavor's limits."""
        flavor_id = self._flavor()
        limits = self._limits(flavor_id)
        server_id = self.create_server(flavor_id)
        home = self.host(server_id)
        for host in (None, home):
            request_id = self.migrate(server_id, host)
            self._check(self.wait_for_report(server_id, request_id), limits)

    @decorators.idempotent_id('b7f6a7cd-0c5e-4c57-8a59-25ac0f1b7f0b')
    @decorators.attr(type='slow')
    def test_untagged_server(self):
        """It migrates as ever, and nothing is judged."""
        server_id = self.create_server(self.create_flavor())
        home = self.host(server_id)
        for host in (None, home):
            request_id = self.migrate(server_id, host)
            # Where a verdict would come, it would come within this time.
            self.assertFalse(test_utils.call_until_true(
                lambda request_id=request_id: bool(
                    self.reports(server_id, request_id)), 10, 2))
