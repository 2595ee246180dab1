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

"""One migration of a tagged guest, from request to report."""

import collections
import contextlib
import math
import os
import time
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import migration as nova_migration
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_fastmig import blackout
from nova_fastmig import calibration
from nova_fastmig import calibration_store
from nova_fastmig import capabilities
from nova_fastmig import conf
from nova_fastmig import exception
from nova_fastmig import guest as fast_guest
from nova_fastmig import interrupted
from nova_fastmig import ledger
from nova_fastmig import model
from nova_fastmig import plan
from nova_fastmig import policy
from nova_fastmig import ports
from nova_fastmig import progress
from nova_fastmig import report
from nova_fastmig import request
from nova_fastmig import reservation
from nova_fastmig import sinks
from nova_fastmig import watch

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

# How long to wait, after Nova's post step, for libvirt's statistics of a
# finished migration. They come within 0.3 s; without them the verdict is
# "unknown".
_COMPLETED_STATS_TIMEOUT_S = 5

# How long to wait for QEMU's event that a guest goes on at the source.
_RESUME_TIMEOUT_S = 1

# How long to wait for a libvirt that was lost, to see where the guest is. Its
# daemon is back in seconds if something restarts it.
_RECONNECT_TIMEOUT_S = 60

# From the check at the destination until the migration gets there, and beyond
# the times in which it must have begun and be over. Who comes later asks
# again.
_ARRIVAL_SLACK_S = 60

_MIB = 1 << 20

# What Nova sets when post-copy has begun.
_POST_COPY_STATUS = 'running (post-copy)'


def _sla(instance) -> model.Sla | None:
    return request.parse(instance.flavor.extra_specs or {},
                         conf.sla_settings(CONF))


def _is_tagged(instance) -> bool:
    """Whether the migration of this guest is ours; an invalid tag is not."""
    try:
        return _sla(instance) is not None
    except exception.FastMigError:
        return False


def _needed_mib_s(instance, sla: model.Sla) -> int:
    """Bandwidth to be reserved; libvirt limits it in whole MiB/s."""
    return math.ceil(ledger.needed_bytes_per_s(
        instance.flavor.memory_mb * _MIB, sla.max_total_ms) / _MIB)


def _begins_s() -> float:
    """When libvirt has a guest at the latest, from Nova's preparation on.

    The ports are waited for here, and then at the source, where the migration
    waits for bandwidth after that. This host's settings stand for the
    source's.
    """
    return (_ARRIVAL_SLACK_S + CONF.fastmig.port_wiring_timeout_s +
            CONF.vif_plugging_timeout +
            CONF.fastmig.migration_bandwidth_wait_s)


def _lasts_s(instance, sla: model.Sla) -> float:
    """When a migration is over at the latest, from libvirt's start."""
    total_s = sla.max_total_ms / 1000
    if sla.on_miss is not model.OnMiss.ABORT:
        total_s = max(
            total_s, CONF.libvirt.live_migration_completion_timeout *
            max(2, instance.flavor.memory_mb / 1024) or math.inf)
    return _ARRIVAL_SLACK_S + total_s


def choose_emulator(instance, domain_xml: str) -> str:
    """Put a tagged guest on the patched QEMU, where this host has it.

    :returns: the domain's XML
    """
    try:
        sla = _sla(instance)
    except exception.FastMigError as error:
        # It is no reason to keep a server from starting; a migration is
        # refused because of it.
        LOG.warning('%s', error, instance=instance)
        return domain_xml
    if sla is None:
        return domain_xml
    emulator = capabilities.patched_emulator()
    if emulator is None:
        if sla.qemu is model.QemuChoice.PATCHED:
            LOG.warning('The flavor asks for fastmig:qemu = patched, but this '
                        'host does not have it; the server starts and cannot '
                        'be live-migrated', instance=instance)
        return domain_xml
    return fast_guest.adapt_xml(domain_xml, emulator)


@contextlib.contextmanager
def _pre_check():
    """Let the conductor try another destination after an error of ours.

    :raises: MigrationPreCheckError
    """
    try:
        yield
    except exception.FastMigError as error:
        raise nova_exception.MigrationPreCheckError(reason=str(error)) \
            from error


