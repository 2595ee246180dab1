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

"""Adds reports to the action events of the server.

``openstack server event show SERVER REQUEST_ID`` displays them. The verdict
is the name of the event: it is the only free text that Nova stores for an
event that did not fail.
"""

import nova.conf
from nova import objects

from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig import sinks

CONF = nova.conf.CONF


class InstanceActionSink(sinks.Sink):
    def emit(self, context, report: model.SlaReport) -> None:
        line = fastmig_report.to_line(report)
        objects.InstanceActionEvent.event_start(
            context, report.instance_uuid, line, want_result=False,
            host=CONF.host)
        objects.InstanceActionEvent.event_finish(
            context, report.instance_uuid, line, want_result=False)
