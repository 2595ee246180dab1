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

"""``nova-fastmig dry-run``: would a server meet its SLA now?"""

import contextlib
import dataclasses
import time

from cliff import show
import nova.conf

from nova_fastmig import calibration_store
from nova_fastmig import conf
from nova_fastmig import exception
from nova_fastmig import forecast
from nova_fastmig import inspection
from nova_fastmig import model
from nova_fastmig import request

CONF = nova.conf.CONF

_MIB = 1 << 20


class NotTagged(exception.FastMigError):
    """The server has no SLA."""


def _pessimistic(store: calibration_store.Store, source: str,
                 destination: str | None) -> model.Estimate | None:
    """What to expect between two hosts, or from a host to any other."""
    estimates = [
        estimate for pair, versions in store.pairs().items()
        if pair.source == source and destination in (None, pair.destination)
        and (estimate := store.estimate(pair, versions)) is not None]
    if not estimates:
        return None
    return model.Estimate(
        fixed_ms=max(each.fixed_ms for each in estimates),
        bandwidth_bytes_per_s=min(each.bandwidth_bytes_per_s
                                  for each in estimates),
        count=sum(each.count for each in estimates),
        least_fixed_ms=max(each.least_fixed_ms for each in estimates))


class DryRun(show.ShowOne):
    """Say whether a server would meet its SLA if it migrated now.

    Nothing is migrated. The guest's dirty rate is measured; bandwidth and the
    fixed part of the blackout are what this host has learned from migrations.
    Ends with 0 if the SLA would be met, with 2 if it would be missed, with 3
    if that is not known.
    """

    CODES = {model.Verdict.MET: 0, model.Verdict.MISSED: 2,
             model.Verdict.UNKNOWN: 3}
    _code = 0

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'server', metavar='SERVER',
            help="the server's UUID, or its domain's name in libvirt")
        parser.add_argument(
            '--destination', metavar='HOST',
            help='where it would go (default: the worst that is known)')
        parser.add_argument(
            '--seconds', type=int, default=1, choices=range(1, 61),
            metavar='1-60', help='how long to measure (default: 1)')
        parser.add_argument(
            '--mode', choices=inspection.DIRTY_RATE_MODES,
            default=inspection.PAGE_SAMPLING,
            help='how QEMU measures (default: %(default)s, which does not '
                 'slow the guest down)')
        parser.add_argument(
            '--bandwidth-mib-s', type=float, metavar='MIB_S',
            help='of the migration, instead of what was learned')
        return parser

    def _conditions(self, parsed_args, domain,
                    host) -> tuple[forecast.Conditions, str]:
        expected = _pessimistic(calibration_store.Store.configured(CONF),
                                CONF.host, parsed_args.destination)
        bandwidth = parsed_args.bandwidth_mib_s
        if bandwidth is not None:
            bandwidth *= _MIB
        elif expected is not None:
            bandwidth = expected.bandwidth_bytes_per_s
        return forecast.Conditions(
            memory_bytes=inspection.memory_bytes(domain),
            dirty_rate_bytes_per_s=inspection.dirty_rate_bytes_per_s(
                host, domain, parsed_args.seconds, parsed_args.mode),
            bandwidth_bytes_per_s=bandwidth,
            fixed_ms=None if expected is None else expected.fixed_ms,
        ), ('nothing' if expected is None
            else f'{expected.count} migrations')

    def take_action(self, parsed_args):
        uri = CONF.libvirt.connection_uri or 'qemu:///system'
        with contextlib.closing(inspection.Host(uri)) as host:
            domain = host.domain(parsed_args.server)
            sla = request.parse(inspection.extra_specs(domain),
                                conf.sla_settings(CONF))
            if sla is None:
                raise NotTagged(
                    f'the flavor of {parsed_args.server} has no '
                    f'{request.ENABLED} = true, so there is no SLA')
            conditions, learned_from = self._conditions(
                parsed_args, domain, host)
        made = forecast.make(sla, conditions)
        self._code = self.CODES[made.verdict]
        return zip(*{
            'server': parsed_args.server,
            'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            'verdict': str(made.verdict),
            'reason': '; '.join(made.reasons),
            'downtime_ms': made.downtime.measured_ms,
            'max_downtime_ms': sla.max_downtime_ms,
            'total_ms': made.total.measured_ms,
            'max_total_ms': sla.max_total_ms,
            **dataclasses.asdict(conditions),
            'learned_from': learned_from,
        }.items(), strict=True)

    def run(self, parsed_args):
        return super().run(parsed_args) or self._code