def check_host(host, instance, running_here: bool = False) -> None:
    """Refuse a migration that this host cannot do, before it starts.

    :param host: nova.virt.libvirt.host.Host
    :param running_here: this is the source
    :raises: MigrationPreCheckError, which names the key or what is missing,
        and lets the conductor try another destination
    """
    with _pre_check():
        sla = _sla(instance)
        if sla is None:
            return
        guest = host.get_guest(instance) if running_here else None
        reasons = plan.refusals(
            sla, capabilities.read(host, CONF.host, guest),
            conf.transport_settings(CONF))
        if not running_here:
            reasons += _lacking_pages(host, instance)
        if reasons:
            raise exception.PlanRefused(reasons)


def _lacking_pages(host, instance) -> list[str]:
    """See ``plan.lacking_pages``."""
    small_kib = os.sysconf('SC_PAGE_SIZE') // 1024
    cells = [
        (cell.pagesize, math.ceil(cell.memory * 1024 / cell.pagesize))
        for cell in (instance.numa_topology.cells
                     if instance.numa_topology else ())
        if cell.pagesize and cell.pagesize > small_kib]
    if not cells:
        return []
    try:
        free = capabilities.free_pages(host, {size for size, _ in cells})
    except libvirt.libvirtError as error:
        # Nova's claim counts them, too.
        LOG.warning('Cannot tell how many hugepages are free: %s', error,
                    instance=instance)
        return []
    return plan.lacking_pages(CONF.host, cells, free)


def _obstacles(host, instance, migrate_data) -> list[
        tuple[model.Obstacle, str]]:
    xml = host.get_guest(instance).get_xml_desc()
    return plan.obstacles(
        CONF.host, fast_guest.passthrough_devices(xml), block_migration=bool(
            migrate_data and 'block_migration' in migrate_data and
            migrate_data.block_migration))


def check_guest(host, instance, migrate_data) -> None:
    """Refuse a migration that the guest's devices or disks do not allow.

    At the source, before it starts.

    :param migrate_data: nova.objects.LibvirtLiveMigrateData, with what Nova
        has found out about disks
    :raises: MigrationPreCheckError, which names what is in the way
    """
    with _pre_check():
        if _sla(instance) is None:
            return
        reasons = plan.not_permitted(
            _obstacles(host, instance, migrate_data),
            conf.permitted_obstacles(CONF))
        if reasons:
            raise exception.PlanRefused(reasons)


def _versions(source: model.HostCaps,
              destination: model.HostCaps) -> calibration.Versions:
    return calibration.Versions(*(
        calibration.describe(host, host.driver_version)
        for host in (source, destination)))


def _age_ms(migration) -> int | None:
    """How long ago a migration was asked for; None if it cannot be told.

    :param migration: nova.objects.Migration
    """
    created_at = getattr(migration, 'created_at', None)
    if created_at is None:
        return None
    age = timeutils.utcnow(with_timezone=True) - created_at
    return max(0, round(age.total_seconds() * 1000))


def _is_too_early(action: model.Action, stats: dict) -> bool:
    """Whether an action is for a job that has not come so far yet.

    The time counts from libvirt's job, and until there is one from an earlier
    moment. QEMU refuses to switch what it has not begun to migrate, and the
    job is there for a while before that.

    :param stats: libvirt's; what they do not say is taken for begun, but for
        the switch, which is not tried twice
    """
    return (stats.get('type') == libvirt.VIR_DOMAIN_JOB_NONE or
            action is model.Action.POST_COPY and
            not stats.get('memory_total'))


