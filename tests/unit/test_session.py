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

import collections
import contextlib
import dataclasses
import datetime
import pathlib
import time
import types
from unittest import mock

import ddt
import fixtures
import libvirt
from nova import exception as nova_exception
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import oslo_messaging
from oslo_utils import timeutils
from oslotest import base

from nova_fastmig import calibration
from nova_fastmig import calibration_store
from nova_fastmig import conf
from nova_fastmig import metrics
from nova_fastmig import model
from nova_fastmig import reservation
from nova_fastmig import session
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'
CONTEXT = mock.sentinel.context


def error(code: int, message: str = 'boom') -> libvirt.libvirtError:
    made = libvirt.libvirtError(message)
    made.err = code, None, message
    return made


def instance(**extra_specs):
    return types.SimpleNamespace(
        uuid=UUID, name='instance-1', host='compute1', numa_topology=None,
        flavor=types.SimpleNamespace(
            name='nfv.small', memory_mb=512, extra_specs={
                f'fastmig:{key}': value
                for key, value in extra_specs.items()}))


class SessionTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.conf = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)
        calibration_store.register_opts(cfg.CONF)
        self.calibration_path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'calibration.json')
        self.conf.config(group='fastmig',
                         calibration_path=str(self.calibration_path))
        self.host = mock.Mock()
        self.xml = self.host.get_guest.return_value.get_xml_desc
        self.xml.return_value = '<domain><devices/></domain>'
        self.caps = values.host()
        self.peer = values.host(host='compute2')
        for name, value in (('read', lambda *args: self.caps),
                            ('peer', lambda *args: self.peer)):
            patch = mock.patch.object(session.capabilities, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        for name in 'Register', 'Deregister':
            patch = mock.patch.object(session.watch.qmp.libvirt_qemu,
                                      f'qemuMonitorEvent{name}')
            setattr(self, f'qemu_event_{name.lower()}', patch.start())
            self.addCleanup(patch.stop)


@ddt.ddt
class TestCheckHost(SessionTestCase):

    def refusal(self, **extra_specs) -> str:
        return str(self.assertRaises(
            nova_exception.MigrationPreCheckError, session.check_host,
            self.host, instance(**extra_specs)))

    @ddt.data({}, {'enabled': 'false'}, {'enabled': 'true'},
              {'enabled': 'no', 'max_downtime_ms': 'soon'})
    def test_good(self, extra_specs):
        session.check_host(self.host, instance(**extra_specs))

    def test_an_untagged_guest_costs_no_question(self):
        self.caps = None
        session.check_host(self.host, instance(), running_here=True)
        self.host.get_guest.assert_not_called()

    def test_no_extra_specs_at_all(self):
        guest = instance()
        guest.flavor.extra_specs = None
        session.check_host(self.host, guest)

    def test_an_invalid_value(self):
        self.assertIn("'fastmig:max_downtime_ms' = 'soon' is not valid; "
                      'allowed: a whole number from 1 to 1000',
                      self.refusal(enabled='true', max_downtime_ms='soon'))

    def test_what_the_host_lacks(self):
        self.assertIn('(/usr/bin/qemu-system-x86_64) is not patched',
                      self.refusal(enabled='true', qemu='patched'))

    def numa(self, *cells) -> types.SimpleNamespace:
        """A guest with cells of (page size in KiB, MiB)."""
        guest = instance(enabled='true')
        guest.numa_topology = types.SimpleNamespace(cells=[
            types.SimpleNamespace(pagesize=pagesize, memory=memory)
            for pagesize, memory in cells])
        return guest

    def test_hugepages_that_are_not_free(self):
        self.conf.config(host='here')
        guest = self.numa((2048, 512), (2048, 513))
        with mock.patch.object(session.capabilities, 'free_pages',
                               return_value={2048: [257, 256]}) as free:
            session.check_host(self.host, guest)
            free.return_value = {2048: [257, 255]}
            error = self.assertRaises(
                nova_exception.MigrationPreCheckError, session.check_host,
                self.host, guest)
            self.assertIn(
                'the guest needs 256 free hugepages of 2048 KiB on a NUMA '
                'node of host here, but 255 are free', str(error))
            free.assert_called_with(self.host, {2048})
            # At the source it has them.
            session.check_host(self.host, guest, running_here=True)

    @ddt.data((), ((4, 512),), ((None, 512),))
    def test_a_guest_without_hugepages(self, cells):
        with mock.patch.object(session.capabilities, 'free_pages') as free:
            session.check_host(self.host, self.numa(*cells))
        free.assert_not_called()

    def test_a_libvirt_that_does_not_count_pages(self):
        with mock.patch.object(session.capabilities, 'free_pages',
                               side_effect=error(1)):
            session.check_host(self.host, self.numa((2048, 512)))

    def test_a_contradictory_configuration(self):
        self.conf.config(group='fastmig', default_max_downtime_ms=2000)
        self.assertIn('[fastmig] default_max_downtime_ms = 2000',
                      self.refusal(enabled='true'))


SRIOV = '''<domain><devices><interface type="hostdev">
<mac address="fa:16:3e:00:00:01"/></interface></devices></domain>'''
SRIOV_REASON = 'the guest has the SR-IOV port fa:16:3e:00:00:01 of host here'


class MigrateData(types.SimpleNamespace):

    def __contains__(self, name):
        return hasattr(self, name)


@ddt.ddt
class TestCheckGuest(SessionTestCase):

    def setUp(self):
        super().setUp()
        self.conf.config(host='here')

    def check(self, migrate_data=None, **extra_specs) -> None:
        session.check_guest(self.host, instance(**extra_specs), migrate_data)

    def refusal(self, *args) -> str:
        return str(self.assertRaises(
            nova_exception.MigrationPreCheckError, self.check, *args,
            enabled='true'))

    @ddt.data(None, MigrateData(), MigrateData(block_migration=False))
    def test_good(self, migrate_data):
        self.check(migrate_data, enabled='true')

    def test_passthrough(self):
        self.xml.return_value = SRIOV
        self.assertIn(
            f"{SRIOV_REASON} ('passthrough' is not in "
            '[fastmig]permitted_obstacles)', self.refusal())
        self.conf.config(group='fastmig', permitted_obstacles=['passthrough'])
        self.check(enabled='true')

    def test_disks_that_are_not_shared(self):
        data = MigrateData(block_migration=True)
        self.assertIn('the guest has disks on host here that are not shared',
                      self.refusal(data))
        self.conf.config(group='fastmig',
                         permitted_obstacles=['block-migration'])
        self.check(data, enabled='true')

    def test_an_untagged_guest_is_not_looked_at(self):
        self.xml.return_value = SRIOV
        self.check(MigrateData(block_migration=True))
        self.host.get_guest.assert_not_called()

    def test_an_invalid_value(self):
        self.assertRaises(nova_exception.MigrationPreCheckError, self.check,
                          enabled='perhaps')


@ddt.ddt
class TestChooseEmulator(SessionTestCase):

    XML = '<domain><devices><emulator>/usr/bin/qemu</emulator></devices>' \
          '</domain>'

    def choose(self, patched: str | None, **extra_specs) -> str:
        with mock.patch.object(session.capabilities, 'patched_emulator',
                               return_value=patched):
            return session.choose_emulator(instance(**extra_specs), self.XML)

    def test_tagged(self):
        self.assertIn('<emulator>/opt/q</emulator>',
                      self.choose('/opt/q', enabled='true'))

    @ddt.data(
        (None, {'enabled': 'true'}),
        (None, {'enabled': 'true', 'qemu': 'patched'}),
        ('/opt/q', {}), ('/opt/q', {'enabled': 'false'}),
        ('/opt/q', {'enabled': 'true', 'qemu': 'best'}))
    @ddt.unpack
    def test_left_as_it_is(self, patched, extra_specs):
        self.assertEqual(self.XML, self.choose(patched, **extra_specs))


class TestSessionsRun(SessionTestCase):

    def setUp(self):
        super().setUp()
        self.sessions = session.Sessions(self.host)
        self.reports = []
        self.sessions._sinks = types.SimpleNamespace(
            emit=lambda context, report: self.reports.append(report))
        self.migrate = mock.Mock()
        self.recover = mock.Mock()

    def run_one(self, the_instance) -> None:
        self.sessions.run(CONTEXT, the_instance, 'compute2', self.migrate,
                          self.recover)

    def test_untagged(self):
        guest = instance()
        self.migrate.side_effect = lambda: self.assertIsNone(
            self.sessions.get(guest))
        self.run_one(guest)
        self.migrate.assert_called_once_with()
        self.assertEqual([], self.reports)

    def test_tagged_has_a_session_while_it_lasts(self):
        guest = instance(enabled='true')
        self.migrate.side_effect = lambda: self.assertIsInstance(
            self.sessions.get(guest), session.Session)
        self.run_one(guest)
        self.assertIsNone(self.sessions.get(guest))
        report, = self.reports
        self.assertEqual(('compute1', 'compute2', UUID),
                         (report.source, report.destination,
                          report.instance_uuid))

    def test_a_migration_that_breaks_is_reported(self):
        self.migrate.side_effect = ValueError
        guest = instance(enabled='true')
        self.assertRaises(ValueError, self.run_one, guest)
        self.assertIsNone(self.sessions.get(guest))
        self.assertEqual([model.Outcome.FAILED],
                         [report.outcome for report in self.reports])

    def test_refused(self):
        """Nova's settings can change after the checks."""
        self.conf.config(group='libvirt', live_migration_tunnelled=True)
        self.run_one(instance(enabled='true'))
        self.migrate.assert_not_called()
        self.recover.assert_called_once_with('failed')
        report, = self.reports
        self.assertEqual(model.Outcome.REFUSED, report.outcome)
        self.assertIn('live_migration_tunnelled is set', report.reason)

    def test_the_flavor_is_a_label_of_the_metrics(self):
        metrics.register_opts(cfg.CONF)
        path = self.calibration_path.with_name('x.prom')
        self.conf.config(group='fastmig', sinks=['prometheus'],
                         prometheus_textfile=str(path))
        made = self.sessions = session.Sessions(self.host)
        guest = instance(enabled='true')
        self.run_one(guest)
        self.conf.config(group='libvirt', live_migration_tunnelled=True)
        self.run_one(guest)
        made._tell_interrupted(CONTEXT, guest, 'compute2',
                               session.interrupted.Place.AWAY)
        made._sinks.join()
        written = path.read_text()
        for outcome in ('failed', 'refused', 'completed'):
            self.assertIn(
                'fastmig_migrations_total{flavor="nfv.small",'
                f'outcome="{outcome}",verdict="unknown"}} 1.0', written)

    def learn(self, fixed_ms: float, **versions: model.HostCaps) -> None:
        hosts = {'source': self.caps, 'destination': self.peer, **versions}
        for _ in range(calibration.MIN_OBSERVATIONS):
            self.sessions._calibration.add(
                calibration.Pair('compute1', 'compute2'),
                session._versions(**hosts), fixed_ms, 1e9)

    def limit(self) -> int | None:
        self.run_one(instance(enabled='true'))
        return self.reports[-1].downtime_limit_ms

    def test_the_limit_is_what_calibration_leaves(self):
        self.assertEqual(10, self.limit())
        self.assertIsNone(self.reports[0].expected)
        self.learn(6.5)
        self.assertEqual(3, self.limit())
        self.assertEqual(model.Estimate(6.5, 1e9, 5, 6.5),
                         self.reports[1].expected)

    def test_what_other_versions_taught_does_not_count(self):
        self.learn(6.5, destination=values.host(driver_version='0.9.0'))
        self.assertEqual(10, self.limit())

    def test_another_driver_at_the_destination(self):
        self.learn(6.5)
        self.peer = None
        self.assertEqual(10, self.limit())

    def test_calibration_leaves_nothing(self):
        self.learn(9.5)
        self.assertIsNone(self.limit())
        self.migrate.assert_not_called()
        self.recover.assert_called_once_with('failed')
        report, = self.reports
        self.assertEqual(model.Outcome.REFUSED, report.outcome)
        self.assertIn('9.5 ms do not depend on memory (learned from 5 '
                      'migrations)', report.reason)

    def check_pair(self, asking='compute2', **extra_specs) -> None:
        with mock.patch.object(session.capabilities, 'who_asks',
                               return_value=asking) as self.who_asks:
            self.sessions.check_pair(
                CONTEXT, instance(enabled='true', **extra_specs), None)

    def pair_refusal(self, **extra_specs) -> str:
        return str(self.assertRaises(
            nova_exception.MigrationPreCheckError, self.check_pair,
            **extra_specs))

    def test_it_is_told_before_it_starts(self):
        self.check_pair()
        self.who_asks.assert_called_once_with(CONTEXT, UUID)
        self.learn(9.5)
        self.assertIn('9.5 ms do not depend on memory', self.pair_refusal())
        self.check_pair(max_downtime_ms='11')
        # Another destination may be better, and one that is not known is
        # found out about later.
        self.peer = values.host(host='compute3')
        self.check_pair('compute3')
        self.check_pair(None)

    def test_all_that_the_two_hosts_lack(self):
        self.caps = values.host(native_tls=True)
        self.peer = values.host(host='compute2', native_tls=False)
        self.learn(9.5)
        refusal = self.pair_refusal(qemu='patched')
        for words in ('native_tls is on on host compute1 and off on host '
                      'compute2', '9.5 ms do not depend', 'of host compute2 '
                      '(/usr/bin/qemu-system-x86_64) is not patched'):
            self.assertIn(words, refusal)

    def test_an_untagged_guest_costs_no_question_about_the_pair(self):
        self.caps = None
        self.sessions.check_pair(CONTEXT, instance(), None)

    def test_a_check_reserves_nothing(self):
        with mock.patch.object(self.sessions._reservations, 'take') as take:
            self.check_pair()
        take.assert_not_called()

    def test_a_trial(self):
        self.conf.config(group='fastmig', calibration_retry_s=1000)
        self.sessions._calibration = calibration_store.Store.configured(
            cfg.CONF)
        self.learn(9.5)
        self.assertIsNone(self.limit())
        # The learned ones are old enough now.
        self.sessions._calibration._retry_s = 0
        self.check_pair()
        self.assertEqual(1, self.limit())
        self.assertIn('a trial, because the flavor allows',
                      self.reports[-1].reason)
        # It has just been tried.
        self.sessions._calibration._retry_s = 1000
        self.assertIsNone(self.limit())
        self.assertIn('9.5 ms do not depend', self.pair_refusal())

    def test_two_trials_at_once(self):
        self.learn(9.5)
        with (mock.patch.object(self.sessions._calibration, 'is_trial_due',
                                return_value=True),
              mock.patch.object(self.sessions._calibration, 'begin_trial',
                                return_value=False)):
            self.assertIsNone(self.limit())
        self.assertIn('a trial between host compute1 and host compute2 has '
                      'just begun', self.reports[-1].reason)

    def test_what_qemu_is_to_expect(self):
        def plan_of() -> model.Plan:
            self.migrate.side_effect = lambda: plans.append(
                self.sessions.get(instance())._plan)
            plans = []
            self.run_one(instance(enabled='true'))
            return plans[0]

        self.assertIsNone(plan_of().switchover_bandwidth_mib_s)
        self.learn(6.5)
        self.assertEqual(953, plan_of().switchover_bandwidth_mib_s)
        self.conf.config(group='fastmig', switchover_bandwidth_mib_s=1200)
        self.assertEqual(1200, plan_of().switchover_bandwidth_mib_s)

    def test_an_obstacle_that_is_no_longer_permitted(self):
        self.xml.return_value = SRIOV
        self.run_one(instance(enabled='true'))
        self.migrate.assert_not_called()
        self.assertEqual(model.Outcome.REFUSED, self.reports[0].outcome)

    def test_a_permitted_obstacle_is_in_the_verdict(self):
        self.conf.config(host='here')
        self.conf.config(group='fastmig', permitted_obstacles=['passthrough'])
        self.xml.return_value = SRIOV
        self.run_one(instance(enabled='true'))
        self.migrate.assert_called_once_with()
        self.assertIn(SRIOV_REASON, self.reports[0].reason)

    def test_no_longer_valid(self):
        self.run_one(instance(enabled='true', on_miss='shrug'))
        self.migrate.assert_not_called()
        self.recover.assert_called_once_with('failed')


@ddt.ddt
class TestReservation(SessionTestCase):
    """512 MiB in 2 s, with as much again: 512 MiB/s."""

    def setUp(self):
        super().setUp()
        reservation.register_opts(cfg.CONF)
        self.conf.config(group='fastmig', migration_bandwidth_mib_s=800,
                         migration_bandwidth_wait_s=0)
        self.sessions = session.Sessions(self.host)
        self.reports = []
        self.sessions._sinks = types.SimpleNamespace(
            emit=lambda context, report: self.reports.append(report))
        self.recover = mock.Mock()

    def free_mib_s(self) -> int:
        return self.sessions._reservations._ledger.free_bytes_per_s >> 20

    def run_one(self, migrate, **extra_specs) -> None:
        self.sessions.run(CONTEXT, instance(enabled='true', **extra_specs),
                          'compute2', migrate, self.recover)

    def plan(self) -> model.Plan:
        return self.sessions.get(instance())._plan

    def test_it_lasts_as_long_as_the_migration(self):
        def migrate():
            self.assertEqual(288, self.free_mib_s())
            self.assertEqual(512, self.plan().bandwidth_limit_mib_s)
        self.run_one(migrate)
        self.assertEqual(800, self.free_mib_s())

    def test_an_error_gives_it_back(self):
        self.assertRaises(ValueError, self.run_one,
                          mock.Mock(side_effect=ValueError))
        self.assertEqual(800, self.free_mib_s())

    def test_a_refused_plan_gives_it_back(self):
        self.conf.config(group='libvirt', live_migration_tunnelled=True)
        self.run_one(mock.Mock())
        self.assertEqual(800, self.free_mib_s())
        self.assertEqual(model.Outcome.REFUSED, self.reports[0].outcome)

    def test_more_than_there_is(self):
        self.run_one(lambda: self.assertEqual(
            800, self.plan().bandwidth_limit_mib_s), max_total_ms='1000')

    def test_no_room(self):
        other = self.sessions._reservations.hold('other', 300 << 20, 0)
        migrate = mock.Mock()
        with other:
            self.run_one(migrate)
        migrate.assert_not_called()
        self.recover.assert_called_once_with('failed')
        self.assertIn('the migration needs 512 MiB/s, but of the 800 MiB/s',
                      self.reports[0].reason)

    def test_an_untagged_guest_reserves_nothing(self):
        self.sessions.run(CONTEXT, instance(), 'compute2',
                          lambda: self.assertEqual(800, self.free_mib_s()),
                          self.recover)
        with self.sessions.expect(instance(), is_next=True):
            self.assertEqual(800, self.free_mib_s())

    @ddt.data(True, False)
    def test_an_arrival(self, is_next):
        with self.sessions.expect(instance(enabled='true'), is_next):
            self.assertEqual(288, self.free_mib_s())
        self.assertEqual(288, self.free_mib_s())
        self.sessions.arrived(UUID)
        self.assertEqual(800, self.free_mib_s())

    @ddt.data(True, False)
    def test_an_arrival_that_nova_refuses(self, is_next):
        with contextlib.suppress(ValueError):
            with self.sessions.expect(instance(enabled='true'), is_next):
                raise ValueError
        self.assertEqual(800, self.free_mib_s())

    def prepare(self, **extra_specs) -> None:
        """Let Nova prepare the arrival of a guest, up to libvirt's part."""
        guest = instance(enabled='true', **extra_specs)
        with (mock.patch.object(session.ports, 'announce_move'),
              self.sessions.expect(guest, is_next=True)):
            self.sessions.plug(CONTEXT, guest, None, lambda: None)

    def left_s(self) -> tuple[int, int]:
        """How long bandwidth and ports are kept from now on."""
        now_s = time.monotonic()
        entry = self.sessions._reservations._ledger.grant_to(
            self.sessions._arrival(UUID))
        return tuple(
            until_s if until_s == float('inf') else round(until_s - now_s)
            for until_s in (entry.until_s,
                            self.sessions._arrivals._by_uuid[UUID][0]))

    def wait_long(self) -> None:
        """Let each wait before libvirt's part have a length of its own."""
        self.conf.config(vif_plugging_timeout=4000)
        self.conf.config(group='fastmig', port_wiring_timeout_s=500,
                         migration_bandwidth_wait_s=30)

    @ddt.data('abort', 'proceed')
    def test_how_long_libvirts_part_is_waited_for(self, on_miss):
        self.wait_long()
        self.prepare(on_miss=on_miss)
        self.assertEqual(2 * (60 + 500 + 4000 + 30,), self.left_s())
        self.assertEqual([], self.sessions._arrivals.overdue())

    def test_how_long_the_check_is_good_for(self):
        with (mock.patch.object(self.sessions._reservations, 'take') as take,
              self.sessions.expect(instance(enabled='true'), is_next=False)):
            self.assertEqual(60, take.call_args.kwargs['lease_s'])

    def test_how_long_the_migration_is_waited_for(self):
        self.wait_long()
        for timeout_s, extra_specs, lasts_s in (
                (800, {}, 60 + 2),
                # Nova counts at least 2 GiB.
                (800, {'on_miss': 'proceed'}, 60 + 2 * 800),
                (0, {'on_miss': 'proceed'}, float('inf'))):
            self.conf.config(group='libvirt',
                             live_migration_completion_timeout=timeout_s)
            self.prepare(**extra_specs)
            self.sessions.begun(UUID)
            self.assertEqual(2 * (lasts_s,), self.left_s())

    def test_a_guest_that_starts_later_is_not_waited_for(self):
        self.prepare()
        self.sessions.landed(UUID)
        self.sessions.begun(UUID)
        self.assertEqual(800, self.free_mib_s())

    def test_libvirts_event_is_missed(self):
        self.prepare(on_miss='proceed')
        self.host.get_guest.side_effect = nova_exception.InstanceNotFound(
            instance_id=UUID)
        self.assertEqual([], self.sessions.left_over())
        self.assertEqual(2 * (60 + 30 + 300,), self.left_s())
        self.host.get_guest.side_effect = None
        self.assertEqual([], self.sessions.left_over())
        self.assertEqual(2 * (60 + 2 * 800,), self.left_s())

    @ddt.data(True, False)
    def test_ports_that_are_left_over(self, has_begun):
        for name in '_begins_s', '_lasts_s':
            self.useFixture(fixtures.MockPatchObject(
                session, name, return_value=0))
        self.prepare()
        if has_begun:
            self.sessions.begun(UUID)
        self.host.get_guest.side_effect = nova_exception.InstanceNotFound(
            instance_id=UUID)
        (guest, network_info), = self.sessions.left_over()
        self.assertEqual((UUID, []), (guest.uuid, network_info))

    def test_no_room_for_an_arrival(self):
        with self.sessions._reservations.hold('other', 300 << 20, 0):
            error = self.assertRaises(
                nova_exception.MigrationPreCheckError,
                self.sessions.expect(instance(enabled='true'),
                                     is_next=False).__enter__)
        self.assertIn('the migration needs 512 MiB/s', str(error))

    def test_where_nothing_is_reserved(self):
        self.conf.config(group='fastmig', migration_bandwidth_mib_s=0)
        self.sessions = session.Sessions(self.host)
        self.run_one(lambda: self.assertIsNone(
            self.plan().bandwidth_limit_mib_s))


@ddt.ddt
class TestFollow(SessionTestCase):
    """One migration, with libvirt and Nova's migration helpers replaced."""

    def setUp(self):
        super().setUp()
        self.connection = self.host.get_connection.return_value
        self.domain = mock.create_autospec(libvirt.virDomain, instance=True)
        self.domain.state.return_value = [libvirt.VIR_DOMAIN_RUNNING, 0]
        self.domain.jobStats.return_value = {}
        self.migration = types.SimpleNamespace(status='running')
        self.post = mock.Mock()
        self.recover = mock.Mock()
        self.bindings = mock.Mock(**{'wait.return_value': 41.0})
        # libvirt's own functions would leave an error behind, which the next
        # libvirtError of a test would show.
        for name in ('Register', 'Deregister'):
            self.useFixture(fixtures.MockPatchObject(
                session.watch.qmp.libvirt_qemu, f'qemuMonitorEvent{name}'))
        for name in ('run_tasks', 'run_recover_tasks', 'find_job_type',
                     'trigger_postcopy_switch'):
            patch = mock.patch.object(session.nova_migration, name)
            setattr(self, name, patch.start())
            self.addCleanup(patch.stop)
        patch = mock.patch.object(session, '_COMPLETED_STATS_TIMEOUT_S', 0.05)
        patch.start()
        self.addCleanup(patch.stop)
        # The guest is still here, unless a test says otherwise.
        self.find_job_type.return_value = libvirt.VIR_DOMAIN_JOB_FAILED

    def make(self, **sla) -> session.Session:
        the_sla = values.sla(**sla)
        made = session.Session(
            self.host, instance(), 'compute2', the_sla,
            session.plan.make(
                the_sla, self.caps, self.peer,
                values.transport(post_copy_permitted=True),
                frozenset(model.QemuFeature)), self.bindings)
        return made

    def follow(self, made: session.Session, post_copy_possible=True,
               give_up_s=0) -> model.SlaReport:
        made.follow(self.domain, {}, self.migration, post_copy_possible,
                    give_up_s, self.post, self.recover)
        return made.report()

    def end_with(self, made: session.Session, result=None) -> None:
        """Let the migration call return, or raise, at once."""
        made.operate(self.domain, mock.Mock(side_effect=result))

    def complete(self, **stats) -> None:
        """Let libvirt tell about the end as soon as someone listens."""
        def register(domain, event_id, callback, opaque):
            if event_id == libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED:
                who = mock.Mock()
                who.UUIDString.return_value = UUID
                callback(self.connection, who, stats, None)
            return event_id
        self.connection.domainEventRegisterAny.side_effect = register

    def test_met(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900)
        self.end_with(made)
        report = self.follow(made)
        self.assertEqual(model.Verdict.MET, report.verdict)
        self.assertEqual((6, 900), (report.downtime.measured_ms,
                                    report.total.measured_ms))
        self.post.assert_called_once_with()
        self.recover.assert_not_called()

    def test_the_time_outside_of_libvirt(self):
        made = session.Session(
            self.host, instance(), 'compute2', values.sla(), values.plan(),
            self.bindings, waited_ms=120)
        asked_at = timeutils.utcnow(with_timezone=True)
        self.migration.created_at = asked_at - datetime.timedelta(seconds=3)
        self.post.side_effect = lambda: time.sleep(0.05)
        self.complete(downtime=6, time_elapsed=900)
        self.end_with(made)
        times = self.follow(made).nova
        self.assertEqual(120, times.waited_ms)
        self.assertGreaterEqual(times.before_ms, 3000)
        self.assertLess(times.before_ms, 60000)
        self.assertGreaterEqual(times.after_ms, 50)

    def test_a_migration_that_was_asked_for_in_the_future(self):
        made = self.make()
        self.migration.created_at = (timeutils.utcnow(with_timezone=True) +
                                     datetime.timedelta(seconds=3))
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual(model.NovaTimes(0, 0, None), self.follow(made).nova)

    def test_one_that_nobody_knows_the_time_of(self):
        made = self.make()
        self.end_with(made)
        self.assertIsNone(self.follow(made).nova.before_ms)

    def say(self, made: session.Session, **at_ms) -> None:
        """Let the source's QEMU tell."""
        for name, ms in at_ms.items():
            made._mailbox.put(model.Moment(name, round(ms * 1000)))

    def test_the_parts_of_the_blackout(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900)
        self.say(made, stop=0, device=1, completed=4)
        self.end_with(made)
        report = self.follow(made)
        self.assertEqual(
            model.BlackoutParts(qemu_stop_ms=1, transfer_ms=3,
                                libvirt_handover_ms=2), report.parts)
        self.assertIsNone(report.source_pause_ms)

    def test_a_guest_that_was_never_stopped(self):
        made = self.make()
        self.say(made, active=0, cancelled=9)
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        report = self.follow(made)
        self.assertEqual((0, None), (report.source_pause_ms, report.parts))

    def test_a_guest_that_was_stopped_in_vain(self):
        made = self.make()
        self.say(made, stop=5, device=6, failed=7, resume=40)
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual(35, self.follow(made).source_pause_ms)

    def lessons(self, made: session.Session) -> list[tuple]:
        store = mock.create_autospec(calibration_store.Store, instance=True)
        made.teach(store)
        return [call.args for call in store.add.call_args_list]

    def test_a_migration_teaches(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900, memory_bps=10 ** 9)
        self.end_with(made)
        self.follow(made)
        self.assertEqual(
            [(('compute1', 'compute2'),
              session._versions(self.caps, self.peer), 6, 10 ** 9)],
            self.lessons(made))

    def test_what_libvirt_does_not_tell_teaches_nothing(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900)
        self.end_with(made)
        self.follow(made)
        self.assertEqual([], self.lessons(made))

    def test_a_migration_that_failed_teaches_nothing(self):
        made = self.make()
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.follow(made)
        self.assertEqual([], self.lessons(made))

    def test_a_blackout_by_order_teaches_nothing(self):
        made = self.make()
        made.force()
        self.complete(downtime=6000, time_elapsed=9000, memory_bps=10 ** 9)
        self.end_with(made)
        self.follow(made)
        self.assertEqual([], self.lessons(made))

    def test_a_guest_that_was_paused_teaches_nothing(self):
        made = self.make()
        self.domain.state.return_value = [libvirt.VIR_DOMAIN_PAUSED, 1]
        self.complete(downtime=6, time_elapsed=900, memory_bps=10 ** 9)
        self.end_with(made)
        self.follow(made)
        self.assertEqual([], self.lessons(made))

    def test_nothing_is_learned_about_another_driver(self):
        self.peer = None
        made = self.make()
        self.complete(downtime=6, time_elapsed=900, memory_bps=10 ** 9)
        self.end_with(made)
        self.follow(made)
        self.assertEqual([], self.lessons(made))

    def test_a_calibration_that_breaks_does_no_harm(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900, memory_bps=10 ** 9)
        self.end_with(made)
        self.follow(made)
        made.teach(mock.Mock(add=mock.Mock(side_effect=ValueError)))

    def test_libvirt_gives_no_figures(self):
        made = self.make()
        self.end_with(made)
        report = self.follow(made)
        self.assertEqual(
            (model.Outcome.COMPLETED, model.Verdict.UNKNOWN),
            (report.outcome, report.verdict))

    def test_novas_post_step_fails(self):
        made = self.make()
        self.complete(downtime=6, time_elapsed=900)
        self.end_with(made)
        self.post.side_effect = ValueError
        self.assertRaises(ValueError, self.follow, made)
        self.assertEqual(model.Verdict.MET, made.report().verdict)

    def test_failed(self):
        made = self.make()
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        report = self.follow(made)
        self.assertEqual((model.Outcome.FAILED, 'boom'),
                         (report.outcome, report.reason))
        self.recover.assert_called_once_with('failed')
        self.run_recover_tasks.assert_called_once()
        self.post.assert_not_called()

    def test_a_guest_that_was_killed_at_the_source_has_not_moved(self):
        """Whatever Nova makes of a domain that does not run."""
        self.find_job_type.return_value = libvirt.VIR_DOMAIN_JOB_COMPLETED
        self.domain.state.return_value = [
            libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
        made = self.make()
        self.end_with(made, libvirt.libvirtError('domain is not running'))
        report = self.follow(made)
        self.assertEqual(model.Outcome.FAILED, report.outcome)
        self.assertIn('has ended at the source', report.reason)
        self.recover.assert_called_once_with('failed')
        self.post.assert_not_called()

    def test_the_bindings_go_with_the_guest(self):
        made = self.make()
        made._mailbox.put(session.watch.QemuCompleted({}))
        self.end_with(made)
        self.complete(downtime=7, time_elapsed=800)
        report = self.follow(made)
        self.bindings.activate.assert_called_once_with()
        self.bindings.back_to_source.assert_not_called()
        self.assertEqual(41.0, report.network.activation_ms)

    def test_or_come_back_before_novas_rollback(self):
        calls = mock.Mock()
        calls.attach_mock(self.bindings.back_to_source, 'back')
        calls.attach_mock(self.recover, 'recover')
        made = self.make()
        made._mailbox.put(session.watch.QemuCompleted({}))
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertIsNone(self.follow(made).network)
        self.bindings.activate.assert_called_once_with()
        self.assertEqual([mock.call.back(), mock.call.recover('failed')],
                         calls.mock_calls)

    def test_the_call_failed_but_the_guest_has_moved(self):
        made = self.make()
        self.find_job_type.return_value = libvirt.VIR_DOMAIN_JOB_COMPLETED
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.post.assert_called_once_with()

    def lose_libvirt(self, *then) -> None:
        """Its connection is broken; what comes when it is looked up again."""
        self.domain.connect.return_value.isAlive.return_value = 0
        self.domain.UUIDString.return_value = UUID
        self.connection.lookupByUUIDString.side_effect = then
        self.useFixture(fixtures.MockPatchObject(
            session.fast_guest, '_RECONNECT_INTERVAL_S', 0.01))

    def test_libvirt_is_lost_when_the_guest_has_moved(self):
        made = self.make()
        self.lose_libvirt(error(libvirt.VIR_ERR_INTERNAL_ERROR),
                          error(libvirt.VIR_ERR_NO_DOMAIN))
        self.end_with(made, error(libvirt.VIR_ERR_INTERNAL_ERROR))
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.post.assert_called_once_with()

    def test_libvirt_is_lost_and_the_guest_has_stayed(self):
        made = self.make()
        here = mock.create_autospec(libvirt.virDomain, instance=True)
        here.state.return_value = [libvirt.VIR_DOMAIN_RUNNING, 0]
        here.jobStats.return_value = {}
        self.lose_libvirt(
            nova_exception.HypervisorUnavailable(host='compute1'), here)
        self.end_with(made, error(libvirt.VIR_ERR_INTERNAL_ERROR))
        self.assertEqual(model.Outcome.FAILED, self.follow(made).outcome)
        self.recover.assert_called_once_with('failed')
        # of the guest that can be asked
        asked = self.find_job_type.call_args.args[0]
        self.assertIs(here.state, asked._domain.state)

    def test_libvirt_does_not_come_back(self):
        made = self.make()
        self.lose_libvirt(*[error(libvirt.VIR_ERR_INTERNAL_ERROR)] * 2)
        self.useFixture(fixtures.MockPatchObject(
            session, '_RECONNECT_TIMEOUT_S', 0))
        self.end_with(made, error(libvirt.VIR_ERR_INTERNAL_ERROR))
        self.assertEqual(model.Outcome.FAILED, self.follow(made).outcome)

    def test_someone_else_aborted(self):
        made = self.make()
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        self.assertEqual((model.Outcome.ABORTED, 'boom'),
                         (self.follow(made).outcome, made.report().reason))
        self.recover.assert_called_once_with('cancelled')

    def test_aborted_on_request(self):
        made = self.make()
        with made.aborting('asked for'):
            pass
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        self.assertEqual('asked for', self.follow(made).reason)

    def test_an_abort_that_failed_is_none(self):
        made = self.make()
        with contextlib.suppress(libvirt.libvirtError):
            with made.aborting('asked for'):
                raise error(libvirt.VIR_ERR_OPERATION_INVALID)
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual(model.Outcome.FAILED, self.follow(made).outcome)

    def fail_to_abort(self, made: session.Session) -> None:
        """As Nova's method does that looks the guest up first."""
        with contextlib.suppress(nova_exception.InternalError):
            with made.aborting('asked for again'):
                raise nova_exception.InternalError('libvirt is away')

    def test_nor_is_one_that_nova_has_no_guest_for(self):
        made = self.make()
        self.fail_to_abort(made)
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual((model.Outcome.FAILED, 'boom'),
                         (self.follow(made).outcome, made.report().reason))

    def test_it_leaves_the_reason_of_one_that_was_accepted(self):
        made = self.make()
        with made.aborting('asked for'):
            pass
        self.fail_to_abort(made)
        self.end_with(made, error(libvirt.VIR_ERR_OPERATION_FAILED))
        self.assertEqual((model.Outcome.ABORTED, 'asked for'),
                         (self.follow(made).outcome, made.report().reason))

    def end_after_looks(self, made: session.Session) -> None:
        """Let it end by itself if a test that waits for an abort fails."""
        left = [True] * 4

        def look(*args):
            if left:
                left.pop()
            else:
                self.end_with(made)

        self.run_tasks.side_effect = look

    def test_the_time_limit_still_holds_after_it(self):
        made = self.late()
        self.end_after_looks(made)
        self.fail_to_abort(made)
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        self.assertIn('are over', self.follow(made).reason)

    def late(self, **sla) -> session.Session:
        """A session that finds its time to be over at the first look."""
        made = self.make(max_total_ms=100, **sla)
        self.domain.jobStats.return_value = {
            'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED, 'time_elapsed': 101,
            'memory_total': 1000}
        made.wake()
        return made

    def test_too_late_is_aborted_once(self):
        made = self.late()

        def abort():
            made.wake()  # one more look after the abort
            self.end_with(made, error(libvirt.VIR_ERR_OPERATION_ABORTED))

        self.domain.abortJob.side_effect = abort
        report = self.follow(made)
        self.domain.abortJob.assert_called_once_with()
        self.assertEqual(model.Outcome.ABORTED, report.outcome)
        self.assertRegex(report.reason, '^10. ms of 100 ms are over')
        self.assertEqual([model.Action.ABORT],
                         [each.action for each in report.decisions])

    def test_an_abort_that_comes_too_late(self):
        made = self.late()

        def abort():
            self.end_with(made)
            raise error(libvirt.VIR_ERR_OPERATION_INVALID)

        self.domain.abortJob.side_effect = abort
        report = self.follow(made)
        self.assertEqual((model.Outcome.COMPLETED, ()),
                         (report.outcome, report.decisions))

    def test_post_copy(self):
        made = self.late(on_miss=model.OnMiss.POST_COPY)

        def switch(guest, instance, migration):
            migration.status = 'running (post-copy)'
            self.end_with(made)

        self.trigger_postcopy_switch.side_effect = switch
        report = self.follow(made)
        self.assertEqual([model.Action.POST_COPY],
                         [each.action for each in report.decisions])
        self.assertEqual(model.Outcome.COMPLETED, report.outcome)

    def job_begins_late(self, made: session.Session, *stats: dict) -> list:
        """Let libvirt have no job before the time is over.

        :param stats: what it tells then, look by look
        :returns: what it has not told yet
        """
        left = [{'type': libvirt.VIR_DOMAIN_JOB_NONE}, *(
            {'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED, **each}
            for each in stats)]

        def tell():
            made.wake()
            told = left.pop(0)
            if told['type'] == libvirt.VIR_DOMAIN_JOB_NONE:
                time.sleep(0.11)
            elif not left:
                self.end_with(made)
            return told

        self.domain.jobStats.side_effect = tell
        made.wake()
        return left

    def test_post_copy_waits_for_qemus_migration(self):
        made = self.make(max_total_ms=100, on_miss=model.OnMiss.POST_COPY)
        over = {'time_elapsed': 101, 'memory_total': 0}
        left = self.job_begins_late(
            made, over, {}, {**over, 'memory_total': 1000}, over)

        def switch(guest, instance, migration):
            # As Nova's, which logs that libvirt refuses it.
            if len(left) == 1:
                migration.status = 'running (post-copy)'

        self.trigger_postcopy_switch.side_effect = switch
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        report = self.follow(made)
        self.trigger_postcopy_switch.assert_called_once()
        self.assertEqual(
            (model.Outcome.COMPLETED, [model.Action.POST_COPY]),
            (report.outcome, [each.action for each in report.decisions]))

    def test_the_time_before_the_job_does_not_count(self):
        made = self.make(max_total_ms=100)
        self.job_begins_late(made, {'time_elapsed': 1}, {'time_elapsed': 2})
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.domain.abortJob.assert_not_called()

    def test_who_tells_nothing_of_the_job_is_held_to_the_time(self):
        made = self.make(max_total_ms=100)
        self.end_after_looks(made)
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        self.assertIn('are over', self.follow(made).reason)

    def test_post_copy_that_cannot_be(self):
        made = self.late(on_miss=model.OnMiss.POST_COPY)
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        report = self.follow(made, post_copy_possible=False)
        self.trigger_postcopy_switch.assert_not_called()
        self.assertIn('post-copy is not possible', report.reason)

    def test_a_switchover_is_not_interrupted(self):
        made = self.late()
        # Running before the migration, paused at the look.
        self.domain.state.side_effect = [
            [libvirt.VIR_DOMAIN_RUNNING, 0], [libvirt.VIR_DOMAIN_PAUSED, 2]]
        self.run_tasks.side_effect = lambda *args: self.end_with(made)
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.domain.abortJob.assert_not_called()

    def passes(self, made: session.Session, dirty_pages: int) -> list[dict]:
        """Let libvirt tell, look by look, of six passes.

        :param dirty_pages: that the guest dirties per second, of 4096 bytes
        """
        stats = [{'time_elapsed': 1000 * number, 'memory_iteration': number,
                  'memory_total': 1 << 30, 'memory_remaining': 64 << 20,
                  'memory_bps': 32 << 20, 'memory_dirty_rate': dirty_pages,
                  'memory_page_size': 4096} for number in range(1, 7)]
        left = stats.copy()

        def tell():
            made.wake()
            if not left:
                self.end_with(made)
                return stats[-1]
            return left.pop(0)

        self.domain.jobStats.side_effect = tell
        # The clock is libvirt's, whose job began before this test.
        patch = mock.patch.object(session.watch, '_HEAD_START_S', 3600)
        patch.start()
        self.addCleanup(patch.stop)
        made.wake()
        return left

    def test_the_trend_aborts(self):
        made = self.make(max_total_ms=600000)
        left = self.passes(made, dirty_pages=12288)
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        report = self.follow(made)
        # The first pass tells nothing, and four others are a trend.
        self.assertEqual([6], [each['memory_iteration'] for each in left])
        self.assertEqual(model.Outcome.ABORTED, report.outcome)
        self.assertRegex(report.reason,
                         '^will not converge in the 59.... ms left: 64.0 MiB')

    def test_a_trend_that_will_do(self):
        made = self.make(max_total_ms=600000)
        left = self.passes(made, dirty_pages=4096)
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.assertEqual([], left)
        self.domain.abortJob.assert_not_called()

    def hang(self, made: session.Session,
             reason=libvirt.VIR_DOMAIN_PAUSED_MIGRATION) -> None:
        """Let the guest be paused, and stay so."""
        states = [[libvirt.VIR_DOMAIN_RUNNING, 0]]
        self.domain.state.side_effect = lambda: (
            states.pop() if states else
            [libvirt.VIR_DOMAIN_PAUSED, reason])
        made._plan = dataclasses.replace(made._plan, switchover_limit_ms=20)
        made.wake()

    def test_a_switchover_that_hangs_is_cancelled(self):
        made = self.make(max_total_ms=600000)
        self.hang(made)
        self.domain.abortJob.side_effect = lambda: self.end_with(
            made, error(libvirt.VIR_ERR_OPERATION_ABORTED))
        report = self.follow(made)
        self.assertEqual(model.Outcome.ABORTED, report.outcome)
        self.assertRegex(report.reason,
                         r'^the guest has stood still for \d+ ms and the '
                         'switchover has not finished; 20 ms are allowed')

    def test_qemu_ends_one_that_hangs(self):
        """Sooner than this can be told of it."""
        made = self.make()
        ended = error(libvirt.VIR_ERR_OPERATION_FAILED,
                      "job 'migration out' failed: The switchover has taken "
                      'longer than x-switchover-timeout (2000 ms)')
        self.end_with(made, ended)
        report = self.follow(made)
        self.assertEqual(model.Outcome.ABORTED, report.outcome)
        self.assertRegex(report.reason,
                         '^the guest has stood still for more than 2000 ms')
        self.recover.assert_called_once_with('cancelled')

    def test_a_hand_over_without_an_answer(self):
        made = self.make()
        self.end_with(made, error(
            libvirt.VIR_ERR_OPERATION_FAILED,
            "job 'migration out' failed: The guest was handed over to the "
            'destination, which may be running it, but gave no answer'))
        report = self.follow(made)
        self.assertEqual(model.Outcome.FAILED, report.outcome)
        self.assertRegex(report.reason,
                         '^the guest stands still at the source')
        self.recover.assert_called_once_with('failed')

    def not_cancelled(self, made: session.Session) -> None:
        """Look at it for much longer than the limit."""
        self.conf.config(group='fastmig', poll_interval_ms=50)
        looks = []

        def look(*args):
            looks.append(True)
            if len(looks) == 4:
                self.end_with(made)

        self.run_tasks.side_effect = look
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.domain.abortJob.assert_not_called()

    @ddt.data(libvirt.VIR_DOMAIN_PAUSED_IOERROR,
              libvirt.VIR_DOMAIN_PAUSED_USER,
              libvirt.VIR_DOMAIN_PAUSED_WATCHDOG,
              libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT,
              libvirt.VIR_DOMAIN_PAUSED_POSTCOPY)
    def test_another_reason_to_pause_is_no_switchover(self, reason):
        made = self.make(max_total_ms=600000)
        self.hang(made, reason)
        self.not_cancelled(made)

    def test_somebody_suspends_the_guest_in_the_migration(self):
        """libvirt gives the reason of a switchover, QEMU knows better."""
        made = self.make(max_total_ms=600000)
        self.hang(made)
        self.say(made, active=0, stop=5)
        self.not_cancelled(made)

    def test_its_switchover_can_hang_too(self):
        made = self.make(max_total_ms=600000)
        self.hang(made)
        self.say(made, active=0, stop=5, device=9)

        def abort():
            self.say(made, resume=30)
            self.end_with(made, error(libvirt.VIR_ERR_OPERATION_ABORTED))

        self.domain.abortJob.side_effect = abort
        report = self.follow(made)
        self.assertEqual((model.Outcome.ABORTED, 25),
                         (report.outcome, report.source_pause_ms))

    def test_libvirt_refuses_to_cancel_it(self):
        self.conf.config(group='fastmig', poll_interval_ms=50)
        made = self.make(max_total_ms=600000)
        self.hang(made)
        asked = []

        def refuse():
            asked.append(True)
            if len(asked) == 2:
                self.end_with(made)
            raise error(libvirt.VIR_ERR_OPERATION_INVALID)

        self.domain.abortJob.side_effect = refuse
        report = self.follow(made)
        self.assertEqual((model.Outcome.COMPLETED, ()),
                         (report.outcome, report.decisions))

    @ddt.data((600000, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
              (100, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
              (100, libvirt.VIR_DOMAIN_PAUSED_USER))
    @ddt.unpack
    def test_force_complete_may_stop_the_guest_for_long(self, max_total_ms,
                                                        reason):
        self.conf.config(group='fastmig', poll_interval_ms=50)
        made = self.make(max_total_ms=max_total_ms)
        self.hang(made, reason)
        made.force()
        looks = []

        def look(*args):
            looks.append(True)
            if len(looks) == 3:
                self.end_with(made)

        self.run_tasks.side_effect = look
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.domain.abortJob.assert_not_called()

    def test_novas_tasks_are_run(self):
        made = self.make()
        made.wake()
        self.run_tasks.side_effect = lambda *args: self.end_with(made)
        self.follow(made)
        guest, _, tasks, on_failure, migration, post_copy = (
            self.run_tasks.call_args.args)
        self.assertEqual(({}, collections.deque(), self.migration, False),
                         (tasks, on_failure, migration, post_copy))

    def test_progress_is_shown(self):
        made = self.make()
        stats = {'memory_total': 1000, 'memory_remaining': 250}
        self.domain.jobStats.return_value = stats
        made.wake()
        self.run_tasks.side_effect = lambda *args: self.end_with(made)
        with mock.patch.object(session.progress, 'Progress') as shown:
            self.follow(made)
        shown.return_value.show.assert_called_with(stats)

    def test_a_look_that_fails_ends_nothing(self):
        made = self.make()
        made.wake()
        looks = []

        def fail(*args):
            looks.append(True)
            if len(looks) == 2:
                self.end_with(made)
            raise oslo_messaging.MessagingTimeout

        self.conf.config(group='fastmig', poll_interval_ms=50)
        self.run_tasks.side_effect = fail
        self.assertEqual(model.Outcome.COMPLETED, self.follow(made).outcome)
        self.post.assert_called_once_with()

    def test_an_exit_of_the_operation_thread_is_not_swallowed(self):
        made = self.make()
        self.assertRaises(KeyboardInterrupt, self.end_with, made,
                          KeyboardInterrupt)
        self.assertEqual(model.Outcome.FAILED, self.follow(made).outcome)
