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

"""What the rigs decide; what they do is tested in the lab."""

import dataclasses
import json
import types
from unittest import mock
from xml.etree import ElementTree

import ddt
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import lab
from nova_fastmig.bench import libvirt_rig
from nova_fastmig.bench import nova_rig
from nova_fastmig.bench import qemu_rig
from nova_fastmig.bench import scenario
from nova_fastmig import model

CONTENDERS = catalog.CONTENDERS
DPDK = catalog.WORKLOADS['l2fwd-dpdk'].guest
PROBED = {
    'sent': 4000, 'lost': 12, 'duplicates': 1, 'reordered': 2,
    'blackout_ms': 12.0, 'gap_ms': 14.5, 'rtt_p50_ms': 0.3, 'rtt_p99_ms': 2.0,
    'rtt_max_ms': 9.0, 'first_pages_verified': 1000, 'pages_verified': 17384,
    'first_guest_ns': 10**9, 'last_guest_ns': 3 * 10**9,
    'first_disk_blocks': None, 'disk_blocks': None, 'disk_faults': None,
    'working_set_mib': 64, 'wanted_working_set_mib': 64,
    'phases': []}
PHASE = {'sent': 900, 'received': 888, 'lost': 12, 'duplicates': 1,
         'reordered': 2, 'longest_loss_ms': 11.0, 'rtt_p50_ms': 0.4,
         'rtt_p99_ms': 5.0, 'rtt_max_ms': 60.0, 'rewritten_mib_per_s': 31.5}


def contenders(control: scenario.Control) -> dict:
    return {name: each for name, each in CONTENDERS.items()
            if each.control == control}


@ddt.ddt
class TestNova(base.BaseTestCase):

    def test_memory_that_nova_has(self):
        guest = scenario.Guest(memory_mib=1024)
        self.assertIsNone(nova_rig.memory_obstacle(
            {'compute1': 1536, 'compute2': 9999}, guest))
        self.assertEqual(
            'compute2 has 1023 MiB of memory for Nova, 1024 MiB are needed',
            nova_rig.memory_obstacle({'compute1': 1536, 'compute2': 1535},
                                     guest))

    @ddt.data(
        ('nova', ['live_migration_downtime=500',
                  'live_migration_downtime_steps=10',
                  'live_migration_downtime_delay=75']),
        ('nova-post-copy', ['live_migration_permit_post_copy=true',
                            'live_migration_completion_timeout=1',
                            'live_migration_timeout_action=force_complete',
                            'live_migration_downtime=100',
                            'live_migration_downtime_steps=3',
                            'live_migration_downtime_delay=3']),
        ('fastmig-patched', []),
        ('fastmig-patched-parallel', []))
    @ddt.unpack
    def test_options(self, name, options):
        self.assertEqual(options,
                         nova_rig.libvirt_options(CONTENDERS[name]))

    def test_every_option_of_the_catalog_is_known(self):
        for each in contenders(scenario.Control.NOVA).values():
            nova_rig.libvirt_options(each)
            nova_rig.flavor_arguments(each, catalog.SMALL)

    def test_flavor(self):
        plain = ['--ram-mib', '256', '--vcpus', '1', '--data-plane', 'kernel']
        pages = ['--extra-spec', 'hw:mem_page_size=2048']
        parallel = ['--extra-spec', 'fastmig:parallel_connections=2']
        for name, guest, expected in (
                ('nova', catalog.SMALL, plain),
                # an option of nova.conf for Nova's own driver
                ('nova-parallel', catalog.SMALL, plain),
                ('fastmig-patched', catalog.HUGEPAGES, plain + pages),
                ('fastmig-patched-parallel', catalog.SMALL, plain + parallel),
                ('fastmig-patched-parallel', catalog.HUGEPAGES,
                 plain + pages + parallel)):
            self.assertEqual(
                expected, nova_rig.flavor_arguments(CONTENDERS[name], guest))


