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

"""Plan, Decisions and Completed -> SlaReport, and its one-line form. Pure."""

from collections.abc import Sequence
import math
import re

from nova_fastmig import model

LIBVIRT = 'libvirt job statistics'
# libvirt counts until it has finished its work at the destination, also when
# the guest has been running there for a while.
LIBVIRT_AT_MOST = 'libvirt job statistics, at most'
QEMU = 'QEMU'
NOT_MEASURED = 'not measured'

_NO_FEATURES = model.FeaturePlan()

# Nova's instance_actions_events.event column.
MAX_LINE_CHARS = 255

_LINE = re.compile(
    r'fastmig SLA (?P<verdict>met|missed|unknown): '
    r'(?P<outcome>completed|aborted|failed|refused), '
    r'downtime (?P<downtime_ms>\d+|\?)/(?P<max_downtime_ms>\d+) ms, '
    r'total (?P<total_ms>\d+|\?)/(?P<max_total_ms>\d+) ms'
    r' \((?P<measured_by>[^)]*)\)'
    r'(?:, (?P<features>\d+)/\d+ QEMU features)?'
    r'(?:: (?P<reason>.*))?', re.DOTALL)


def judge(limit_ms: int, measured_ms: int | None,
          measured_by: str = LIBVIRT) -> model.Judgement:
    """Compare one figure with its limit; a figure at the limit meets it."""
    if measured_ms is None:
        return model.Judgement(limit_ms, None, NOT_MEASURED,
                               model.Verdict.UNKNOWN)
    if measured_ms <= limit_ms:
        verdict = model.Verdict.MET
    elif measured_by == LIBVIRT_AT_MOST:
        verdict = model.Verdict.UNKNOWN
    else:
        verdict = model.Verdict.MISSED
    return model.Judgement(limit_ms, measured_ms, measured_by, verdict)


def _overall(outcome: model.Outcome,
             *judgements: model.Judgement) -> model.Verdict:
    if outcome is not model.Outcome.COMPLETED:
        return model.Verdict.UNKNOWN
    verdicts = {judgement.verdict for judgement in judgements}
    for verdict in (model.Verdict.MISSED, model.Verdict.UNKNOWN):
        if verdict in verdicts:
            return verdict
    return model.Verdict.MET


def _judge_downtime(sla: model.Sla, completed: model.Completed,
                    features: frozenset[model.QemuFeature]) -> model.Judgement:
    """QEMU knows when the guest stood still; libvirt's figure stands in."""
    told = completed.blackout
    if told is not None and told.resumed_ms is not None:
        return judge(sla.max_downtime_ms, math.ceil(told.resumed_ms), QEMU)
    return judge(
        sla.max_downtime_ms, completed.downtime_ms,
        LIBVIRT_AT_MOST if model.QemuFeature.EARLY_RESUME in features and
        completed.resumed_by_qemu is not False else LIBVIRT)


def make(instance_uuid: str, source: str, destination: str, sla: model.Sla,
         decisions: tuple[model.Decision, ...], completed: model.Completed,
         features: model.FeaturePlan = _NO_FEATURES,
         downtime_limit_ms: int | None = None,
         expected: model.Estimate | None = None,
         concessions: Sequence[str] = (),
         parts: model.BlackoutParts | None = None,
         source_pause_ms: float | None = None,
         nova: model.NovaTimes | None = None,
         network: model.Network | None = None,
         flavor: str = '') -> model.SlaReport:
    """Judge a finished migration.

    A guest that did not move was not judged: its verdict is UNKNOWN and the
    outcome and reason say what happened instead.

    :param features: what was planned for the patched QEMU
    :param downtime_limit_ms: what was planned for QEMU
    :param expected: what that was made from
    :param concessions: why the limits could not be vouched for
    :param parts: of the blackout, where the guest has moved
    :param source_pause_ms: where it has not
    :param nova: what was spent outside of libvirt
    :param network: its part of the blackout
    :param flavor: the name of the server's
    """
    agreed = completed.agreed_features
    refused = (frozenset() if agreed is None else
               (features.used & model.NEGOTIATED_FEATURES) - agreed)
    in_force = features.used - refused
    downtime = _judge_downtime(sla, completed, in_force)
    total = judge(sla.max_total_ms, completed.total_ms)
    return model.SlaReport(
        instance_uuid=instance_uuid,
        source=source,
        destination=destination,
        outcome=completed.outcome,
        reason='; '.join(filter(None, (completed.reason, *concessions))),
        downtime=downtime,
        total=total,
        verdict=_overall(completed.outcome, downtime, total),
        decisions=decisions,
        downtime_libvirt_ms=completed.downtime_ms,
        blackout=completed.blackout,
        qemu_features=tuple(sorted(in_force)),
        unused_features=features.unused + tuple(
            (feature, 'the two QEMUs did not agree on it')
            for feature in sorted(refused)),
        downtime_limit_ms=downtime_limit_ms,
        expected=expected,
        parts=parts,
        source_pause_ms=source_pause_ms,
        nova=nova,
        network=network,
        flavor=flavor)


def _figure(judgement: model.Judgement) -> str:
    measured = ('?' if judgement.measured_ms is None
                else str(judgement.measured_ms))
    return f'{measured}/{judgement.limit_ms} ms'


def to_line(report: model.SlaReport) -> str:
    """One line that people and ``parse_line`` can read.

    At most MAX_LINE_CHARS characters, so that Nova can store it as the name
    of an instance action event.
    """
    measured_by = ', '.join(dict.fromkeys(
        (report.downtime.measured_by, report.total.measured_by)))
    line = (f'fastmig SLA {report.verdict}: {report.outcome}, '
            f'downtime {_figure(report.downtime)}, '
            f'total {_figure(report.total)} ({measured_by})')
    if report.qemu_features:
        line += (f', {len(report.qemu_features)}/{len(model.QemuFeature)} '
                 f'QEMU features')
    if report.reason:
        line += ': ' + ' '.join(report.reason.split())
    if len(line) > MAX_LINE_CHARS:
        line = line[:MAX_LINE_CHARS - 3] + '...'
    return line


def parse_line(line: str) -> dict[str, str | int | None] | None:
    """Read back what ``to_line`` wrote.

    :returns: verdict, outcome, downtime_ms, max_downtime_ms, total_ms,
        max_total_ms, measured_by, features, reason; None if this is not such
        a line
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    fields: dict[str, str | int | None] = dict(match.groupdict())
    for name in ('downtime_ms', 'max_downtime_ms', 'total_ms',
                 'max_total_ms'):
        text = match[name]
        fields[name] = None if text == '?' else int(text)
    fields['features'] = int(match['features'] or 0)
    return fields