class Session:
    """What is known about one running migration at its source.

    Nova runs a migration in two threads: ``operate`` is in the one that
    blocks in libvirt's call, ``follow`` in the other.
    """

    def __init__(self, host, instance, destination: str, sla: model.Sla,
                 the_plan: model.Plan, bindings: ports.Bindings,
                 migrate_data=None, waited_ms: int = 0):
        self._host = host
        self._instance = instance
        self._destination = destination
        self._sla = sla
        self._plan = the_plan
        self._bindings = bindings
        self._migrate_data = migrate_data
        self._network: model.Network | None = None
        self._mailbox = watch.Mailbox()
        self._decisions: list[model.Decision] = []
        self._samples: tuple[policy.Sample, ...] = ()
        self._abort_reason = ''
        self._post_copy_possible = False
        # Whether the switchover was one that the next one may be like.
        self._is_ordinary = True
        self._is_forced = False
        self._paused_since_s: float | None = None
        self._before_ms: int | None = None
        self._waited_ms = waited_ms
        self._after_ms: int | None = None
        self._completed = model.Completed(
            model.Outcome.FAILED, 'the migration was not followed to its end',
            None, None)

    # In the operation thread.

    def operate(self, domain, migrate) -> None:
        """Run Nova's migration operation on a FastGuest.

        Its error is not raised here: ``follow`` finds out what became of the
        guest and calls Nova's post or recovery method, so that a migration
        that was aborted does not put the server into ERROR.

        :param migrate: called with the FastGuest
        """
        try:
            migrate(fast_guest.FastGuest(domain, self._plan))
        except BaseException as error:
            self._mailbox.put(watch.Ended(error))
            if not isinstance(error, Exception):
                raise
        else:
            self._mailbox.put(watch.Ended(None))

    # In the monitoring thread.

    def follow(self, domain, tasks: dict, migration,
               post_copy_possible: bool, give_up_s: int, post,
               recover) -> None:
        """Watch the migration, carry out decisions, and finish it.

        :param domain: libvirt.virDomain at the source
        :param tasks: LibvirtDriver.active_migrations
        :param migration: nova.objects.Migration
        :param post_copy_possible: nothing in the guest's devices forbids it
        :param give_up_s: [libvirt]live_migration_completion_timeout for this
            guest; 0 for never
        :param post: called without arguments when the guest has moved
        :param recover: called with a migration status when it has not
        """
        guest = fast_guest.FastGuest(domain, self._plan)
        self._before_ms = _age_ms(migration)
        on_failure: collections.deque[str] = collections.deque()
        paused_before = guest.is_paused()
        self._is_ordinary &= not paused_before
        self._post_copy_possible = (
            post_copy_possible and not paused_before and
            self._sla.on_miss is model.OnMiss.POST_COPY)
        watching = watch.Watch(guest, self._mailbox, self._plan.total_limit_ms,
                               CONF.fastmig.poll_interval_ms / 1000,
                               is_patched=self._plan.source.patched_qemu)
        shown = progress.Progress(
            self._instance, migration,
            # An option since Nova 34, with the interval of the older ones as
            # its default.
            getattr(CONF.libvirt, 'live_migration_monitor_interval', 5))

        def judge(elapsed_ms, stats) -> float | None:
            nova_migration.run_tasks(
                guest, self._instance, tasks, on_failure, migration,
                self._post_copy_possible)
            shown.show(stats)
            self._samples = policy.remember(self._samples,
                                            policy.to_sample(stats))
            paused = not paused_before and (
                guest.is_switching_over() or
                self._is_forced and guest.is_paused())
            paused_ms = self._paused_ms(
                paused and not blackout.is_foreign_stop(watching.moments))
            self._carry_out(guest, migration, policy.decide(
                self._plan, elapsed_ms, paused=paused,
                post_copy_started=migration.status == _POST_COPY_STATUS,
                post_copy_possible=self._post_copy_possible,
                give_up_ms=give_up_s * 1000 or None,
                samples=self._samples, paused_ms=paused_ms), stats)
            return (self._plan.switchover_limit_ms - paused_ms
                    if self._paused_since_s is not None else None)

        def look(elapsed_ms, stats) -> float | None:
            try:
                return judge(elapsed_ms, stats)
            except Exception:
                # The guest goes on moving, and nobody would finish that.
                LOG.exception('Live migration: this look at it has failed',
                              instance=self._instance)
                return None

        with watch.Events(self._host.get_connection(),
                          self._instance.uuid, self._mailbox) as events:
            ended = watching.run(look, self._bindings.activate)
            outcome, reason = self._outcome(guest, ended)
            LOG.info('Migration operation has ended: %s %s', outcome, reason,
                     instance=self._instance)
            if outcome is not model.Outcome.COMPLETED:
                self._completed = watching.stayed(
                    outcome, reason, _RESUME_TIMEOUT_S, events.hears_qemu())
                nova_migration.run_recover_tasks(
                    self._host, guest, self._instance, on_failure)
                self._bindings.back_to_source()
                recover('cancelled' if outcome is model.Outcome.ABORTED
                        else 'failed')
                return
            ended_s = time.monotonic()
            self._network = ports.report(self._migrate_data,
                                         self._bindings.wait())
            try:
                post()
            finally:
                self._after_ms = round((time.monotonic() - ended_s) * 1000)
                self._completed = watching.completed(
                    _COMPLETED_STATS_TIMEOUT_S)

    def _paused_ms(self, paused: bool) -> float:
        """For how long the guest is known to stand still in the switchover.

        Force-complete stops the guest for as long as its memory takes. libvirt
        gives the same reason for that as for a switchover.
        """
        if not paused or self._is_forced:
            self._paused_since_s = None
            return 0
        now_s = time.monotonic()
        if self._paused_since_s is None:
            self._paused_since_s = now_s
        return (now_s - self._paused_since_s) * 1000

    def _carry_out(self, guest, migration, decision: model.Decision,
                   stats: dict) -> None:
        if (decision.action is model.Action.CONTINUE or self._abort_reason or
                _is_too_early(decision.action, stats)):
            return
        LOG.warning('Live migration: %s, because %s', decision.action,
                    decision.reason, instance=self._instance)
        match decision.action:
            case model.Action.ABORT:
                try:
                    with self.aborting(decision.reason):
                        guest.abort_job()
                except libvirt.libvirtError as error:
                    # Not begun yet, or over just now: the next look tells.
                    LOG.warning('Could not abort: %s', error,
                                instance=self._instance)
                    return
            case model.Action.POST_COPY:
                self._is_ordinary = False
                nova_migration.trigger_postcopy_switch(
                    guest, self._instance, migration)
                self._post_copy_possible = (
                    migration.status == _POST_COPY_STATUS)
        self._decisions.append(decision)

    def _outcome(self, guest,
                 ended: watch.Ended) -> tuple[model.Outcome, str]:
        if ended.error is None:
            return model.Outcome.COMPLETED, ''
        # A libvirt that was lost says nothing, which is not to be taken for a
        # guest that stays.
        if not guest.reconnect(self._host, _RECONNECT_TIMEOUT_S):
            LOG.warning('The connection to libvirt was lost and the guest '
                        'has moved: %s', ended.error, instance=self._instance)
            return model.Outcome.COMPLETED, ''
        # Nova takes a guest that does not run here for one that has moved.
        if guest.has_ended_here():
            return model.Outcome.FAILED, (
                f'the guest has ended at the source: {ended.error}')
        # The call can fail although the guest has moved: see where it is.
        job_type = nova_migration.find_job_type(guest, self._instance)
        if job_type == libvirt.VIR_DOMAIN_JOB_COMPLETED:
            LOG.warning('The migration call failed but the guest has moved: '
                        '%s', ended.error, instance=self._instance)
            return model.Outcome.COMPLETED, ''
        if fast_guest.is_unanswered_handover(ended.error):
            LOG.error('The guest stands still at the source, and QEMU does '
                      'not let it run there before somebody says that it does '
                      'not run at the destination: see "A hand-over without '
                      'an answer" in the documentation of nova-fastmig',
                      instance=self._instance)
            return model.Outcome.FAILED, (
                f'the guest stands still at the source, because it was given '
                f'to the destination and no answer came: {ended.error}')
        if self._abort_reason:
            return model.Outcome.ABORTED, self._abort_reason
        if fast_guest.is_switchover_timeout(ended.error):
            return model.Outcome.ABORTED, policy.hanging(
                self._plan, f'more than {self._plan.switchover_limit_ms} ms')
        if (isinstance(ended.error, libvirt.libvirtError) and
                ended.error.get_error_code() ==
                libvirt.VIR_ERR_OPERATION_ABORTED):
            return model.Outcome.ABORTED, str(ended.error)
        return model.Outcome.FAILED, str(ended.error)

    # From anywhere.

    def force(self) -> None:
        """Make ``follow`` look at once, for it was told to force the end."""
        self._is_ordinary = False
        self._is_forced = True
        self.wake()

    def wake(self) -> None:
        """Make ``follow`` look at once."""
        self._mailbox.put(watch.Wake())

    @contextlib.contextmanager
    def aborting(self, reason: str):
        """Around the cancellation of the job.

        The migration call may return before the cancellation does, so the
        reason is there first; if the cancellation fails, the reason of one
        that was accepted before is back.
        """
        before, self._abort_reason = self._abort_reason, reason
        try:
            yield
        except Exception:
            self._abort_reason = before
            raise

    def report(self) -> model.SlaReport:
        """Judge what has come out; at the end."""
        completed = self._completed
        moved = completed.outcome is model.Outcome.COMPLETED
        return report.make(
            self._instance.uuid, self._plan.source.host, self._destination,
            self._sla, tuple(self._decisions), completed,
            self._plan.qemu_features, self._plan.downtime_limit_ms,
            self._plan.expected, self._plan.concessions,
            parts=blackout.split(completed) if moved else None,
            source_pause_ms=(None if moved else
                             blackout.source_pause_ms(completed.moments)),
            nova=model.NovaTimes(self._before_ms, self._waited_ms,
                                 self._after_ms),
            network=self._network, flavor=self._instance.flavor.name)

    def teach(self, store: calibration_store.Store) -> None:
        """Remember what a completed migration says about the next one.

        A failure is logged: the guest has moved.
        """
        if (self._completed.outcome is not model.Outcome.COMPLETED or
                self._plan.destination is None or not self._is_ordinary):
            return
        lesson = calibration.lesson(
            self._completed, early_resume=model.QemuFeature.EARLY_RESUME in
            self.report().qemu_features)
        if lesson is None:
            return
        try:
            store.add(
                calibration.Pair(self._plan.source.host, self._destination),
                _versions(self._plan.source, self._plan.destination), *lesson)
        except Exception:
            LOG.exception('Cannot learn from this migration',
                          instance=self._instance)


