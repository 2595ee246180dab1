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

"""What the cases of ``faults`` show. Pure."""

from collections.abc import Iterable

RUNNING = {'ACTIVE'}
# What would be broken does not exist in that phase.
NOTHING_THERE = {
    ('pre-migration', 'destination QEMU killed'),
    ('switched over', 'source QEMU killed'),
    ('post step', 'source QEMU killed'),
}


def problems(found: dict) -> list[str]:
    """What must not be; empty if all is well."""
    wrong = []
    if len(found['runs_on']) > 1:
        wrong.append('the guest runs twice')
    if found['runs_on'] and found['runs_on'] != [found['host']]:
        wrong.append(f'it runs on {found["runs_on"][0]}, Nova says '
                     f'{found["host"]}')
    if not found['runs_on'] and found['status'] in RUNNING:
        wrong.append(f'it does not run, Nova says {found["status"]}')
    if found['runs_on'] and found['status'] not in RUNNING:
        wrong.append(f'it runs, Nova says {found["status"]}')
    if found['allocations'] != [found['host']]:
        wrong.append(f'allocations on {found["allocations"]}, not on '
                     f'{found["host"]}')
    if found['migration_allocations']:
        wrong.append(f'the migration keeps an allocation on '
                     f'{found["migration_allocations"]}')
    strangers = set(found['domains']) - {found['host']}
    if strangers:
        wrong.append(f'a domain is left on {", ".join(sorted(strangers))}')
    if found['task']:
        wrong.append(f'the task {found["task"]} does not end')
    return wrong


def outcome(case: dict) -> str:
    """A few words for a cell of the table."""
    if 'error' in case:
        return 'not measured'
    found = case['state']
    where = {'compute1': 'source', 'compute2': 'destination'}
    words = (f'runs at the {where[found["runs_on"][0]]}'
             if found['runs_on'] else f'does not run ({found["status"]})')
    words += f'; migration {found["migration"]}'
    if case['problems']:
        words += '. **' + '; '.join(case['problems']) + '**'
    return words


def table(cases: list[dict], faults: Iterable[str],
          phases: Iterable[str]) -> str:
    """The cases as a list-table of reStructuredText.

    :param faults: the rows
    :param phases: the columns
    """
    phases = list(phases)
    by_key = {(case['fault'], case['phase']): case for case in cases}
    lines = ['.. list-table::', '   :header-rows: 1', '   :stub-columns: 1',
             '', '   * - Fault']
    lines += [f'     - {phase}' for phase in phases]
    for fault in faults:
        lines.append(f'   * - {fault}')
        for phase in phases:
            case = by_key.get((fault, phase))
            lines.append('     - ' + (
                'there is none' if (phase, fault) in NOTHING_THERE
                else outcome(case) if case else 'not run'))
    return '\n'.join(lines) + '\n'
