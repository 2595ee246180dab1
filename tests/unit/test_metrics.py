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


import os
import pathlib
from unittest import mock
import urllib.request

import ddt
import fixtures
import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
from oslotest import base
import prometheus_client
from prometheus_client import parser

from nova_fastmig import metrics
from nova_fastmig import model
from nova_fastmig import report
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'


def a_report(**completed) -> model.SlaReport:
    return report.make(UUID, 'compute1', 'compute2', values.sla(), (),
                       values.completed(**completed))


def samples(text: str) -> dict[str, float]:
    """{'fastmig_x_total{flavor="a"}': 1.0}"""
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ','.join(f'{name}="{value}"' for name, value
                              in sorted(sample.labels.items()))
            found[f'{sample.name}{{{labels}}}'] = sample.value
    return found


@ddt.ddt
class TestMisses(base.BaseTestCase):

    @ddt.data(
        ({}, []),
        ({'downtime_ms': 11}, ['downtime']),
        ({'total_ms': 2001}, ['total']),
        ({'downtime_ms': 11, 'total_ms': 2001}, ['downtime', 'total']),
        ({'downtime_ms': None}, []),
        ({'outcome': model.Outcome.ABORTED, 'downtime_ms': None}, ['aborted']),
        ({'outcome': model.Outcome.FAILED}, ['failed']),
        ({'outcome': model.Outcome.REFUSED}, ['refused']))
    @ddt.unpack
    def test_reasons(self, completed, reasons):
        self.assertEqual(reasons, metrics.misses(a_report(**completed)))


class MetricsTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'new', 'x.prom')

    def metrics(self) -> metrics.Metrics:
        return metrics.Metrics(str(self.path))

    def written(self) -> dict[str, float]:
        return samples(self.path.read_text())


class TestAdd(MetricsTestCase):

    def test_a_completed_one(self):
        self.metrics().add(a_report(downtime_ms=12, total_ms=800), 'nfv')
        written = self.written()
        for name, value in (
                ('fastmig_blackout_seconds_bucket'
                 '{flavor="nfv",le="0.01"}', 0),
                ('fastmig_blackout_seconds_bucket'
                 '{flavor="nfv",le="0.015"}', 1),
                ('fastmig_blackout_seconds_bucket'
                 '{flavor="nfv",le="+Inf"}', 1),
                ('fastmig_blackout_seconds_count{flavor="nfv"}', 1),
                ('fastmig_blackout_seconds_sum{flavor="nfv"}', .012),
                ('fastmig_total_seconds_bucket{flavor="nfv",le="0.5"}', 0),
                ('fastmig_total_seconds_bucket{flavor="nfv",le="1.0"}', 1),
                ('fastmig_total_seconds_sum{flavor="nfv"}', .8),
                ('fastmig_migrations_total{flavor="nfv",'
                 'outcome="completed",verdict="missed"}', 1),
                ('fastmig_missed_slas_total{flavor="nfv",'
                 'reason="downtime"}', 1)):
            self.assertAlmostEqual(value, written[name], msg=name)
        self.assertEqual([], [name for name in written if 'created' in name])

    def test_one_that_did_not_move(self):
        """It has no blackout, whatever figures it may carry."""
        self.metrics().add(a_report(outcome=model.Outcome.ABORTED), 'nfv')
        self.assertEqual(
            {'fastmig_migrations_total{flavor="nfv",outcome="aborted",'
             'verdict="unknown"}': 1,
             'fastmig_missed_slas_total{flavor="nfv",reason="aborted"}': 1},
            self.written())

    def test_figures_that_are_missing(self):
        self.metrics().add(a_report(downtime_ms=None, total_ms=None), 'nfv')
        self.assertEqual(
            {'fastmig_migrations_total{flavor="nfv",outcome="completed",'
             'verdict="unknown"}': 1}, self.written())

    def test_hostile_names_stay_labels(self):
        flavor = 'a"} 9\nfastmig_x{b="\\'
        self.metrics().add(a_report(outcome=model.Outcome.ABORTED), flavor)
        self.assertEqual(2, len(self.written()))
        self.assertEqual(
            {flavor}, {sample.labels['flavor']
                       for family in parser.text_string_to_metric_families(
                           self.path.read_text())
                       for sample in family.samples})

    def test_a_directory_that_cannot_be_written(self):
        self.path.parent.write_text('a file')
        made = self.metrics()
        self.assertRaises(OSError, made.add, a_report(), 'nfv')
        self.path.parent.unlink()
        made.add(a_report(), 'nfv')
        self.assertEqual(
            2, self.written()['fastmig_blackout_seconds_count{flavor="nfv"}'])

    def test_others_may_read_it(self):
        """The node exporter runs as another user."""
        old = os.umask(0o022)
        self.addCleanup(os.umask, old)
        self.metrics().add(a_report(), 'nfv')
        self.assertEqual(0o644, self.path.stat().st_mode & 0o777)


