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

"""Carries a comparison out, one migration after the other.

The file of results is whole after each migration, and a comparison that was
interrupted goes on with what is missing. Who migrates is a *rig*, see
``Rig``; what the lab has is in ``lab``.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import pathlib
import typing as ty

from nova_fastmig.bench import scenario
from nova_fastmig import durable
from nova_fastmig import exception


class RigError(exception.FastMigError):
    """A guest could not be booted, or something else went wrong around it."""


class CannotGoOn(exception.FastMigError):
    """The file of results is of another comparison."""


class Guest(ty.Protocol):
    """A guest that runs, in its turn."""

    def migrate(self, key: scenario.Key,
                workload: scenario.Workload) -> scenario.Run:
        """Migrate it to the other host.

        A migration that went wrong is a run with failures.

        :raises: RigError if nothing more can be done with the guest
        """


class Rig(ty.Protocol):
    """What migrates guests under one ``scenario.Control``."""

    def obstacle(self, turn: scenario.Turn) -> str | None:
        """Why this cannot be run here; None if it can."""

    def guest(self, turn: scenario.Turn
              ) -> contextlib.AbstractContextManager[Guest]:
        """Boot the guest of a turn; it is gone at the end of the block.

        :raises: RigError
        """


def load(path: pathlib.Path) -> scenario.Results:
    """Read a file of results.

    :raises: scenario.BadResults, OSError
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise scenario.BadResults(f'{path}: {error}') from error
    try:
        return scenario.Results.from_json(data)
    except scenario.BadResults as error:
        raise scenario.BadResults(f'{path}: {error}') from error


def save(path: pathlib.Path, results: scenario.Results) -> None:
    """Write a file of results; it is whole whatever happens meanwhile."""
    durable.replace(path, json.dumps(
        results.to_json(), indent=1, allow_nan=False).encode() + b'\n')


def begin(path: pathlib.Path, comparison: scenario.Comparison,
          machine: Mapping[str, ty.Any], command: str) -> scenario.Results:
    """The results so far: those in the file, or none.

    :raises: CannotGoOn if the file is of another comparison or machine
    """
    if not path.exists():
        return scenario.Results(comparison, machine, command)
    found = load(path)
    if found.comparison != comparison:
        raise CannotGoOn(
            f'{path} is of another comparison, {found.comparison.name!r} '
            f'(`{found.command}`): name another file, or remove it')
    # as JSON has it
    if found.machine != json.loads(json.dumps(machine)):
        differences = sorted(
            f'{name} was {found.machine.get(name)!r} and is '
            f'{machine.get(name)!r}' for name in found.machine | machine
            if found.machine.get(name) != machine.get(name))
        raise CannotGoOn(f'{path} is of another machine: '
                         f'{"; ".join(differences)}')
    return found


def _turn(rig: Rig, turn: scenario.Turn, now: Callable[[], str]
          ) -> Iterator[scenario.Run]:
    """Each migration of a turn.

    A guest that a migration failed with is replaced by a new one for the rest;
    if none can be booted, all that are left have failed.
    """
    left = list(turn.migrations)
    while left:
        booted = False
        try:
            with rig.guest(dataclasses.replace(
                    turn, migrations=tuple(left))) as guest:
                booted = True
                failed = False
                while left and not failed:
                    run = guest.migrate(*left[0])
                    yield run
                    del left[0]
                    failed = bool(run.failures)
        except RigError as error:
            # at the end of the block, all may be done
            lost = left[:1] if booted else left[:]
            for key, _ in lost:
                yield scenario.Run(key, now(), '', scenario.Figures(),
                                   (str(error),))
            del left[:len(lost)]


def run(results: scenario.Results,
        rig_for: Callable[[scenario.Turn], Rig],
        on_results: Callable[[scenario.Results], None],
        now: Callable[[], str]) -> scenario.Results:
    """Run what is missing.

    :param rig_for: who migrates in a turn
    :param on_results: gets the results after each migration
    :param now: the time as ISO 8601
    :returns: the results with everything
    """
    for turn in results.comparison.remaining(results.done):
        rig = rig_for(turn)
        obstacle = rig.obstacle(turn)
        # of an earlier run of this, it may have been another
        not_run = {name: why for name, why in results.not_run.items()
                   if name != turn.name}
        if obstacle is not None:
            results = dataclasses.replace(
                results, not_run=not_run | {turn.name: obstacle})
            on_results(results)
            continue
        results = dataclasses.replace(results, not_run=not_run)
        for made in _turn(rig, turn, now):
            results = dataclasses.replace(results, runs=(*results.runs, made))
            on_results(results)
    return results
