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

"""Contenders, workloads and comparisons, as data. Pure.

``SEED`` has the figures of the document that the project starts from: OPNFV
KVM4NFV, "Fast Live Migration" (2016), an 8 GiB guest with 4 vCPUs on two
servers with 10 Gbit/s between them, with QEMU 2.4.
"""

from collections.abc import Iterable
import dataclasses

from nova_fastmig.bench import scenario
from nova_fastmig import exception
from nova_fastmig import model

Contender = scenario.Contender
Control, Driver, Option, Qemu = (
    scenario.Control, scenario.Driver, scenario.Option, scenario.Qemu)

# as Nova's [libvirt] has them by default, and the least that they may be
NOVA_DEFAULT = 'nova-500-10-75'
NOVA_TUNED = 'nova-100-3-3'
LIMIT_MS = 10


class UnknownName(exception.FastMigError):
    """A name that the catalog does not have."""


@dataclasses.dataclass(frozen=True)
class SeedFigures:
    """Milliseconds before and after the seed's three optimizations."""

    total_before_ms: int
    total_after_ms: int
    downtime_before_ms: int
    downtime_after_ms: int


SEED = {
    'idle': SeedFigures(2070, 401, 29, 9),
    'l2fwd': SeedFigures(2271, 654, 26, 5),
}


def _nova(*options: Option, schedule: str = NOVA_TUNED) -> Contender:
    return Contender(Control.NOVA, driver=Driver.STOCK, options=options,
                     schedule=schedule)


def _libvirt(*options: Option, schedule: str = 'fixed',
             qemu: Qemu = Qemu.DISTRIBUTION, features: tuple[str, ...] = ()
             ) -> Contender:
    return Contender(
        Control.LIBVIRT, qemu, features=features, options=options,
        schedule=schedule,
        downtime_limit_ms=LIMIT_MS if schedule == 'fixed' else None)


def _qemu(qemu: Qemu, *options: Option, features: tuple[str, ...] = ()
          ) -> Contender:
    return Contender(Control.QEMU, qemu, features=features, options=options,
                     downtime_limit_ms=LIMIT_MS)


def _fastmig(qemu: Qemu, *options: Option, features: tuple[str, ...] = ()
             ) -> Contender:
    return Contender(Control.NOVA, qemu, Driver.FASTMIG, features, options,
                     downtime_limit_ms=LIMIT_MS)


def _all_but(feature: model.QemuFeature) -> tuple[str, ...]:
    return tuple(str(each) for each in model.QemuFeature if each != feature)


# each of the patched QEMU's features alone, and all but each
_ALONE = {f'virsh-{feature}': _libvirt(qemu=Qemu.PATCHED,
                                       features=(str(feature),))
          for feature in model.QemuFeature}
_WITHOUT = {f'qemu-patched-parallel-without-{feature}': _qemu(
    Qemu.PATCHED, Option.PARALLEL, features=_all_but(feature))
            for feature in model.QemuFeature}
_UNDO = (Option.WITHOUT_A, Option.WITHOUT_B, Option.WITHOUT_C)