@ddt.ddt
class TestLibvirt(base.BaseTestCase):

    @ddt.data(('virsh', []),
              ('virsh-post-copy', ['--postcopy',
                                   '--postcopy-after-precopy']),
              ('ovirt', ['--auto-converge']))
    @ddt.unpack
    def test_command(self, name, flags):
        self.assertEqual(
            [str(lab.CHECKOUT / 'lab/in'), 'compute1',
             'virsh', 'migrate', '--live', '--p2p', *flags, 'bench-libvirt',
             'qemu+tcp://10.77.0.12/system', '--migrateuri',
             'tcp://10.77.0.12'],
            libvirt_rig.migrate_command(lab.Lab(), CONTENDERS[name],
                                        'compute1', 'compute2'))

    def test_every_option_of_the_catalog_is_known(self):
        for each in contenders(scenario.Control.LIBVIRT).values():
            libvirt_rig.migrate_command(lab.Lab(), each, 'compute2',
                                        'compute1')

    def domain(self, guest: scenario.Guest) -> ElementTree.Element:
        the_lab = lab.Lab()
        the_lab.accelerator = 'tcg'
        contender = scenario.Contender(
            scenario.Control.LIBVIRT, scenario.Qemu.PATCHED,
            features=('x-b', 'x-a'), downtime_limit_ms=10)
        return ElementTree.fromstring(libvirt_rig.domain_xml(
            the_lab, scenario.Turn(0, contender, guest, ()), '/d.img'))

    def test_hugepages(self):
        self.assertIsNone(self.domain(catalog.SMALL).find('memoryBacking'))
        page = self.domain(catalog.HUGEPAGES).find(
            'memoryBacking/hugepages/page')
        self.assertEqual({'size': '2048', 'unit': 'KiB'}, page.attrib)

    def test_post_copy_needs_other_ports(self):
        why = [lab.obstacle(turn) for turn in catalog.comparison(
            '', ['virsh-post-copy', 'virsh'], ['l2fwd-dpdk', 'idle'], 1, 1
            ).turns()]
        self.assertEqual(1, sum(each is not None for each in why))
        self.assertIn('vhost-postcopy-support', ''.join(filter(None, why)))

    def test_the_labs_disk_is_for_writing(self):
        turn, = catalog.comparison('', ['virsh'], ['block-io'], 1, 1).turns()
        self.assertIsNone(libvirt_rig.disk_obstacle(lab.Lab(), turn))

    def test_domain(self):
        xml = self.domain(scenario.Guest(memory_mib=512, vcpus=2))
        self.assertEqual('qemu', xml.get('type'))
        self.assertEqual('512', xml.findtext('memory'))
        self.assertEqual(lab.PATCHED, xml.findtext('devices/emulator'))
        self.assertEqual('openvswitch', xml.find(
            'devices/interface/virtualport').get('type'))
        # the copy is the guest's own
        self.assertIsNone(xml.find('devices/disk/readonly'))
        self.assertEqual(
            ['-global', 'migration.x-a=on', '-global', 'migration.x-b=on'],
            [each.get('value') for each in xml.find(
                '{http://libvirt.org/schemas/domain/qemu/1.0}commandline')])

    STOP, RESUME = ('source', 'STOP'), ('destination', 'RESUME')

    @ddt.data(({}, {}, None), ({STOP: 5_000}, {}, None),
              ({STOP: 5_000, RESUME: 12_500}, {}, 7.5),
              ({STOP: 5_000, RESUME: 12_500},
               {'stop': 10**6, 'stopped': 10**6}, 7.5),
              ({STOP: 5_000, RESUME: 12_500},
               {'stop': 10**6, 'resume': 5 * 10**6}, 4.0))
    @ddt.unpack
    def test_downtime(self, times_us, blackout_ns, wanted_ms):
        self.assertEqual(wanted_ms, libvirt_rig.to_figures(
            times_us, blackout_ns, True)['downtime_qemu_ms'])

    def test_other_clocks(self):
        found = libvirt_rig.to_figures(
            {self.STOP: 5_000, self.RESUME: 12_500,
             ('source', 'setup'): 1_000, ('source', 'completed'): 15_000},
            {}, False)
        self.assertIsNone(found['downtime_qemu_ms'])
        self.assertEqual(14, found['total_qemu_ms'])

    def test_what_is_heard(self):
        events = libvirt_rig.Events('it')
        for host, domain, event, time_us, details in (
                ('compute2', 'it', 'MIGRATION', 1_000, {'status': 'setup'}),
                ('compute2', 'it', 'MIGRATION_PASS', 1_250, {'pass': 1}),
                ('compute2', 'other', 'STOP', 1_500, None),
                ('compute2', 'it', 'MIGRATION_PASS', 1_750, {'pass': 2}),
                ('compute2', 'it', 'MIGRATION', 1_800,
                 {'status': 'postcopy-active'}),
                ('compute2', 'it', 'STOP', 2_000, None),
                # the first one counts
                ('compute2', 'it', 'STOP', 2_500, None),
                ('compute1', 'it', 'RESUME', 6_000, None),
                ('compute2', 'it', 'MIGRATION', 9_000,
                 {'status': 'completed', 'x-blackout': {
                     'stop': 0, 'resume': 3_000_000}}),
                ('compute1', 'it', 'MIGRATION', 9_500,
                 {'status': 'completed'})):
            events._on_event(
                None, mock.Mock(**{'name.return_value': domain}), event, 0,
                time_us, details and json.dumps(details), host)
        self.assertEqual(
            {'downtime_qemu_ms': 3, 'steps_ms': {'resumed_ms': 3},
             'total_qemu_ms': 8, 'post_copy': True, 'setup_ms': 0.25,
             'first_pass_ms': 0.5, 'further_passes_ms': 0.25,
             'completion_ms': 7},
            events.figures('compute2', 'compute1'))

    def test_statistics_that_come_late(self):
        domain = mock.Mock()
        domain.jobStats.side_effect = [{}, {'time_elapsed': 900}]
        self.assertEqual({'time_elapsed': 900},
                         libvirt_rig.completed_job(domain))

    def test_statistics_that_do_not_come(self):
        domain = mock.Mock(**{'jobStats.return_value': {}})
        with mock.patch.object(libvirt_rig, 'STATISTICS_WITHIN_S', 0):
            self.assertRaises(engine.RigError, libvirt_rig.completed_job,
                              domain)
            self.assertEqual({}, libvirt_rig.completed_job(domain, True))

    def test_sample(self):
        sample = libvirt_rig.to_sample(
            {'time_elapsed': 900, 'memory_iteration': 7,
             'data_remaining': 5, 'data_processed': 6, 'data_total': 11}, 5)
        self.assertEqual((900, 3, 5, 6, 11), (
            sample.elapsed_ms, sample.iteration, sample.remaining_bytes,
            sample.transferred_bytes, sample.total_bytes))


