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
import os
import pathlib
from unittest import mock

import ddt
import fixtures
import libvirt
from nova import conf as nova_conf  # noqa: F401  registers [libvirt]
from nova import exception as nova_exception
from nova import objects
from nova.objects import compute_node  # noqa: F401  adds it to objects
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import capabilities
from nova_fastmig import conf
from nova_fastmig import model
from tests import fake_qemu
from tests.unit import values

STOCK = 'Debian 1:10.0.2+ds-2'
PATCHED = 'Debian 1:10.0.2+ds-2, nova-fastmig 3'
DEFAULT = '/usr/bin/qemu-system-x86_64'


class CapabilitiesTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.conf = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.emulator = self.directory / 'qemu'
        self.conf.config(group='fastmig', emulator=str(self.emulator))
        self.addCleanup(capabilities._ask_file.cache_clear)
        self.host = mock.Mock()
        self.connection = self.host.get_connection.return_value
        self.connection.getVersion.return_value = 10000013
        self.connection.getLibVersion.return_value = 11003002
        self.connection.getDomainCapabilities.return_value = (
            f'<domainCapabilities><path>{DEFAULT}</path>'
            f'</domainCapabilities>')

    def install(self, package=PATCHED, features=('x-early-resume',
                                                 'x-new-idea')):
        """Put a QEMU where the option says that there is one."""
        fake_qemu.install(self.emulator, package, features)

    def install_broken(self, script: str) -> None:
        self.emulator.write_text(f'#!/bin/sh\n{script}\n')
        os.chmod(self.emulator, 0o755)

    def starts(self) -> list[str]:
        return fake_qemu.starts(self.emulator)

    def read(self, guest=None) -> model.HostCaps:
        return capabilities.read(self.host, 'compute1', guest)


class TestPatchedEmulator(CapabilitiesTestCase):

    def test_there_is_none(self):
        self.assertIsNone(capabilities.patched_emulator())
        self.conf.config(group='fastmig', emulator='')
        self.assertIsNone(capabilities.patched_emulator())

    def test_there_is_one(self):
        self.install()
        self.assertEqual(str(self.emulator), capabilities.patched_emulator())
        started, = self.starts()
        for option in ('-machine none', '-S', '-qmp stdio', '-sandbox on'):
            self.assertIn(option, started)

    def test_asked_once_until_it_changes(self):
        self.install()
        for _ in range(3):
            capabilities.patched_emulator()
        self.assertEqual(1, len(self.starts()))
        self.install(STOCK)
        self.assertIsNone(capabilities.patched_emulator())
        self.assertEqual(2, len(self.starts()))

    def test_traits(self):
        self.assertEqual(
            {'CUSTOM_FASTMIG': True, 'CUSTOM_FASTMIG_QEMU': False},
            capabilities.traits())
        self.install()
        self.assertEqual(
            {'CUSTOM_FASTMIG': True, 'CUSTOM_FASTMIG_QEMU': True},
            capabilities.traits())

    def test_not_a_patched_one(self):
        self.install(STOCK)
        self.assertIsNone(capabilities.patched_emulator())

    def test_broken(self):
        for script in ('exit 1', 'echo hello', 'echo "{}"'):
            self.install_broken(script)
            self.assertIsNone(capabilities.patched_emulator())

    def test_not_executable(self):
        self.emulator.write_text('x')
        self.assertIsNone(capabilities.patched_emulator())

    def test_it_hangs(self):
        self.useFixture(fixtures.MockPatchObject(
            capabilities, '_ASK_TIMEOUT_S', 0.1))
        self.install_broken('exec sleep 60')
        self.assertIsNone(capabilities.patched_emulator())


class TestRead(CapabilitiesTestCase):

    def guest(self, emulator, package=PATCHED,
              features=('x-tcp-nodelay',)) -> mock.Mock:
        answers = fake_qemu.answers(package, features)
        self.monitor = self.useFixture(fixtures.MockPatchObject(
            capabilities.qmp.libvirt_qemu, 'qemuMonitorCommand',
            side_effect=lambda domain, command, flags: json.dumps(
                {'return': answers[json.loads(command)['execute']]}))).mock
        guest = mock.Mock()
        guest.get_xml_desc.return_value = (
            f'<domain><devices><emulator>{emulator}</emulator>'
            f'</devices></domain>')
        return guest

    def test_no_patched_qemu(self):
        self.assertEqual(
            model.HostCaps(
                'compute1', emulator=DEFAULT, qemu_version=(10, 0, 13),
                qemu_series='', qemu_features=frozenset(),
                libvirt_version=(11, 3, 2),
                driver_version=capabilities.OWN_VERSION,
                native_tls=False),
            self.read())

    def test_patched_qemu(self):
        self.install()
        self.assertEqual(
            model.HostCaps(
                'compute1', emulator=str(self.emulator),
                qemu_version=(10, 0, 2), qemu_series='nova-fastmig 3',
                qemu_features=frozenset({model.QemuFeature.EARLY_RESUME}),
                libvirt_version=(11, 3, 2),
                driver_version=capabilities.OWN_VERSION,
                native_tls=False),
            self.read())

    def test_a_guest_on_the_distributions_qemu(self):
        self.install()
        caps = self.read(self.guest(DEFAULT))
        self.assertEqual((DEFAULT, '', frozenset()),
                         (caps.emulator, caps.qemu_series,
                          caps.qemu_features))
        # libvirt would mark the guest as tainted.
        self.monitor.assert_not_called()

    def test_the_running_qemu_counts(self):
        """Not the one that an update has put in its place."""
        self.install(features=('x-early-resume',))
        caps = self.read(self.guest(self.emulator))
        self.assertEqual(str(self.emulator), caps.emulator)
        self.assertEqual((10, 0, 2), caps.qemu_version)
        self.assertEqual('nova-fastmig 3', caps.qemu_series)
        self.assertEqual({'x-tcp-nodelay'}, caps.qemu_features)

    def test_a_qemu_from_elsewhere(self):
        caps = self.read(self.guest('/opt/other/qemu', package=''))
        self.assertEqual(('/opt/other/qemu', (10, 0, 2), frozenset()),
                         (caps.emulator, caps.qemu_version,
                          caps.qemu_features))
        self.assertFalse(caps.patched_qemu)

    def test_the_distributions_qemu_is_the_patched_one(self):
        self.conf.config(group='fastmig', emulator=DEFAULT)
        self.assertTrue(self.read(self.guest(DEFAULT)).patched_qemu)

    def test_a_guest_that_does_not_answer(self):
        guest = self.guest(self.emulator)
        self.monitor.side_effect = libvirt.libvirtError('busy')
        self.assertFalse(self.read(guest).patched_qemu)

    def test_settings_of_nova(self):
        self.conf.config(group='libvirt', live_migration_with_native_tls=True,
                         virt_type='qemu')
        caps = self.read()
        self.assertEqual((True, True), (caps.native_tls, caps.emulates))
        self.conf.config(group='libvirt', virt_type='kvm')
        self.assertFalse(self.read().emulates)


