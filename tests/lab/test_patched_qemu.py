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

"""Tagged guests on the patched QEMU, between two real hosts.

They need what lab/build-qemu installs.
"""

import json
from xml.etree import ElementTree

from tests.lab import base

EMULATOR = '/opt/nova-fastmig/qemu/bin/qemu-system-x86_64'
JOURNAL = '/var/lib/nova/fastmig/journal.jsonl'


class PatchedQemuTest(base.LabTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for host in base.COMPUTE_IPS:
            if not base.on_host(host, 'find', '/opt', '-path', EMULATOR):
                raise cls.skipException(
                    f'{host} has no patched QEMU: run lab/build-qemu')

    def setUp(self):
        super().setUp()
        # what a test that failed in between may have left
        self.use()

    def use(self, *options: str) -> None:
        base.lab('use-driver', 'fastmig', *options)

    def emulator(self, host: str) -> str:
        with self._domain(host) as domain:
            return ElementTree.fromstring(domain.XMLDesc()).findtext(
                './devices/emulator')

    def move(self, source: str, destination: str) -> dict:
        """Migrate the guest; the driver's report of it."""
        with self.probe() as probe:
            self.migrate()
            self.assert_ends('completed')
        self.assert_on(destination)
        self.assert_unharmed(probe)
        base.wait_until('the verdict', self.verdict, timeout_s=10)

        def report():
            record = json.loads(base.on_host(source, 'tail', '-n', '1',
                                             JOURNAL))['report']
            return record if record['instance_uuid'] == self.uuid else None
        return base.wait_until('the report', report, timeout_s=10)

    def boot_tagged(self, **fastmig: str):
        return self.boot(self.flavor(enabled='true', on_miss='proceed',
                                     max_total_ms='60000', **fastmig))

    def test_all_features_and_then_one(self):
        self.boot_tagged(qemu='patched')
        self.assertEqual(EMULATOR, self.emulator('compute1'))
        for source, destination in (('compute1', 'compute2'),
                                    ('compute2', 'compute1')):
            report = self.move(source, destination)
            self.assertEqual(EMULATOR, self.emulator(destination))
            self.assertEqual([], report['unused_features'])
            self.assertIn('x-early-resume', report['qemu_features'])
            self.assertEqual('QEMU', report['downtime']['measured_by'])
        # what was for the migration is no part of the guest's definition
        with self._domain('compute1') as domain:
            self.assertNotIn('migration.x-', domain.XMLDesc(
                base.libvirt.VIR_DOMAIN_XML_INACTIVE))
        # nor are they in the way of later ones, of the same process
        self.use('--features', 'x-tcp-nodelay')
        self.assertEqual(['x-tcp-nodelay'],
                         self.move('compute1', 'compute2')['qemu_features'])

    def test_to_the_distributions_qemu_and_back(self):
        self.boot_tagged()
        self.use('--qemu', 'distribution')
        report = self.move('compute1', 'compute2')
        self.assertNotEqual(EMULATOR, self.emulator('compute2'))
        self.assertIn('x-drained-switchover', report['qemu_features'])
        self.assertNotIn('x-early-resume', report['qemu_features'])
        self.use()
        report = self.move('compute2', 'compute1')
        self.assertEqual(EMULATOR, self.emulator('compute1'))
        self.assertIn('x-single-memory-transaction', report['qemu_features'])
        self.assertNotIn('x-drained-switchover', report['qemu_features'])

    def test_refused_where_it_is_not(self):
        self.boot_tagged(qemu='patched')
        self.use('--qemu', 'distribution')
        self.migrate()
        self.assert_ends('error')
        self.assert_on('compute1')
