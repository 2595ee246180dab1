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

import contextlib
import functools
import os
import pathlib
import stat
import types
from unittest import mock

import ddt
import fixtures
import greenlet
from keystoneauth1 import exceptions as keystone_exceptions
import libvirt
from neutronclient.common import exceptions as neutron_exceptions
from nova import exception as nova_exception
from nova import objects
import oslo_messaging
from oslotest import base

from nova_fastmig import interrupted
from nova_fastmig.interrupted import Place

UUID = '58f3d5ae-a9fa-4bb9-8b2c-9bd0b6d1b3ad'
NONE = {'type': libvirt.VIR_DOMAIN_JOB_NONE}
BUSY = {'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED}
RUNS = [libvirt.VIR_DOMAIN_RUNNING, 0]
SWITCHES = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]


def error(code: int) -> libvirt.libvirtError:
    made = libvirt.libvirtError('boom')
    made.err = (code, 0, 'boom', 0, '', None, None, 0, 0)
    return made


@ddt.ddt
class TestFind(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.domain = mock.create_autospec(libvirt.virDomain, instance=True)
        self.host = mock.Mock()
        self.lookup = self.host.get_connection.return_value.lookupByUUIDString
        self.lookup.return_value = self.domain
        self.now_s = 0.0
        self.useFixture(fixtures.MockPatchObject(
            interrupted, 'time', types.SimpleNamespace(
                monotonic=lambda: self.now_s, sleep=self.sleep)))

    def sleep(self, seconds):
        self.now_s += seconds

    def find(self, *looks) -> Place:
        """:param looks: (state, job); the last one stays"""
        looks = list(looks)

        def state():
            self.state, self.job = (
                looks.pop(0) if len(looks) > 1 else looks[0])
            return self.state

        def job():
            if self.state[0] == libvirt.VIR_DOMAIN_SHUTOFF:
                raise error(libvirt.VIR_ERR_OPERATION_INVALID)
            return self.job

        self.domain.state.side_effect = state
        self.domain.jobStats.side_effect = job
        return interrupted.find(self.host, UUID)

    @ddt.data(
        (RUNS, Place.HERE),
        ([libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER],
         Place.HERE),
        ([libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED],
         Place.HERE),
        ([libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED],
         Place.AWAY),
        # libvirtd was restarted too, and has forgotten why.
        ([libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN],
         Place.UNKNOWN),
        (SWITCHES, Place.UNKNOWN))
    @ddt.unpack
    def test_no_job(self, state, expected):
        self.assertIs(expected, self.find((state, NONE)))
        self.domain.abortJob.assert_not_called()

    def test_it_is_not_there(self):
        self.lookup.side_effect = error(libvirt.VIR_ERR_NO_DOMAIN)
        self.assertIs(Place.AWAY, interrupted.find(self.host, UUID))

    def test_one_that_runs_is_aborted(self):
        self.assertIs(Place.HERE, self.find((RUNS, BUSY), (RUNS, NONE)))
        self.domain.abortJob.assert_called_once_with()

    def test_a_switchover_may_end(self):
        gone = [libvirt.VIR_DOMAIN_SHUTOFF,
                libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED]
        self.assertIs(Place.AWAY, self.find(
            *[(SWITCHES, BUSY)] * 40, (gone, NONE)))
        self.domain.abortJob.assert_not_called()

    def test_but_not_for_long(self):
        self.assertIs(Place.HERE, self.find(
            *[(SWITCHES, BUSY)] * 60, (RUNS, NONE)))
        self.domain.abortJob.assert_called_with()

    def test_libvirt_comes_later(self):
        self.lookup.side_effect = [
            error(libvirt.VIR_ERR_INTERNAL_ERROR),
            nova_exception.HypervisorUnavailable(host='compute1'),
            self.domain]
        self.assertIs(Place.HERE, self.find((RUNS, NONE)))

    def test_libvirt_does_not_come(self):
        self.lookup.side_effect = error(libvirt.VIR_ERR_INTERNAL_ERROR)
        self.assertIs(Place.UNKNOWN, interrupted.find(self.host, UUID))


class TestNotes(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'migrations'
        self.path = self.directory / f'{UUID}.json'
        self.notes = interrupted.Notes(str(self.directory))
        self.manager = mock.Mock(host='compute1')
        self.tell = mock.Mock()
        self.get = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid')).mock

    def noted(self, source='compute1'):
        bdms = objects.BlockDeviceMappingList(objects=[
            objects.BlockDeviceMapping(connection_info='{"secret": 1}')])
        return self.notes.noted(
            self.manager, types.SimpleNamespace(request_id='req-1'),
            mock.Mock(uuid=UUID, host=source), 'compute2', True,
            objects.LibvirtLiveMigrateData(
                migration=objects.Migration(id=7), vifs=[],
                is_shared_block_storage=True),
            functools.partial(print, source_bdms=bdms), print)

    def leave(self, **changes) -> None:
        with contextlib.suppress(greenlet.GreenletExit), self.noted(**changes):
            raise greenlet.GreenletExit

    def test_while_nova_prepares(self):
        with mock.patch.object(
                objects.BlockDeviceMappingList, 'get_by_instance_uuid',
                return_value=objects.BlockDeviceMappingList(objects=[])):
            self.notes.prepare(
                types.SimpleNamespace(request_id='req-1'),
                mock.Mock(uuid=UUID, host='compute1'),
                objects.LibvirtLiveMigrateData(is_shared_block_storage=True))
        note, _ = interrupted.Note.from_bytes(self.path.read_bytes())
        self.assertIsNone(note.destination)
        # No migration has come of it.
        with mock.patch.object(
                objects.MigrationList, 'get_in_progress_by_instance',
                return_value=[]):
            self.notes.finish(mock.Mock(), self.manager, self.tell)
        self.assertFalse(self.path.exists())
        self.assertEqual([], self.manager.mock_calls)

    def test_only_while_it_runs(self):
        with self.noted():
            self.assertTrue(self.path.exists())
            # Connections of volumes can hold secrets.
            self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))
        self.assertFalse(self.path.exists())

    def test_an_error_is_an_end(self):
        def fail():
            with self.noted():
                raise ValueError
        self.assertRaises(ValueError, fail)
        self.assertFalse(self.path.exists())

    def test_there_and_back(self):
        self.leave()
        note, context = interrupted.Note.from_bytes(self.path.read_bytes())
        self.assertEqual(
            (UUID, 'req-1', 'compute1', 'compute2', True),
            (note.instance_uuid, note.request_id, note.source,
             note.destination, note.block_migration))
        self.assertEqual(7, note.migrate_data.migration.id)
        self.assertTrue(note.migrate_data.is_shared_block_storage)
        self.assertEqual('{"secret": 1}',
                         note.source_bdms[0].connection_info)
        self.assertEqual(('req-1', True),
                         (context.request_id, context.is_admin))

    def test_a_full_disk_does_not_stop_the_migration(self):
        with mock.patch.object(interrupted.durable, 'replace',
                               side_effect=OSError(28, 'full')):
            with self.noted():
                pass

    def test_what_is_no_note_is_removed(self):
        self.directory.mkdir()
        for content in (b'', b'{}', b'[]', b'{"version": 1}',
                        b'{"version": 2}', b'\xff'):
            self.path.write_bytes(content)
            self.assertRaises(ValueError, interrupted.Note.from_bytes,
                              content)
            self.notes.finish(mock.Mock(), self.manager, self.tell)
            self.assertFalse(self.path.exists())
        self.tell.assert_not_called()

    def test_what_is_somebody_elses_is_left_alone(self):
        self.directory.mkdir()
        theirs = self.directory / 'calibration.json'
        theirs.write_bytes(b'{"version": 1}')
        self.notes.finish(mock.Mock(), self.manager, self.tell)
        self.assertTrue(theirs.exists())

    def test_another_hosts_is_left_alone(self):
        self.leave(source='compute3')
        self.notes.finish(mock.Mock(), self.manager, self.tell)
        self.assertTrue(self.path.exists())
        self.get.assert_not_called()

    def test_a_server_that_was_deleted(self):
        self.leave()
        self.get.side_effect = nova_exception.InstanceNotFound(
            instance_id=UUID)
        self.notes.finish(mock.Mock(), self.manager, self.tell)
        self.assertFalse(self.path.exists())
        self.assertEqual([], self.manager.mock_calls)


