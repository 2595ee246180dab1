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

import dataclasses
import enum
import typing as ty

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


def _plain(value: ty.Any) -> ty.Any:
    """A value of the model as a field takes it."""
    if dataclasses.is_dataclass(value):
        return _PAYLOADS[type(value)](value)
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return str(value) if isinstance(value, enum.Enum) else value


class _Payload(base.NotificationPayloadBase):
    """A value of the model with all of its fields, under their names."""

    OBJ_PROJECT_NAMESPACE = _NAMESPACE

    def __init__(self, value: ty.Any):
        super().__init__()
        for name, field in self.fields.items():
            plain = _plain(getattr(value, name))
            if isinstance(field, fields.DictOfStringsField):
                plain = dict(plain)
            setattr(self, name, plain)


@nova_base.NovaObjectRegistry.register_if(False)
class JudgementPayload(_Payload):
    # Version 1.0: Initial version
    VERSION = '1.0'

    fields = {
        'limit_ms': fields.IntegerField(),
        'measured_ms': fields.IntegerField(nullable=True),
        'measured_by': fields.StringField(),
        'verdict': fields.StringField(),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class DecisionPayload(_Payload):
    # Version 1.0: Initial version
    VERSION = '1.0'

    fields = {
        'action': fields.StringField(),
        'reason': fields.StringField(),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class BlackoutPayload(_Payload):
    # Version 1.0: Initial version
    # Version 1.1: clock_offset_ms; resumed_ms can be null
    VERSION = '1.1'

    fields = {
        'stopped_ms': fields.FloatField(),
        'pages_sent_ms': fields.FloatField(),
        'devices_sent_ms': fields.FloatField(),
        'pages_loaded_ms': fields.FloatField(nullable=True),
        'devices_loaded_ms': fields.FloatField(nullable=True),
        'resumed_ms': fields.FloatField(nullable=True),
        'clock_error_ms': fields.FloatField(),
        'clock_offset_ms': fields.FloatField(nullable=True),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class BlackoutPartsPayload(_Payload):
    # Version 1.0: Initial version
    VERSION = '1.0'

    fields = {
        field.name: fields.FloatField(nullable=True)
        for field in dataclasses.fields(model.BlackoutParts)}


@nova_base.NovaObjectRegistry.register_if(False)
class NovaTimesPayload(_Payload):
    # Version 1.0: Initial version
    VERSION = '1.0'

    fields = {
        'before_ms': fields.IntegerField(nullable=True),
        'waited_ms': fields.IntegerField(),
        'after_ms': fields.IntegerField(nullable=True),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class EstimatePayload(_Payload):
    # Version 1.0: Initial version
    # Version 1.1: least_fixed_ms
    VERSION = '1.1'

    fields = {
        'fixed_ms': fields.FloatField(),
        'bandwidth_bytes_per_s': fields.FloatField(),
        'count': fields.IntegerField(),
        'least_fixed_ms': fields.FloatField(),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class NetworkPayload(_Payload):
    # Version 1.0: Initial version
    VERSION = '1.0'

    fields = {
        'blackout_ms': fields.FloatField(nullable=True),
        'reason': fields.StringField(),
        'activation_ms': fields.FloatField(nullable=True),
    }


@nova_base.NovaObjectRegistry.register_if(False)
class SlaReportPayload(_Payload):
    # Version 1.0: Initial version
    # Version 1.1: downtime_limit_ms, expected
    # Version 1.2: EstimatePayload 1.1, BlackoutPayload 1.1, parts,
    #              source_pause_ms, nova, network
    # Version 1.3: flavor
    VERSION = '1.3'

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
        'parts': fields.ObjectField('BlackoutPartsPayload', nullable=True),
        'source_pause_ms': fields.FloatField(nullable=True),
        'nova': fields.ObjectField('NovaTimesPayload', nullable=True),
        'network': fields.ObjectField('NetworkPayload', nullable=True),
        'flavor': fields.StringField(),
    }


_PAYLOADS = {model.SlaReport: SlaReportPayload,
             model.Judgement: JudgementPayload,
             model.Decision: DecisionPayload,
             model.Blackout: BlackoutPayload,
             model.BlackoutParts: BlackoutPartsPayload,
             model.NovaTimes: NovaTimesPayload,
             model.Network: NetworkPayload,
             model.Estimate: EstimatePayload}


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
