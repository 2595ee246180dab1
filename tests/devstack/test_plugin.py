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

"""The DevStack plugin's phases, with a stand-in for DevStack."""

import configparser
import os
import pathlib
import shutil
import subprocess

import ddt
import fixtures
from oslotest import base

ROOT = pathlib.Path(__file__).parents[2]
STANDIN = pathlib.Path(__file__).parent / 'standin'
COMMANDS = ('sudo', 'systemctl', 'ip', 'hostname', 'df', 'id',
            'chgrp', 'chcon', 'setpriv', 'openstack')
EMULATOR = 'bin/qemu-system-x86_64'

CONTROLLER = 'n-api,n-sch,n-cond,mysql,rabbit,q-svc'
COMPUTE = 'n-cpu,placement-client,ovn-controller'
ALL_IN_ONE = f'{CONTROLLER},n-cpu,tempest'

LIBVIRTD_CONF = 'log_outputs = "1:file:/l"\nauth_tcp = "sasl"\n'
SSH_URI = 'qemu+ssh://{user}@%s/system'


class TestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.plugin = self.place / 'stack/nova-fastmig'
        for name in ('devstack', 'etc'):
            shutil.copytree(ROOT / name, self.plugin / name)
        lib = self.plugin / 'devstack/lib/qemu'
        lib.write_text(lib.read_text() + (STANDIN / 'qemu').read_text())
        for directory in ('bin', 'stack/data/venv/bin',
                          'etc/apparmor.d/abstractions',
                          'etc/apparmor.d/local/abstractions',
                          'etc/libvirt'):
            (self.place / directory).mkdir(parents=True)
        for name in COMMANDS:
            (self.place / 'bin' / name).symlink_to(STANDIN / 'command')
        (self.place / 'stack/data/venv/bin/python3').symlink_to(
            STANDIN / 'command')
        self.libvirtd_conf = self.place / 'etc/libvirt/libvirtd.conf'
        self.libvirtd_conf.write_text(LIBVIRTD_CONF)
        self.apparmor = self.place / 'etc/apparmor.d'
        (self.apparmor / 'usr.sbin.libvirtd').touch()
        (self.apparmor / 'local/abstractions/libvirt-qemu').write_text(
            '# Site-specific additions\n')
        self.log = self.place / 'log'
        self.prefix = self.place / 'opt/nova-fastmig/qemu'
        self.nova_conf = self.place / 'etc/nova/nova.conf'
        self.ca = self.place / 'stack/data/CA/nova-fastmig'

    def run_mode(self, mode, services=ALL_IN_ONE, status=0, environment=(),
                 **variables) -> str:
        """Run all phases of a mode; returns what was called, as lines.

        :param variables: what local.conf sets
        :param environment: STANDIN_ variables
        """
        self.log.write_text('')
        variables['ENABLED_SERVICES'] = services
        (self.place / 'localrc').write_text(''.join(
            f"{name}='{value}'\n" for name, value in variables.items()))
        done = subprocess.run(
            [STANDIN / 'run', self.place, mode], text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
            env={'PATH': os.environ['PATH'], **dict(environment)})
        self.assertEqual(status, done.returncode, done.stderr + done.stdout)
        self.output = done.stdout
        self.errors = done.stderr
        return self.log.read_text()

    def stack(self, *args, **kwargs):
        return self.run_mode('stack', *args, **kwargs)

    def refuse(self, *args, **kwargs) -> str:
        """Expect stack.sh to end early; returns the message."""
        before = self.files()
        self.stack(*args, status=1, **kwargs)
        self.assertEqual(before, self.files())
        return self.errors[self.errors.index('[ERROR]'):]

    def files(self) -> dict[str, str]:
        """What is there, without what belongs to the tests themselves."""
        ours = {'bin', 'log', 'localrc', 'flavors'}
        return {str(path.relative_to(self.place)): self._content(path)
                for path in self.place.rglob('*')
                if path.relative_to(self.place).parts[0] not in ours
                and path.suffix != '.env'}

    def _content(self, path) -> str:
        mode = f'{path.lstat().st_mode:o}'
        # The repository's files are too long to be shown when a test fails.
        if (path.is_dir() or path.is_symlink()
                or self.plugin in path.parents):
            return mode
        return f'{mode} {path.read_text()}'

    def conf(self, path=None) -> dict[str, dict[str, str]]:
        parser = configparser.ConfigParser(
            interpolation=None, default_section='none')
        parser.read_string((path or self.nova_conf).read_text())
        return {name: dict(parser[name]) for name in parser.sections()}

    def flavor(self, name='nfv.small') -> list[str]:
        return (self.place / 'flavors' / name).read_text().splitlines()

    def assert_order(self, text, *parts):
        places = [text.find(part) for part in parts]
        self.assertNotIn(-1, places, f'{parts} in\n{text}')
        self.assertEqual(sorted(places), places, text)


