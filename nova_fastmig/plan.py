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

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import enum
import math

from nova_fastmig import exception
from nova_fastmig import model

# multifd and post-copy exclude each other before this release of QEMU
# (migrate_caps_check() in migration/options.c).
MULTIFD_WITH_POST_COPY = (10, 1, 0)
# avail-switchover-bandwidth: QEMU 8.2, and libvirt 11.1 passes it on.
SWITCHOVER_BANDWIDTH_QEMU = (8, 2, 0)
SWITCHOVER_BANDWIDTH_LIBVIRT = (11, 1, 0)
# Guests that were migrated with QEMU 7.2 under TCG had corrupt memory.
SOUND_UNDER_TCG = (8, 0, 0)

# Never of use to an NFV guest: auto-converge takes CPU time from a guest that
# must keep forwarding; compression (XBZRLE, multi-thread) costs more CPU time
# than the network it saves.
_ALWAYS_CLEAR = frozenset({'AUTO_CONVERGE', 'COMPRESSED'})


# A switchover is given up when it has lasted this many times what the flavor
# allows, but not before the shortest time that tells one that hangs from one
# that a busy host delays.
SWITCHOVER_FACTOR = 20
SHORTEST_SWITCHOVER_LIMIT_MS = 2000
# More than this QEMU's x-switchover-timeout does not take.
LONGEST_SWITCHOVER_LIMIT_MS = 2_000_000


_MIB = 1 << 20


class _Needs(enum.Enum):
    """Where a feature must be for a migration to have its use."""

    SOURCE = enum.auto()
    DESTINATION = enum.auto()
    # Each side changes its own behaviour only.
    EITHER = enum.auto()
    # The two QEMUs agree on it, and go on without it if one does not have it.
    BOTH = enum.auto()


_NEEDS = {
    model.QemuFeature.TCP_NODELAY: _Needs.EITHER,
    model.QemuFeature.DRAINED_SWITCHOVER: _Needs.SOURCE,
    model.QemuFeature.DIRECT_SWITCHOVER: _Needs.SOURCE,
    model.QemuFeature.EARLY_RESUME: _Needs.BOTH,
    model.QemuFeature.SKIP_UNPOPULATED: _Needs.BOTH,
    model.QemuFeature.OVERLAP_DEVICE_STATE: _Needs.SOURCE,
    model.QemuFeature.SINGLE_MEMORY_TRANSACTION: _Needs.DESTINATION,
    model.QemuFeature.DEFER_SWITCHOVER_WORK: _Needs.EITHER,
    model.QemuFeature.REPORT_BLACKOUT: _Needs.BOTH,
    model.QemuFeature.EARLY_ANNOUNCE: _Needs.BOTH,
}


def _version(version: tuple[int, int, int]) -> str:
    return '.'.join(map(str, version))


def _not_patched(sla: model.Sla, host: model.HostCaps) -> list[str]:
    if sla.qemu is not model.QemuChoice.PATCHED or host.patched_qemu:
        return []
    return [f'the flavor asks for fastmig:qemu = patched, but the QEMU '
            f'{_version(host.qemu_version)} of host {host.host} '
            f'({host.emulator}) is not patched']


def refusals(sla: model.Sla, host: model.HostCaps,
             transport: model.TransportSettings) -> list[str]:
    """Why a host cannot take part in a migration with this SLA.

    :param host: the source or the destination
    :param transport: the settings of the same host
    :returns: one sentence each, naming what is missing and where; empty if
        nothing is in the way
    """
    reasons = _not_patched(sla, host)
    if host.emulates and host.qemu_version < SOUND_UNDER_TCG:
        reasons.append(
            f'host {host.host} emulates its guests with QEMU '
            f'{_version(host.qemu_version)}, which loses memory in a '
            f'migration; {_version(SOUND_UNDER_TCG)} does not')
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


def lacking_pages(host: str, cells: Sequence[tuple[int, int]],
                  free: Mapping[int, Sequence[int]]) -> list[str]:
    """Why a guest's hugepages do not fit what is free on a host now.

    Nova's claim counts the pages that it has given away itself. A page that
    anything else has taken is missing only when QEMU starts there.

    :param cells: page size in KiB and number of pages of each NUMA cell of
        the guest; each cell needs a node of the host for itself
    :param free: pages on each node of the host, by page size in KiB
    """
    for size_kib in sorted({size_kib for size_kib, _ in cells}):
        wanted = sorted((pages for each_kib, pages in cells
                         if each_kib == size_kib), reverse=True)
        there = sorted(free.get(size_kib, ()), reverse=True)
        there += [0] * (len(wanted) - len(there))
        # The largest one into the fullest node: if that does not do, nothing
        # does.
        for pages, left in zip(wanted, there, strict=False):
            if pages > left:
                return [f'the guest needs {pages} free hugepages of '
                        f'{size_kib} KiB on a NUMA node of host {host}, but '
                        f'{left} are free']
    return []


