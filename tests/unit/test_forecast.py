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

from nova_fastmig import forecast
from nova_fastmig import model
from tests.unit import values

MIB = 1 << 20


def conditions(**changes) -> forecast.Conditions:
    return forecast.Conditions(**{
        'memory_bytes': 512 * MIB, 'dirty_rate_bytes_per_s': 100 * MIB,
        'bandwidth_bytes_per_s': 900 * MIB, 'fixed_ms': 6.0, **changes})


@ddt.ddt
class TestMake(base.BaseTestCase):

    # conditions -> verdicts of downtime, total, both; milliseconds; reasons
    @ddt.data(
        ({}, ('met', 'met', 'met'), (10, 646), ()),
        ({'bandwidth_bytes_per_s': 300 * MIB}, ('met', 'missed', 'missed'),
         (10, 2564), ('takes too long: 512 MiB at 300.0 MiB/s, dirtied at '
                      '100.0 MiB/s',)),
        ({'dirty_rate_bytes_per_s': 900 * MIB}, ('met', 'missed', 'missed'),
         (10, None), ('will not converge: 512 MiB at 900.0 MiB/s, dirtied at '
                      '900.0 MiB/s',)),
        ({'fixed_ms': 9.5}, ('missed', 'met', 'missed'), (11, 650),
         ('9.5 ms of the blackout do not depend on memory, 10 ms are '
          'allowed',)),
        ({'fixed_ms': None}, ('unknown', 'met', 'unknown'), (None, 639),
         ('nothing is known yet of the part of the blackout that does not '
          'depend on memory',)),
        ({'bandwidth_bytes_per_s': None}, ('met', 'unknown', 'unknown'),
         (10, None), ('the bandwidth is not known yet',)),
        ({'fixed_ms': 90, 'bandwidth_bytes_per_s': None},
         ('missed', 'unknown', 'missed'), (91, None),
         ('90.0 ms of the blackout do not depend on memory, 10 ms are '
          'allowed', 'the bandwidth is not known yet')),
        ({'memory_bytes': MIB, 'dirty_rate_bytes_per_s': 9000 * MIB},
         ('met', 'met', 'met'), (10, 10), ()))
    @ddt.unpack
    def test_table(self, changes, verdicts, milliseconds, reasons):
        made = forecast.make(values.sla(), conditions(**changes))
        self.assertEqual(verdicts, (made.downtime.verdict,
                                    made.total.verdict, made.verdict))
        self.assertEqual(milliseconds, (made.downtime.measured_ms,
                                        made.total.measured_ms))
        self.assertEqual(reasons, made.reasons)
        self.assertEqual((10, 2000), (made.downtime.limit_ms,
                                      made.total.limit_ms))

    rates = st.floats(1, 1e12)

    @hypothesis.given(
        values.slas, st.integers(1, 1 << 45), st.floats(0, 1e12),
        st.none() | rates, st.none() | st.floats(0, 1e6))
    def test_a_reason_for_all_but_met(self, sla, memory, dirty, bandwidth,
                                      fixed_ms):
        made = forecast.make(sla, forecast.Conditions(
            memory, dirty, bandwidth, fixed_ms))
        self.assertEqual(made.verdict is model.Verdict.MET, not made.reasons)
        for judgement in (made.downtime, made.total):
            self.assertEqual(
                judgement.verdict is model.Verdict.MET,
                judgement.measured_ms is not None and
                judgement.measured_ms <= judgement.limit_ms)

    @hypothesis.given(st.integers(1, 1 << 40), rates, st.floats(0.01, 0.99),
                      st.floats(1.01, 10))
    def test_worse_conditions_never_help(self, memory, bandwidth, ratio,
                                         factor):
        def total(memory=memory, bandwidth=bandwidth,
                  dirty=bandwidth * ratio):
            expected = forecast.make(values.sla(), forecast.Conditions(
                memory, dirty, bandwidth, 5.0)).total.measured_ms
            return float('inf') if expected is None else expected

        self.assertLessEqual(total(), total(memory=int(memory * factor) + 1))
        self.assertLessEqual(total(), total(bandwidth=bandwidth / factor))
        self.assertLessEqual(total(),
                             total(dirty=bandwidth * ratio * factor))

    @hypothesis.given(st.integers(20, 1 << 14), st.integers(1, 4096),
                      st.floats(0.01, 0.95))
    def test_it_agrees_with_one_pass_after_the_other(self, memory_mib,
                                                     bandwidth_mib, ratio):
        """The formula against the sum that it comes from."""
        remaining = memory_mib * MIB
        bandwidth = bandwidth_mib * MIB
        fits = bandwidth * 4 / 1000
        elapsed_ms = last_pass_ms = 0.0
        while remaining > fits:
            last_pass_ms = remaining / bandwidth * 1000
            elapsed_ms += last_pass_ms
            remaining *= ratio
        made = forecast.make(values.sla(), conditions(
            memory_bytes=memory_mib * MIB, bandwidth_bytes_per_s=bandwidth,
            dirty_rate_bytes_per_s=bandwidth * ratio))
        # Passes are whole; the formula stops in the middle of the last one.
        self.assertLessEqual(made.total.measured_ms, elapsed_ms + 11.001)
        self.assertGreaterEqual(made.total.measured_ms,
                                elapsed_ms - last_pass_ms + 9)
