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

"""The values that travel through one migration.

Extra specs -> Sla -> Plan -> Decisions -> SlaReport. All of them
are frozen; the unit of a number is in its name.
"""

import dataclasses
import enum


class OnMiss(enum.StrEnum):
    """What to do when the total time runs out before the switchover."""

    ABORT = 'abort'
    PROCEED = 'proceed'
    POST_COPY = 'post-copy'


class QemuChoice(enum.StrEnum):
    """Which QEMU a flavor insists on."""

    ANY = 'any'
    PATCHED = 'patched'


class QemuFeature(enum.StrEnum):
    """What the patched QEMU can do to make a blackout short.

    The values are its migration capabilities; ``x-measure-*`` are for
    measurements only and not here.
    """

    TCP_NODELAY = 'x-tcp-nodelay'
    DRAINED_SWITCHOVER = 'x-drained-switchover'
    DIRECT_SWITCHOVER = 'x-direct-switchover'
    EARLY_RESUME = 'x-early-resume'
    SKIP_UNPOPULATED = 'x-skip-unpopulated'
    OVERLAP_DEVICE_STATE = 'x-overlap-device-state'
    SINGLE_MEMORY_TRANSACTION = 'x-single-memory-transaction'
    DEFER_SWITCHOVER_WORK = 'x-defer-switchover-work'
    REPORT_BLACKOUT = 'x-report-blackout'
    EARLY_ANNOUNCE = 'x-early-announce'


class Obstacle(enum.StrEnum):
    """What in a guest keeps its migration from being bounded.

    The values are those of ``[fastmig]permitted_obstacles``.
    """

    PASSTHROUGH = 'passthrough'
    BLOCK_MIGRATION = 'block-migration'


# The two QEMUs agree on these, and go on without one that a side lacks.
NEGOTIATED_FEATURES = frozenset({
    QemuFeature.EARLY_RESUME, QemuFeature.SKIP_UNPOPULATED,
    QemuFeature.REPORT_BLACKOUT, QemuFeature.EARLY_ANNOUNCE})


@dataclasses.dataclass(frozen=True)
class Range:
    """Inclusive bounds of an integer."""

    lowest: int
    highest: int

    def __contains__(self, value: int) -> bool:
        return self.lowest <= value <= self.highest

    def __str__(self) -> str:
        return f'{self.lowest} to {self.highest}'


@dataclasses.dataclass(frozen=True)
class Sla:
    """What a flavor asks of a migration.

    :ivar max_downtime_ms: the guest may stand still for at most this long
    :ivar max_total_ms: from libvirt's start of the migration to its end
    :ivar on_miss: when ``max_total_ms`` runs out before the switchover
    :ivar parallel_connections: multifd channels; 1 is a single stream
    :ivar qemu: whether the project's patched QEMU is required
    """

    max_downtime_ms: int
    max_total_ms: int
    on_miss: OnMiss
    parallel_connections: int
    qemu: QemuChoice


@dataclasses.dataclass(frozen=True)
class SlaSettings:
    """Defaults and hard bounds of the operator, from ``[fastmig]``.

    :ivar default: taken for every key that a tagged flavor leaves out
    """

    default: Sla
    max_downtime_ms: Range
    max_total_ms: Range
    parallel_connections: Range


@dataclasses.dataclass(frozen=True)
class TransportSettings:
    """What Nova's ``[libvirt]`` group says about migrations.

    :ivar tunnelled: ``live_migration_tunnelled``
    :ivar post_copy_permitted: ``live_migration_permit_post_copy``
    :ivar older_qemu_permitted: ``[workarounds]
        skip_hypervisor_version_check_on_lm``
    """

    tunnelled: bool
    post_copy_permitted: bool
    older_qemu_permitted: bool = False


@dataclasses.dataclass(frozen=True)
class HostCaps:
    """What a compute host can do for a tagged guest.

    :ivar host: its name, for messages
    :ivar emulator: path of the QEMU that the guest runs on, or would run on
        after its arrival
    :ivar qemu_version: (major, minor, micro) of that QEMU
    :ivar qemu_series: name and revision of the project's patches in it; empty
        for a QEMU without them
    :ivar qemu_features: those of the series that this QEMU has
    :ivar libvirt_version: (major, minor, micro)
    :ivar driver_version: of this package there; empty if it is not known
    :ivar native_tls: Nova's ``[libvirt]live_migration_with_native_tls``; None
        if it is not known
    :ivar emulates: its guests run without KVM
    """

    host: str
    emulator: str
    qemu_version: tuple[int, int, int]
    qemu_series: str
    qemu_features: frozenset[QemuFeature]
    libvirt_version: tuple[int, int, int]
    driver_version: str = ''
    native_tls: bool | None = None
    emulates: bool = False

    @property
    def patched_qemu(self) -> bool:
        return bool(self.qemu_series)


