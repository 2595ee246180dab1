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


import pathlib

import fixtures
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import metrics
from nova_fastmig import report
from nova_fastmig import sinks
from nova_fastmig.sinks import prometheus
from tests.unit import values


class TestPrometheusSink(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'x.prom')
        metrics.register_opts(cfg.CONF)
        self.conf = self.useFixture(config_fixture.Config(cfg.CONF))
        self.conf.config(group='fastmig', prometheus_textfile=str(self.path))

    def test_to_the_textfile(self):
        made = sinks.Sinks(['prometheus'])
        made.emit(None, report.make('uuid', 'a', 'b', values.sla(), (),
                                    values.completed()))
        made.join()
        self.assertIn('fastmig_blackout_seconds_count{',
                      self.path.read_text())

    def test_a_port_only_if_configured(self):
        served = []
        self.useFixture(fixtures.MockPatchObject(
            metrics.Metrics, 'serve', lambda self, *args: served.append(args)))
        prometheus.PrometheusSink()
        self.assertEqual([], served)
        self.conf.config(group='fastmig', prometheus_port=9101,
                         prometheus_address='192.0.2.1')
        prometheus.PrometheusSink()
        self.assertEqual([('192.0.2.1', 9101)], served)
