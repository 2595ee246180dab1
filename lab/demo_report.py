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

"""The demo's figures: from log lines and probe results to table and summary.

Pure. A *run* is one live migration, a dict as it appears under ``runs`` in
the demo's JSON.
"""

import datetime
import re
import statistics

import prettytable

from nova_fastmig.bench import scenario
from nova_fastmig import report

MAX_STALL_MS = scenario.MAX_STALL_MS
# probes go on for a second after the migration; an emulated guest is late with
# the first ones
MAX_SILENT_AT_END_MS = 500

METRICS = (
    # key, title
    ('blackout_ms', 'blackout'),
    ('gap_ms', 'gap'),
    ('downtime_libvirt_ms', 'downtime'),
    ('total_libvirt_ms', 'total'),
    ('total_nova_ms', 'Nova total'),
    ('post_gap_ms', 'post gap'),
)

LEGEND = f"""\
All figures in ms.
blackout: longest run of lost 1 kHz probes. gap: longest time between answers.
downtime, total: libvirt's job statistics.
Nova total: from the API request to the end of Nova's last step.
post gap: from the end of libvirt's migration to the start of Nova's post step
(below 0: Nova saw the end before libvirt's call returned).
CLI: nova live-migration or openstack server migrate --live-migration.
* the probe itself stalled for more than {MAX_STALL_MS} ms around the blackout:
the run is left out of the medians."""

# oslo.log's default format, with the context's request id
_LOG_LINE = re.compile(
    r'(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) \d+ [A-Z]+ (?P<rest>.*)')
_API_REQUEST = re.compile(
    r'"POST \S+/servers/\S+/action" status: 202 .* time: (?P<seconds>[\d.]+)')

# What Nova itself logs, driver and compute manager, in this order
OPERATION_FINISHED = 'Migration operation thread has finished'
POST_STARTED = '_post_live_migration() is started'
NOVA_FINISHED = 'finished successfully.'
POST_COPY = 'Switching to post-copy migration mode'


# ---- Nova's logs ---------------------------------------------------------

def log_time(line):
    """The time of a log line in seconds, or None if it does not have one."""
    match = _LOG_LINE.match(line)
    if match is None:
        return None
    time = datetime.datetime.strptime(match['time'], '%Y-%m-%d %H:%M:%S.%f')
    return time.replace(tzinfo=datetime.UTC).timestamp()


def api_request_time(lines):
    """When nova-api received the request to migrate, or None.

    It logs a request when it has answered, and how long that took.
    """
    for line in lines:
        match = _API_REQUEST.search(line)
        if match and log_time(line) is not None:
            return log_time(line) - float(match['seconds'])
    return None


def message_time(lines, message):
    """The time of the first line that has the message, or None."""
    return next((log_time(line) for line in lines
                 if message in line and log_time(line) is not None), None)


def _between_ms(start, end):
    if start is None or end is None:
        return None
    return round((end - start) * 1000, 1)


def nova_times(api_lines, compute_lines):
    """What Nova's own logs say about one migration.

    :param api_lines: nova-api's log lines with the id of the request
    :param compute_lines: those of nova-compute on the source host
    """
    return {
        'total_nova_ms': _between_ms(
            api_request_time(api_lines),
            message_time(compute_lines, NOVA_FINISHED)),
        'post_gap_ms': _between_ms(
            message_time(compute_lines, OPERATION_FINISHED),
            message_time(compute_lines, POST_STARTED)),
    }


def went_post_copy(lines):
    """Whether Nova went over to post-copy, which it says."""
    return any(POST_COPY in line for line in lines)


def first_error(lines):
    """The first error that Nova logged, without its context; or None."""
    return next((line.partition('] ')[2] for line in lines
                 if re.match(r'\S+ \S+ \d+ ERROR ', line)), None)


def verdict(event_names):
    """The SLA verdict among the names of an instance action's events."""
    return next(filter(None, map(report.parse_line, event_names)), None)


# ---- what is wrong with a run --------------------------------------------

def _domains(run):
    """Is the domain where Nova says that the server is, and only there?"""
    home = run['destination'] or run['source']
    for host, state in run['domain'].items():
        expected = 'running, persistent' if host == home else 'absent'
        yield (state == expected,
               f'the domain on {host} is {state}, not {expected}')


