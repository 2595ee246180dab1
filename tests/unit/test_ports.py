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

import types
import unittest
from unittest import mock

import ddt
from nova.network import model as network_model
from nova.objects import migrate_data as migrate_data_objects
from oslo_config import cfg
from oslotest import base

from nova_fastmig import exception
from nova_fastmig import gate
from nova_fastmig import ports

PORT = 'ce531f90-199f-48c0-816c-13e38010b442'
TAP = {'connectivity': 'l2', 'bridge_name': 'br-int',
       'bound_drivers': {'0': 'openvswitch'}}
# None in Nova 32, which cannot have os-vif create them.
CREATE = getattr(network_model, 'VIF_DETAILS_OVS_CREATE_TAP', None)


def vif(vif_type='ovs', vnic_type='normal', **details):
    return migrate_data_objects.VIFMigrateData(
        port_id=PORT, vif_type=vif_type, vnic_type=vnic_type,
        vif_details={**TAP, **details}, profile={}, host='dest',
        source_vif=network_model.VIF(id=PORT, type=vif_type,
                                     vnic_type=vnic_type, details={}))


def data(*vifs):
    return migrate_data_objects.LibvirtLiveMigrateData(vifs=list(vifs))


class PortsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        patch = mock.patch.object(ports, '_per_port_bridge',
                                  return_value=False)
        self.per_port_bridge = patch.start()
        self.addCleanup(patch.stop)


@unittest.skipUnless(CREATE, 'this Nova cannot have taps created')
@ddt.ddt
class TestTaps(PortsTestCase):

    def created(self, made) -> list:
        found = data(made)
        ports.create_taps(found)
        return [each.vif_details.get(CREATE) for each in found.vifs]

    def test_a_tap(self):
        self.assertEqual([True], self.created(vif()))

    @ddt.data(vif(ovs_hybrid_plug=True), vif(vif_type='vhostuser'),
              vif(vif_type='bridge'), vif(vnic_type='direct'))
    def test_none(self, made):
        self.assertEqual([None], self.created(made))

    def test_behind_a_bridge_of_its_own(self):
        self.per_port_bridge.return_value = True
        self.assertEqual([None], self.created(vif()))

    def test_no_vifs_at_all(self):
        found = migrate_data_objects.LibvirtLiveMigrateData()
        ports.create_taps(found)
        self.assertNotIn('vifs', found)

    def test_they_are_removed_with_the_ports(self):
        info = network_model.NetworkInfo([
            network_model.VIF(id='a', type='ovs', vnic_type='normal',
                              details={'ovs_hybrid_plug': True}),
            network_model.VIF(id='b', type='ovs', vnic_type='normal',
                              details={'port_filter': True})])
        self.assertEqual(
            [{'ovs_hybrid_plug': True}, {'port_filter': True, CREATE: True}],
            [each['details'] for each in ports.with_taps(info)])
        self.assertTrue(ports.have_taps(info))
        self.assertFalse(ports.have_taps(info[:1]))
        self.assertFalse(ports.have_taps(None))
        # what Nova has is left as it is
        self.assertEqual({'port_filter': True}, info[1]['details'])


@ddt.ddt
class TestSwitch(base.BaseTestCase):

    INTERFACE = {'name': 'tapce531f90-19', 'ofport': 3, 'error': [],
                 'external_ids': {'iface-id': PORT}}

    def look(self, interface, port=None,
             wiring=gate.Wiring.AGENT) -> gate.Port:
        switch = ports.Switch()
        rows = {'Interface': [interface] if interface else [],
                'Port': [port] if port else []}
        switch._library = mock.Mock()
        switch._library.ovsdb.db_find = lambda table, condition, columns: (
            mock.Mock(**{'execute.return_value': rows[table]}))
        return switch.look(PORT, wiring)

    def test_wired(self):
        self.assertEqual(
            gate.Port(PORT, gate.Wiring.AGENT, ofport=3, vlan=2),
            self.look(self.INTERFACE, {'tag': 2}))

    def test_not_there(self):
        self.assertEqual(gate.Port(PORT, gate.Wiring.AGENT), self.look(None))

    def test_without_a_device(self):
        self.assertEqual(
            gate.Port(PORT, gate.Wiring.AGENT, ofport=-1, error='no device'),
            self.look({**self.INTERFACE, 'ofport': -1, 'error': 'no device'},
                      {'tag': []}))

    @ddt.data((None, False), ('true', True))
    @ddt.unpack
    def test_ovn(self, says, installed):
        ids = {'iface-id': PORT} | ({'ovn-installed': says} if says else {})
        self.assertEqual(installed, self.look(
            {**self.INTERFACE, 'external_ids': ids}, {'tag': []},
            gate.Wiring.OVN).installed)

    def test_others_are_not_asked_about(self):
        self.assertEqual(gate.Port(PORT, gate.Wiring.UNKNOWN),
                         ports.Switch().look(PORT, gate.Wiring.UNKNOWN))


