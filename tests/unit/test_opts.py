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


from oslo_config import cfg
from oslotest import base

from nova_fastmig import opts


class TestListOpts(base.BaseTestCase):

    def test_every_option_is_explained_and_there_once(self):
        names = []
        for group, options in opts.list_opts():
            self.assertEqual('fastmig', group.name)
            for option in options:
                self.assertGreater(len(option.help or ''), 40, option.name)
                names.append(option.name)
        self.assertEqual(sorted(set(names)), sorted(names))

    def test_every_default_is_valid(self):
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.StrOpt('state_path', default='/s')])
        for group, options in opts.list_opts():
            conf.register_opts(options, group=group.name)
        conf([], default_config_files=[], default_config_dirs=[])
        for option in dict(conf.fastmig):
            conf.fastmig[option]
