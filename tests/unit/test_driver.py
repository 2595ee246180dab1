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

import inspect
import threading
from unittest import mock

import ddt
import fixtures
from nova.compute import manager
from nova.compute import provider_tree
from nova.compute import rpcapi
from nova import conf as nova_conf  # noqa: F401  registers [libvirt]
from nova import exception as nova_exception
from nova.tests import fixtures as nova_fixtures
from nova.virt import event
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as nova_guest
from nova.virt.libvirt import migration as nova_migration
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import capabilities
from nova_fastmig import conf
from nova_fastmig import driver
from nova_fastmig import exception
from tests.unit import values

OVERRIDDEN = sorted(
    name for name, value in vars(driver.FastMigDriver).items()
    if inspect.isfunction(value))


@ddt.ddt
class TestContract(base.BaseTestCase):
    """The seams of Nova that this package builds on."""

    @ddt.data(*OVERRIDDEN)
    def test_overridden_methods_are_called_the_same_way(self, name):
        theirs = inspect.signature(getattr(nova_driver.LibvirtDriver, name))
        ours = inspect.signature(getattr(driver.FastMigDriver, name))
        parameters = [each for each in theirs.parameters.values()]
        required = [each.name for each in parameters
                    if each.default is each.empty]
        # Positional, then by name: both are ways in which Nova calls.
        ours.bind(*required)
        ours.bind(required[0], **dict.fromkeys(
            each.name for each in parameters[1:]))
        named = [each.name for each in ours.parameters.values()
                 if each.kind is each.POSITIONAL_OR_KEYWORD]
        self.assertEqual(
            named, [each.name for each in parameters][:len(named)])

    @ddt.data(
        (nova_migration.run_tasks,
         ['guest', 'instance', 'active_migrations', 'on_migration_failure',
          'migration', 'is_post_copy_enabled']),
        (nova_migration.run_recover_tasks,
         ['host', 'guest', 'instance', 'on_migration_failure']),
        (nova_migration.find_job_type, ['guest', 'instance']),
        (nova_migration.trigger_postcopy_switch,
         ['guest', 'instance', 'migration']),
        (nova_migration.save_stats,
         ['instance', 'migration', 'info', 'remaining']),
        (nova_guest.Guest.migrate,
         ['self', 'destination', 'migrate_uri', 'migrate_disks',
          'destination_xml', 'flags', 'bandwidth']),
        (nova_guest.Guest.migrate_configure_max_downtime,
         ['self', 'mstime']),
        (manager.ComputeManager._rollback_live_migration,
         ['self', 'context', 'instance', 'dest', 'migrate_data',
          'migration_status', 'source_bdms', 'pre_live_migration']),
        (manager.ComputeManager._post_live_migration_update_host,
         ['self', 'ctxt', 'instance', 'dest', 'block_migration',
          'migrate_data', 'source_bdms']),
        (manager.ComputeManager._delete_allocation_after_move,
         ['self', 'context', 'instance', 'migration']),
        (manager.ComputeManager._live_migration_cleanup_flags,
         ['self', 'migrate_data']),
        (rpcapi.ComputeAPI.rollback_live_migration_at_destination,
         ['self', 'ctxt', 'instance', 'host', 'destroy_disks',
          'migrate_data']),
        (manager.ComputeManager.update_available_resource,
         ['self', 'context', 'startup']),
    )
    @ddt.unpack
    def test_helpers(self, function, parameters):
        self.assertEqual(
            parameters,
            list(inspect.signature(function).parameters)[:len(parameters)])


