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

from oslotest import base

from nova_fastmig import exception


class TestMessages(base.BaseTestCase):

    def test_invalid_extra_spec(self):
        error = exception.InvalidExtraSpec('fastmig:qemu', 'new', 'any')
        self.assertEqual("flavor extra spec 'fastmig:qemu' = 'new' is not "
                         'valid; allowed: any', str(error))
        self.assertEqual(('fastmig:qemu', 'new', 'any'),
                         (error.key, error.value, error.allowed))

    def test_invalid_setting(self):
        self.assertEqual(
            '[fastmig] poll = 3 is not valid; allowed: 50 to 100',
            str(exception.InvalidSetting('poll', 3, '50 to 100')))

    def test_ports_not_wired(self):
        self.assertEqual('dest: no device', str(
            exception.PortsNotWired('dest', 'no device')))

    def test_plan_refused(self):
        error = exception.PlanRefused(['one', 'two'])
        self.assertEqual('one; two', str(error))
        self.assertEqual(('one', 'two'), error.reasons)
