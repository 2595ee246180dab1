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
from nova.api.validation.extra_specs import validators
from nova import exception as nova_exception
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import conf
from nova_fastmig import extra_specs
from nova_fastmig import request


@ddt.ddt
class TestValidators(base.BaseTestCase):
    """Through Nova's own function, which finds them by their entry point."""

    def setUp(self):
        super().setUp()
        self.conf = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)

    def refusal(self, key: str, value: str) -> str:
        error = self.assertRaises(
            nova_exception.ValidationError, validators.validate, key, value)
        return str(error)

    @ddt.data(('fastmig:enabled', 'true'), ('fastmig:max_downtime_ms', '10'),
              ('fastmig:max_total_ms', '2000'),
              ('fastmig:on_miss', 'post-copy'),
              ('fastmig:parallel_connections', '4'),
              ('fastmig:qemu', 'patched'))
    @ddt.unpack
    def test_good(self, key, value):
        validators.validate(key, value)

    def test_bad_value(self):
        self.assertEqual(
            "Validation failed; flavor extra spec 'fastmig:max_downtime_ms' "
            "= '0' is not valid; allowed: a whole number from 1 to 1000.",
            self.refusal('fastmig:max_downtime_ms', '0'))

    def test_unknown_key(self):
        self.assertIn('fastmig:max_downtime',
                      self.refusal('fastmig:max_downtime', '10'))

    def test_bounds_are_those_of_the_moment(self):
        validators.validate('fastmig:max_downtime_ms', '100')
        self.conf.config(group='fastmig', highest_max_downtime_ms=99)
        self.assertIn('a whole number from 1 to 99',
                      self.refusal('fastmig:max_downtime_ms', '100'))

    def test_settings_that_contradict_each_other(self):
        self.conf.config(group='fastmig', default_max_total_ms=5)
        self.assertIn('[fastmig] default_max_total_ms = 5 is not valid',
                      self.refusal('fastmig:max_total_ms', '2000'))

    def test_one_validator_for_each_key(self):
        self.assertEqual(
            list(request.KEYS), [each.name for each in extra_specs.register()])
