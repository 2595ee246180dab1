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


import threading
import time

from oslo_config import cfg
from oslotest import base

from nova_fastmig import exception
from nova_fastmig import reservation

MIB = 1 << 20


class TestReservations(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.reservations = reservation.Reservations('compute1', 100 * MIB)

    def start(self, holder, mib_s, wait_s=60, release=None):
        """Hold bandwidth in another thread until it may end."""
        grants, release = [], release or threading.Event()
        has_it = threading.Event()

        def run():
            with self.reservations.hold(holder, mib_s * MIB, wait_s) as grant:
                grants.append(grant)
                has_it.set()
                release.wait()

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(release.set)
        return grants, has_it, release, thread

    def wait_until_queued(self, count):
        while len(self.reservations._ledger.waiting) < count:
            time.sleep(0.001)

    def test_one(self):
        with self.reservations.hold('a', 60 * MIB, 0) as grant:
            self.assertEqual(60 * MIB, grant.bytes_per_s)
            self.assertLess(grant.waited_ms, 10000)
        self.assertEqual(100 * MIB, self.reservations._ledger.free_bytes_per_s)

    def test_an_error_gives_it_back(self):
        with self.assertRaisesRegex(KeyError, 'x'), \
                self.reservations.hold('a', 60 * MIB, 0):
            raise KeyError('x')
        self.assertEqual(100 * MIB, self.reservations._ledger.free_bytes_per_s)

    def test_the_next_one_starts_when_the_first_is_over(self):
        _, first_has_it, first_may_end, _ = self.start('a', 60)
        first_has_it.wait()
        grants, has_it, _, _ = self.start('b', 60)
        self.wait_until_queued(1)
        self.assertEqual([], grants)
        time.sleep(0.02)
        first_may_end.set()
        has_it.wait()
        self.assertGreaterEqual(grants[0].waited_ms, 20)

    def test_refused(self):
        self.reservations.take('a', 60 * MIB)
        error = self.assertRaises(exception.PlanRefused,
                                  self.reservations.take, 'b', 50 * MIB)
        self.assertEqual(
            'the migration needs 50 MiB/s, but of the 100 MiB/s that host '
            'compute1 has for migrations ([fastmig]migration_bandwidth_mib_s) '
            'only 40 are free, with 1 running and 0 waiting before it; waited '
            'for 0 s', str(error))
        # It does not wait on in secret.
        self.reservations.give_back('a')
        self.assertEqual(100 * MIB, self.reservations._ledger.free_bytes_per_s)

    def test_refused_after_a_wait(self):
        self.reservations.take('a', 60 * MIB)
        began_s = time.monotonic()
        error = self.assertRaises(
            exception.PlanRefused, self.reservations.take, 'b', 50 * MIB, 0.05)
        self.assertGreaterEqual(time.monotonic() - began_s, 0.05)
        self.assertIn('waited for 0.05 s', str(error))

    def test_one_that_gives_up_lets_the_next_pass(self):
        self.reservations.take('a', 60 * MIB)
        large = threading.Thread(
            target=self.assertRaises,
            args=(exception.PlanRefused, self.reservations.take, 'b',
                  90 * MIB, 0.3))
        large.start()
        self.wait_until_queued(1)
        grants, has_it, _, _ = self.start('c', 40)
        has_it.wait()
        large.join()
        self.assertEqual(40 * MIB, grants[0].bytes_per_s)

    def test_a_lease_of_a_dead_source_runs_out(self):
        self.reservations.take('a', 60 * MIB, lease_s=0.05)
        self.assertRaises(exception.PlanRefused, self.reservations.take, 'b',
                          60 * MIB)
        time.sleep(0.06)
        self.reservations.take('b', 60 * MIB)

    def test_who_waits_gets_what_a_lease_leaves(self):
        self.reservations.take('a', 60 * MIB, lease_s=0.05)
        grant = self.reservations.take('b', 60 * MIB, wait_s=60)
        self.assertLess(grant.waited_ms, 30000)

    def test_a_lease_that_is_renewed(self):
        self.reservations.take('a', 60 * MIB, lease_s=0)
        self.reservations.renew('a', 60)
        self.reservations.renew('b', 60)
        self.assertRaises(exception.PlanRefused, self.reservations.take, 'b',
                          60 * MIB)
        self.reservations.renew('a', 0)
        self.reservations.take('b', 60 * MIB)

    def test_to_give_back_twice(self):
        self.reservations.take('a', 60 * MIB)
        for _ in range(2):
            self.reservations.give_back('a')
        self.assertEqual(100 * MIB, self.reservations._ledger.free_bytes_per_s)

    def test_many_at_once(self):
        """Nobody has more than there is, and everybody gets a turn."""
        have, most, lock = 0, 0, threading.Lock()

        def migrate(number):
            nonlocal have, most
            with self.reservations.hold(str(number), 30 * MIB, 60) as grant:
                with lock:
                    have += grant.bytes_per_s
                    most = max(most, have)
                time.sleep(0.002)
                with lock:
                    have -= grant.bytes_per_s

        threads = [threading.Thread(target=migrate, args=(number,))
                   for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(0, have)
        self.assertLessEqual(most, 100 * MIB)
        self.assertEqual(100 * MIB, self.reservations._ledger.free_bytes_per_s)

    def test_a_host_that_reserves_nothing(self):
        free = reservation.Reservations('compute1', 0)
        for holder in 'ab':
            with free.hold(holder, 10 ** 12, 0) as grant:
                self.assertEqual(reservation.Grant(None, 0), grant)

    def test_the_options(self):
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.StrOpt('host', default='compute7')])
        reservation.register_opts(conf)
        conf([], default_config_files=[], default_config_dirs=[])
        made = reservation.Reservations.configured(conf)
        self.assertEqual((0, 'compute7', 60),
                         (made._ledger.capacity_bytes_per_s, made._host,
                          conf.fastmig.migration_bandwidth_wait_s))
