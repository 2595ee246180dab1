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

    def test_it_is_done(self):
        self.migration.status = 'completed'
        self.take(oslo_messaging.MessagingTimeout)
        self.assertEqual([], self.manager.mock_calls)

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