class TestFastMigDriver(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.conf = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)
        self.useFixture(nova_fixtures.LibvirtFixture())

    def make(self) -> driver.FastMigDriver:
        made = driver.FastMigDriver(fake.FakeVirtAPI(), read_only=True)
        made._host = mock.Mock()
        return made

    def test_settings_that_contradict_each_other_stop_it(self):
        self.conf.config(group='fastmig', default_max_downtime_ms=1001)
        self.assertRaises(exception.InvalidSetting, self.make)

    def test_untagged_guests_take_the_stock_path(self):
        made = self.make()
        instance = mock.Mock(uuid='an-uuid')
        for name, arguments in (
                ('_live_migration_operation', 7 * (None,)),
                ('_live_migration_monitor', 10 * (None,)),
                ('live_migration_abort', (instance,)),
                ('live_migration_force_complete', (instance,))):
            arguments = tuple(instance if position == 1 or
                              each is instance else each
                              for position, each in enumerate(arguments))
            with mock.patch.object(
                    nova_driver.LibvirtDriver, name) as stock:
                getattr(made, name)(*arguments)
            stock.assert_called_once()

    def test_advertises_itself(self):
        with (mock.patch.object(nova_driver.LibvirtDriver,
                                'get_available_resource',
                                return_value={'vcpus': 1, 'stats': {'a': 1}}),
              mock.patch.object(capabilities, 'read',
                                return_value=values.host()),
              mock.patch.object(driver.fast_guest, 'persist_all') as persist):
            resources = self.make().get_available_resource('node')
        self.assertEqual(
            {'vcpus': 1, 'stats': {
                'a': 1, **capabilities.to_stats(values.host())}},
            resources)
        persist.assert_called_once()

    def test_bandwidth_is_reserved_for_an_arrival(self):
        made = self.make()
        made._sessions = sessions = mock.MagicMock()
        for name, is_next, arguments in (
                ('check_can_live_migrate_destination', False, 2),
                ('pre_live_migration', True, 4)):
            with (mock.patch.object(nova_driver.LibvirtDriver, name) as stock,
                  mock.patch.object(driver.session, 'check_host')):
                sessions.plug.side_effect = (
                    lambda context, instance, migrate_data, plug: plug())
                getattr(made, name)(None, mock.sentinel.instance,
                                    *arguments * (None,))
            stock.assert_called_once()
            sessions.expect.assert_called_once_with(mock.sentinel.instance,
                                                    is_next=is_next)
            sessions.expect.return_value.__exit__.assert_called_once()
            sessions.reset_mock()

    def test_without_bandwidth_novas_check_does_not_begin(self):
        """It makes a file on the storage, and nobody would remove it."""
        made = self.make()
        made._sessions = sessions = mock.MagicMock()
        sessions.expect.return_value.__enter__.side_effect = (
            nova_exception.MigrationPreCheckError(reason='no room'))
        with (mock.patch.object(nova_driver.LibvirtDriver,
                                'check_can_live_migrate_destination') as stock,
              mock.patch.object(driver.session, 'check_host')):
            self.assertRaises(nova_exception.MigrationPreCheckError,
                              made.check_can_live_migrate_destination,
                              None, mock.sentinel.instance, None, None)
        stock.assert_not_called()

    def test_ports_that_are_not_wired_keep_no_bandwidth(self):
        made = self.make()
        made._sessions = sessions = mock.MagicMock()
        sessions.plug.side_effect = ValueError
        self.assertRaises(ValueError, made.pre_live_migration, None,
                          mock.sentinel.instance, *4 * (None,))
        raised, *_ = sessions.expect.return_value.__exit__.call_args.args
        self.assertIs(ValueError, raised)

    def test_ports_left_over_are_unplugged(self):
        made = self.make()
        made._sessions = mock.Mock()
        made._sessions.left_over.return_value = [('instance', ['port'])]
        with (mock.patch.object(nova_driver.LibvirtDriver,
                                'get_available_resource', return_value={}),
              mock.patch.object(nova_driver.LibvirtDriver, '_unplug_vifs')
              as unplug,
              mock.patch.object(capabilities, 'read',
                                return_value=values.host()),
              mock.patch.object(driver.fast_guest, 'persist_all')):
            made.get_available_resource('node')
        unplug.assert_called_once_with(
            'instance', made._sessions.plan_ports.return_value, True)
        made._sessions.finish_interrupted_later.assert_called_once_with()

    def test_the_guest_is_checked_with_what_nova_has_found(self):
        with (mock.patch.object(nova_driver.LibvirtDriver,
                                'check_can_live_migrate_source') as stock,
              mock.patch.object(driver.session, 'check_host') as host,
              mock.patch.object(driver.session, 'check_guest') as guest):
            made = self.make()
            made._sessions = sessions = mock.Mock()
            self.assertIs(stock.return_value,
                          made.check_can_live_migrate_source(
                              mock.sentinel.context, mock.sentinel.instance,
                              None))
        sessions.check_pair.assert_called_once_with(
            mock.sentinel.context, mock.sentinel.instance, stock.return_value)
        host.assert_called_once_with(made._host, mock.sentinel.instance,
                                     running_here=True)
        guest.assert_called_once_with(made._host, mock.sentinel.instance,
                                      stock.return_value)

    def test_and_renewed_and_given_back(self):
        made = self.make()
        made._sessions = sessions = mock.Mock()
        guest = mock.Mock(uuid='uuid')
        with (mock.patch.object(nova_driver.LibvirtDriver, 'emit_event'),
              mock.patch.object(
                  nova_driver.LibvirtDriver,
                  'rollback_live_migration_at_destination'),
              mock.patch.object(nova_driver.LibvirtDriver,
                                'post_live_migration_at_destination'),
              mock.patch.object(driver.fast_guest, 'announce_by_uuid'),
              mock.patch.object(driver.fast_guest, 'persist_by_uuid')):
            for called, end in (
                    ('begun', lambda: made.emit_event(event.LifecycleEvent(
                        'uuid', event.EVENT_LIFECYCLE_STARTED))),
                    ('arrived', lambda: made.emit_event(event.LifecycleEvent(
                        'uuid', event.EVENT_LIFECYCLE_STOPPED))),
                    ('arrived',
                     lambda: made.rollback_live_migration_at_destination(
                         None, guest, None, None)),
                    ('landed',
                     lambda: made.post_live_migration_at_destination(
                         None, guest, None))):
                end()
                getattr(sessions, called).assert_called_once_with('uuid')
                sessions.reset_mock()

    def test_traits_come_and_go(self):
        tree = provider_tree.ProviderTree()
        tree.new_root('node', '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f')
        tree.add_traits('node', 'CUSTOM_OTHER')
        made = self.make()
        for emulator, traits in ((None, {'CUSTOM_FASTMIG'}),
                                 ('/opt/q', {'CUSTOM_FASTMIG',
                                             'CUSTOM_FASTMIG_QEMU'}),
                                 (None, {'CUSTOM_FASTMIG'})):
            with (mock.patch.object(nova_driver.LibvirtDriver,
                                    'update_provider_tree') as stock,
                  mock.patch.object(capabilities, 'patched_emulator',
                                    return_value=emulator)):
                made.update_provider_tree(tree, 'node', {})
            stock.assert_called_once_with(tree, 'node', {})
            self.assertEqual({'CUSTOM_OTHER', *traits},
                             set(tree.data('node').traits))

    def test_a_resumed_guest_is_welcome(self):
        made = self.make()
        with (mock.patch.object(nova_driver.LibvirtDriver, 'emit_event'),
              mock.patch.object(driver.fast_guest, 'welcome') as welcome):
            made.emit_event(event.LifecycleEvent(
                'uuid', event.EVENT_LIFECYCLE_PAUSED))
            made.emit_event(event.LifecycleEvent(
                'uuid', event.EVENT_LIFECYCLE_RESUMED))
            made._for_us.join()
            welcome.assert_called_once_with(made._host, 'uuid')

    def test_libvirts_event_loop_waits_for_nobody(self):
        made, answer, told = self.make(), threading.Event(), []

        def ask(event):
            answer.wait(60)
            told.append(event)

        self.addCleanup(answer.set)
        with mock.patch.object(nova_driver.LibvirtDriver, 'emit_event',
                               side_effect=ask):
            events = [event.LifecycleEvent('uuid', transition)
                      for transition in (event.EVENT_LIFECYCLE_STARTED,
                                         event.EVENT_LIFECYCLE_PAUSED)]
            for each in events:
                made.emit_event(each)
            self.assertEqual([], told)
            answer.set()
            made._for_nova.join()
        self.assertEqual(events, told)

    def test_a_closed_connection_is_told_by_who_asks(self):
        host = driver.FastMigDriver(fake.FakeVirtAPI(), read_only=True)._host
        if not hasattr(host, '_connection_closed'):
            self.skipTest('Nova 32 always has another thread do it')
        host._wrapped_conn = mock.Mock()

        def close(connection):
            host._connection_closed(connection, False, 'closed')
            return False

        self.useFixture(fixtures.MockPatchObject(
            host, '_test_connection', close))
        new = self.useFixture(fixtures.MockPatchObject(
            host, '_get_new_connection')).mock
        asking = threading.Thread(target=host.get_connection, daemon=True)
        asking.start()
        asking.join(30)
        self.assertFalse(asking.is_alive())
        self.assertIs(new.return_value, host._wrapped_conn)
