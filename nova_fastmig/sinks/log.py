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

"""Writes reports to nova-compute's log."""

from oslo_log import log as logging

from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig import sinks

LOG = logging.getLogger(__name__)


class LogSink(sinks.Sink):
    def emit(self, context, report: model.SlaReport) -> None:
        level = (logging.INFO if report.verdict is model.Verdict.MET
                 else logging.WARNING)
        LOG.log(level, '%s -> %s: %s', report.source, report.destination,
                fastmig_report.to_line(report),
                instance_uuid=report.instance_uuid)
