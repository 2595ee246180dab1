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

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import model
from nova_fastmig import report
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'

figures = st.none() | st.integers(0, 10**9)
completions = st.builds(
    model.Completed, outcome=st.sampled_from(model.Outcome),
    reason=st.text(max_size=300), downtime_ms=figures, total_ms=figures)


def make(sla=None, **completed) -> model.SlaReport:
    return report.make(UUID, 'compute1', 'compute2', sla or values.sla(), (),
                       values.completed(**completed))


@ddt.ddt
class TestJudge(base.BaseTestCase):

    @ddt.data((10, 9, 'met'), (10, 10, 'met'), (10, 11, 'missed'),
              (10, 0, 'met'))
    @ddt.unpack
    def test_measured(self, limit_ms, measured_ms, verdict):
        self.assertEqual(
            model.Judgement(limit_ms, measured_ms, report.LIBVIRT,
                            model.Verdict(verdict)),
            report.judge(limit_ms, measured_ms))

    def test_not_measured(self):
        self.assertEqual(
            model.Judgement(10, None, 'not measured', model.Verdict.UNKNOWN),
            report.judge(10, None))


@ddt.ddt
class TestPatchedQemu(base.BaseTestCase):
    """What QEMU itself has measured, and which features were in force."""

    EVERYTHING = frozenset(model.QemuFeature)

    def make(self, used=EVERYTHING, unused=(), resumed_ms=None,
             **completed) -> model.SlaReport:
        if resumed_ms is not None:
            completed['blackout'] = values.blackout(resumed_ms=resumed_ms)
        return report.make(
            UUID, 'compute1', 'compute2', values.sla(), (),
            values.completed(**completed),
            model.FeaturePlan(used, used, unused))

    @ddt.data((9.99, 10, 'met'), (10.0, 10, 'met'), (10.01, 11, 'missed'))
    @ddt.unpack
    def test_qemus_blackout_is_judged(self, resumed_ms, judged_ms, verdict):
        made = self.make(resumed_ms=resumed_ms, downtime_ms=19)
        self.assertEqual((judged_ms, 'QEMU', verdict),
                         (made.downtime.measured_ms,
                          made.downtime.measured_by, made.downtime.verdict))
        self.assertEqual(19, made.downtime_libvirt_ms)
        self.assertEqual(resumed_ms, made.blackout.resumed_ms)

    def test_a_blackout_whose_end_qemu_does_not_know(self):
        made = self.make(blackout=values.blackout(resumed_ms=None),
                         resumed_by_qemu=False, downtime_ms=11)
        self.assertEqual((11, report.LIBVIRT, 'missed'), (
            made.downtime.measured_ms, made.downtime.measured_by,
            made.downtime.verdict))

    def test_what_is_beside_the_verdict(self):
        beside = {'parts': model.BlackoutParts(transfer_ms=3.0),
                  'source_pause_ms': 0.0,
                  'nova': model.NovaTimes(5000, 10, 700)}
        made = report.make(UUID, 'compute1', 'compute2', values.sla(), (),
                           values.completed(), **beside)
        self.assertEqual(beside, {
            name: getattr(made, name) for name in beside})

    @ddt.data((10, 'met'), (11, 'unknown'))
    @ddt.unpack
    def test_libvirt_counts_on_after_an_early_resume(self, ms, verdict):
        made = self.make(downtime_ms=ms)
        self.assertEqual(('libvirt job statistics, at most', verdict),
                         (made.downtime.measured_by, made.downtime.verdict))

    def test_without_early_resume_libvirts_figure_is_good(self):
        for changes in ({'used': frozenset({
                            model.QemuFeature.TCP_NODELAY})},
                        {'agreed_features': frozenset()},
                        {'resumed_by_qemu': False}):
            made = self.make(downtime_ms=11, **changes)
            self.assertEqual(
                ('libvirt job statistics', 'missed'),
                (made.downtime.measured_by, made.downtime.verdict))

    def test_features_in_force(self):
        self.assertEqual(tuple(sorted(model.QemuFeature)),
                         self.make().qemu_features)
        made = self.make(
            used=self.EVERYTHING - {model.QemuFeature.TCP_NODELAY},
            unused=((model.QemuFeature.TCP_NODELAY, 'because'),),
            agreed_features=frozenset({model.QemuFeature.EARLY_RESUME}))
        self.assertEqual(
            {'x-tcp-nodelay': 'because',
             'x-skip-unpopulated': 'the two QEMUs did not agree on it',
             'x-early-announce': 'the two QEMUs did not agree on it',
             'x-report-blackout': 'the two QEMUs did not agree on it'},
            dict(made.unused_features))
        self.assertEqual(
            self.EVERYTHING - set(dict(made.unused_features)),
            set(made.qemu_features))

    def test_line(self):
        line = report.to_line(self.make(resumed_ms=3.2))
        self.assertEqual(
            'fastmig SLA met: completed, downtime 4/10 ms, total 800/2000 ms '
            '(QEMU, libvirt job statistics), 10/10 QEMU features', line)
        self.assertEqual((4, 10), tuple(
            report.parse_line(line)[each]
            for each in ('downtime_ms', 'features')))

    def test_line_with_a_reason(self):
        read = report.parse_line(report.to_line(self.make(
            outcome=model.Outcome.FAILED, reason='why, 3/9 QEMU features')))
        self.assertEqual((10, 'why, 3/9 QEMU features'),
                         (read['features'], read['reason']))


