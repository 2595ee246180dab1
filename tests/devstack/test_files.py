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

"""The plugin's files beside its phases: packages, examples, documentation."""

import pathlib
import re
import subprocess
import sys

import ddt
from oslotest import base

from nova_fastmig import model
from nova_fastmig import report
from tests.devstack import test_plugin

ROOT = test_plugin.ROOT
DEVSTACK = ROOT / 'devstack'

# The name in os-release, version or codename: what bindep and
# devstack/lib/qemu_bindep.py call the platform.
PLATFORMS = {
    'bookworm': ('dpkg', 'debian', 'debian-bookworm'),
    'trixie': ('dpkg', 'debian', 'debian-trixie'),
    'noble': ('dpkg', 'ubuntu', 'ubuntu-noble'),
    'resolute': ('dpkg', 'ubuntu', 'ubuntu-resolute'),
    'rocky-9': ('rpm', 'rocky', 'rocky-9', 'redhat'),
    'rocky-10': ('rpm', 'rocky', 'rocky-10', 'redhat'),
    'centos-9': ('rpm', 'centos', 'centos-9', 'redhat'),
    'centos-10': ('rpm', 'centos', 'centos-10', 'redhat'),
}


@ddt.ddt
class TestPackages(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        sys.path.insert(0, str(DEVSTACK / 'lib'))
        self.addCleanup(sys.path.remove, str(DEVSTACK / 'lib'))
        import qemu_bindep
        self.qemu_bindep = qemu_bindep

    def packages(self, platform, *profiles):
        active = {f'platform:{name}' for name in PLATFORMS[platform]}
        return self.qemu_bindep.packages(
            DEVSTACK / 'files/bindep.txt', active | set(profiles))

    @ddt.data(*PLATFORMS)
    def test_every_platform(self, platform):
        names = self.packages(platform)
        self.assertEqual(len(set(names)), len(names))
        dpkg = 'dpkg' in PLATFORMS[platform]
        for name in (['libglib2.0-dev', 'libgnutls28-dev', 'seabios'] if dpkg
                     else ['glib2-devel', 'gnutls-devel', 'seabios-bin']):
            self.assertIn(name, names)
        # for the plugin, and not for tools/build-qemu
        library = 'libvirt-dev' if dpkg else 'libvirt-devel'
        self.assertIn(library, names)
        self.assertIn('openssl', names)
        built = self.packages(platform, 'source-tarball')
        self.assertNotIn(library, built)
        self.assertNotIn('openssl', built)

    def test_python_that_is_new_enough(self):
        for platform in ('rocky-9', 'centos-9'):
            names = self.packages(platform)
            self.assertIn('python3.12', names)
            self.assertNotIn('python3-pip', names)
        for platform in ('rocky-10', 'centos-10'):
            names = self.packages(platform)
            self.assertNotIn('python3.12', names)
            self.assertIn('python3-pip', names)

    def test_meson(self):
        self.assertEqual(
            ['trixie', 'resolute'],
            [each for each in PLATFORMS if 'meson' in self.packages(each)])


@ddt.ddt
class TestExamples(base.BaseTestCase):

    @ddt.data('allinone', 'controller', 'compute')
    def test_localrc(self, name):
        """Bash can read it, and each of our variables is one of settings."""
        text = (DEVSTACK / f'local.conf.{name}').read_text()
        sections = re.split(r'^#?\[\[(.*)\]\]$', text, flags=re.M)
        self.assertEqual('local|localrc', sections[1])
        localrc = sections[2]
        subprocess.run(['bash', '-n'], input=localrc, text=True, check=True)
        self.assertIn('\nenable_plugin nova-fastmig ', localrc)
        known = settings()
        for variable in re.findall(r'^#?(FASTMIG_\w+)=', localrc, re.M):
            self.assertIn(variable, known)

    def test_transport_is_the_same(self):
        found = {re.search(r'^FASTMIG_MIGRATION_TRANSPORT=(\w+)$', (
            DEVSTACK / f'local.conf.{name}').read_text(), re.M)[1]
            for name in ('controller', 'compute')}
        self.assertEqual({'tcp'}, found)


def settings() -> set[str]:
    """Names of the variables that local.conf may set."""
    text = ''.join((DEVSTACK / name).read_text()
                   for name in ('settings', 'lib/qemu'))
    return set(re.findall(r'^ *(FASTMIG_\w+)=\$\{\1:-', text, re.M)) | {
        'FASTMIG_FLAVOR_QEMU'}


class TestDocumentation(base.BaseTestCase):

    def documented(self, name):
        return re.findall(
            r'^   \* - ``(FASTMIG_\w+)``(?:, ``(FASTMIG_\w+)``)?$',
            (ROOT / 'doc/source' / name).read_text(), re.M)

    def test_every_variable(self):
        # devstack.rst leaves the rest of lib/qemu's to install-qemu.rst
        pairs = (self.documented('devstack.rst') +
                 self.documented('install-qemu.rst'))
        names = {name for pair in pairs for name in pair if name}
        # for the tests of lib/qemu
        self.assertEqual(settings() - {'FASTMIG_QEMU_BINDEP'}, names)

    def test_defaults_of_settings(self):
        text = (ROOT / 'doc/source/devstack.rst').read_text()
        own = (DEVSTACK / 'settings').read_text()
        for name, default in re.findall(
                r'^(FASTMIG_\w+)=\$\{\1:-([^${}]+)\}$', own, re.M):
            self.assertIn(f'   * - ``{name}``\n     - ``{default}``\n', text)


class TestVerdictInTempest(base.BaseTestCase):
    """The Tempest plugin reads what the driver writes."""

    def setUp(self):
        super().setUp()
        place = str(ROOT / 'tempest-plugin')
        sys.path.insert(0, place)
        self.addCleanup(sys.path.remove, place)
        from nova_fastmig_tempest_plugin import verdict
        self.verdict = verdict

    def test_same_as_the_driver(self):
        sla = model.Sla(
            max_downtime_ms=10, max_total_ms=2000,
            on_miss=model.OnMiss.ABORT, parallel_connections=1,
            qemu=model.QemuChoice.ANY)
        for outcome in model.Outcome:
            for downtime_ms, total_ms in ((5, 900), (11, 900), (None, None)):
                line = report.to_line(report.make(
                    'uuid', 'one', 'two', sla, (), model.Completed(
                        outcome=outcome, reason='why',
                        downtime_ms=downtime_ms, total_ms=total_ms)))
                expected = report.parse_line(line)
                found = self.verdict.parse(line)
                self.assertEqual(
                    {name: expected[name] for name in found}, found)
                self.assertTrue(line.startswith(self.verdict.PREFIX))

    def test_other_lines(self):
        self.assertIsNone(self.verdict.parse('compute_live_migration'))

    def test_choices(self):
        self.assertLessEqual(
            {'met', 'missed'}, {str(each) for each in model.Verdict})


class TestFiles(base.BaseTestCase):

    def test_plugin_dispatches_only(self):
        text = (DEVSTACK / 'plugin.sh').read_text()
        self.assertNotIn('function', text)
        called = set(re.findall(r'^ +(\w+_nova_fastmig)$', text, re.M))
        defined = set(re.findall(
            r'^function (\w*_nova_fastmig) \{', (
                DEVSTACK / 'lib/nova-fastmig').read_text(), re.M))
        self.assertEqual(called, {name for name in defined
                                  if not name.startswith('_')})

    def test_names(self):
        """DevStack runs all plugins in one shell."""
        lib = (DEVSTACK / 'lib/nova-fastmig').read_text()
        for name in re.findall(r'^function (\w+) \{', lib, re.M):
            self.assertTrue(name.startswith('_fastmig_') or
                            name.endswith('_nova_fastmig'), name)
        for name in re.findall(r'^(_?[A-Z][A-Z_]+)=', lib, re.M):
            self.assertIn('FASTMIG', name)

    def test_apparmor_rules_are_there(self):
        for name in ('qemu', 'libvirtd'):
            self.assertIn(
                '/opt/nova-fastmig/qemu/bin/qemu-system-x86_64', pathlib.Path(
                    ROOT / 'etc/apparmor.d/abstractions' /
                    f'nova-fastmig-{name}').read_text())