class TestStack(TestCase):

    def test_order(self):
        log = self.stack()
        self.assert_order(
            log, '# Checking settings',
            '# Installing nova-fastmig', f'setup_develop {self.plugin}',
            'qemu_install_packages', 'qemu_install\n',
            'restart_service libvirtd',
            '# Configuring nova-fastmig', 'systemctl daemon-reload',
            'systemctl stop libvirtd.service libvirtd.socket',
            'systemctl enable libvirtd-tcp.socket',
            'systemctl restart libvirtd-tcp.socket',
            '\nstart_service libvirtd',
            '# Initializing nova-fastmig', 'flavor create', 'flavor set',
            'fastmig:no_such_key', 'setpriv', 'wait_for_traits.py')

    def test_nova_conf(self):
        self.stack()
        conf = self.conf()
        self.assertEqual('fastmig.FastMigDriver',
                         conf['DEFAULT']['compute_driver'])
        self.assertEqual({
            'virt_type': 'kvm',
            'live_migration_scheme': 'tcp',
            'live_migration_inbound_addr': '192.0.2.11',
            'live_migration_permit_post_copy': 'False',
        }, conf['libvirt'])
        self.assertEqual({
            'emulator': str(self.prefix / EMULATOR),
            # or the migration of every server with a local disk is refused
            'permitted_obstacles': 'block-migration',
            'sinks': 'log,instance_action',
        }, conf['fastmig'])
        # what was there stays
        self.assertEqual('True', conf['DEFAULT']['debug'])
        self.assertEqual('mysql', conf['database']['connection'])

    def test_shared_storage(self):
        self.stack(FASTMIG_PERMITTED_OBSTACLES='none')
        self.assertEqual('', self.conf()['fastmig']['permitted_obstacles'])

    def test_nova_compute_gets_it(self):
        self.stack()
        self.assertEqual(
            self.conf(), self.conf(self.place / 'etc/nova/nova-cpu.conf'))

    def test_flavor(self):
        log = self.stack()
        self.assertIn('flavor create --ram 256 --vcpus 1 --disk 1 nfv.small',
                      log)
        self.assertEqual([
            'fastmig:enabled=true',
            'fastmig:max_downtime_ms=10',
            'fastmig:max_total_ms=2000',
            'fastmig:on_miss=abort',
            'fastmig:parallel_connections=1',
            'fastmig:qemu=patched',
            'hw_rng:allowed=True'], self.flavor())

    def test_other_flavor(self):
        log = self.stack(
            FASTMIG_FLAVOR_NAME='vnf', FASTMIG_FLAVOR_RAM=4096,
            FASTMIG_FLAVOR_VCPUS=4, FASTMIG_FLAVOR_DISK=0,
            FASTMIG_FLAVOR_MAX_DOWNTIME_MS=50,
            FASTMIG_FLAVOR_MAX_TOTAL_MS=60000,
            FASTMIG_FLAVOR_ON_MISS='post-copy', FASTMIG_POST_COPY='True',
            FASTMIG_FLAVOR_PARALLEL_CONNECTIONS=4, FASTMIG_FLAVOR_QEMU='any',
            FASTMIG_FLAVOR_PROPERTIES='hw:mem_page_size=large hw:a=b')
        self.assertIn('flavor create --ram 4096 --vcpus 4 --disk 0 vnf', log)
        self.assertEqual([
            'fastmig:enabled=true',
            'fastmig:max_downtime_ms=50',
            'fastmig:max_total_ms=60000',
            'fastmig:on_miss=post-copy',
            'fastmig:parallel_connections=4',
            'fastmig:qemu=any',
            'hw:a=b',
            'hw:mem_page_size=large'], self.flavor('vnf'))
        self.assertEqual(
            'True', self.conf()['libvirt']['live_migration_permit_post_copy'])

    def test_api_checks_every_call(self):
        """Below 2.86 nova-api takes any extra spec."""
        for line in self.stack().splitlines():
            if line.startswith('openstack '):
                self.assertIn('--os-compute-api-version 2.86', line)

    def test_twice_in_one_run(self):
        self.stack()
        once = self.files()
        self.stack(environment={'STANDIN_AGAIN': 'yes'})
        self.assertEqual(once, self.files())

    def test_run_again(self):
        self.stack()
        once = self.files(), self.flavor()
        log = self.stack()
        self.assertEqual(once, (self.files(), self.flavor()))
        self.assertNotIn('flavor create', log)

    def test_tempest(self):
        log = self.stack(FASTMIG_TEMPEST_VERDICTS='met')
        self.assertIn(f'TEMPEST_PLUGINS={self.plugin}/tempest-plugin\n', log)
        conf = self.conf(self.place / 'stack/tempest/etc/tempest.conf')
        self.assertEqual({
            'live_migration': 'True', 'live_migrate_back_and_forth': 'True',
        }, conf['compute-feature-enabled'])
        self.assertEqual({'nova_fastmig': 'True'}, conf['service_available'])
        self.assertEqual({
            'flavor_name': 'nfv.small', 'accepted_verdicts': 'met',
        }, conf['fastmig'])

    def test_other_tempest_plugins_stay(self):
        log = self.stack(TEMPEST_PLUGINS='/opt/stack/other')
        self.assertIn(f'TEMPEST_PLUGINS=/opt/stack/other '
                      f'{self.plugin}/tempest-plugin\n', log)


