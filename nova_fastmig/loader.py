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

"""Makes ``compute_driver = fastmig.FastMigDriver`` importable.

Nova imports ``nova.virt.<compute_driver>`` and offers no entry point for
drivers of other packages. Installing files under ``nova/`` would shadow an
editable installation of Nova. But nova-compute loads the plugins of os-vif
before it loads its driver, so a plugin that handles no VIF at all is a place
to add this package's directory to the search path of ``nova.virt``.
"""

import pathlib
import sys

from os_vif import objects
from os_vif import plugin

NOVA_VIRT = str(pathlib.Path(__file__).parent / 'nova_virt')


class DriverPath(plugin.PluginBase):
    """An os-vif plugin without VIF types; its loading is what counts."""

    @classmethod
    def load(cls, plugin_name):
        """Add NOVA_VIRT to ``nova.virt.__path__``.

        Only if ``nova.virt`` is there already: os-vif has other users, such
        as agents without Nova, and os-vif must not make them import it.
        """
        nova_virt = sys.modules.get('nova.virt')
        if nova_virt is not None and NOVA_VIRT not in nova_virt.__path__:
            nova_virt.__path__.append(NOVA_VIRT)
        return super().load(plugin_name)

    def describe(self):
        return objects.host_info.HostPluginInfo(
            plugin_name='nova_fastmig', vif_info=[])

    def plug(self, vif, instance_info):
        raise NotImplementedError('nova_fastmig plugs no VIFs')

    def unplug(self, vif, instance_info):
        raise NotImplementedError('nova_fastmig plugs no VIFs')
