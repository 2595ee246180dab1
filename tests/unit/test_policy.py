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