class TestFreePages(base.BaseTestCase):

    def free(self, sizes_kib, nodes: int, pages: dict) -> dict:
        host = mock.Mock()
        caps = host.get_capabilities.return_value.host
        caps.topology = nodes and mock.Mock(cells=[None] * nodes)
        self.ask = host.get_connection.return_value.getFreePages
        self.ask.return_value = pages
        return capabilities.free_pages(host, sizes_kib)

    def test_each_node(self):
        self.assertEqual(
            {2048: [7, 9], 1048576: [1, 0]},
            self.free({1048576, 2048}, 2,
                      {0: {2048: 7, 1048576: 1}, 1: {2048: 9}}))
        self.ask.assert_called_once_with([2048, 1048576], 0, 2)

    def test_a_host_without_topology(self):
        self.assertEqual({2048: [7]}, self.free({2048}, 0, {0: {2048: 7}}))
        self.ask.assert_called_once_with([2048], 0, 1)


@ddt.ddt
class TestStats(base.BaseTestCase):

    @ddt.data(values.host(), values.patched_host(),
              values.host(native_tls=True), values.host(native_tls=False))
    def test_round_trip(self, caps):
        stats = capabilities.to_stats(caps)
        self.assertTrue(all(isinstance(each, str) for each in stats.values()))
        self.assertEqual(caps, capabilities.from_stats(caps.host, stats))

    def test_another_driver(self):
        self.assertIsNone(capabilities.from_stats('x', {}))

    def test_a_driver_that_says_little(self):
        caps = capabilities.from_stats('x', {'fastmig_driver': '1'})
        self.assertEqual(('', frozenset(), False),
                         (caps.emulator, caps.qemu_features,
                          caps.patched_qemu))

    def test_features_of_a_newer_series(self):
        stats = capabilities.to_stats(values.patched_host())
        stats['fastmig_qemu_features'] += ' x-new-idea'
        self.assertEqual(frozenset(model.QemuFeature),
                         capabilities.from_stats('x', stats).qemu_features)


@ddt.ddt
class TestPeer(base.BaseTestCase):

    def peer(self, **get):
        with mock.patch.object(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                **get) as self.get:
            return capabilities.peer(mock.sentinel.context, 'compute2')

    def test_what_the_host_advertises(self):
        caps = values.patched_host(host='compute2')
        self.assertEqual(caps, self.peer(return_value=mock.Mock(
            stats={'num_instances': '3', **capabilities.to_stats(caps)})))
        self.get.assert_called_once_with(mock.sentinel.context, 'compute2')

    @ddt.data({'num_instances': '3'}, {}, None)
    def test_another_driver(self, stats):
        self.assertIsNone(self.peer(return_value=mock.Mock(stats=stats)))

    def test_it_cannot_be_told(self):
        self.assertIsNone(self.peer(
            side_effect=nova_exception.ComputeHostNotFound(host='x')))
        self.assertIsNone(self.peer(return_value=mock.Mock(stats={
            'fastmig_driver': '1', 'fastmig_qemu_version': 'ten'})))


class TestWhoAsks(base.BaseTestCase):

    def ask(self, *events, **get) -> str | None:
        context = mock.Mock(request_id='req-1')
        with (mock.patch.object(
                objects.InstanceAction, 'get_by_request_id', **get) as action,
              mock.patch.object(
                  objects.InstanceActionEventList, 'get_by_action',
                  return_value=[mock.Mock(event=event, host=host)
                                for event, host in events])):
            found = capabilities.who_asks(context, 'uuid')
        action.assert_called_once_with(context, 'uuid', 'req-1')
        return found

    CHECK = 'compute_check_can_live_migrate_destination'

    def test_the_newest_check(self):
        self.assertEqual('compute3', self.ask(
            ('compute_check_can_live_migrate_source', 'compute1'),
            (self.CHECK, 'compute3'), (self.CHECK, 'compute2')))

    def test_it_cannot_be_told(self):
        self.assertIsNone(self.ask())
        self.assertIsNone(self.ask((self.CHECK, 'compute3'),
                                   return_value=None))
        self.assertIsNone(self.ask(side_effect=ValueError))
