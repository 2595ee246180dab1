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

"""What is compared with what, and what one migration gave.

A *contender* is one way to migrate a guest, a *workload* what the guest does
meanwhile; both together are a *scenario*. A *comparison* is a list of
scenarios that take turns, and *results* is what a file has: the comparison,
the machine, and one *run* per migration. Names are made of the fields, so
that they cannot say anything else.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import enum
import types
import typing as ty

from nova_fastmig import exception

VERSION = 1
# Around the blackout, a packet sent this much too late says more about the
# machine than about the migration.
MAX_STALL_MS = 5
# the machine's ordinary pages first
PAGE_SIZES_KIB = (4, 2048)


class BadResults(exception.FastMigError):
    """A file of results that this program cannot read."""


class Control(enum.StrEnum):
    """Who is asked to migrate."""

    NOVA = 'nova'
    LIBVIRT = 'libvirt'
    QEMU = 'qemu'


class Driver(enum.StrEnum):
    """Nova's compute driver."""

    STOCK = 'stock'
    FASTMIG = 'fastmig'


class Qemu(enum.StrEnum):
    DISTRIBUTION = 'distribution'
    PATCHED = 'patched'


class Option(enum.StrEnum):
    """What a migration may use beside plain pre-copy.

    The last three undo, in the patched QEMU, what OPNFV's document of 2016
    proposed and QEMU has had since then: (a) cleaning up after the guest
    runs again, (b) looking for zero pages with AVX2, (c) reading the vCPUs'
    state once.
    """

    POST_COPY = 'post-copy'
    AUTO_CONVERGE = 'auto-converge'
    PARALLEL = 'parallel'
    XBZRLE = 'xbzrle'
    MULTIFD_ZLIB = 'multifd-zlib'
    MULTIFD_ZSTD = 'multifd-zstd'
    RDMA = 'rdma'
    WITHOUT_A = 'without-a'
    WITHOUT_B = 'without-b'
    WITHOUT_C = 'without-c'


