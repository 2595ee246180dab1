# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.


"""The judges of these tests, judged: no QEMU is needed."""

import unittest

from tests.qemu import beacons
from tests.qemu import guest
from tests.qemu import report

STATUS = ('guest: boot {} passes 3 verified 50 written 5 uptime_ms 700\r\n')


def packets(sender, start_ms, first, count, clock_ms=0):
    return [beacons.Packet((start_ms + n) / 1000, sender, b'', first + n,
                           (start_ms + n + clock_ms) * 1000000)
            for n in range(count)]


class TestGap(unittest.TestCase):

    def test_good(self):
        # the clock stood still while the guest did
        gap = beacons.gap(packets(1, 0, 0, 100)
                          + packets(2, 110, 100, 100, clock_ms=-10))
        gap.check()
        self.assertAlmostEqual(11, gap.blackout_ms)
        self.assertAlmostEqual(-10, gap.clock_gain_ms)
        self.assertEqual((0, 0), (gap.lost, gap.twice))

    def test_lost(self):
        gap = beacons.gap(packets(1, 0, 0, 100) + packets(2, 110, 107, 100))
        self.assertEqual(7, gap.lost)

    def test_same_packets_twice(self):
        gap = beacons.gap(packets(1, 0, 0, 100) + packets(2, 110, 98, 100))
        with self.assertRaises(beacons.SwitchoverFault):
            gap.check()

    def test_both_run(self):
        mixed = packets(1, 0, 0, 100) + packets(2, 90, 200, 100)
        gap = beacons.gap(sorted(mixed, key=lambda p: p.arrival_s))
        with self.assertRaises(beacons.SwitchoverFault):
            gap.check()

    def test_clock_jumps(self):
        for clock_ms in (-3000, 3000):
            gap = beacons.gap(packets(1, 5000, 0, 100) + packets(
                2, 5110, 100, 100, clock_ms=clock_ms))
            with self.assertRaises(beacons.SwitchoverFault):
                gap.check()


class TestSerial(unittest.TestCase):

    def test_status(self):
        status = guest.last_status('x\n' + STATUS.format('a'))
        self.assertEqual(guest.Status('a', 3, 50, 5, 700), status)

    def test_faults(self):
        for fault in ('guest: FAULT page 1', '[1.0] Kernel panic - x',
                      '[1.0] BUG: unable to handle page fault',
                      STATUS.format('b')):  # booted again
            with self.assertRaises(guest.GuestFault):
                guest.last_status(STATUS.format('a') + fault + '\n')

    def test_never_started(self):
        with self.assertRaises(guest.GuestFault):
            guest.last_status('SeaBIOS')


class TestReport(unittest.TestCase):

    def test_summary(self):
        self.assertEqual(
            {'n': 20, 'median': 10.5, 'p90': 18, 'p95': 19, 'max': 20},
            report.summary(range(20, 0, -1)))
        self.assertEqual(
            {'n': 1, 'median': 7, 'p90': 7, 'p95': 7, 'max': 7},
            report.summary([7]))

    def test_interleaved(self):
        order = list(report.interleaved('abc', 4))
        for number in range(4):
            self.assertEqual(
                set('abc'), {name for n, name in order if n == number})

    def test_table(self):
        lines = report.table({'off': [10, 20, 30], 'all': [5, 5, 5]}, 'ms')
        self.assertEqual(['all', '3', '5.0', '5.0', '5.0', '5.0', '0.25'],
                         lines.splitlines()[2].split())
