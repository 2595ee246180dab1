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


import math

import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import ledger


def entry(holder='a', bytes_per_s=10, until_s=math.inf) -> ledger.Entry:
    return ledger.Entry(holder, bytes_per_s, until_s)


def after(*steps, capacity=100) -> ledger.Ledger:
    """A ledger after entries were asked for and names have left."""
    made = ledger.Ledger(capacity)
    for step in steps:
        made = (ledger.leave(made, step) if isinstance(step, str)
                else ledger.ask(made, step))
    return made


def names(entries) -> str:
    return ''.join(each.holder for each in entries)


class TestLedger(base.BaseTestCase):

    def test_what_fits_is_granted(self):
        made = after(entry('a', 60), entry('b', 40))
        self.assertEqual(('ab', '', 0), (
            names(made.granted), names(made.waiting), made.free_bytes_per_s))
        self.assertEqual(entry('a', 60), made.grant_to('a'))
        self.assertIsNone(made.grant_to('c'))

    def test_what_does_not_waits(self):
        made = after(entry('a', 60), entry('b', 41))
        self.assertEqual(('a', 'b'), (names(made.granted),
                                      names(made.waiting)))
        self.assertEqual('b', names(ledger.leave(made, 'a').granted))

    def test_nobody_overtakes(self):
        """A small one does not keep a large one from its turn for ever."""
        made = after(entry('a', 60), entry('b', 50), entry('c', 10))
        self.assertEqual(('a', 'bc'), (names(made.granted),
                                       names(made.waiting)))
        made = ledger.leave(made, 'a')
        self.assertEqual('bc', names(made.granted))

    def test_who_waits_no_more_lets_others_pass(self):
        made = after(entry('a', 60), entry('b', 50), entry('c', 10), 'b')
        self.assertEqual('ac', names(made.granted))

    def test_more_than_there_is_is_all_there_is(self):
        made = after(entry('a', 10 ** 9))
        self.assertEqual(100, made.grant_to('a').bytes_per_s)
        self.assertEqual('b', names(ledger.ask(made, entry('b', 1)).waiting))

    def test_another_attempt_takes_the_place_of_the_first(self):
        made = after(entry('a', 60), entry('a', 70))
        self.assertEqual((entry('a', 70),), made.granted)

    def test_leases(self):
        made = after(entry('a', 60, until_s=5), entry('b', 50))
        self.assertEqual('a', names(ledger.expire(made, 4.9).granted))
        self.assertEqual('b', names(ledger.expire(made, 5).granted))

    def test_a_lease_that_is_renewed(self):
        made = after(entry('a', 60, until_s=5), entry('b', 10, until_s=5),
                     entry('c', 50))
        self.assertEqual(made, ledger.renew(made, 'c', 9))
        made = ledger.renew(made, 'a', 9)
        self.assertEqual(entry('a', 60, until_s=9), made.grant_to('a'))
        self.assertEqual('a', names(ledger.expire(made, 5).granted))

    def test_to_leave_without_having_come(self):
        made = after(entry('a'))
        self.assertEqual(made, ledger.leave(made, 'b'))

    @hypothesis.given(st.lists(
        st.builds(entry, st.sampled_from('abcdef'), st.integers(0, 150),
                  st.floats(0, 100)) |
        st.sampled_from('abcdef') | st.floats(0, 100), max_size=40))
    def test_never_more_than_there_is_and_nobody_forgotten(self, steps):
        made, holders = ledger.Ledger(100), set()
        for step in steps:
            if isinstance(step, ledger.Entry):
                made = ledger.ask(made, step)
                holders.add(step.holder)
            elif isinstance(step, str):
                made = ledger.leave(made, step)
                holders.discard(step)
            else:
                expired = {each.holder for each in made.granted
                           if each.until_s <= step}
                made = ledger.expire(made, step)
                holders -= expired
            self.assertGreaterEqual(made.free_bytes_per_s, 0)
            everybody = names(made.granted) + names(made.waiting)
            self.assertEqual(sorted(holders), sorted(everybody))
            if made.waiting:
                self.assertGreater(made.waiting[0].bytes_per_s,
                                   made.free_bytes_per_s)
        for holder in sorted(holders):
            made = ledger.leave(made, holder)
        self.assertEqual(ledger.Ledger(100), made)


class TestNeeded(base.BaseTestCase):

    def test_all_memory_in_half_of_the_time(self):
        self.assertEqual(8 << 30, ledger.needed_bytes_per_s(8 << 30, 2000))
        self.assertEqual(1, ledger.needed_bytes_per_s(1, 10 ** 6))
