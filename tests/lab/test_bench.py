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

"""nova-fastmig bench, on the lab that the other tests use."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import libvirt
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import cli
from nova_fastmig.bench import engine
from nova_fastmig.bench import lab as bench_lab
from nova_fastmig.bench import libvirt_rig
from nova_fastmig.bench import memory
from nova_fastmig.bench import qemu_rig
from nova_fastmig.bench import scenario
from tests.lab import base as lab_base

COMMAND = pathlib.Path(sys.executable).parent / 'nova-fastmig'
QUICK_S = 300


class BenchTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = pathlib.Path(directory.name) / 'bench.json'

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        # these tests are in the controller's network already, and hold the lab
        return subprocess.Popen(
            [COMMAND, 'bench', *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, cli.INSIDE: '1', **environment})

    def bench(self, *arguments: str, **environment: str) -> None:
        process = self.start(*arguments, **environment)
        output = process.communicate()[0]
        self.assertEqual(0, process.returncode, output)

    def migrate(self, contenders: str, workloads: str, *options: str,
                **environment: str) -> scenario.Results:
        """Each of these once."""
        self.bench('run', '--output', str(self.file), '--contenders',
                   contenders, '--workloads', workloads, '--rounds', '1',
                   '--migrations', '1', *options, **environment)
        return engine.load(self.file)

    def check_run(self, run: scenario.Run) -> None:
        """A migration of which everything is known that always is."""
        figures = run.figures
        self.assertEqual((), run.failures)
        self.assertGreater(figures.packets_sent, 1000)
        # the guest was somewhere else afterwards, so it stood still
        self.assertGreater(figures.gap_ms, 1)
        self.assertLess(0, figures.total_ms)
        self.assertGreaterEqual(figures.cpu_window_ms, figures.total_ms)
        self.assertGreater(figures.cpu_source_ms, 0)
        # more than the working set, which has no zero page
        self.assertGreater(figures.bytes_sent, 64 << 20)


class QuickTest(BenchTestCase):

    def test_quick(self):
        began_s = time.monotonic()
        self.bench('run', '--quick', '--output', str(self.file))
        took_s = time.monotonic() - began_s
        results = engine.load(self.file)

        keys = {key for turn in results.comparison.turns()
                for key, _ in turn.migrations}
        missing = {key.scenario.partition('/')[0]
                   for key in keys - results.done}
        # without a patched QEMU, those that need it are named
        self.assertEqual({name.rpartition('/')[0]
                          for name in results.not_run}, missing)
        if bench_lab.Lab().has_patched_qemu:
            self.assertEqual(set(), missing)
        for run in results.runs:
            self.check_run(run)
        by_kind = {kind: [run for run in results.runs
                          if run.key.scenario.partition('/')[2].startswith(
                              kind)] for kind in ('idle', 'l2fwd')}
        for run in by_kind['idle']:
            self.assertLess(run.figures.rewritten_mib_per_s, 8)
        self.assertTrue(any(run.figures.rewritten_mib_per_s > 8
                            for run in by_kind['l2fwd']))

        # what is there is not run again
        written = self.file.read_bytes()
        self.bench('run', '--quick', '--output', str(self.file))
        self.assertEqual(written, self.file.read_bytes())

        report = self.file.with_suffix('.html')
        self.bench('report', str(self.file), str(report))
        text = report.read_text()
        for name in catalog.PRESETS['quick'].contenders:
            self.assertIn(f'>{name}<', text)
        self.assertLess(took_s, QUICK_S)


class InterruptedTest(BenchTestCase):
    """SIGTERM, as a service manager or timeout(1) sends it."""

    def traces(self) -> tuple[list[str], list[str]]:
        """Hugepages and domains, those of other tests too."""
        names = []
        for address in lab_base.COMPUTE_IPS.values():
            with contextlib.closing(libvirt.open(
                    f'qemu+tcp://{address}/system')) as connection:
                names += [domain.name()
                          for domain in connection.listAllDomains()]
        return ([pool.read_text() for pool in
                 memory.HUGEPAGES.glob('*/nr_hugepages')], names)

    def check(self, contender: str, workload: str) -> None:
        before = self.traces()
        command = ('run', '--output', str(self.file), '--contenders',
                   contender, '--workloads', workload, '--rounds', '1',
                   '--migrations', '2')
        process = self.start(*command)
        self.addCleanup(process.kill)
        deadline_s = time.monotonic() + QUICK_S
        while not self.file.exists() and process.poll() is None:
            self.assertLess(time.monotonic(), deadline_s)
            time.sleep(0.1)
        process.terminate()
        output = process.communicate(timeout=QUICK_S)[0]
        self.assertNotEqual(0, process.returncode, output)
        self.assertEqual(before, self.traces())

        first = engine.load(self.file).runs
        self.assertEqual(1, len(first))
        self.check_run(first[0])
        self.bench(*command)
        self.assertEqual(first, engine.load(self.file).runs[:1])
        self.assertEqual(2, len(engine.load(self.file).runs))

    def test_virsh(self):
        self.check('virsh', 'idle')

    @lab_base.long
    def test_hugepages(self):
        self.check('virsh', 'idle-hugepages')

    @lab_base.long
    def test_nova(self):
        self.check('nova', 'idle')


class GuestsTest(BenchTestCase):
    """Guests that --quick does not have."""

    def good_runs(self, contenders: str, workloads: str
                  ) -> tuple[scenario.Run, ...]:
        results = self.migrate(contenders, workloads)
        self.assertEqual([], [run.failures for run in results.runs
                              if run.failures])
        self.assertEqual({}, results.not_run)
        return results.runs

    def test_hugepages_and_disk(self):
        pools = list(memory.HUGEPAGES.glob('*/nr_hugepages'))
        before = [pool.read_text() for pool in pools]
        # a run in which a guest has other pages fails
        on_hugepages, block_io = self.good_runs('virsh',
                                                'idle-hugepages,block-io')
        self.assertEqual(before, [pool.read_text() for pool in pools])
        self.assertGreater(on_hugepages.figures.bytes_sent, 64 << 20)
        self.assertIsNone(on_hugepages.figures.disk_mib_per_s)
        self.assertGreater(block_io.figures.disk_mib_per_s, 1)

    @lab_base.long
    def test_hugepages_of_all(self):
        contenders = 'nova,fastmig,virsh,qemu'
        if bench_lab.Lab().has_patched_qemu:
            contenders += ',fastmig-patched,qemu-patched'
        self.good_runs(contenders, 'l2fwd-hugepages')


HOSTS = """
[host1]
uri = qemu+tcp://10.77.0.11/system
migrate_address = 10.77.0.11
[host2]
uri = qemu+tcp://10.77.0.12/system
migrate_address = 10.77.0.12
[guest]
disk = {disk}
bridge = br-data
bridge_type = openvswitch
mac = 52:54:00:be:00:03
ip = 10.88.0.213
accelerator = {accelerator}
patched_emulator = {patched}
[generator]
program = {probe}
interface = probe0
source = 10.88.0.252
"""


class HostsTest(BenchTestCase):
    """The lab's hosts, given as an operator gives two hosts."""

    DISK = str(bench_lab.SHARED / 'bench-hosts.img')

    def setUp(self):
        super().setUp()
        self.lab = bench_lab.Lab()
        lab_base.on_host('compute1', 'cp', '/opt/lab/forwarder.img',
                         self.DISK)
        self.addCleanup(lab_base.on_host, 'compute1', 'rm', '-f', self.DISK)
        self.hosts = self.file.with_name('hosts.ini')
        self.hosts.write_text(HOSTS.format(
            disk=self.DISK, accelerator=self.lab.accelerator,
            patched=bench_lab.PATCHED,
            probe=lab_base.STATE / 'share/bin/probe'))
        # the controller has a virsh, this machine need not have one
        virsh = self.file.with_name('virsh')
        virsh.write_text(f'#!/bin/sh\nexec "{lab_base.LAB}/in" controller '
                         f'virsh "$@"\n')
        virsh.chmod(0o755)

    def sum_of_disk(self) -> str:
        return lab_base.on_host('compute1', 'sha256sum', self.DISK)

    def migrate_on_hosts(self, contenders: str, workloads: str
                         ) -> scenario.Results:
        return self.migrate(
            contenders, workloads, '--hosts', str(self.hosts),
            PATH=f'{self.hosts.parent}:{os.environ["PATH"]}')

    def test_hugepages_and_no_disk(self):
        # nobody adds them on hosts that are given
        with self.lab.memory.hugepages(catalog.HUGEPAGES):
            results = self.migrate_on_hosts('virsh',
                                            'idle-hugepages,block-io')
        on_hugepages, = results.runs
        self.assertEqual((), on_hugepages.failures)
        self.assertGreater(on_hugepages.figures.bytes_sent, 64 << 20)
        why, = results.not_run.values()
        self.assertIn('block-io writes to the disk, which is only read', why)

    def test_one_migration_of_each(self):
        before = self.sum_of_disk()
        results = self.migrate_on_hosts('virsh,virsh-patched,nova,qemu',
                                        'l2fwd')

        runs = {run.key.scenario.partition('/')[0]: run
                for run in results.runs}
        not_run = {name.rpartition('/')[0]: why
                   for name, why in results.not_run.items()}
        names = {name: catalog.CONTENDERS[name].name
                 for name in ('virsh', 'virsh-patched', 'nova', 'qemu')}
        for name in ('nova', 'qemu'):
            self.assertIn('on the lab only', not_run.pop(names[name]))
        if not self.lab.has_patched_qemu:
            self.assertIn(bench_lab.PATCHED,
                          not_run.pop(names['virsh-patched']))
            del names['virsh-patched']
        self.assertEqual({}, not_run)
        self.assertEqual({names[name] for name in names
                          if name.startswith('virsh')}, set(runs))

        for run in runs.values():
            self.check_run(run)
            self.assertEqual('host1', run.source)
            self.assertLess(0, run.figures.total_libvirt_ms)
            self.assertGreater(run.figures.rewritten_mib_per_s, 8)
        # the two clocks of two hosts do not tell
        self.assertIsNone(runs[names['virsh']].figures.downtime_qemu_ms)
        if 'virsh-patched' in names:
            self.assertGreater(
                runs[names['virsh-patched']].figures.downtime_qemu_ms, 0)
        self.assertEqual(('compute1', 'compute2'),
                         (results.machine['host1'], results.machine['host2']))

        self.assertEqual(before, self.sum_of_disk())
        for address in lab_base.COMPUTE_IPS.values():
            with contextlib.closing(libvirt.open(
                    f'qemu+tcp://{address}/system')) as connection:
                self.assertNotIn(libvirt_rig.NAME, [
                    domain.name() for domain in connection.listAllDomains()])