class DataPlane(enum.StrEnum):
    """What forwards packets in the guest."""

    KERNEL = 'kernel'
    DPDK = 'dpdk'


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to migrate a guest.

    :ivar driver: Nova's; None where Nova is not asked
    :ivar features: of the patched QEMU: ``('all',)``, names, or none
    :ivar schedule: who chooses the downtime limit, see ``schedules.NAMES``;
        ``fixed`` leaves it at ``downtime_limit_ms`` throughout
    :ivar downtime_limit_ms: that the migration starts with; None where the
        schedule sets it
    """

    control: Control
    qemu: Qemu = Qemu.DISTRIBUTION
    driver: Driver | None = None
    features: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    schedule: str = 'fixed'
    downtime_limit_ms: int | None = None

    def __post_init__(self):
        if (self.control == Control.NOVA) != (self.driver is not None):
            raise ValueError(
                f'control {self.control}, driver {self.driver}: a driver is '
                f'what Nova has, and only Nova')
        if self.features and self.qemu != Qemu.PATCHED:
            raise ValueError(
                f'features {", ".join(self.features)} with the '
                f'{self.qemu} QEMU: only the patched one has any')
        if (self.schedule == 'fixed') != (self.downtime_limit_ms is not None):
            raise ValueError(
                f'schedule {self.schedule}, downtime_limit_ms '
                f'{self.downtime_limit_ms}: a fixed limit is given here, any '
                f'other by its schedule')

    @property
    def name(self) -> str:
        """Such as ``nova-stock@distribution+post-copy~nova-500-10-75``."""
        name = f'{self.control}-{self.driver}' if self.driver else self.control
        name += f'@{self.qemu}'
        if self.features and self.features != ('all',):
            name += '[' + ','.join(self.features) + ']'
        elif self.qemu == Qemu.PATCHED and not self.features:
            name += '[none]'
        name += ''.join(f'+{option}' for option in self.options)
        return name + '~' + (
            f'{self.downtime_limit_ms}ms' if self.schedule == 'fixed' else
            self.schedule)


@dataclasses.dataclass(frozen=True)
class Guest:
    """What is booted; several workloads may run on one.

    :ivar page_kib: of the host's pages that its memory consists of
    """

    memory_mib: int = 256
    vcpus: int = 1
    data_plane: DataPlane = DataPlane.KERNEL
    # that the guest has written to at its start, and that it rewrites where
    # the workload says nothing else
    working_set_mib: int = 64
    page_kib: int = PAGE_SIZES_KIB[0]

    def __post_init__(self):
        if self.page_kib not in PAGE_SIZES_KIB:
            raise ValueError(
                f'page_kib {self.page_kib}: must be one of '
                f'{", ".join(map(str, PAGE_SIZES_KIB))}')
        if self.memory_mib * 1024 % self.page_kib:
            raise ValueError(
                f'memory_mib {self.memory_mib}, page_kib {self.page_kib}: '
                f'the memory must be a number of whole pages')

    @property
    def touched_mib(self) -> int:
        """At most so much memory it has on a host; with ordinary pages.

        Its system touches some of it and describes all of it: with 256 MiB a
        QEMU grew to 205 MiB, with 8 GiB to 501.
        """
        return min(self.memory_mib, 512 + self.memory_mib // 16)

    @property
    def hugepages(self) -> int:
        """How many; 0 with ordinary pages."""
        if self.page_kib == PAGE_SIZES_KIB[0]:
            return 0
        return self.memory_mib * 1024 // self.page_kib

    @property
    def name(self) -> str:
        name = (f'{self.data_plane}-{self.memory_mib}MiB-{self.vcpus}vcpu-'
                f'{self.working_set_mib}MiB')
        return name + (f'-{self.page_kib}KiBpages' if self.hugepages else '')


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the guest does while it is migrated.

    :ivar kind: ``idle``, ``l2fwd``, ``dirty`` or ``block-io``, and
        ``-hugepages`` with these; what it is called in charts
    :ivar packets_per_s: of the generator outside, each of which the guest
        sends back: this is how a blackout is seen, so idle guests get them too
    :ivar rewrite_mib_per_s: how fast the guest rewrites its working set
    :ivar working_set_mib: how much that is; None: what the guest has
    :ivar disk_mib_per_s: how fast it reads, verifies and writes its disk
    """

    kind: str
    guest: Guest
    packets_per_s: int = 1000
    rewrite_mib_per_s: int = 0
    working_set_mib: int | None = None
    disk_mib_per_s: int = 0

    def __post_init__(self):
        most_mib = self.guest.memory_mib // 2
        if self.working_set_mib is not None and (
                self.guest.data_plane == DataPlane.DPDK or
                not 1 <= self.working_set_mib <= most_mib):
            raise ValueError(
                f'working_set_mib {self.working_set_mib}: must be from 1 to '
                f'{most_mib}, half of the memory, of a guest whose data plane '
                f'is {DataPlane.KERNEL}')
        if self.disk_mib_per_s and self.guest.data_plane == DataPlane.DPDK:
            raise ValueError(
                f'disk_mib_per_s {self.disk_mib_per_s} with the data plane '
                f'{self.guest.data_plane}: that guest has no disk')

    @property
    def rewritten_mib(self) -> int:
        """Of the guest's memory."""
        return (self.guest.working_set_mib if self.working_set_mib is None
                else self.working_set_mib)

    @property
    def name(self) -> str:
        name = (f'{self.kind}-{self.guest.name}-{self.rewrite_mib_per_s}MiBps-'
                f'{self.packets_per_s}pps')
        if self.working_set_mib is not None:
            name += f'-of{self.working_set_mib}MiB'
        return name + (f'-disk{self.disk_mib_per_s}MiBps'
                       if self.disk_mib_per_s else '')


