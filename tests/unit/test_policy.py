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

import dataclasses
import functools
import itertools

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import model
from nova_fastmig import policy
from tests.unit import values


def decide(on_miss: str, elapsed_ms: float, paused=False,
           post_copy_started=False, post_copy_possible=True,
           give_up_ms=None) -> model.Decision:
    return policy.decide(
        values.plan(sla=values.sla(on_miss=model.OnMiss(on_miss)),
                    total_limit_ms=2000),
        elapsed_ms, paused, post_copy_started, post_copy_possible, give_up_ms)


@ddt.ddt
class TestDecide(base.BaseTestCase):

    # what is the case -> action, reason
    @ddt.data(
        ({'on_miss': 'abort', 'elapsed_ms': 0},
         'continue', 'within the time limit'),
        ({'on_miss': 'abort', 'elapsed_ms': 2000},
         'continue', 'within the time limit'),
        ({'on_miss': 'abort', 'elapsed_ms': 2000.6},
         'abort', '2001 ms of 2000 ms are over before the switchover'),
        ({'on_miss': 'abort', 'elapsed_ms': 2001, 'paused': True},
         'continue',
         '2001 ms of 2000 ms are over; the switchover is under way'),
        ({'on_miss': 'post-copy', 'elapsed_ms': 2001},
         'post-copy', '2001 ms of 2000 ms are over before the switchover'),
        ({'on_miss': 'post-copy', 'elapsed_ms': 2001,
          'post_copy_started': True},
         'continue', '2001 ms of 2000 ms are over; post-copy is under way'),
        ({'on_miss': 'post-copy', 'elapsed_ms': 2001,
          'post_copy_possible': False},
         'abort', '2001 ms of 2000 ms are over before the switchover; '
         'post-copy is not possible'),
        ({'on_miss': 'proceed', 'elapsed_ms': 2001},
         'continue',
         '2001 ms of 2000 ms are over; the flavor says to proceed'),
        ({'on_miss': 'proceed', 'elapsed_ms': 5000, 'give_up_ms': 5000},
         'continue',
         '5000 ms of 2000 ms are over; the flavor says to proceed'),
        ({'on_miss': 'proceed', 'elapsed_ms': 5001, 'give_up_ms': 5000},
         'abort', '5001 ms are over and Nova gives up after 5000 ms '
         '([libvirt]live_migration_completion_timeout)'),
    )
    @ddt.unpack
    def test_table(self, case, action, reason):
        self.assertEqual(model.Decision(model.Action(action), reason),
                         decide(**case))

    @hypothesis.given(
        st.sampled_from(model.OnMiss), st.floats(0, 1e9), st.booleans(),
        st.booleans(), st.booleans(), st.none() | st.integers(1))
    def test_nothing_is_done_in_time_or_in_the_switchover(
            self, on_miss, elapsed_ms, paused, post_copy_started,
            post_copy_possible, give_up_ms):
        decision = decide(on_miss, elapsed_ms, paused, post_copy_started,
                          post_copy_possible, give_up_ms)
        if elapsed_ms <= 2000 or paused or post_copy_started:
            self.assertIs(model.Action.CONTINUE, decision.action)
        self.assertNotEqual('', decision.reason)

    @hypothesis.given(st.floats(2001, 1e9))
    def test_without_more_ado_only_what_the_flavor_says(self, elapsed_ms):
        self.assertEqual(
            ['abort', 'continue', 'post-copy'],
            [decide(on_miss, elapsed_ms).action for on_miss in model.OnMiss])


@ddt.ddt
class TestSwitchoverThatHangs(base.BaseTestCase):

    def decide(self, paused_ms: float, on_miss='abort', elapsed_ms=500,
               **changes) -> model.Decision:
        return policy.decide(
            values.plan(sla=values.sla(on_miss=model.OnMiss(on_miss)),
                        total_limit_ms=2000, switchover_limit_ms=3000),
            elapsed_ms, **{
                'paused': True, 'post_copy_started': False,
                'post_copy_possible': True, 'give_up_ms': None, **changes},
            paused_ms=paused_ms)

    @ddt.data(*model.OnMiss)
    def test_it_is_cancelled(self, on_miss):
        """Whatever the flavor says of the total time."""
        for elapsed_ms in (500, 60000):
            self.assertEqual(
                model.Decision(
                    model.Action.ABORT,
                    'the guest has stood still for 3001 ms and the switchover '
                    'has not finished; 3000 ms are allowed '
                    '([fastmig]switchover_timeout_ms)'),
                self.decide(3000.6, on_miss, elapsed_ms))

    def test_not_before(self):
        self.assertEqual(model.Action.CONTINUE, self.decide(3000).action)

    @ddt.data({'paused': False}, {'post_copy_started': True})
    def test_not_otherwise(self, changes):
        self.assertEqual(model.Action.CONTINUE,
                         self.decide(99999, **changes).action)


