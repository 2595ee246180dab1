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

from unittest import mock

import ddt
from hypothesis import given
from hypothesis import strategies as st
from nova.virt.libvirt import migration
from oslotest import base

from nova_fastmig.bench import schedules

MIB = 2**20


def played(name: str, samples: list[schedules.Sample]) -> list:
    """(elapsed_ms, decision) wherever there is one, as an engine would."""
    rule = schedules.rule(name)
    found = []
    for number in range(1, len(samples) + 1):
        decision = rule.decide(samples[:number])
        if decision != schedules.NOTHING:
            found.append((samples[number - 1].elapsed_ms, decision))
    return found


def limits(name: str, samples: list[schedules.Sample]) -> list[int]:
    return [decision.downtime_limit_ms for _, decision in
            played(name, samples) if decision.downtime_limit_ms]


def passes(count: int, every_ms: int = 1000) -> list[schedules.Sample]:
    """One sample for each pass over the memory, and ever less to send."""
    return [schedules.Sample(
        number * every_ms, number, (100 - number) * MIB,
        number * 100 * MIB, 256 * MIB) for number in range(1, count + 1)]


@ddt.ddt
class TestNova(base.BaseTestCase):
    """As Nova itself computes and sets them."""

    @ddt.data((500, 10, 75, 2), (100, 3, 3, 9), (777, 7, 10, 5))
    @ddt.unpack
    def test_the_steps(self, downtime_ms, steps, delay_s, gib):
        with mock.patch.object(migration, 'CONF') as conf:
            conf.libvirt.live_migration_downtime = downtime_ms
            conf.libvirt.live_migration_downtime_steps = steps
            conf.libvirt.live_migration_downtime_delay = delay_s
            expected = list(migration.downtime_steps(gib))
        self.assertEqual(expected, schedules.nova_steps(
            downtime_ms, steps, delay_s, gib))

    def test_the_limit_follows_the_time(self):
        samples = [schedules.Sample(after_ms, 1, MIB, MIB, 256 * MIB)
                   for after_ms in (0, 149_000, 151_000, 10_000_000)]
        self.assertEqual([50, 50, 95, 500],
                         limits('nova-500-10-75', samples))

    def test_it_starts_with_the_first_step(self):
        self.assertEqual(50, schedules.rule('nova-500-10-75').initial_ms)


class TestOvirt(base.BaseTestCase):

    def test_minimal_downtime(self):
        # the first pass that is seen is number 0: limit 1 is due with the
        # second one after it
        self.assertEqual(
            [(3000, schedules.Decision(150)), (4000, schedules.Decision(200)),
             (5000, schedules.Decision(300)), (6000, schedules.Decision(400)),
             (8000, schedules.Decision(500)),
             (9000, schedules.Decision(abort=True))],
            played('ovirt-minimal-downtime', passes(9)))

    def test_suspend_workload(self):
        self.assertEqual([150, 200, 300, 400, 500, 5000],
                         limits('ovirt-suspend-workload', passes(12)))

    def test_only_a_new_pass_counts(self):
        samples = [schedules.Sample(number * 1000, 3, MIB)
                   for number in range(60)]
        self.assertEqual([], played('ovirt-minimal-downtime', samples))

    def test_it_starts_with_100_ms(self):
        self.assertEqual(
            100, schedules.rule('ovirt-minimal-downtime').initial_ms)


class TestKubevirt(base.BaseTestCase):

    def test_not_before_the_third_pass(self):
        self.assertEqual([], limits('kubevirt', [
            schedules.Sample(99_000, 2, MIB)]))

    def test_a_seventh_every_ten_seconds_up_to_the_most(self):
        found = played('kubevirt', passes(200))
        self.assertEqual([257, 364, 471, 578, 685, 792, 899, 900],
                         [each.downtime_limit_ms for _, each in found])
        times = [at_ms for at_ms, _ in found]
        self.assertEqual({10_000}, {after - before for before, after
                                    in zip(times, times[1:], strict=False)})

    def test_it_starts_with_150_ms(self):
        self.assertEqual(150, schedules.rule('kubevirt').initial_ms)


class TestProxmox(base.BaseTestCase):

    def samples(self, remaining):
        return [schedules.Sample(number * 100, number, mib * MIB,
                                 number * MIB)
                for number, mib in enumerate(remaining, 1)]

    def test_twice_after_six_times_more(self):
        # down and up again: one step of six is up
        self.assertEqual(
            [200, 400], limits('proxmox', self.samples([9, 10] * 12)))

    def test_progress_is_no_reason(self):
        self.assertEqual([], limits('proxmox', self.samples(
            range(100, 50, -1))))

    def test_nothing_transferred_is_not_looked_at(self):
        samples = [schedules.Sample(number * 100, 1, number * MIB, MIB)
                   for number in range(40)]
        self.assertEqual([], limits('proxmox', samples))

    def test_nothing_left_counts(self):
        self.assertEqual([200], limits('proxmox', self.samples([0] * 7)))


@ddt.ddt
class TestRules(base.BaseTestCase):

    @ddt.data('fixed', 'novva', 'nova-0-1-1', 'nova-1-2', '')
    def test_unknown(self, name):
        error = self.assertRaises(ValueError, schedules.rule, name)
        self.assertIn('must be one of', str(error))

    def test_fixed(self):
        rule = schedules.rule('fixed', 7)
        self.assertEqual((7, schedules.NOTHING),
                         (rule.initial_ms, rule.decide(passes(9))))

    @given(st.sampled_from(['ovirt-minimal-downtime', 'kubevirt', 'proxmox',
                            'ovirt-suspend-workload', 'nova-500-10-75']),
           st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 3),
                              st.integers(0, 2**40)), min_size=1,
                    max_size=40))
    def test_the_limit_never_goes_down(self, name, steps):
        elapsed_ms, iteration, samples = 0, 1, []
        for after_ms, more, remaining_bytes in steps:
            elapsed_ms, iteration = elapsed_ms + after_ms, iteration + more
            samples.append(schedules.Sample(
                elapsed_ms, iteration, remaining_bytes, elapsed_ms,
                2**30))
        found = [schedules.rule(name).initial_ms, *limits(name, samples)]
        self.assertEqual(sorted(found), found)
