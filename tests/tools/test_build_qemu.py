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

"""tools/build-qemu with a source tree that builds in a second."""

import contextlib
import email
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tarfile
import time

import ddt
import fixtures
from oslotest import base

from tests.tools import standin

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = ROOT / 'tools' / 'build-qemu'
SERIES = [path.parent for path in sorted(
    (ROOT / 'devstack' / 'patches').glob('*/series'))]
ADDED = ['x-one', *standin.SWITCHES]


def lines(path: pathlib.Path) -> list[str]:
    return [line for line in path.read_text().splitlines()
            if line and not line.startswith('#')]


def digest(place: pathlib.Path) -> dict[str, str]:
    """Names, modes and contents of all that is in a directory."""
    return {str(path.relative_to(place)): f'{path.lstat().st_mode:o} ' + (
        hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() else '') for path in place.rglob('*')}


class TestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        # Not in the system's own place for temporary files, which a mount
        # may have made noexec.
        self.place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.tree = standin.make_tree(self.place / 'tree')
        self.patches = standin.make_series(self.place / 'patches', ADDED)
        self.cache = self.place / 'var' / 'nova-fastmig' / 'qemu'
        self.prefix = self.place / 'opt' / 'nova-fastmig' / 'qemu'
        self.binary = self.prefix / 'bin' / 'qemu-system-x86_64'
        self.log = self.place / 'log'
        self.log.touch()
        # Nothing is missing, and Meson need not be fetched.
        bindep = self.place / 'bindep.txt'
        bindep.write_text('bash\n')
        meson = self.place / 'python' / 'meson-99.0.dist-info'
        meson.mkdir(parents=True)
        (meson / 'METADATA').write_text(
            'Metadata-Version: 2.1\nName: meson\nVersion: 99.0\n')
        self.environment = {
            'PATH': os.environ['PATH'],
            'PYTHONPATH': str(meson.parent),
            'STANDIN_LOG': str(self.log),
            'STANDIN_HOLD': str(self.place / 'hold'),
            'FASTMIG_QEMU_SOURCE': 'tree',
            'FASTMIG_QEMU_TREE': str(self.tree),
            'FASTMIG_QEMU_PATCHES': str(self.patches),
            'FASTMIG_QEMU_CACHE': str(self.cache),
            'FASTMIG_QEMU_PREFIX': str(self.prefix),
            'FASTMIG_QEMU_JOBS': '2',
            'FASTMIG_QEMU_BINDEP': str(bindep),
        }

    def start(self, *arguments, **environment) -> subprocess.Popen:
        process = subprocess.Popen(
            [COMMAND, *map(str, arguments)], text=True,
            env=self.environment | environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            start_new_session=True)
        self.addCleanup(self._end, process)
        return process

    @staticmethod
    def _end(process):
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

    def run_command(self, *arguments, status=0, **environment):
        """Run to the end; returns what it printed and its messages."""
        process = self.start(*arguments, **environment)
        output, messages = process.communicate(timeout=120)
        self.assertEqual(status, process.returncode, messages)
        return output, messages

    def fails(self, *arguments, **environment) -> str:
        """Run, expect an error, return the last message."""
        _, messages = self.run_command(*arguments, status=1, **environment)
        return messages[messages.index('build-qemu: '):]

    def steps(self) -> list[str]:
        """What configure and ninja did."""
        return self.log.read_text().split()

    @contextlib.contextmanager
    def held(self, step):
        """Hold up a step; yields a function that waits until it is there."""
        hold = pathlib.Path(f'{self.place}/hold-{step}')
        hold.touch()

        def wait():
            end = time.monotonic() + 30
            while step not in self.steps():
                if time.monotonic() > end:
                    self.fail(f'{step} was not reached: {self.steps()}')
                time.sleep(0.02)
        try:
            yield wait
        finally:
            hold.unlink()