@dataclasses.dataclass(frozen=True)
class Scenario:
    contender: Contender
    workload: Workload

    @property
    def name(self) -> str:
        return f'{self.contender.name}/{self.workload.name}'


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """Which migration of a comparison; unique within it."""

    round: int
    scenario: str
    number: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one guest goes through before another contender has its turn."""

    round: int
    contender: Contender
    guest: Guest
    # in the order in which they are migrated
    migrations: tuple[tuple[Key, Workload], ...]

    @property
    def name(self) -> str:
        """Of the contender with this guest, whatever the round."""
        return f'{self.contender.name}/{self.guest.name}'

    def sides(self, hosts: tuple[str, str]) -> tuple[str, str]:
        """Where the guest is booted, and the other host."""
        return hosts if self.round % 2 == 0 else hosts[::-1]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scenarios that take turns.

    :ivar rounds: how often each has its turn
    :ivar migrations: of each scenario in one turn
    """

    name: str
    scenarios: tuple[Scenario, ...]
    rounds: int = 3
    migrations: int = 2

    def turns(self) -> Iterator[Turn]:
        """All turns in their order.

        A guest is booted for each contender and goes through all of its
        workloads, by turns and back and forth, so that each is migrated in
        both directions; in every second round it begins at the other host.
        Each round begins with another contender, and every second one goes
        backwards: what a machine does as time goes by meets all of them.
        Guests of one data plane are together in a round, as the hosts'
        switches are set up for it.
        """
        grouped: dict[tuple[Contender, Guest], list[Workload]] = {}
        for each in self.scenarios:
            grouped.setdefault((each.contender, each.workload.guest),
                               []).append(each.workload)
        pairs = list(grouped)
        for number in range(self.rounds):
            first = number % len(pairs)
            ordered = pairs[first:] + pairs[:first]
            if number % 2:
                ordered[1:] = ordered[:0:-1]
            begun = ordered[0][1].data_plane
            ordered.sort(key=lambda pair: pair[1].data_plane != begun)
            for contender, guest in ordered:
                yield self._turn(number, contender, guest,
                                 grouped[contender, guest])

    def _turn(self, number: int, contender: Contender, guest: Guest,
              workloads: list[Workload]) -> Turn:
        migrations = []
        for again in range(self.migrations):
            for workload in workloads if again % 2 == 0 else workloads[::-1]:
                migrations.append((
                    Key(number, Scenario(contender, workload).name, again),
                    workload))
        return Turn(number, contender, guest, tuple(migrations))

    def remaining(self, done: Iterable[Key]) -> Iterator[Turn]:
        """The turns without what is done; empty ones are left out."""
        done = set(done)
        for turn in self.turns():
            left = tuple(each for each in turn.migrations
                         if each[0] not in done)
            if left:
                yield dataclasses.replace(turn, migrations=left)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What came of the packets that were sent in one phase.

    :ivar longest_loss_ms: longest run of packets that never came back
    :ivar latency_p50_ms: None, as the others, if none came back
    :ivar rewritten_mib_per_s: what the guest got done of its rewriting; None
        if it does not tell
    """

    packets_sent: int
    packets_lost: int
    packets_duplicated: int
    packets_reordered: int
    longest_loss_ms: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    latency_max_ms: float | None
    rewritten_mib_per_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one migration gave; None for what nobody told.

    :ivar blackout_ms: longest run of packets that never came back
    :ivar gap_ms: longest time between two that came back
    :ivar before: the migration was asked for; ``after``: it was over for who
        asked
    :ivar downtime_qemu_ms: stop to resume, by the QEMUs' own clocks
    :ivar downtime_libvirt_ms: libvirt's figure, with its own work
    :ivar total_qemu_ms: from QEMU's setup of the migration to its end
    :ivar setup_ms: of it, until the first pass over memory begins
    :ivar first_pass_ms: of it, that pass
    :ivar further_passes_ms: of it, from there until the guest is stopped
    :ivar completion_ms: of it, from there
    :ivar post_copy: whether it went over to post-copy
    :ivar total_nova_ms: from the request to Nova's last step
    :ivar steps_ms: of the blackout, after the stop, as the patched QEMU tells
    :ivar bytes_sent: for the guest's memory
    :ivar cpu_source_ms: that the whole host used while the packets were sent,
        guest included
    :ivar cpu_window_ms: how long that was
    :ivar throttle_percent: the most that auto-converge took from the vCPUs
    :ivar rewritten_mib_per_s: what the guest got done of its rewriting while
        it was watched
    :ivar disk_mib_per_s: that it read from its disk, and as much that it wrote
    """

    blackout_ms: float | None = None
    gap_ms: float | None = None
    packets_sent: int | None = None
    packets_lost: int | None = None
    packets_duplicated: int | None = None
    packets_reordered: int | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_max_ms: float | None = None
    before: Phase | None = None
    during: Phase | None = None
    after: Phase | None = None
    downtime_qemu_ms: float | None = None
    downtime_libvirt_ms: float | None = None
    total_qemu_ms: float | None = None
    setup_ms: float | None = None
    first_pass_ms: float | None = None
    further_passes_ms: float | None = None
    completion_ms: float | None = None
    total_libvirt_ms: float | None = None
    total_nova_ms: float | None = None
    post_gap_ms: float | None = None
    steps_ms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bytes_sent: int | None = None
    iterations: int | None = None
    post_copy: bool | None = None
    cpu_source_ms: float | None = None
    cpu_destination_ms: float | None = None
    cpu_window_ms: float | None = None
    throttle_percent: int | None = None
    rewritten_mib_per_s: float | None = None
    disk_mib_per_s: float | None = None

    @property
    def total_ms(self) -> float | None:
        """Of the innermost layer that has one, so that all can be compared."""
        for total in (self.total_qemu_ms, self.total_libvirt_ms,
                      self.total_nova_ms):
            if total is not None:
                return total
        return None