class TestHosts(TestCase):

    def test_controller(self):
        log = self.stack(CONTROLLER)
        self.assertIn('setup_develop', log)
        self.assertIn('flavor create', log)
        for never in ('qemu', 'systemctl', 'libvirtd', 'setpriv', 'traits'):
            self.assertNotIn(never, log.replace('fastmig:qemu', ''))
        conf = self.conf()
        self.assertNotIn('fastmig', conf)
        self.assertNotIn('libvirt', conf)
        self.assertNotIn('compute_driver', conf['DEFAULT'])

    def test_compute(self):
        log = self.stack(COMPUTE)
        self.assert_order(log, 'setup_develop', 'qemu_install\n', 'setpriv',
                          'wait_for_traits.py')
        self.assertNotIn('openstack', log)
        self.assertEqual('fastmig.FastMigDriver',
                         self.conf()['DEFAULT']['compute_driver'])

    def test_another_host(self):
        """Such as one for networking only."""
        before = self.files()
        self.assertEqual('', self.stack('q-agt,q-l3'))
        self.nova_conf.unlink()
        self.nova_conf.parent.rmdir()
        self.assertEqual(before, self.files())

    def test_tempest_only(self):
        log = self.stack('tempest')
        self.assertNotIn('setup_develop', log)
        self.assertTrue((self.place / 'stack/tempest/etc').exists())

    def test_unstack_and_clean(self):
        for services in (CONTROLLER, COMPUTE, ALL_IN_ONE):
            self.stack(services)
            self.run_mode('unstack', services)
            self.run_mode('unstack', services)
            self.run_mode('clean', services)
            self.run_mode('clean', services)