class TestInstall(TestCase):

    def test_result(self):
        before = digest(self.tree)
        output, _ = self.run_command('install')

        self.assertNotIn('FAIL', output)
        for name in ADDED:
            self.assertIn(f'ok    capability {name}\n', output)
        self.assertEqual(before, digest(self.tree))
        self.assertEqual(
            {'bin', 'bin/qemu-system-x86_64', 'manifest.json', 'share',
             'share/qemu', 'share/qemu/keymaps', 'share/qemu/keymaps/de'},
            set(digest(self.prefix)))
        self.assertEqual(['builds', 'lock'],
                         sorted(path.name for path in self.cache.iterdir()))

    def test_manifest(self):
        self.run_command('install', '--enable', 'rbd')
        manifest = json.loads(self.run_command('manifest')[0])

        self.assertEqual('10.0.13', manifest['qemu_version'])
        self.assertRegex(manifest['package_version'],
                         r'^nova-fastmig 10\.0-[0-9a-f]{8}$')
        self.assertEqual('2023-11-14T22:13:20+00:00', manifest['date'])
        self.assertEqual('tree', manifest['source']['kind'])
        self.assertEqual(
            [{'name': f'000{number}-{name}.patch',
              'subject': f'migration: the {name}',
              'sha256': hashlib.sha256((
                  self.patches / f'000{number}-{name}.patch'
              ).read_bytes()).hexdigest()}
             for number, name in ((1, 'first'), (2, 'second'))],
            manifest['patches'])
        self.assertEqual(ADDED, manifest['capabilities'])
        self.assertEqual([standin.CAPABILITIES[0]], manifest['parameters'])
        self.assertIn('--target-list=x86_64-softmmu', manifest['configure'])
        self.assertIn('--enable-rbd', manifest['configure'])
        # From the series' own options.
        self.assertIn('--enable-avx2', manifest['configure'])
        self.assertIn(f'--prefix={self.prefix}', manifest['configure'])
        self.assertEqual(subprocess.check_output(
            ['cc', '--version'], text=True).splitlines()[0],
            manifest['compiler'])
        self.assertEqual(
            hashlib.sha256(self.binary.read_bytes()).hexdigest(),
            manifest['files']['bin/qemu-system-x86_64'])

    def test_the_date_can_be_given(self):
        self.run_command('install', SOURCE_DATE_EPOCH='86400')
        manifest = json.loads(self.run_command('manifest')[0])
        self.assertEqual('1970-01-02T00:00:00+00:00', manifest['date'])

    def test_same_inputs_same_archive(self):
        first = pathlib.Path(self.run_command('build')[0].strip())
        shutil.copytree(self.tree, self.place / 'elsewhere' / 'copy')
        second = pathlib.Path(self.run_command(
            'build', '--tree', self.place / 'elsewhere' / 'copy',
            '--cache', self.place / 'other-cache')[0].strip())

        self.assertNotEqual(first, second)
        self.assertEqual(first.read_bytes(), second.read_bytes())

    def test_archive_has_the_prefix(self):
        archive = self.run_command('build')[0].strip()

        self.assertFalse(self.prefix.exists())
        with tarfile.open(archive) as tar:
            self.assertIn(str(self.binary)[1:], tar.getnames())

    def test_destdir(self):
        root = self.place / 'root'
        self.run_command('install', '--destdir', root)

        self.assertFalse(self.prefix.exists())
        self.assertTrue((root / str(self.binary)[1:]).exists())
        self.run_command('check', '--destdir', root)
        self.run_command('remove', '--destdir', root)
        self.assertEqual([], list((root / str(self.place)[1:]).glob('opt/*')))

    def test_tree_with_the_patches_in_it(self):
        with (self.tree / 'qapi' / 'migration.json').open('a') as file:
            # The tree must have what the project's own series adds
            for name in ('capabilities', 'parameters'):
                file.writelines(line + '\n' for line in lines(
                    ROOT / 'devstack' / 'patches' / '10.0' / name))
        self.run_command('install', '--no-patches')
        manifest = json.loads(self.run_command('manifest')[0])
        self.assertEqual([], manifest['patches'])
        self.assertEqual('nova-fastmig 10.0-tree', manifest['package_version'])

    def test_what_builds_leave_in_a_tree_does_not_matter(self):
        self.run_command('build')
        (self.tree / '.git').mkdir()
        (self.tree / '.git' / 'index').write_text('changes often')
        (self.tree / 'build').mkdir()
        (self.tree / 'build' / 'build.ninja').touch()
        _, messages = self.run_command('build')
        self.assertIn('is in the cache', messages)

    def test_a_compiler_error_is_shown(self):
        (self.tree / 'link.py').write_text(
            'import sys; sys.exit("error: no such thing")')
        _, messages = self.run_command('install', status=1)
        self.assertIn('error: no such thing', messages)
        self.assertRegex(messages, r'ninja failed \(1\); the whole log: /')
        self.assertFalse(self.prefix.exists())


