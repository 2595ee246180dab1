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
import json
import pathlib
from unittest import mock

import ddt
import nova.conf
from nova import objects
from nova.objects import base as nova_objects
from nova import rpc
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import model
from nova_fastmig import report as fastmig_report
from nova_fastmig.sinks import notification
from tests.unit import values

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'
SAMPLE = (pathlib.Path(__file__).parents[3] / 'doc' / 'notification_samples' /
          'instance-live_migration-sla.json')


def report(**completed) -> model.SlaReport:
    return fastmig_report.make(
        UUID, 'compute1', 'compute2', values.sla(),
        (model.Decision(
            model.Action.ABORT, '2001 ms of 2000 ms are over before the '
            'switchover'),), values.completed(**completed))


ABORTED = {'outcome': model.Outcome.ABORTED, 'downtime_ms': None,
           'total_ms': None, 'reason': '2001 ms of 2000 ms are over before '
                                       'the switchover'}


@ddt.ddt
class TestNotificationSink(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.conf = self.useFixture(config_fixture.Config(nova.conf.CONF))
        self.conf.config(host='compute1')
        self.conf.config(group='notifications',
                         notification_format='versioned')
        patch = mock.patch.object(rpc, 'NOTIFIER')
        self.notifier = patch.start()
        self.addCleanup(patch.stop)

    @ddt.data(({}, 'info'), ({'downtime_ms': 11}, 'warn'), (ABORTED, 'warn'))
    @ddt.unpack
    def test_priority(self, completed, priority):
        notification.NotificationSink().emit('context', report(**completed))
        self.assertEqual(
            [mock.call.prepare(publisher_id='nova-compute:compute1'),
             getattr(mock.call.prepare(), priority)(
                 'context', 'instance.live_migration.sla',
                 notification.to_payload(report(**completed)))],
            self.notifier.mock_calls)

    def test_the_sample_of_the_docs(self):
        made = dataclasses.replace(
            report(**ABORTED), source_pause_ms=0.0, flavor='nfv.small',
            nova=model.NovaTimes(before_ms=4000, waited_ms=0, after_ms=None))
        notification.NotificationSink().emit('context', made)
        (_, event_type, payload), _ = (
            self.notifier.prepare.return_value.warn.call_args)
        self.assertEqual(
            json.loads(SAMPLE.read_text()),
            {'event_type': event_type, 'payload': payload,
             'priority': 'WARN', 'publisher_id': 'nova-compute:compute1'})

    def test_notifications_that_nobody_gets(self):
        self.conf.config(group='notifications',
                         notification_format='unversioned')
        with mock.patch.object(notification.LOG, 'warning') as warning:
            notification.NotificationSink()
        warning.assert_called_once()

    def test_ones_that_somebody_gets(self):
        for name in ('versioned', 'both'):
            self.conf.config(group='notifications', notification_format=name)
            with mock.patch.object(notification.LOG, 'warning') as warning:
                notification.NotificationSink()
            warning.assert_not_called()


class TestPayload(base.BaseTestCase):

    def test_it_carries_every_field_of_the_model(self):
        """A new field of the model needs a new version of the payload."""
        for of_model, payload in notification._PAYLOADS.items():
            self.assertEqual(
                {field.name for field in dataclasses.fields(of_model)},
                set(payload.fields))

    def test_a_consumer_can_read_it_as_a_versioned_object(self):
        registry = nova_objects.NovaObjectRegistry
        for payload in notification._PAYLOADS.values():
            self.assertNotIn(payload.obj_name(), registry.obj_classes())
            self.assertFalse(hasattr(objects, payload.obj_name()))
            self.assertEqual('nova_fastmig', payload.OBJ_PROJECT_NAMESPACE)

    def test_the_blackout_and_the_features(self):
        blackout = model.Blackout(.1, .5, 2., None, None, 4.25, .2)
        made = dataclasses.replace(
            report(), blackout=blackout,
            qemu_features=(model.QemuFeature.EARLY_RESUME,),
            unused_features=((model.QemuFeature.TCP_NODELAY, 'not wanted'),))
        data = notification.to_payload(made)['nova_object.data']
        self.assertEqual(dataclasses.asdict(blackout),
                         data['blackout']['nova_object.data'])
        self.assertEqual(['x-early-resume'], data['qemu_features'])
        self.assertEqual({'x-tcp-nodelay': 'not wanted'},
                         data['unused_features'])

    def test_the_parts_and_the_time_outside_of_libvirt(self):
        parts = model.BlackoutParts(qemu_stop_ms=.5, transfer_ms=30.)
        nova = model.NovaTimes(4000, 0, 700)
        made = dataclasses.replace(report(), parts=parts, nova=nova)
        data = notification.to_payload(made)['nova_object.data']
        self.assertEqual(dataclasses.asdict(parts),
                         data['parts']['nova_object.data'])
        self.assertEqual(dataclasses.asdict(nova),
                         data['nova']['nova_object.data'])

    def test_the_limit_and_what_it_was_made_from(self):
        expected = model.Estimate(6.5, 1e9, 12, 6.0)
        made = dataclasses.replace(report(), downtime_limit_ms=3,
                                   expected=expected)
        data = notification.to_payload(made)['nova_object.data']
        self.assertEqual(3, data['downtime_limit_ms'])
        self.assertEqual(dataclasses.asdict(expected),
                         data['expected']['nova_object.data'])

    def test_the_networks_part(self):
        network = model.Network(0.0, '1 of 1 ports were wired', 212.5)
        made = dataclasses.replace(report(), network=network)
        data = notification.to_payload(made)['nova_object.data']
        self.assertEqual(dataclasses.asdict(network),
                         data['network']['nova_object.data'])

    def test_it_is_plain_json(self):
        payload = notification.to_payload(report())
        self.assertEqual(payload, json.loads(json.dumps(payload)))
        self.assertNotIn('changes', json.dumps(payload))
