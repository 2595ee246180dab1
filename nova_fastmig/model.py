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
    """

    tunnelled: bool
    post_copy_permitted: bool


@dataclasses.dataclass(frozen=True)
class HostCaps:
    """What a compute host can do.

    :ivar host: its name, for messages
    :ivar qemu_version: (major, minor, micro)
    :ivar libvirt_version: (major, minor, micro)
    :ivar patched_qemu: the emulator is the project's patched QEMU
    """

    host: str
    qemu_version: tuple[int, int, int]
    libvirt_version: tuple[int, int, int]
    patched_qemu: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one migration will be done; everything is decided before it starts.

    :ivar downtime_limit_ms: QEMU's ``downtime-limit``
    :ivar total_limit_ms: the deadline, from libvirt's start
    :ivar set_flags: names of ``VIR_MIGRATE_*`` flags to add to Nova's
    :ivar clear_flags: names of ``VIR_MIGRATE_*`` flags to take from Nova's
    """

    sla: Sla
    source: HostCaps
    downtime_limit_ms: int
    total_limit_ms: int
    parallel_connections: int
    set_flags: frozenset[str]
    clear_flags: frozenset[str]


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
class Completed:
    """The end of a migration, as libvirt and the driver saw it.

    :ivar reason: why it did not complete; empty when it did
    :ivar downtime_ms: libvirt's figure; None where it gave none
    :ivar total_ms: libvirt's figure; None where it gave none
    """

    outcome: Outcome
    reason: str
    downtime_ms: int | None
    total_ms: int | None


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

    :ivar verdict: UNKNOWN unless the migration completed
    :ivar decisions: every decision that was not simply to go on
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
