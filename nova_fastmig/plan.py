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

"""Sla and HostCaps -> Plan, or the reasons why there is none. Pure."""

from nova_fastmig import exception
from nova_fastmig import model

# multifd and post-copy exclude each other before this release of QEMU
# (migrate_caps_check() in migration/options.c).
MULTIFD_WITH_POST_COPY = (10, 1, 0)

# Never of use to an NFV guest: auto-converge takes CPU time from a guest that
# must keep forwarding; compression (XBZRLE, multi-thread) costs more CPU time
# than the network it saves.
_ALWAYS_CLEAR = frozenset({'AUTO_CONVERGE', 'COMPRESSED'})


def _version(version: tuple[int, int, int]) -> str:
    return '.'.join(map(str, version))


def refusals(sla: model.Sla, host: model.HostCaps,
             transport: model.TransportSettings) -> list[str]:
    """Why a host cannot take part in a migration with this SLA.

    :param host: the source or the destination
    :param transport: the settings of the same host
    :returns: one sentence each, naming what is missing and where; empty if
        nothing is in the way
    """
    reasons = []
    if sla.qemu is model.QemuChoice.PATCHED and not host.patched_qemu:
        reasons.append(
            f'the flavor asks for fastmig:qemu = patched, but the QEMU '
            f'{_version(host.qemu_version)} of host {host.host} is not '
            f'patched')
    if transport.tunnelled:
        reasons.append(
            f'[libvirt]live_migration_tunnelled is set on host {host.host}; '
            f'a tunnelled stream cannot meet a downtime limit')
    if sla.on_miss is model.OnMiss.POST_COPY:
        if not transport.post_copy_permitted:
            reasons.append(
                f'the flavor asks for fastmig:on_miss = post-copy, but '
                f'[libvirt]live_migration_permit_post_copy is off on host '
                f'{host.host}')
        if (sla.parallel_connections > 1 and
                host.qemu_version < MULTIFD_WITH_POST_COPY):
            reasons.append(
                f'the flavor asks for fastmig:on_miss = post-copy with '
                f'fastmig:parallel_connections = {sla.parallel_connections}, '
                f'which needs QEMU {_version(MULTIFD_WITH_POST_COPY)}; host '
                f'{host.host} has {_version(host.qemu_version)}')
    return reasons


def make(sla: model.Sla, source: model.HostCaps,
         transport: model.TransportSettings,
         destination_defines_arrivals: bool) -> model.Plan:
    """Decide everything that can be decided before the migration starts.

    :param destination_defines_arrivals: the destination's driver makes the
        guest persistent, so libvirt need not
    :raises: PlanRefused with every reason found
    """
    reasons = refusals(sla, source, transport)
    if reasons:
        raise exception.PlanRefused(reasons)

    set_flags = set()
    clear_flags = set(_ALWAYS_CLEAR)
    # PERSIST_DEST makes libvirt write the domain's configuration to disk
    # (with fsync) while the guest stands still.
    if destination_defines_arrivals:
        clear_flags.add('PERSIST_DEST')
    (set_flags if sla.parallel_connections > 1 else clear_flags).add(
        'PARALLEL')
    # Where it is wanted Nova has set it, or the plan was refused above.
    if sla.on_miss is not model.OnMiss.POST_COPY:
        clear_flags.add('POSTCOPY')
    return model.Plan(
        sla=sla,
        source=source,
        downtime_limit_ms=sla.max_downtime_ms,
        total_limit_ms=sla.max_total_ms,
        parallel_connections=sla.parallel_connections,
        set_flags=frozenset(set_flags),
        clear_flags=frozenset(clear_flags))
