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

import os
import pathlib
from unittest import mock

import ddt
import fixtures
from nova import conf as nova_conf  # noqa: F401  registers [libvirt]
from nova import exception as nova_exception
from nova import objects
from oslotest import base

from nova_fastmig import capabilities
from nova_fastmig import model

STOCK = 'QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n'
PATCHED = ('QEMU emulator version 10.0.2 (Debian 1:10.0.2+nova-fastmig1)\n'
           'Copyright\n')


@ddt.ddt
class TestIsPatched(base.BaseTestCase):

    @ddt.data(
        (STOCK, False), (PATCHED, True),
        ('QEMU emulator version 10.0.2\nCopyright (c) nova-fastmig\n', False),
        ('', False), ('command not found: nova-fastmig', False))
    @ddt.unpack
    def test_only_the_version_string_counts(self, text, patched):
        self.assertEqual(patched, capabilities.is_patched(text))


class TestRead(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.host = mock.Mock()
        self.connection = self.host.get_connection.return_value
        self.connection.getVersion.return_value = 10000013
        self.connection.getLibVersion.return_value = 11003002

    def emulator(self, output: str) -> str:
        """A program that prints something."""
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (directory / 'output').write_text(output)
        program = directory / 'qemu'
        program.write_text(f'#!/bin/sh\ncat {directory}/output\n')
        os.chmod(program, 0o755)
        return str(program)

    def read_host(self, emulator: str) -> model.HostCaps:
        self.connection.getDomainCapabilities.return_value = (
            f'<domainCapabilities><path>{emulator}</path>'
            f'</domainCapabilities>')
        return capabilities.read(self.host, 'compute1')

    def test_versions(self):
        self.assertEqual(
            model.HostCaps('compute1', qemu_version=(10, 0, 13),
                           libvirt_version=(11, 3, 2), patched_qemu=False),
            self.read_host(self.emulator(STOCK)))

    def test_patched(self):
        self.assertTrue(self.read_host(self.emulator(PATCHED)).patched_qemu)

    def test_the_guests_own_emulator_counts(self):
        guest = mock.Mock()
        guest.get_xml_desc.return_value = (
            f'<domain><devices><emulator>{self.emulator(PATCHED)}</emulator>'
            f'</devices></domain>')
        self.assertTrue(
            capabilities.read(self.host, 'compute1', guest).patched_qemu)
        self.connection.getDomainCapabilities.assert_not_called()

    def test_an_emulator_that_cannot_be_asked(self):
        self.assertFalse(self.read_host('/nonexistent/qemu').patched_qemu)
        self.assertFalse(self.read_host('').patched_qemu)


@ddt.ddt
class TestDefinesArrivals(base.BaseTestCase):

    @ddt.data(({'fastmig_driver': '1', 'num_instances': '3'}, True),
              ({'num_instances': '3'}, False), ({}, False), (None, False))
    @ddt.unpack
    def test_what_the_host_advertises(self, stats, expected):
        with mock.patch.object(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                return_value=mock.Mock(stats=stats)) as get:
            self.assertEqual(expected, capabilities.defines_arrivals(
                mock.sentinel.context, 'compute2'))
        get.assert_called_once_with(mock.sentinel.context, 'compute2')

    def test_it_cannot_be_told(self):
        with mock.patch.object(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                side_effect=nova_exception.ComputeHostNotFound(host='x')):
            self.assertFalse(
                capabilities.defines_arrivals(mock.sentinel.context, 'x'))
