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

"""Two given hosts: what libvirt is asked for, and what is refused."""

import pathlib
import sys
from unittest import mock
from xml.etree import ElementTree

import ddt
import fixtures
import libvirt
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import cli
from nova_fastmig.bench import engine
from nova_fastmig.bench import hosts
from nova_fastmig.bench import hosts_file
from nova_fastmig.bench import lab
from nova_fastmig.bench import libvirt_rig
from nova_fastmig.bench import scenario
from tests.unit.bench import test_hosts_file
from tests.unit.cmd import base as cmd_base

PATCHED = '/opt/q/bin/qemu-system-x86_64'
DISTRIBUTION = '/usr/bin/qemu-system-x86_64'
# what a unit test's machine has
GENERATOR = {'program': str(pathlib.Path(sys.executable).resolve()),
             'interface': 'lo'}


class FakeConnection:
    """Of a host with KVM that has these emulators, and 1 GiB available."""

    def __init__(self, name, emulators, hugepages):
        self._name, self._emulators = name, emulators
        self._hugepages = hugepages

    def close(self):
        pass

    def getDomainCapabilities(self, emulator, arch, machine, virt_type):
        emulator = emulator or DISTRIBUTION
        if emulator not in self._emulators:
            raise libvirt.libvirtError(f'Cannot check QEMU binary {emulator}')
        if (arch, machine, virt_type) != ('x86_64', 'pc', 'kvm'):
            raise libvirt.libvirtError('not asked for')
        return (f'<domainCapabilities><path>{emulator}</path>'
                f'</domainCapabilities>')

    def getCapabilities(self):
        return ('<capabilities><host><cpu><arch>x86_64</arch>'
                '<model>Cascadelake-Server</model><vendor>Intel</vendor>'
                '</cpu></host></capabilities>')

    def getInfo(self):
        return ['x86_64', 65536, 32, 2400, 1, 2, 8, 2]

    def getHostname(self):
        return self._name

    def getVersion(self):
        return 10_000_013

    def getLibVersion(self):
        return 11_003_000

    def getCPUStats(self, number):
        if number != libvirt.VIR_NODE_CPU_STATS_ALL_CPUS:
            raise libvirt.libvirtError('not asked for')
        return {'kernel': 2_000_000_000, 'user': 1_500_000_000,
                'idle': 9_000_000_000, 'iowait': 7_000_000_000}

    def getMemoryStats(self, node):
        if node != libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS:
            raise libvirt.libvirtError('not asked for')
        return {'total': 64 << 20, 'free': 256 << 10, 'buffers': 256 << 10,
                'cached': 512 << 10}

    def getFreePages(self, sizes_kib, first_node, nodes):
        if (sizes_kib, first_node, nodes) != ([2048], -1, 1):
            raise libvirt.libvirtError('not asked for')
        if self._hugepages is None:
            raise libvirt.libvirtError('page size 2048 is not available')
        return {-1: {2048: self._hugepages}}


def turn(contender: str, *workloads: str) -> scenario.Turn:
    """The only one of these workloads, which have one guest."""
    only, = catalog.comparison('', [contender], workloads or ['idle'], 1,
                               1).turns()
    return only


class HostsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatch('shutil.which',
                                           return_value='/usr/bin/virsh'))
        self.opened = []
        self.hugepages = {'node1': 128, 'node2': 128}
        self.emulators = {'node1': {DISTRIBUTION, PATCHED},
                          'node2': {DISTRIBUTION, PATCHED}}
        self.useFixture(fixtures.MockPatch('libvirt.open', self.open))
        # nothing here sends events
        self.useFixture(fixtures.MockPatchObject(libvirt_rig, 'listen'))

    def open(self, uri):
        self.opened.append(uri)
        name = uri.partition('@')[2].partition('.')[0]
        if name not in self.emulators:
            raise libvirt.libvirtError('Connection refused')
        return FakeConnection(name, self.emulators[name],
                              self.hugepages[name])

    def hosts(self, **more) -> hosts.Hosts:
        more.setdefault('generator', {})
        more['generator'] = GENERATOR | more['generator']
        path = self.directory / 'hosts.ini'
        path.write_text(test_hosts_file.text(**more))
        return hosts.Hosts(path)


class TestFile(HostsTestCase):

    def test_no_file(self):
        error = self.assertRaises(hosts_file.InvalidHosts, hosts.Hosts,
                                  self.directory / 'gone')
        self.assertIn('gone: ', str(error))

    def test_errors_name_the_file(self):
        error = self.assertRaises(hosts_file.InvalidHosts, self.hosts,
                                  guest={'mac': 'x'})
        self.assertIn("hosts.ini: [guest] mac = 'x': must be", str(error))

    def test_no_such_program(self):
        error = self.assertRaises(
            hosts_file.InvalidHosts, self.hosts,
            generator={'program': str(self.directory / 'hosts.ini')})
        self.assertIn('[generator] program', str(error))
        self.assertIn('lab/probe/build', str(error))

    def test_no_such_interface(self):
        error = self.assertRaises(hosts_file.InvalidHosts, self.hosts,
                                  generator={'interface': 'no-such-one'})
        self.assertIn("interface = 'no-such-one': must be one of this "
                      "machine: ", str(error))
        self.assertIn('lo', str(error))

    def test_no_virsh(self):
        with mock.patch('shutil.which', return_value=None):
            error = self.assertRaises(engine.RigError, self.hosts)
        self.assertIn('libvirt-clients', str(error))