MIB = 1 << 20


def sample(**changes) -> policy.Sample:
    return policy.Sample(**{
        'elapsed_ms': 1000, 'iteration': 2, 'total_bytes': 512 * MIB,
        'remaining_bytes': 64 * MIB, 'bandwidth_bytes_per_s': 32 * MIB,
        'dirty_rate_bytes_per_s': 60 * MIB, **changes})


STATS = {'time_elapsed': 1000, 'memory_iteration': 2,
         'memory_total': 512 * MIB, 'memory_remaining': 64 * MIB,
         'memory_bps': 32 * MIB, 'memory_dirty_rate': 15360,
         'memory_page_size': 4096}

# What a statistic must not be.
nonsense = (st.none() | st.booleans() | st.text(max_size=3) | st.floats() |
            st.integers(max_value=-1) |
            st.integers(policy.ABSURD_BYTES + 1))


class TestToSample(base.BaseTestCase):

    def test_libvirts_names_and_units(self):
        self.assertEqual(sample(), policy.to_sample(STATS))

    def test_nothing(self):
        self.assertEqual({None}, set(dataclasses.astuple(
            policy.to_sample({}))))

    @hypothesis.given(st.sampled_from(sorted(STATS)), nonsense)
    def test_what_is_no_count_is_unknown(self, name, value):
        made = policy.to_sample({**STATS, name: value})
        self.assertEqual(1, dataclasses.astuple(made).count(None))