# What it is called on the command line and in charts -> what it is
CONTENDERS: dict[str, Contender] = {
    # Nova's own driver: as it comes, and as far as its options go
    'nova': _nova(schedule=NOVA_DEFAULT),
    'nova-tuned': _nova(),
    'nova-post-copy': _nova(Option.POST_COPY),
    'nova-auto-converge': _nova(Option.AUTO_CONVERGE),
    'nova-parallel': _nova(Option.PARALLEL),
    # this project
    'fastmig': _fastmig(Qemu.DISTRIBUTION),
    'fastmig-parallel': _fastmig(Qemu.DISTRIBUTION, Option.PARALLEL),
    'fastmig-patched': _fastmig(Qemu.PATCHED, features=('all',)),
    'fastmig-patched-parallel': _fastmig(Qemu.PATCHED, Option.PARALLEL,
                                         features=('all',)),
    # virsh migrate, with what shortens it
    'virsh': _libvirt(),
    'virsh-post-copy': _libvirt(Option.POST_COPY),
    'virsh-parallel': _libvirt(Option.PARALLEL),
    # the same on the patched QEMU: all of its features, each alone, none
    'virsh-patched': _libvirt(qemu=Qemu.PATCHED, features=('all',)),
    'virsh-patched-parallel': _libvirt(Option.PARALLEL, qemu=Qemu.PATCHED,
                                       features=('all',)),
    **_ALONE,
    'virsh-no-feature': _libvirt(qemu=Qemu.PATCHED),
    # other systems' schedules, on libvirt as those do it
    'ovirt': _libvirt(Option.AUTO_CONVERGE,
                      schedule='ovirt-minimal-downtime'),
    'ovirt-suspend': _libvirt(Option.AUTO_CONVERGE,
                              schedule='ovirt-suspend-workload'),
    'kubevirt': _libvirt(schedule='kubevirt'),
    # QMP, without libvirt; Proxmox's daemon speaks it, too
    'qemu': _qemu(Qemu.DISTRIBUTION),
    'proxmox': Contender(
        Control.QEMU, options=(Option.XBZRLE, Option.AUTO_CONVERGE),
        schedule='proxmox'),
    'qemu-parallel': _qemu(Qemu.DISTRIBUTION, Option.PARALLEL),
    'qemu-patched': _qemu(Qemu.PATCHED, features=('all',)),
    'qemu-patched-parallel': _qemu(Qemu.PATCHED, Option.PARALLEL,
                                   features=('all',)),
    # what a feature costs or saves of the total, two connections
    'qemu-no-feature-parallel': _qemu(Qemu.PATCHED, Option.PARALLEL),
    **_WITHOUT,
    # what the seed found wanting
    'xbzrle': _qemu(Qemu.DISTRIBUTION, Option.XBZRLE),
    'multifd-zlib': _qemu(Qemu.DISTRIBUTION, Option.MULTIFD_ZLIB),
    'multifd-zstd': _qemu(Qemu.DISTRIBUTION, Option.MULTIFD_ZSTD),
    'auto-converge': _qemu(Qemu.DISTRIBUTION, Option.AUTO_CONVERGE),
    'rdma': _qemu(Qemu.DISTRIBUTION, Option.RDMA),
    # what it proposed: in QEMU since then, and undone again in the patched one
    'seed-after': _qemu(Qemu.PATCHED),
    'seed-without-a': _qemu(Qemu.PATCHED, Option.WITHOUT_A),
    'seed-without-b': _qemu(Qemu.PATCHED, Option.WITHOUT_B),
    'seed-without-c': _qemu(Qemu.PATCHED, Option.WITHOUT_C),
    'seed-before': _qemu(Qemu.PATCHED, *_UNDO),
}
# the charts' "before" and "after", and the seed's own pair
BEFORE, AFTER = 'nova', 'fastmig-patched'

# What the guest's memory has in it is sent once; l2fwd's packet buffers go
# round all the time.
SMALL = scenario.Guest()
HUGEPAGES = scenario.Guest(page_kib=2048)
WORKLOADS: dict[str, scenario.Workload] = {
    'idle': scenario.Workload('idle', SMALL),
    'l2fwd': scenario.Workload('l2fwd', SMALL, rewrite_mib_per_s=32),
    **{f'dirty-{rate}': scenario.Workload(
        'dirty', SMALL, rewrite_mib_per_s=rate) for rate in (8, 64, 128, 256)},
    'dirty-64-of-16mib': scenario.Workload(
        'dirty', SMALL, rewrite_mib_per_s=64, working_set_mib=16),
    # on a guest of its own: what it has written to is sent in other workloads
    # afterwards, too
    'dirty-64-of-128mib': scenario.Workload(
        'dirty', scenario.Guest(memory_mib=512), rewrite_mib_per_s=64,
        working_set_mib=128),
    **{f'idle-{gib}gib': scenario.Workload('idle', scenario.Guest(
        memory_mib=gib * 1024)) for gib in (1, 2, 4, 8, 16)},
    'idle-hugepages': scenario.Workload('idle-hugepages', HUGEPAGES),
    'l2fwd-hugepages': scenario.Workload('l2fwd-hugepages', HUGEPAGES,
                                         rewrite_mib_per_s=32),
    'block-io': scenario.Workload('block-io', SMALL, disk_mib_per_s=8),
    'l2fwd-dpdk': scenario.Workload('l2fwd', scenario.Guest(
        memory_mib=512, data_plane=scenario.DataPlane.DPDK,
        working_set_mib=0, page_kib=2048)),
}