class TestCache(TestCase):

    def test_hit(self):
        self.run_command('install')
        before = self.log.read_text(), self.binary.stat().st_ino
        started = time.monotonic()
        _, messages = self.run_command('install')

        self.assertIn('is in the cache', messages)
        self.assertLess(time.monotonic() - started, 10)
        # Neither built nor replaced.
        self.assertEqual(
            before, (self.log.read_text(), self.binary.stat().st_ino))

    def test_installs_again_from_the_cache(self):
        self.run_command('install')
        installed = digest(self.prefix)
        self.run_command('remove')
        self.run_command('install')

        self.assertEqual(1, self.steps().count('link'))
        self.assertEqual(installed, digest(self.prefix))

    def test_repairs_what_was_damaged(self):
        self.run_command('install')
        installed = digest(self.prefix)
        (self.prefix / 'share/qemu/keymaps/de').write_text('changed')
        self.run_command('install')
        self.assertEqual(installed, digest(self.prefix))

    def test_does_not_use_a_damaged_build(self):
        archive = pathlib.Path(self.run_command('build')[0].strip())
        good = archive.read_bytes()
        archive.write_bytes(good[:5000])
        self.run_command('build')
        self.assertEqual(good, archive.read_bytes())

    def test_each_input_counts(self):
        seen = {self.run_command('build')[0]}

        def changed(*arguments, **environment):
            seen.add(self.run_command('build', *arguments, **environment)[0])
            return len(seen)

        self.assertEqual(2, changed('--enable', 'rbd'))
        self.assertEqual(3, changed('--prefix', self.place / 'other'))
        self.assertEqual(4, changed(SOURCE_DATE_EPOCH='1'))
        with (self.tree / 'emulator.py').open('a') as file:
            file.write('# a change\n')
        self.assertEqual(5, changed())
        text = (self.patches / '0001-first.patch').read_text()
        (self.patches / '0001-first.patch').write_text(
            text.replace('Why.', 'Because.'))
        self.assertEqual(6, changed())
        # These are no inputs.
        self.assertEqual(6, changed('--jobs', 1))
        self.assertEqual(6, changed(CFLAGS='-O0', LANG='de_DE.UTF-8'))


class TestPatches(TestCase):

    def test_one_that_does_not_apply(self):
        names = standin.CAPABILITIES
        changed = ['x-a', *names[:12], 'x-b', *names[12:]]
        (self.patches / '0002-second.patch').write_text(
            standin.make_patch('migration: the second', names, changed))
        # Its second hunk finds other lines there.
        text = (self.tree / 'qapi' / 'migration.json').read_text()
        (self.tree / 'qapi' / 'migration.json').write_text(
            text.replace('stock-13', 'moved-13'))
        (self.patches / '0001-first.patch').unlink()
        (self.patches / 'series').write_text('0002-second.patch\n')

        self.assertRegex(
            self.fails('install'),
            r'patches/0002-second\.patch does not apply to QEMU 10\.0\.13 '
            r'\(tree\): hunk #2 of qapi/migration\.json \(line 11\)\n$')
        self.assertFalse(self.prefix.exists())
        self.assertEqual([], self.steps())

    def test_one_that_is_in_already(self):
        (self.patches / 'series').write_text(
            '0001-first.patch\n0001-first.patch\n')
        _, messages = self.run_command('install', status=1)
        self.assertIn('previously applied', messages)
        self.assertIn('patches/0001-first.patch does not apply', messages)

    def test_goes_on_when_it_was_corrected(self):
        good = (self.patches / '0002-second.patch').read_text()
        (self.patches / '0002-second.patch').write_text(
            good.replace(' stock-29', ' stock-99'))
        self.assertIn('0002-second.patch', self.fails('install'))
        (self.patches / '0002-second.patch').write_text(good)
        self.run_command('install')

    def test_missing_files(self):
        with (self.patches / 'series').open('a') as file:
            file.write('0003-third.patch\n')
        self.assertIn('lists 0003-third.patch, which is not there',
                      self.fails('install'))
        (self.patches / 'series').write_text('# none yet\n')
        self.assertIn('series lists no patch', self.fails('install'))

    def test_another_version(self):
        (self.tree / 'VERSION').write_text('10.2.0\n')
        self.assertIn('this is QEMU 10.2.0, and the patches are for 10.0',
                      self.fails('install'))