@ddt.ddt
class TestQemu(base.BaseTestCase):

    def test_all_features(self):
        found = qemu_rig.settings(CONTENDERS['qemu-patched'])
        self.assertEqual({'return-path', *model.QemuFeature}, found.both)
        self.assertEqual(set(), found.source)

    def test_the_seeds_three_undone(self):
        found = qemu_rig.settings(CONTENDERS['seed-before'])
        self.assertEqual(
            {'return-path', 'x-measure-eager-cleanup',
             'x-measure-sse2-zero-page', 'x-measure-cpu-state-sync'},
            found.both)

    def test_parameters(self):
        found = qemu_rig.settings(CONTENDERS['multifd-zstd'])
        self.assertIn('multifd', found.both)
        self.assertEqual({'max-bandwidth': 0, 'multifd-channels': 2,
                          'multifd-compression': 'zstd'}, found.parameters)

    def test_every_option_of_the_catalog_is_known(self):
        for each in contenders(scenario.Control.QEMU).values():
            qemu_rig.settings(each)

    def test_uri(self):
        rig = qemu_rig.QemuRig(lab.Lab())
        for name, uri in (('qemu', 'tcp:10.77.0.12:4456'),
                          ('rdma', 'rdma:10.77.0.12:4456')):
            self.assertEqual(uri, rig.uri('compute2', CONTENDERS[name]))

    def test_steps(self):
        self.assertEqual(
            {'stopped_ms': 0.5, 'resumed_ms': 8.25},
            qemu_rig.steps_ms({'stop': 10**15, 'stopped': 10**15 + 500_000,
                               'resume': 10**15 + 8_250_000,
                               'clock-error': 3000}))
        self.assertEqual({}, qemu_rig.steps_ms({}))

    @ddt.data(
        ({'pass-2': 400}, {'setup_ms': .1, 'first_pass_ms': .2,
                           'further_passes_ms': .5, 'completion_ms': .3}),
        # one pass, and the last one with the guest stopped
        ({'pass-2': 950}, {'setup_ms': .1, 'first_pass_ms': .7,
                           'further_passes_ms': 0, 'completion_ms': .3}),
        ({}, {}))
    @ddt.unpack
    def test_parts_of_the_total(self, passes, wanted_ms):
        found = qemu_rig.parts_ms({
            'setup': 100, 'pass-1': 200, 'STOP': 900, 'completed': 1_200}
            | passes)
        self.assertEqual(wanted_ms.keys(), found.keys())
        for name, each in wanted_ms.items():
            self.assertAlmostEqual(each, found[name])

    def test_command_line(self):
        guest = scenario.Guest(memory_mib=1024, vcpus=4)
        line = qemu_rig.command_line(guest, lab.DISTRIBUTION, 'kvm',
                                     'compute2', '/d.img')
        for words in (['-m', '1024M'], ['-smp', '4'], ['-cpu', 'host'],
                      ['-qmp', 'tcp:10.77.0.12:4455,server=on,wait=off']):
            place = line.index(words[0])
            self.assertEqual(words, line[place:place + 2])
        self.assertNotIn('-object', line)

    def test_hugepages(self):
        line = qemu_rig.command_line(catalog.HUGEPAGES, lab.DISTRIBUTION,
                                     'tcg', 'compute1', '/d.img')
        self.assertIn('pc,usb=off,memory-backend=memory', line)
        self.assertEqual(
            'memory-backend-memfd,id=memory,size=256M,share=on,hugetlb=on,'
            'hugetlbsize=2048K,prealloc=on', line[line.index('-object') + 1])


