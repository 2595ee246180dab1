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

"""``nova-fastmig``, the operator's command on a compute host."""

import sys

from cliff import app
from cliff import commandmanager
import nova.conf
import pbr.version

from nova_fastmig import opts

CONF = nova.conf.CONF


class FastMigApp(app.App):

    def __init__(self, **streams):
        super().__init__(
            description='Fast live migration on this compute host.',
            version=pbr.version.VersionInfo('nova-fastmig').version_string(),
            command_manager=commandmanager.CommandManager('nova_fastmig.cli'),
            deferred_help=True, **streams)

    def build_option_parser(self, description, version, **kwargs):
        parser = super().build_option_parser(description, version, **kwargs)
        for name, what in (('file', 'a file'), ('dir', 'a directory')):
            parser.add_argument(
                f'--config-{name}', action='append', default=[],
                metavar=name.upper(),
                help=f'{what} of configuration; can be given more than once. '
                     f'Default: what nova-compute reads by itself')
        return parser

    def initialize_app(self, argv):
        """Read the configuration of nova-compute."""
        arguments = []
        for name in ('file', 'dir'):
            for each in getattr(self.options, f'config_{name}'):
                arguments += [f'--config-{name}', each]
        # Its name decides which files under /etc/nova are read.
        CONF(arguments, project='nova', prog='nova-compute')
        opts.register(CONF)


def main(argv: list[str] | None = None) -> int:
    return FastMigApp().run(sys.argv[1:] if argv is None else argv)
