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

"""Fresh environments in which nova-compute loads the driver.

Nova and this package are installed from PyPI's sdist or wheel and from this
checkout, each as a wheel or editable; an older Nova as a wheel only.
LOADING_NOVA_VERSIONS names the versions, with blanks between them; without it
the Nova is the one that the tests run with.
"""

import atexit
import functools
import importlib.metadata
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

import ddt
import fixtures
from oslotest import base

ROOT = pathlib.Path(__file__).parents[2]
CONSTRAINTS = ROOT / 'tests' / 'constraints.txt'
TEMPORARY = tempfile.gettempdir()


# Nova's version, how it is installed, and how this package is, one way after
# the other. That is about packaging, which does not change with Nova.
def combinations(version: str) -> list[tuple[str, str, list[str]]]:
    if version.startswith('34.'):
        return [(version, 'wheel', ['wheel', 'editable']),
                (version, 'editable', ['wheel', 'editable'])]
    return [(version, 'wheel', ['wheel'])]


NOVA_VERSIONS = (os.environ.get('LOADING_NOVA_VERSIONS', '').split() or
                 [importlib.metadata.version('nova')])

NOVA_CONF = """
[DEFAULT]
compute_driver = fastmig.FastMigDriver
transport_url = fake:/
state_path = {directory}
debug = true
[oslo_concurrency]
lock_path = {directory}
"""
CONTROLLER = """
[database]
connection = sqlite:///{directory}/nova.sqlite
[api_database]
connection = sqlite:///{directory}/api.sqlite
[placement]
auth_type = none
endpoint = http://127.0.0.1:1/
"""


def run(*command, **kwargs) -> str:
    """Run a command; an error shows its output."""
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **kwargs)
    if done.returncode:
        raise AssertionError(
            f'{command} ended with {done.returncode}:\n{done.stdout}')
    return done.stdout


@functools.cache
def workshop() -> pathlib.Path:
    """A directory for what several tests use."""
    # Not where a test's own temporary files are: those go with the test.
    directory = tempfile.mkdtemp(dir=TEMPORARY)
    atexit.register(shutil.rmtree, directory)
    return pathlib.Path(directory)


@functools.cache
def sources() -> pathlib.Path:
    """This checkout without what is ignored, so that builds leave nothing."""
    copy = workshop() / 'nova-fastmig'
    names = run('git', '-c', f'safe.directory={ROOT}', 'ls-files', '--cached',
                '--others', '--exclude-standard', cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@functools.cache
def fastmig_wheel() -> pathlib.Path:
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
        '--wheel-dir', workshop(), sources(),
        env={**os.environ, 'PBR_VERSION': '0.0.1'})
    wheel, = workshop().glob('nova_fastmig-*.whl')
    return wheel


@functools.cache
def nova_sources(version: str) -> pathlib.Path:
    run(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
        '--no-binary', 'nova', '--dest', workshop(), f'nova=={version}')
    with tarfile.open(workshop() / f'nova-{version}.tar.gz') as archive:
        archive.extractall(workshop(), filter='data')
    return workshop() / f'nova-{version}'


class Environment:
    """A virtual environment with Nova.

    :param version: Nova's
    :param nova: 'wheel' or 'editable'
    :ivar binaries: its bin directory
    """

    def __init__(self, place: pathlib.Path, version: str, nova: str):
        self.binaries = place / 'bin'
        run(sys.executable, '-m', 'uv', 'venv', '--python', sys.executable,
            place)
        if nova == 'wheel':
            self._install(f'nova=={version}')
        else:
            self._install('--editable', nova_sources(version))

    def add_fastmig(self, how: str) -> None:
        """Install this package, which replaces what was before.

        :param how: 'wheel' or 'editable'
        """
        if how == 'wheel':
            self._install(fastmig_wheel())
        else:
            self._install('--editable', sources(),
                          env={**os.environ, 'PBR_VERSION': '0.0.1'})

    def _install(self, *requirements, **kwargs) -> None:
        run(sys.executable, '-m', 'uv', 'pip', 'install', '--quiet',
            '--python', self.binaries / 'python',
            '--constraint', CONSTRAINTS, *requirements, **kwargs)


class TestWheel(base.BaseTestCase):

    def test_contents(self):
        names = zipfile.ZipFile(fastmig_wheel()).namelist()
        self.assertIn('nova_fastmig/nova_virt/fastmig/__init__.py', names)
        self.assertIn('nova_fastmig/driver.py', names)
        self.assertIn('nova_fastmig/sinks/log.py', names)
        # A directory nova/ would shadow an editable Nova.
        top = {name.partition('/')[0] for name in names}
        self.assertEqual(
            set(), {name for name in top
                    if not name.startswith('nova_fastmig')})

    def test_configuration_files(self):
        names = zipfile.ZipFile(fastmig_wheel()).namelist()
        self.assertTrue(any(
            name.endswith('etc/nova-fastmig/nova-fastmig.conf.sample')
            for name in names), names)


@ddt.ddt
class TestLoading(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.conf = self.write('nova.conf', NOVA_CONF)

    def write(self, name: str, text: str) -> pathlib.Path:
        path = self.directory / name
        path.write_text(text.format(directory=self.directory))
        return path

    @ddt.data(*itertools.chain.from_iterable(
        combinations(version) for version in NOVA_VERSIONS))
    @ddt.unpack
    def test_loads(self, version, nova, fastmig):
        environment = Environment(self.directory / 'environment', version,
                                  nova)
        for how in fastmig:
            environment.add_fastmig(how)
            self.check_installed(environment.binaries, nova, how)
            self.check_loads(environment.binaries)
        self.check_other_commands(environment.binaries, version)

    def check_loads(self, binaries) -> None:
        # Not in the checkout: its modules must not be found by chance.
        output = run(binaries / 'python',
                     pathlib.Path(__file__).with_name('nova_compute.py'),
                     '--config-file', self.conf, cwd=self.directory)
        self.assertIn('loaded nova_fastmig.driver.FastMigDriver', output)

    def check_installed(self, binaries, nova: str, fastmig: str) -> None:
        """That the environment is what the test says it is."""
        for module, how in (('nova', nova), ('nova_fastmig', fastmig)):
            place = run(
                binaries / 'python', '-c',
                f'import {module}; print({module}.__file__)',
                cwd=self.directory).splitlines()[-1]
            self.assertEqual(how == 'wheel', 'site-packages' in place, place)

    def check_other_commands(self, binaries, version: str) -> None:
        """Nova's other commands see nothing of this package."""
        conf = self.write('controller.conf', NOVA_CONF + CONTROLLER)
        for command in ('nova-manage', 'nova-status'):
            self.assertIn(
                version,
                run(binaries / command, '--version', cwd=self.directory))
        for arguments in (('api_db', 'sync'),
                          ('db', 'sync', '--local_cell')):
            run(binaries / 'nova-manage', '--config-file', conf, *arguments,
                cwd=self.directory)
        log = self.directory / 'nova-conductor.log'
        with open(log, 'w') as output:
            conductor = subprocess.Popen(
                [binaries / 'nova-conductor', '--config-file', conf],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output)
        try:
            deadline = time.monotonic() + 120
            while 'Starting conductor node' not in log.read_text():
                self.assertIsNone(conductor.poll(), log.read_text())
                self.assertLess(time.monotonic(), deadline, log.read_text())
                time.sleep(0.2)
        finally:
            conductor.terminate()
            try:
                conductor.wait(30)
            except subprocess.TimeoutExpired:
                conductor.kill()
                conductor.wait()
