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


import importlib.metadata
from unittest import mock

from nova_fastmig.cmd import main
from tests.unit.cmd import base


class TestMain(base.CommandTestCase):

    def test_the_configuration_files(self):
        directory = self.state / 'nova.conf.d'
        directory.mkdir()
        (directory / 'x.conf').write_text('[fastmig]\nsinks = journal\n')
        self.run_command('--config-dir', str(directory), 'help')
        self.assertEqual((['journal'], 'compute1'),
                         (base.CONF.fastmig.sinks, base.CONF.host))

    def test_every_command_loads_and_explains_itself(self):
        commands = importlib.metadata.entry_points(group='nova_fastmig.cli')
        self.assertEqual(11, len(commands))
        for command in commands:
            self.assertGreater(len(command.load().__doc__), 40)
            code, output, _ = self.run_command(
                'help', *command.name.split('_'))
            self.assertEqual(0, code)
            self.assertIn('usage: ', output)

    def test_version(self):
        with mock.patch('sys.stdout') as stdout:
            error = self.assertRaises(SystemExit, main.main, ['--version'])
        self.assertEqual(0, error.code)
        self.assertIn(
            importlib.metadata.version('nova-fastmig').split('.dev')[0],
            ''.join(call.args[0] for call in stdout.write.mock_calls))

    def test_the_arguments_of_the_shell(self):
        with mock.patch.object(main.sys, 'argv', [
                'nova-fastmig', '--config-file', str(self.conf), 'help']), \
                mock.patch('sys.stdout'):
            self.assertEqual(0, main.main())