class TestDpdk(base.BaseTestCase):
    """A guest with vhost-user ports, in each way to start it."""

    def line(self, accelerator: str, **guest) -> list[str]:
        return qemu_rig.command_line(
            dataclasses.replace(DPDK, **guest), lab.PATCHED, accelerator,
            'compute2', '/d.img')

    def test_vhost_user_works_on_the_guests_memory(self):
        line = self.line('tcg')
        self.assertIn(
            'memory-backend-memfd,id=memory,size=512M,share=on,hugetlb=on,'
            'hugetlbsize=2048K,prealloc=on', line)
        self.assertIn('memory-backend-memfd,id=memory,size=512M,share=on',
                      self.line('tcg', page_kib=4))
        self.assertIn('pc,usb=off,memory-backend=memory', line)
        for port in ('bench0', 'bench1'):
            self.assertIn(f'socket,id={port},path=/run/openvswitch/{port},'
                          f'server=on,wait=off', line)
        self.assertNotIn('tap', ' '.join(line))

    def test_processor(self):
        for accelerator, cpu in (('tcg', 'Nehalem'), ('kvm', 'host')):
            line = self.line(accelerator)
            self.assertEqual(cpu, line[line.index('-cpu') + 1])

    def domain(self, accelerator: str) -> ElementTree.Element:
        hosts = types.SimpleNamespace(
            accelerator=accelerator, disk_is_shared=False,
            emulator=lambda qemu: '/q')
        return ElementTree.fromstring(libvirt_rig.domain_xml(
            hosts, scenario.Turn(0, CONTENDERS['virsh'], DPDK, ()), '/d.img'))

    def test_domain(self):
        found = self.domain('tcg')
        self.assertEqual(
            ['/run/openvswitch/bench0', '/run/openvswitch/bench1'],
            [each.get('path') for each in found.iterfind(
                "devices/interface[@type='vhostuser']/source"
                "[@mode='server']")])
        self.assertEqual('shared',
                         found.find('memoryBacking/access').get('mode'))
        self.assertEqual('Nehalem', found.findtext('cpu/model'))
        self.assertEqual('host-model',
                         self.domain('kvm').find('cpu').get('mode'))

    def test_novas_processor(self):
        self.assertEqual(['cpu_mode=custom', 'cpu_models=Nehalem'],
                         nova_rig.cpu_options(DPDK, 'tcg'))
        self.assertEqual([], nova_rig.cpu_options(DPDK, 'kvm'))
        self.assertEqual([], nova_rig.cpu_options(catalog.SMALL, 'tcg'))

    def test_novas_server(self):
        self.assertEqual(
            ['--ram-mib', '512', '--vcpus', '1', '--data-plane', 'dpdk',
             '--extra-spec', 'hw:mem_page_size=2048'],
            nova_rig.flavor_arguments(CONTENDERS['nova'], DPDK))


