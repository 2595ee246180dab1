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

"""Whatever libvirt, a flavor or an image says: no wrong verdict.

The tests go through ``session``, where everything meets.
"""

import dataclasses
import math
import types
from unittest import mock

import hypothesis
from hypothesis import strategies as st
import libvirt
from nova.api.validation.extra_specs import validators
from nova import exception as nova_exception
from oslo_config import cfg
from oslotest import base

from nova_fastmig import blackout
from nova_fastmig import conf
from nova_fastmig import exception
from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig import request
from nova_fastmig import session
from nova_fastmig import watch
from tests.unit import test_session
from tests.unit import values

UUID = test_session.UUID
OTHER_UUID = '00000000-1a2b-4c3d-8e9f-0a1b2c3d4e5f'

# libvirt's Python binding makes integers, floats, booleans and texts of typed
# parameters; numbers have at most 64 bits.
numbers = st.integers(-(1 << 63), (1 << 64) - 1)
statistics = st.dictionaries(
    st.sampled_from([
        'type', 'time_elapsed', 'time_remaining', 'downtime', 'setup_time',
        'data_total', 'data_processed', 'data_remaining', 'memory_total',
        'memory_processed', 'memory_remaining', 'memory_bps',
        'memory_iteration', 'memory_dirty_rate', 'memory_page_size']),
    numbers)

# More like the ones that a verdict comes from.
finished = st.fixed_dictionaries({
    'downtime': st.integers(0, 20) | numbers,
    'time_elapsed': st.integers(0, 20) | st.integers(0, 10 ** 6) | numbers})

# (what happens, its detail), in any order, any number of times.
happenings = st.lists(st.one_of(
    st.tuples(st.just('iteration'), numbers),
    st.tuples(st.just('completed'), finished | statistics),
    st.tuples(st.just('qemu'), st.tuples(
        st.sampled_from(['MIGRATION', 'STOP', 'RESUME', 'NEW']),
        st.sampled_from([
            '{"status": "completed"}', '{"status": "device"}',
            '{"status": "pre-switchover"}', '{"status": "failed"}',
            '{"status": null}', '{"status": {}}', '{}', '', None, '{', '[]',
            '7', '"completed"']),
        # Out of order, absurd.
        st.integers(0, 3) | numbers, st.integers(0, 999999) | numbers)),
    st.tuples(st.just('other domain'), statistics)), max_size=8)

error_codes = st.sampled_from([
    libvirt.VIR_ERR_OPERATION_ABORTED, libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_RPC, -1, 1 << 20])


@st.composite
def libvirt_errors(draw) -> libvirt.libvirtError:
    message = draw(st.text(max_size=400))
    made = libvirt.libvirtError(message)
    made.err = draw(st.none() | st.tuples(
        error_codes, st.none() | numbers, st.just(message)))
    return made


JOB_TYPES = (libvirt.VIR_DOMAIN_JOB_NONE, libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
             libvirt.VIR_DOMAIN_JOB_COMPLETED, libvirt.VIR_DOMAIN_JOB_FAILED,
             libvirt.VIR_DOMAIN_JOB_CANCELLED)