def version(number):
    """libvirt's way to write a version as one number, undone."""
    return f'{number // 1000000}.{number // 1000 % 1000}.{number % 1000}'


def guest_checks(probe):
    """What a probe's result says about the guest: (good, if not, why).

    And about the probe itself, where it would be taken for the guest's.
    """
    yield (probe['unsent'] == 0,
           f'{probe["unsent"]} of the generator\'s packets did not leave it')
    yield (probe['dropped'] == 0,
           f'the generator had no room for {probe["dropped"]} packets')
    yield (abs(probe['clock_step_ms']) <= MAX_STALL_MS,
           f'the generator\'s clock was set by {probe["clock_step_ms"]} ms')
    yield (probe['first_boot_id'] == probe['last_boot_id'],
           f'the guest\'s boot id was {probe["first_boot_id"]} and is '
           f'{probe["last_boot_id"]}')
    yield (probe['silent_at_end_ms'] <= MAX_SILENT_AT_END_MS,
           f'the guest sent nothing back in the last '
           f'{probe["silent_at_end_ms"]:.0f} ms')
    # null for a guest that does not count
    yield (probe['counter_continuous'] is not False,
           'the guest\'s count of forwarded probes did not go on')
    yield (probe['corruptions'] == 0,
           f'the guest found {probe["corruptions"]} wrong words in its memory')
    # null where nothing was asked for
    yield (probe['wanted_working_set_mib'] in (None, probe['working_set_mib']),
           f'the guest rewrites {probe["working_set_mib"]} MiB of memory, not '
           f'{probe["wanted_working_set_mib"]}')
    # null where it was not asked to use it
    yield (not probe['disk_faults'],
           f'the guest found {probe["disk_faults"]} blocks of its disk wrong, '
           f'or could not read or write them')


def _guest(run):
    return guest_checks(run['probe'])


def _migration(run):
    if run['cli_exit_code'] != 0:
        yield (False, f'{run["cli"]} exited with {run["cli_exit_code"]}: '
                      f'{run["cli_output"]}')
        return
    yield (run['status'] == 'completed',
           f'the migration is {run["status"]}, not completed '
           f'(request {run["request_id"]}: {run["error"]})')
    yield (run['server_status'] == 'ACTIVE',
           f'the server is {run["server_status"]}, not ACTIVE')
    if run['status'] != 'completed':
        return
    yield (run['destination'] is not None,
           f'the server is still on {run["source"]}')
    # libvirt has none of some that went over to post-copy
    yield (run['post_copy'] or (run['downtime_libvirt_ms'] is not None
                                and run['total_libvirt_ms'] is not None),
           'libvirt has no statistics of the completed migration')
    yield (run['total_nova_ms'] is not None and run['post_gap_ms'] is not None,
           'Nova\'s logs do not have the lines that times are taken from')
    yield ((run['verdict'] is not None) == run['verdict_expected'],
           f'the SLA verdict in the server\'s action events is '
           f'{run["verdict"] and run["verdict"]["verdict"]}, a '
           f'{run["server"]} server under the {run["driver"]} driver has '
           f'{"one" if run["verdict_expected"] else "none"}')


def failures(run):
    """Everything about a run that is not as it has to be, as sentences."""
    return [message for checks in (_migration, _domains, _guest)
            for ok, message in checks(run) if not ok]


# ---- summary -------------------------------------------------------------

def _spread(values):
    if not values:
        return None
    return {'n': len(values), 'median': round(statistics.median(values), 1),
            'min': min(values), 'max': max(values)}


def _figures(runs):
    counted = [run for run in runs
               if not run['failures'] and not run['probe_stalled']]
    return {'runs': len(runs), 'counted': len(counted)} | {
        key: _spread([run[key] for run in counted]) for key, _ in METRICS}


def _ratio(stock, fastmig, key):
    if not (stock and fastmig and stock[key] and fastmig[key]
            and fastmig[key]['median']):
        return None
    return round(stock[key]['median'] / fastmig[key]['median'], 2)


