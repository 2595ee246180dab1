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
from unittest import mock

import ddt
import fixtures
import libvirt
from lxml import etree
from nova.virt.libvirt import config as nova_config
from oslo_config import cfg
from oslotest import base

from nova_fastmig import conf
from nova_fastmig import guest
from nova_fastmig import model
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


@ddt.ddt
class TestAdaptXml(base.BaseTestCase):

    STOCK = ('<domain type="kvm"><name>i</name><devices>'
             '<emulator>/usr/bin/qemu</emulator><disk/></devices></domain>')

    def emulators(self, xml: str) -> list[str]:
        return [each.text for each in
                etree.fromstring(xml).iterfind('./devices/emulator')]

    def arguments(self, xml: str) -> list[str]:
        return [each.get('value') for each in etree.fromstring(xml).iterfind(
            './q:commandline/q:arg',
            {'q': 'http://libvirt.org/schemas/domain/qemu/1.0'})]

    @ddt.data((None, ['/usr/bin/qemu']), ('', []), ('/opt/q', ['/opt/q']))
    @ddt.unpack
    def test_emulator(self, emulator, expected):
        self.assertEqual(expected, self.emulators(
            guest.adapt_xml(self.STOCK, emulator)))

    def test_emulator_where_there_is_none(self):
        self.assertEqual(['/opt/q'], self.emulators(guest.adapt_xml(
            '<domain><devices><disk/></devices></domain>', '/opt/q')))

    def test_nothing_to_do(self):
        self.assertEqual(
            etree.tostring(etree.fromstring(self.STOCK)),
            etree.tostring(etree.fromstring(guest.adapt_xml(self.STOCK))))

    def test_features_take_the_place_of_others(self):
        xml = guest.adapt_xml(self.STOCK, None, {
            model.QemuFeature.EARLY_RESUME, model.QemuFeature.TCP_NODELAY})
        self.assertEqual(
            ['-global', 'migration.x-early-resume=on',
             '-global', 'migration.x-tcp-nodelay=on'], self.arguments(xml))
        xml = guest.adapt_xml(xml, None, {
            model.QemuFeature.SKIP_UNPOPULATED})
        self.assertEqual(
            ['-global', 'migration.x-skip-unpopulated=on'],
            self.arguments(xml))
        xml = guest.adapt_xml(xml)
        self.assertNotIn('commandline', xml)

    def test_arguments_of_others_stay(self):
        others = ('-global', 'migration.send-section-footer=off', '-global',
                  'virtio-net-pci.x=on', '-device', 'migration.x-y')
        xml = self.STOCK.replace('</domain>', (
            '<q:commandline '
            'xmlns:q="http://libvirt.org/schemas/domain/qemu/1.0">' +
            ''.join(f'<q:arg value="{each}"/>' for each in others) +
            '<q:env name="A" value="B"/></q:commandline></domain>'))
        xml = guest.adapt_xml(xml, None, {model.QemuFeature.EARLY_RESUME})
        self.assertEqual(
            [*others, '-global', 'migration.x-early-resume=on'],
            self.arguments(xml))
        self.assertEqual(list(others),
                         self.arguments(guest.adapt_xml(xml)))
        self.assertIn('name="A"', guest.adapt_xml(xml))


class TestPassthroughDevices(base.BaseTestCase):

    def test_none(self):
        self.assertEqual([], guest.passthrough_devices('<domain/>'))
        self.assertEqual([], guest.passthrough_devices('''
            <domain><devices><interface type="bridge"/><disk type="file"/>
            </devices></domain>'''))

    def test_all_kinds(self):
        self.assertEqual(
            ['the SR-IOV port fa:16:3e:00:00:01', 'a vDPA port',
             'the mediated device 5f2e', 'the PCI device 0000:81:00.1',
             'the usb device'],
            guest.passthrough_devices('''
            <domain><devices>
            <interface type="hostdev"><mac address="fa:16:3e:00:00:01"/>
            </interface>
            <interface type="vdpa"/>
            <hostdev mode="subsystem" type="mdev" model="vfio-pci">
            <source><address uuid="5f2e"/></source></hostdev>
            <hostdev mode="subsystem" type="pci" managed="yes"><source>
            <address domain="0x0000" bus="0x81" slot="0x00" function="0x1"/>
            </source></hostdev>
            <hostdev mode="subsystem" type="usb"/>
            </devices></domain>'''))