class TestRestart(MetricsTestCase):

    reports = st.lists(st.tuples(
        st.sampled_from(['a', 'b']),
        st.builds(a_report, outcome=st.sampled_from(model.Outcome),
                  downtime_ms=st.none() | st.integers(0, 10000),
                  total_ms=st.none() | st.integers(0, 10 ** 6))), max_size=8)

    @hypothesis.given(reports, reports)
    def test_it_makes_no_difference(self, before, after):
        self.path.unlink(missing_ok=True)
        made = self.metrics()
        made.write()
        for flavor, each in before:
            made.add(each, flavor)
        made = self.metrics()
        for flavor, each in after:
            made.add(each, flavor)
        with_restart = self.written()
        self.path.unlink(missing_ok=True)
        made = self.metrics()
        made.write()
        for flavor, each in before + after:
            made.add(each, flavor)
        without = self.written()
        self.assertEqual(without.keys(), with_restart.keys())
        for name, value in without.items():
            self.assertAlmostEqual(value, with_restart[name], msg=name)

    def assert_counts_from_0(self, text: str | bytes, message: str):
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(
            text if isinstance(text, bytes) else text.encode())
        with mock.patch.object(metrics.LOG, 'warning') as warning:
            made = self.metrics()
        self.assertIn(message,
                      warning.call_args.args[0] % warning.call_args.args[1:])
        made.add(a_report(), 'nfv')
        self.assertEqual(
            1, self.written()['fastmig_blackout_seconds_count{flavor="nfv"}'])

    def test_what_cannot_be_read(self):
        for text in ('fastmig_total_seconds_sum{flavor="nfv} 1 1 1\n',
                     'fastmig_blackout_seconds_count{flavor="nfv"} many\n',
                     b'\xff\xfe'):
            self.assert_counts_from_0(text, 'Cannot go on from the metrics')

    def test_what_is_no_count(self):
        for value in ('NaN', '-1', '+Inf'):
            self.assert_counts_from_0(
                f'fastmig_blackout_seconds_count{{flavor="nfv"}} {value}\n',
                'no count')

    def test_buckets_of_another_version(self):
        self.assert_counts_from_0(
            '# TYPE fastmig_blackout_seconds histogram\n'
            'fastmig_blackout_seconds_bucket{flavor="nfv",le="7.0"} 1\n'
            'fastmig_blackout_seconds_bucket{flavor="nfv",le="+Inf"} 1\n'
            'fastmig_blackout_seconds_count{flavor="nfv"} 1\n',
            'other buckets')

    def test_metrics_of_somebody_else_are_not_taken_over(self):
        self.path.parent.mkdir()
        self.path.write_text('other_total{flavor="nfv"} 4\n')
        self.metrics().add(a_report(), 'nfv')
        self.assertNotIn('other_total{flavor="nfv"}', self.written())


class TestServe(MetricsTestCase):

    def test_the_port_answers_with_what_the_file_has(self):
        made = self.metrics()
        made.add(a_report(), 'nfv')
        server, thread = made.serve('127.0.0.1', 0)
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        with urllib.request.urlopen(
                f'http://127.0.0.1:{server.server_port}/metrics') as answer:
            self.assertEqual(self.written(), samples(answer.read().decode()))

    def test_a_port_that_is_taken(self):
        server, thread = prometheus_client.start_http_server(0, '127.0.0.1')
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.assertRaises(OSError, self.metrics().serve, '127.0.0.1',
                          server.server_port)


class TestOptions(base.BaseTestCase):

    def test_they_register_next_to_the_others(self):
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.StrOpt('state_path', default='/there')])
        metrics.register_opts(conf)
        conf([], default_config_files=[], default_config_dirs=[])
        self.assertEqual('/there/fastmig/fastmig.prom',
                         conf.fastmig.prometheus_textfile)
        self.assertEqual(0, conf.fastmig.prometheus_port)
