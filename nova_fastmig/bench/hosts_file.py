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

"""The file that describes two hosts, for ``bench run --hosts``. Pure.

What is in it becomes part of URIs, of a domain's XML and of command lines, so
each value is held to what it may be.
"""

from collections.abc import Callable
import configparser
import dataclasses
import ipaddress
import re
import typing as ty

from nova_fastmig import exception

HOSTS = ('host1', 'host2')

_HOST_NAME = r'[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?'
# of libvirt's own for these transports, those that say whom to trust; none
# runs a command
_PARAMETER = r'(?:keyfile|no_tty|no_verify|pkipath)=[A-Za-z0-9_./@+-]+'
_URI = re.compile(
    rf'qemu\+(?:ssh|tls|tcp)://(?:[A-Za-z_][A-Za-z0-9_.-]*@)?'
    rf'(?:{_HOST_NAME}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?'
    rf'/system(?:\?{_PARAMETER}(?:&{_PARAMETER})*)?')
_PATH = re.compile(r'(?:/[A-Za-z0-9_+@.-]+)+')
# as the kernel has it, of characters that mean nothing elsewhere
_INTERFACE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}')
_MAC = re.compile(r'[0-9a-f]{2}(?::[0-9a-f]{2}){5}')


class InvalidHosts(exception.FastMigError):
    """A file of hosts that cannot be used as it is."""


@dataclasses.dataclass(frozen=True)
class Host:
    """One of the two.

    :ivar uri: of its libvirt, from here
    :ivar peer_uri: of its libvirt, from the other host
    :ivar migrate_address: that the guest's memory is sent to
    """

    uri: str
    migrate_address: str
    peer_uri: str

    @property
    def migrate_uri(self) -> str:
        return f'tcp://{self.migrate_address}'


@dataclasses.dataclass(frozen=True)
class Guest:
    """What is booted. Paths are those on the hosts, the same on both."""

    disk: str
    bridge: str
    bridge_type: str
    mac: str
    ip: str
    accelerator: str
    emulator: str | None
    patched_emulator: str | None


@dataclasses.dataclass(frozen=True)
class Generator:
    """What sends packets, on this machine.

    :ivar source: their IP address
    """

    program: str
    interface: str
    source: str


@dataclasses.dataclass(frozen=True)
class Given:
    """What the file has."""

    hosts: dict[str, Host]
    guest: Guest
    generator: Generator


# ---- values: each gives what to use, or raises ValueError

def _matches(pattern: re.Pattern) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError
        return text
    return check


def _one_of(*names: str) -> Callable[[str], str]:
    return _matches(re.compile('|'.join(names)))