class TestMigrate(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domain = domain()

    def migrate(self, plan, flags=0, xml='<domain/>'):
        guest.FastGuest(self.domain, plan).migrate(
            URI, flags=flags, destination_xml=xml, bandwidth=5)

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
        self.assertNotIn('bandwidth.avail.switchover', params)
        self.assertEqual(4, params['parallel.connections'])
        self.assertEqual((5, '<domain/>'),
                         (params['bandwidth'], params['destination_xml']))

    def test_what_qemu_is_to_expect(self):
        self.migrate(values.plan(switchover_bandwidth_mib_s=900))
        params = self.call()['params']
        self.assertEqual(900, params['bandwidth.avail.switchover'])
        self.assertNotIn('parallel.connections', params)

    def test_bandwidth(self):
        """Nova's own limit is 5 here."""
        for reserved, limit in ((3, 3), (7, 5), (None, 5)):
            self.migrate(values.plan(bandwidth_limit_mib_s=reserved))
            self.assertEqual(limit, self.call()['params']['bandwidth'])
        guest.FastGuest(
            self.domain, values.plan(bandwidth_limit_mib_s=7)).migrate(
            URI, destination_xml='<domain/>', bandwidth=0)
        self.assertEqual(7, self.call()['params']['bandwidth'])

    def test_the_destination_gets_its_own_qemu(self):
        self.migrate(
            values.plan(
                destination_emulator='/opt/q',
                qemu_features=model.FeaturePlan(destination=frozenset(
                    {model.QemuFeature.EARLY_RESUME}))),
            xml='<domain><devices/></domain>')
        params = self.call()['params']
        self.assertEqual(params['destination_xml'], params['persistent_xml'])
        self.assertIn('<emulator>/opt/q</emulator>',
                      params['destination_xml'])
        self.assertIn('migration.x-early-resume=on',
                      params['destination_xml'])

    def monitor(self, **parameters) -> mock.Mock:
        """A patched QEMU's, which has these migration parameters."""
        def answer(domain, command, flags):
            asked = json.loads(command)['execute']
            return json.dumps({'return': parameters if (
                asked == 'query-migrate-parameters') else {}})

        return self.useFixture(fixtures.MockPatchObject(
            guest.qmp.libvirt_qemu, 'qemuMonitorCommand',
            side_effect=answer)).mock

    @staticmethod
    def told(monitor: mock.Mock, command: str) -> list[dict]:
        commands = [json.loads(call.args[1])
                    for call in monitor.call_args_list]
        return [each['arguments'] for each in commands
                if each['execute'] == command]

    def test_the_sources_features_are_switched_before_the_start(self):
        """All that it has: an earlier migration may have left some on."""
        monitor = self.monitor()
        self.domain.migrateToURI3.side_effect = (
            lambda *args, **kwargs: self.assertEqual(1, len(self.told(
                monitor, 'migrate-set-capabilities'))))
        self.migrate(values.plan(
            source=values.patched_host(qemu_features=frozenset({
                model.QemuFeature.DRAINED_SWITCHOVER,
                model.QemuFeature.EARLY_RESUME})),
            qemu_features=model.FeaturePlan(source=frozenset(
                {model.QemuFeature.DRAINED_SWITCHOVER}))))
        self.domain.migrateToURI3.assert_called_once()
        self.assertEqual(
            [{'capabilities': [
                {'capability': 'x-drained-switchover', 'state': True},
                {'capability': 'x-early-resume', 'state': False}]}],
            self.told(monitor, 'migrate-set-capabilities'))
        # It does not know that limit.
        self.assertEqual([], self.told(monitor, 'migrate-set-parameters'))

    def test_qemu_limits_the_switchover_itself(self):
        monitor = self.monitor(**{'x-switchover-timeout': 0})
        limits = [{'x-switchover-timeout': 3000}]
        self.domain.migrateToURI3.side_effect = (
            lambda *args, **kwargs: self.assertEqual(limits, self.told(
                monitor, 'migrate-set-parameters')))
        self.migrate(values.plan(source=values.patched_host(),
                                 switchover_limit_ms=3000))
        self.assertEqual(limits,
                         self.told(monitor, 'migrate-set-parameters'))

        self.domain.migrateToURI3.side_effect = libvirt.libvirtError('gone')
        self.assertRaises(
            libvirt.libvirtError, self.migrate,
            values.plan(source=values.patched_host(),
                        switchover_limit_ms=3000))
        self.assertEqual([*limits, *limits, {'x-switchover-timeout': 0}],
                         self.told(monitor, 'migrate-set-parameters'))

    def test_a_guest_that_is_paused_has_no_limit(self):
        monitor = self.monitor(**{'x-switchover-timeout': 0})
        self.domain.state.return_value = [
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
        self.migrate(values.plan(source=values.patched_host()))
        self.assertEqual([{'x-switchover-timeout': 0}],
                         self.told(monitor, 'migrate-set-parameters'))

    def test_each_limit_comes_back_by_itself(self):
        monitor = self.monitor(**{'x-switchover-timeout': 0})
        self.domain.migrateToURI3.side_effect = libvirt.libvirtError('first')
        self.domain.migrateSetMaxDowntime.side_effect = [
            None, libvirt.libvirtError('second')]
        self.assertRaises(libvirt.libvirtError, self.migrate,
                          values.plan(source=values.patched_host()))
        self.assertEqual(
            {'x-switchover-timeout': 0},
            self.told(monitor, 'migrate-set-parameters')[-1])

    def test_the_distributions_qemu_is_left_alone(self):
        monitor = self.monitor()
        self.migrate(values.plan())
        monitor.assert_not_called()

    def test_features_that_cannot_be_set_end_it(self):
        self.monitor().side_effect = libvirt.libvirtError('no such')
        self.assertRaises(libvirt.libvirtError, self.migrate,
                          values.plan(source=values.patched_host()))
        self.domain.migrateToURI3.assert_not_called()

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

    def test_has_ended_here(self):
        made = domain()
        fast = guest.FastGuest(made, values.plan())
        for state, expected in (
                (RUNNING, False),
                ([libvirt.VIR_DOMAIN_SHUTOFF,
                  libvirt.VIR_DOMAIN_SHUTOFF_CRASHED], True),
                ([libvirt.VIR_DOMAIN_SHUTOFF,
                  libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED], False),
                ([libvirt.VIR_DOMAIN_SHUTOFF,
                  libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN], False)):
            made.state.return_value = state
            self.assertEqual(expected, fast.has_ended_here())
        made.state.side_effect = libvirt.libvirtError('no domain')
        self.assertFalse(fast.has_ended_here())

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

    def test_libvirt_cannot_write_it_now(self):
        self.connection.defineXML.side_effect = libvirt.libvirtError(
            'No space left on device')
        self.assertRaises(
            libvirt.libvirtError, guest.persist_if_tagged, self.host,
            domain(domain_xml(enabled='true')))
        self.host.write_instance_config.assert_not_called()

    def test_the_trial_takes_as_much_room_and_leaves_nothing(self):
        xml = domain_xml(enabled='true').replace('<domain', """<domain
            type="qemu" """, 1).replace('</domain>', """
            <os><type arch="x86_64" machine="q35">hvm</type><nvram>/n</nvram>
            </os><devices><emulator>/opt/qemu</emulator><disk/></devices>
            </domain>""")
        guest.persist_if_tagged(self.host, domain(xml))
        tried, = self.connection.defineXML.call_args.args
        self.assertGreater(len(tried), len(xml))
        found = etree.fromstring(tried)
        self.assertEqual('qemu', found.get('type'))
        self.assertEqual(
            {'name', 'uuid', 'description', 'memory', 'os', 'devices'},
            {each.tag for each in found})
        self.assertEqual('q35', found.find('os/type').get('machine'))
        self.assertEqual(['emulator'],
                         [each.tag for each in found.find('devices')])
        self.assertNotEqual(etree.fromstring(xml).findtext('name'),
                            found.findtext('name'))
        trial = self.connection.defineXML.return_value
        self.assertEqual([mock.call.undefine()], trial.mock_calls)

    def test_without_the_features_of_its_migration(self):
        guest.persist_if_tagged(self.host, domain(guest.adapt_xml(
            domain_xml(enabled='true'), None,
            {model.QemuFeature.EARLY_RESUME})))
        written, = self.host.write_instance_config.call_args.args
        self.assertNotIn('x-early-resume', written)

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


class TestAnnounce(base.BaseTestCase):

    def test_what_qemu_refuses_is_no_error(self):
        conf.register_opts(cfg.CONF)
        host = mock.Mock()
        made = domain(domain_xml(enabled='true'))
        host.get_connection().lookupByUUIDString.return_value = made
        monitor = self.useFixture(fixtures.MockPatchObject(
            guest.qmp.libvirt_qemu, 'qemuMonitorCommand',
            return_value=json.dumps({'error': {'desc': 'none'}}))).mock
        guest.announce_by_uuid(host, 'some-uuid')
        monitor.assert_called_once()
        self.assertIs(made, monitor.call_args.args[0])