class TestInterruption(TestCase):

    def test_killed_while_compiling(self):
        undisturbed = self.run_command(
            'build', '--cache', self.place / 'other-cache')[0].strip()
        self.log.write_text('')
        with self.held('two') as wait:
            process = self.start('install')
            wait()
            process.kill()
            process.wait()
            # The compiler lives on, as it cannot be told to end.
            again = self.start('install')
            self.assertEqual(
                'Waiting for what an interrupted build left running\n',
                again.stderr.readline())
        _, messages = again.communicate(timeout=60)

        self.assertEqual(0, again.returncode, messages)
        # What was complete is not done again.
        self.assertEqual(['configure', 'one', 'two', 'two', 'link'],
                         self.steps())
        self.assertEqual(
            pathlib.Path(undisturbed).read_bytes(),
            next(self.cache.glob('builds/*/qemu.tar')).read_bytes())

    def test_killed_at_any_time(self):
        process = self.start('install')
        started = time.monotonic()
        process.communicate(timeout=60)
        needed = time.monotonic() - started
        expected = digest(self.prefix)
        self.run_command('remove', '--purge')

        completed = 0
        for number in range(12):
            process = self.start('install')
            try:
                process.communicate(timeout=needed * number / 12)
                completed += 1
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            if number % 4 == 3:
                shutil.rmtree(self.cache, ignore_errors=True)
        self.assertLess(completed, 12)
        self.run_command('install')
        self.assertEqual(expected, digest(self.prefix))
        self.assertEqual(['qemu'], os.listdir(self.prefix.parent))

    def test_interrupted_from_the_keyboard(self):
        with self.held('one') as wait:
            process = self.start('install')
            wait()
            # To everything in the foreground, as the terminal does it.
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=30)
            self.assertNotEqual(0, process.returncode)
        self.run_command('install')

    def test_two_at_once(self):
        with self.held('one') as wait:
            first = self.start('install')
            wait()
            self.assertEqual(
                f'build-qemu: process {first.pid} is at work in {self.cache} '
                'already\n', self.fails('install'))
        first.communicate(timeout=60)
        self.assertEqual(0, first.returncode)
        self.assertEqual(1, self.steps().count('configure'))


class TestRemove(TestCase):

    def test_leaves_no_trace(self):
        before = digest(self.place)
        self.run_command('install')
        self.run_command('remove', '--purge')
        for name in ('opt', 'var'):
            self.assertEqual([], os.listdir(self.place / name))
            (self.place / name).rmdir()
        self.log.write_text('')
        self.assertEqual(before, digest(self.place))

    def test_keeps_the_cache(self):
        self.run_command('install')
        self.run_command('remove')
        self.assertFalse(self.prefix.exists())
        self.assertEqual(1, len(list(self.cache.glob('builds/*/qemu.tar'))))

    def test_twice(self):
        self.run_command('remove', '--purge')
        self.run_command('install')
        self.run_command('remove', '--purge')
        self.run_command('remove', '--purge')

    def test_not_what_it_did_not_make(self):
        self.prefix.mkdir(parents=True)
        (self.prefix / 'mine').write_text('precious')
        for command in ('remove', 'install'):
            self.assertIn(f'{self.prefix} was not made by this command',
                          self.fails(command))
        self.assertEqual(['mine'], os.listdir(self.prefix))

    def test_not_while_it_is_used(self):
        self.run_command('install')
        # A script's program is its interpreter; this one is a binary.
        guest = self.prefix / 'bin' / 'guest'
        shutil.copy(shutil.which('sleep'), guest)
        process = subprocess.Popen([guest, '60'])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        self.assertIn(f'in use by process {process.pid}', self.fails('remove'))
        self.assertTrue(self.binary.exists())
        self.run_command('remove', '--force')
        self.assertFalse(self.prefix.exists())
        self.assertIsNone(process.poll())


