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

"""``nova-fastmig report``: what is in the journal of this host."""

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
import datetime
import json
import sys
import typing as ty

from cliff import command
from cliff import lister
from cliff import show
import nova.conf

from nova_fastmig import exception
from nova_fastmig import journal
from nova_fastmig import model

CONF = nova.conf.CONF


class NoReport(exception.FastMigError):
    """The journal does not have what was asked for."""


def _time(text: str) -> datetime.datetime:
    """A time as an argument; without a zone it is UTC, like the journal's."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a time such as 2026-02-03 or '
            f'2026-02-03T04:05:06Z') from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--journal', metavar='FILE',
        help='the journal to read (default: [fastmig]journal_path)')
    parser.add_argument(
        '--server', metavar='UUID', help='only reports of this server')
    parser.add_argument(
        '--verdict', choices=[str(each) for each in model.Verdict],
        help='only reports with this verdict')
    parser.add_argument(
        '--since', metavar='TIME', type=_time,
        help='only reports from this time on, such as 2026-02-03 or '
             '2026-02-03T04:05:06Z (UTC)')


def read(parsed_args: argparse.Namespace) -> Iterator[dict[str, ty.Any]]:
    """The records that the filters let pass, the oldest first.

    Records of a version that this program does not know are left out.
    """
    made = (journal.Journal(parsed_args.journal, 0, 0)
            if parsed_args.journal else journal.Journal.configured(CONF))
    for record in made:
        report = record.get('report')
        if record.get('version') != 1 or not isinstance(report, dict):
            continue
        if parsed_args.server and (
                report.get('instance_uuid') != parsed_args.server):
            continue
        if parsed_args.verdict and (
                report.get('verdict') != parsed_args.verdict):
            continue
        if parsed_args.since and _time(record['time']) < parsed_args.since:
            continue
        yield record


def flat(record: dict[str, ty.Any],
         prefix: str = '') -> Iterator[tuple[str, ty.Any]]:
    """Every value of a record, under its path: ``downtime.limit_ms``."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _row(record: dict[str, ty.Any], fields: Iterable[str]) -> tuple:
    values = dict(flat(record))
    return tuple(values.get(field) for field in fields)


class ReportList(lister.Lister):
    """List the migrations that left this host, the oldest first."""

    COLUMNS: ty.ClassVar = {
        'Time': 'time',
        'Server': 'report.instance_uuid',
        'Destination': 'report.destination',
        'Outcome': 'report.outcome',
        'Verdict': 'report.verdict',
        'Downtime (ms)': 'report.downtime.measured_ms',
        'Max Downtime (ms)': 'report.downtime.limit_ms',
        'Total (ms)': 'report.total.measured_ms',
        'Max Total (ms)': 'report.total.limit_ms',
    }

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        add_filters(parser)
        return parser

    def take_action(self, parsed_args):
        return (tuple(self.COLUMNS),
                [_row(record, self.COLUMNS.values())
                 for record in read(parsed_args)])


class ReportShow(show.ShowOne):
    """Show everything about one migration of a server."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('server', metavar='UUID', help='the server')
        parser.add_argument(
            '--time', metavar='TIME',
            help='of the report, as listed (default: the newest)')
        parser.add_argument(
            '--journal', metavar='FILE',
            help='the journal to read (default: [fastmig]journal_path)')
        return parser

    def take_action(self, parsed_args):
        parsed_args.verdict = parsed_args.since = None
        records = [record for record in read(parsed_args)
                   if parsed_args.time in (None, record['time'])]
        if not records:
            raise NoReport(
                f'the journal has no report of server {parsed_args.server}' +
                (f' at {parsed_args.time}' if parsed_args.time else ''))
        record = records[-1]
        return zip(*flat({'time': record['time'], **record['report']}),
                   strict=True)


class ReportExport(command.Command):
    """Write reports as they are in the journal, one JSON object per line."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        add_filters(parser)
        parser.add_argument(
            '--output', metavar='FILE', default='-',
            help='where to (default: standard output)')
        return parser

    def take_action(self, parsed_args):
        lines = (json.dumps(record) + '\n' for record in read(parsed_args))
        if parsed_args.output == '-':
            sys.stdout.writelines(lines)
            return
        with open(parsed_args.output, 'w', encoding='utf-8') as file:
            file.writelines(lines)
