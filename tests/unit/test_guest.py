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
from nova.virt.libvirt import config as nova_config
from oslotest import base

from nova_fastmig import guest
from tests.unit import values

URI = 'qemu+tcp://compute2/system'
RUNNING = [libvirt.VIR_DOMAIN_RUNNING, 0]
INCOMING = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]


def domain_xml(**extra_specs) -> str:
    """A domain as Nova writes it, with the metadata of a flavor."""
    specs = ''.join(
        f'<nova:extraSpec name="fastmig:{key}">{value}</nova:extraSpec>'
        for key, value in extra_specs.items())
    return (
        '<domain><name>instance-1</name><metadata>'
        f'<nova:instance xmlns:nova="{nova_config.NOVA_NS}">'
        '<nova:flavor name="nfv"><nova:extraSpecs>'
        f'{specs}</nova:extraSpecs></nova:flavor>'
        '</nova:instance></metadata></domain>')


def domain(xml='<domain/>', persistent=False, state=RUNNING) -> mock.Mock:
    made = mock.create_autospec(libvirt.virDomain, instance=True)
    made.XMLDesc.return_value = xml
    made.isPersistent.return_value = int(persistent)
    made.state.return_value = state
    made.migrateGetMaxDowntime.return_value = 300
    made.name.return_value = 'instance-1'
    return made


class TestMigrate(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domain = domain()

    def migrate(self, plan, flags=0):
        guest.FastGuest(self.domain, plan).migrate(
            URI, flags=flags, destination_xml='<domain/>', bandwidth=5)

    def call(self):
        args, kwargs = self.domain.migrateToURI3.call_args
        self.assertEqual((URI,), args)
        return kwargs

    def test_the_limit_is_there_before_the_start(self):
        self.migrate(values.plan(downtime_limit_ms=4))
        names = [call[0] for call in self.domain.method_calls]
        self.assertLess(names.index('migrateSetMaxDowntime'),
                        names.index('migrateToURI3'))
        self.domain.migrateSetMaxDowntime.assert_called_once_with(4)

    def test_flags(self):
        self.migrate(
            values.plan(set_flags=frozenset({'PARALLEL'}),
                        clear_flags=frozenset({'PERSIST_DEST', 'POSTCOPY'})),
            libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST)
        self.assertEqual(
            libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PARALLEL,
            self.call()['flags'])

    def test_parameters(self):
        self.migrate(values.plan(parallel_connections=4))
        params = self.call()['params']
        self.assertEqual(4, params['parallel.connections'])
        self.assertEqual((5, '<domain/>'),
                         (params['bandwidth'], params['destination_xml']))

    def test_a_guest_that_stays_gets_its_limit_back(self):
        self.domain.migrateToURI3.side_effect = libvirt.libvirtError('gone')
        self.assertRaises(libvirt.libvirtError, self.migrate,
                          values.plan(downtime_limit_ms=4))
        self.assertEqual(
            [mock.call(4), mock.call(300)],
            self.domain.migrateSetMaxDowntime.call_args_list)

    def test_the_first_error_counts(self):
        self.domain.migrateToURI3.side_effect = libvirt.libvirtError('first')
        self.domain.migrateSetMaxDowntime.side_effect = [
            None, libvirt.libvirtError('second')]
        error = self.assertRaises(
            libvirt.libvirtError, self.migrate, values.plan())
        self.assertEqual('first', str(error))


class TestQuestions(base.BaseTestCase):

    def test_job_stats(self):
        made = domain()
        made.jobStats.return_value = {'time_elapsed': 1}
        self.assertEqual({'time_elapsed': 1},
                         guest.FastGuest(made, values.plan()).job_stats())
        made.jobStats.side_effect = libvirt.libvirtError('no domain')
        self.assertEqual({},
                         guest.FastGuest(made, values.plan()).job_stats())

    def test_is_paused(self):
        made = domain()
        fast = guest.FastGuest(made, values.plan())
        self.assertFalse(fast.is_paused())
        made.state.return_value = INCOMING
        self.assertTrue(fast.is_paused())
        made.state.side_effect = libvirt.libvirtError('no domain')
        self.assertFalse(fast.is_paused())


@ddt.ddt
class TestPersist(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.host = mock.Mock()
        self.connection = self.host.get_connection.return_value

    def test_tagged(self):
        xml = domain_xml(enabled='true')
        made = domain(xml)
        self.assertTrue(guest.persist_if_tagged(self.host, made))
        self.host.write_instance_config.assert_called_once_with(xml)
        # The configuration for the next boot, complete with passwords.
        made.XMLDesc.assert_called_once_with(
            flags=libvirt.VIR_DOMAIN_XML_INACTIVE |
            libvirt.VIR_DOMAIN_XML_SECURE)

    @ddt.data('<domain/>', domain_xml(), domain_xml(enabled='false'),
              domain_xml(max_downtime_ms='5'))
    def test_not_tagged(self, xml):
        self.assertFalse(guest.persist_if_tagged(self.host, domain(xml)))
        self.host.write_instance_config.assert_not_called()

    def test_defined_already(self):
        self.assertFalse(guest.persist_if_tagged(
            self.host, domain(domain_xml(enabled='true'), persistent=True)))
        self.host.write_instance_config.assert_not_called()

    @ddt.data(
        (INCOMING, False), ([libvirt.VIR_DOMAIN_SHUTOFF, 0], False),
        ([libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP],
         False),
        ([libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER], True),
        (RUNNING, True))
    @ddt.unpack
    def test_state(self, state, defined):
        self.assertEqual(defined, guest.persist_if_tagged(
            self.host, domain(domain_xml(enabled='true'), state=state)))

    def test_by_uuid(self):
        self.connection.lookupByUUIDString.return_value = domain(
            domain_xml(enabled='true'))
        guest.persist_by_uuid(self.host, 'some-uuid')
        self.connection.lookupByUUIDString.assert_called_once_with(
            'some-uuid')
        self.host.write_instance_config.assert_called_once()

    def test_a_failure_is_no_error(self):
        self.connection.lookupByUUIDString.side_effect = (
            libvirt.libvirtError('no domain'))
        guest.persist_by_uuid(self.host, 'some-uuid')
        self.connection.listAllDomains.side_effect = (
            libvirt.libvirtError('broken'))
        guest.persist_all(self.host)
        self.host.write_instance_config.assert_not_called()

    def test_all_goes_on_after_a_failure(self):
        broken = domain(domain_xml(enabled='true'))
        broken.isPersistent.side_effect = libvirt.libvirtError('busy')
        good = domain(domain_xml(enabled='true'))
        by_uuid = {'one': broken, 'two': good}
        for uuid, made in by_uuid.items():
            made.UUIDString.return_value = uuid
        self.connection.listAllDomains.return_value = [broken, good]
        self.connection.lookupByUUIDString.side_effect = by_uuid.get
        guest.persist_all(self.host)
        self.connection.listAllDomains.assert_called_once_with(
            libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
        self.host.write_instance_config.assert_called_once()
