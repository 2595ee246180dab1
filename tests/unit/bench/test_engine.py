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

import contextlib
import dataclasses
import json
import pathlib

import fixtures
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import scenario
from tests.unit.bench import made


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


class FakeRig:
    """Boots nothing; what went through it is in ``migrated``."""

    def __init__(self, obstacles=(), no_boot=(), breaks_at=(), fails_at=(),
                 interrupted_at=None):
        self.obstacles = obstacles
        self.no_boot = no_boot
        self.breaks_at = breaks_at
        self.fails_at = fails_at
        self.interrupted_at = interrupted_at
        self.migrated: list[scenario.Key] = []
        self.booted = 0
        self.running = 0

    def obstacle(self, turn):
        title = catalog.title(turn.contender)
        return f'no {title} here' if title in self.obstacles else None

    @contextlib.contextmanager
    def guest(self, turn):
        if catalog.title(turn.contender) in self.no_boot:
            raise engine.RigError('the guest does not answer')
        self.booted += 1
        self.running += 1
        try:
            yield self
        finally:
            self.running -= 1

    def migrate(self, key, workload):
        if len(self.migrated) == self.interrupted_at:
            raise Interrupted
        if len(self.migrated) in self.breaks_at:
            self.breaks_at = ()
            raise engine.RigError('it broke')
        failures = (('wrong memory',) if len(self.migrated) in self.fails_at
                    else ())
        self.migrated.append(key)
        return scenario.Run(key, 'then', 'compute1', scenario.Figures(
            blackout_ms=len(self.migrated)), failures)


class TestEngine(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        directory = self.useFixture(fixtures.TempDir()).path
        self.path = pathlib.Path(directory) / 'bench.json'
        self.comparison = made.results().comparison
        turns = list(self.comparison.turns())
        self.turns = len(turns)
        self.keys = [key for turn in turns for key, _ in turn.migrations]

    def run_it(self, rig, comparison=None, machine=None):
        results = engine.begin(
            self.path, comparison or self.comparison,
            machine or {'cores': 2, 'sizes': (1, 2)}, 'bench run')
        return engine.run(
            results, lambda turn: rig,
            lambda made: engine.save(self.path, made), lambda: 'now')

    def test_everything_is_run_in_order_and_kept(self):
        rig = FakeRig()
        results = self.run_it(rig)
        self.assertEqual(self.keys, rig.migrated)
        self.assertEqual(0, rig.running)
        # one guest for a turn, not for a migration
        self.assertEqual(self.turns, rig.booted)
        self.assertEqual(results.runs, engine.load(self.path).runs)

    def test_an_interrupted_run_goes_on(self):
        rig = FakeRig(interrupted_at=5)
        self.assertRaises(Interrupted, self.run_it, rig)
        self.assertEqual(0, rig.running)
        self.assertEqual(self.keys[:5], [
            run.key for run in engine.load(self.path).runs])
        rig = FakeRig()
        results = self.run_it(rig)
        self.assertEqual(self.keys[5:], rig.migrated)
        self.assertEqual(self.keys, [run.key for run in results.runs])
        rig = FakeRig()
        self.run_it(rig)
        self.assertEqual([], rig.migrated)

    def test_what_cannot_run_is_named(self):
        results = self.run_it(FakeRig(obstacles=('virsh',)))
        self.assertEqual(['no virsh here'], list(results.not_run.values()))
        self.assertEqual(16, len(results.runs))
        self.assertFalse(any(run.failures for run in results.runs))

    def test_a_guest_that_does_not_boot_fails_its_turn_only(self):
        results = self.run_it(FakeRig(no_boot=('nova',)))
        failed = [run for run in results.runs if run.failures]
        self.assertEqual({('the guest does not answer',)},
                         {run.failures for run in failed})
        self.assertEqual(8, len(failed))
        self.assertEqual(set(self.keys), results.done)

    def test_a_guest_that_breaks_is_replaced(self):
        rig = FakeRig(breaks_at=(1,))
        results = self.run_it(rig)
        failed = [run for run in results.runs if run.failures]
        self.assertEqual(self.keys[1:2], [run.key for run in failed])
        self.assertEqual(self.keys, [run.key for run in results.runs])
        self.assertEqual(1 + self.turns, rig.booted)

    def test_a_guest_that_something_went_wrong_with_is_replaced(self):
        rig = FakeRig(fails_at=(1,))
        results = self.run_it(rig)
        self.assertEqual(self.keys[1:2], [run.key for run in results.runs
                                          if run.failures])
        self.assertEqual(self.keys, rig.migrated)
        self.assertEqual(1 + self.turns, rig.booted)

    def test_what_could_not_run_once(self):
        self.run_it(FakeRig(obstacles=('virsh',)))
        results = self.run_it(FakeRig())
        self.assertEqual({}, results.not_run)
        self.assertEqual(set(self.keys), results.done)

    def test_another_comparison_is_not_mixed_in(self):
        self.run_it(FakeRig())
        other = dataclasses.replace(self.comparison, rounds=9)
        error = self.assertRaises(engine.CannotGoOn, self.run_it, FakeRig(),
                                  other)
        self.assertIn('of another comparison', str(error))

    def test_another_machine_is_not_mixed_in(self):
        self.run_it(FakeRig())
        error = self.assertRaises(engine.CannotGoOn, self.run_it, FakeRig(),
                                  None, {'cores': 4, 'sizes': (1, 2)})
        self.assertIn('cores was 2 and is 4', str(error))

    def test_a_file_of_something_else(self):
        for content in ('{', json.dumps({'version': 1})):
            self.path.write_text(content)
            error = self.assertRaises(scenario.BadResults, engine.load,
                                      self.path)
            self.assertIn(str(self.path), str(error))