class TestMigration(test_session.SessionTestCase):

    def setUp(self):
        super().setUp()
        for target, names in (
                (session.nova_migration, (
                    'run_tasks', 'run_recover_tasks', 'find_job_type',
                    'trigger_postcopy_switch', 'save_stats')),
                (session.fast_guest.FastGuest, ('query_migrate',)),
                (session, ('_COMPLETED_STATS_TIMEOUT_S',
                           '_RESUME_TIMEOUT_S'))):
            for name in names:
                patch = mock.patch.object(target, name)
                setattr(self, name, patch.start())
                self.addCleanup(patch.stop)
        # What follows a migration survives an error of its own. There must be
        # none.
        patch = mock.patch.object(
            session.LOG, 'exception',
            side_effect=lambda message, **kwargs: self.fail(message))
        patch.start()
        self.addCleanup(patch.stop)
        session._COMPLETED_STATS_TIMEOUT_S = 0
        session._RESUME_TIMEOUT_S = 0
        self.query_migrate.return_value = {}

    def run_one(self, during, jobs, paused, ended, job_type, final):
        """Run a migration through all this.

        :param during: what happens, one thing before each look
        :param jobs: what libvirt says of the job at each look
        :param paused: whether it says that the domain is paused then
        :param ended: what libvirt's call raises; None if nothing
        :param job_type: of the job that Nova finds when the call has failed
        :param final: what happens after the call has returned
        :returns: the report, which of Nova's methods were called, and the
            domain
        """
        called = []
        # create_autospec takes a tenth of a second, for each example.
        domain = mock.Mock(spec=libvirt.virDomain)
        domain.migrateGetMaxDowntime.return_value = 300
        the_sla = values.sla(max_total_ms=600000)
        made = session.Session(
            self.host, test_session.instance(), 'compute2', the_sla,
            values.plan(sla=the_sla, total_limit_ms=600000),
            mock.Mock(**{'wait.return_value': None}))
        events = watch.Events(None, UUID, made._mailbox)
        during, jobs, paused = list(during), list(jobs), list(paused)

        def answer():
            stats = jobs.pop(0) if jobs else {}
            if isinstance(stats, Exception):
                raise stats
            return stats

        def state():
            # Asked once before the first look.
            if len(paused) > 1 and paused.pop():
                return [libvirt.VIR_DOMAIN_PAUSED,
                        libvirt.VIR_DOMAIN_PAUSED_MIGRATION]
            return [libvirt.VIR_DOMAIN_RUNNING, 0]

        mine, other = (mock.Mock(**{'UUIDString.return_value': uuid})
                       for uuid in (UUID, OTHER_UUID))
        happen = {
            'iteration': lambda number: events._on_iteration(
                None, mine, number, None),
            'completed': lambda stats: events._on_job_completed(
                None, mine, stats, None),
            'other domain': lambda stats: events._on_job_completed(
                None, other, stats, None),
            'qemu': lambda said: events._on_qemu(
                None, mine, said[0], said[2], said[3], said[1], None)}

        def look(*args):
            if during:
                what, detail = during.pop(0)
                happen[what](detail)
                made.wake()
                return
            made.operate(domain, mock.Mock(side_effect=ended))
            for what, detail in final:
                happen[what](detail)

        domain.jobStats.side_effect = answer
        domain.state.side_effect = state
        self.find_job_type.return_value = job_type
        self.run_tasks.side_effect = look
        made.wake()
        made.follow(domain, {}, types.SimpleNamespace(status='running'), True,
                    0, lambda: called.append('post'), called.append)
        return made.report(), called, domain

    @hypothesis.given(
        during=happenings, jobs=st.lists(statistics | libvirt_errors()),
        paused=st.lists(st.booleans()), final=happenings,
        ended=st.none() | libvirt_errors() | st.builds(ValueError, st.text()),
        job_type=st.sampled_from(JOB_TYPES))
    def test_any(self, during, jobs, paused, ended, job_type, final):
        made, called, domain = self.run_one(during, jobs, paused, ended,
                                            job_type, final)
        # Ten minutes are not over, whatever the statistics say.
        domain.abortJob.assert_not_called()
        self.trigger_postcopy_switch.assert_not_called()

        if ended is None or job_type == libvirt.VIR_DOMAIN_JOB_COMPLETED:
            outcome, call = model.Outcome.COMPLETED, 'post'
        elif (isinstance(ended, libvirt.libvirtError) and
              ended.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED):
            outcome, call = model.Outcome.ABORTED, 'cancelled'
        else:
            outcome, call = model.Outcome.FAILED, 'failed'
        self.assertEqual((outcome, [call]), (made.outcome, called))

        self.assertEqual(
            self.verdict_of(during + final)
            if outcome is model.Outcome.COMPLETED else
            (None, None, model.Verdict.UNKNOWN),
            (made.downtime.measured_ms, made.total.measured_ms,
             made.verdict))

        self.check_parts(made)
        line = fastmig_report.to_line(made)
        self.assertLessEqual(len(line), fastmig_report.MAX_LINE_CHARS)
        shown = fastmig_report.parse_line(line)
        self.assertEqual((made.verdict, made.outcome),
                         (shown['verdict'], shown['outcome']))

    def check_parts(self, made: model.SlaReport) -> None:
        """No part of a blackout is negative, and none is made up."""
        moved = made.outcome is model.Outcome.COMPLETED
        self.assertIn(None, (made.parts, made.source_pause_ms))
        if made.parts is not None:
            self.assertTrue(moved)
            for value in dataclasses.asdict(made.parts).values():
                self.assertTrue(value is None or 0 <= value < math.inf)
        if made.source_pause_ms is not None:
            self.assertFalse(moved)
            self.assertTrue(0 <= made.source_pause_ms < math.inf)

    def verdict_of(self, events) -> tuple:
        """What libvirt's last word on the finished job amounts to."""
        stats = [detail for what, detail in events if what == 'completed']
        last = stats[-1] if stats else {}
        downtime, total = (
            figure if (figure := last.get(name, -1)) >= 0 else None
            for name in ('downtime', 'time_elapsed'))
        if None not in (downtime, total) and downtime > total:
            downtime = total = None
        if ((downtime is not None and downtime > 10) or
                (total is not None and total > 600000)):
            return downtime, total, model.Verdict.MISSED
        if None in (downtime, total):
            return downtime, total, model.Verdict.UNKNOWN
        return downtime, total, model.Verdict.MET


