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

"""The ports of a guest that moves: wired before, bound at the switchover."""

import collections
import unittest

import fixtures
from nova.network import model as network_model
from oslo_config import cfg

from nova_fastmig import gate
from nova_fastmig import ports
from nova_fastmig import session
from tests.functional import base
from tests.functional import fake_libvirt


class PortsTestCase(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.steps = []
        self.states = []
        # step -> what it raises, one after the other
        self.failures = collections.defaultdict(list)
        self.useFixture(fixtures.MockPatchObject(
            ports.Switch, 'look', side_effect=self._look))
        # Nova's fixture keeps its bindings by host and port.
        self._note(self.neutron, 'activate_port_binding', 'activate')
        self._note(fake_libvirt.Domain, 'migrateToURI3', 'migrate')
        self.wiring_timeout_s(30)

    def _note(self, owner, name, step):
        original = getattr(owner, name)

        def noting(*args, **kwargs):
            self.steps.append((step, *(arg for arg in args
                                       if arg in ('src', 'dest'))))
            if self.failures[step]:
                raise self.failures[step].pop()
            return original(*args, **kwargs)

        self.useFixture(fixtures.MonkeyPatch(
            f'{owner.__module__}.{owner.__name__}.{name}', noting)
            if isinstance(owner, type) else
            fixtures.MockPatchObject(owner, name, side_effect=noting))

    def wiring_timeout_s(self, value: int) -> None:
        cfg.CONF.set_override('port_wiring_timeout_s', value, group='fastmig')
        self.addCleanup(cfg.CONF.clear_override, 'port_wiring_timeout_s',
                        group='fastmig')

    def _look(self, port_id, wiring):
        """The last of ``states`` for ever, those before it once."""
        self.steps.append(('look',))
        if self.failures['look']:
            raise self.failures['look'][-1]
        state = (self.states.pop(0) if len(self.states) > 1
                 else self.states[0] if self.states
                 else {'ofport': 1, 'vlan': 2})
        return gate.Port(port_id, wiring, **state)

    def boot_with_port(self) -> dict:
        flavor = self._create_flavor(extra_spec={'fastmig:enabled': 'true'})
        return self._create_server(
            flavor_id=flavor, host='src',
            networks=[{'port': self.neutron.port_1['id']}])

    def bound_to(self) -> str:
        port = self.neutron.show_port(self.neutron.port_1['id'])['port']
        return port['binding:host_id']

    def active_bindings(self) -> list[str]:
        bindings = self.neutron._port_bindings[self.neutron.port_1['id']]
        return [host for host, binding in bindings.items()
                if binding['status'] == 'ACTIVE']


class WiredTest(PortsTestCase):

    @base.every_nova
    def test_the_migration_waits_for_the_ports(self):
        self.states = [{'ofport': None}, {'ofport': -1}, {'ofport': 3},
                       {'ofport': 3, 'vlan': gate.DEAD_VLAN},
                       {'ofport': 3, 'vlan': 2}]
        server = self.boot_with_port()
        self._live_migrate(server, 'completed')
        self.assert_moved(server)
        self.wait_for_verdict(server)
        steps = [step for step, *_ in self.steps]
        self.assertEqual(['look'] * 5 + ['migrate', 'activate'],
                         steps[:7])

    def test_ports_that_are_never_wired(self):
        self.states = [{'ofport': -1, 'error': 'No such device'}]
        self.wiring_timeout_s(1)
        server = self.boot_with_port()
        self._live_migrate(server, 'failed')
        self.assert_stayed(server)
        self.assertEqual([], self.fake.calls)
        self.assertEqual(['src'], self.active_bindings())
        details = ' '.join(event.get('details') or ''
                           for event in self.action(server)['events'])
        self.assertIn('has no device in the switch (No such device)', details)
        self.assertIn('[fastmig]port_wiring_timeout_s', details)

    def test_without_a_gate(self):
        self.states = [{'ofport': None}]
        self.wiring_timeout_s(0)
        server = self.boot_with_port()
        self._live_migrate(server, 'completed')
        self.assert_moved(server)

    def test_a_switch_that_cannot_be_asked(self):
        self.failures['look'].append(OSError('refused'))
        self.wiring_timeout_s(1)
        server = self.boot_with_port()
        self._live_migrate(server, 'failed')
        self.assert_stayed(server)
        self.assertEqual([], self.fake.calls)

    def test_an_untagged_guest_is_nobodys_business(self):
        self.states = [{'ofport': None}]
        server = self._create_server(
            flavor_id=self._create_flavor(), host='src',
            networks=[{'port': self.neutron.port_1['id']}])
        self._live_migrate(server, 'completed')
        self.assertNotIn(('look',), self.steps)


class BindingTest(PortsTestCase):

    def setUp(self):
        super().setUp()
        self.reports = []
        original = session.sinks.Sinks.emit

        def emit(sinks, context, report):
            self.reports.append(report)
            original(sinks, context, report)

        self.useFixture(fixtures.MonkeyPatch(
            'nova_fastmig.sinks.Sinks.emit', emit))

    @base.every_nova
    def test_it_is_activated_at_the_switchover(self):
        """Before Nova's post step begins, which finds it done."""
        seen = []
        post = session.Session.follow

        def follow(made, domain, tasks, migration, possible, give_up_s, after,
                   recover):
            def look_then_post():
                seen.append(self.active_bindings())
                after()
            post(made, domain, tasks, migration, possible, give_up_s,
                 look_then_post, recover)

        self.useFixture(fixtures.MonkeyPatch(
            'nova_fastmig.session.Session.follow', follow))
        server = self.boot_with_port()
        self._live_migrate(server, 'completed')
        self.wait_for_verdict(server)
        self.assertEqual([['dest']], seen)
        self.assertEqual(['dest'], self.active_bindings())
        network = self.reports[0].network
        self.assertEqual(0, network.blackout_ms)
        self.assertGreater(network.activation_ms, 0)
        self.assertIn('1 of 1 ports were wired', network.reason)

    @base.every_nova
    def test_a_guest_that_stays_has_its_ports_back(self):
        """libvirt's last step fails when the source has given it away."""
        self.fake.behaviour.fails_at_the_end = 'the destination is gone'
        server = self.boot_with_port()
        self._live_migrate(server, 'failed')
        self.assert_stayed(server)
        self.assertEqual(
            [('activate', 'dest'), ('activate', 'src')],
            [step for step in self.steps if step[0] == 'activate'])
        self.assertEqual(['src'], self.active_bindings())
        self.wait_for_verdict(server)
        self.assertIsNone(self.reports[0].network)

    def test_the_guest_is_announced_where_it_is_bound(self):
        server = self.boot_with_port()
        self._live_migrate(server, 'completed')
        self.wait_for_verdict(server)
        self.assertEqual([('dest', server['id'])], self.fake.announced)
        self.assertEqual(['dest'], self.active_bindings())

    @base.every_nova
    def test_neutron_fails(self):
        """Nova's post step tries again."""
        self.failures['activate'].append(Exception('Neutron is away'))
        server = self.boot_with_port()
        self._live_migrate(server, 'completed')
        self.assert_moved(server)
        self.wait_for_verdict(server)
        self.assertEqual(['dest'], self.active_bindings())
        self.assertIsNone(self.reports[0].network.activation_ms)


@unittest.skipUnless(
    hasattr(network_model, 'VIF_DETAILS_OVS_CREATE_TAP'),
    'this Nova cannot have taps created')
class TapsTest(PortsTestCase):

    @base.every_nova
    def test_they_are_created_before_and_removed_after(self):
        plugged, unplugged = [], []
        for name, seen in (('plug', plugged), ('unplug', unplugged)):
            self.useFixture(fixtures.MockPatch(
                f'nova.virt.libvirt.vif.LibvirtGenericVIFDriver.{name}',
                side_effect=lambda instance, vif, seen=seen: seen.append(
                    vif['details'].get(
                        network_model.VIF_DETAILS_OVS_CREATE_TAP))))
        server = self.boot_with_port()
        plugged.clear()
        self._live_migrate(server, 'completed')
        self.assert_moved(server)
        self.wait_for_verdict(server)
        self.assertEqual([True], plugged[:1])
        self.assertEqual({True}, set(unplugged))