@dataclasses.dataclass(frozen=True)
class FeaturePlan:
    """Which features of the patched QEMU a migration uses.

    :ivar source: to be switched on at the source
    :ivar destination: to be switched on at the destination
    :ivar unused: the reason for each feature that is used on neither side
    """

    source: frozenset[QemuFeature] = frozenset()
    destination: frozenset[QemuFeature] = frozenset()
    unused: tuple[tuple[QemuFeature, str], ...] = ()

    @property
    def used(self) -> frozenset[QemuFeature]:
        return self.source | self.destination


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What to expect of the next migration between two hosts.

    :ivar fixed_ms: the part of its blackout that does not depend on memory;
        most migrations did not exceed it
    :ivar bandwidth_bytes_per_s: that memory will be sent with
    :ivar count: of migrations behind it
    :ivar least_fixed_ms: the same part as in the best of them
    """

    fixed_ms: float
    bandwidth_bytes_per_s: float
    count: int
    least_fixed_ms: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one migration will be done; everything is decided before it starts.

    :ivar source: what the guest runs on
    :ivar destination: None if that host's driver says nothing of itself
    :ivar destination_emulator: path for the destination's XML; empty for
        the one that libvirt takes by itself
    :ivar downtime_limit_ms: QEMU's ``downtime-limit``
    :ivar total_limit_ms: the deadline, from libvirt's start
    :ivar switchover_limit_ms: a guest that stands still for longer, in a
        switchover that has not finished, resumes at the source
    :ivar set_flags: names of ``VIR_MIGRATE_*`` flags to add to Nova's
    :ivar clear_flags: names of ``VIR_MIGRATE_*`` flags to take from Nova's
    :ivar expected: what ``downtime_limit_ms`` was made from; None if nothing
        is known
    :ivar bandwidth_limit_mib_s: what is reserved for it; None where nothing
        is reserved
    :ivar concessions: why the limits cannot be vouched for, where the operator
        permits that
    :ivar is_trial: by what is known it will miss its SLA; it is done to see
        whether that is still so
    :ivar switchover_bandwidth_mib_s: that QEMU is told to expect for the
        switchover; None leaves it to QEMU's own estimate
    """

    sla: Sla
    source: HostCaps
    destination: HostCaps | None
    destination_emulator: str
    qemu_features: FeaturePlan
    downtime_limit_ms: int
    total_limit_ms: int
    switchover_limit_ms: int
    parallel_connections: int
    set_flags: frozenset[str]
    clear_flags: frozenset[str]
    expected: Estimate | None = None
    bandwidth_limit_mib_s: int | None = None
    concessions: tuple[str, ...] = ()
    is_trial: bool = False
    switchover_bandwidth_mib_s: int | None = None