@ddt.ddt
class TestWait(PortsTestCase):

    def setUp(self):
        super().setUp()
        cfg.CONF.import_opt('host', 'nova.conf')
        self.switch = mock.Mock()
        self.switch.look.side_effect = (
            lambda port_id, wiring: gate.Port(port_id, wiring, 3, vlan=2))

    def test_the_source_reads_what_was_found(self):
        found = data(vif())
        ports.wait_until_wired(self.switch, found, 5)
        report = ports.report(found, 123.456)
        self.assertEqual((0.0, 123.5),
                         (report.blackout_ms, report.activation_ms))
        self.assertIn('1 of 1 ports were wired', report.reason)
        # and so does one that gets it over RPC
        again = migrate_data_objects.LibvirtLiveMigrateData.obj_from_primitive(
            found.obj_to_primitive())
        self.assertEqual(report, ports.report(again, 123.456))

    def test_a_destination_that_says_nothing(self):
        report = ports.report(data(vif()), None)
        self.assertEqual((None, None),
                         (report.blackout_ms, report.activation_ms))
        self.assertIn('did not look', report.reason)

    def test_no_ports(self):
        ports.wait_until_wired(self.switch, data(), 5)
        self.switch.look.assert_not_called()
        self.assertIsNone(ports.report(data(), None).blackout_ms)

    def test_too_late(self):
        self.switch.look.side_effect = OSError('refused')
        error = self.assertRaises(exception.PortsNotWired,
                                  ports.wait_until_wired, self.switch,
                                  data(vif()), 0.01)
        self.assertIn('is not in the switch (refused)', str(error))

    @ddt.data((vif(), 'AGENT'), (vif(ovs_hybrid_plug=True), 'AGENT'),
              (vif(bound_drivers={'0': 'ovn'}), 'OVN'),
              (vif('vhostuser', vhostuser_ovs_plug=True), 'AGENT'),
              (vif('vhostuser'), 'UNKNOWN'), (vif('bridge'), 'UNKNOWN'),
              (vif(bridge_name='tbr-12345678-9'), 'UNKNOWN'))
    @ddt.unpack
    def test_how_a_port_is_looked_at(self, made, wiring):
        ports.wait_until_wired(self.switch, data(made), 0)
        self.switch.look.assert_called_once_with(PORT, gate.Wiring[wiring])


class TestArrivals(PortsTestCase):

    def test_overdue(self):
        arrivals = ports.Arrivals()
        for uuid, lease_s in (('one', 0), ('two', 0), ('three', 600)):
            arrivals.expect(types.SimpleNamespace(uuid=uuid), data(vif()),
                            lease_s, 600)
        arrivals.landed('two')
        arrivals.landed('unknown')
        (instance, network_info), = arrivals.overdue()
        self.assertEqual('one', instance.uuid)
        self.assertEqual([PORT], [each['id'] for each in network_info])
        self.assertEqual([], arrivals.overdue())

    def test_one_that_libvirt_has_may_take_longer(self):
        arrivals = ports.Arrivals()
        for uuid, lasts_s in (('one', 600), ('two', 0)):
            arrivals.expect(types.SimpleNamespace(uuid=uuid), data(vif()), 0,
                            lasts_s)
            self.assertEqual([uuid], [each.uuid for each
                                      in arrivals.not_begun()])
            self.assertEqual(lasts_s, arrivals.begun(uuid))
            # Its guest can be started again later.
            self.assertIsNone(arrivals.begun(uuid))
        self.assertIsNone(arrivals.begun('unknown'))
        (instance, _), = arrivals.overdue()
        self.assertEqual('two', instance.uuid)


class TestBindings(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        patch = mock.patch.object(ports.neutron, 'get_client')
        self.client = patch.start()
        self.start = self.client.return_value.activate_port_binding
        self.addCleanup(patch.stop)
        self.bindings = ports.Bindings(None, mock.Mock(), data(vif()), 'src',
                                       'dest')

    def hosts(self) -> list[str]:
        self.assertEqual({PORT}, {call.args[0] for call in
                                  self.start.call_args_list} or {PORT})
        return [call.args[1] for call in self.start.call_args_list]

    def test_once(self):
        self.bindings.activate()
        self.bindings.activate()
        self.assertGreaterEqual(self.bindings.wait(), 0)
        self.assertEqual(['dest'], self.hosts())

    def test_a_guest_that_stayed(self):
        self.bindings.activate()
        self.bindings.back_to_source()
        self.assertEqual(['dest', 'src'], self.hosts())

    def test_nothing_to_undo(self):
        self.bindings.back_to_source()
        self.assertEqual([], self.hosts())
        self.assertIsNone(self.bindings.wait())

    def test_bound_already(self):
        self.start.side_effect = (
            ports.neutron_exceptions.NeutronClientException(status_code=409))
        self.bindings.activate()
        self.assertIsNotNone(self.bindings.wait())

    def test_no_bindings_at_two_hosts(self):
        self.client.reset_mock()
        bindings = ports.Bindings(None, mock.Mock(), data(), 'src', 'dest')
        bindings.activate()
        bindings.back_to_source()
        self.assertIsNone(bindings.wait())
        self.client.assert_not_called()

    def test_no_client(self):
        self.client.side_effect = Exception('keystone is away')
        bindings = ports.Bindings(None, mock.Mock(), data(vif()), 'src',
                                  'dest')
        bindings.activate()
        self.assertIsNone(bindings.wait())
        bindings.back_to_source()
        self.assertEqual([], self.hosts())

    def test_neutron_fails(self):
        self.start.side_effect = Exception('away')
        self.bindings.activate()
        self.assertIsNone(self.bindings.wait())
        self.bindings.back_to_source()
        self.assertEqual(['dest', 'src'], self.hosts())
