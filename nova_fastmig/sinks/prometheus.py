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

"""Counts reports for Prometheus, see ``nova_fastmig.metrics``."""

from oslo_config import cfg

from nova_fastmig import metrics
from nova_fastmig import model
from nova_fastmig import sinks

CONF = cfg.CONF


class PrometheusSink(sinks.Sink):
    def __init__(self):
        metrics.register_opts(CONF)
        options = CONF.fastmig
        self._metrics = metrics.Metrics(options.prometheus_textfile)
        if options.prometheus_port:
            self._metrics.serve(options.prometheus_address,
                                options.prometheus_port)

    def emit(self, context, report: model.SlaReport) -> None:
        self._metrics.add(report, report.flavor)