@ddt.ddt
class TestQemu(TestCase):

    def test_build(self):
        """qemu_install gets what local.conf says."""
        self.stack(
            FASTMIG_QEMU_SOURCE='tarball', FASTMIG_QEMU_VERSION='10.0.14',
            FASTMIG_QEMU_SHA256='a' * 64, FASTMIG_QEMU_JOBS=3,
            FASTMIG_QEMU_ENABLE='rbd spice')
        given = dict(
            line.split('=', 1) for line in
            (self.place / 'qemu_install.env').read_text().splitlines())
        self.assertLessEqual({
            'FASTMIG_QEMU_SERIES': '10.0',
            'FASTMIG_QEMU_SOURCE': 'tarball',
            'FASTMIG_QEMU_VERSION': '10.0.14',
            'FASTMIG_QEMU_SHA256': 'a' * 64,
            'FASTMIG_QEMU_JOBS': '3',
            'FASTMIG_QEMU_ENABLE': 'rbd spice',
            'FASTMIG_QEMU_PREFIX': str(self.prefix),
            'FASTMIG_QEMU_CACHE': str(self.place / 'cache'),
            'FASTMIG_QEMU_DESTDIR': '',
        }.items(), given.items())

    def test_build_fails(self):
        self.stack(status=1, environment={'STANDIN_BUILD': 'fails'})
        self.assertIn('QEMU was not built and installed', self.errors)

    def test_path(self):
        emulator = self.place / 'other/bin/qemu-system-x86_64'
        emulator.parent.mkdir(parents=True)
        emulator.touch(0o755)
        log = self.stack(FASTMIG_QEMU_MODE='path',
                         FASTMIG_QEMU_PATH=emulator)
        self.assertNotIn('qemu_install', log)
        self.assertEqual(str(emulator), self.conf()['fastmig']['emulator'])
        self.assertIn('fastmig:qemu=any', self.flavor())
        self.assertIn(f'{emulator.parent.parent}/** r,', (
            self.apparmor / 'abstractions/nova-fastmig-qemu').read_text())

    def test_distro(self):
        log = self.stack(FASTMIG_QEMU_MODE='distro')
        self.assertNotIn('qemu_install', log)
        self.assertEqual('', self.conf()['fastmig']['emulator'])
        self.assertIn('fastmig:qemu=any', self.flavor())
        self.assertEqual([], list(
            (self.apparmor / 'abstractions').iterdir()))

    def test_apparmor(self):
        log = self.stack()
        self.assertIn('reload_service apparmor', log)
        rules = (self.apparmor / 'abstractions/nova-fastmig-qemu').read_text()
        self.assertIn(f'  {self.prefix / EMULATOR} rmix,\n', rules)
        self.assertIn(f'  {self.prefix}/** r,\n', rules)
        self.assertNotIn('/opt/nova-fastmig/qemu/', rules.replace(
            str(self.prefix), ''))
        self.assertEqual(
            '# Site-specific additions\n'
            '# nova-fastmig: begin\n'
            'include if exists <abstractions/nova-fastmig-qemu>\n'
            '# nova-fastmig: end\n',
            (self.apparmor / 'local/abstractions/libvirt-qemu').read_text())
        self.assertIn(
            '<abstractions/nova-fastmig-libvirtd>',
            (self.apparmor / 'local/usr.sbin.libvirtd').read_text())
        # a profile that the host does not have
        self.assertFalse(
            (self.apparmor / 'local/usr.sbin.virtqemud').exists())

    def test_no_rules_for_the_distributions_own(self):
        self.stack()
        self.stack(FASTMIG_QEMU_MODE='distro')
        self.assertEqual(
            '# Site-specific additions\n',
            (self.apparmor / 'local/abstractions/libvirt-qemu').read_text())


