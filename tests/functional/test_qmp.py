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

"""A QEMU, or a libvirtd, that does not answer holds nobody else up."""

import json
import threading
import time
from unittest import mock

import fixtures
import libvirt
import libvirt_qemu
from oslotest import base

from nova_fastmig import qmp
from nova_fastmig import watch
from tests.functional import native


class TestQmp(base.BaseTestCase):

    def answer_late(self, name: str, answer) -> None:
        """Have a call of libvirt's wait until another thread has run."""
        asked, released = (native.threading.Event() for _ in range(2))

        def function(*args):
            asked.set()
            if not released.wait(5):
                raise AssertionError('nobody else has run')
            return answer()

        def release():
            while not asked.is_set():
                time.sleep(0.01)
            released.set()

        self.useFixture(fixtures.MonkeyPatch(f'libvirt_qemu.{name}', function))
        thread = threading.Thread(target=release)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(asked.set)

    def test_a_command(self):
        self.answer_late('qemuMonitorCommand',
                         lambda: json.dumps({'return': {'status': 'none'}}))
        self.assertEqual({'status': 'none'},
                         qmp.execute(mock.sentinel.domain, 'query-migrate'))

    def test_an_error(self):
        def fail():
            raise libvirt.libvirtError('no monitor')

        self.answer_late('qemuMonitorCommand', fail)
        error = self.assertRaises(libvirt.libvirtError, qmp.execute,
                                  mock.sentinel.domain, 'query-migrate')
        self.assertEqual('no monitor', str(error))

    def test_events(self):
        for name in 'Register', 'Deregister':
            self.useFixture(fixtures.MockPatchObject(
                libvirt_qemu, f'qemuMonitorEvent{name}'))
        events = watch.Events(mock.Mock(), 'uuid', watch.Mailbox())
        self.answer_late('qemuMonitorEventRegister', lambda: 1)
        with events:
            self.answer_late('qemuMonitorEventDeregister', lambda: None)