class TestCheck(TestCase):

    def problems(self) -> list[str]:
        output, messages = self.run_command('check', status=1)
        self.assertIn('checks failed', messages)
        return re.findall('^FAIL  (.*)$', output, re.MULTILINE)

    def change_binary(self, old, new):
        """Change the program, and the manifest with it."""
        text = self.binary.read_text()
        self.assertIn(old, text)
        self.binary.write_text(text.replace(old, new))
        path = self.prefix / 'manifest.json'
        manifest = json.loads(path.read_text())
        manifest['files']['bin/qemu-system-x86_64'] = hashlib.sha256(
            self.binary.read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest))

    def test_nothing_installed(self):
        self.assertEqual(
            f'build-qemu: nothing is installed in {self.prefix}\n',
            self.fails('check'))

    def test_damaged(self):
        self.run_command('install')
        with self.binary.open('a') as file:
            file.write('# changed\n')
        (self.prefix / 'share/qemu/keymaps/de').unlink()
        self.assertEqual(
            ['2 files as they were built: bin/qemu-system-x86_64 (changed), '
             'share/qemu/keymaps/de (No such file or directory)'],
            self.problems())

    def test_capability_missing(self):
        with (self.patches / 'capabilities').open('a') as file:
            file.write('x-forgotten\n')
        self.run_command('install', status=1)
        self.assertEqual(['capability x-forgotten: missing'], self.problems())

    def test_parameter_missing(self):
        with (self.patches / 'parameters').open('a') as file:
            file.write('x-forgotten-ms\n')
        self.run_command('install', status=1)
        self.assertEqual(['parameter x-forgotten-ms: missing'],
                         self.problems())

    def test_installed_before_there_were_parameters(self):
        self.run_command('install')
        path = self.prefix / 'manifest.json'
        manifest = json.loads(path.read_text())
        del manifest['parameters']
        path.write_text(json.dumps(manifest))
        self.run_command('check')

    def test_no_list_of_parameters(self):
        (self.patches / 'parameters').unlink()
        self.assertIn('parameters is missing', self.fails('install'))

    def test_capability_on_by_default(self):
        shutil.rmtree(self.patches)
        standin.make_series(self.patches, ['x-one!', *standin.SWITCHES])
        self.run_command('install', status=1)
        self.assertEqual(['capability x-one: on by default'], self.problems())

    def test_optimization_that_cannot_be_shown(self):
        shutil.rmtree(self.patches)
        standin.make_series(self.patches, ['x-one', *standin.SWITCHES[1:]])
        self.run_command('install', status=1)
        self.assertEqual(
            ['deferred cleanup, which x-measure-eager-cleanup switches off: '
             'x-measure-eager-cleanup is missing'], self.problems())

    def test_built_without_avx2(self):
        text = (self.tree / 'configure').read_text()
        (self.tree / 'configure').write_text(
            text.replace('define CONFIG_AVX2_OPT', 'undef CONFIG_AVX2_OPT'))
        self.run_command('install', status=1)
        self.assertEqual(
            ['built with AVX2 zero page check: CONFIG_AVX2_OPT is off'],
            self.problems())

    def test_what_libvirt_and_nova_need(self):
        self.run_command('install')
        for old, new, problem in (
                ("'kvm-accel', ", '', 'kvm-accel'),
                ("'vfio-pci', ", '', 'vfio-pci'),
                ("'io_uring'", "'none'", 'io_uring'),
                ("'zstd'", "'none'", 'zstd'),
                ("'query-vnc'", "'x'", 'VNC'),
                ("'sandbox'", "'x'", 'seccomp'),
                ('Invalid host-nodes value', 'not supported', 'NUMA')):
            good = self.binary.read_text()
            self.change_binary(old, new)
            problems = self.problems()
            self.assertEqual(1, len(problems), problems)
            self.assertIn(problem, problems[0])
            self.change_binary(self.binary.read_text(), good)

    def test_a_program_that_does_not_start(self):
        self.run_command('install')
        self.change_binary('import json, sys',
                           'import sys; sys.exit("no libfoo.so.1")')
        problems = self.problems()
        self.assertEqual(3, len(problems))
        self.assertIn('no libfoo.so.1', problems[0])


@ddt.ddt
class TestSettings(TestCase):

    @ddt.data(
        (['--jobs', '0'], "FASTMIG_QEMU_JOBS='0': not a number of jobs"),
        (['--jobs', 'many'], "FASTMIG_QEMU_JOBS='many'"),
        (['--prefix', '/'], "FASTMIG_QEMU_PREFIX='/': not an absolute"),
        (['--prefix', 'qemu'], "FASTMIG_QEMU_PREFIX='qemu'"),
        (['--cache', '/a b'], "FASTMIG_QEMU_CACHE='/a b'"),
        (['--destdir', 'root'], "FASTMIG_QEMU_DESTDIR='root'"),
        (['--series', '7.2'], "no patches for QEMU '7.2'; there are for: 10."),
        (['--source', 'git'], "FASTMIG_QEMU_SOURCE='git': not a source; one "
                              "of deb, tarball, tree"),
        (['--tree', '/nowhere'], '/nowhere: not a QEMU source tree'),
        (['--source', 'deb', '--no-patches'],
         '--no-patches is for --source tree, not deb'),
        (['--enable', '../x'], "'../x' is not a feature"),
        (['--source', 'tarball', '--source-version', '10.0.99'],
         'no SHA-256 is known for https://download.qemu.org/qemu-10.0.99'),
    )
    @ddt.unpack
    def test_wrong_values(self, arguments, expected):
        self.assertIn(expected, self.fails('install', *arguments))
        self.assertFalse(self.cache.exists())

    @ddt.data(([], 'Usage:'), (['frobnicate'], "command 'frobnicate'"),
              (['install', '--fast'], 'unknown option --fast'),
              (['install', '--jobs'], '--jobs needs a value'),
              (['install', 'check'], "one command only, not 'check' too"))
    @ddt.unpack
    def test_wrong_usage(self, arguments, expected):
        _, messages = self.run_command(*arguments, status=2)
        self.assertIn(expected, messages)

    def test_help_names_every_option(self):
        output, _ = self.run_command('--help')
        options = set(re.findall(r'--[a-z-]+(?= *[|)\\\n])',
                                 COMMAND.read_text().split('USAGE', 2)[2]))
        self.assertIn('--tarball', options)
        for option in options:
            self.assertIn(f'  {option}', output.replace('with ', '  '))

    def test_cache_that_cannot_be_written(self):
        (self.place / 'file').touch()
        self.assertIn('cannot write to the cache', self.fails(
            'install', '--cache', self.place / 'file' / 'cache'))

    def test_functions_without_the_command(self):
        """As DevStack calls them."""
        script = f"""
            set -o errexit
            FASTMIG_QEMU_PREFIX={self.place}/other
            source {ROOT}/devstack/lib/qemu
            qemu_install
            qemu_check
            qemu_manifest >{self.place}/manifest
            if qemu_remove --no-such-option; then exit 7; fi
            qemu_remove --purge
            [[ $- != *u* ]]
        """
        subprocess.run(['bash', '-c', script], check=True,
                       capture_output=True, env=self.environment)
        self.assertEqual(
            f'{self.place}/other',
            json.loads((self.place / 'manifest').read_text())['prefix'])
        self.assertFalse((self.place / 'other').exists())
        self.assertFalse(self.cache.exists())