class TestTransport(TestCase):

    def socket(self, transport):
        return (self.place / 'etc/systemd/system' /
                f'libvirtd-{transport}.socket.d' / 'nova-fastmig.conf')

    def test_tcp(self):
        self.stack()
        self.assertIn('[Socket]\nListenStream=\n'
                      'ListenStream=192.0.2.11:16509\n',
                      self.socket('tcp').read_text())
        self.assertEqual(
            'log_outputs = "1:file:/l"\n'
            '#nova-fastmig-off# auth_tcp = "sasl"\n'
            '# nova-fastmig: begin\nauth_tcp = "none"\n'
            '# nova-fastmig: end\n', self.libvirtd_conf.read_text())

    def test_ipv6(self):
        self.stack(FASTMIG_MIGRATION_ADDR='2001:db8::11')
        self.assertIn('ListenStream=[2001:db8::11]:16509\n',
                      self.socket('tcp').read_text())
        self.assertEqual('2001:db8::11', self.conf()['libvirt'][
            'live_migration_inbound_addr'])

    def test_ssh(self):
        log = self.stack(FASTMIG_MIGRATION_TRANSPORT='ssh', STACK_USER='me')
        self.assertNotIn('socket', log)
        self.assertEqual(LIBVIRTD_CONF, self.libvirtd_conf.read_text())
        libvirt = self.conf()['libvirt']
        self.assertEqual(SSH_URI.format(user='me'),
                         libvirt['live_migration_uri'])
        self.assertNotIn('live_migration_scheme', libvirt)

    def test_tls(self):
        log = self.stack(FASTMIG_MIGRATION_TRANSPORT='tls')
        self.assertIn('systemctl enable libvirtd-tls.socket', log)
        self.assertIn(f'chgrp kvm {self.place}/etc/pki/qemu/server-key.pem',
                      log)
        self.assertIn('ListenStream=192.0.2.11:16514\n',
                      self.socket('tls').read_text())
        self.assertEqual(LIBVIRTD_CONF, self.libvirtd_conf.read_text())
        libvirt = self.conf()['libvirt']
        self.assertNotIn('live_migration_uri', libvirt)
        self.assertEqual('tls', libvirt['live_migration_scheme'])
        self.assertEqual('True', libvirt['live_migration_with_native_tls'])

    def test_certificates(self):
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls')
        pki = self.place / 'etc/pki'
        ca = pki / 'CA/cacert.pem'
        self.assertEqual(ca.read_bytes(),
                         (pki / 'qemu/ca-cert.pem').read_bytes())
        for cert, key, mode in (
                ('libvirt/servercert.pem', 'libvirt/private/serverkey.pem',
                 0o600),
                ('libvirt/clientcert.pem', 'libvirt/private/clientkey.pem',
                 0o600),
                ('qemu/server-cert.pem', 'qemu/server-key.pem', 0o640),
                ('qemu/client-cert.pem', 'qemu/client-key.pem', 0o640)):
            self.assertEqual(mode, (pki / key).stat().st_mode & 0o777)
            for purpose in ('sslserver', 'sslclient'):
                subprocess.run(
                    ['openssl', 'verify', '-CAfile', ca, '-purpose', purpose,
                     '-verify_ip', '192.0.2.11', pki / cert],
                    check=True, capture_output=True)
            public = subprocess.run(
                ['openssl', 'x509', '-in', pki / cert, '-noout', '-pubkey'],
                check=True, capture_output=True).stdout
            self.assertEqual(public, subprocess.run(
                ['openssl', 'pkey', '-in', pki / key, '-pubout'],
                check=True, capture_output=True).stdout)
        self.assertEqual(0o600,
                         (self.ca / 'cakey.pem').stat().st_mode & 0o777)

    def test_certificates_stay(self):
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls')
        once = self.files()
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls',
                   environment={'STANDIN_AGAIN': 'yes'})
        self.assertEqual(once, self.files())

    def test_certificate_follows_the_address(self):
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls')
        cert = self.place / 'etc/pki/qemu/server-cert.pem'
        before = cert.read_bytes()
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls',
                   FASTMIG_MIGRATION_ADDR='2001:db8::11')
        self.assertNotEqual(before, cert.read_bytes())

    def test_second_host(self):
        """It takes the first one's authority, and makes none."""
        message = self.refuse(COMPUTE, FASTMIG_MIGRATION_TRANSPORT='tls')
        self.assertIn(f"FASTMIG_CA_DIR='{self.ca}' is not valid; allowed: a "
                      f"copy of that directory from the host that runs "
                      f"nova-api", message)
        self.stack(CONTROLLER, FASTMIG_MIGRATION_TRANSPORT='tls')
        made = (self.ca / 'cacert.pem').read_bytes()
        self.stack(COMPUTE, FASTMIG_MIGRATION_TRANSPORT='tls')
        self.assertEqual(
            made, (self.place / 'etc/pki/CA/cacert.pem').read_bytes())

    def test_certificates_of_others(self):
        ca = self.place / 'etc/pki/CA/cacert.pem'
        ca.parent.mkdir(parents=True)
        ca.write_text('theirs')
        self.assertIn(f'{ca} is there already and not from this plugin',
                      self.refuse(FASTMIG_MIGRATION_TRANSPORT='tls'))

    def test_change(self):
        for transport in ('tcp', 'tls', 'ssh', 'tls', 'tcp'):
            self.stack(FASTMIG_MIGRATION_TRANSPORT=transport)
            self.assertEqual(
                [transport] if transport != 'ssh' else [],
                [each for each in ('tcp', 'tls')
                 if self.socket(each).exists()])
            self.assertEqual(
                transport == 'tls',
                'live_migration_with_native_tls' in self.conf()['libvirt'])