class TestFigures(base.BaseTestCase):

    def test_packets(self):
        figures = scenario.Figures(**lab.packet_figures(PROBED))
        self.assertEqual((12, 12, 2, 4000), (
            figures.blackout_ms, figures.packets_lost,
            figures.packets_reordered, figures.packets_sent))
        # 16384 pages of 4 KiB in 2 s
        self.assertEqual(32, figures.rewritten_mib_per_s)
        self.assertIsNone(figures.disk_mib_per_s)

    def test_phases(self):
        figures = scenario.Figures(**lab.packet_figures(PROBED | {
            'phases': [PHASE | {'lost': lost} for lost in (0, 12, 1)]}))
        self.assertEqual((0, 12, 1), (
            figures.before.packets_lost, figures.during.packets_lost,
            figures.after.packets_lost))
        self.assertEqual((900, 11.0, 0.4, 5.0, 60.0), (
            figures.during.packets_sent, figures.during.longest_loss_ms,
            figures.during.latency_p50_ms, figures.during.latency_p99_ms,
            figures.during.latency_max_ms))
        self.assertEqual(31.5, figures.during.rewritten_mib_per_s)

    def test_disk(self):
        # 240 blocks of 64 KiB in 2 s
        self.assertEqual(7.5, lab.packet_figures(PROBED | {
            'first_disk_blocks': 16, 'disk_blocks': 256})['disk_mib_per_s'])

    def test_a_guest_that_does_not_tell(self):
        figures = scenario.Figures(**lab.packet_figures(PROBED | {
            'first_guest_ns': 0, 'last_guest_ns': 0,
            'first_disk_blocks': 0, 'disk_blocks': 0}))
        self.assertIsNone(figures.rewritten_mib_per_s)
        self.assertIsNone(figures.disk_mib_per_s)

    def test_nova(self):
        figures = scenario.Figures(**nova_rig.figures({
            'probe': PROBED, 'libvirt_job': {
                'downtime': 15, 'time_elapsed': 900,
                'memory_processed': 10**8, 'memory_iteration': 5},
            'total_nova_ms': 2500.0, 'post_gap_ms': 1.0},
            {'downtime_qemu_ms': 8.5, 'total_qemu_ms': 400,
             'steps_ms': {'stopped_ms': 0.5}, 'post_copy': False}))
        self.assertEqual((400, 900, 2500, 15, 8.5, 5), (
            figures.total_ms, figures.total_libvirt_ms, figures.total_nova_ms,
            figures.downtime_libvirt_ms, figures.downtime_qemu_ms,
            figures.iterations))
        self.assertEqual({'stopped_ms': 0.5}, figures.steps_ms)

    def test_directions(self):
        directions = lab.Directions(lab.COMPUTES)
        self.assertEqual(
            [('compute1', 'compute2'), ('compute2', 'compute1'),
             ('compute1', 'compute2')],
            [directions.next() for _ in range(3)])


class TestCpu(base.BaseTestCase):

    def test_the_samples_around_the_migration_count(self):
        recorder = lab.CpuRecorder(None)
        recorder._samples = [
            (float(second), {'compute1': second * 100.0,
                             'compute2': second * 10.0})
            for second in range(10)]
        self.assertEqual(
            {'cpu_source_ms': 40.0, 'cpu_destination_ms': 400.0,
             'cpu_window_ms': 4000.0},
            recorder.used('compute2', 2.5, 5.5))
