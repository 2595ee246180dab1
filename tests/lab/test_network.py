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

"""Ports that are wired late, with the guests' taps in the bridge."""

import json

from tests.lab import base
from tests.lab import hosts
from tests.lab import network
from tests.lab import tool

LATE_S = 8


class LateAgentTest(base.LabTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.addClassCleanup(network.use_ports, 'bridge')
        network.use_ports('tap')

    def test_the_guest_comes_when_its_port_is_wired(self):
        """Nova's own driver would not wait, or not migrate at all."""
        self.boot(self.flavor(enabled='true', on_miss='proceed'))
        agent = hosts.service('compute2', 'neutron-openvswitch-agent')
        with tool.QemuEvents('STOP', 'RESUME') as events:
            with self.probe() as probe:
                with hosts.frozen(agent):
                    self.migrate()
                    base.wait_until('Nova prepares the migration', lambda: (
                        self.migration() is not None and
                        self.migration().status == 'preparing'))
                    # no domain, because nobody may come yet
                    base.wait_until('the tap is there', lambda: (
                        'tap' in base.on_host('compute2', 'ovs-vsctl',
                                              'list-ports', 'br-int')))
                    self.assertIsNone(self.domain_state('compute2'))
                self.assert_ends('completed')
            stopped = events.last('compute1', self.uuid, 'STOP')
            resumed = events.last('compute2', self.uuid, 'RESUME')
        self.assert_on('compute2')
        self.assert_unharmed(probe)
        around = [at + count / 1000 for at, count in probe.result['losses']
                  if at <= resumed < at + count / 1000]
        network_ms = (max(around, default=resumed) - resumed) * 1000
        self.assertGreater(resumed, stopped)
        self.assertLess(network_ms, 100)

        base.wait_until('the verdict', self.verdict, timeout_s=10)
        reported = json.loads(base.on_host(
            'compute1', 'tail', '-n', '1',
            '/var/lib/nova/fastmig/journal.jsonl'))['report']
        self.assertEqual(self.uuid, reported['instance_uuid'])
        self.assertEqual(0, reported['network']['blackout_ms'])
        self.assertIsNotNone(reported['network']['activation_ms'])

        # The tap that os-vif has made goes with the guest.
        self.migrate()
        self.assert_ends('completed')
        self.assert_on('compute1')
        port = next(self.cloud.network.ports(device_id=self.uuid))
        self.assertNotIn(f'tap{port.id}'[:14], base.on_host(
            'compute2', 'ls', '/sys/class/net'))