@ddt.ddt
class TestValues(TestCase):

    @ddt.data(
        ('FASTMIG_QEMU_MODE', 'compile', 'build, path, distro'),
        ('FASTMIG_QEMU_SOURCE', 'rpm', 'deb, tarball, tree'),
        ('FASTMIG_QEMU_SERIES', '7.2', '10.0, 10.2'),
        ('FASTMIG_QEMU_VERSION', 'new', 'a version such as 10.0.13'),
        ('FASTMIG_QEMU_SHA256', 'abc', '64 hexadecimal digits'),
        ('FASTMIG_QEMU_JOBS', '0', 'a whole number from 1 to 1024'),
        ('FASTMIG_QEMU_JOBS', 'all', 'a whole number from 1 to 1024'),
        ('FASTMIG_QEMU_PREFIX', 'opt/qemu', 'an absolute directory'),
        ('FASTMIG_QEMU_PREFIX', '/', 'an absolute directory'),
        ('FASTMIG_QEMU_CACHE', '/a b', 'an absolute directory'),
        ('FASTMIG_QEMU_DESTDIR', '/mnt', 'nothing'),
        ('FASTMIG_MIGRATION_TRANSPORT', 'rdma', 'tcp, tls, ssh'),
        ('FASTMIG_MIGRATION_ADDR', '198.51.100.1',
         'an address of this host, which has 127.0.0.1, 192.0.2.11, '
         '2001:db8::11'),
        ('FASTMIG_POST_COPY', 'maybe', 'True, False'),
        ('FASTMIG_SINKS', 'log instance_action', 'names separated by commas'),
        ('FASTMIG_PERMITTED_OBSTACLES', 'none,passthrough',
         'block-migration, passthrough, both separated by a comma, or none'),
        ('FASTMIG_CA_DIR', 'ca', 'an absolute directory'),
        ('FASTMIG_FLAVOR_NAME', 'a b', 'letters, digits'),
        ('FASTMIG_FLAVOR_RAM', '1G', 'a whole number from 1 to'),
        ('FASTMIG_FLAVOR_VCPUS', '0', 'a whole number from 1 to'),
        ('FASTMIG_FLAVOR_DISK', '-1', 'a whole number from 0 to'),
        ('FASTMIG_FLAVOR_MAX_DOWNTIME_MS', '1001',
         'a whole number from 1 to 1000'),
        ('FASTMIG_FLAVOR_MAX_DOWNTIME_MS', '010',
         'a whole number from 1 to 1000'),
        ('FASTMIG_FLAVOR_MAX_TOTAL_MS', '99',
         'a whole number from 100 to 600000'),
        ('FASTMIG_FLAVOR_ON_MISS', 'ignore', 'abort, proceed, post-copy'),
        ('FASTMIG_FLAVOR_ON_MISS', 'post-copy',
         'abort, proceed, as long as FASTMIG_POST_COPY is not True'),
        ('FASTMIG_FLAVOR_PARALLEL_CONNECTIONS', '17',
         'a whole number from 1 to 16'),
        ('FASTMIG_FLAVOR_QEMU', 'stock', 'any, patched'),
        ('FASTMIG_FLAVOR_PROPERTIES', 'large', 'KEY=VALUE'),
        ('FASTMIG_FLAVOR_PROPERTIES', 'fastmig:enabled=false',
         'KEY=VALUE separated by spaces, without fastmig: keys'),
        ('FASTMIG_TEMPEST_VERDICTS', 'good', 'met, missed'))
    @ddt.unpack
    def test_value(self, name, value, allowed):
        message = self.refuse(**{name: value})
        self.assertIn(f"{name}='{value}' is not valid; allowed: {allowed}",
                      message)

    def test_all_at_once(self):
        message = self.refuse(FASTMIG_QEMU_MODE='a', FASTMIG_FLAVOR_RAM='b')
        self.assertIn("FASTMIG_QEMU_MODE='a'", message)
        self.assertIn("FASTMIG_FLAVOR_RAM='b'", message)

    def test_path(self):
        message = self.refuse(FASTMIG_QEMU_MODE='path',
                              FASTMIG_QEMU_PATH=self.place)
        self.assertIn(f"FASTMIG_QEMU_PATH='{self.place}' is not valid",
                      message)

    def test_no_patched_qemu_for_the_flavor(self):
        message = self.refuse(FASTMIG_QEMU_MODE='distro',
                              FASTMIG_FLAVOR_QEMU='patched')
        self.assertIn("FASTMIG_FLAVOR_QEMU='patched' is not valid; allowed: "
                      "any, with FASTMIG_QEMU_MODE=distro", message)

    def test_checksum_is_not_known(self):
        message = self.refuse(FASTMIG_QEMU_SOURCE='tarball',
                              FASTMIG_QEMU_VERSION='10.0.1')
        self.assertIn('FASTMIG_QEMU_SHA256', self.errors)
        self.assertIn('QEMU cannot be built with these', message)

    def test_unstack_does_not_care(self):
        self.stack()
        self.run_mode('unstack', FASTMIG_QEMU_MODE='compile')
        self.run_mode('clean', FASTMIG_QEMU_MODE='compile')


