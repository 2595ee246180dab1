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

"""How Tempest finds the tests."""

import pathlib

from tempest.test_discover import plugins

from nova_fastmig_tempest_plugin import config


class NovaFastmigTempestPlugin(plugins.TempestPlugin):

    def load_tests(self):
        package = pathlib.Path(__file__).resolve().parent
        return str(package / 'tests'), str(package.parent)

    def register_opts(self, conf):
        conf.register_opt(config.service_option, group='service_available')
        conf.register_group(config.fastmig_group)
        conf.register_opts(config.FastmigGroup, group='fastmig')

    def get_opt_lists(self):
        return [('service_available', [config.service_option]),
                ('fastmig', config.FastmigGroup)]
