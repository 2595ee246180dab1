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


import io
import sys
from unittest import mock

import ddt
import fixtures

from nova_fastmig.cmd import status
from nova_fastmig import driver
from tests.unit.cmd import base


@ddt.ddt
class TestUpgradeCheck(base.CommandTestCase):

    GOOD = 'compute_driver = fastmig.FastMigDriver'

    def setUp(self):
        super().setUp()
        # oslo.upgradecheck's argument would stay, and not be taken again.
        self.addCleanup(lambda: base.CONF.unregister_opt(
            base.CONF._opts['command']['opt']))
        self.addCleanup(base.CONF.reset)

    def check(self) -> tuple[int, str]:
        output = io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', output):
            code = status.main(['--config-file', str(self.conf), 'upgrade',
                                'check'])
        return code, ' '.join(output.getvalue().split())

    def test_all_is_well(self):
        self.configure(default=self.GOOD)
        code, output = self.check()
        self.assertEqual(0, code)
        self.assertEqual(4, output.count('Result: Success'))

    @ddt.data(
        ('', '', 'set [DEFAULT]compute_driver = fastmig.FastMigDriver'),
        (GOOD, 'default_max_total_ms = 1', 'default_max_total_ms = 1 is not '),
        (GOOD, 'sinks = pigeon', 'unknown: pigeon'))
    @ddt.unpack
    def test_failures(self, default, fastmig, message):
        self.configure(default=default, fastmig=fastmig)
        code, output = self.check()
        self.assertEqual(2, code)
        # The table wraps its lines.
        self.assertIn(message.replace(' ', ''),
                      output.replace(' ', '').replace('|', ''))

    def test_a_warning(self):
        self.configure(default=self.GOOD, fastmig='sinks =')
        code, output = self.check()
        self.assertEqual((1, True), (code, 'Result: Warning' in output))

    def test_a_seam_that_nova_has_moved(self):
        self.configure(default=self.GOOD)
        with mock.patch.object(driver.FastMigDriver, '_gone', create=True,
                               new=lambda self: None):
            code, output = self.check()
        self.assertEqual(2, code)
        self.assertIn("has no _gone", output)

    def test_a_nova_that_cannot_load_the_driver(self):
        self.configure(default=self.GOOD)
        import nova_fastmig
        with mock.patch.dict(sys.modules, {'nova_fastmig.driver': None}), \
                mock.patch.object(nova_fastmig, 'driver', create=True):
            del nova_fastmig.driver
            code, output = self.check()
        self.assertEqual(2, code)
        self.assertIn('cannot load the driver', output)