@lab_base.long
class ContendersTest(BenchTestCase):
    """Those that --quick leaves out: each gets its guest across."""

    def test_one_migration_of_each(self):
        results = self.migrate(
            'nova-auto-converge,virsh-post-copy,virsh-parallel,ovirt,'
            'kubevirt,proxmox,multifd-zstd,xbzrle,auto-converge,rdma',
            'l2fwd')
        self.assertEqual([], [run.failures for run in results.runs
                              if run.failures])
        # a machine without such a device has no way to run it
        rdma = catalog.CONTENDERS['rdma'].name
        self.assertEqual(
            {each.name for each in results.comparison.scenarios
             if each.contender.name != rdma},
            {key.scenario for key in results.done} - {
                each.name for each in results.comparison.scenarios
                if each.contender.name == rdma})
        if not qemu_rig.has_rdma_device():
            why, = results.not_run.values()
            self.assertIn('no RDMA device', why)


@lab_base.long
class DpdkTest(BenchTestCase):
    """testpmd in the guest, vhost-user ports (lab/use-switch --install)."""

    def test_there_and_back(self):
        names = 'fastmig,nova,virsh,qemu'
        self.bench(
            'run', '--output', str(self.file), '--contenders', names,
            '--workloads', 'l2fwd-dpdk', '--rounds', '1', '--migrations', '2')
        results = engine.load(self.file)
        self.assertEqual({}, results.not_run)
        self.assertEqual(2 * len(names.split(',')), len(results.runs))
        for run in results.runs:
            self.assertEqual((), run.failures)
            # most packets went through testpmd and came back once, in order
            self.assertGreater(run.figures.packets_sent,
                               4 * run.figures.packets_lost)
            self.assertEqual(0, run.figures.packets_duplicated)