class Action(enum.StrEnum):
    CONTINUE = 'continue'
    ABORT = 'abort'
    POST_COPY = 'post-copy'


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do now, and why."""

    action: Action
    reason: str


class Outcome(enum.StrEnum):
    """How a migration ended."""

    COMPLETED = 'completed'
    ABORTED = 'aborted'
    FAILED = 'failed'
    REFUSED = 'refused'


@dataclasses.dataclass(frozen=True)
class Blackout:
    """How long the guest stood still, as the two QEMUs measured it.

    Milliseconds after the source was asked to stop the vCPUs, all on the
    source's clock; None for what the destination did not tell.

    :ivar stopped_ms: the vCPUs had stopped
    :ivar pages_sent_ms: the last pages were on their way
    :ivar devices_sent_ms: the device state was on its way
    :ivar pages_loaded_ms: the destination had loaded the last pages
    :ivar devices_loaded_ms: the destination had loaded the device state
    :ivar resumed_ms: the destination had started the vCPUs by itself; None if
        libvirt did it
    :ivar clock_error_ms: how wrong the destination's times may be, because
        of the difference of the hosts' clocks
    :ivar clock_offset_ms: that difference: the destination's clock less the
        source's; None if QEMU did not tell
    """

    stopped_ms: float
    pages_sent_ms: float
    devices_sent_ms: float
    pages_loaded_ms: float | None
    devices_loaded_ms: float | None
    resumed_ms: float | None
    clock_error_ms: float
    clock_offset_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Moment:
    """Something that a QEMU has said of itself.

    :ivar name: ``stop`` or ``resume``, of the guest; or its migration's status
    :ivar at_us: QEMU's own time, in microseconds since the epoch
    """

    name: str
    at_us: int


@dataclasses.dataclass(frozen=True)
class BlackoutParts:
    """What a blackout was spent on, in milliseconds; None for the unknown.

    :ivar qemu_stop_ms: until the vCPUs had stopped and QEMU was ready for the
        rest; from the order, or without the patched QEMU from the stop
    :ivar last_pages_ms: sending what remained of the memory
    :ivar device_state_ms: sending the state of the devices
    :ivar destination_load_ms: from there until the destination had loaded it
    :ivar transfer_ms: these three together; all that an ordinary QEMU tells
    :ivar libvirt_handover_ms: QEMU waited for libvirt, before the last pages
        and after everything was loaded; without the patched QEMU the start of
        the vCPUs is in it
    :ivar resume_ms: until the destination's QEMU had started the vCPUs by
        itself
    :ivar clock_offset_ms: the destination's clock less the source's; None
        where no time of the destination's is in the parts
    :ivar clock_error_ms: how wrong that may be
    """

    qemu_stop_ms: float | None = None
    last_pages_ms: float | None = None
    device_state_ms: float | None = None
    destination_load_ms: float | None = None
    transfer_ms: float | None = None
    libvirt_handover_ms: float | None = None
    resume_ms: float | None = None
    clock_offset_ms: float | None = None
    clock_error_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class NovaTimes:
    """What a migration spent outside of libvirt, in milliseconds.

    None of it is in the total. None is for the unknown.

    :ivar before_ms: from the request to libvirt's start: in Nova's checks, its
        queue and its steps; in whole seconds, as Nova's database has the
        request's time
    :ivar waited_ms: part of that, waiting for bandwidth
    :ivar after_ms: Nova's steps after libvirt's end
    """

    before_ms: int | None
    waited_ms: int
    after_ms: int | None


@dataclasses.dataclass(frozen=True)
class Completed:
    """The end of a migration, as libvirt, QEMU and the driver saw it.

    :ivar reason: why it did not complete; empty when it did
    :ivar downtime_ms: libvirt's figure; None where it gave none
    :ivar total_ms: libvirt's figure; None where it gave none
    :ivar blackout: QEMU's figures; None where it gave none
    :ivar agreed_features: what the two QEMUs agreed on; None if not known
    :ivar bandwidth_bytes_per_s: libvirt's figure, over the whole migration;
        None where it gave none
    :ivar resumed_by_qemu: the destination's QEMU has started the vCPUs by
        itself, before libvirt did; None if not known
    :ivar moments: what the source's QEMU has said, in the order in which it
        came; None if it could not be heard
    """

    outcome: Outcome
    reason: str
    downtime_ms: int | None
    total_ms: int | None
    blackout: Blackout | None = None
    agreed_features: frozenset[QemuFeature] | None = None
    bandwidth_bytes_per_s: int | None = None
    resumed_by_qemu: bool | None = None
    moments: tuple[Moment, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """The network's part of a blackout.

    :ivar blackout_ms: for how long the destination's ports did not forward
        when the guest ran there: 0 if they were seen to be wired before the
        migration began; None if nobody knows
    :ivar reason: what was seen there, or why nothing was
    :ivar activation_ms: from the end of the switchover at the source until
        Neutron had bound the ports to the destination; None if Nova's post
        step had to do that
    """

    blackout_ms: float | None
    reason: str
    activation_ms: float | None


class Verdict(enum.StrEnum):
    MET = 'met'
    MISSED = 'missed'
    UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One limit of the SLA against what was measured.

    :ivar measured_ms: None where nothing was measured
    :ivar measured_by: where the figure comes from
    """

    limit_ms: int
    measured_ms: int | None
    measured_by: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class SlaReport:
    """What happened to one migration, judged against its SLA.

    :ivar reason: why it did not complete, and the concessions of the plan;
        empty if there is neither
    :ivar verdict: UNKNOWN unless the migration completed
    :ivar decisions: every decision that was not simply to go on
    :ivar downtime_libvirt_ms: libvirt's figure, whatever was judged
    :ivar blackout: QEMU's figures, if there are any
    :ivar qemu_features: those of the patched QEMU that were in force
    :ivar unused_features: why the others were not
    :ivar downtime_limit_ms: what QEMU got; None if there was no plan
    :ivar expected: what that was made from; None if nothing was known
    :ivar parts: what the blackout was spent on, if anything is known of that
    :ivar source_pause_ms: for how long a guest that did not move stood still
        at the source; None if it moved or that is not known
    :ivar nova: what was spent outside of libvirt; None if it was not begun
    :ivar network: what the network added to the blackout; None if the guest
        has not moved
    :ivar flavor: the name of the server's flavor
    """

    instance_uuid: str
    source: str
    destination: str
    outcome: Outcome
    reason: str
    downtime: Judgement
    total: Judgement
    verdict: Verdict
    decisions: tuple[Decision, ...]
    downtime_libvirt_ms: int | None = None
    blackout: Blackout | None = None
    qemu_features: tuple[QemuFeature, ...] = ()
    unused_features: tuple[tuple[QemuFeature, str], ...] = ()
    downtime_limit_ms: int | None = None
    expected: Estimate | None = None
    parts: BlackoutParts | None = None
    source_pause_ms: float | None = None
    nova: NovaTimes | None = None
    network: Network | None = None
    flavor: str = ''
