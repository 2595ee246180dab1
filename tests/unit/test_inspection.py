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


from unittest import mock

import ddt
import libvirt
from oslotest import base

from nova_fastmig import inspection
from tests.unit import fake_connection


@ddt.ddt
class TestInspection(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.connection = fake_connection.Connection()
        patch = mock.patch.object(libvirt, 'open',
                                  return_value=self.connection)
        patch.start()
        self.addCleanup(patch.stop)
        patch = mock.patch.object(inspection, '_POLL_S', 0)
        patch.start()
        self.addCleanup(patch.stop)
        self.host = inspection.Host('test:///default')

    def test_what_capabilities_asks(self):
        self.assertEqual('x86_64',
                         self.host.get_capabilities().host.cpu.arch)
        self.assertIs(self.connection, self.host.get_connection())

    def test_close(self):
        self.host.close()
        self.assertTrue(self.connection.is_closed)

    @ddt.data(fake_connection.UUID, 'instance-1')
    def test_domain(self, server):
        self.assertEqual('instance-1', self.host.domain(server).name())

    @ddt.data(fake_connection.UUID[:-1] + '0', 'instance-2')
    def test_no_domain(self, server):
        self.assertRaises(libvirt.libvirtError, self.host.domain, server)

    def test_extra_specs(self):
        specs = {'fastmig:enabled': 'true', 'hw:cpu_policy': 'dedicated',
                 'empty': ''}
        self.connection.extra_specs = specs
        self.assertEqual(specs, inspection.extra_specs(
            self.host.domain('instance-1')))

    def test_a_domain_that_is_not_novas(self):
        domain = mock.Mock()
        domain.XMLDesc.return_value = '<domain><metadata/></domain>'
        self.assertEqual({}, inspection.extra_specs(domain))

    def test_memory(self):
        self.assertEqual(512 << 20, inspection.memory_bytes(
            self.host.domain('instance-1')))

    @ddt.data(('page-sampling', 0), ('dirty-bitmap', 1), ('dirty-ring', 2))
    @ddt.unpack
    def test_dirty_rate(self, mode, flags):
        self.connection.answers_until_measured = 3
        self.assertEqual(100 << 20, inspection.dirty_rate_bytes_per_s(
            self.host, self.host.domain('instance-1'), 2, mode))
        self.assertEqual([(2, flags)], self.connection.measurements)

    @ddt.data('dirty-bitmap', 'dirty-ring')
    def test_what_would_count_nothing(self, mode):
        """A rate of 0 would let every migration look easy."""
        self.connection.domain_type = 'qemu'
        domain = self.host.domain('instance-1')
        error = self.assertRaises(
            inspection.NotMeasured, inspection.dirty_rate_bytes_per_s,
            self.host, domain, 1, mode)
        self.assertIn('instance-1 is emulated', str(error))
        self.assertEqual([], self.connection.measurements)
        self.connection.answers_until_measured = 0
        inspection.dirty_rate_bytes_per_s(self.host, domain, 1,
                                          inspection.PAGE_SAMPLING)

    def test_a_rate_that_is_never_measured(self):
        self.connection.answers_until_measured = 10 ** 9
        with mock.patch.object(inspection, '_PATIENCE_S', 0.05):
            error = self.assertRaises(
                inspection.NotMeasured, inspection.dirty_rate_bytes_per_s,
                self.host, self.host.domain('instance-1'), 0, 'page-sampling')
        self.assertIn('the dirty rate of instance-1', str(error))
        self.assertIn("'dirtyrate.calc_status': 1", str(error))
