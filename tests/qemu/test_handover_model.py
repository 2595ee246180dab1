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

"""The hand-over never runs a guest twice and never loses it silently."""

import unittest

from tests.qemu import handover_model as model

ALL = frozenset(model.RULES)

# What breaks first when a rule is left out
BREAKS = {
    'ask': 'double run',
    'give-before-send': 'double run',
    'no-resume-given': 'double run',
    'no-resume-timeout': 'double run',
    'no-cont-given': 'double run',
    'no-cont-taken': 'double run',
    'no-cancel-given': 'double run',
    'no-migrate-given': 'double run',
    'no-cont-refused': 'double run',
    'refuse-lost': 'double run',
    'refuse-for-good': 'double run',
    'return-images': 'silent loss',
    'release-dead': 'double run',
}


def after(st, rules, label):
    """The state that the one transition of this name leads to."""
    found = [new for name, new in model.transitions(st, rules)
             if name == label]
    return found[0] if found else None


class HandoverTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.result = model.search()

    def test_no_violation(self):
        self.assertEqual({}, self.result.violations)

    def test_search_reaches_everything(self):
        """The search would find nothing if it went nowhere."""
        own = {(st.s_own, st.d_own) for st in self.result.states}
        for pair in (('none', 'none'), ('none', 'ready'), ('given', 'ready'),
                     ('given', 'given'), ('given', 'taken'),
                     ('taken', 'taken'), ('given', 'refused'),
                     ('refused', 'refused'), ('released', 'taken')):
            self.assertIn(pair, own)
        self.assertNotIn(('none', 'given'), own)
        self.assertNotIn(('none', 'taken'), own)
        self.assertNotIn(('refused', 'taken'), own)
        self.assertNotIn(('taken', 'refused'), own)

    def test_every_rule_is_needed(self):
        self.assertEqual(ALL, set(BREAKS))
        for rule, name in BREAKS.items():
            with self.subTest(left_out=rule):
                found = model.search(ALL - {rule}).violations
                self.assertIn(name, found)
                self.assertTrue(found[name])

    def test_without_faults_the_guest_runs(self):
        """Only what management or a fault does can stop the guest."""
        todo, seen = [model.State()], set()
        while todo:
            st = todo.pop()
            if st in seen:
                continue
            seen.add(st)
            steps = [new for label, new in model.transitions(st, ALL)
                     if label.startswith(('source: ', 'destination: ')) and
                     not label.endswith((': cont', ': stop', 'cancel',
                                         'release', 'stale', 'timeout'))]
            if not steps:
                self.assertTrue(st.s_run or st.d_run, st)
            todo += steps

    def test_failure_before_the_hand_over_resumes_the_source(self):
        for st in self.result.at_rest:
            if st.s_alive and st.s_own == 'none':
                self.assertTrue(st.s_run, st)

    def test_doubt_is_told(self):
        doubtful = [st for st in self.result.at_rest
                    if st.s_alive and st.s_own == 'given']
        self.assertTrue(doubtful)
        for st in doubtful:
            self.assertTrue(st.s_why, st)
            self.assertFalse(st.s_run, st)
            self.assertFalse(st.s_images, st)

    def test_way_out_of_doubt(self):
        """With the destination dead, release and cont run the guest."""
        tried = 0
        for st in self.result.at_rest:
            if st.s_own != 'given' or not st.s_alive or st.d_alive:
                continue
            tried += 1
            self.assertIsNone(after(st, ALL, 'source: cont'))
            released = after(st, ALL, 'source: x-migrate-handover-release')
            running = after(released, ALL, 'source: cont')
            self.assertTrue(running.s_run and running.s_images)
        self.assertTrue(tried)

    def test_unknown_rule(self):
        with self.assertRaisesRegex(ValueError, 'no-such-rule'):
            model.search({'no-such-rule'})


if __name__ == '__main__':
    unittest.main()