# Whatever JSON can hold, under QEMU's names.
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=5), inner, max_size=3), max_leaves=5)
times = st.dictionaries(st.sampled_from([
    'stop', 'stopped', 'pages-sent', 'devices-sent', 'pages-loaded',
    'devices-loaded', 'resume', 'clock-offset', 'clock-error']),
    st.integers(0, 20_000_000) | anything)
patched_qemu = st.fixed_dictionaries({}, optional={
    'status': anything,
    'x-blackout': times | anything,
    'x-features': st.lists(st.sampled_from(model.QemuFeature)) | anything})


class TestPatchedQemu(base.BaseTestCase):

    @hypothesis.given(patched_qemu, finished)
    def test_whatever_it_tells(self, qemu, stats):
        completed = watch.to_completed(stats, qemu)
        told = completed.blackout
        if told is not None:
            self.assertLessEqual(
                {'stop', 'stopped', 'pages-sent', 'devices-sent',
                 'clock-error'}, qemu['x-blackout'].keys())
            for name, value in dataclasses.asdict(told).items():
                if value is not None and name != 'clock_offset_ms':
                    self.assertGreaterEqual(value, 0, name)
        made = fastmig_report.make(
            UUID, 'compute1', 'compute2', values.sla(), (), completed,
            parts=blackout.split(completed))
        if made.downtime.measured_by == fastmig_report.QEMU:
            resumed_ns = (qemu['x-blackout']['resume'] -
                          qemu['x-blackout']['stop'])
            self.assertEqual(-(-resumed_ns // 1_000_000),
                             made.downtime.measured_ms)
        if made.verdict is model.Verdict.MET:
            self.assertLessEqual(made.downtime.measured_ms, 10)
            self.assertLessEqual(made.total.measured_ms, 2000)


# Texts that look like numbers, booleans, keys and code, and any others.
nasty = st.one_of(
    st.text(max_size=60),
    st.integers().map(str), st.floats().map(str),
    st.sampled_from([
        '', '0', '-1', '1e3', '0x10', '١٠', '10\x00', '10\n', ' 10', 'NaN',
        'true\x00', 'TRUE', "'; DROP TABLE flavors; --", '${jndi:x}', '%s%n',
        '$(reboot)', '{{7*7}}', '../../etc/passwd', '<x/>', '\ud800',
        'post_copy', 'abort,proceed', '9' * 400]))
extra_specs = st.dictionaries(
    st.sampled_from([*request.KEYS, 'fastmig:', 'fastmig:unknown',
                     'FASTMIG:enabled', 'fastmig:enabled ',
                     'trait:CUSTOM_FASTMIG']), nasty)


class TestExtraSpecs(test_session.SessionTestCase):

    @hypothesis.given(st.sampled_from(sorted(request.KEYS)), nasty)
    def test_the_api_and_the_compute_host_agree(self, key, value):
        """What the API lets through is never refused later, nor otherwise."""
        try:
            request.parse_value(key, value, conf.sla_settings(cfg.CONF))
        except exception.InvalidExtraSpec as error:
            expected = str(error)
        else:
            expected = None
        try:
            validators.validate(key, value)
        except nova_exception.ValidationError as error:
            self.assertIsNotNone(expected, error)
            self.assertIn(key, str(error))
        else:
            self.assertIsNone(expected)

    @hypothesis.given(extra_specs)
    def test_any_flavor_is_planned_checked_or_let_be(self, specs):
        guest = test_session.instance()
        guest.flavor.extra_specs = specs
        try:
            sla = session._sla(guest)
        except exception.InvalidExtraSpec as error:
            self.assertEqual(specs[error.key], error.value)
            self.assertRaises(nova_exception.MigrationPreCheckError,
                              session.check_host, self.host, guest)
            return
        self.assertEqual(sla is not None, specs.get(
            'fastmig:enabled', '').strip().lower() in {
                '1', 't', 'true', 'on', 'y', 'yes'})


class TestHostileOwner(test_session.SessionTestCase):
    """The owner of a server chooses all but its flavor's extra specs."""

    @hypothesis.given(st.booleans(), extra_specs)
    def test_nothing_but_the_flavor_counts(self, is_tagged, specs):
        plain = test_session.instance(
            **({'enabled': 'true', 'max_downtime_ms': '7'}
               if is_tagged else {}))
        hostile = types.SimpleNamespace(
            **vars(plain),
            metadata=specs, display_name=str(specs), user_data=str(specs),
            key_name='fastmig:enabled=true',
            system_metadata={
                **{f'image_{key}': value for key, value in specs.items()},
                **{f'image_{key.replace(":", "_")}': value
                   for key, value in specs.items()}},
            image_meta=types.SimpleNamespace(properties=specs))
        self.assertEqual(session._sla(plain), session._sla(hostile))
        self.assertEqual(is_tagged, session._sla(hostile) is not None)
