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

"""Sends reports as versioned notifications of Nova.

They go where Nova's own versioned notifications go: topic, transport and
driver are those of ``[notifications]`` and ``[oslo_messaging_notifications]``.
"""

import nova.conf
from nova.notifications.objects import base
from nova.objects import base as nova_base
from nova.objects import fields
from nova import rpc
from oslo_log import log as logging

from nova_fastmig import model
from nova_fastmig import sinks

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

EVENT_TYPE = 'instance.live_migration.sla'
# So that no consumer takes the payload for one of Nova's.
_NAMESPACE = 'nova_fastmig'


@nova_base.NovaObjectRegistry.register_if(False)
class JudgementPayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    VERSION = '1.0'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'limit_ms': fields.IntegerField(),
        'measured_ms': fields.IntegerField(nullable=True),
        'measured_by': fields.StringField(),
        'verdict': fields.StringField(),
    }

    def __init__(self, judgement: model.Judgement):
        super().__init__()
        self.limit_ms = judgement.limit_ms
        self.measured_ms = judgement.measured_ms
        self.measured_by = judgement.measured_by
        self.verdict = str(judgement.verdict)


@nova_base.NovaObjectRegistry.register_if(False)
class DecisionPayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    VERSION = '1.0'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'action': fields.StringField(),
        'reason': fields.StringField(),
    }

    def __init__(self, decision: model.Decision):
        super().__init__()
        self.action = str(decision.action)
        self.reason = decision.reason


@nova_base.NovaObjectRegistry.register_if(False)
class BlackoutPayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    VERSION = '1.0'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'stopped_ms': fields.FloatField(),
        'pages_sent_ms': fields.FloatField(),
        'devices_sent_ms': fields.FloatField(),
        'pages_loaded_ms': fields.FloatField(nullable=True),
        'devices_loaded_ms': fields.FloatField(nullable=True),
        'resumed_ms': fields.FloatField(),
        'clock_error_ms': fields.FloatField(),
    }

    def __init__(self, blackout: model.Blackout):
        super().__init__()
        for name in self.fields:
            setattr(self, name, getattr(blackout, name))


@nova_base.NovaObjectRegistry.register_if(False)
class EstimatePayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    VERSION = '1.0'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'fixed_ms': fields.FloatField(),
        'bandwidth_bytes_per_s': fields.FloatField(),
        'count': fields.IntegerField(),
    }

    def __init__(self, estimate: model.Estimate):
        super().__init__()
        for name in self.fields:
            setattr(self, name, getattr(estimate, name))


@nova_base.NovaObjectRegistry.register_if(False)
class NetworkPayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    VERSION = '1.0'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'blackout_ms': fields.FloatField(nullable=True),
        'reason': fields.StringField(),
        'activation_ms': fields.FloatField(nullable=True),
    }

    def __init__(self, network: model.Network):
        super().__init__()
        for name in self.fields:
            setattr(self, name, getattr(network, name))


@nova_base.NovaObjectRegistry.register_if(False)
class SlaReportPayload(base.NotificationPayloadBase):
    # Version 1.0: Initial version
    # Version 1.1: downtime_limit_ms, expected
    # Version 1.2: network
    VERSION = '1.2'
    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    fields = {
        'instance_uuid': fields.UUIDField(),
        'source': fields.StringField(),
        'destination': fields.StringField(),
        'outcome': fields.StringField(),
        'reason': fields.StringField(),
        'verdict': fields.StringField(),
        'downtime': fields.ObjectField('JudgementPayload'),
        'total': fields.ObjectField('JudgementPayload'),
        'decisions': fields.ListOfObjectsField('DecisionPayload'),
        'downtime_libvirt_ms': fields.IntegerField(nullable=True),
        'blackout': fields.ObjectField('BlackoutPayload', nullable=True),
        'qemu_features': fields.ListOfStringsField(),
        'unused_features': fields.DictOfStringsField(),
        'downtime_limit_ms': fields.IntegerField(nullable=True),
        'expected': fields.ObjectField('EstimatePayload', nullable=True),
        'network': fields.ObjectField('NetworkPayload', nullable=True),
    }

    def __init__(self, report: model.SlaReport):
        super().__init__()
        self.instance_uuid = report.instance_uuid
        self.source = report.source
        self.destination = report.destination
        self.outcome = str(report.outcome)
        self.reason = report.reason
        self.verdict = str(report.verdict)
        self.downtime = JudgementPayload(report.downtime)
        self.total = JudgementPayload(report.total)
        self.decisions = list(map(DecisionPayload, report.decisions))
        self.downtime_libvirt_ms = report.downtime_libvirt_ms
        self.blackout = (None if report.blackout is None
                         else BlackoutPayload(report.blackout))
        self.qemu_features = list(map(str, report.qemu_features))
        self.unused_features = {
            str(feature): reason for feature, reason in report.unused_features}
        self.downtime_limit_ms = report.downtime_limit_ms
        self.expected = (None if report.expected is None
                         else EstimatePayload(report.expected))
        self.network = (None if report.network is None
                        else NetworkPayload(report.network))


def to_payload(report: model.SlaReport) -> dict:
    """The payload as it is on the wire."""
    payload = SlaReportPayload(report)
    # Everything in it is new, so "changed" tells nothing.
    payload.obj_reset_changes(recursive=True)
    return payload.obj_to_primitive()


class NotificationSink(sinks.Sink):
    def __init__(self):
        if CONF.notifications.notification_format == 'unversioned':
            LOG.warning(
                '[fastmig]sinks names notification, but '
                '[notifications]notification_format = unversioned: nobody '
                'gets them; it must be versioned or both')

    def emit(self, context, report: model.SlaReport) -> None:
        notifier = rpc.get_versioned_notifier(f'nova-compute:{CONF.host}')
        notify = (notifier.info if report.verdict is model.Verdict.MET
                  else notifier.warn)
        notify(context, EVENT_TYPE, to_payload(report))
