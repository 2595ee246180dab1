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

import gc
import json
import os
import threading
import time

import ddt
import fixtures
import libvirt
from oslotest import base

from nova_fastmig import model
from nova_fastmig import watch

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'
ITERATION = libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION
COMPLETED = libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED


class Domain:
    def __init__(self, uuid=UUID):
        self._uuid = uuid

    def UUIDString(self):
        return self._uuid


class Connection:
    """The few calls of virConnect that are used."""

    def __init__(self, refuses=()):
        self.callbacks = {}
        self.alive = 1
        self._refuses = refuses

    def domainEventRegisterAny(self, domain, event_id, callback, opaque):
        if event_id in self._refuses:
            raise libvirt.libvirtError('event not supported')
        self.callbacks[event_id] = callback
        return event_id

    def domainEventDeregisterAny(self, callback_id):
        del self.callbacks[callback_id]

    def isAlive(self):
        if self.alive < 0:
            raise libvirt.libvirtError('broken')
        return self.alive


class Guest:
    """Gives one entry of job statistics after the other."""

    def __init__(self, *stats):
        self._stats = list(stats)

    def query_migrate(self):
        return {'status': 'completed', 'x-features': ['x-early-resume']}

    def job_stats(self):
        return self._stats.pop(0) if self._stats else {}


