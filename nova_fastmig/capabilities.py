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

"""libvirt and QEMU of this host, and of the peer -> HostCaps."""

import functools
import importlib.metadata
import json
import os
import re
import typing as ty

import libvirt
from lxml import etree
from nova import objects
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

from nova_fastmig import model
from nova_fastmig import qmp

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

# What the build of the patched QEMU puts into its version string
# (./configure --with-pkgversion), with the revision of the series.
_SERIES = re.compile(r'nova-fastmig[ -][\w.+~-]+')

_FEATURES = {str(feature): feature for feature in model.QemuFeature}

# Added to the resources that nova-compute reports. Nova keeps it among the
# compute node's stats for as long as this driver reports it, so a host that
# goes back to Nova's own driver loses it.
_DRIVER = 'fastmig_driver'
_EMULATOR = 'fastmig_emulator'
_QEMU_VERSION = 'fastmig_qemu_version'
_QEMU_SERIES = 'fastmig_qemu_series'
_QEMU_FEATURES = 'fastmig_qemu_features'
_LIBVIRT_VERSION = 'fastmig_libvirt_version'
_DRIVER_VERSION = 'fastmig_driver_version'
_NATIVE_TLS = 'fastmig_native_tls'

# For flavors, and for the operator's own use of placement.
TRAIT = 'CUSTOM_FASTMIG'
TRAIT_QEMU = 'CUSTOM_FASTMIG_QEMU'

_ASK_TIMEOUT_S = 10
_QUESTIONS = ('query-version', 'query-migrate-capabilities')


try:
    OWN_VERSION = importlib.metadata.version('nova-fastmig')
except importlib.metadata.PackageNotFoundError:
    # Run from its source without having been installed.
    OWN_VERSION = ''


class _Qemu(ty.NamedTuple):
    """What a QEMU says about itself."""

    version: tuple[int, int, int]
    series: str
    features: frozenset[model.QemuFeature]


def _parse(version: dict, capabilities: list[dict]) -> _Qemu:
    """Read QEMU's answers to _QUESTIONS."""
    numbers = version['qemu']
    series = _SERIES.search(version.get('package', ''))
    return _Qemu(
        (numbers['major'], numbers['minor'], numbers['micro']),
        series[0] if series else '',
        frozenset(_FEATURES[each['capability']] for each in capabilities
                  if each['capability'] in _FEATURES))


@functools.lru_cache(maxsize=8)
def _ask_file(path: str, inode: int, changed_ns: int) -> _Qemu:
    """Run a QEMU without a machine and ask it.

    It runs as the user of nova-compute, opens no file or network and may not
    start anything.

    :param inode: with ``changed_ns`` only there to tell a QEMU from the one
        that an update puts in its place
    :raises: OSError, ProcessExecutionError, ValueError, KeyError
    """
    commands = ('qmp_capabilities', *_QUESTIONS, 'quit')
    output, _ = processutils.execute(
        'timeout', '--kill-after=1', str(_ASK_TIMEOUT_S), path,
        '-machine', 'none', '-S', '-no-user-config', '-nodefaults',
        '-display', 'none', '-qmp', 'stdio',
        '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,'
                    'resourcecontrol=deny',
        process_input=''.join(
            json.dumps({'execute': command, 'id': command}) + '\n'
            for command in commands))
    answers = {message['id']: message['return']
               for message in map(json.loads, output.splitlines())
               if 'return' in message}
    return _parse(*(answers[question] for question in _QUESTIONS))


