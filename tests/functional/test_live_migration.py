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

import functools
import os
import threading
import time
from unittest import mock

import ddt
import fixtures
import greenlet
from nova.compute import manager
from nova.compute import rpcapi
from nova import context
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import event
from nova.virt.libvirt import migration as nova_migration
from oslo_config import cfg
import oslo_messaging

from nova_fastmig import driver
from nova_fastmig import interrupted
from nova_fastmig import progress
from nova_fastmig import session
from tests.functional import base
from tests.functional import fake_libvirt

CONF = cfg.CONF


class TestUntagged(base.TwoHosts):

    @base.every_nova
    def test_takes_the_stock_path(self):
        self.flags(live_migration_permit_auto_converge=True, group='libvirt')
        server = self.boot()
        self._live_migrate(server)
        self.assert_moved(server)
        call, = self.fake.calls
        self.assertTrue(call.has('PERSIST_DEST'))
        self.assertEqual(fake_libvirt.QEMU_DEFAULT_DOWNTIME_MS,
                         call.downtime_limit_ms)
        self.assertEqual([], self.verdicts(server))

    def test_a_flavor_that_says_false(self):
        server = self.boot(enabled='false', max_downtime_ms='5')
        self._live_migrate(server)
        self.assert_moved(server)
        self.assertTrue(self.fake.calls[0].has('PERSIST_DEST'))
        self.assertEqual([], self.verdicts(server))


class TestTagged(base.TwoHosts):

    def test_met(self):
        server = self.boot_tagged(max_downtime_ms='9', max_total_ms='1500')
        self._live_migrate(server)
        self.assertEqual(
            {'verdict': 'met', 'outcome': 'completed',
             'downtime_ms': 7, 'max_downtime_ms': 9,
             'total_ms': 800, 'max_total_ms': 1500,
             'measured_by': 'libvirt job statistics', 'features': 0,
             'reason': None},
            self.wait_for_verdict(server))
        self.assert_moved(server)

    def test_missed(self):
        self.fake.behaviour.downtime_ms = 11
        server = self.boot_tagged()
        self._live_migrate(server)
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('missed', 11, 10),
                         (verdict['verdict'], verdict['downtime_ms'],
                          verdict['max_downtime_ms']))
        self.assert_moved(server)

    def test_the_plan_reaches_libvirt(self):
        self.flags(live_migration_permit_auto_converge=True,
                   live_migration_permit_post_copy=True, group='libvirt')
        server = self.boot_tagged(max_downtime_ms='3',
                                  parallel_connections='4')
        self._live_migrate(server)
        call, = self.fake.calls
        self.assertEqual(3, call.downtime_limit_ms)
        self.assertEqual(4, call.params['parallel.connections'])
        self.assertTrue(call.has('PARALLEL'))
        for flag in ('LIVE', 'PEER2PEER', 'UNDEFINE_SOURCE'):
            self.assertTrue(call.has(flag), flag)
        for flag in ('PERSIST_DEST', 'AUTO_CONVERGE', 'POSTCOPY',
                     'COMPRESSED'):
            self.assertFalse(call.has(flag), flag)

    @base.every_nova
    def test_there_and_back(self):
        server = self.boot_tagged()
        self._live_migrate(server)
        self.wait_for_verdict(server)
        self.assert_moved(server)
        self._live_migrate(server)
        self._wait_for_server_parameter(
            server, {'OS-EXT-SRV-ATTR:host': 'src'})
        self.assertIsNone(self.domain('dest', server))
        self.assertTrue(self.domain('src', server).isPersistent())
        self.assertEqual([10, 10],
                         [call.downtime_limit_ms for call in self.fake.calls])

    @base.every_nova
    def test_it_fails(self):
        self.fake.behaviour.error = 'the network is gone'
        server = self.boot_tagged()
        self._live_migrate(server, 'failed')
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('unknown', 'failed', 'the network is gone'),
                         (verdict['verdict'], verdict['outcome'],
                          verdict['reason']))
        self.assert_stayed(server)
        self.assertEqual('failed', self.migration(server)['status'])


