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

"""For the tests of commands."""

import io
import pathlib

import fixtures
import nova.conf
from oslotest import base

from nova_fastmig.cmd import main

CONF = nova.conf.CONF


class CommandTestCase(base.BaseTestCase):
    """Runs commands as the shell would, with a nova.conf of its own."""

    def setUp(self):
        super().setUp()
        self.state = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.conf = self.state / 'nova.conf'
        self.configure()
        # The command reads nova.conf into the one CONF of the process.
        self.addCleanup(CONF.reset)

    def configure(self, fastmig: str = '', libvirt: str = '',
                  default: str = '', more: str = '') -> None:
        self.conf.write_text(
            f'[DEFAULT]\nstate_path = {self.state}\nhost = compute1\n'
            f'{default}\n[libvirt]\n{libvirt}\n[fastmig]\n{fastmig}\n{more}')

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        """Run one.

        :returns: exit code, standard output, standard error
        """
        stdout, stderr = io.StringIO(), io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', stdout), \
                fixtures.MonkeyPatch('sys.stderr', stderr):
            code = main.FastMigApp(stdout=stdout, stderr=stderr).run(
                ['--config-file', str(self.conf), *arguments])
        return code, stdout.getvalue(), stderr.getvalue()