def _installed(path: str) -> _Qemu | None:
    """The patched QEMU at a path; None if there is none or it is broken."""
    try:
        status = os.stat(path)
        found = _ask_file(path, status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        return None
    except (OSError, processutils.ProcessExecutionError, ValueError,
            KeyError) as error:
        LOG.warning('Cannot ask the QEMU of [fastmig]emulator = %s what it '
                    'has, so it is not used: %s', path, error)
        return None
    if not found.series:
        LOG.warning('The QEMU of [fastmig]emulator = %s is not a patched one, '
                    'so it is not used', path)
        return None
    return found


def _running(guest) -> _Qemu:
    """Ask the QEMU process of a guest, which may be older than its file.

    :raises: libvirt.libvirtError, ValueError, KeyError
    """
    return _parse(*(qmp.execute(guest._domain, question)
                    for question in _QUESTIONS))


def _version(number: int) -> tuple[int, int, int]:
    """libvirt's 1000000 * major + 1000 * minor + micro, taken apart."""
    return number // 1000000, number // 1000 % 1000, number % 1000


def _default_emulator(host) -> str:
    """What libvirt starts a guest on whose XML names no emulator."""
    return etree.fromstring(host.get_connection().getDomainCapabilities(
        None, host.get_capabilities().host.cpu.arch, None,
        CONF.libvirt.virt_type, 0)).findtext('./path') or ''


def patched_emulator() -> str | None:
    """Path of the patched QEMU for tagged guests that start on this host."""
    path = CONF.fastmig.emulator
    return path if path and _installed(path) else None


def traits() -> dict[str, bool]:
    """Whether this host has each of the traits that this package knows."""
    return {TRAIT: True, TRAIT_QEMU: patched_emulator() is not None}


def read(host, name: str, guest=None) -> model.HostCaps:
    """Ask this host what it can do.

    :param host: nova.virt.libvirt.host.Host
    :param name: the host's name in Nova
    :param guest: nova.virt.libvirt.guest.Guest whose QEMU counts; without one
        it is the QEMU that a tagged guest would run on here
    :raises: libvirt.libvirtError
    """
    connection = host.get_connection()
    emulator = _default_emulator(host)
    qemu = _Qemu(_version(connection.getVersion()), '', frozenset())
    patched = CONF.fastmig.emulator
    if guest is None:
        found = _installed(patched) if patched else None
        if found:
            emulator, qemu = patched, found
    else:
        own = etree.fromstring(guest.get_xml_desc()).findtext(
            './devices/emulator')
        # libvirt notes on a guest that somebody used its monitor, so leave
        # those alone that run on the distribution's QEMU.
        if own and (own != emulator or own == patched):
            emulator = own
            try:
                qemu = _running(guest)
            except (libvirt.libvirtError, ValueError, KeyError) as error:
                LOG.warning('Cannot ask the QEMU of %s what it has, so it '
                            'counts as not patched: %s', guest.name, error)
    return model.HostCaps(
        host=name,
        emulator=emulator,
        qemu_version=qemu.version,
        qemu_series=qemu.series,
        qemu_features=qemu.features if qemu.series else frozenset(),
        libvirt_version=_version(connection.getLibVersion()),
        driver_version=OWN_VERSION,
        native_tls=CONF.libvirt.live_migration_with_native_tls,
        emulates=CONF.libvirt.virt_type == 'qemu')


def free_pages(host, sizes_kib: ty.Collection[int]) -> dict[int, list[int]]:
    """The free pages of each NUMA node, by their size.

    :param sizes_kib: the sizes to ask for
    :raises: libvirt.libvirtError
    """
    topology = host.get_capabilities().host.topology
    there = host.get_connection().getFreePages(
        sorted(sizes_kib), 0, len(topology.cells) if topology else 1)
    return {size_kib: [of_node.get(size_kib, 0)
                       for of_node in there.values()]
            for size_kib in sizes_kib}


def to_stats(caps: model.HostCaps) -> dict[str, str]:
    """What this host's nova-compute reports, for the peers to plan with."""
    return {
        _DRIVER: '1',
        _EMULATOR: caps.emulator,
        _QEMU_VERSION: '.'.join(map(str, caps.qemu_version)),
        _QEMU_SERIES: caps.qemu_series,
        _QEMU_FEATURES: ' '.join(sorted(caps.qemu_features)),
        _LIBVIRT_VERSION: '.'.join(map(str, caps.libvirt_version)),
        _DRIVER_VERSION: caps.driver_version,
        _NATIVE_TLS: '' if caps.native_tls is None else str(caps.native_tls),
    }


def _numbers(text: str | None) -> tuple[int, int, int]:
    major, minor, micro = map(int, (text or '0.0.0').split('.'))
    return major, minor, micro


def from_stats(name: str, stats: ty.Mapping[str, str]) -> \
        model.HostCaps | None:
    """Read what ``to_stats`` of another host wrote.

    A newer driver may know features that this one does not.

    :returns: None for a host with another driver
    :raises: ValueError
    """
    if stats.get(_DRIVER) != '1':
        return None
    return model.HostCaps(
        host=name,
        emulator=stats.get(_EMULATOR) or '',
        qemu_version=_numbers(stats.get(_QEMU_VERSION)),
        qemu_series=stats.get(_QEMU_SERIES) or '',
        qemu_features=frozenset(
            _FEATURES[each]
            for each in (stats.get(_QEMU_FEATURES) or '').split()
            if each in _FEATURES),
        libvirt_version=_numbers(stats.get(_LIBVIRT_VERSION)),
        driver_version=stats.get(_DRIVER_VERSION) or '',
        native_tls={'True': True, 'False': False}.get(
            stats.get(_NATIVE_TLS) or ''))


def peer(context, name: str) -> model.HostCaps | None:
    """What another host's driver has reported about a tagged guest there.

    :returns: None if it runs another driver, also where it cannot be told
    """
    try:
        node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
            context, name)
        return from_stats(name, node.stats or {})
    except Exception as error:
        LOG.warning('Cannot tell whether host %s runs FastMigDriver: %s',
                    name, error)
        return None


# Nova's event for the check of a destination, which has its host's name.
_DESTINATION_CHECK = 'compute_check_can_live_migrate_destination'


def who_asks(context, instance_uuid: str) -> str | None:
    """The destination whose check the check at this source is a part of.

    Nova does not say it to the source, but each check is an event of the
    action, and they come one after the other.

    :returns: None if it cannot be told
    """
    try:
        action = objects.InstanceAction.get_by_request_id(
            context, instance_uuid, context.request_id)
        # The newest one first.
        for event in objects.InstanceActionEventList.get_by_action(
                context, action.id):
            if event.event == _DESTINATION_CHECK:
                return event.host
    except Exception as error:
        LOG.warning('Cannot tell which destination asks about server %s: %s',
                    instance_uuid, error)
    return None