@ddt.ddt
class TestRemember(base.BaseTestCase):

    def remembered(self, *changes) -> tuple[policy.Sample, ...]:
        return functools.reduce(
            policy.remember, [sample(**each) for each in changes], ())

    def test_the_start_of_each_of_the_last_passes(self):
        every = [{'elapsed_ms': 100 * number, 'iteration': 1 + number // 2}
                 for number in range(20)]
        self.assertEqual(
            tuple(sample(**every[number]) for number in (12, 14, 16, 18)),
            self.remembered(*every))

    def test_once_is_enough(self):
        every = [{'elapsed_ms': number, 'iteration': 2 + number // 3}
                 for number in range(50)]
        kept = self.remembered(*every)
        self.assertEqual(kept, functools.reduce(policy.remember, kept, ()))

    @ddt.data({'elapsed_ms': None}, {'iteration': 1}, {'iteration': 0},
              {'remaining_bytes': 513 * MIB}, {'remaining_bytes': -1},
              {'bandwidth_bytes_per_s': 0}, {'dirty_rate_bytes_per_s': 0},
              {'dirty_rate_bytes_per_s': None},
              {'total_bytes': policy.ABSURD_BYTES + 1})
    def test_what_tells_nothing(self, changes):
        self.assertEqual((), self.remembered(changes))

    def test_late_double_and_out_of_order(self):
        good = {'elapsed_ms': 1000, 'iteration': 5}
        for other in ({'elapsed_ms': 1000, 'iteration': 6},
                      {'elapsed_ms': 999, 'iteration': 6},
                      {'elapsed_ms': 999, 'iteration': 4}, good):
            self.assertEqual((sample(**good),), self.remembered(good, other))

    def test_another_attempt_begins_anew(self):
        again = {'elapsed_ms': 1001, 'iteration': 2}
        self.assertEqual(
            (sample(**again),),
            self.remembered({'elapsed_ms': 1000, 'iteration': 5}, again))


class Migration:
    """QEMU's pre-copy as a fluid: what it would do, and what one sees.

    A pass sends what remained at its start. Meanwhile the guest dirties at
    its rate, but not more than its working set.

    :ivar samples: at the start of each pass and within it
    :ivar converges_ms: when what remains first fits the downtime limit; None
        if it does not until ``until_ms``
    """

    LIMIT_MS = 10

    def __init__(self, total_bytes, working_set_bytes, dirty_rate, bandwidth,
                 until_ms, looks_per_pass=2, factors=((1.0, 1.0),)):
        self.samples = []
        self.converges_ms = None
        now_ms, remaining, seen_rate = 0.0, float(total_bytes), 0.0
        # Of each pass; the last one stays.
        factors = itertools.chain(factors, itertools.repeat(factors[-1]))
        for iteration, (faster, dirtier) in enumerate(factors, 1):
            rate = bandwidth * faster
            pass_ms = remaining / rate * 1000
            for look in range(looks_per_pass):
                part = look / looks_per_pass
                self.samples.append(policy.Sample(
                    round(now_ms + part * pass_ms), iteration, total_bytes,
                    round(remaining * (1 - part)), round(rate),
                    round(seen_rate)))
            now_ms += pass_ms
            if now_ms > until_ms or iteration > 200:
                break
            remaining = min(working_set_bytes,
                            dirty_rate * dirtier * pass_ms / 1000)
            seen_rate = remaining / pass_ms * 1000
            if remaining <= rate * self.LIMIT_MS / 1000:
                self.converges_ms = now_ms
                break

    def first_verdict(self, total_limit_ms, samples=None, **case):
        """The first decision not to go on, as (elapsed_ms, Decision)."""
        the_plan = values.plan(
            downtime_limit_ms=self.LIMIT_MS, total_limit_ms=total_limit_ms,
            sla=values.sla(on_miss=case.pop('on_miss', model.OnMiss.ABORT)))
        seen = ()
        for each in self.samples if samples is None else samples:
            seen = policy.remember(seen, each)
            elapsed_ms = each.elapsed_ms or 0
            decision = policy.decide(
                the_plan, elapsed_ms, **{
                    'paused': False, 'post_copy_started': False,
                    'post_copy_possible': True, 'give_up_ms': None, **case},
                samples=seen)
            if decision.action is not model.Action.CONTINUE:
                return elapsed_ms, decision
        return None


sizes = st.integers(1, 4096).map(lambda mib: mib * MIB)
rates = st.integers(1, 4096).map(lambda mib: mib * MIB)


class TestTrend(base.BaseTestCase):

    @hypothesis.given(
        total=sizes, part=st.floats(0.001, 1), bandwidth=rates,
        ratio=st.floats(0.01, 3), deadline_ms=st.integers(100, 600000),
        looks=st.integers(1, 5))
    def test_one_that_converges_in_time_is_never_touched(
            self, total, part, bandwidth, ratio, deadline_ms, looks):
        run = Migration(total, total * part, bandwidth * ratio, bandwidth,
                        deadline_ms, looks)
        hypothesis.assume(run.converges_ms is not None and
                          run.converges_ms <= deadline_ms)
        self.assertIsNone(run.first_verdict(deadline_ms))

    @hypothesis.given(
        part=st.floats(0.1, 1), ratio=st.floats(0.5, 1.1),
        factors=st.lists(st.tuples(st.floats(.95, 1.05),
                                   st.floats(.95, 1.05)), min_size=1),
        deadline_ms=st.integers(3000, 100000), looks=st.integers(1, 3))
    def test_nor_if_its_rates_are_unsteady(self, part, ratio, factors,
                                           deadline_ms, looks):
        run = Migration(512 * MIB, 512 * MIB * part, 200 * MIB * ratio,
                        200 * MIB, deadline_ms, looks, factors)
        hypothesis.assume(run.converges_ms is not None and
                          run.converges_ms <= deadline_ms)
        self.assertIsNone(run.first_verdict(deadline_ms))

    @hypothesis.given(
        total=st.integers(64, 4096).map(lambda mib: mib * MIB),
        part=st.floats(0.2, 1), bandwidth=rates, ratio=st.floats(1, 4),
        passes=st.integers(8, 30), looks=st.integers(1, 5),
        on_miss=st.sampled_from(model.OnMiss))
    def test_one_that_never_will_is_ended_before_the_deadline(
            self, total, part, bandwidth, ratio, passes, looks, on_miss):
        working_set = total * part
        # The first pass and then as many as given.
        deadline_ms = round(
            (total + passes * working_set) / bandwidth * 1000)
        run = Migration(total, working_set, bandwidth * ratio, bandwidth,
                        deadline_ms * 2, looks)
        hypothesis.assume(
            run.converges_ms is None and deadline_ms > 100 and
            working_set > 3 * bandwidth * run.LIMIT_MS / 1000)
        verdict = run.first_verdict(deadline_ms, on_miss=on_miss)
        if on_miss is model.OnMiss.PROCEED:
            self.assertIsNone(verdict)
            return
        elapsed_ms, decision = verdict
        self.assertEqual(on_miss, str(decision.action))
        self.assertLess(elapsed_ms, deadline_ms)
        self.assertIn('will not converge in the', decision.reason)

    def test_the_reason_has_the_figures(self):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        self.assertEqual(
            (24000, model.Decision(
                model.Action.ABORT,
                'will not converge in the 6000 ms left: 64.0 MiB remain, '
                '0.3 MiB fit the switchover; bandwidth 32.0 MiB/s, dirty '
                'rate 32.0 MiB/s')),
            run.first_verdict(30000))

    def test_with_much_time_left_nothing_is_certain(self):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        self.assertIsNone(run.first_verdict(600000))

    def test_post_copy_that_is_not_possible(self):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        _, decision = run.first_verdict(
            30000, on_miss=model.OnMiss.POST_COPY, post_copy_possible=False)
        self.assertIs(model.Action.ABORT, decision.action)
        self.assertTrue(decision.reason.endswith(
            '; post-copy is not possible'))

    def test_proceed_says_what_it_expects(self):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 29000)
        decision = policy.decide(
            values.plan(sla=values.sla(on_miss=model.OnMiss.PROCEED),
                        total_limit_ms=30000),
            run.samples[-1].elapsed_ms, False, False, False, 1, run.samples)
        self.assertIs(model.Action.CONTINUE, decision.action)
        self.assertIn('will not converge', decision.reason)
        self.assertIn('; the flavor says to proceed', decision.reason)

    @hypothesis.given(st.booleans())
    def test_the_switchover_and_post_copy_are_let_be(self, paused):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        self.assertIsNone(run.first_verdict(
            30000, paused=paused, post_copy_started=not paused))

    def test_what_has_come_near_may_make_it(self):
        """What remains is 1.5 times what fits, in one of the passes."""
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000, 1)
        near = dataclasses.replace(run.samples[-1],
                                   remaining_bytes=int(.48 * MIB))
        self.assertIsNone(run.first_verdict(
            near.elapsed_ms + 1, [*run.samples[-4:-1], near]))

    @hypothesis.given(st.floats(0.3, 0.95), st.integers(1, 1 << 40))
    def test_what_goes_down_is_believed_more_than_rates(self, ratio, dirty):
        """QEMU's rates are those of a moment."""
        run = Migration(512 * MIB, 512 * MIB, 200 * MIB * ratio, 200 * MIB,
                        10 ** 6)
        self.assertIsNone(run.first_verdict(
            int(run.converges_ms) + 1,
            [dataclasses.replace(each, dirty_rate_bytes_per_s=dirty)
             for each in run.samples]))

    def test_what_was_seen_long_ago_counts_no_more(self):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 24000, 1)
        last_ms = run.samples[-1].elapsed_ms
        the_plan = values.plan(total_limit_ms=last_ms + 6500)
        self.assertEqual(
            ['continue', 'abort', 'abort', 'continue', 'abort'],
            [policy.decide(the_plan, last_ms + elapsed_ms, False, False,
                           False, None, run.samples).action
             for elapsed_ms in (-2, 0, 5999, 6002, 6501)])


    @hypothesis.given(
        part=st.floats(0.1, 1), ratio=st.floats(0.3, 3),
        deadlines=st.lists(st.integers(500, 100000), min_size=2, max_size=2),
        looks=st.integers(1, 3))
    def test_more_time_never_ends_it_sooner(self, part, ratio, deadlines,
                                            looks):
        run = Migration(512 * MIB, 512 * MIB * part, 200 * MIB * ratio,
                        200 * MIB, 200000, looks)
        less, more = (run.first_verdict(deadline_ms)
                      for deadline_ms in sorted(deadlines))
        if less is None:
            self.assertIsNone(more)
        elif more is not None:
            self.assertLessEqual(less[0], more[0])

    @hypothesis.given(
        part=st.floats(0.1, 1), ratio=st.floats(0.3, 3),
        limits=st.lists(st.integers(1, 1000), min_size=2, max_size=2))
    def test_nor_does_a_higher_downtime_limit(self, part, ratio, limits):
        run = Migration(512 * MIB, 512 * MIB * part, 200 * MIB * ratio,
                        200 * MIB, 30000)
        less, more = (
            policy.decide(
                values.plan(downtime_limit_ms=limit_ms, total_limit_ms=20000),
                run.samples[-1].elapsed_ms, False, False, False, None,
                run.samples).action
            for limit_ms in sorted(limits))
        if less is model.Action.CONTINUE:
            self.assertIs(model.Action.CONTINUE, more)

    def test_what_qemu_was_told_to_expect_fits_too(self):
        """It switches over by that, and not by what it has seen."""
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000, 1)
        last_ms = run.samples[-1].elapsed_ms
        for mib_s, action in ((None, 'abort'), (16, 'abort'),
                              (6400, 'continue')):
            self.assertEqual(action, policy.decide(
                values.plan(total_limit_ms=last_ms + 6500,
                            switchover_bandwidth_mib_s=mib_s),
                last_ms, False, False, False, None, run.samples).action)

    @hypothesis.given(
        st.sampled_from(model.OnMiss), st.floats(0, 1e9), st.booleans(),
        st.booleans(), st.none() | st.integers(1), st.floats(0, 1e9),
        st.booleans())
    def test_there_is_no_way_back_from_post_copy(
            self, on_miss, elapsed_ms, paused, possible, give_up_ms,
            paused_ms, has_samples):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        self.assertIs(model.Action.CONTINUE, policy.decide(
            values.plan(sla=values.sla(on_miss=on_miss)), elapsed_ms, paused,
            True, possible, give_up_ms, run.samples if has_samples else (),
            paused_ms).action)

    @hypothesis.given(
        st.sampled_from(model.OnMiss), st.floats(0, 1e9), st.booleans(),
        st.floats(0, 1e9))
    def test_a_pause_that_is_no_switchover_changes_nothing(
            self, on_miss, elapsed_ms, possible, paused_ms):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        plan = values.plan(sla=values.sla(on_miss=on_miss))
        self.assertEqual(*(policy.decide(
            plan, elapsed_ms, False, False, possible, None, run.samples,
            each_ms) for each_ms in (0, paused_ms)))


