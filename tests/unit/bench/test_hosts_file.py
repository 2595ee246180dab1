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

import ddt
from oslotest import base

from nova_fastmig.bench import hosts_file

GOOD = {
    'host1': {'uri': 'qemu+ssh://root@node1.example.com/system',
              'migrate_address': '192.0.2.11'},
    'host2': {'uri': 'qemu+ssh://root@node2.example.com/system',
              'migrate_address': '192.0.2.12'},
    'guest': {'disk': '/srv/shared/forwarder.img', 'bridge': 'br-bench',
              'mac': '52:54:00:BE:00:01', 'ip': '198.51.100.10'},
    'generator': {'program': '/usr/local/bin/probe', 'interface': 'eth1',
                  'source': '198.51.100.11'},
}


def text(sections=GOOD, **more: dict[str, str | None]) -> str:
    """The good file with other keys in it, and without those that are None."""
    lines = []
    for name, keys in {**sections, **{
            each: {} for each in more if each not in sections}}.items():
        lines.append(f'[{name}]')
        lines += [f'{key} = {value}' for key, value
                  in {**keys, **more.get(name, {})}.items()
                  if value is not None]
    return '\n'.join(lines) + '\n'


@ddt.ddt
class TestHostsFile(base.BaseTestCase):

    def refused(self, content: str) -> str:
        return str(self.assertRaises(hosts_file.InvalidHosts,
                                     hosts_file.parse, content))

    def test_what_must_be_there_is_enough(self):
        found = hosts_file.parse(text())
        self.assertEqual(['host1', 'host2'], list(found.hosts))
        host = found.hosts['host2']
        self.assertEqual('qemu+ssh://root@node2.example.com/system', host.uri)
        self.assertEqual(host.uri, host.peer_uri)
        self.assertEqual('tcp://192.0.2.12', host.migrate_uri)
        self.assertEqual(
            hosts_file.Guest('/srv/shared/forwarder.img', 'br-bench', 'linux',
                             '52:54:00:be:00:01', '198.51.100.10', 'kvm',
                             None, None), found.guest)
        self.assertEqual(hosts_file.Generator(
            '/usr/local/bin/probe', 'eth1', '198.51.100.11'), found.generator)

    def test_what_may_be_there(self):
        found = hosts_file.parse(text(
            host1={'peer_uri': 'qemu+tls://node1/system',
                   'migrate_address': '2001:db8::1'},
            guest={'bridge_type': 'openvswitch', 'accelerator': 'tcg',
                   'emulator': '/usr/bin/qemu-system-x86_64',
                   'patched_emulator': '/opt/q/bin/qemu-system-x86_64'}))
        self.assertEqual('qemu+tls://node1/system',
                         found.hosts['host1'].peer_uri)
        self.assertEqual('tcp://[2001:db8::1]',
                         found.hosts['host1'].migrate_uri)
        self.assertEqual(
            ('openvswitch', 'tcg', '/usr/bin/qemu-system-x86_64',
             '/opt/q/bin/qemu-system-x86_64'),
            (found.guest.bridge_type, found.guest.accelerator,
             found.guest.emulator, found.guest.patched_emulator))

    @ddt.data('qemu+tcp://10.77.0.11/system',
              'qemu+tls://[2001:db8::1]:16514/system',
              'qemu+ssh://nova@node1:2222/system?keyfile=/root/.ssh/id&'
              'no_tty=1')
    def test_uris(self, uri):
        found = hosts_file.parse(text(host1={'uri': uri}))
        self.assertEqual(uri, found.hosts['host1'].uri)

    @ddt.data(
        ('host1', 'uri', 'qemu:///system'),
        ('host1', 'uri', 'xen+ssh://node1/system'),
        ('host1', 'uri', 'qemu+ssh://node1/session'),
        ('host1', 'uri', 'qemu+ssh://root:secret@node1/system'),
        ('host1', 'uri', 'qemu+ssh://-oProxyCommand=id/system'),
        ('host1', 'uri', 'qemu+ssh://node1/system?command=/tmp/x'),
        ('host1', 'uri', "qemu+tcp://node1/system'/>"),
        ('host1', 'uri', 'qemu+tcp://node1/system\n  more'),
        ('host2', 'peer_uri', 'node2'),
        ('host1', 'migrate_address', 'tcp://192.0.2.11'),
        ('host1', 'migrate_address', '192.0.2.256'),
        ('host1', 'migrate_address', '127.0.0.1'),
        ('host1', 'migrate_address', '::'),
        ('host1', 'migrate_address', 'fe80::1%eth0'),
        ('host1', 'migrate_address', '--persistent'),
        ('guest', 'disk', 'forwarder.img'),
        ('guest', 'disk', "/srv/a'b.img"),
        ('guest', 'disk', '/srv/../etc/shadow'),
        ('guest', 'disk', '/srv/'),
        ('guest', 'bridge', 'a-name-that-is-long'),
        ('guest', 'bridge', "br'/>"),
        ('guest', 'bridge', '..'),
        ('guest', 'bridge_type', 'ovs'),
        ('guest', 'mac', '52:54:00:be:00'),
        ('guest', 'mac', '53:54:00:be:00:01'),
        ('guest', 'mac', 'fe:54:00:be:00:01'),
        ('guest', 'mac', '00:00:00:00:00:00'),
        ('guest', 'ip', '198.51.100.0/24'),
        ('guest', 'ip', '2001:db8::2'),
        ('guest', 'ip', '224.0.0.1'),
        ('guest', 'accelerator', 'xen'),
        ('guest', 'emulator', 'qemu-system-x86_64'),
        ('guest', 'patched_emulator', '/opt/qemu system'),
        ('generator', 'program', 'probe'),
        ('generator', 'interface', ''),
        ('generator', 'source', '0.0.0.0'))
    @ddt.unpack
    def test_values(self, section, key, value):
        said = self.refused(text(**{section: {key: value}}))
        allowed = hosts_file._SECTIONS[section][key].allowed
        # configparser takes the indentation of further lines
        value = value.replace('\n  ', '\n')
        self.assertEqual(f'[{section}] {key} = {value!r}: must be {allowed}',
                         said)

    @ddt.data(*((section, key) for section, keys in GOOD.items()
                for key in keys))
    @ddt.unpack
    def test_missing(self, section, key):
        self.assertIn(f'[{section}] {key} is missing: must be ',
                      self.refused(text(**{section: {key: None}})))

    def test_a_missing_section(self):
        self.assertIn('[host1] uri is missing', self.refused(''))

    @ddt.data(
        ({'hosts1': {}}, "section 'hosts1': must be one of generator, guest, "
                         "host1, host2"),
        ({'DEFAULT': {'mac': '1'}}, "section 'DEFAULT': must be one of"),
        ({'host1': {'url': 'x'}}, "[host1]: key 'url': must be one of "
                                  "migrate_address, peer_uri, uri"))
    @ddt.unpack
    def test_unknown(self, more, said):
        self.assertIn(said, self.refused(text(**more)))

    @ddt.data('host1', '[host1]\nuri', '[host1]\n[host1]\n',
              '[host1]\nuri = a\nuri = b\n')
    def test_no_such_file_format(self, content):
        said = self.refused(content)
        self.assertIn('the file', said)
        self.assertNotIn('\n', said)

    @ddt.data(
        ({'host2': {'uri': GOOD['host1']['uri']}}, '[host2] uri = '),
        ({'host2': {'migrate_address': '192.0.2.11'}},
         '[host2] migrate_address = '),
        ({'generator': {'source': '198.51.100.10'}}, '[generator] source = '))
    @ddt.unpack
    def test_two_that_must_differ(self, more, said):
        found = self.refused(text(**more))
        self.assertTrue(found.startswith(said), found)
        self.assertIn('must be another one than', found)
