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

import ddt
from nova.tests.functional.api import client

from tests.functional import base


@ddt.ddt
class TestFlavorExtraSpecs(base.TwoHosts):
    """nova-api, from the first microversion that validates extra specs."""

    def setUp(self):
        super().setUp()
        self.flavor = self._create_flavor()
        self.api.microversion = '2.86'

    def set(self, **extra_specs) -> None:
        self.api.post_extra_spec(self.flavor, {'extra_specs': {
            f'fastmig:{key}': value for key, value in extra_specs.items()}})

    def refusal(self, **extra_specs) -> str:
        error = self.assertRaises(
            client.OpenStackApiException, self.set, **extra_specs)
        self.assertEqual(400, error.response.status_code)
        return str(error)

    @base.every_nova
    def test_every_key(self):
        specs = {'enabled': 'true', 'max_downtime_ms': '5',
                 'max_total_ms': '3000', 'on_miss': 'post-copy',
                 'parallel_connections': '2', 'qemu': 'patched'}
        self.set(**specs)
        self.assertEqual(
            {f'fastmig:{key}': value for key, value in specs.items()},
            self.api.api_get(f'/flavors/{self.flavor}/os-extra_specs')
            .body['extra_specs'])

    @ddt.data(
        ('enabled', 'perhaps', 'true or false'),
        ('max_downtime_ms', '0', 'a whole number from 1 to 1000'),
        ('max_total_ms', '1h', 'a whole number from 100 to 600000'),
        ('on_miss', 'ignore', 'abort, proceed, post-copy'),
        ('parallel_connections', '17', 'a whole number from 1 to 16'),
        ('qemu', '9.2', 'any, patched'))
    @ddt.unpack
    def test_a_bad_value(self, key, value, allowed):
        self.assertIn(
            f"flavor extra spec 'fastmig:{key}' = '{value}' is not valid; "
            f'allowed: {allowed}', self.refusal(**{key: value}))

    def test_an_unknown_key(self):
        self.assertIn('fastmig:max_downtime', self.refusal(max_downtime='5'))
