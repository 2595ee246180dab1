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
import pathlib
import sys
import types
from unittest import mock

import os_vif
from oslotest import base

from nova_fastmig import loader


class TestDriverPath(base.BaseTestCase):

    def test_is_an_os_vif_plugin(self):
        point, = importlib.metadata.entry_points(
            group='os_vif', name='nova_fastmig')
        self.assertIs(loader.DriverPath, point.load())

    def test_adds_the_path_once(self):
        nova_virt = types.ModuleType('nova.virt')
        nova_virt.__path__ = ['/somewhere']
        with mock.patch.dict(sys.modules, {'nova.virt': nova_virt}):
            loader.DriverPath.load('nova_fastmig')
            loader.DriverPath.load('nova_fastmig')
        self.assertEqual(['/somewhere', loader.NOVA_VIRT], nova_virt.__path__)

    def test_does_not_import_nova(self):
        with mock.patch.dict(sys.modules):
            sys.modules.pop('nova.virt', None)
            loader.DriverPath.load('nova_fastmig')
            self.assertNotIn('nova.virt', sys.modules)

    def test_the_path_has_the_module_that_nova_imports(self):
        self.assertTrue(
            pathlib.Path(loader.NOVA_VIRT, 'fastmig/__init__.py').is_file())

    def test_handles_no_vif(self):
        os_vif.objects.register_all()
        plugin = loader.DriverPath.load('nova_fastmig')
        info = plugin.describe()
        self.assertEqual(('nova_fastmig', []),
                         (info.plugin_name, info.vif_info))
        self.assertRaises(NotImplementedError, plugin.plug, None, None)
        self.assertRaises(NotImplementedError, plugin.unplug, None, None)
