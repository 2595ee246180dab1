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

"""Run Nova's own driver tests on FastMigDriver.

Every test that passes on Nova's own driver must pass. What does not is run on
that, too: a test that fails there as well (the wheel lacks some of the data
files that tests read) is no difference.

    python -m tests.nova_driver.compare [stestr's filters]
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing as ty

import subunit
import testtools

HERE = pathlib.Path(__file__).parent
EXCLUSIONS = HERE / 'exclusions.txt'
PASSED = {'success', 'xfail'}
SKIPPED = {'skip'}


class Result(ty.NamedTuple):
    """How a test ended.

    :ivar status: one of testtools' final statuses
    :ivar traceback: of a test that failed
    """

    status: str
    traceback: str = ''


def run(which: str, *options: str) -> dict[str, Result]:
    """Result by test id.

    :param which: the directory with the test module
    :param options: of ``stestr run``
    """
    with (tempfile.TemporaryDirectory() as repository,
          tempfile.TemporaryFile() as stream):
        stestr = [sys.executable, '-m', 'stestr', '--repo-url', repository,
                  '--test-path', str(HERE / which),
                  '--top-dir', str(HERE.parents[1])]
        subprocess.run([*stestr, 'init'], check=True)
        started = time.monotonic()
        # Ends with 1 if any test fails, which is judged below.
        subprocess.run([*stestr, 'run', '--subunit', *options], stdout=stream,
                       env={**os.environ, 'PYTHON': sys.executable})
        stream.seek(0)
        results = read(stream)
    print(f'{which:8} {counts(results)} in '
          f'{time.monotonic() - started:.0f} s', flush=True)
    return results


def run_again(which: str, tests: list[str]) -> dict[str, Result]:
    with tempfile.NamedTemporaryFile('w') as listed:
        listed.write('\n'.join(tests))
        listed.flush()
        return run(which, '--serial', '--load-list', listed.name)


def read(stream) -> dict[str, Result]:
    results = {}

    def take(test):
        if test['status'] != 'exists' and test['id'] != 'output':
            traceback = test['details'].get('traceback')
            results[test['id']] = Result(
                test['status'], traceback.as_text() if traceback else '')

    case = subunit.ByteStreamToStreamResult(stream, non_subunit_name='output')
    to_dict = testtools.StreamToDict(take)
    to_dict.startTestRun()
    case.run(to_dict)
    to_dict.stopTestRun()
    return results


def counts(results: dict[str, Result]) -> str:
    found = collections.Counter(
        'passed' if result.status in PASSED else
        'skipped' if result.status in SKIPPED else 'failed'
        for result in results.values())
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


def not_passed(results: dict[str, Result]) -> list[str]:
    return sorted(test for test, result in results.items()
                  if result.status not in PASSED)


def differing(stock: dict[str, Result],
              fastmig: dict[str, Result]) -> set[str]:
    """Those that have another result on Nova's own driver."""
    return {test for test, result in stock.items()
            if result.status != fastmig[test].status}


def main() -> int:
    filters = sys.argv[1:]
    excluded = {} if filters else exclusions()
    fastmig = run('fastmig', *filters)
    if not fastmig:
        print('no test was run')
        return 1
    suspects = not_passed(fastmig)
    stock = run_again('stock', suspects) if suspects else {}
    if stock.keys() != set(suspects):
        print(f'these do not run on both: {stock.keys() ^ set(suspects)}')
        return 1

    # A few of Nova's tests fail once in a while, on either driver.
    again = sorted(differing(stock, fastmig) - excluded.keys())
    if again:
        print(f'{len(again)} tests again, whose results differ')
        fastmig |= run_again('fastmig', again)

    for test in not_passed(stock):
        if stock[test].status not in SKIPPED:
            print(f"fails on Nova's own driver too: {test}")
    found = differing(stock, fastmig)
    for test, reason in excluded.items():
        print(f'excluded {test}: {reason}' if test in found else
              f'excluded, but does not differ: {test}')
    for test in sorted(found - excluded.keys()):
        print(f'{test}: {stock[test].status} on LibvirtDriver, '
              f'{fastmig[test].status} on FastMigDriver\n'
              f'{stock[test].traceback}{fastmig[test].traceback}')
    print(f'{counts(fastmig)}, {len(excluded)} of them excluded')
    return 1 if found != excluded.keys() else 0


if __name__ == '__main__':
    sys.exit(main())
