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

"""What a report says beside the verdict, from a real QEMU's events."""

import json

from tests.lab import base

SLOW_MIB_PER_S = 1


class TestReport(base.LabTest):
    options = ('--qemu', 'distribution')

    def report(self) -> dict:
        """The newest one, as the operator's command shows it."""
        base.wait_until('the verdict', self.verdict, timeout_s=10)
        return json.loads(base.on_host(
            'compute1', 'nova-fastmig', '--config-dir',
            '/etc/nova/nova.conf.d', 'report', 'show', self.uuid,
            '-f', 'json'))

    def assert_not_marked(self, host: str) -> None:
        """Listening to its QEMU leaves nothing on a guest.

        Announcing it does, where it has moved.
        """
        self.assertNotIn('custom monitor', base.on_host(
            host, 'virsh', 'dominfo', self.domain_name))

    def test_the_parts_of_a_blackout(self):
        self.boot(self.flavor(enabled='true', on_miss='proceed',
                              max_total_ms='60000'))
        self.migrate()
        self.assert_ends('completed')
        report = self.report()
        known = {name: report[f'parts.{name}'] for name in (
            'qemu_stop_ms', 'transfer_ms', 'libvirt_handover_ms')}
        self.assertNotIn(None, known.values(), report)
        self.assertLess(0, known['transfer_ms'])
        # libvirt counts in whole milliseconds, and begins a moment later.
        self.assertAlmostEqual(report['downtime_libvirt_ms'],
                               sum(known.values()), delta=3)
        # No time of the destination is in it.
        self.assertIsNone(report['parts.clock_offset_ms'])
        self.assertIsNone(report['source_pause_ms'])
        for name in 'before_ms', 'after_ms':
            self.assertTrue(0 <= report[f'nova.{name}'] < 120_000, report)

    def test_a_guest_that_was_never_stopped(self):
        self.boot(self.flavor(enabled='true', max_total_ms='3000'))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        self.migrate()
        self.assert_ends('cancelled')
        report = self.report()
        self.assertEqual(('aborted', 0), (report['outcome'],
                                          report['source_pause_ms']))
        self.assert_not_marked('compute1')