class TestPackages(TestCase):

    def test_missing(self):
        bindep = pathlib.Path(self.environment['FASTMIG_QEMU_BINDEP'])
        bindep.write_text(
            'bash  # is there\n'
            'no-such-library-dev\n'
            'no-such-tool [source-tarball]\n'
            'not-for-us [platform:no-such-distribution]\n')
        message = self.fails('install')
        self.assertIn('missing packages: no-such-library-dev\n', message)
        self.assertRegex(
            message, r'(apt-get|dnf) install .*no-such-library-dev\n')
        self.assertIn('--install-deps', message)
        self.assertEqual([], self.steps())
        self.assertEqual(
            'no-such-library-dev\n', self.run_command('deps')[0])
        self.assertEqual(
            'no-such-library-dev\nno-such-tool\n',
            self.run_command('deps', '--source', 'tarball')[0])

    def test_a_line_that_is_not_understood(self):
        bindep = pathlib.Path(self.environment['FASTMIG_QEMU_BINDEP'])
        bindep.write_text('bash\ngcc >= 12\n')
        _, messages = self.run_command('install', status=1)
        self.assertIn("bindep.txt:2: 'gcc >= 12' is not", messages)


class SignedTestCase(TestCase):

    def setUp(self):
        super().setUp()
        self.home = self.place / 'gnupg'
        self.home.mkdir(mode=0o700)
        self.good = self.make_key('good@example.org')
        self.other = self.make_key('other@example.org')

    def gpg(self, *arguments) -> bytes:
        return subprocess.run(
            ['gpg', '--homedir', self.home, '--batch', '--quiet',
             '--pinentry-mode', 'loopback', '--passphrase', '', *arguments],
            check=True, capture_output=True).stdout

    def make_key(self, name) -> str:
        self.gpg('--quick-generate-key', name, 'ed25519', 'sign')
        self.addCleanup(subprocess.run, [
            'gpgconf', '--homedir', self.home, '--kill', 'all'], check=False)
        listed = self.gpg('--with-colons', '--list-keys', name).decode()
        return re.search('^fpr:+([0-9A-F]{40}):', listed, re.MULTILINE)[1]