class TestTheTimeIsOver(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.fake.behaviour.converges = False

    @base.every_nova
    def test_abort(self):
        server = self.boot_tagged(max_total_ms='300')
        self._live_migrate(server, 'cancelled')
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('unknown', 'aborted'),
                         (verdict['verdict'], verdict['outcome']))
        # How much too late it was noticed is the machine's load
        self.assertRegex(
            verdict['reason'],
            r'^\d+ ms of 300 ms are over before the switchover$')
        self.assertGreaterEqual(int(verdict['reason'].split()[0]), 300)
        self.assert_stayed(server)

    def test_post_copy(self):
        self.flags(live_migration_permit_post_copy=True, group='libvirt')
        server = self.boot_tagged(max_total_ms='300', on_miss='post-copy')
        self._live_migrate(server)
        self.assertEqual('completed', self.wait_for_verdict(server)['outcome'])
        self.assert_moved(server)

    def test_proceed(self):
        server = self.boot_tagged(max_total_ms='300', on_miss='proceed')
        self.start_live_migration(server)
        self.fake.behaviour.total_ms = 301
        self.fake.behaviour.converges = True
        self._wait_for_migration_status(server, ['completed'])
        self.assertEqual('missed', self.wait_for_verdict(server)['verdict'])
        self.assert_moved(server)


class TestTheTrend(base.TwoHosts):
    """A guest that will not converge, with much time left."""

    def setUp(self):
        super().setUp()
        self.fake.behaviour.converges = False
        self.fake.behaviour.pass_s = 0.2
        self.fake.behaviour.dirty_mib_s = 48

    def test_abort(self):
        server = self.boot_tagged(max_total_ms='600000')
        self._live_migrate(server, 'cancelled')
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('unknown', 'aborted'),
                         (verdict['verdict'], verdict['outcome']))
        self.assertRegex(
            verdict['reason'],
            r'^will not converge in the 59\d{4} ms left: 512.0 MiB remain, '
            r'0.3 MiB fit the switchover; bandwidth 32.0 MiB/s, dirty rate '
            r'48.0 MiB/s$')
        self.assert_stayed(server)

    def test_post_copy(self):
        self.flags(live_migration_permit_post_copy=True, group='libvirt')
        server = self.boot_tagged(max_total_ms='600000', on_miss='post-copy')
        self._live_migrate(server)
        self.assertEqual('completed', self.wait_for_verdict(server)['outcome'])
        self.assert_moved(server)

    def test_a_guest_that_will(self):
        self.fake.behaviour.dirty_mib_s = 16
        server = self.boot_tagged(max_total_ms='600000')
        self.start_live_migration(server)
        here = self.domain('src', server)
        self._wait_for_assert(lambda: self.assertLess(6, here._pass))
        self.fake.behaviour.converges = True
        self._wait_for_migration_status(server, ['completed'])
        self.assertEqual('met', self.wait_for_verdict(server)['verdict'])
        self.assert_moved(server)


class TestTheSwitchoverHangs(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.fake.behaviour.hangs = True
        self.flags(switchover_timeout_ms=200, group='fastmig')

    @base.every_nova
    def test_the_guest_resumes_at_the_source(self):
        # Even a guest that must arrive, however late, does not stand still.
        server = self.boot_tagged(on_miss='proceed')
        self._live_migrate(server, 'cancelled')
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('unknown', 'aborted'),
                         (verdict['verdict'], verdict['outcome']))
        self.assertRegex(
            verdict['reason'],
            r'^the guest has stood still for \d+ ms and the switchover has '
            r'not finished; 200 ms are allowed')
        self.assert_stayed(server)
        self.assertEqual(fakelibvirt.VIR_DOMAIN_RUNNING,
                         self.domain('src', server)._state)

    def test_libvirt_refuses(self):
        self.fake.behaviour.refuses_to_abort = True
        refused = mock.Mock(side_effect=session.LOG.warning)
        self.useFixture(fixtures.MockPatchObject(
            session.LOG, 'warning', refused))
        server = self.boot_tagged()
        self.start_live_migration(server)
        self._wait_for_assert(lambda: self.assertIn(
            'Could not abort: %s',
            [call.args[0] for call in refused.call_args_list]))
        self.fake.behaviour.hangs = False
        self._wait_for_migration_status(server, ['completed'])
        self.assertEqual('completed', self.wait_for_verdict(server)['outcome'])
        self.assert_moved(server)