def summarize(runs):
    """Medians and spreads per driver, and how the drivers compare.

    ``stock`` and ``fastmig`` are about the tagged server, which both drivers
    move; ``fastmig_untagged`` is about the other one. Runs that failed or in
    which the probe stalled are not counted. A ratio is stock / fastmig.
    """
    def group(driver, server):
        members = [run for run in runs
                   if (run['driver'], run['server']) == (driver, server)]
        return _figures(members) if members else None

    stock, fastmig = group('stock', 'tagged'), group('fastmig', 'tagged')
    return {
        'stock': stock,
        'fastmig': fastmig,
        'fastmig_untagged': group('fastmig', 'untagged'),
        'blackout_ratio': _ratio(stock, fastmig, 'blackout_ms'),
        'gap_ratio': _ratio(stock, fastmig, 'gap_ms'),
        'failed_runs': sum(bool(run['failures']) for run in runs),
        'stalled_runs': sum(run['probe_stalled'] for run in runs),
    }


# ---- text ----------------------------------------------------------------

def _number(value):
    return '-' if value is None else f'{value:.0f}'


def _verdict_cell(run):
    return run['verdict']['verdict'] if run['verdict'] else '-'


def _row(number, run):
    mark = '*' if run['probe_stalled'] else ''
    return [
        number, run['driver'], run['server'], run['cli'].split()[0],
        f'{run["source"]} -> {run["destination"] or "?"}',
        'FAILED' if run['failures'] else run['status'],
        _number(run['blackout_ms']) + mark,
        *(_number(run[key]) for key, _ in METRICS[1:]),
        'lives on' if run['guest_continuous'] else 'BROKEN',
        _verdict_cell(run)]


def line(run):
    """One run in one line, for those who watch."""
    figures = ', '.join(f'{title} {_number(run[key])}'
                        for key, title in METRICS[:4])
    return (f'{run["driver"]}, {run["server"]}, {run["cli"]}: '
            f'{run["source"]} -> {run["destination"] or "?"}, '
            f'{"FAILED" if run["failures"] else run["status"]}, '
            f'{figures} ms, SLA {_verdict_cell(run)}')


def table(runs):
    """All runs as one table."""
    result = prettytable.PrettyTable([
        '#', 'driver', 'server', 'CLI', 'route', 'status',
        *(title for _, title in METRICS), 'guest', 'SLA'])
    result.align = 'l'
    for _, title in METRICS:
        result.align[title] = 'r'
    for number, run in enumerate(runs, 1):
        result.add_row(_row(number, run))
    return result.get_string()


def summary_text(summary):
    """The medians with their spread, and the ratio."""
    result = prettytable.PrettyTable([
        'median (min-max)', 'runs', *(title for _, title in METRICS)])
    result.align = 'l'
    for name, title in (('stock', 'stock driver'),
                        ('fastmig', 'FastMigDriver'),
                        ('fastmig_untagged', 'FastMigDriver, untagged')):
        figures = summary[name]
        if figures is None:
            continue
        cells = []
        for key, _ in METRICS:
            spread = figures[key]
            cells.append('-' if spread is None else
                         f'{spread["median"]:.0f} '
                         f'({spread["min"]:.0f}-{spread["max"]:.0f})')
        runs = f'{figures["counted"]}/{figures["runs"]}'
        result.add_row([title, runs, *cells])
    lines = [result.get_string()]
    for key, what in (('blackout_ratio', 'blackout'), ('gap_ratio', 'gap')):
        if summary[key] is not None:
            lines.append(
                f'Tagged server, median {what}: '
                f'stock / FastMigDriver = {summary[key]:.2f}')
    return '\n'.join(lines)


def text(document):
    """Everything that the demo prints, from what ``--json`` writes."""
    machine, runs = document['machine'], document['runs']
    lines = [
        f'{machine["cpu"]}, {machine["cores"]} cores, '
        f'{machine["memory_mib"]} MiB; guests under '
        f'{machine["accel"].upper()}; Nova {machine["nova"]}, libvirt '
        f'{machine["libvirt"]}, QEMU {machine["qemu"]}',
        table(runs),
        LEGEND,
        summary_text(document['summary'])]
    for number, run in enumerate(runs, 1):
        lines += [f'FAILED: run {number}: {failure}'
                  for failure in run['failures']]
    return '\n'.join(lines)