class TestTarball(SignedTestCase):

    def setUp(self):
        super().setUp()
        self.tarball = self.place / 'qemu-10.0.13.tar.xz'
        with tarfile.open(self.tarball, 'w:xz') as tar:
            tar.add(self.tree, 'qemu-10.0.13')
        self.sign(self.good)
        self.sha256 = hashlib.sha256(self.tarball.read_bytes()).hexdigest()
        self.keys = self.place / 'keys.asc'
        self.keys.write_bytes(self.gpg('--armor', '--export'))
        self.environment |= {
            'FASTMIG_QEMU_SOURCE': 'tarball',
            'FASTMIG_QEMU_KEYS': str(self.keys),
            'FASTMIG_QEMU_FINGERPRINTS': self.good,
            'FASTMIG_QEMU_TARBALL': str(self.tarball),
            'FASTMIG_QEMU_SHA256': self.sha256,
        }

    def sign(self, key):
        signature = f'{self.tarball}.sig'
        self.gpg('--yes', '--local-user', key, '--output', signature,
                 '--detach-sign', self.tarball)

    def test_good(self):
        self.run_command('install')
        manifest = json.loads(self.run_command('manifest')[0])
        self.assertEqual(
            {'kind': 'tarball', 'version': '10.0.13',
             'sha256': {'qemu-10.0.13.tar.xz': self.sha256}},
            manifest['source'])

    def test_as_a_url(self):
        self.run_command('build', '--tarball', f'file://{self.tarball}')

    def test_wrong_checksum(self):
        message = self.fails('install', '--sha256', '0' * 64)
        self.assertIn(f'has the SHA-256 {self.sha256}, not ' + '0' * 64,
                      message)
        self.assertEqual([], self.steps())

    def test_signed_by_somebody_else(self):
        """Whose key is known, but is not that of the releases."""
        self.sign(self.other)
        self.assertIn('qemu-10.0.13.tar.xz.sig is not a valid signature',
                      self.fails('install'))

    def test_signature_of_something_else(self):
        shutil.copy(self.tarball, self.place / 'aside')
        with self.tarball.open('ab') as file:
            file.write(b'more')
        changed = hashlib.sha256(self.tarball.read_bytes()).hexdigest()
        self.assertIn('is not a valid signature',
                      self.fails('install', '--sha256', changed))

    def test_no_signature(self):
        os.unlink(f'{self.tarball}.sig')
        self.assertIn('cannot download', self.fails('install'))

    def test_download_that_changed_in_the_cache(self):
        (self.tree / 'link.py').write_text('raise SystemExit(1)')
        with tarfile.open(self.tarball, 'w:xz') as tar:
            tar.add(self.tree, 'qemu-10.0.13')
        self.sign(self.good)
        changed = hashlib.sha256(self.tarball.read_bytes()).hexdigest()
        self.fails('install', '--sha256', changed)
        kept = next(self.cache.glob('downloads/*/qemu.tar'))
        kept.write_bytes(kept.read_bytes()[:-1])
        shutil.rmtree(self.cache / 'work')
        self.assertIn(f'{kept} has changed',
                      self.fails('install', '--sha256', changed))

    def test_the_release_key_is_the_pinned_one(self):
        shown = self.gpg('--with-colons', '--show-keys',
                         ROOT / 'devstack/patches/qemu-release-key.asc')
        pinned = subprocess.check_output(
            ['bash', '-c', f'source {ROOT}/devstack/lib/qemu; '
             'echo "$FASTMIG_QEMU_FINGERPRINTS"'], text=True).strip()
        self.assertIn(f'fpr:::::::::{pinned}:'.encode(), shown)