@ddt.ddt
class TestUnreachable(base.BaseTestCase):

    @ddt.data(
        oslo_messaging.MessagingTimeout(),
        oslo_messaging.MessageDeliveryFailure(),
        oslo_messaging.RemoteError('MessagingTimeout', ''),
        oslo_messaging.RemoteError('DBConnectionError', ''),
        keystone_exceptions.ConnectFailure(),
        neutron_exceptions.ConnectionFailed(reason=''),
        nova_exception.PlacementAPIConnectFailure())
    def test_it_may_be_back(self, error):
        self.assertTrue(interrupted.is_unreachable(error))

    @ddt.data(ValueError(), oslo_messaging.RemoteError('ValueError', ''),
              nova_exception.InstanceNotFound(instance_id=UUID))
    def test_it_fails_again(self, error):
        self.assertFalse(interrupted.is_unreachable(error))


class TestLastSteps(base.BaseTestCase):
    """Those that wait. What comes of them is in the functional tests."""

    def setUp(self):
        super().setUp()
        self.notes = interrupted.Notes(
            self.useFixture(fixtures.TempDir()).path)
        self.instance = mock.Mock(uuid=UUID, host='compute1',
                                  task_state='migrating')
        self.migration = objects.Migration(id=7, status='running')
        self.useFixture(fixtures.MockPatchObject(objects.Migration, 'save'))
        self.manager = mock.Mock(host='compute1')
        self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid', return_value=self.instance))
        self.useFixture(fixtures.MockPatchObject(
            objects.Migration, 'get_by_id', return_value=self.migration))
        self.useFixture(fixtures.MockPatchObject(interrupted, '_AGAIN_S', 0))

    def take(self, failure, place=Place.AWAY, status='error'):
        """:param failure: what the step raises; None or a function, too"""
        step = mock.Mock(side_effect=failure)
        migrate_data = objects.LibvirtLiveMigrateData(migration=self.migration)
        with self.notes.noted(
                self.manager, types.SimpleNamespace(request_id='req-1'),
                self.instance, 'compute2', False, migrate_data, step,
                step) as (post, recover):
            if place is Place.AWAY:
                post('context', self.instance, 'compute2', False, migrate_data)
            else:
                recover('context', self.instance, 'compute2', migrate_data,
                        status)

    def test_once(self):
        self.take(None)
        self.assertEqual([], self.manager.mock_calls)

    def test_as_often_as_it_takes(self):
        again = self.manager._post_live_migration_update_host
        again.side_effect = [oslo_messaging.MessagingTimeout] * 3 + [None]
        self.take(oslo_messaging.MessagingTimeout)
        self.assertEqual(4, again.call_count)

    def test_what_is_no_use(self):
        self.assertRaises(ValueError, self.take, ValueError)
        self.manager._post_live_migration_update_host.side_effect = ValueError
        self.assertRaises(ValueError, self.take,
                          oslo_messaging.MessagingTimeout)

    def test_only_the_allocation_is_left(self):
        self.migration.status = 'completed'
        drop = self.manager._delete_allocation_after_move
        drop.side_effect = [keystone_exceptions.ConnectFailure, None]
        self.take(keystone_exceptions.ConnectFailure)
        self.assertEqual(2, drop.call_count)
        self.manager._post_live_migration_update_host.assert_not_called()

    def test_its_owner_has_moved_it_on(self):
        self.instance.host = 'compute3'
        self.take(oslo_messaging.MessagingTimeout)
        self.assertEqual('completed', self.migration.status)
        self.manager._post_live_migration_update_host.assert_not_called()
        self.manager._delete_allocation_after_move.assert_called_once()

    def test_its_owner_goes_on_with_it(self):
        def fail(*args):
            self.instance.host = 'compute2'
            self.instance.save.side_effect = (
                nova_exception.UnexpectedTaskStateError(
                    instance_uuid=UUID, expected={}, actual={}))
            raise oslo_messaging.MessagingTimeout

        self.take(fail)
        self.manager._post_live_migration_update_host.assert_not_called()
        self.assertEqual('completed', self.migration.status)
        self.manager._delete_allocation_after_move.assert_called_once()

    def test_only_the_status_is_left(self):
        self.instance.task_state = None
        self.take(oslo_messaging.MessagingTimeout, place=Place.HERE,
                  status='cancelled')
        self.assertEqual('cancelled', self.migration.status)
        self.manager._rollback_live_migration.assert_not_called()


