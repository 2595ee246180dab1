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
from unittest import mock

import ddt
from oslotest import base as oslo_base

from nova_fastmig import calibration
from nova_fastmig import calibration_store
from nova_fastmig import capabilities
from nova_fastmig.cmd import check
from nova_fastmig import inspection
from tests.unit.cmd import base
from tests.unit import values

GOOD = {
    'default': 'compute_driver = fastmig.FastMigDriver',
    'libvirt': 'live_migration_with_native_tls = true\nvirt_type = kvm'}


@ddt.ddt
class TestCheck(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.caps = values.host(
            qemu_version=(10, 0, 13), libvirt_version=(11, 3, 0),
            qemu_series='nova-fastmig-1')
        for target, name, value in (
                (inspection, 'Host', mock.Mock()),
                (capabilities, 'read', lambda host, name: self.caps),
                (check.os, 'access', mock.Mock(return_value=True))):
            patch = mock.patch.object(target, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def check(self, **conf) -> tuple[int, dict[str, dict]]:
        self.configure(**{**GOOD, **conf})
        code, output, _ = self.run_command('check', '-f', 'json')
        return code, {each['Item']: each for each in json.loads(output)}

    def test_all_is_well(self):
        code, items = self.check()
        self.assertEqual(0, code)
        self.assertEqual({'ok'}, {each['Status'] for each in items.values()})
        self.assertEqual({''}, {each['What to do'] for each in items.values()})
        self.assertEqual(
            ['compute driver', 'SLA settings', 'transport', 'post-copy', 'KVM',
             'sinks', 'files', 'bandwidth', 'calibration', 'libvirt', 'QEMU',
             'patched QEMU'], list(items))

    # what is configured -> item, status, found, what to do
    @ddt.data(
        ({'default': ''}, 'compute driver', 'failed', 'not set',
         'compute_driver = fastmig.FastMigDriver'),
        ({'default': 'compute_driver = libvirt.LibvirtDriver'},
         'compute driver', 'failed', 'libvirt.LibvirtDriver',
         'compute_driver = fastmig.FastMigDriver'),
        ({'fastmig': 'default_max_downtime_ms = 2000'}, 'settings', 'failed',
         'default_max_downtime_ms = 2000 is not valid', 'message'),
        ({'libvirt': 'live_migration_tunnelled = true\nvirt_type = kvm'},
         'transport', 'failed', 'tunnelled', 'live_migration_tunnelled'),
        ({'libvirt': 'virt_type = kvm'}, 'transport', 'warning',
         'without encryption', 'live_migration_with_native_tls'),
        ({'fastmig': 'default_on_miss = post-copy'}, 'post-copy', 'failed',
         'not permitted', 'live_migration_permit_post_copy'),
        ({'libvirt': GOOD['libvirt'] +
          '\nlive_migration_permit_post_copy = true',
          'fastmig': 'default_on_miss = post-copy'}, 'post-copy', 'ok',
         'permitted', ''),
        ({'libvirt': 'virt_type = qemu'}, 'KVM', 'warning',
         'virt_type = qemu', 'virt_type = kvm'),
        ({'fastmig': 'sinks = log,pigeon'}, 'sinks', 'failed',
         'unknown: pigeon', 'installed: instance_action, journal, log'),
        ({'fastmig': 'sinks ='}, 'sinks', 'warning', 'none', 'sinks'),
        ({'fastmig': 'sinks = notification'}, 'sinks', 'failed',
         'no versioned', 'notification_format = versioned'),
        ({'fastmig': 'sinks = notification',
          'more': '[notifications]\nnotification_format = both'}, 'sinks',
         'ok', 'notification', ''),
        ({'default': GOOD['default'] +
          '\nmax_concurrent_live_migrations = 3'}, 'bandwidth', 'warning',
         'but 3 migrations', 'migration_bandwidth_mib_s'),
        ({'default': GOOD['default'] +
          '\nmax_concurrent_live_migrations = 0'}, 'bandwidth', 'warning',
         'any number of', 'migration_bandwidth_mib_s'),
        ({'fastmig': 'migration_bandwidth_mib_s = 900'}, 'bandwidth', 'ok',
         '900 MiB/s', ''))
    @ddt.unpack
    def test_settings(self, conf, name, status, found, todo):
        code, items = self.check(**conf)
        item = items[name]
        self.assertEqual(status, item['Status'])
        self.assertIn(found, item['Found'])
        self.assertIn(todo, item['What to do'])
        self.assertEqual(bool(todo), bool(item['What to do']))
        self.assertEqual(int(status == 'failed'), code)

    @ddt.data(
        ({'libvirt_version': (11, 0, 9)}, 'libvirt', 'warning', '11.1.0'),
        ({'qemu_version': (8, 1, 9)}, 'QEMU', 'warning', '8.2.0'),
        ({'qemu_version': (7, 2, 0)}, 'QEMU', 'warning', '8.2.0'),
        ({'qemu_series': ''}, 'patched QEMU', 'warning',
         'fastmig:qemu=patched'))
    @ddt.unpack
    def test_versions(self, caps, name, status, todo):
        self.caps = values.host(**{
            'qemu_version': (10, 0, 13), 'libvirt_version': (11, 3, 0),
            'qemu_series': 'nova-fastmig-1', **caps})
        code, items = self.check()
        self.assertEqual((0, status), (code, items[name]['Status']))
        self.assertIn(todo, items[name]['What to do'])

    def test_a_qemu_that_loses_memory(self):
        self.caps = values.host(qemu_version=(7, 2, 0))
        code, items = self.check(libvirt='virt_type = qemu')
        self.assertEqual((1, 'failed'), (code, items['QEMU']['Status']))

    def learn(self, fixed_ms: float) -> None:
        store = calibration_store.Store(
            str(self.state / 'fastmig' / 'calibration.json'), 60)
        for _ in range(calibration.MIN_OBSERVATIONS):
            store.add(calibration.Pair('compute1', 'compute2'),
                      calibration.Versions('here', 'there'), fixed_ms, 1e9)

    def test_what_was_learned(self):
        self.learn(9.0)
        code, items = self.check()
        self.assertEqual(('ok', '1 pairs of hosts are known'), (
            items['calibration']['Status'], items['calibration']['Found']))
        self.learn(9.5)
        code, items = self.check()
        self.assertEqual((0, 'ok'), (code, items['calibration']['Status']))

    @ddt.data(('', r'next trial from 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ'),
              ('calibration_retry_s = 0', 'without trials'))
    @ddt.unpack
    def test_what_was_learned_refuses_migrations(self, fastmig, trial):
        self.learn(41.5)
        code, items = self.check(fastmig=fastmig)
        item = items['calibration']
        self.assertEqual((0, 'warning'), (code, item['Status']))
        self.assertRegex(
            item['Found'],
            r'^1 pairs of hosts are known; with the default SLA migrations '
            r'are refused between 1: the flavor allows a downtime of 10 ms, '
            r'but from host compute1 to host compute2 41.5 ms do not depend '
            rf'on memory \(learned from 5 migrations\) \({trial}\)$')
        self.assertIn('calibration_retry_s', item['What to do'])

    def test_kvm_that_is_missing(self):
        check.os.access.side_effect = lambda path, mode: path != '/dev/kvm'
        code, items = self.check()
        self.assertEqual((1, 'failed'), (code, items['KVM']['Status']))

    def test_libvirt_that_does_not_answer(self):
        inspection.Host.side_effect = OSError('no socket')
        code, items = self.check()
        self.assertEqual(1, code)
        self.assertEqual(('failed', 'qemu:///system: no socket'),
                         (items['libvirt']['Status'],
                          items['libvirt']['Found']))
        self.assertNotIn('QEMU', items)

    def test_a_check_that_breaks_does_not_break_the_others(self):
        def check_moon(conf):
            raise KeyError

        with mock.patch.object(check, 'OF_SETTINGS', (
                check_moon, check.check_driver)):
            code, items = self.check()
        self.assertEqual(1, code)
        self.assertEqual(('failed', 'KeyError()'), (
            items['moon']['Status'], items['moon']['Found']))
        self.assertEqual('ok', items['compute driver']['Status'])

    def test_as_a_table(self):
        self.configure(**GOOD)
        code, output, _ = self.run_command('check')
        self.assertEqual(0, code)
        self.assertIn('| compute driver | ok     |', output)


class TestFiles(base.CommandTestCase):

    def check(self, fastmig: str) -> check.Item:
        self.configure(fastmig)
        self.run_command('help')
        return check.check_files(base.CONF)

    def test_the_paths_in_use(self):
        item = self.check('sinks = journal')
        self.assertEqual(
            (check.Status.OK, f'{self.state}/fastmig/calibration.json, '
             f'{self.state}/fastmig/migrations, '
             f'{self.state}/fastmig/journal.jsonl'), (item.status, item.found))

    def test_one_that_is_in_no_directory(self):
        item = self.check(f'calibration_path = {self.conf}/x/y')
        self.assertEqual((check.Status.FAILED, f'{self.conf} cannot be '
                          'written'), (item.status, item.found))

    def test_one_that_may_not_be_written(self):
        with mock.patch.object(os, 'access', return_value=False):
            item = self.check('sinks = prometheus\n'
                              'prometheus_textfile = /etc/x.prom')
        self.assertIs(check.Status.FAILED, item.status)


class TestItem(oslo_base.BaseTestCase):

    def test_the_driver_is_the_one_of_the_package(self):
        from nova_fastmig.nova_virt import fastmig
        module, name = check.DRIVER.split('.')
        self.assertEqual(('fastmig', True), (module, hasattr(fastmig, name)))