class TestDeb(SignedTestCase):
    """A little Debian archive with one source package."""

    VERSION = '1:10.0.13+ds-0+test1'

    def setUp(self):
        super().setUp()
        self.archive = self.place / 'debian'
        self.make_package()
        self.make_index()
        for name, key in (('good', self.good), ('other', self.other)):
            (self.place / f'{name}.gpg').write_bytes(
                self.gpg('--export', key))
        self.environment |= {
            'FASTMIG_QEMU_SOURCE': 'deb',
            'FASTMIG_QEMU_VERSION': self.VERSION,
            'FASTMIG_QEMU_DEBIAN_MIRROR': f'file://{self.archive}',
            'FASTMIG_QEMU_DEBIAN_KEYRING': str(self.place / 'good.gpg'),
        }

    def make_package(self):
        """The package's own patch makes a comment in the emulator."""
        pool = self.archive / 'pool'
        pool.mkdir(parents=True)
        with tarfile.open(pool / 'qemu_10.0.13+ds.orig.tar.xz', 'w:xz') as tar:
            tar.add(self.tree, 'qemu-10.0.13')
        source = pool / 'source'
        shutil.copytree(self.tree, source)
        patches = source / 'debian' / 'patches'
        patches.mkdir(parents=True)
        (source / 'debian' / 'source').mkdir()
        (source / 'debian' / 'source' / 'format').write_text('3.0 (quilt)\n')
        (source / 'debian' / 'changelog').write_text(
            f'qemu ({self.VERSION}) trixie; urgency=medium\n\n  * Test.\n\n'
            ' -- Nobody <nobody@example.org>  '
            'Mon, 01 Jan 2024 00:00:00 +0000\n')
        (source / 'debian' / 'control').write_text(
            'Source: qemu\nMaintainer: Nobody <nobody@example.org>\n\n'
            'Package: qemu\nArchitecture: any\nDescription: test\n')
        (patches / 'series').write_text('debian.patch\n')
        (patches / 'debian.patch').write_text(
            '--- a/pc-bios/keymaps/de\n+++ b/pc-bios/keymaps/de\n'
            '@@ -1 +1,2 @@\n map 0x407\n+# Debian\n')
        subprocess.run(['dpkg-source', '--build', 'source'], cwd=pool,
                       check=True, capture_output=True)
        shutil.rmtree(source)

    def make_index(self):
        stanza = [
            'Package: qemu', 'Binary: qemu', f'Version: {self.VERSION}',
            'Maintainer: Nobody <nobody@example.org>', 'Architecture: any',
            'Format: 3.0 (quilt)', 'Directory: pool', 'Checksums-Sha256:']
        for path in sorted((self.archive / 'pool').iterdir()):
            content = path.read_bytes()
            stanza.append(f' {hashlib.sha256(content).hexdigest()} '
                          f'{len(content)} {path.name}')
        index = '\n'.join(stanza).encode() + b'\n'
        for suite in ('trixie', 'trixie-updates'):
            place = self.archive / 'dists' / suite
            (place / 'main' / 'source').mkdir(parents=True)
            (place / 'main' / 'source' / 'Sources').write_bytes(index)
            (place / 'Release').write_text(
                f'Suite: {suite}\nCodename: {suite}\nComponents: main\n'
                'Architectures: amd64\n'
                'Date: Mon, 01 Jan 2024 00:00:00 UTC\n'
                # as a mirror has them that is kept at a date
                'Valid-Until: Mon, 08 Jan 2024 00:00:00 UTC\nSHA256:\n '
                f'{hashlib.sha256(index).hexdigest()} {len(index)} '
                'main/source/Sources\n')
            self.gpg('--local-user', self.good, '--output',
                     place / 'InRelease', '--clearsign', place / 'Release')

    def test_good(self):
        apt = [pathlib.Path('/etc/apt'), pathlib.Path('/var/lib/apt')]
        before = [digest(place) for place in apt]
        self.run_command('install')

        self.assertEqual(before, [digest(place) for place in apt])
        manifest = json.loads(self.run_command('manifest')[0])
        self.assertEqual('deb', manifest['source']['kind'])
        self.assertEqual(self.VERSION, manifest['source']['version'])
        orig = 'qemu_10.0.13+ds.orig.tar.xz'
        self.assertEqual(
            hashlib.sha256((
                self.archive / 'pool' / orig).read_bytes()).hexdigest(),
            manifest['source']['sha256'][orig])
        # Debian's patches are applied, too.
        self.assertIn('# Debian', (
            self.prefix / 'share/qemu/keymaps/de').read_text())

    def test_needs_no_network_when_built(self):
        self.run_command('install')
        shutil.rmtree(self.archive)
        self.run_command('remove')
        self.run_command('install')

    def test_signed_by_somebody_else(self):
        _, messages = self.run_command(
            'install', status=1,
            FASTMIG_QEMU_DEBIAN_KEYRING=str(self.place / 'other.gpg'))
        self.assertIn('NO_PUBKEY', messages)
        self.assertEqual([], self.steps())

    def test_changed_by_somebody_else(self):
        orig = self.archive / 'pool' / 'qemu_10.0.13+ds.orig.tar.xz'
        content = bytearray(orig.read_bytes())
        content[-20] ^= 1
        orig.write_bytes(content)
        _, messages = self.run_command('install', status=1)
        self.assertIn('Hash Sum mismatch', messages)
        self.assertEqual([], self.steps())

    def test_version_that_is_not_there(self):
        self.assertIn(
            'have no QEMU source 1:10.0.99-1; they have: ' + self.VERSION,
            self.fails('install', '--source-version', '1:10.0.99-1'))

    def test_no_keyring(self):
        self.assertIn(
            'install the package debian-archive-keyring',
            self.fails('install', FASTMIG_QEMU_DEBIAN_KEYRING='/nowhere'))


class TestSeries(base.BaseTestCase):
    """The patches themselves."""

    def test_series_lists_what_is_there(self):
        self.assertGreater(len(SERIES), 0)
        for series in SERIES:
            self.assertEqual(
                sorted(path.name for path in series.glob('*.patch')),
                lines(series / 'series'), series)

    def test_the_author_has_signed_off(self):
        for series in SERIES:
            for path in series.glob('*.patch'):
                patch = email.message_from_string(path.read_text())
                signed = re.findall(r'^Signed-off-by: (.*)$',
                                    patch.get_payload(), re.MULTILINE)
                self.assertIn(patch['From'], signed, path)

    def test_the_lists_say_what_the_patches_add(self):
        added = re.compile(r"^\+.*'name': '(x-[a-z0-9-]+)'", re.MULTILINE)
        for series in SERIES:
            names = set()
            for patch in series.glob('*.patch'):
                for part in patch.read_text().split('\ndiff --git '):
                    if part.startswith('a/qapi/migration.json '):
                        names.update(added.findall(part))
            self.assertEqual(
                sorted(names),
                sorted(lines(series / 'capabilities') +
                       lines(series / 'parameters')),
                series)
