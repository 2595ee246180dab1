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


import importlib.metadata
import types

from osc_lib import exceptions
from oslotest import base

from nova_fastmig import model
from nova_fastmig.osc import migration_sla
from nova_fastmig import report
from tests.unit import values

SERVER = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'


def event(name, time='2026-02-03T04:05:06.000000'):
    return types.SimpleNamespace(event=name, finish_time=time)


def line(**completed) -> str:
    return report.to_line(report.make(
        SERVER, 'compute1', 'compute2', values.sla(), (),
        values.completed(**completed)))


class FakeCompute:
    """openstacksdk's proxy, as far as it is used."""

    def __init__(self):
        self.actions = {
            'req-3': ('live-migration', [
                event('compute_live_migration'),
                event(line(downtime_ms=11))]),
            'req-2': ('reboot', [event('compute_reboot_instance')]),
            'req-1': ('live-migration', [
                event('conductor_live_migrate_instance'),
                event(line(outcome=model.Outcome.ABORTED, downtime_ms=None,
                           total_ms=None, reason='too: late (1)'))]),
            'req-0': ('live-migration', [event('compute_live_migration')])}

    def find_server(self, name, ignore_missing):
        assert not ignore_missing
        return types.SimpleNamespace(id={'vm': SERVER}[name])

    def server_actions(self, server_id):
        assert server_id == SERVER
        for request_id, (action, _) in self.actions.items():
            yield types.SimpleNamespace(request_id=request_id, action=action,
                                        events=None)

    def get_server_action(self, request_id, server_id):
        assert server_id == SERVER
        action, events = self.actions[request_id]
        return types.SimpleNamespace(request_id=request_id, action=action,
                                     events=events)


class TestMigrationSla(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.compute = FakeCompute()

    def take_action(self, command, *arguments):
        app = types.SimpleNamespace(client_manager=types.SimpleNamespace(
            sdk_connection=types.SimpleNamespace(compute=self.compute)))
        made = command(app, None)
        return made.take_action(
            made.get_parser('openstack').parse_args(arguments))

    def test_list(self):
        columns, rows = self.take_action(migration_sla.ListMigrationSla, 'vm')
        self.assertEqual(
            ('Request ID', 'Time', 'Verdict', 'Outcome', 'Downtime (ms)',
             'Max Downtime (ms)', 'Total (ms)', 'Max Total (ms)'), columns)
        time = '2026-02-03T04:05:06.000000'
        self.assertEqual(
            [('req-3', time, 'missed', 'completed', 11, 10, 800, 2000),
             ('req-1', time, 'unknown', 'aborted', None, 10, None, 2000)],
            list(rows))

    def show(self, *arguments) -> dict:
        return dict(zip(*self.take_action(
            migration_sla.ShowMigrationSla, 'vm', *arguments), strict=True))

    def test_show_the_newest(self):
        shown = self.show()
        for name, value in {'server_id': SERVER, 'request_id': 'req-3',
                            'verdict': 'missed', 'downtime_ms': 11,
                            'measured_by': report.LIBVIRT}.items():
            self.assertEqual(value, shown[name], name)

    def test_show_a_certain_one(self):
        self.assertEqual('too: late (1)', self.show('req-1')['reason'])

    def test_none(self):
        error = self.assertRaises(exceptions.CommandError, self.show, 'req-0')
        self.assertEqual('No SLA report of server vm for request req-0',
                         str(error))
        self.compute.actions.clear()
        error = self.assertRaises(exceptions.CommandError, self.show)
        self.assertEqual('No SLA report of server vm', str(error))

    def test_a_microversion_that_hides_the_events(self):
        self.compute.actions['req-3'] = 'live-migration', None
        error = self.assertRaises(exceptions.CommandError, self.show)
        self.assertIn('--os-compute-api-version 2.51', str(error))

    def test_openstackclient_finds_the_commands(self):
        found = {each.name: each.load() for each in
                 importlib.metadata.entry_points(group='openstack.compute.v2')
                 if each.value.startswith('nova_fastmig')}
        self.assertEqual(
            {'server_migration_sla_list': migration_sla.ListMigrationSla,
             'server_migration_sla_show': migration_sla.ShowMigrationSla},
            found)