@ddt.ddt
class TestHosts(HostsTestCase):

    def test_command(self):
        given = self.hosts(host2={'peer_uri': 'qemu+tls://node2/system'})
        self.assertEqual(
            ['virsh', '--connect', 'qemu+ssh://root@node1.example.com/system',
             'migrate', '--live', '--p2p', 'bench-libvirt',
             'qemu+tls://node2/system', '--migrateuri', 'tcp://192.0.2.12'],
            libvirt_rig.migrate_command(
                given, catalog.CONTENDERS['virsh'], 'host1', 'host2'))

    def domain(self, contender: str, **guest) -> ElementTree.Element:
        given = self.hosts(guest=guest)
        return ElementTree.fromstring(libvirt_rig.domain_xml(
            given, turn(contender), given.place_disk(
            'bench-libvirt', scenario.DataPlane.KERNEL)))

    def test_domain_on_a_linux_bridge(self):
        xml = self.domain('virsh')
        self.assertEqual('kvm', xml.get('type'))
        self.assertEqual('br-bench', xml.find(
            'devices/interface/source').get('bridge'))
        self.assertIsNone(xml.find('devices/interface/virtualport'))
        self.assertEqual('52:54:00:be:00:01', xml.find(
            'devices/interface/mac').get('address'))
        # the one that libvirt names
        self.assertEqual(DISTRIBUTION, xml.findtext('devices/emulator'))
        self.assertEqual('/srv/shared/forwarder.img', xml.find(
            'devices/disk/source').get('file'))
        # nobody may write to what is not ours
        self.assertIsNotNone(xml.find('devices/disk/readonly'))

    def test_domain_on_open_vswitch(self):
        xml = self.domain('virsh-patched', bridge_type='openvswitch',
                          accelerator='tcg', patched_emulator=PATCHED)
        self.assertEqual('qemu', xml.get('type'))
        self.assertEqual('openvswitch', xml.find(
            'devices/interface/virtualport').get('type'))
        self.assertEqual(PATCHED, xml.findtext('devices/emulator'))

    def test_the_emulator_that_is_given(self):
        self.assertEqual('/opt/other', self.domain(
            'virsh', emulator='/opt/other').findtext('devices/emulator'))
        self.assertEqual([], self.opened)

    def test_no_obstacle(self):
        given = self.hosts(guest={'patched_emulator': PATCHED})
        rig = libvirt_rig.LibvirtRig(given)
        for contender in ('virsh', 'virsh-patched', 'kubevirt'):
            self.assertIsNone(rig.obstacle(turn(contender)))

    def test_no_patched_emulator_is_given(self):
        why = self.hosts().qemu_obstacle(catalog.CONTENDERS['virsh-patched'])
        self.assertIn('hosts.ini has no [guest] patched_emulator', why)

    def test_a_host_without_the_patched_emulator(self):
        self.emulators['node2'].remove(PATCHED)
        given = self.hosts(guest={'patched_emulator': PATCHED})
        self.assertEqual(
            f'host2: Cannot check QEMU binary {PATCHED}',
            given.qemu_obstacle(catalog.CONTENDERS['virsh-patched']))
        self.assertIsNone(given.qemu_obstacle(catalog.CONTENDERS['virsh']))

    def test_a_host_that_cannot_be_reached(self):
        del self.emulators['node2']
        given = self.hosts()
        self.assertIn('node2.example.com/system: Connection refused',
                      given.qemu_obstacle(catalog.CONTENDERS['virsh']))
        for asked in (given.machine, lambda: given.cpu_ms('host2')):
            error = self.assertRaises(engine.RigError, asked)
            self.assertIn('Connection refused', str(error))

    def test_machine(self):
        found = self.hosts(guest={'patched_emulator': PATCHED}).machine()
        self.assertEqual(PATCHED, found['patched_emulator'])
        self.assertNotIn('emulator', found)
        self.assertEqual(
            {'host2': 'node2', 'host2_cpu': 'Intel Cascadelake-Server',
             'host2_cores': 32, 'host2_memory_mib': 65536,
             'host2_qemu': '10.0.13', 'host2_libvirt': '11.3.0'},
            {key: value for key, value in found.items()
             if key.startswith('host2')})
        self.assertEqual('node1', found['host1'])
        self.assertEqual('kvm', found['accel'])

    def test_processor_time(self):
        given = self.hosts()
        self.assertEqual([3500.0] * 3,
                         [given.cpu_ms('host1') for _ in range(3)])
        self.assertEqual(1, len(self.opened))

    def test_the_generator_sends_from_there(self):
        given = self.hosts()
        probe = given.probe(
            given.address, scenario.DataPlane.KERNEL, 20, rewrite_mib_per_s=32)
        line = probe._command
        self.assertEqual(GENERATOR['program'], line[0])
        for words in (['--interface', 'lo'], ['--source', '198.51.100.11'],
                      ['--mac', '52:54:00:be:00:01'], ['--rate', '20'],
                      ['--destination', '198.51.100.10']):
            place = line.index(words[0])
            self.assertEqual(words, line[place:place + 2])

    def rig(self, asked: scenario.Turn):
        return cli._rigs_on_hosts(self.hosts())[
            asked.contender.control, asked.guest.data_plane]

    def obstacle(self, *workloads: str) -> str | None:
        asked = turn('virsh', *workloads)
        return self.rig(asked).obstacle(asked)

    def test_hugepages(self):
        domain = ElementTree.fromstring(libvirt_rig.domain_xml(
            self.hosts(), turn('virsh', 'idle-hugepages'), '/d.img'))
        self.assertIsNotNone(domain.find('memoryBacking/hugepages/page'))
        self.assertIsNone(self.obstacle('idle-hugepages'))

    def test_hugepages_on_one_host_only(self):
        self.hugepages['node2'] = 127
        self.assertEqual(
            'host2: 127 pages of 2048 KiB are free, 128 are needed',
            self.obstacle('idle-hugepages'))
        self.assertIsNone(self.obstacle('idle'))

    def test_a_host_without_hugepages(self):
        self.hugepages['node1'] = None
        self.assertEqual('host1: page size 2048 is not available',
                         self.obstacle('idle-hugepages'))

    def test_memory_of_one_guest_on_each_host(self):
        given = self.hosts()
        self.assertIsNone(given.memory.obstacle(
            scenario.Guest(memory_mib=512)))
        self.assertEqual(
            'host1: 1024 MiB of memory are free or cached files, 1025 MiB '
            'are needed: 513 MiB of the guest, and 512 MiB',
            given.memory.obstacle(scenario.Guest(memory_mib=513)))

    def test_the_disk_is_only_read(self):
        self.assertIn('block-io writes to the disk, which is only read here',
                      self.obstacle('idle', 'block-io'))

    @ddt.data(('nova', 'idle'), ('qemu-patched', 'l2fwd'),
              ('virsh', 'l2fwd-dpdk'))
    @ddt.unpack
    def test_what_only_the_lab_has(self, contender, workload):
        asked = turn(contender, workload)
        rig = self.rig(asked)
        self.assertIn('runs on the lab only', rig.obstacle(asked))
        self.assertRaises(engine.RigError, rig.guest, asked)

    def test_what_the_hosts_have(self):
        self.assertIsNone(self.obstacle('l2fwd'))


