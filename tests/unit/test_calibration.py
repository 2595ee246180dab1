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
import json
import math

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import calibration
from nova_fastmig import model
from tests.unit import values

PAIR = calibration.Pair('compute1', 'compute2')
VERSIONS = calibration.Versions('old', 'new')
NOW_S = 10 ** 9
DAY_S = 86400


def observation(fixed_ms=7.0, bandwidth=1e9,
                at_s=NOW_S) -> calibration.Observation:
    return calibration.Observation(at_s, fixed_ms, bandwidth)


def table(*observations, pair=PAIR, versions=VERSIONS) -> calibration.Table:
    made: calibration.Table = {}
    for each in observations:
        made = calibration.add(made, pair, versions, each)
    return made


def estimate(made, pair=PAIR, versions=VERSIONS, now_s=NOW_S):
    return calibration.estimate(made, pair, versions, now_s, DAY_S)


def fixed(*figures) -> float:
    return estimate(table(*map(observation, figures))).fixed_ms


class TestEstimate(base.BaseTestCase):

    def test_too_little(self):
        few = [observation()] * (calibration.MIN_OBSERVATIONS - 1)
        self.assertIsNone(estimate({}))
        self.assertIsNone(estimate(table(*few)))
        self.assertEqual(model.Estimate(7.0, 1e9, 5, 7.0),
                         estimate(table(*few, observation())))

    def test_four_of_five_are_as_good(self):
        made = table(*(observation(fixed_ms, fixed_ms * 100)
                       for fixed_ms in (9, 5, 7, 6, 8)))
        self.assertEqual(model.Estimate(8, 600, 5, 5), estimate(made))

    def test_an_accident_changes_nothing(self):
        self.assertEqual(7.0, fixed(7, 7, 1e6, 7, 7))

    def test_the_best_of_ten_may_be_an_accident_too(self):
        made = estimate(table(*map(observation, [0.1, *[7] * 9])))
        self.assertEqual(7, made.least_fixed_ms)

    @hypothesis.given(
        st.lists(st.floats(0.1, 1e6), min_size=5, max_size=60))
    def test_the_best_is_never_worse_than_the_usual(self, figures):
        made = estimate(table(*map(observation, figures)))
        self.assertLessEqual(made.least_fixed_ms, made.fixed_ms)
        seen = figures[-calibration.WINDOW:]
        self.assertGreaterEqual(
            sum(each <= made.least_fixed_ms for each in seen),
            0.2 * len(seen) - 1e-9)
        # Whoever refuses by it refuses what four of five have missed.
        self.assertGreaterEqual(
            sum(each >= made.least_fixed_ms for each in seen),
            0.8 * len(seen) - 1e-9)

    @hypothesis.given(
        st.lists(st.floats(0.1, 1e6), min_size=5, max_size=60))
    def test_it_lies_within_what_was_seen_last(self, figures):
        made = estimate(table(*(
            observation(figure, figure) for figure in figures)))
        seen = figures[-calibration.WINDOW:]
        self.assertEqual(len(seen), made.count)
        self.assertIn(made.fixed_ms, seen)
        self.assertIn(made.bandwidth_bytes_per_s, seen)
        for better in (sum(each <= made.fixed_ms for each in seen),
                       sum(each >= made.bandwidth_bytes_per_s
                           for each in seen)):
            self.assertGreaterEqual(better, 0.8 * len(seen) - 1e-9)

    @hypothesis.given(st.lists(st.floats(0, 20), min_size=5, max_size=20),
                      st.data())
    def test_a_fifth_of_it_can_be_anything(self, figures, data):
        """Then it still lies within what the others show."""
        accidents = data.draw(st.lists(
            st.floats(0, 1e9), max_size=len(figures) // 5))
        hypothesis.assume(
            len(accidents) * 5 <= len(figures) + len(accidents) <=
            calibration.WINDOW)
        self.assertLessEqual(fixed(*figures, *accidents), 20)

    def test_what_is_old_is_not_used(self):
        made = table(*[observation()] * 5)
        self.assertIsNotNone(estimate(made, now_s=NOW_S + DAY_S))
        self.assertIsNone(estimate(made, now_s=NOW_S + DAY_S + 1))

    def test_nor_what_comes_from_the_future(self):
        """The clock was set back."""
        made = table(*[observation()] * 5)
        self.assertIsNone(estimate(made, now_s=NOW_S - DAY_S - 1))

    def test_each_direction_for_itself(self):
        self.assertIsNone(estimate(
            table(*[observation()] * 5),
            pair=calibration.Pair('compute2', 'compute1')))

    def test_other_versions(self):
        made = table(*[observation()] * 5)
        for versions in (calibration.Versions('old', 'newer'),
                         calibration.Versions('older', 'new')):
            self.assertIsNone(estimate(made, versions=versions))


@ddt.ddt
class TestAdd(base.BaseTestCase):

    def test_other_versions_forget(self):
        made = table(*[observation()] * 5)
        newer = calibration.Versions('old', 'newer')
        made = calibration.add(made, PAIR, newer, observation())
        self.assertEqual(
            {PAIR: calibration.Record(newer, (observation(),))}, made)

    def test_but_not_the_last_trial(self):
        made = calibration.begin_trial(table(observation()), PAIR, NOW_S + 1)
        made = calibration.add(made, PAIR, VERSIONS, observation())
        self.assertEqual(NOW_S + 1, made[PAIR].tried_at_s)

    def test_the_memory_is_bounded(self):
        made = {}
        for number in range(calibration.MAX_PAIRS + 10):
            made = calibration.add(
                made, calibration.Pair('a', str(number)), VERSIONS,
                observation(at_s=NOW_S + number))
        self.assertEqual(calibration.MAX_PAIRS, len(made))
        self.assertNotIn(calibration.Pair('a', '9'), made)
        self.assertIn(calibration.Pair('a', '10'), made)

    def test_the_newcomer_stays_whatever_the_clock_says(self):
        made = {}
        for number in range(calibration.MAX_PAIRS + 1):
            made = calibration.add(
                made, calibration.Pair('a', str(number)), VERSIONS,
                observation(at_s=NOW_S - number))
        self.assertIn(calibration.Pair('a', str(calibration.MAX_PAIRS)), made)

    @ddt.data({'fixed_ms': -0.1}, {'fixed_ms': float('nan')},
              {'fixed_ms': float('inf')}, {'bandwidth': 0},
              {'bandwidth': float('nan')}, {'at_s': -1},
              {'at_s': float('inf')})
    def test_what_cannot_be(self, changes):
        self.assertEqual({}, table(observation(**changes)))

    def test_nothing_is_changed_in_place(self):
        first = table(observation())
        copy = dict(first)
        calibration.add(first, PAIR, VERSIONS, observation())
        self.assertEqual(copy, first)


class TestTrial(base.BaseTestCase):

    RETRY_S = 3600

    def is_due(self, made, now_s, pair=PAIR, versions=VERSIONS,
               retry_s=RETRY_S) -> bool:
        return calibration.is_trial_due(made, pair, versions, now_s, retry_s)

    def test_it_waits_for_its_time(self):
        made = table(observation(at_s=NOW_S - 9999), observation())
        self.assertFalse(self.is_due(made, NOW_S))
        self.assertFalse(self.is_due(made, NOW_S + self.RETRY_S - 1))
        self.assertTrue(self.is_due(made, NOW_S + self.RETRY_S))
        self.assertEqual(NOW_S + self.RETRY_S, calibration.next_trial_s(
            made[PAIR], self.RETRY_S))

    def test_there_is_one_in_that_time(self):
        later_s = NOW_S + self.RETRY_S
        made = calibration.begin_trial(table(observation()), PAIR, later_s)
        self.assertFalse(self.is_due(made, later_s))
        self.assertFalse(self.is_due(made, later_s + self.RETRY_S - 1))
        self.assertTrue(self.is_due(made, later_s + self.RETRY_S))

    def test_never(self):
        self.assertFalse(self.is_due(table(observation()), NOW_S + 10 ** 12,
                                     retry_s=math.inf))

    def test_a_clock_that_was_set_back(self):
        made = table(observation())
        self.assertTrue(self.is_due(made, NOW_S - self.RETRY_S))

    def test_of_what_is_not_known(self):
        made = table(observation())
        later_s = NOW_S + self.RETRY_S
        self.assertFalse(self.is_due({}, later_s))
        self.assertFalse(self.is_due(
            made, later_s, versions=calibration.Versions('old', 'newer')))

    def test_good_ones_bring_the_pair_back(self):
        """Two of ten, so that one is no accident."""
        made = table(*[observation(40.0)] * 8)
        for least_ms in (40.0, 7.0):
            made = calibration.add(made, PAIR, VERSIONS, observation(7.0))
            self.assertEqual(least_ms, estimate(made).least_fixed_ms)


class TestFixedPart(base.BaseTestCase):

    def test_without_the_last_pages(self):
        self.assertEqual(9.5, calibration.fixed_part_ms(12, 2.5))
        self.assertEqual(12, calibration.fixed_part_ms(12, None))
        self.assertEqual(0, calibration.fixed_part_ms(1, 1.5))


@ddt.ddt
class TestLesson(base.BaseTestCase):

    def lesson(self, early_resume=False, **completed):
        return calibration.lesson(
            values.completed(**{'bandwidth_bytes_per_s': 10 ** 9,
                                **completed}), early_resume)

    @ddt.data(False, True)
    def test_qemus_figures(self, early_resume):
        fixed_ms, bandwidth = self.lesson(early_resume,
                                          blackout=values.blackout())
        self.assertAlmostEqual(3.2 - (1.0 - 0.2), fixed_ms)
        self.assertEqual(10 ** 9, bandwidth)

    def test_pages_that_were_sent_before_the_stop(self):
        self.assertEqual(
            (3.2, 10 ** 9),
            self.lesson(blackout=values.blackout(pages_sent_ms=0.1)))

    def test_qemus_last_pages_and_libvirts_end(self):
        """Where libvirt starts the vCPUs, it knows when."""
        fixed_ms, _ = self.lesson(blackout=values.blackout(resumed_ms=None))
        self.assertAlmostEqual(7 - (1.0 - 0.2), fixed_ms)
        self.assertIsNone(self.lesson(
            blackout=values.blackout(resumed_ms=None), downtime_ms=None))

    def test_libvirts_figure(self):
        self.assertEqual((7, 10 ** 9), self.lesson())

    def test_libvirts_figure_is_too_long_with_early_resume(self):
        self.assertIsNone(self.lesson(early_resume=True))

    @ddt.data({'downtime_ms': None}, {'bandwidth_bytes_per_s': None},
              {'bandwidth_bytes_per_s': 0})
    def test_a_figure_is_missing(self, completed):
        self.assertIsNone(self.lesson(**completed))


class TestDescribe(base.BaseTestCase):

    def test_whatever_can_change_the_blackout(self):
        host = values.host()
        described = calibration.describe(host, '1.2.0')
        others = {calibration.describe(host, '1.2.1')}
        for changes in ({'qemu_version': (10, 0, 14)},
                        {'qemu_series': 'nova-fastmig-1'},
                        {'libvirt_version': (11, 3, 1)}):
            others.add(calibration.describe(
                dataclasses.replace(host, **changes), '1.2.0'))
        self.assertEqual(4, len(others - {described}))
        self.assertEqual(
            'QEMU 10.0.13 as distributed, libvirt 11.3.0, driver 1.2.0',
            described)


observations = st.builds(
    calibration.Observation, st.floats(0, 1e10), st.floats(0, 1e6),
    st.floats(1, 1e12))
tables = st.dictionaries(
    st.builds(calibration.Pair, st.text(), st.text()),
    st.builds(calibration.Record,
              st.builds(calibration.Versions, st.text(), st.text()),
              st.lists(observations, min_size=1,
                       max_size=calibration.WINDOW).map(tuple),
              st.floats(0, 1e10)), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text() | st.sampled_from(['format', 'pairs', 'source', 'versions']),
        inner, max_size=3), max_leaves=10)


@ddt.ddt
class TestJson(base.BaseTestCase):

    @hypothesis.given(tables)
    def test_there_and_back(self, made):
        self.assertEqual(made, calibration.from_json(
            json.loads(json.dumps(calibration.to_json(made)))))

    @hypothesis.given(json_values)
    def test_anything_else_is_an_error(self, stored):
        self.assertRaises(ValueError, calibration.from_json, stored)

    @ddt.data(
        {'format': 2}, {'pairs': None}, {'pairs': [{}]},
        {'source': 1}, {'destination': None}, {'versions': ['a']},
        {'versions': ['a', 1]}, {'observations': [[1, 2]]},
        {'observations': [[1, 2, '3']]}, {'observations': [[1, 2, 10 ** 400]]},
        {'observations': [[True, 2, 3]]}, {'tried_at_s': 'soon'},
        {'pairs': ['']})
    def test_one_thing_is_wrong(self, changes):
        good = calibration.to_json(table(observation()))
        calibration.from_json(good)
        for name, value in changes.items():
            (good if name in good else good['pairs'][0])[name] = value
        self.assertRaises(ValueError, calibration.from_json, good)

    def test_a_file_without_trials(self):
        old = calibration.to_json(table(observation()))
        del old['pairs'][0]['tried_at_s']
        self.assertEqual(table(observation()), calibration.from_json(old))

    def test_a_trial_that_cannot_be(self):
        for tried_at_s in (-1, float('inf'), float('nan')):
            stored = calibration.to_json(table(observation()))
            stored['pairs'][0]['tried_at_s'] = tried_at_s
            self.assertEqual(table(observation()),
                             calibration.from_json(stored))

    def test_a_trial_of_nothing(self):
        stored = calibration.to_json(table(observation()))
        stored['pairs'][0].update(observations=[], tried_at_s=5)
        self.assertEqual({}, calibration.from_json(stored))

    def test_a_format_of_a_newer_driver_is_named(self):
        error = self.assertRaises(ValueError, calibration.from_json,
                                  {'format': 7, 'pairs': []})
        self.assertEqual('format 7; 1 is known', str(error))
