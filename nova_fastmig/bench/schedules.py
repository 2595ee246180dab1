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

"""How other systems choose the downtime limit of a migration.

Each is a function of what is seen of the migration, called again and again as
often as the system itself looks, and returns the limit to set, or None to
leave it. What other systems do beside it (where they abort, or go over to
post-copy) is in ``Decision`` too. The rules are those of these sources:

``nova-D-S-T``
    Nova, ``nova/virt/libvirt/migration.py``, ``downtime_steps`` and
    ``update_downtime``, with ``[libvirt]live_migration_downtime``,
    ``_downtime_steps``, ``_downtime_delay``
``ovirt-minimal-downtime``, ``ovirt-suspend-workload``
    the migration policies in ovirt-engine's
    ``packaging/dbscripts/upgrade/pre_upgrade/0000_config.sql``
    (``MigrationPolicies``), as vdsm's ``lib/vdsm/virt/migration.py``
    (``MonitorThread``) carries them out: an item is due when its limit is less
    than the number of passes over the memory since the start
``kubevirt``
    ``pkg/virt-launcher/virtwrap/live-migration-source.go``, ``tuneDowntime``,
    with its defaults and ``DefaultMigrationMaxDowntimeMs`` of
    ``pkg/virt-config/virt-config.go``
``proxmox``
    ``PVE/QemuMigrate.pm`` of qemu-server, ``phase2``, with
    ``migrate_downtime`` 0.1 of ``PVE/QemuServer.pm``
"""

from collections.abc import Callable
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is seen of a migration.

    :ivar elapsed_ms: since its start
    :ivar iteration: passes over the memory since its start, from 1 on
    :ivar remaining_bytes: still to be sent
    :ivar transferred_bytes: sent so far
    :ivar total_bytes: of the guest's memory
    """

    elapsed_ms: float
    iteration: int
    remaining_bytes: int
    transferred_bytes: int = 0
    total_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done now.

    :ivar downtime_limit_ms: to set; None: as it is
    :ivar abort: end the migration, the guest stays
    """

    downtime_limit_ms: int | None = None
    abort: bool = False


