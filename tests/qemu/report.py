# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Statistics, result files and tables of the measurements."""

import datetime
import json
import os
import platform
import random
import statistics
import subprocess

COLUMNS = ('n', 'median', 'p90', 'p95', 'max')


def summary(values):
    """Median, 90th and 95th percentile and maximum.

    A percentile is the smallest value that at least so many percent of the
    values do not exceed, so it is always one that was seen.
    """
    values = sorted(values)
    if not values:
        return {'n': 0}
    return {'n': len(values), 'median': statistics.median(values),
            **{f'p{p}': values[-(-len(values) * p // 100) - 1]
               for p in (90, 95)},
            'max': values[-1]}


def interleaved(names, runs, seed=1):
    """Each name so many times, every round in another order."""
    shuffle = random.Random(seed).shuffle
    for number in range(runs):
        names = list(names)
        shuffle(names)
        for name in names:
            yield number, name


def table(groups, title):
    """A text table of summaries, with each median over the first one's.

    groups: {name: [values]}
    """
    rows = [(title, *COLUMNS, 'ratio')]
    first = None
    for name, values in groups.items():
        s = summary(values)
        if not s['n']:
            rows.append((name, '0', *['-'] * len(COLUMNS)))
            continue
        first = first or s['median']
        rows.append((name, str(s['n']),
                     *(f'{s[c]:.1f}' for c in COLUMNS[1:]),
                     f"{s['median'] / first:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(w) if i == 0 else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows)


def environment(binaries):
    """What a result file says about the machine and the binaries."""
    return {
        'date': datetime.datetime.now(datetime.UTC).isoformat(
            timespec='seconds'),
        'kernel': platform.release(),
        'processor': _processor(),
        'cpus': os.cpu_count(),
        'memory_bytes': (os.sysconf('SC_PAGE_SIZE')
                         * os.sysconf('SC_PHYS_PAGES')),
        'load': os.getloadavg()[0],
        'accelerator': os.environ.get('QEMU_ACCEL', 'tcg'),
        'binaries': {name: subprocess.run(
            [path, '--version'], check=True, capture_output=True,
            text=True).stdout.splitlines()[0]
            for name, path in binaries.items()},
    }


def _processor():
    with open('/proc/cpuinfo') as f:
        return next((line.split(':', 1)[1].strip() for line in f
                     if line.startswith('model name')), 'unknown')


def save(path, content):
    """Write JSON so that an interrupted run leaves the last whole file."""
    temporary = f'{path}.new'
    with open(temporary, 'w') as f:
        json.dump(content, f, indent=1)
        f.write('\n')
    os.replace(temporary, path)
