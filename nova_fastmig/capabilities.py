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

"""libvirt and QEMU of this host -> HostCaps."""

import re

from lxml import etree
from nova import objects
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

from nova_fastmig import model

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

# What the build of the patched QEMU puts into its version string
# (./configure --with-pkgversion).
PATCHED_MARK = 'nova-fastmig'

# Added to the resources that nova-compute reports. Nova keeps it among the
# compute node's stats for as long as this driver reports it, so a host that
# goes back to Nova's own driver loses it.
ADVERTISEMENT = {'fastmig_driver': '1'}

_PACKAGE = re.compile(r'QEMU emulator version \S+ \((?P<package>.*)\)')


def _version(number: int) -> tuple[int, int, int]:
    """libvirt's 1000000 * major + 1000 * minor + micro, taken apart."""
    return number // 1000000, number // 1000 % 1000, number % 1000


def is_patched(version_text: str) -> bool:
    """Whether ``qemu-system-x86_64 --version`` speaks of the patched QEMU."""
    match = _PACKAGE.search(version_text)
    return match is not None and PATCHED_MARK in match['package']


def _asked_patched(emulator: str | None) -> bool:
    if not emulator:
        return False
    try:
        version_text, _ = processutils.execute(emulator, '--version')
    except (OSError, processutils.ProcessExecutionError) as error:
        LOG.warning('Cannot ask the emulator %s for its version, so it counts '
                    'as not patched: %s', emulator, error)
        return False
    return is_patched(version_text)


def read(host, name: str, guest=None) -> model.HostCaps:
    """Ask this host what it can do.

    :param host: nova.virt.libvirt.host.Host
    :param name: the host's name in Nova
    :param guest: nova.virt.libvirt.guest.Guest whose emulator counts; without
        one it is the emulator that libvirt would start a new guest on
    :raises: libvirt.libvirtError
    """
    connection = host.get_connection()
    if guest is not None:
        emulator = etree.fromstring(guest.get_xml_desc()).findtext(
            './devices/emulator')
    else:
        emulator = etree.fromstring(connection.getDomainCapabilities(
            None, host.get_capabilities().host.cpu.arch, None,
            CONF.libvirt.virt_type, 0)).findtext('./path')
    return model.HostCaps(
        host=name,
        qemu_version=_version(connection.getVersion()),
        libvirt_version=_version(connection.getLibVersion()),
        patched_qemu=_asked_patched(emulator))


def defines_arrivals(context, host_name: str) -> bool:
    """Whether another host's driver makes arriving guests persistent.

    :returns: False also where it cannot be told
    """
    try:
        node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
            context, host_name)
    except Exception as error:
        LOG.warning('Cannot tell whether host %s runs FastMigDriver: %s',
                    host_name, error)
        return False
    return ADVERTISEMENT.items() <= (node.stats or {}).items()
