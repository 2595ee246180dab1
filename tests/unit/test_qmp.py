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

import json
import sys
from unittest import mock

import fixtures
from oslotest import base

from nova_fastmig import qmp


class TestApi(base.BaseTestCase):

    def test_with_threads_libvirts_own(self):
        self.assertIs(qmp.libvirt_qemu, qmp.api())

    def test_with_eventlet_in_a_native_thread(self):
        """Nova may forbid to import the real one here."""
        self.useFixture(fixtures.MockPatchObject(
            qmp.monkey_patch, 'is_patched', return_value=True))
        with mock.patch.dict(sys.modules, {'eventlet': mock.Mock()}):
            proxy = sys.modules['eventlet'].tpool.Proxy
            self.assertIs(proxy.return_value, qmp.api())
        proxy.assert_called_once_with(qmp.libvirt_qemu)


class TestExecute(base.BaseTestCase):

    def monitor(self, **answer) -> mock.Mock:
        return self.useFixture(fixtures.MockPatchObject(
            qmp.libvirt_qemu, 'qemuMonitorCommand',
            return_value=json.dumps(answer))).mock

    def test_what_is_asked_and_what_comes_back(self):
        monitor = self.monitor(**{'return': {'value': 7}, 'id': 'libvirt-1'})
        self.assertEqual({'value': 7}, qmp.execute(
            mock.sentinel.domain, 'qom-get', path='/', property='value'))
        (domain, command, flags), _ = monitor.call_args
        self.assertEqual((mock.sentinel.domain, 0), (domain, flags))
        self.assertEqual(
            {'execute': 'qom-get',
             'arguments': {'path': '/', 'property': 'value'}},
            json.loads(command))

    def test_qemu_refuses(self):
        self.monitor(error={'class': 'CommandNotFound', 'desc': 'none'})
        self.assertRaises(KeyError, qmp.execute, mock.sentinel.domain,
                          'query-none')
