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

"""Run Nova's own driver tests on its driver and on FastMigDriver.

The result of every test must be the same. A test that fails on Nova's own
driver too (the wheel lacks some of the data files that tests read) is no
difference.

    python -m tests.nova_driver.compare [stestr's filters]
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import subunit
import testtools

HERE = pathlib.Path(__file__).parent
EXCLUSIONS = HERE / 'exclusions.txt'
PASSED = {'success', 'xfail'}
SKIPPED = {'skip'}


def run(which: str, filters: list[str]) -> dict[str, str]:
    """Result by test id; one of testtools' final statuses.

    :param which: the directory with the test module
    """
    with (tempfile.TemporaryDirectory() as repository,
          tempfile.TemporaryFile() as stream):
        stestr = [sys.executable, '-m', 'stestr']
        options = ['--repo-url', repository,
                   '--test-path', str(HERE / which),
                   '--top-dir', str(HERE.parents[1])]
        subprocess.run([*stestr, *options, 'init'], check=True)
        # Ends with 1 if any test fails, which is judged below.
        subprocess.run(
            [*stestr, *options, 'run', '--subunit', *filters],
            stdout=stream, env={**os.environ, 'PYTHON': sys.executable})
        stream.seek(0)
        return read(stream)


def read(stream) -> dict[str, str]:
    results = {}

    def take(test):
        if test['status'] != 'exists':
            results[test['id']] = test['status']

    case = subunit.ByteStreamToStreamResult(stream, non_subunit_name='output')
    to_dict = testtools.StreamToDict(take)
    to_dict.startTestRun()
    case.run(to_dict)
    to_dict.stopTestRun()
    results.pop('output', None)
    return results


def counts(results: dict[str, str]) -> str:
    found = collections.Counter(
        'passed' if status in PASSED else
        'skipped' if status in SKIPPED else 'failed'
        for status in results.values())
    return ', '.join(f'{found[kind]} {kind}'
                     for kind in ('passed', 'failed', 'skipped'))


def exclusions() -> dict[str, str]:
    """Reason by test id, from lines ``id  # reason``."""
    found = {}
    for line in EXCLUSIONS.read_text().splitlines():
        test, _, reason = line.partition('#')
        if test.strip():
            found[test.strip()] = reason.strip()
    return found


def differences(stock: dict[str, str], fastmig: dict[str, str],
                excluded: dict[str, str]) -> list[str]:
    """Sentences about every test that must not be as it is."""
    found = []
    for test in sorted(stock.keys() | fastmig.keys() | excluded.keys()):
        results = stock.get(test, 'not run'), fastmig.get(test, 'not run')
        differs = results[0] != results[1]
        if differs and test not in excluded:
            found.append(f'{test}: {results[0]} on LibvirtDriver, '
                         f'{results[1]} on FastMigDriver')
        if not differs and test in excluded:
            found.append(f'{test}: excluded, but it does not differ')
    return found


def main() -> int:
    filters = sys.argv[1:]
    results = {}
    for which in ('stock', 'fastmig'):
        started = time.monotonic()
        results[which] = run(which, filters)
        print(f'{which:8} {counts(results[which])} in '
              f'{time.monotonic() - started:.0f} s', flush=True)
    excluded = {} if filters else exclusions()
    for test, reason in excluded.items():
        print(f'excluded {test}: {reason}')
    failed = sorted(test for test, status in results['stock'].items()
                    if status not in PASSED | SKIPPED)
    for test in failed:
        print(f"fails on Nova's own driver too: {test}")
    found = differences(results['stock'], results['fastmig'], excluded)
    for line in found:
        print(line)
    if not results['stock']:
        print('no test was run')
        return 1
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