@dataclasses.dataclass(frozen=True)
class Run:
    """One migration.

    :ivar time: when it was asked for, ISO 8601
    :ivar failures: what was not as it has to be, as sentences
    :ivar probe_stall_ms: how late the generator was around the blackout:
        how wrong the figures may be
    """

    key: Key
    time: str
    source: str
    figures: Figures
    failures: tuple[str, ...] = ()
    probe_stall_ms: float = 0
    # downtime limits that the schedule set, as (ms after the start, limit)
    limits_ms: tuple[tuple[float, int], ...] = ()

    @property
    def stalled(self) -> bool:
        """The generator itself was held up: the figures say too little."""
        return self.probe_stall_ms > MAX_STALL_MS

    @property
    def counted(self) -> bool:
        """Its figures are part of what is said about its scenario."""
        return not self.failures and not self.stalled


@dataclasses.dataclass(frozen=True)
class Results:
    """What a file of results has.

    :ivar machine: what it was measured on, and versions
    :ivar command: that made it
    :ivar not_run: name of a contender -> why it could not be run here
    """

    comparison: Comparison
    machine: Mapping[str, ty.Any]
    command: str
    runs: tuple[Run, ...] = ()
    not_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    @property
    def done(self) -> set[Key]:
        return {run.key for run in self.runs}

    def of(self, scenario: str) -> list[Run]:
        """The runs of a scenario, by its name."""
        return [run for run in self.runs if run.key.scenario == scenario]

    def to_json(self) -> dict[str, ty.Any]:
        """What json.dump takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: ty.Any) -> 'Results':
        """What ``to_json`` gave.

        :raises: BadResults
        """
        version = data.get('version') if isinstance(data, dict) else None
        if version != VERSION:
            raise BadResults(f'version {version!r} of a file of results: this '
                             f'program reads version {VERSION}')
        return _decode(cls, data, 'results')


def _decode_fields(kind: type, data: ty.Any, where: str) -> ty.Any:
    if not isinstance(data, dict):
        raise BadResults(f'{where}: {data!r} is no object')
    hints = ty.get_type_hints(kind)
    unknown = data.keys() - hints.keys()
    if unknown:
        raise BadResults(f'{where}: unknown {", ".join(sorted(unknown))}; '
                         f'there are {", ".join(hints)}')
    try:
        return kind(**{name: _decode(hints[name], value, f'{where}.{name}')
                       for name, value in data.items()})
    except (TypeError, ValueError) as error:
        raise BadResults(f'{where}: {error}') from error


def _decode(kind: ty.Any, data: ty.Any, where: str) -> ty.Any:
    """A value of this type from what JSON made of it."""
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, data, where)
    if ty.get_origin(kind) in (ty.Union, types.UnionType):
        if data is None:
            return None
        kind = next(each for each in ty.get_args(kind)
                    if each is not types.NoneType)
        return _decode(kind, data, where)
    if ty.get_origin(kind) is tuple:
        members = ty.get_args(kind)
        if members[-1] is ...:
            members = members[:1] * len(data)
        return tuple(_decode(member, value, f'{where}[{number}]')
                     for number, (member, value)
                     in enumerate(zip(members, data, strict=True)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError as error:
            raise BadResults(f'{where}: {data!r} is not one of '
                             f'{", ".join(kind)}') from error
    return data