class TestTheOperatorInterferes(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.fake.behaviour.converges = False

    @base.every_nova
    def test_abort(self):
        server = self.boot_tagged(max_total_ms='600000')
        migration_id = self.start_live_migration(server)
        self.api.api_delete(
            f'/servers/{server["id"]}/migrations/{migration_id}')
        self._wait_for_migration_status(server, ['cancelled'])
        self._wait_for_state_change(server, 'ACTIVE')
        verdict = self.wait_for_verdict(server)
        self.assertEqual(('aborted', 'live-migration-abort was requested'),
                         (verdict['outcome'], verdict['reason']))
        self.assert_stayed(server)

    @base.every_nova
    def test_force_complete(self):
        server = self.boot_tagged(max_total_ms='600000')
        migration_id = self.start_live_migration(server)
        self.api.api_post(
            f'/servers/{server["id"]}/migrations/{migration_id}/action',
            {'force_complete': None})
        self._wait_for_migration_status(server, ['completed'])
        self._wait_for_state_change(server, 'ACTIVE')
        self.assertEqual('completed', self.wait_for_verdict(server)['outcome'])
        self.assert_moved(server)


class TestDestinationWithStockDriver(base.TwoHosts):

    def setUp(self):
        super().setUp()
        self.flags(compute_driver='libvirt.LibvirtDriver')
        self.restart_compute_service('dest')
        self.assertNotIsInstance(self.computes['dest'].driver,
                                 driver.FastMigDriver)

    @base.every_nova
    def test_libvirt_makes_the_guest_persistent(self):
        server = self.boot_tagged()
        self._live_migrate(server)
        self.assertEqual('met', self.wait_for_verdict(server)['verdict'])
        self.assertTrue(self.fake.calls[0].has('PERSIST_DEST'))
        self.assert_moved(server)


class TestPersistence(base.TwoHosts):
    """A tagged guest arrives transient; someone must define it."""

    def arrive(self) -> dict:
        """A guest that has moved while both compute services were dead."""
        server = self.boot_tagged()
        here = self.domain('src', server)
        there = self.fake.hosts['dest'].createXML(here.XMLDesc(0), 0)
        self.assertFalse(there.isPersistent())
        return server

    @base.every_nova
    def test_a_restarted_compute_defines_it(self):
        server = self.arrive()
        self.restart_compute_service('dest')
        self.assertTrue(self.domain('dest', server).isPersistent())

    @base.every_nova
    def test_the_periodic_task_defines_it(self):
        server = self.arrive()
        self._run_periodics()
        self.assertTrue(self.domain('dest', server).isPersistent())

    def test_its_resumption_defines_it(self):
        server = self.arrive()
        self.computes['dest'].driver.emit_event(event.LifecycleEvent(
            server['id'], event.EVENT_LIFECYCLE_RESUMED))
        self._wait_for_assert(lambda: self.assertTrue(
            self.domain('dest', server).isPersistent()))

    def test_as_soon_as_there_is_room(self):
        server = self.arrive()
        self.fake.behaviour.disk_is_full = True
        self._run_periodics()
        self.assertFalse(self.domain('dest', server).isPersistent())
        self.fake.behaviour.disk_is_full = False
        self._run_periodics()
        self.assertTrue(self.domain('dest', server).isPersistent())
        self.assertEqual([self.domain('dest', server)],
                         list(self.fake.hosts['dest']._vms.values()))

    def move_and_lose(self, server: dict) -> None:
        """Have its QEMU end before anybody has defined it, if it can."""
        landed = session.Sessions.landed

        def end(sessions, uuid):
            self.domain('dest', server).destroy()
            landed(sessions, uuid)

        self.useFixture(fixtures.MockPatchObject(
            session.Sessions, 'landed', end))
        self._live_migrate(server, 'completed')
        self.assertTrue(self.domain('dest', server).isPersistent())
        self.assertFalse(self.domain('dest', server).isActive())

    def test_one_that_has_ended_is_shut_off(self):
        server = self.boot_tagged()
        self.move_and_lose(server)
        # Nova holds the event of its end back for a while.
        self.computes['dest'].driver.emit_event(event.LifecycleEvent(
            server['id'], event.EVENT_LIFECYCLE_STOPPED))
        server = self._wait_for_state_change(server, 'SHUTOFF')
        self.assertEqual('dest', server['OS-EXT-SRV-ATTR:host'])
        self.api.post_server_action(
            server['id'], {'reboot': {'type': 'HARD'}})
        self._wait_for_state_change(server, 'ACTIVE')
        self.assertTrue(self.domain('dest', server).isActive())

    def test_an_untagged_one_that_has_ended_is_novas(self):
        server = self.boot()
        self.move_and_lose(server)

    @base.every_nova
    def test_an_incoming_migration_is_let_be(self):
        server = self.arrive()
        self.domain('dest', server).wait_for_source()
        self.restart_compute_service('dest')
        self.assertFalse(self.domain('dest', server).isPersistent())

    def test_an_untagged_guest_is_not_touched(self):
        server = self.boot()
        self.fake.hosts['dest'].createXML(
            self.domain('src', server).XMLDesc(0), 0)
        self.restart_compute_service('dest')
        self._run_periodics()
        self.assertFalse(self.domain('dest', server).isPersistent())


class Interrupted(base.TwoHosts):
    """Something else stops while a guest is migrated."""

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            interrupted, '_AGAIN_S', 0.05))

    def migrate_and_end(self, server: dict, when) -> None:
        """Have its thread end without doing anything, as soon as it may.

        libvirt goes on.
        """
        ended = threading.Event()

        def follow(*args):
            while not when():
                time.sleep(0.01)
            ended.set()
            raise greenlet.GreenletExit

        with mock.patch.object(session.Session, 'follow', follow):
            self._live_migrate(server, 'running', 'MIGRATING')
            self._wait_for_assert(
                lambda: self.assertTrue(ended.is_set()))

    def fail_once(self, target, name: str, told: bool) -> list:
        """The first call times out.

        :param told: the answer is lost; otherwise the question
        :returns: has something for each call
        """
        called = getattr(target, name)
        calls = []

        def call(*args, **kwargs):
            calls.append(True)
            if len(calls) > 1 or told:
                result = called(*args, **kwargs)
            if len(calls) > 1:
                return result
            raise oslo_messaging.MessagingTimeout

        self.useFixture(fixtures.MockPatchObject(target, name, call))
        return calls

    def assert_no_note(self) -> None:
        self._wait_for_assert(lambda: self.assertEqual(
            [], os.listdir(CONF.fastmig.migrations_path)))

    def assert_ended_there(self, server: dict) -> None:
        """Its migration has gone on to its end and is told of."""
        self.assert_moved(server)
        self.assert_allocated(server, 'dest')
        self.assertEqual('completed',
                         self.wait_for_verdict(server)['outcome'])
        self.assert_no_note()