class TestHost(TestCase):

    def test_distribution(self):
        message = self.refuse(DISTRO='bullseye')
        self.assertIn("the distribution 'bullseye' is not supported; "
                      "allowed: bookworm, trixie, noble, resolute, rhel9, "
                      "rhel10", message)
        self.stack(DISTRO='bullseye', FORCE='yes')

    def test_architecture(self):
        message = self.refuse(environment={'STANDIN_ARCH': 'aarch64'})
        self.assertIn("FASTMIG_QEMU_MODE='build' is for x86_64", message)
        self.stack(FASTMIG_QEMU_MODE='distro',
                   environment={'STANDIN_ARCH': 'aarch64'})

    def test_disk(self):
        full = {'STANDIN_FREE_MIB': '4095'}
        self.assertIn('4095 MiB are free for FASTMIG_QEMU_CACHE=',
                      self.refuse(environment=full))
        self.stack(FASTMIG_QEMU_MODE='distro', environment=full)
        self.stack(CONTROLLER, environment=full)

    def test_hypervisor(self):
        self.assertIn("VIRT_DRIVER='fake' is not supported; allowed: libvirt",
                      self.refuse(VIRT_DRIVER='fake'))
        self.assertIn("LIBVIRT_TYPE='lxc' is not supported; allowed: kvm, "
                      "qemu", self.refuse(LIBVIRT_TYPE='lxc'))

    def test_old_nova(self):
        self.stack(status=1, environment={'STANDIN_NOVA': '31.1.0'})
        self.assertIn('is Nova 31.1.0; 32 (2025.2) or newer is supported',
                      self.errors)
        self.assertNotIn('setup_develop', self.log.read_text())

    def test_api_without_validators(self):
        log = self.stack(status=1, environment={'STANDIN_API': 'stale'})
        self.assertIn('nova-api takes the unknown extra spec', self.errors)
        self.assertIn('flavor unset --property fastmig:no_such_key', log)

    def test_cli_server(self):
        """It would have nova-api check nothing."""
        client = self.place / 'stack/devstack/files/openstack-cli-server'
        client.mkdir(parents=True)
        (client / 'openstack').write_text(
            '#!/bin/sh\necho "cli-server $*" >>"$STANDIN_PLACE/log"\n')
        (client / 'openstack').chmod(0o755)
        log = self.stack(services=f'{ALL_IN_ONE},openstack-cli-server')
        self.assertNotIn('cli-server', log)
        self.assertIn('fastmig:no_such_key', log)
        self.assertIn('fastmig:enabled=true', self.flavor())

    def test_host_is_not_ready(self):
        log = self.stack(status=1, environment={'STANDIN_CHECK': '1'})
        self.assertIn('this host is not ready', self.errors)
        self.assertIn(f'nova-fastmig --config-file '
                      f'{self.place}/etc/nova/nova-cpu.conf check', log)

    def traits(self, log):
        line, = (line for line in log.splitlines()
                 if 'wait_for_traits.py' in line)
        return line.split('wait_for_traits.py ')[1]

    def test_traits(self):
        log = self.stack(COMPUTE)
        self.assertEqual(
            f'--cloud devstack-admin --timeout 77 '
            f'{self.place}/stack/data/nova/compute_id CUSTOM_FASTMIG '
            f'CUSTOM_FASTMIG_QEMU', self.traits(log))
        log = self.stack(COMPUTE, FASTMIG_QEMU_MODE='distro')
        self.assertTrue(self.traits(log).endswith(' CUSTOM_FASTMIG'), log)
        log = self.stack(COMPUTE, NOVA_CPU_UUID='uuid')
        self.assertIn(f' {self.place}/etc/nova/compute_id ', self.traits(log))

    def test_traits_are_missing(self):
        self.stack(COMPUTE, status=1, environment={'STANDIN_TRAITS': '1'})
        self.assertIn('nova-compute does not run with the driver', self.errors)


