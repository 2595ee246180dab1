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

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import model
from nova_fastmig import policy
from tests.unit import values

CONTINUE = model.Action.CONTINUE


def plan_for(on_miss: model.OnMiss) -> model.Plan:
    return values.plan(sla=values.sla(on_miss=on_miss), total_limit_ms=2000)


@ddt.ddt
class TestDecide(base.BaseTestCase):

    # (on_miss, elapsed_ms, paused, post_copy_started) -> action, reason
    @ddt.data(
        ('abort', 0, False, False, 'continue', 'within the time limit'),
        ('abort', 2000, False, False, 'continue', 'within the time limit'),
        ('abort', 2000.6, False, False, 'abort',
         '2001 ms of 2000 ms are over before the switchover'),
        ('proceed', 2001, False, False, 'continue',
         '2001 ms of 2000 ms are over; the flavor says to proceed'),
        ('post-copy', 2001, False, False, 'post-copy',
         '2001 ms of 2000 ms are over before the switchover'),
        ('post-copy', 2001, False, True, 'continue',
         '2001 ms of 2000 ms are over; post-copy is under way'),
        ('abort', 2001, True, False, 'continue',
         '2001 ms of 2000 ms are over; the switchover is under way'),
    )
    @ddt.unpack
    def test_table(self, on_miss, elapsed_ms, paused, post_copy_started,
                   action, reason):
        self.assertEqual(
            model.Decision(model.Action(action), reason),
            policy.decide(plan_for(model.OnMiss(on_miss)), elapsed_ms,
                          paused, post_copy_started))

    @hypothesis.given(values.slas, st.floats(0, 1e9), st.booleans(),
                      st.booleans())
    def test_nothing_is_done_in_time_or_in_the_switchover(
            self, sla, elapsed_ms, paused, post_copy_started):
        decision = policy.decide(
            values.plan(sla=sla, total_limit_ms=sla.max_total_ms),
            elapsed_ms, paused, post_copy_started)
        if elapsed_ms <= sla.max_total_ms or paused or post_copy_started:
            self.assertIs(CONTINUE, decision.action)
        self.assertNotEqual('', decision.reason)

    @hypothesis.given(st.floats(2001, 1e9))
    def test_a_guest_is_aborted_only_if_its_flavor_says_so(self, elapsed_ms):
        for on_miss in model.OnMiss:
            decision = policy.decide(plan_for(on_miss), elapsed_ms,
                                     paused=False, post_copy_started=False)
            self.assertEqual(on_miss is model.OnMiss.ABORT,
                             decision.action is model.Action.ABORT)