class TestInterrupted(Interrupted):
    """The source's nova-compute ends while it migrates a guest."""

    def has_moved(self, server: dict) -> bool:
        return (self.domain('src', server) is None and
                self.domain('dest', server) is not None)

    @base.every_nova
    def test_the_guest_has_moved(self):
        server = self.boot_tagged()
        self.migrate_and_end(server, lambda: self.has_moved(server))
        self.restart_compute_service('src')
        self._wait_for_migration_status(server, ['completed'])
        self.assert_moved(server)
        self.assert_allocated(server, 'dest')
        self.assertEqual('completed',
                         self.wait_for_verdict(server)['outcome'])
        # and there is nothing left to be done
        self.restart_compute_service('src')
        self.assert_moved(server)

    def test_the_destination_was_told_already(self):
        server = self.boot_tagged()
        with mock.patch.object(
                manager.ComputeManager, '_delete_allocation_after_move',
                side_effect=greenlet.GreenletExit) as told:
            self._live_migrate(server, 'completed')
            self._wait_for_assert(lambda: self.assertTrue(told.called))
        # As if it had come before that.
        migration = objects.Migration.get_by_id(
            context.get_admin_context(), self.migration(server)['id'])
        migration.status = 'running'
        migration.save()
        self.restart_compute_service('src')
        self._wait_for_migration_status(server, ['completed'])
        self.assert_moved(server)
        self.assert_allocated(server, 'dest')

    @base.every_nova
    def test_the_destination_was_not_told(self):
        """Nova has only said where the guest is."""
        server = self.boot_tagged()
        with mock.patch.object(
                rpcapi.ComputeAPI, 'post_live_migration_at_destination',
                side_effect=oslo_messaging.MessagingTimeout), (
                mock.patch.object(interrupted.Notes, '_take_again',
                                  side_effect=greenlet.GreenletExit)) as again:
            self._live_migrate(server, 'running')
            self._wait_for_assert(lambda: self.assertTrue(again.called))
        self.assertEqual('dest', self.api.get_server(
            server['id'])['OS-EXT-SRV-ATTR:host'])
        there = self.computes['dest'].driver
        with mock.patch.object(
                there, 'post_live_migration_at_destination',
                wraps=there.post_live_migration_at_destination) as told:
            self.restart_compute_service('src')
            self._wait_for_migration_status(server, ['completed'])
        told.assert_called_once()
        self.assert_moved(server)
        self.assert_allocated(server, 'dest')

    def test_and_cannot_be_told_at_the_start(self):
        server = self.boot_tagged()
        self.migrate_and_end(server, lambda: self.has_moved(server))
        failing = self.fail_once(
            rpcapi.ComputeAPI, 'post_live_migration_at_destination', False)
        self.restart_compute_service('src')
        self._wait_for_migration_status(server, ['completed'])
        self.assertEqual(2, len(failing))
        self.assert_ended_there(server)

    def test_it_stays_and_cannot_be_rolled_back_at_the_start(self):
        self.fake.behaviour.converges = False
        server = self.boot_tagged(max_total_ms='60000')
        self.migrate_and_end(
            server, lambda: self.domain('src', server)._started is not None)
        failing = self.fail_once(
            manager.ComputeManager, '_revert_allocation', False)
        self.restart_compute_service('src')
        self.assertEqual('failed', self.wait_for_verdict(server)['outcome'])
        self.assertEqual(2, len(failing))
        self._wait_for_migration_status(server, ['error'])
        self.assert_stayed(server)
        self.assert_allocated(server, 'src')
        self.assert_no_note()

    def test_the_guest_still_runs_at_the_source(self):
        self.fake.behaviour.converges = False
        server = self.boot_tagged(max_total_ms='60000')
        self.migrate_and_end(
            server, lambda: self.domain('src', server)._started is not None)
        self.restart_compute_service('src')
        self._wait_for_migration_status(server, ['error'])
        self.assert_stayed(server)
        self.assert_allocated(server, 'src')
        self.assertEqual('failed', self.wait_for_verdict(server)['outcome'])
        self.assertEqual([], os.listdir(CONF.fastmig.migrations_path))

    @base.every_nova
    def test_it_was_being_prepared(self):
        server = self.boot_tagged()
        with mock.patch.object(
                manager.ComputeManager, '_do_pre_live_migration_from_source',
                side_effect=greenlet.GreenletExit) as prepares:
            self._live_migrate(server, 'preparing', 'MIGRATING')
            self._wait_for_assert(lambda: self.assertTrue(prepares.called))
        with mock.patch.object(
                manager.ComputeManager, '_live_migration_cleanup_flags',
                return_value=(False, False)), mock.patch.object(
                driver.FastMigDriver, 'rollback_live_migration_at_destination'
                ) as rollback:
            self.restart_compute_service('src')
            self._wait_for_migration_status(server, ['error'])
            # whatever storage is shared: it may have plugged ports
            self._wait_for_assert(rollback.assert_called_once)
        self.assert_stayed(server)
        self.assert_allocated(server, 'src')

    def test_an_untagged_one_is_novas(self):
        server = self.boot()
        with mock.patch.object(session.interrupted.Notes, 'noted') as noted:
            self._live_migrate(server, 'completed')
        noted.assert_not_called()