class TestAtTheStart(base.BaseTestCase):
    """What the next nova-compute does with a note."""

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.notes = interrupted.Notes(
            self.useFixture(fixtures.TempDir()).path)
        self.path = self.notes._path(UUID)
        self.instance = mock.Mock(uuid=UUID, host='compute2', task_state=None)
        self.migration = objects.Migration(id=7, status='running')
        self.manager = mock.Mock(host='compute1')
        self.post = self.manager._post_live_migration_update_host
        self.post.side_effect = self.do_post
        self.recover = self.manager._rollback_live_migration
        self.drop = self.manager._delete_allocation_after_move
        self.tell = mock.Mock()
        self.later = []
        self.others = []
        self.useFixture(fixtures.MockPatchObject(objects.Migration, 'save'))
        self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid', return_value=self.instance))
        self.useFixture(fixtures.MockPatchObject(
            objects.Migration, 'get_by_id', return_value=self.migration))
        self.useFixture(fixtures.MockPatchObject(
            objects.MigrationList, 'get_in_progress_by_instance',
            side_effect=lambda *args: self.others))
        self.useFixture(fixtures.MockPatchObject(
            interrupted.worker, 'Worker', return_value=types.SimpleNamespace(
                put=self.later.append)))
        self.useFixture(fixtures.MockPatchObject(interrupted, '_AGAIN_S', 0))
        self.place = self.useFixture(fixtures.MockPatchObject(
            interrupted, 'find', return_value=Place.AWAY)).mock
        with contextlib.suppress(greenlet.GreenletExit), self.noted():
            raise greenlet.GreenletExit

    def noted(self):
        return self.notes.noted(
            self.manager, types.SimpleNamespace(request_id='req-1'),
            mock.Mock(uuid=UUID, host='compute1'), 'compute2', False,
            objects.LibvirtLiveMigrateData(
                migration=objects.Migration(id=7),
                is_shared_block_storage=True, is_shared_instance_path=True),
            print, print)

    def finish(self):
        self.notes.finish(mock.Mock(), self.manager, self.tell)

    def finish_later(self):
        self.assertEqual([], self.later)
        self.notes.finish_later()
        self.notes.finish_later()
        call, = self.later
        call()

    def do_post(self, context, instance, *args):
        """As Nova's."""
        self.assertEqual(('compute1', 'migrating'),
                         (instance.host, instance.task_state))
        instance.host = 'compute2'
        instance.task_state = None
        self.migration.status = 'completed'

    def do_not_post(self, error):
        """As Nova's, which says where the guest is all the same."""
        def fail(context, instance, *args):
            instance.host = 'compute2'
            instance.task_state = None
            raise error
        return fail

    def in_turn(self, *calls):
        calls = list(calls)
        return lambda *args, **kwargs: calls.pop(0)(*args, **kwargs)

    def assert_over(self, place=Place.AWAY):
        self.tell.assert_called_once_with(
            mock.ANY, self.instance, 'compute2', place)
        self.assertFalse(self.path.exists())

    def assert_only_completed(self):
        """Without Nova's last step."""
        self.finish()
        self.post.assert_not_called()
        self.assertEqual('completed', self.migration.status)
        self.drop.assert_called_once()
        self.assert_over()

    def test_the_destination_was_perhaps_not_told(self):
        self.finish()
        self.post.assert_called_once()
        self.instance.save.assert_called_once_with(expected_task_state=[None])
        self.place.assert_not_called()
        self.assert_over()
        self.notes.finish_later()
        self.assertEqual([], self.later)

    def test_its_owner_goes_on_with_it(self):
        self.instance.save.side_effect = (
            nova_exception.UnexpectedTaskStateError(
                instance_uuid=UUID, expected={}, actual={}))
        self.assert_only_completed()

    def test_its_owner_has_moved_it_on(self):
        self.instance.host = 'compute3'
        self.assert_only_completed()

    def test_nova_has_given_it_up_before(self):
        self.migration.status = 'error'
        self.finish()
        self.post.assert_not_called()
        self.tell.assert_not_called()
        self.assertFalse(self.path.exists())

    def test_only_the_allocation_is_left(self):
        self.migration.status = 'completed'
        self.drop.side_effect = [keystone_exceptions.ConnectFailure] * 2 + [
            None]
        self.finish()
        self.assertTrue(self.path.exists())
        self.tell.assert_not_called()
        self.finish_later()
        self.assertEqual(3, self.drop.call_count)
        self.post.assert_not_called()
        self.assert_over()

    def test_it_has_moved_and_neutron_cannot_be_reached(self):
        self.instance.host = 'compute1'
        self.instance.task_state = 'migrating'
        lost = self.do_not_post(neutron_exceptions.ConnectionFailed(reason=''))
        self.post.side_effect = self.in_turn(lost, lost, self.do_post)
        self.finish()
        self.assertEqual('running', self.migration.status)
        self.assertTrue(self.path.exists())
        self.tell.assert_not_called()
        self.finish_later()
        self.assertEqual(3, self.post.call_count)
        self.assert_over()

    def test_it_fails_otherwise(self):
        self.post.side_effect = self.do_not_post(ValueError())
        self.finish()
        self.assertEqual('completed', self.migration.status)
        self.drop.assert_called_once()
        self.assert_over()
        self.notes.finish_later()
        self.assertEqual([], self.later)

    def give_up(self):
        """As Nova's start does."""
        self.instance.task_state = None
        self.migration.status = 'error'

    def stay(self):
        """It runs at the source, and the roll-back fails once."""
        self.place.return_value = Place.HERE
        self.instance.host = 'compute1'
        self.instance.task_state = 'migrating'
        self.recover.side_effect = [oslo_messaging.MessageDeliveryFailure,
                                    None]
        self.finish()
        self.assertTrue(self.path.exists())
        self.give_up()

    def test_it_has_stayed_and_the_bus_cannot_be_reached(self):
        self.stay()
        self.finish_later()
        self.assertEqual(2, self.recover.call_count)
        self.instance.save.assert_called_once_with(expected_task_state=[None])
        self.assertEqual('migrating', self.instance.task_state)
        self.assert_over(Place.HERE)

    def test_its_owner_is_let_finish(self):
        self.stay()
        looks = []

        def look(*args):
            looks.append(self.recover.call_count)
            self.others = [self.migration] if len(looks) > 1 else [
                objects.Migration(id=8)]
            return self.others

        objects.MigrationList.get_in_progress_by_instance.side_effect = look
        self.finish_later()
        self.assertEqual([1, 1], looks)
        self.assertEqual(2, self.recover.call_count)
        self.assert_over(Place.HERE)

    def test_what_is_a_task_of_its_owners(self):
        self.stay()
        self.instance.task_state = 'suspending'
        self.place.reset_mock()

        def wait(seconds):
            self.place.assert_not_called()
            if waited:
                self.instance.task_state = None
            waited.append(seconds)

        waited = []
        self.useFixture(fixtures.MockPatchObject(
            interrupted.time, 'sleep', wait))
        self.finish_later()
        self.assertEqual(2, len(waited))
        self.assertEqual(2, self.recover.call_count)

    def test_a_new_migration_ends_the_waiting(self):
        self.stay()
        self.notes.finish_later()
        with self.noted():
            self.later.pop()()
            self.assertTrue(self.path.exists())
        self.recover.assert_called_once()
        self.tell.assert_not_called()

    def test_libvirt_does_not_say_it_later_either(self):
        self.stay()
        self.place.return_value = Place.UNKNOWN
        self.finish_later()
        self.instance.save.assert_not_called()
        self.assert_over(Place.UNKNOWN)