# the size of the guest is what they are about
SIZES = frozenset(name for name in WORKLOADS if name.endswith('gib'))


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a guest; None where it is as the catalog has it."""

    memory_mib: int | None = None
    vcpus: int | None = None


AS_IT_IS = Size()
SEED_SIZE = Size(8192, 4)
# for everything but guests
RESERVED_MIB, RESERVED_CORES = 4096, 2


def size_for(cores: int, memory_mib: int, guests: int) -> Size:
    """The seed's size where a host can have that.

    :param guests: that are on the host at once
    """
    if (cores >= guests * SEED_SIZE.vcpus + RESERVED_CORES and
            memory_mib >= guests * SEED_SIZE.memory_mib + RESERVED_MIB):
        return SEED_SIZE
    return AS_IT_IS


def _resized(name: str, size: Size) -> scenario.Workload:
    workload = WORKLOADS[name]
    changes = {field: value for field, value in
               dataclasses.asdict(size).items() if value is not None}
    if name in SIZES:
        changes.pop('memory_mib', None)
    return dataclasses.replace(workload, guest=dataclasses.replace(
        workload.guest, **changes))


def _workload_title(wanted: scenario.Workload) -> str | None:
    size = Size(wanted.guest.memory_mib, wanted.guest.vcpus)
    # a name with a size first, which no other size is called
    for name in sorted(WORKLOADS, key=lambda name: name not in SIZES):
        if _resized(name, size) == wanted:
            return name
    return None


def title(wanted: Contender | scenario.Workload) -> str:
    """What the catalog calls it; its own name if the catalog has none.

    A workload is the same with a guest of another size.
    """
    if isinstance(wanted, scenario.Workload):
        return _workload_title(wanted) or wanted.name
    return next((name for name, each in CONTENDERS.items()
                 if each == wanted), wanted.name)


def _chosen(what: str, names: Iterable[str], known: dict) -> list:
    for name in names:
        if name not in known:
            raise UnknownName(f'{what} {name!r}: must be one of '
                              f'{", ".join(known)}')
    return [known[name] for name in names]


def comparison(name: str, contenders: Iterable[str],
               workloads: Iterable[str], rounds: int, migrations: int,
               size: Size = AS_IT_IS) -> scenario.Comparison:
    """Each of these contenders with each of these workloads.

    :param size: of the guests, where it is not what the workload is about
    :raises: UnknownName
    """
    workloads = list(workloads)
    _chosen('workload', workloads, WORKLOADS)
    return scenario.Comparison(
        name, tuple(scenario.Scenario(contender, _resized(workload, size))
                    for contender in _chosen('contender', contenders,
                                             CONTENDERS)
                    for workload in workloads), rounds, migrations)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Names for ``comparison``."""

    contenders: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    migrations: int


# how the patched QEMU comes to its figures is a comparison of its own
_FEATURES = ('virsh-no-feature', *_ALONE)
_TOTAL = ('qemu-no-feature-parallel', *_WITHOUT)
_OF_THEIR_OWN = frozenset((*_FEATURES, *_TOTAL))

PRESETS: dict[str, Preset] = {
    # under five minutes, also where two cores emulate and are busy
    'quick': Preset(('nova', 'fastmig-patched', 'virsh', 'qemu-patched'),
                    ('idle', 'l2fwd'), 1, 1),
    'full': Preset(tuple(name for name in CONTENDERS
                         if name not in _OF_THEIR_OWN),
                   ('idle', 'l2fwd', 'l2fwd-dpdk'), 5, 4),
    'features': Preset(('virsh', *_FEATURES, 'virsh-patched'), ('idle',),
                       3, 10),
    'total': Preset(('qemu-parallel', 'multifd-zstd', 'qemu-patched-parallel',
                     *_TOTAL), ('idle', 'l2fwd'), 2, 5),
    # what runs on two given hosts
    'libvirt': Preset(tuple(
        name for name, each in CONTENDERS.items()
        if each.control == Control.LIBVIRT and name not in _OF_THEIR_OWN),
        ('idle', 'l2fwd'), 5, 4),
    # guestperf's question: what a size and a dirty rate cost
    'cost': Preset(('nova', 'fastmig', 'fastmig-patched', 'qemu',
                    'qemu-patched'),
                   ('idle', 'idle-1gib', 'idle-2gib', 'idle-4gib',
                    'idle-8gib', 'idle-16gib', 'dirty-8', 'dirty-64',
                    'dirty-128', 'dirty-64-of-16mib', 'dirty-64-of-128mib'),
                   2, 2),
}


def preset(name: str) -> scenario.Comparison:
    """A comparison by its name.

    :raises: UnknownName
    """
    chosen, = _chosen('comparison', [name], PRESETS)
    return comparison(name, chosen.contenders, chosen.workloads,
                      chosen.rounds, chosen.migrations)