def obstacles(host: str, passthrough: Sequence[str],
              block_migration: bool) -> list[tuple[model.Obstacle, str]]:
    """What in a guest keeps its migration from being bounded, and why.

    :param host: name of the source
    :param passthrough: a description of each device of the host in the guest
    :param block_migration: disks are copied with the memory
    """
    # Short: Nova keeps 255 characters of a failed check, half of them its own.
    found = [(model.Obstacle.PASSTHROUGH,
              f'the guest has {device} of host {host}')
             for device in passthrough]
    if block_migration:
        found.append((model.Obstacle.BLOCK_MIGRATION,
                      f'the guest has disks on host {host} that are not '
                      f'shared'))
    return found


def not_permitted(found: Sequence[tuple[model.Obstacle, str]],
                  permitted: Collection[model.Obstacle]) -> list[str]:
    """The obstacles that refuse a migration, each with the way out."""
    return [f"{reason} ('{obstacle}' is not in [fastmig]permitted_obstacles)"
            for obstacle, reason in found if obstacle not in permitted]


def choose_features(
        source: model.HostCaps, destination: model.HostCaps | None,
        wanted: Collection[model.QemuFeature]) -> model.FeaturePlan:
    """Decide which features of the patched QEMU a migration uses.

    :param destination: None if it is not known what it has
    :param wanted: those that the operator allows
    """
    at_source, at_destination, unused = set(), set(), []
    there = destination.qemu_features if destination else frozenset()
    for feature, needs in _NEEDS.items():
        lacks_source = feature not in source.qemu_features
        lacks_destination = feature not in there
        match needs:
            case _Needs.SOURCE:
                possible = not lacks_source
                lacks_destination = False
            case _Needs.DESTINATION:
                possible = not lacks_destination
                lacks_source = False
            case _Needs.BOTH:
                possible = not (lacks_source or lacks_destination)
            case _:  # EITHER
                possible = not (lacks_source and lacks_destination)
        if feature not in wanted:
            unused.append((feature, 'not in [fastmig]qemu_features'))
        elif not possible:
            lacking = ' and '.join(
                host.host if host else 'the destination, which runs another '
                                       'driver,'
                for host, lacks in ((source, lacks_source),
                                    (destination, lacks_destination))
                if lacks)
            unused.append((feature, f'the QEMU of {lacking} does not have it'))
        else:
            if needs is not _Needs.DESTINATION and not lacks_source:
                at_source.add(feature)
            if needs is not _Needs.SOURCE and not lacks_destination:
                at_destination.add(feature)
    return model.FeaturePlan(frozenset(at_source), frozenset(at_destination),
                             tuple(unused))


def _destination_emulator(source: model.HostCaps,
                          destination: model.HostCaps | None) -> str:
    if destination is not None:
        return destination.emulator
    # What Nova's own driver there would have in the XML is what the source
    # has, unless that is the patched QEMU.
    return '' if source.patched_qemu else source.emulator


def _do_not_fit(source: model.HostCaps, destination: model.HostCaps,
                transport: model.TransportSettings) -> list[str]:
    """Why a guest cannot move between two hosts although each is fit."""
    reasons = []
    tls = {source.native_tls: source.host,
           destination.native_tls: destination.host}
    if {True, False} <= tls.keys():
        reasons.append(
            f'[libvirt]live_migration_with_native_tls is on on host '
            f'{tls[True]} and off on host {tls[False]}')
    # A guest's machine type is one of a minor release. Nova compares the
    # QEMUs that libvirt takes by itself.
    if ((source.patched_qemu or destination.patched_qemu) and
            destination.qemu_version[:2] < source.qemu_version[:2] and
            not transport.older_qemu_permitted):
        reasons.append(
            f'the guest runs on QEMU {_version(source.qemu_version)} of host '
            f'{source.host}, but host {destination.host} has '
            f'{_version(destination.qemu_version)} '
            f'({destination.emulator})')
    return reasons


def why_hopeless(max_downtime_ms: int, source: str, destination: str,
                  expected: model.Estimate | None) -> str:
    """Why not even the best migrations would have met this downtime.

    :param source: the host's name, like ``destination``
    :returns: empty for one that can be
    """
    # QEMU takes whole milliseconds, and none means none at all.
    if expected is None or max_downtime_ms - expected.least_fixed_ms >= 1:
        return ''
    # Short: Nova keeps 255 characters of a failed check.
    return (f'the flavor allows a downtime of {max_downtime_ms} ms, but from '
            f'host {source} to host {destination} '
            f'{expected.least_fixed_ms:.1f} ms do not depend on memory '
            f'(learned from {expected.count} migrations)')


def downtime_limit_ms(max_downtime_ms: int,
                      expected: model.Estimate | None) -> int:
    """The limit for QEMU: the SLA without the fixed part of the blackout.

    :param expected: None leaves the SLA as it is
    """
    if expected is None:
        return max_downtime_ms
    return max(1, math.floor(max_downtime_ms - expected.fixed_ms))