class Sessions:
    """The migrations of tagged guests that leave this host.

    :param host: nova.virt.libvirt.host.Host
    """

    def __init__(self, host):
        self._host = host
        self._by_uuid: dict[str, Session] = {}
        self._sinks = sinks.Sinks(CONF.fastmig.sinks)
        self._calibration = calibration_store.Store.configured(CONF)
        self._reservations = reservation.Reservations.configured(CONF)
        self._switch = ports.Switch()
        self._arrivals = ports.Arrivals()
        self._notes = interrupted.Notes(CONF.fastmig.migrations_path)

    def get(self, instance) -> Session | None:
        """The session of a migration under way; None for an untagged one."""
        return self._by_uuid.get(instance.uuid)

    def _expected(self, source: model.HostCaps,
                  destination: model.HostCaps | None) -> model.Estimate | None:
        if destination is None:
            return None
        return self._calibration.estimate(
            calibration.Pair(source.host, destination.host),
            _versions(source, destination))

    @staticmethod
    def _arrival(instance_uuid: str) -> str:
        # The same guest can leave soon after.
        return f'{instance_uuid} arriving'

    @contextlib.contextmanager
    def expect(self, instance, is_next: bool):
        """Reserve bandwidth for a tagged guest that is to come here.

        Around Nova's step, which has to succeed for that.

        :param is_next: it comes now; otherwise it may have to wait in a queue
            of Nova's, and asks again then
        :raises: MigrationPreCheckError with the figures
        """
        with _pre_check():
            sla = _sla(instance)
            if sla is not None:
                self._reservations.take(
                    self._arrival(instance.uuid),
                    _needed_mib_s(instance, sla) * _MIB,
                    lease_s=_begins_s() if is_next else _ARRIVAL_SLACK_S)
        try:
            yield
        except BaseException:
            self.arrived(instance.uuid)
            raise

    @staticmethod
    def plan_ports(instance, network_info):
        """A tagged guest's ports, with what was plugged for its arrival."""
        # The ports first: few hosts have such, and then no flavor is read.
        return (ports.with_taps(network_info)
                if ports.have_taps(network_info) and _is_tagged(instance)
                else network_info)

    def plug(self, context, instance, migrate_data, plug):
        """Plug the ports of a guest that is to come here.

        Those of a tagged one are wired when this returns.

        :param plug: Nova's step, without arguments
        :returns: what that returned: migrate_data
        :raises: MigrationPreCheckError with what is missing
        """
        if not _is_tagged(instance):
            return plug()
        self._arrivals.expect(instance, migrate_data, _begins_s(),
                              _lasts_s(instance, _sla(instance)))
        ports.announce_move(context, instance)
        ports.create_taps(migrate_data)
        checked = plug()
        with _pre_check():
            ports.wait_until_wired(self._switch, checked,
                                   CONF.fastmig.port_wiring_timeout_s)
        return checked

    def keep(self, instance, make_xml: ty.Callable[[], str]) -> bool:
        """Define a tagged guest whose QEMU has ended since it came here.

        A guest that nobody could make persistent before is gone with its
        QEMU. Nova's own guests are shut off then, and can be started again.

        :param make_xml: of the domain, anew
        :returns: whether it was one
        :raises: libvirt.libvirtError
        """
        if not _is_tagged(instance):
            return False
        LOG.error('The QEMU of this guest has ended since it moved here',
                  instance=instance)
        self._host.write_instance_config(make_xml())
        return True

    def left_over(self):
        """Ports of guests that should be here by now, and are not.

        :returns: (nova.objects.Instance, NetworkInfo) of each
        """
        for instance in self._arrivals.not_begun():
            # libvirt's event can be missed.
            if self._host_has(instance):
                self.begun(instance.uuid)
        return [(instance, network_info)
                for instance, network_info in self._arrivals.overdue()
                if not self._host_has(instance)]

    def _host_has(self, instance) -> bool:
        try:
            self._host.get_guest(instance)
        except nova_exception.InstanceNotFound:
            return False
        return True

    def begun(self, instance_uuid: str) -> None:
        """libvirt has a guest that is to come here, or any other."""
        lasts_s = self._arrivals.begun(instance_uuid)
        if lasts_s is not None:
            self._reservations.renew(self._arrival(instance_uuid), lasts_s)

    def landed(self, instance_uuid: str) -> None:
        """Nova's last step of a migration to this host has begun."""
        self._arrivals.landed(instance_uuid)
        self.arrived(instance_uuid)

    def arrived(self, instance_uuid: str) -> None:
        """A guest is here, or will not come."""
        self._reservations.give_back(self._arrival(instance_uuid))

    def check_pair(self, context, instance, migrate_data) -> None:
        """Refuse what this source and the destination cannot do together.

        At the source, before it starts. Nothing is reserved.

        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        :raises: MigrationPreCheckError with every reason, which lets the
            conductor try another destination
        """
        with _pre_check():
            sla = _sla(instance)
            if sla is None:
                return
            destination = capabilities.who_asks(context, instance.uuid)
            # What cannot be told now is found out when it begins.
            if destination is not None:
                self._make_plan(context, instance, destination, sla,
                                reservation.Grant(None, 0), migrate_data)

    def _make_plan(self, context, instance, destination: str, sla: model.Sla,
                   grant: reservation.Grant, migrate_data) -> model.Plan:
        source = capabilities.read(self._host, CONF.host,
                                   self._host.get_guest(instance))
        peer = capabilities.peer(context, destination)
        return plan.make(
            sla, source, peer, conf.transport_settings(CONF),
            conf.qemu_features(CONF),
            expected=self._expected(source, peer),
            bandwidth_limit_mib_s=(None if grant.bytes_per_s is None
                                   else grant.bytes_per_s // _MIB),
            switchover_timeout_ms=CONF.fastmig.switchover_timeout_ms,
            found=_obstacles(self._host, instance, migrate_data),
            permitted=conf.permitted_obstacles(CONF),
            is_trial_due=peer is not None and self._calibration.is_trial_due(
                calibration.Pair(source.host, peer.host),
                _versions(source, peer)),
            switchover_bandwidth_mib_s=(
                CONF.fastmig.switchover_bandwidth_mib_s))

    def _begin_trial(self, the_plan: model.Plan) -> None:
        """Note that a trial begins.

        :raises: PlanRefused if another one has begun since this was planned
        """
        pair = calibration.Pair(the_plan.source.host,
                                the_plan.destination.host)
        if not self._calibration.begin_trial(
                pair, _versions(the_plan.source, the_plan.destination)):
            raise exception.PlanRefused([
                f'a trial between host {pair.source} and host '
                f'{pair.destination} has just begun'])

    def run(self, context, instance, destination: str, migrate,
            recover, migrate_data=None) -> None:
        """Do one migration: request -> plan -> guest -> watch -> report.

        :param migrate: LibvirtDriver's own migration, without arguments; a
            tagged guest's finds its session through ``get``
        :param recover: Nova's recovery, called with a migration status if
            the migration cannot be planned
        :param migrate_data: nova.objects.LibvirtLiveMigrateData
        """
        try:
            sla = _sla(instance)
        except exception.FastMigError as error:
            # The pre-checks found it valid: the configuration has changed.
            LOG.error('Live migration refused: %s', error, instance=instance)
            recover('failed')
            return
        if sla is None:
            migrate()
            return
        with contextlib.ExitStack() as held:
            try:
                grant = held.enter_context(self._reservations.hold(
                    instance.uuid, _needed_mib_s(instance, sla) * _MIB,
                    CONF.fastmig.migration_bandwidth_wait_s))
                the_plan = self._make_plan(context, instance, destination,
                                           sla, grant, migrate_data)
                if the_plan.is_trial:
                    self._begin_trial(the_plan)
            except exception.FastMigError as error:
                LOG.error('Live migration refused: %s', error,
                          instance=instance)
                recover('failed')
                self._sinks.emit(context, report.make(
                    instance.uuid, CONF.host, destination, sla, (),
                    model.Completed(model.Outcome.REFUSED, str(error), None,
                                    None), flavor=instance.flavor.name))
                return
            LOG.info('Live migration by %s, after %d ms of waiting for '
                     'bandwidth', the_plan, grant.waited_ms, instance=instance)
            self._run_planned(context, instance, destination, sla, the_plan,
                              migrate, migrate_data, grant.waited_ms)

    def _run_planned(self, context, instance, destination: str,
                     sla: model.Sla, the_plan: model.Plan, migrate,
                     migrate_data, waited_ms: int) -> None:
        session = Session(
            self._host, instance, destination, sla, the_plan,
            ports.Bindings(context, instance, migrate_data, instance.host,
                           destination),
            migrate_data, waited_ms)
        self._by_uuid[instance.uuid] = session
        is_over = True
        try:
            migrate()
        except BaseException as error:
            # A thread that is told to end does not end the migration.
            is_over = isinstance(error, Exception)
            raise
        finally:
            del self._by_uuid[instance.uuid]
            if is_over:
                session.teach(self._calibration)
                self._sinks.emit(context, session.report())

    def noted(self, manager, context, instance, destination: str,
              block_migration: bool, migrate_data, post_method,
              recover_method):
        """Around a migration: see ``interrupted``.

        :returns: gives the two methods to be called
        """
        if not _is_tagged(instance):
            return contextlib.nullcontext((post_method, recover_method))
        return self._notes.noted(
            manager, context, instance, destination, block_migration,
            migrate_data, post_method, recover_method)

    def prepare(self, context, instance, migrate_data) -> None:
        """Before Nova prepares a migration: see ``interrupted``."""
        if _is_tagged(instance):
            self._notes.prepare(context, instance, migrate_data)

    def finish_interrupted(self, manager) -> None:
        """End what the last nova-compute of this host has left.

        :param manager: nova.compute.manager.ComputeManager
        """
        self._notes.finish(self._host, manager, self._tell_interrupted)

    def finish_interrupted_later(self) -> None:
        """Go on with what had to wait: see ``interrupted``."""
        self._notes.finish_later()

    def _tell_interrupted(self, context, instance, destination: str,
                          place: interrupted.Place) -> None:
        completed = model.Completed(
            model.Outcome.COMPLETED if place is interrupted.Place.AWAY
            else model.Outcome.FAILED,
            f'nova-compute has ended meanwhile; {place.value}', None, None)
        self._sinks.emit(context, report.make(
            instance.uuid, CONF.host, destination, _sla(instance), (),
            completed, flavor=instance.flavor.name))