class TestMailbox(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.mailbox = watch.Mailbox()

    def test_order(self):
        for item in 1, 2, 3:
            self.mailbox.put(item)
        self.assertEqual([1, 2, 3], self.mailbox.take(0))
        self.assertEqual([], self.mailbox.take(0))

    def test_a_late_wakeup_is_no_timeout(self):
        """The item was taken before its writer came to wake anyone."""
        os.eventfd_write(self.mailbox._wakeups, 1)
        started = time.monotonic()
        self.assertEqual([], self.mailbox.take(0.05))
        self.assertGreaterEqual(time.monotonic() - started, 0.049)

    def test_the_writer_never_waits(self):
        count = 70000  # more than a pipe would hold
        for item in range(count):
            self.mailbox.put(item)
        self.assertEqual(list(range(count)), self.mailbox.take(0))

    def test_wakes_up(self):
        timer = threading.Timer(0.05, self.mailbox.put, ['late'])
        timer.start()
        self.addCleanup(timer.join)
        started = time.monotonic()
        self.assertEqual(['late'], self.mailbox.take(30))
        self.assertLess(time.monotonic() - started, 10)

    def test_timeout(self):
        started = time.monotonic()
        self.assertEqual([], self.mailbox.take(0.05))
        self.assertGreaterEqual(time.monotonic() - started, 0.049)
        self.assertEqual([], self.mailbox.take(-1))

    def test_leaves_no_descriptors(self):
        gc.collect()
        before = len(os.listdir('/proc/self/fd'))
        for _ in range(10):
            watch.Mailbox().put('item')
        gc.collect()
        self.assertLessEqual(len(os.listdir('/proc/self/fd')), before)


class TestEvents(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.mailbox = watch.Mailbox()
        # See TestQemusEvents.
        for name in ('Register', 'Deregister'):
            self.useFixture(fixtures.MockPatchObject(
                watch.qmp.libvirt_qemu, f'qemuMonitorEvent{name}'))

    def test_registered_for_the_time_of_the_migration(self):
        connection = Connection()
        with watch.Events(connection, UUID, self.mailbox):
            self.assertEqual({ITERATION, COMPLETED},
                             set(connection.callbacks))
        self.assertEqual({}, connection.callbacks)

    def test_what_happens_arrives(self):
        connection = Connection()
        with watch.Events(connection, UUID, self.mailbox):
            connection.callbacks[ITERATION](connection, Domain(), 2, None)
            connection.callbacks[COMPLETED](
                connection, Domain(), {'downtime': 3}, None)
        self.assertEqual(
            [watch.Iteration(2), watch.JobCompleted({'downtime': 3})],
            self.mailbox.take(0))

    def test_other_domains_do_not(self):
        connection = Connection()
        with watch.Events(connection, UUID, self.mailbox):
            connection.callbacks[ITERATION](
                connection, Domain('another'), 2, None)
            connection.callbacks[COMPLETED](
                connection, Domain('another'), {}, None)
        self.assertEqual([], self.mailbox.take(0))

    def test_a_libvirt_that_refuses_one(self):
        connection = Connection(refuses=[ITERATION])
        with watch.Events(connection, UUID, self.mailbox):
            self.assertEqual({COMPLETED}, set(connection.callbacks))

    def test_a_broken_connection_at_the_end(self):
        connection = Connection()

        def broken(callback_id):
            raise libvirt.libvirtError('broken')

        with watch.Events(connection, UUID, self.mailbox):
            connection.domainEventDeregisterAny = broken


@ddt.ddt
class TestToCompleted(base.BaseTestCase):

    def test_figures(self):
        self.assertEqual(
            model.Completed(model.Outcome.COMPLETED, '', 7, 812, moments=()),
            watch.to_completed({'downtime': 7, 'time_elapsed': 812}, {}))

    def test_bandwidth(self):
        self.assertEqual(10 ** 9, watch.to_completed(
            {'memory_bps': 10 ** 9}, {}).bandwidth_bytes_per_s)
        self.assertIsNone(watch.to_completed(
            {'memory_bps': -1}, {}).bandwidth_bytes_per_s)

    def test_a_downtime_longer_than_all_of_it(self):
        """One of the two is wrong, and nobody knows which."""
        completed = watch.to_completed(
            {'downtime': 813, 'time_elapsed': 812}, {})
        self.assertEqual((None, None),
                         (completed.downtime_ms, completed.total_ms))

    @ddt.data({}, {'downtime': -1, 'time_elapsed': None},
              {'downtime': '7', 'time_elapsed': True})
    def test_missing_or_nonsense(self, stats):
        completed = watch.to_completed(stats, {})
        self.assertIsNone(completed.downtime_ms)
        self.assertIsNone(completed.total_ms)


@ddt.ddt
class TestQemusFigures(base.BaseTestCase):

    TIMES = {'stop': 10**18, 'stopped': 10**18 + 250_000,
             'pages-sent': 10**18 + 1_000_000,
             'devices-sent': 10**18 + 2_000_000,
             'pages-loaded': 10**18 + 2_500_000,
             'devices-loaded': 10**18 + 3_500_000,
             'resume': 10**18 + 4_000_000, 'clock-offset': -5 * 10**9,
             'clock-error': 50_000}

    def test_all(self):
        self.assertEqual(
            model.Blackout(
                stopped_ms=0.25, pages_sent_ms=1.0, devices_sent_ms=2.0,
                pages_loaded_ms=2.5, devices_loaded_ms=3.5, resumed_ms=4.0,
                clock_error_ms=0.05, clock_offset_ms=-5000.0),
            watch.to_blackout(self.TIMES))

    def test_the_destination_says_little(self):
        times = {name: value for name, value in self.TIMES.items()
                 if not name.endswith('-loaded')}
        blackout = watch.to_blackout(times)
        self.assertIsNone(blackout.devices_loaded_ms)
        self.assertEqual(4.0, blackout.resumed_ms)

    @ddt.data('stop', 'stopped', 'pages-sent', 'devices-sent', 'resume',
              'clock-error')
    def test_what_cannot_be_missing(self, name):
        for value in (None, 'soon', -1, 0.5, True):
            self.assertIsNone(watch.to_blackout(
                {**self.TIMES, name: value}), value)

    def test_libvirt_resumes_the_guest(self):
        times = {name: value for name, value in self.TIMES.items()
                 if name != 'resume'}
        self.assertEqual((3.5, None), (
            watch.to_blackout(times).devices_loaded_ms,
            watch.to_blackout(times).resumed_ms))

    @ddt.data(None, 'soon', 0.5, True)
    def test_a_clock_that_is_not_told(self, value):
        self.assertIsNone(watch.to_blackout(
            {**self.TIMES, 'clock-offset': value}).clock_offset_ms)

    def test_a_resume_before_the_stop(self):
        self.assertIsNone(watch.to_blackout(
            {**self.TIMES, 'resume': self.TIMES['stop'] - 1}))

    @ddt.data(
        ({}, None),
        ({'status': 'completed'}, set()),
        ({'x-features': ['x-early-resume', 'x-new-idea']},
         {'x-early-resume'}))
    @ddt.unpack
    def test_what_was_agreed_on(self, qemu, expected):
        self.assertEqual(expected,
                         watch.to_completed({}, qemu).agreed_features)

    def test_who_resumed_the_guest(self):
        paused = {name: value for name, value in self.TIMES.items()
                  if name != 'resume'}
        for times, expected in ((self.TIMES, True), (paused, False),
                                ({}, None)):
            self.assertIs(expected, watch.to_completed(
                {}, {'x-blackout': times}).resumed_by_qemu)


@ddt.ddt
class TestQemusEvents(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.mailbox = watch.Mailbox()
        self.callbacks = {}
        self.refused = ()
        for name, function in (('Register', self.register),
                               ('Deregister', self.deregister)):
            self.useFixture(fixtures.MockPatchObject(
                watch.qmp.libvirt_qemu, f'qemuMonitorEvent{name}',
                side_effect=function))

    def register(self, connection, domain, event, callback, opaque):
        if event in self.refused:
            raise libvirt.libvirtError('not supported')
        self.callbacks[event] = callback
        return event

    def deregister(self, connection, callback_id):
        del self.callbacks[callback_id]

    def events(self) -> watch.Events:
        return watch.Events(Connection(), UUID, self.mailbox)

    def emit(self, event: str, details: str | None = None, domain=None,
             microseconds=2) -> None:
        self.callbacks[event](None, domain or Domain(), event, 1,
                              microseconds, details, None)

    def status(self, status: str, **more) -> None:
        self.emit('MIGRATION', json.dumps({'status': status}), **more)

    def test_what_qemu_says(self):
        with self.events():
            self.status('active')
            self.emit('STOP')
            self.status('completed', microseconds=3)
            self.emit('RESUME', microseconds=4)
            self.status('completed', domain=Domain('another'))
            self.emit('STOP', domain=Domain('another'))
        self.assertEqual(
            [model.Moment('active', 1000002), model.Moment('stop', 1000002),
             model.Moment('completed', 1000003),
             watch.QemuCompleted({'status': 'completed'}),
             model.Moment('resume', 1000004)], self.mailbox.take(0))
        self.assertEqual({}, self.callbacks)

    @ddt.data(None, '', '{', '[]', 'null', '"completed"', '{"status": 7}',
              '{"status": ["completed"]}', '[' * 100000)
    def test_what_says_nothing(self, details):
        with self.events():
            self.emit('MIGRATION', details)
        self.assertEqual([], self.mailbox.take(0))

    def test_whether_all_of_it_is_heard(self):
        connection = Connection()
        events = watch.Events(connection, UUID, self.mailbox)
        self.assertFalse(events.hears_qemu())
        with events:
            self.assertTrue(events.hears_qemu())
            for alive in (0, -1):
                connection.alive = alive
                self.assertFalse(events.hears_qemu())

    @ddt.data('STOP', 'RESUME', 'MIGRATION')
    def test_a_libvirt_that_refuses_one(self, event):
        self.refused = (event,)
        with self.events() as events:
            self.assertFalse(events.hears_qemu())
            self.assertEqual({'STOP', 'RESUME', 'MIGRATION'} - {event},
                             set(self.callbacks))
        self.assertEqual({}, self.callbacks)

    def test_a_libvirt_that_refuses_all(self):
        self.refused = ('STOP', 'RESUME', 'MIGRATION')
        with self.events():
            pass
        watch.qmp.libvirt_qemu.qemuMonitorEventDeregister.assert_not_called()

    @ddt.data(libvirt.libvirtError('broken'), KeyError(7))
    def test_what_can_be_wrong_at_the_end(self, error):
        watch.qmp.libvirt_qemu.qemuMonitorEventDeregister.side_effect = error
        with self.events():
            pass


class TestWatch(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.mailbox = watch.Mailbox()
        self.looks = []

    def run_until(self, count: int, *stats, total_limit_ms=60000,
                  poll_interval_s=60.0):
        """Run a Watch that ends at its ``count``-th look."""
        watching = watch.Watch(Guest(*stats), self.mailbox, total_limit_ms,
                               poll_interval_s)

        def look(elapsed_ms, job):
            self.looks.append((elapsed_ms, job))
            if len(self.looks) == count:
                self.mailbox.put(watch.Ended(None))

        return watching.run(look), watching

    def test_ends_with_what_the_call_raised(self):
        error = libvirt.libvirtError('boom')
        self.mailbox.put(watch.Ended(error))
        ended, _ = self.run_until(1)
        self.assertIs(error, ended.error)
        self.assertEqual([], self.looks)

    def test_an_event_does_not_wait_for_the_poll(self):
        self.mailbox.put(watch.Iteration(1))
        started = time.monotonic()
        self.run_until(1)
        self.assertLess(time.monotonic() - started, 30)

    def test_qemu_is_asked_at_its_end(self):
        for says, expected in (
                ({'status': 'completed'}, {'x-early-resume'}),
                # Its event says it all.
                ({'status': 'completed', 'x-features': ['x-report-blackout']},
                 {'x-report-blackout'})):
            self.mailbox.put(watch.QemuCompleted(says))
            self.mailbox.put(watch.Ended(None))
            watching = watch.Watch(Guest(), self.mailbox, 60000, 60.0,
                                   is_patched=True)
            watching.run(self.fail)
            self.assertEqual(expected,
                             watching.completed(0).agreed_features)

    def test_what_qemu_says_comes_after_the_end(self):
        """A host that is busy delivers libvirt's events late."""
        self.mailbox.put(watch.Ended(None))
        watching = watch.Watch(None, self.mailbox, 60000, 60.0,
                               is_patched=True)
        watching.run(self.fail)
        self.mailbox.put(watch.QemuCompleted(
            {'status': 'completed', 'x-features': ['x-report-blackout']}))
        self.mailbox.put(watch.JobCompleted({'downtime': 1}))
        self.assertEqual({'x-report-blackout'},
                         watching.completed(30).agreed_features)

    def test_an_ordinary_qemu_is_not_asked(self):
        """libvirt would note it on the guest."""
        self.mailbox.put(watch.QemuCompleted({'status': 'completed'}))
        self.mailbox.put(watch.Ended(None))
        watching = watch.Watch(None, self.mailbox, 60000, 60.0)
        watching.run(self.fail)
        self.assertIsNone(watching.completed(0).agreed_features)

    STOP, DEVICE, RESUME = (model.Moment(name, at_us) for name, at_us in (
        ('stop', 1000), ('device', 1500), ('resume', 9000)))

    def test_what_qemu_has_said(self):
        for item in (self.STOP, watch.Ended(None)):
            self.mailbox.put(item)
        _, watching = self.run_until(1)
        self.assertEqual((self.STOP,), watching.moments)
        self.mailbox.put(self.DEVICE)
        self.mailbox.put(watch.JobCompleted({'downtime': 1}))
        self.assertEqual((self.STOP, self.DEVICE),
                         watching.completed(30).moments)
        self.mailbox.put(watch.Ended(None))
        self.assertEqual((), self.run_until(1)[1].completed(0).moments)

    def test_it_keeps_no_more_than_it_may(self):
        for _ in range(1000):
            self.mailbox.put(self.STOP)
        self.mailbox.put(watch.Ended(None))
        _, watching = self.run_until(1)
        self.assertEqual(watch._MAX_MOMENTS, len(watching.moments))

    def stayed(self, *moments, later=(), timeout_s=30,
               hears_qemu=True) -> model.Completed:
        for item in (*moments, watch.Ended(None)):
            self.mailbox.put(item)
        _, watching = self.run_until(1)
        for item in later:
            timer = threading.Timer(0.05, self.mailbox.put, [item])
            timer.start()
            self.addCleanup(timer.join)
        return watching.stayed(model.Outcome.ABORTED, 'why', timeout_s,
                               hears_qemu)

    def test_a_guest_that_stays(self):
        started = time.monotonic()
        for moments in ((), (self.DEVICE,), (self.STOP, self.RESUME)):
            self.assertEqual(
                model.Completed(model.Outcome.ABORTED, 'why', None, None,
                                moments=moments), self.stayed(*moments))
        self.assertLess(time.monotonic() - started, 30)

    def test_one_whose_qemu_could_not_be_heard(self):
        for moments in ((), (self.STOP, self.RESUME)):
            self.assertIsNone(self.stayed(
                *moments, hears_qemu=False).moments)

    def test_one_that_goes_on_after_the_call_has_returned(self):
        self.assertEqual(
            (self.STOP, self.RESUME),
            self.stayed(self.STOP, later=(watch.Wake(), self.RESUME)).moments)

    def test_one_that_does_not_go_on(self):
        self.assertEqual((self.STOP,),
                         self.stayed(self.STOP, timeout_s=0.05).moments)

    def test_tells_when_the_source_has_given_the_guest_away(self):
        switched = []
        self.mailbox.put(watch.QemuCompleted({'status': 'completed'}))
        self.mailbox.put(watch.Ended(None))
        watch.Watch(Guest(), self.mailbox, 60000, 60.0).run(
            self.fail, lambda: switched.append('now'))
        self.assertEqual(['now'], switched)

    def test_without_events_it_polls(self):
        self.run_until(3, poll_interval_s=0.01)
        self.assertEqual(3, len(self.looks))

    def test_the_deadline_does_not_wait_for_the_poll(self):
        started = time.monotonic()
        self.run_until(1, total_limit_ms=50)
        self.assertLess(time.monotonic() - started, 30)
        elapsed_ms, _ = self.looks[0]
        self.assertGreater(elapsed_ms, 50)

    def test_nor_does_another_deadline(self):
        watching = watch.Watch(Guest(), self.mailbox, 60000, 60.0)
        self.mailbox.put(watch.Wake())
        looks = []

        def look(elapsed_ms, job):
            looks.append(elapsed_ms)
            if len(looks) == 3:
                self.mailbox.put(watch.Ended(None))
            # One that is over does not make it spin.
            if len(looks) == 2:
                self.mailbox.put(watch.Wake())
                return -1
            return 50

        started = time.monotonic()
        watching.run(look)
        self.assertLess(time.monotonic() - started, 30)
        self.assertGreaterEqual(looks[1] - looks[0], 50)

    def test_a_deadline_that_is_over_is_not_waited_for(self):
        watching = watch.Watch(Guest(), self.mailbox, 60000, 7.0)
        for look_in_ms in (None, -1, 0, 60000):
            watching._look_in_ms = look_in_ms
            self.assertAlmostEqual(7.0, watching._timeout_s(), delta=5)

    def test_nothing_is_asked_in_the_blackout(self):
        """QEMU's events neither make it look nor put a look off."""
        watching = watch.Watch(Guest(), self.mailbox, 60000, 0.3)
        looks = []

        def look(elapsed_ms, job):
            looks.append(elapsed_ms)
            if len(looks) == 2:
                self.mailbox.put(watch.Ended(None))
            return None

        for number in range(20):
            timer = threading.Timer(0.02 * number, self.mailbox.put, [
                model.Moment('stop', number) if number % 2
                else watch.QemuCompleted({})])
            timer.start()
            self.addCleanup(timer.join)
        watching.run(look)
        # Polls at 300 and 600 ms, and no other look.
        self.assertGreaterEqual(looks[0], 299)
        self.assertGreaterEqual(looks[1] - looks[0], 299)
        self.assertEqual(10, len(watching.moments))

    def test_a_deadline_is_not_missed_meanwhile(self):
        watching = watch.Watch(Guest(), self.mailbox, 60000, 60.0)
        self.mailbox.put(watch.Wake())
        looks = []

        def look(elapsed_ms, job):
            looks.append(elapsed_ms)
            if len(looks) == 1:
                # Taken before the deadline, and when it is over.
                for seconds in 0.01, 0.05:
                    timer = threading.Timer(seconds, self.mailbox.put,
                                            [model.Moment('stop', 1)])
                    timer.start()
                    self.addCleanup(timer.join)
                return 50
            self.mailbox.put(watch.Ended(None))
            return None

        started = time.monotonic()
        watching.run(look)
        self.assertLess(time.monotonic() - started, 30)

    def test_libvirts_clock_counts(self):
        self.mailbox.put(watch.Wake())
        self.run_until(1, {'time_elapsed': 5000})
        elapsed_ms, _ = self.looks[0]
        self.assertGreaterEqual(elapsed_ms, 5000)
        self.assertLess(elapsed_ms, 35000)

    def test_a_job_that_is_older_than_this_watch(self):
        """Its age would say that the time is over."""
        for milliseconds in (60000, 1 << 62):
            self.mailbox.put(watch.Wake())
            self.run_until(1, {'time_elapsed': milliseconds})
            elapsed_ms, _ = self.looks.pop()
            self.assertLess(elapsed_ms, 30000)

    def test_a_job_whose_clock_stands_still(self):
        """It would never be late."""
        self.mailbox.put(watch.Wake())
        self.run_until(2, *[{'time_elapsed': 0}] * 2, total_limit_ms=50)
        self.assertLess(self.looks[0][0], 50)
        self.assertGreaterEqual(self.looks[1][0], 50)

    def test_statistics_that_came_before_the_end(self):
        self.mailbox.put(watch.JobCompleted({'downtime': 1}))
        _, watching = self.run_until(1)
        self.assertEqual(1, watching.completed(0).downtime_ms)

    def test_statistics_that_come_later(self):
        self.mailbox.put(watch.Ended(None))
        _, watching = self.run_until(1)
        timer = threading.Timer(
            0.05, self.mailbox.put, [watch.JobCompleted({'downtime': 2})])
        timer.start()
        self.addCleanup(timer.join)
        self.assertEqual(2, watching.completed(30).downtime_ms)

    def test_statistics_that_do_not_come(self):
        self.mailbox.put(watch.Ended(None))
        _, watching = self.run_until(1)
        self.mailbox.put(watch.Iteration(9))
        self.assertIsNone(watching.completed(0.05).downtime_ms)