def _switchover_bandwidth_mib_s(
        source: model.HostCaps, configured_mib_s: int,
        expected: model.Estimate | None,
        reserved_mib_s: int | None) -> int | None:
    """What QEMU is told to expect, where it can be told.

    :param configured_mib_s: the operator's; 0 takes what was learned
    """
    if (source.libvirt_version < SWITCHOVER_BANDWIDTH_LIBVIRT or
            source.qemu_version < SWITCHOVER_BANDWIDTH_QEMU):
        return None
    if configured_mib_s:
        return configured_mib_s
    if expected is None:
        return None
    # What is above a reservation can be gone when it is needed.
    return max(1, min(math.floor(expected.bandwidth_bytes_per_s / _MIB),
                      reserved_mib_s or math.inf))


def switchover_limit_ms(max_downtime_ms: int, configured_ms: int) -> int:
    """How long a guest may stand still in a switchover that hangs.

    :param configured_ms: 0 leaves it to this function
    """
    limit_ms = configured_ms or max(SHORTEST_SWITCHOVER_LIMIT_MS,
                                    SWITCHOVER_FACTOR * max_downtime_ms)
    return min(max(limit_ms, max_downtime_ms), LONGEST_SWITCHOVER_LIMIT_MS)


def make(sla: model.Sla, source: model.HostCaps,
         destination: model.HostCaps | None,
         transport: model.TransportSettings,
         wanted_features: Collection[model.QemuFeature],
         expected: model.Estimate | None = None,
         bandwidth_limit_mib_s: int | None = None,
         switchover_timeout_ms: int = 0,
         found: Sequence[tuple[model.Obstacle, str]] = (),
         permitted: Collection[model.Obstacle] = (),
         is_trial_due: bool = False,
         switchover_bandwidth_mib_s: int = 0) -> model.Plan:
    """Decide everything that can be decided before the migration starts.

    :param destination: what its driver says of itself; None if that is not
        this driver
    :param transport: the settings of the source
    :param wanted_features: the features of the patched QEMU that the operator
        allows
    :param expected: what earlier migrations between these hosts teach; None
        if nothing is known, as with a destination that is not this driver
    :param bandwidth_limit_mib_s: what is reserved; None if nothing is
    :param switchover_timeout_ms: the operator's; 0 for a multiple of what the
        flavor allows
    :param found: what ``obstacles`` has found
    :param permitted: what the operator permits of it
    :param is_trial_due: do one that is without hope nevertheless
    :param switchover_bandwidth_mib_s: the operator's; 0 takes what was
        learned
    :raises: PlanRefused with every reason found
    """
    reasons = refusals(sla, source, transport)
    reasons += not_permitted(found, permitted)
    if destination is not None:
        reasons += _not_patched(sla, destination)
    elif sla.qemu is model.QemuChoice.PATCHED:
        reasons.append(
            'the flavor asks for fastmig:qemu = patched, but the destination '
            'runs another driver, which does not start guests on it')
    hopeless = ''
    if destination is None:
        expected = None
    else:
        reasons += _do_not_fit(source, destination, transport)
        hopeless = why_hopeless(sla.max_downtime_ms, source.host,
                                 destination.host, expected)
    if hopeless and not is_trial_due:
        reasons.append(hopeless)
    if reasons:
        raise exception.PlanRefused(reasons)

    set_flags = set()
    clear_flags = set(_ALWAYS_CLEAR)
    # PERSIST_DEST makes libvirt write the domain's configuration to disk
    # (with fsync) while the guest stands still. This driver makes arriving
    # guests persistent itself.
    if destination is not None:
        clear_flags.add('PERSIST_DEST')
    (set_flags if sla.parallel_connections > 1 else clear_flags).add(
        'PARALLEL')
    # Where it is wanted Nova has set it, or the plan was refused above.
    if sla.on_miss is not model.OnMiss.POST_COPY:
        clear_flags.add('POSTCOPY')
    return model.Plan(
        sla=sla,
        source=source,
        destination=destination,
        destination_emulator=_destination_emulator(source, destination),
        qemu_features=choose_features(source, destination, wanted_features),
        downtime_limit_ms=downtime_limit_ms(sla.max_downtime_ms, expected),
        total_limit_ms=sla.max_total_ms,
        switchover_limit_ms=switchover_limit_ms(
            sla.max_downtime_ms, switchover_timeout_ms),
        parallel_connections=sla.parallel_connections,
        set_flags=frozenset(set_flags),
        clear_flags=frozenset(clear_flags),
        expected=expected,
        bandwidth_limit_mib_s=bandwidth_limit_mib_s,
        concessions=(
            *(f'no limit is certain, because {reason}'
              for _, reason in found),
            *([f'a trial, because {hopeless}'] if hopeless else [])),
        is_trial=bool(hopeless),
        switchover_bandwidth_mib_s=_switchover_bandwidth_mib_s(
            source, switchover_bandwidth_mib_s, expected,
            bandwidth_limit_mib_s))
