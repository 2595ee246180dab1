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

"""Migrations that outlive the source's nova-compute, or what Nova needs.

libvirt goes on without nova-compute. Nova's own start then gives each such
migration up: a guest that has moved meanwhile runs at the destination and is
at the source for Nova, and its allocations are wrong wherever it is. So what
Nova's last steps need is in a file while a migration runs, and the next start
of nova-compute takes these steps, before Nova looks at its instances.

libvirt goes on without message bus, conductor, Neutron and Placement, too.
Nova takes its last steps once and sets the server to ERROR if one fails. Here
they are taken again until what they need can be reached.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import enum
import functools
import pathlib
import time

from keystoneauth1 import exceptions as keystone_exceptions
import libvirt
from neutronclient.common import exceptions as neutron_exceptions
from nova.compute import task_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.objects import base as nova_base
from oslo_log import log as logging
import oslo_messaging
from oslo_serialization import jsonutils
from oslo_utils import uuidutils

from nova_fastmig import durable
from nova_fastmig import guest
from nova_fastmig import worker

LOG = logging.getLogger(__name__)

# Of the files. Another version's are not read.
_VERSION = 1

# For a switchover to end by itself, and for a job to end that was aborted.
_SWITCHOVER_S = 10
_END_S = 60
_POLL_S = 0.2

# Between two attempts to take Nova's last steps.
_AGAIN_S = 10

# What says that somebody cannot be reached now.
_UNREACHABLE = (
    oslo_messaging.MessagingTimeout, oslo_messaging.MessageDeliveryFailure,
    keystone_exceptions.ConnectionError, neutron_exceptions.ConnectionFailed,
    nova_exception.PlacementAPIConnectFailure)
# And somebody else said so.
_UNREACHABLE_THERE = frozenset(
    (*(error.__name__ for error in _UNREACHABLE), 'DBConnectionError'))

_GIVEN_UP = frozenset(('failed', 'error', 'cancelled'))


def is_unreachable(error: Exception) -> bool:
    """Whether what failed may succeed when the control plane is back."""
    return isinstance(error, _UNREACHABLE) or (
        isinstance(error, oslo_messaging.RemoteError) and
        error.exc_type in _UNREACHABLE_THERE)


class Place(enum.Enum):
    """Where a guest is, after its migration."""

    HERE = 'it has stayed'
    AWAY = 'it has moved'
    UNKNOWN = 'libvirt does not say where it is'


def _context(request_id: str) -> nova_context.RequestContext:
    return nova_context.RequestContext(is_admin=True, request_id=request_id,
                                       overwrite=False)


@dataclasses.dataclass(frozen=True)
class Note:
    """What Nova's last steps need.

    :ivar request_id: of the request for the migration
    :ivar destination: None as long as Nova prepares the migration
    :ivar migrate_data: nova.objects.LibvirtLiveMigrateData; without the
        migration as long as Nova prepares it
    :ivar source_bdms: nova.objects.BlockDeviceMappingList, as at the source
    """

    instance_uuid: str
    request_id: str
    source: str
    destination: str | None
    block_migration: bool
    migrate_data: nova_base.NovaObject
    source_bdms: nova_base.NovaObject | None

    def to_bytes(self) -> bytes:
        return jsonutils.dump_as_bytes({
            'version': _VERSION,
            'instance_uuid': self.instance_uuid,
            'request_id': self.request_id,
            'source': self.source,
            'destination': self.destination,
            'block_migration': bool(self.block_migration),
            'migrate_data': self.migrate_data.obj_to_primitive(),
            'source_bdms': (self.source_bdms and
                            self.source_bdms.obj_to_primitive())})

    @classmethod
    def from_bytes(cls, content: bytes) -> tuple[
            'Note', nova_context.RequestContext]:
        """:raises: ValueError"""
        try:
            found = jsonutils.loads(content)
            if found.pop('version') != _VERSION:
                raise ValueError('it is of another version')
            context = _context(found['request_id'])
            for name in ('migrate_data', 'source_bdms'):
                found[name] = found[name] and (
                    nova_base.NovaObject.obj_from_primitive(
                        found[name], context))
            return cls(**found), context
        except (ValueError, TypeError, KeyError, AttributeError,
                nova_exception.NovaException) as error:
            raise ValueError(f'not a note of a migration: {error}') from error


def find(host, uuid: str) -> Place:
    """See a migration to its end at the source, and where the guest is then.

    One whose guest still runs is aborted: there is nobody to watch it. One in
    its switchover has a while to end.

    :param host: nova.virt.libvirt.host.Host
    """
    began_s = time.monotonic()
    while time.monotonic() < began_s + _END_S:
        try:
            domain = host.get_connection().lookupByUUIDString(uuid)
            state, reason = domain.state()
            if state == libvirt.VIR_DOMAIN_SHUTOFF:
                # libvirt has no statistics of it.
                return {
                    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: Place.AWAY,
                    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: Place.UNKNOWN,
                }.get(reason, Place.HERE)
            is_busy = domain.jobStats().get(
                'type', libvirt.VIR_DOMAIN_JOB_NONE) != (
                    libvirt.VIR_DOMAIN_JOB_NONE)
            if not is_busy and (
                    state == libvirt.VIR_DOMAIN_RUNNING or
                    reason == libvirt.VIR_DOMAIN_PAUSED_USER):
                return Place.HERE
            if is_busy and (
                    state == libvirt.VIR_DOMAIN_RUNNING or
                    time.monotonic() > began_s + _SWITCHOVER_S):
                domain.abortJob()
        except (libvirt.libvirtError,
                nova_exception.HypervisorUnavailable) as error:
            if guest.is_no_domain(error):
                return Place.AWAY
            LOG.warning('Asking libvirt about the migration of %s: %s', uuid,
                        error)
        time.sleep(_POLL_S)
    return Place.UNKNOWN


class Notes:
    """The files.

    :param directory: made if it is missing
    """

    def __init__(self, directory: str):
        self._directory = pathlib.Path(directory)
        # Those of an earlier nova-compute that could not be ended yet, and
        # what goes on with them.
        self._waiting: set[pathlib.Path] = set()
        self._later: Callable[[], None] | None = None

    def _path(self, uuid: str) -> pathlib.Path:
        return self._directory / f'{uuid}.json'

    def prepare(self, context, instance, migrate_data) -> None:
        """Keep a file while Nova prepares a migration.

        It stays if none comes of it, and does no harm then.

        :param migrate_data: what the checks at both ends have found
        """
        self._write(instance, Note(
            instance.uuid, context.request_id, instance.host, None, False,
            migrate_data, objects.BlockDeviceMappingList.get_by_instance_uuid(
                context, instance.uuid)))

    def _write(self, instance, note: Note) -> None:
        path = self._path(instance.uuid)
        self._waiting.discard(path)
        try:
            # Connections of volumes can hold secrets.
            durable.replace(path, note.to_bytes(), mode=0o600)
        except OSError as error:
            LOG.warning('The migration goes on without a note of it, so that '
                        'nothing will end it if nova-compute dies: %s', error,
                        instance=instance)

    @contextlib.contextmanager
    def noted(self, manager, context, instance, destination: str,
              block_migration: bool, migrate_data, post_method,
              recover_method):
        """Keep a file while a migration runs.

        It stays if the process ends, or if the thread is told to.

        :param manager: nova.compute.manager.ComputeManager
        :param post_method: the manager's, with the source's block devices
        :param recover_method: the manager's
        :returns: both, which wait for what they need
        """
        note = Note(instance.uuid, context.request_id, instance.host,
                    destination, block_migration, migrate_data,
                    getattr(post_method, 'keywords', {}).get('source_bdms'))

        def post(*args) -> None:
            self._take(manager, instance, note, Place.AWAY,
                       functools.partial(post_method, *args))

        # As Nova's own driver calls it.
        def recover(context, instance, dest, migrate_data=None,
                    migration_status='failed') -> None:
            self._take(manager, instance, note, Place.HERE, functools.partial(
                recover_method, context, instance, dest, migrate_data,
                migration_status), migration_status)

        path = self._path(instance.uuid)
        self._write(instance, note)
        try:
            yield post, recover
        except Exception:
            self._forget(path)
            raise
        self._forget(path)

    def _take(self, manager, instance, note: Note, place: Place, step,
              status: str = 'error') -> None:
        """Take Nova's last step, and again for as long as it has to wait.

        :param place: where the guest is
        :param step: without arguments; called once
        :param status: of the migration, for a guest that has stayed
        """
        try:
            step()
            return
        except Exception as error:
            if not is_unreachable(error):
                raise
            reason = error
        context = _context(note.request_id)
        while True:
            LOG.warning("Nova's last step of the live migration to %s waits "
                        'for what cannot be reached now: %s',
                        note.destination, reason, instance=instance)
            time.sleep(_AGAIN_S)
            try:
                self._take_again(manager, context, note, place, status,
                                 may_be_reset=False)
            except Exception as error:
                if not is_unreachable(error):
                    raise
                reason = error
            else:
                LOG.info("Nova's last step of the live migration to %s was "
                         'taken', note.destination, instance=instance)
                return

    def _take_again(self, manager, context, note: Note, place: Place,
                    status: str, may_be_reset: bool) -> None:
        """Take Nova's last step if it is still to be taken.

        :param may_be_reset: Nova may have set the task state to None
        """
        instance, migration = self._read(context, note)
        destination = note.destination or migration.dest_compute
        if (migration.status == 'completed' or
                instance.host not in (manager.host, destination)):
            # All that can be left is the migration's allocation.
            self._complete(manager, context, instance, migration)
            return
        is_there = instance.host == destination
        is_migrating = instance.task_state == task_states.MIGRATING
        if is_there or (may_be_reset and not is_migrating):
            # The destination has been told and its answer was lost; or it was
            # not, and Nova has at least said where the guest is.
            instance.host = manager.host
            instance.task_state = task_states.MIGRATING
            try:
                instance.save(expected_task_state=[None])
            except nova_exception.UnexpectedTaskStateError:
                if not is_there:
                    raise
                # Its owner goes on with it there.
                self._complete(manager, context, instance, migration)
                return
        elif not is_migrating:
            # All that was left of the roll-back.
            migration.status = status
            migration.save()
            return
        self._end(manager, context, instance, migration, note, place, status)

    def _forget(self, path: pathlib.Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning('Could not remove %s: %s', path, error)

    def finish(self, host, manager, tell) -> None:
        """Take the last steps of the migrations that there are files of.

        To be called at the start, when libvirt can be asked. Those that have
        to wait are left for ``finish_later``: nova-compute has to start.

        :param host: nova.virt.libvirt.host.Host
        :param manager: nova.compute.manager.ComputeManager
        :param tell: called with (context, instance, destination, Place)
        """
        end = functools.partial(self._try, host, manager, tell)
        self._waiting = {
            path for path in sorted(self._directory.glob('*.json'))
            # Others may keep theirs in the directory.
            if uuidutils.is_uuid_like(path.stem) and end(path, again=False)}
        self._later = functools.partial(self._finish_waiting, end)

    def finish_later(self) -> None:
        """Go on with those that have to wait; does not wait for them.

        To be called when Nova has looked at its instances. It fails to start
        if one that it finds migrating is changed by somebody else meanwhile.
        """
        later, self._later = self._later, None
        if later is not None and self._waiting:
            worker.Worker('Ending interrupted migrations').put(later)

    def _finish_waiting(self, end) -> None:
        while self._waiting:
            time.sleep(_AGAIN_S)
            for path in sorted(self._waiting):
                # A new migration of the server may have begun meanwhile.
                if path in self._waiting and not end(path, again=True):
                    self._waiting.discard(path)

    def _try(self, host, manager, tell, path: pathlib.Path,
             again: bool) -> bool:
        """:returns: whether it has to be tried again"""
        try:
            note, context = Note.from_bytes(path.read_bytes())
            if note.source != manager.host:
                # The directory is shared with another host.
                return False
            self._finish(host, manager, context, note, tell, again)
        except nova_exception.InstanceNotFound:
            LOG.info('The server %s was deleted while it was migrated',
                     path.stem)
        except Exception as error:
            if is_unreachable(error) or isinstance(
                    error, nova_exception.UnexpectedTaskStateError):
                LOG.warning('The end of the migration of %s waits: %s',
                            path.stem, error)
                return True
            # nova-compute has to start whatever there is.
            LOG.exception('Could not end the migration of %s', path.stem)
        self._forget(path)
        return False

    def _finish(self, host, manager, context, note: Note, tell,
                again: bool) -> None:
        """See where a guest is and take the last steps for it.

        :param again: nova-compute has started meanwhile, and Nova has perhaps
            given the migration up
        """
        instance, migration = self._read(context, note)
        if migration is None or (migration.status in _GIVEN_UP and not again):
            return
        destination = note.destination or migration.dest_compute
        place = Place.AWAY
        if instance.host == manager.host and migration.status != 'completed':
            if again:
                self._check_idle(context, instance, migration)
            elif instance.task_state != task_states.MIGRATING:
                return
            place = find(host, instance.uuid)
        LOG.warning('nova-compute has ended while this guest was migrated to '
                    '%s: %s', destination, place.value,
                    instance=instance)
        if place is Place.AWAY:
            # Nova has not asked the host for its resources yet, and the last
            # steps change its account of them.
            manager.update_available_resource(context, startup=True)
        if place is not Place.UNKNOWN:
            self._take_again(manager, context, note, place, 'error',
                             may_be_reset=again)
        tell(context, instance, destination, place)

    @staticmethod
    def _check_idle(context, instance, migration) -> None:
        """Leave a server to its owner while something else is done with it.

        :raises: nova.exception.UnexpectedTaskStateError if the server's owner
            has begun something with it
        """
        if (instance.task_state not in (None, task_states.MIGRATING) or
                any(other.id != migration.id for other in
                    objects.MigrationList.get_in_progress_by_instance(
                        context, instance.uuid))):
            raise nova_exception.UnexpectedTaskStateError(
                instance_uuid=instance.uuid, expected={'task_state': [None]},
                actual={'task_state': instance.task_state})

    def _read(self, context, note: Note):
        """:returns: nova.objects.Instance, nova.objects.Migration or None"""
        instance = objects.Instance.get_by_uuid(
            context, note.instance_uuid, expected_attrs=[
                'info_cache', 'metadata', 'system_metadata', 'flavor',
                'numa_topology', 'pci_devices', 'pci_requests',
                'migration_context', 'resources'])
        return instance, self._migration(context, note)

    def _end(self, manager, context, instance, migration, note: Note,
             place: Place, status: str) -> None:
        """Take Nova's last steps for a guest that is at the source for Nova.

        :param place: where it is
        :param status: of the migration, for a guest that has stayed
        """
        note.migrate_data.migration = migration
        destination = note.destination or migration.dest_compute
        if place is Place.AWAY:
            try:
                manager._post_live_migration_update_host(
                    context, instance, destination, note.block_migration,
                    note.migrate_data, note.source_bdms)
            except Exception as error:
                # Somebody may have told the destination before.
                instance.refresh()
                if instance.host != destination or is_unreachable(error):
                    raise
                LOG.exception("Nova's last step at %s failed", destination,
                              instance=instance)
                self._complete(manager, context, instance, migration)
        else:
            manager._rollback_live_migration(
                context, instance, destination, note.migrate_data,
                migration_status=status, source_bdms=note.source_bdms,
                pre_live_migration=note.destination is None)
            if note.destination is None and not (
                    manager._live_migration_cleanup_flags(
                        note.migrate_data)[0]):
                # Nova leaves what the destination has plugged if storage is
                # shared, and does not get an event for it the next time.
                manager.compute_rpcapi.rollback_live_migration_at_destination(
                    context, instance, destination, destroy_disks=False,
                    migrate_data=note.migrate_data)

    @staticmethod
    def _migration(context, note: Note):
        """:returns: nova.objects.Migration; None if there is none"""
        if note.destination is not None:
            return objects.Migration.get_by_id(
                context, note.migrate_data.migration.id)
        return next((
            migration
            for migration in objects.MigrationList.get_in_progress_by_instance(
                context, note.instance_uuid, 'live-migration')
            if migration.source_compute == note.source), None)

    @staticmethod
    def _complete(manager, context, instance, migration) -> None:
        migration.status = 'completed'
        migration.save()
        manager._delete_allocation_after_move(context, instance, migration)