@ddt.ddt
class TestMake(base.BaseTestCase):

    @ddt.data((10, 2000, 'met'), (11, 2000, 'missed'), (10, 2001, 'missed'),
              (None, 2000, 'unknown'), (10, None, 'unknown'),
              (None, 2001, 'missed'), (None, None, 'unknown'))
    @ddt.unpack
    def test_verdict(self, downtime_ms, total_ms, verdict):
        self.assertEqual(
            verdict, make(downtime_ms=downtime_ms, total_ms=total_ms).verdict)

    @ddt.data(*sorted(set(model.Outcome) - {model.Outcome.COMPLETED}))
    def test_a_guest_that_did_not_move_is_not_judged(self, outcome):
        made = make(outcome=outcome, reason='because')
        self.assertIs(model.Verdict.UNKNOWN, made.verdict)
        self.assertIs(outcome, made.outcome)
        self.assertEqual('because', made.reason)

    def test_each_limit_is_judged_by_itself(self):
        made = make(downtime_ms=11, total_ms=1999)
        self.assertEqual(
            ('missed', 'met'), (made.downtime.verdict, made.total.verdict))

    def test_the_rest_is_kept(self):
        decision = model.Decision(model.Action.POST_COPY, 'late')
        made = report.make(UUID, 'compute1', 'compute2', values.sla(),
                           (decision,), values.completed())
        self.assertEqual(
            (UUID, 'compute1', 'compute2', (decision,)),
            (made.instance_uuid, made.source, made.destination,
             made.decisions))


class TestLine(base.BaseTestCase):

    def test_completed(self):
        self.assertEqual(
            'fastmig SLA met: completed, downtime 7/10 ms, total 800/2000 ms '
            '(libvirt job statistics)', report.to_line(make()))

    def test_not_measured(self):
        self.assertEqual(
            'fastmig SLA unknown: completed, downtime ?/10 ms, '
            'total 800/2000 ms (not measured, libvirt job statistics)',
            report.to_line(make(downtime_ms=None)))

    def test_reason_on_one_line(self):
        line = report.to_line(make(
            outcome=model.Outcome.ABORTED, reason='too\nlate,  really\t',
            downtime_ms=None, total_ms=None))
        self.assertEqual(
            'fastmig SLA unknown: aborted, downtime ?/10 ms, '
            'total ?/2000 ms (not measured): too late, really', line)
        self.assertEqual('too late, really', report.parse_line(line)['reason'])

    def test_fits_novas_column(self):
        line = report.to_line(make(
            outcome=model.Outcome.FAILED, reason='x' * 300))
        self.assertEqual(255, len(line))
        self.assertTrue(line.endswith('xxx...'))

    @hypothesis.given(values.slas, completions)
    def test_round_trip(self, sla, completed):
        made = report.make(UUID, 'a', 'b', sla, (), completed)
        line = report.to_line(made)
        self.assertLessEqual(len(line), report.MAX_LINE_CHARS)
        self.assertEqual(1, len(line.splitlines()), line)
        read = report.parse_line(line)
        self.assertEqual(
            {'verdict': made.verdict, 'outcome': made.outcome,
             'downtime_ms': completed.downtime_ms,
             'max_downtime_ms': sla.max_downtime_ms,
             'total_ms': completed.total_ms,
             'max_total_ms': sla.max_total_ms, 'features': 0},
            {name: value for name, value in read.items()
             if name not in ('measured_by', 'reason')})
        reason = ' '.join(completed.reason.split())
        if len(line) < report.MAX_LINE_CHARS:
            self.assertEqual(reason or None, read['reason'])
        else:
            self.assertTrue(reason.startswith(
                read['reason'].removesuffix('...')))

    @hypothesis.given(st.text())
    def test_other_events_are_not_taken_for_a_report(self, text):
        self.assertIsNone(report.parse_line(text))
        self.assertIsNone(report.parse_line(
            text + report.to_line(make()) if text else ''))

    def test_novas_own_events(self):
        for name in ('compute_live_migration', 'conductor_live_migrate_'
                     'instance', ''):
            self.assertIsNone(report.parse_line(name))

    def test_what_the_operator_has_conceded(self):
        made = report.make(UUID, 'a', 'b', values.sla(), (),
                           values.completed(), concessions=('has a GPU',))
        self.assertEqual('has a GPU', made.reason)
        self.assertTrue(report.to_line(made).endswith(': has a GPU'))
        self.assertEqual('late; has a GPU', report.make(
            UUID, 'a', 'b', values.sla(), (), values.completed(
                outcome=model.Outcome.ABORTED, reason='late'),
            concessions=('has a GPU',)).reason)

    def test_what_qemu_got_and_why(self):
        expected = model.Estimate(6.5, 1e9, 12, 6.0)
        made = report.make(UUID, 'a', 'b', values.sla(), (),
                           values.completed(), downtime_limit_ms=3,
                           expected=expected)
        self.assertEqual((3, expected),
                         (made.downtime_limit_ms, made.expected))

    def test_frozen(self):
        self.assertRaises(dataclasses.FrozenInstanceError, setattr, make(),
                          'verdict', model.Verdict.MET)
