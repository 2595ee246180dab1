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

"""What the operator's commands ask libvirt on this host.

nova-compute has its own connection; these commands do not disturb it.
"""

from collections.abc import Mapping
import time
import uuid

import libvirt
from lxml import etree
from nova.virt.libvirt import config as nova_config

from nova_fastmig import exception

PAGE_SAMPLING = 'page-sampling'
# virDomainStartDirtyRateCalc's ways to measure.
DIRTY_RATE_MODES = {
    PAGE_SAMPLING: 'VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING',
    'dirty-bitmap': 'VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_BITMAP',
    'dirty-ring': 'VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_RING',
}

# Beyond the period of the measurement.
_PATIENCE_S = 30
_POLL_S = 0.2
_MIB = 1 << 20


class NotMeasured(exception.FastMigError):
    """libvirt has not measured what it was asked to."""


class Host:
    """This host, with as much of Nova's ``Host`` as is needed to ask it.

    :param uri: of libvirt
    :raises: libvirt.libvirtError
    """

    def __init__(self, uri: str):
        # Or libvirt also prints every error to stderr.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        # Not read-only: libvirt would then not tell about emulators.
        self._connection = libvirt.open(uri)

    def get_connection(self):
        return self._connection

    def get_capabilities(self) -> nova_config.LibvirtConfigCaps:
        caps = nova_config.LibvirtConfigCaps()
        caps.parse_str(self._connection.getCapabilities())
        return caps

    def domain(self, server: str):
        """The domain of a server.

        :param server: UUID of the server, or the domain's name in libvirt
        :raises: libvirt.libvirtError if it is not on this host
        """
        try:
            uuid.UUID(server)
        except ValueError:
            return self._connection.lookupByName(server)
        return self._connection.lookupByUUIDString(server)

    def close(self) -> None:
        self._connection.close()


def extra_specs(domain) -> Mapping[str, str]:
    """Those of the server's flavor, from Nova's metadata in the domain."""
    return {
        spec.get('name'): spec.text or ''
        for spec in etree.fromstring(domain.XMLDesc()).iterfind(
            './metadata/nova:instance/nova:flavor/nova:extraSpecs/'
            'nova:extraSpec', namespaces={'nova': nova_config.NOVA_NS})}


def memory_bytes(domain) -> int:
    """What the guest has now, populated or not."""
    _, _, memory_kib, *_ = domain.info()
    return memory_kib * 1024


def dirty_rate_bytes_per_s(host: Host, domain, seconds: int,
                           mode: str) -> int:
    """Measure what the guest dirties; takes ``seconds``.

    A page counts once, however often the guest writes to it in that time. So
    a longer measurement gives a lower rate for a guest that writes to the same
    pages again and again, as pre-copy with longer passes would see it.

    :param mode: one of DIRTY_RATE_MODES
    :raises: libvirt.libvirtError, NotMeasured
    """
    if mode != PAGE_SAMPLING and etree.fromstring(
            domain.XMLDesc()).get('type') == 'qemu':
        # QEMU reads KVM's log of dirty pages, which is empty then.
        raise NotMeasured(
            f'{domain.name()} is emulated, for which QEMU can only measure '
            f'the dirty rate by {PAGE_SAMPLING}')
    domain.startDirtyRateCalc(seconds, getattr(libvirt,
                                               DIRTY_RATE_MODES[mode]))
    deadline_s = time.monotonic() + seconds + _PATIENCE_S
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        (_, stats), = host.get_connection().domainListGetStats(
            [domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)
        if (stats.get('dirtyrate.calc_status') ==
                libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED):
            return stats['dirtyrate.megabytes_per_second'] * _MIB
    raise NotMeasured(
        f'libvirt has not measured the dirty rate of {domain.name()} '
        f'{_PATIENCE_S} s after the {seconds} s that it should take; its '
        f'last answer: {stats}')