class TestWayBack(TestCase):

    def setUp(self):
        super().setUp()
        self.before = self.files()

    def after(self):
        """What is there now, without what DevStack itself has made."""
        return {name: content for name, content in self.files().items()
                if not name.startswith(('etc/nova', 'stack/tempest'))}

    def clean(self, **kwargs):
        self.run_mode('unstack', **kwargs)
        return self.run_mode('clean', **kwargs)

    def test_unstack(self):
        for transport in ('tcp', 'tls'):
            self.stack(FASTMIG_MIGRATION_TRANSPORT=transport)
            log = self.run_mode('unstack')
            self.assert_order(
                log, f'systemctl disable --now libvirtd-{transport}.socket',
                'systemctl daemon-reload', 'restart_service libvirtd')
            self.assertEqual(LIBVIRTD_CONF, self.libvirtd_conf.read_text())
            self.assertNotIn('libvirtd', self.run_mode('unstack'))
        # QEMU stays for the next stack.sh
        self.assertTrue((self.prefix / EMULATOR).exists())

    def test_clean_removes_everything(self):
        for transport in ('tcp', 'tls', 'ssh'):
            self.stack(FASTMIG_MIGRATION_TRANSPORT=transport)
            log = self.clean()
            self.assertIn('qemu_remove --purge', log)
            self.assertIn(f'pip_uninstall nova-fastmig from '
                          f'{self.place}/stack/data/venv', log)
            after = self.after()
            # Directories that others might use by now, and files in which
            # only an empty line of ours would be left.
            for name in set(after) - set(self.before):
                self.assertTrue(
                    (self.place / name).is_dir() or
                    not (self.place / name).read_text(), name)
            self.assertEqual(self.before, {
                name: after.get(name) for name in self.before})

    def test_clean_twice(self):
        self.stack()
        self.clean()
        once = self.after()
        log = self.clean()
        self.assertEqual(once, self.after())
        self.assertNotIn('qemu_remove', log)

    def test_nova_conf(self):
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls', STACK_USER='me')
        self.clean(STACK_USER='me')
        conf = self.conf()
        self.assertEqual('libvirt.LibvirtDriver',
                         conf['DEFAULT']['compute_driver'])
        self.assertEqual(
            {'virt_type': 'kvm', 'live_migration_uri':
             SSH_URI.format(user='me')}, conf['libvirt'])
        self.assertNotIn('fastmig', conf)
        self.assertEqual('mysql', conf['database']['connection'])

    def test_qemu_of_others_stays(self):
        (self.prefix / 'bin').mkdir(parents=True)
        self.stack()
        self.assertNotIn('qemu_remove', self.clean())
        self.assertTrue((self.prefix / EMULATOR).exists())

    def test_authority_of_others_stays(self):
        self.stack(CONTROLLER, FASTMIG_MIGRATION_TRANSPORT='tls')
        (self.place / 'stack/data/nova-fastmig/ca').unlink()
        self.stack(FASTMIG_MIGRATION_TRANSPORT='tls')
        self.clean()
        self.assertTrue((self.ca / 'cakey.pem').exists())

    def test_qemu_is_found_after_local_conf_has_changed(self):
        self.stack()
        self.clean(FASTMIG_QEMU_MODE='distro', FASTMIG_QEMU_PREFIX='/other')
        self.assertFalse(self.prefix.exists())

    def test_qemu_in_use(self):
        self.stack()
        self.run_mode('unstack')
        refuses = {'STANDIN_REMOVE': 'fails'}
        self.run_mode('clean', environment=refuses)
        self.assertIn(f'QEMU stays in {self.prefix}', self.output)
        # and is removed next time
        self.assertIn('qemu_remove', self.run_mode('clean'))
