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

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import gate

LIMIT_MS = 30000


def port(wiring=gate.Wiring.AGENT, ofport=3, **values) -> gate.Port:
    values.setdefault('vlan', 2 if wiring is gate.Wiring.AGENT else None)
    return gate.Port('a-port', wiring, ofport, **values)


WIRED = port()
OVN = port(gate.Wiring.OVN, installed=True)
SILENT_OVN = port(gate.Wiring.OVN)
UNKNOWN = gate.Port('another', gate.Wiring.UNKNOWN)


@ddt.ddt
class TestDecide(base.BaseTestCase):

    @ddt.data([], [WIRED], [WIRED, port(vlan=1)], [OVN], [OVN, WIRED])
    def test_all_are_wired(self, ports):
        decision = gate.decide(ports, 812.3, LIMIT_MS)
        self.assertEqual((gate.Answer.OPEN, True),
                         (decision.answer, decision.wired))
        self.assertIn('812 ms', decision.reason)

    @ddt.data(
        (port(ofport=None), 'port a-port is not in the switch'),
        (port(ofport=-1, error='No such device'),
         'port a-port has no device in the switch (No such device)'),
        (port(ofport=-1), 'port a-port has no device in the switch'),
        (port(vlan=None), "Neutron's agent has not wired port a-port (VLAN "
                          'tag none)'),
        (port(vlan=gate.DEAD_VLAN), "Neutron's agent has not wired port "
                                    'a-port (VLAN tag 4095)'))
    @ddt.unpack
    def test_one_is_not(self, absent, reason):
        for ports in ([absent], [WIRED, absent], [absent, UNKNOWN]):
            early = gate.decide(ports, LIMIT_MS - 1, LIMIT_MS)
            self.assertEqual(gate.Answer.WAIT, early.answer)
            late = gate.decide(ports, LIMIT_MS, LIMIT_MS)
            self.assertEqual((gate.Answer.SHUT, False),
                             (late.answer, late.wired))
            self.assertIn(reason, late.reason)
            self.assertIn('[fastmig]port_wiring_timeout_s', late.reason)

    def test_ovn_that_says_nothing(self):
        """It may be one that cannot before the binding is activated."""
        self.assertEqual(
            gate.Answer.WAIT,
            gate.decide([SILENT_OVN], LIMIT_MS - 1, LIMIT_MS).answer)
        late = gate.decide([SILENT_OVN], LIMIT_MS, LIMIT_MS)
        self.assertEqual((gate.Answer.OPEN, False), (late.answer, late.wired))
        self.assertIn('OVN has not said', late.reason)

    def test_what_cannot_be_seen_is_not_waited_for(self):
        decision = gate.decide([UNKNOWN, WIRED], 0, LIMIT_MS)
        self.assertEqual((gate.Answer.OPEN, False),
                         (decision.answer, decision.wired))

    def test_without_a_gate(self):
        decision = gate.decide([port(ofport=None)], 0, 0)
        self.assertEqual((gate.Answer.OPEN, False),
                         (decision.answer, decision.wired))


PORTS = st.lists(st.builds(
    gate.Port, st.just('p'), st.sampled_from(gate.Wiring),
    ofport=st.none() | st.integers(-1, 70000),
    vlan=st.none() | st.integers(0, 4095), installed=st.booleans()))


class TestAnyPorts(base.BaseTestCase):

    @hypothesis.given(PORTS, st.floats(0, 1e6), st.floats(0, 1e6))
    def test_wired_is_said_of_what_was_seen_only(self, ports, waited, limit):
        decision = gate.decide(ports, waited, limit)
        if decision.wired:
            self.assertEqual(gate.Answer.OPEN, decision.answer)
            for each in ports:
                self.assertEqual('', gate.why_absent(each))
                self.assertEqual('', gate.why_unsure(each))

    @hypothesis.given(PORTS, st.floats(1, 1e6))
    def test_the_waiting_ends(self, ports, limit):
        self.assertNotEqual(gate.Answer.WAIT,
                            gate.decide(ports, limit, limit).answer)

    @hypothesis.given(PORTS, st.floats(0, 1e6), st.floats(1, 1e6))
    def test_nobody_comes_to_a_port_that_is_not_there(self, ports, waited,
                                                      limit):
        if any(map(gate.why_absent, ports)):
            self.assertNotEqual(gate.Answer.OPEN,
                                gate.decide(ports, waited, limit).answer)