@ddt.ddt
class TestUnreachable(Interrupted):
    """The control plane does not answer while a guest is migrated."""

    @ddt.data(False, True)
    def test_after_the_guest_has_moved(self, told):
        server = self.boot_tagged()
        failing = self.fail_once(
            rpcapi.ComputeAPI, 'post_live_migration_at_destination', told)
        self._live_migrate(server, 'completed')
        self.assertGreaterEqual(len(failing), 1 if told else 2)
        self.assert_ended_there(server)

    def test_when_it_stays(self):
        self.fake.behaviour.converges = False
        server = self.boot_tagged(max_total_ms='300')
        self.fail_once(manager.ComputeManager, '_revert_allocation', True)
        self._live_migrate(server, 'cancelled')
        self.assert_stayed(server)
        self.assert_allocated(server, 'src')
        self.assertEqual('aborted',
                         self.wait_for_verdict(server)['outcome'])

    def test_what_fails_otherwise_is_not_repeated(self):
        server = self.boot_tagged()
        with mock.patch.object(
                manager.ComputeManager, '_post_live_migration',
                side_effect=ValueError) as failing:
            self.api.post_server_action(server['id'], {'os-migrateLive': {
                'host': None, 'block_migration': 'auto'}})
            self._wait_for_migration_status(server, ['error'])
            self._wait_for_assert(lambda: self.assertEqual(
                'ERROR', self.api.get_server(server['id'])['status']))
        failing.assert_called_once()

    @staticmethod
    def often(make, instance, migration, interval_s):
        return make(instance, migration, interval_s / 50)

    @base.every_nova
    def test_while_the_guest_moves(self):
        self.useFixture(fixtures.MockPatchObject(
            session.progress, 'Progress', functools.partial(
                self.often, progress.Progress)))
        self.fake.behaviour.converges = False
        server = self.boot_tagged(max_total_ms='3000')
        with mock.patch.object(
                nova_migration, 'save_stats',
                side_effect=oslo_messaging.MessagingTimeout) as save:
            self._live_migrate(server, 'cancelled')
        save.assert_called()
        self.assert_stayed(server)