def _address(text: str) -> str:
    """As it is written in a URI."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # four numbers that are no address are no name either
        if (not re.fullmatch(_HOST_NAME, text) or
                not re.search('[A-Za-z]', text)):
            raise
        return text
    if address.is_unspecified or address.is_loopback or '%' in text:
        raise ValueError
    return f'[{address}]' if address.version == 6 else str(address)


def _ipv4(text: str) -> str:
    address = ipaddress.IPv4Address(text)
    if (address.is_unspecified or address.is_loopback or
            address.is_multicast or address.is_reserved):
        raise ValueError
    return str(address)


def _mac(text: str) -> str:
    mac = text.lower()
    # libvirt keeps fe: for its own ends of the wires
    if (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or
            mac.startswith('fe:') or mac == '00:00:00:00:00:00'):
        raise ValueError
    return mac


def _path(text: str) -> str:
    if not _PATH.fullmatch(text) or {'.', '..'} & set(text.split('/')):
        raise ValueError
    return text


class _Key(ty.NamedTuple):
    """:ivar default: None where the key must be there"""

    check: Callable[[str], str]
    allowed: str
    default: str | None = None


_URI_KEY = _Key(
    _matches(_URI), 'qemu+ssh://[USER@]HOST[:PORT]/system, or qemu+tls or '
    'qemu+tcp instead of qemu+ssh, with no other parameters than keyfile, '
    'no_tty, no_verify and pkipath')
_PATH_KEY = _Key(_path, 'an absolute path of letters, digits and _ + @ . -')
_INTERFACE_KEY = _Key(
    _matches(_INTERFACE), 'the name of a network interface: up to 15 '
    'letters, digits and _ . -')
_IPV4_KEY = _Key(_ipv4, 'the IPv4 address of one host')
# '' stands for what is chosen where it is used
_SECTIONS: dict[str, dict[str, _Key]] = {
    **{host: {
        'uri': _URI_KEY,
        'peer_uri': _URI_KEY._replace(default=''),
        'migrate_address': _Key(
            _address, 'a host name or an IP address, not one of the machine '
            'itself such as 127.0.0.1'),
    } for host in HOSTS},
    'guest': {
        'disk': _PATH_KEY,
        'bridge': _INTERFACE_KEY,
        'bridge_type': _Key(_one_of('linux', 'openvswitch'),
                            'linux or openvswitch', 'linux'),
        'mac': _Key(_mac, 'the MAC address of one interface, such as '
                          '52:54:00:be:00:01, not one with fe: in front'),
        'ip': _IPV4_KEY,
        'accelerator': _Key(_one_of('kvm', 'tcg'), 'kvm or tcg', 'kvm'),
        'emulator': _PATH_KEY._replace(default=''),
        'patched_emulator': _PATH_KEY._replace(default=''),
    },
    'generator': {
        'program': _PATH_KEY,
        'interface': _INTERFACE_KEY,
        'source': _IPV4_KEY,
    },
}


def _known(what: str, names: set[str], known: set[str]) -> None:
    unknown = sorted(names - known)
    if unknown:
        raise InvalidHosts(f'{what} {unknown[0]!r}: must be one of '
                           f'{", ".join(sorted(known))}')


def _section(name: str, found: dict[str, str]) -> dict[str, str | None]:
    keys = _SECTIONS[name]
    _known(f'[{name}]: key', set(found), set(keys))
    values: dict[str, str | None] = {}
    for key, (check, allowed, default) in keys.items():
        if key not in found:
            if default is None:
                raise InvalidHosts(f'[{name}] {key} is missing: must be '
                                   f'{allowed}')
            values[key] = default or None
            continue
        try:
            values[key] = check(found[key])
        except ValueError as error:
            raise InvalidHosts(f'[{name}] {key} = {found[key]!r}: must be '
                               f'{allowed}') from error
    return values


def _host(values: dict[str, str | None]) -> Host:
    return Host(**values | {'peer_uri': values['peer_uri'] or values['uri']})


def parse(text: str) -> Given:
    """What a file says.

    :raises: InvalidHosts
    """
    # a URI has colons in it
    parser = configparser.ConfigParser(
        delimiters=('=',), interpolation=None, default_section='')
    try:
        parser.read_string(text, 'the file')
    except configparser.Error as error:
        raise InvalidHosts(str(error).replace('\n', ' ')) from error
    _known('section', set(parser.sections()), set(_SECTIONS))
    values = {name: _section(
        name, dict(parser[name]) if parser.has_section(name) else {})
        for name in _SECTIONS}
    given = Given({name: _host(values[name]) for name in HOSTS},
                  Guest(**values['guest']), Generator(**values['generator']))
    for key in ('uri', 'migrate_address'):
        first, second = (getattr(host, key) for host in given.hosts.values())
        if first == second:
            raise InvalidHosts(f'[{HOSTS[1]}] {key} = {second!r}: must be '
                               f'another one than that of [{HOSTS[0]}]')
    if given.generator.source == given.guest.ip:
        raise InvalidHosts(
            f'[generator] source = {given.generator.source!r}: must be '
            f"another one than the guest's ip")
    return given