class TestClocks(base.BaseTestCase):
    """What is not known where the hosts' clocks differ."""

    JOB = {'downtime': 5015, 'downtime_net': 15, 'time_elapsed': 5900,
           'time_elapsed_net': 900}

    def test_libvirt(self):
        figures = lab.job_figures(self.JOB, one_clock=False)
        self.assertEqual((15, 900), (figures['downtime_libvirt_ms'],
                                     figures['total_libvirt_ms']))
        figures = lab.job_figures(self.JOB)
        self.assertEqual((5015, 5900), (figures['downtime_libvirt_ms'],
                                        figures['total_libvirt_ms']))

    def downtime_ms(self, one_clock, blackout_ns):
        events = libvirt_rig.Events(libvirt_rig.NAME)
        domain = mock.Mock()
        domain.name.return_value = libvirt_rig.NAME
        for side, event, seconds, details in (
                ('source', 'STOP', 100, None),
                ('source', 'MIGRATION', 100, '{"status": "completed", '
                 f'"x-blackout": {blackout_ns}}}'),
                ('destination', 'RESUME', 107, None)):
            events._on_event(None, domain, event, seconds, 500, details, side)
        return events.figures('source', 'destination', one_clock)[
            'downtime_qemu_ms']

    def test_qemu(self):
        self.assertEqual(7000, self.downtime_ms(True, '{}'))
        self.assertIsNone(self.downtime_ms(False, '{}'))
        # it tells both ends in the source's time
        self.assertEqual(4, self.downtime_ms(
            False, '{"stop": 1000000, "resume": 5000000}'))


class TestCommand(cmd_base.CommandTestCase):

    def test_mistakes_are_said(self):
        path = self.state / 'hosts.ini'
        path.write_text(test_hosts_file.text(guest={'bridge_type': 'ovs'}))
        code, _, error = self.run_command('bench', 'run', '--hosts',
                                          str(path))
        self.assertEqual(1, code)
        self.assertIn("[guest] bridge_type = 'ovs': must be linux or "
                      "openvswitch", error)