anything = st.none() | st.integers(-(1 << 70), 1 << 70)
rubbish = st.builds(policy.Sample, *[anything] * 6)
plausible = st.builds(
    policy.Sample, st.integers(0, 30000), st.integers(1, 20),
    st.just(512 * MIB), st.integers(0, 512 * MIB), st.integers(0, 1 << 40),
    st.integers(0, 1 << 40))


class TestBadSamples(base.BaseTestCase):

    @hypothesis.given(st.lists(rubbish | plausible, max_size=30),
                      st.floats(0, 2000), st.sampled_from(model.OnMiss))
    def test_anything_gives_a_decision(self, samples, elapsed_ms, on_miss):
        decision = policy.decide(
            values.plan(sla=values.sla(on_miss=on_miss)), elapsed_ms, False,
            False, True, None, samples)
        self.assertNotEqual('', decision.reason)

    @hypothesis.given(st.data(), st.floats(0.3, 0.8))
    def test_they_end_none_that_converges(self, data, ratio):
        """Any number of impossible ones, and one that is only wrong."""
        run = Migration(512 * MIB, 512 * MIB, 200 * MIB * ratio, 200 * MIB,
                        10 ** 6)
        deadline_ms = int(run.converges_ms) + 1
        samples = list(run.samples)
        for wrong in [*data.draw(st.lists(rubbish, max_size=5)),
                      data.draw(plausible)]:
            samples.insert(data.draw(st.integers(0, len(samples))), wrong)
        verdict = run.first_verdict(
            deadline_ms, [each for each in samples
                          if not each.elapsed_ms or
                          each.elapsed_ms <= deadline_ms])
        self.assertIsNone(verdict)

    @hypothesis.given(st.data())
    def test_nor_does_their_order(self, data):
        run = Migration(512 * MIB, 512 * MIB, 100 * MIB, 200 * MIB, 10 ** 6)
        deadline_ms = int(run.converges_ms) + 1
        self.assertIsNone(run.first_verdict(
            deadline_ms, data.draw(st.permutations(run.samples))))

    @hypothesis.given(st.sets(st.integers(0, 40)))
    def test_those_that_are_missing_delay_the_end_only(self, lost):
        run = Migration(512 * MIB, 64 * MIB, 60 * MIB, 32 * MIB, 60000)
        deadline_ms = 30000
        elapsed_ms, decision = run.first_verdict(
            deadline_ms, [each for number, each in enumerate(run.samples)
                          if number not in lost])
        self.assertIs(model.Action.ABORT, decision.action)