NOTHING = Decision()
# a function from everything seen so far, the newest last, to a Decision
Schedule = Callable[[list[Sample]], Decision]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A schedule and how it is used.

    :ivar initial_ms: the limit that the migration starts with
    :ivar interval_ms: how often the system looks
    """

    initial_ms: int
    interval_ms: int
    decide: Schedule


def _never(samples: list[Sample]) -> Decision:
    return NOTHING


def fixed(limit_ms: int) -> Rule:
    return Rule(limit_ms, 500, _never)


# ---- Nova -------------------------------------------------------------------

def nova_steps(downtime_ms: int, steps: int,
               delay_s: int, data_gib: int) -> list[tuple[int, int]]:
    """(seconds after the start, limit in ms) of each step.

    :param data_gib: memory and disks that move, rounded up; at least 2
    """
    delay_s *= max(data_gib, 2)
    base_ms = downtime_ms / steps
    increment_ms = (downtime_ms - base_ms) / steps
    return [(delay_s * number, int(base_ms + increment_ms * number))
            for number in range(steps + 1)]


def _nova(downtime_ms: int, steps: int, delay_s: int) -> Rule:
    first_ms = int(downtime_ms / steps)

    def decide(samples: list[Sample]) -> Decision:
        total_bytes = samples[-1].total_bytes
        gib = -(-total_bytes // 2**30)
        limits = [limit_ms for after_s, limit_ms in nova_steps(
            downtime_ms, steps, delay_s, gib)
            if samples[-1].elapsed_ms >= after_s * 1000]
        return Decision(limits[-1])

    return Rule(first_ms, 500, decide)


# ---- oVirt ------------------------------------------------------------------

_OVIRT_STALLING = ((1, 150), (2, 200), (3, 300), (4, 400), (6, 500))


def _ovirt(last: tuple[Decision, ...]) -> Rule:
    items = tuple((limit, Decision(downtime_ms))
                  for limit, downtime_ms in _OVIRT_STALLING)
    # vdsm puts no limit to the last items: each is due with the next pass
    items += tuple((-1, decision) for decision in last)

    def decide(samples: list[Sample]) -> Decision:
        """Replays the passes: one item at most becomes due with each."""
        first = previous = samples[0].iteration
        left, due = list(items), NOTHING
        for sample in samples:
            due = NOTHING
            if sample.iteration > previous:
                previous = sample.iteration
                if left and left[0][0] < previous - first:
                    due = left.pop(0)[1]
        return due

    # [vars]migration_monitor_interval: a second
    return Rule(100, 1000, decide)


# ---- KubeVirt ---------------------------------------------------------------

_KUBEVIRT_INITIAL_MS = 150
_KUBEVIRT_MAX_MS = 900
_KUBEVIRT_STEPS = 7
_KUBEVIRT_START_AFTER_ITERATION = 3
_KUBEVIRT_COOLDOWN_MS = 10_000
_KUBEVIRT_INTERVAL_MS = 400


def kubevirt(samples: list[Sample]) -> Decision:
    """Downtime tuning: one seventh of the way more, every ten seconds."""
    step_ms = (_KUBEVIRT_MAX_MS - _KUBEVIRT_INITIAL_MS) // _KUBEVIRT_STEPS
    limit_ms, tuned_at_ms, decision = _KUBEVIRT_INITIAL_MS, 0.0, NOTHING
    for sample in samples:
        decision = NOTHING
        if sample.iteration < _KUBEVIRT_START_AFTER_ITERATION:
            continue
        if sample.elapsed_ms - tuned_at_ms < _KUBEVIRT_COOLDOWN_MS:
            continue
        if limit_ms == _KUBEVIRT_MAX_MS:
            continue
        limit_ms = min(limit_ms + step_ms, _KUBEVIRT_MAX_MS)
        tuned_at_ms, decision = sample.elapsed_ms, Decision(limit_ms)
    return decision


# ---- Proxmox ----------------------------------------------------------------

_PROXMOX_INITIAL_MS = 100
_PROXMOX_STALLS = 5


def proxmox(samples: list[Sample]) -> Decision:
    """Twice as much whenever the rest has grown more than five times."""
    limit_ms, stalls, decision = _PROXMOX_INITIAL_MS, 0, NOTHING
    remaining_bytes = None
    transferred_bytes = 0
    for sample in samples:
        decision = NOTHING
        # it looks at nothing else while nothing is transferred
        if sample.transferred_bytes == transferred_bytes:
            continue
        transferred_bytes = sample.transferred_bytes
        if sample.remaining_bytes == 0 or (
                remaining_bytes and sample.remaining_bytes > remaining_bytes):
            stalls += 1
        remaining_bytes = sample.remaining_bytes
        if stalls > _PROXMOX_STALLS:
            stalls, limit_ms = 0, limit_ms * 2
            decision = Decision(limit_ms)
    return decision


# It looks every second, and every tenth of one near the end: the latter, as
# migrations are short here.
_PROXMOX_INTERVAL_MS = 100

_RULES = {
    'ovirt-minimal-downtime': _ovirt((Decision(abort=True),)),
    'ovirt-suspend-workload': _ovirt((Decision(5000), Decision(abort=True))),
    'kubevirt': Rule(_KUBEVIRT_INITIAL_MS, _KUBEVIRT_INTERVAL_MS, kubevirt),
    'proxmox': Rule(_PROXMOX_INITIAL_MS, _PROXMOX_INTERVAL_MS, proxmox),
}
NAMES = ('fixed', 'nova-DOWNTIME-STEPS-DELAY', *_RULES)


def rule(name: str, downtime_limit_ms: int | None = None) -> Rule:
    """The rule of this name.

    :param downtime_limit_ms: for ``fixed``
    :raises: ValueError
    """
    if name == 'fixed' and downtime_limit_ms is not None:
        return fixed(downtime_limit_ms)
    nova = re.fullmatch(r'nova-([1-9]\d*)-([1-9]\d*)-(\d+)', name)
    if nova:
        return _nova(*map(int, nova.groups()))
    if name not in _RULES:
        raise ValueError(f'schedule {name!r}: must be one of '
                         f'{", ".join(NAMES)}')
    return _RULES[name]
