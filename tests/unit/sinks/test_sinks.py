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

import threading
from unittest import mock

import ddt
from nova import objects
from oslo_config import cfg
from oslotest import base

from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig import sinks
from nova_fastmig.sinks import instance_action
from nova_fastmig.sinks import log
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'
CONTEXT = mock.sentinel.context


def report(**completed) -> model.SlaReport:
    return fastmig_report.make(UUID, 'compute1', 'compute2', values.sla(), (),
                               values.completed(**completed))


class TestSinks(base.BaseTestCase):

    def test_the_default_ones_load_in_their_order(self):
        made = sinks.Sinks(['instance_action', 'log'])
        self.assertEqual(
            [instance_action.InstanceActionSink, log.LogSink],
            [type(each.sink) for each in made._workers])

    def test_a_name_that_nobody_has(self):
        with mock.patch.object(sinks.LOG, 'error') as error:
            made = sinks.Sinks(['log', 'carrier_pigeon'])
        self.assertEqual(['log'], [each.name for each in made._workers])
        self.assertIn('carrier_pigeon', error.call_args.args)

    def test_a_sink_that_cannot_be_loaded(self):
        with mock.patch.object(log.LogSink, '__init__',
                               side_effect=ValueError('no log')), \
                mock.patch.object(sinks.LOG, 'error') as error:
            made = sinks.Sinks(['log'])
        self.assertEqual([], made._workers)
        self.assertIn('log', error.call_args.args)

    def test_one_that_fails_does_not_stop_itself_or_others(self):
        made = sinks.Sinks(['log', 'instance_action'])
        first, second = (each.sink for each in made._workers)
        the_report = report()
        with mock.patch.object(first, 'emit', side_effect=OSError) as bad, \
                mock.patch.object(second, 'emit') as good, \
                mock.patch.object(sinks.LOG, 'exception') as logged:
            for _ in range(2):
                made.emit(CONTEXT, the_report)
            made.join()
        for emit in (bad, good):
            self.assertEqual([mock.call(CONTEXT, the_report)] * 2,
                             emit.mock_calls)
        self.assertEqual(2, logged.call_count)
        self.assertIn('log', logged.call_args.args)

    def test_one_that_hangs_delays_nobody(self):
        made = sinks.Sinks(['log', 'instance_action'])
        first, second = (each.sink for each in made._workers)
        answer, asked = threading.Event(), threading.Event()

        def hang(context, report):
            asked.set()
            answer.wait()

        with mock.patch.object(first, 'emit', side_effect=hang) as hanging, \
                mock.patch.object(second, 'emit') as good, \
                mock.patch.object(sinks.LOG, 'error') as logged:
            made.emit(CONTEXT, report())
            asked.wait()
            for _ in range(sinks.MAX_WAITING + 1):
                made.emit(CONTEXT, report())
                made._workers[1].join()
            self.assertEqual(sinks.MAX_WAITING + 2, good.call_count)
            self.assertEqual(1, hanging.call_count)
            self.assertEqual(1, logged.call_count)
            self.assertIn('log', logged.call_args.args)
            answer.set()
            made.join()
            self.assertEqual(sinks.MAX_WAITING + 1, hanging.call_count)

    def test_no_thread_before_the_first_report(self):
        before = threading.active_count()
        sinks.Sinks(['log'])
        self.assertEqual(before, threading.active_count())


@ddt.ddt
class TestLogSink(base.BaseTestCase):

    @ddt.data((7, 'INFO'), (11, 'WARNING'), (None, 'WARNING'))
    @ddt.unpack
    def test_a_met_one_is_no_warning(self, downtime_ms, level):
        the_report = report(downtime_ms=downtime_ms)
        with self.assertLogs('nova_fastmig.sinks.log') as logs:
            log.LogSink().emit(CONTEXT, the_report)
        record, = logs.records
        self.assertEqual(level, record.levelname)
        self.assertIn(
            f'compute1 -> compute2: {fastmig_report.to_line(the_report)}',
            record.getMessage())


class TestInstanceActionSink(base.BaseTestCase):

    def test_one_event_that_did_not_fail(self):
        line = fastmig_report.to_line(report())
        with mock.patch.object(objects, 'InstanceActionEvent',
                               create=True) as event:
            instance_action.InstanceActionSink().emit(CONTEXT, report())
        self.assertEqual(
            [mock.call.event_start(CONTEXT, UUID, line, want_result=False,
                                   host=cfg.CONF.host),
             mock.call.event_finish(CONTEXT, UUID, line, want_result=False)],
            event.mock_calls)
