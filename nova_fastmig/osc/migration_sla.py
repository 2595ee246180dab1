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

"""``openstack server migration sla``: what Nova's API knows of reports."""

import typing as ty

from osc_lib.command import command
from osc_lib import exceptions

from nova_fastmig import report

# Who is no administrator sees the events of an action from here on.
MICROVERSION = '2.51'

COLUMNS = {
    'Request ID': 'request_id',
    'Time': 'time',
    'Verdict': 'verdict',
    'Outcome': 'outcome',
    'Downtime (ms)': 'downtime_ms',
    'Max Downtime (ms)': 'max_downtime_ms',
    'Total (ms)': 'total_ms',
    'Max Total (ms)': 'max_total_ms',
}


def _reports(compute, server: str,
             request_id: str | None = None) -> list[dict[str, ty.Any]]:
    """The reports of a server's live migrations, the newest first.

    :param compute: openstacksdk's compute proxy
    :param server: name or ID
    :param request_id: of one migration; None for all
    """
    server_id = compute.find_server(server, ignore_missing=False).id
    request_ids = [request_id] if request_id else [
        action.request_id for action in compute.server_actions(server_id)
        if action.action == 'live-migration']
    found = []
    for each in request_ids:
        action = compute.get_server_action(each, server_id)
        if action.events is None:
            raise exceptions.CommandError(
                f'Nova does not show what happened in request {each}; '
                f'--os-compute-api-version {MICROVERSION} or newer is needed '
                f'by who is no administrator')
        for event in action.events:
            fields = report.parse_line(event.event)
            if fields is not None:
                found.append({
                    'server_id': server_id, 'request_id': each,
                    'time': event.finish_time, **fields})
    return found


class ListMigrationSla(command.Lister):
    """List the SLA reports of a server's live migrations, the newest first."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('server', metavar='<server>',
                            help='Server (name or ID)')
        return parser

    def take_action(self, parsed_args):
        reports = _reports(self.app.client_manager.sdk_connection.compute,
                           parsed_args.server)
        return tuple(COLUMNS), [
            tuple(each[field] for field in COLUMNS.values())
            for each in reports]


class ShowMigrationSla(command.ShowOne):
    """Show the SLA report of a live migration."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('server', metavar='<server>',
                            help='Server (name or ID)')
        parser.add_argument(
            'request_id', metavar='<request-id>', nargs='?',
            help='Request ID of the migration, as listed '
                 '(default: of the newest one with a report)')
        return parser

    def take_action(self, parsed_args):
        reports = _reports(self.app.client_manager.sdk_connection.compute,
                           parsed_args.server, parsed_args.request_id)
        if not reports:
            raise exceptions.CommandError(
                f'No SLA report of server {parsed_args.server}' + (
                    f' for request {parsed_args.request_id}'
                    if parsed_args.request_id else ''))
        return zip(*reports[0].items(), strict=True)
