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

import threading
from unittest import mock

import fixtures
from oslotest import base

from nova_fastmig import progress

STATS = {'memory_total': 1000, 'memory_processed': 800,
         'memory_remaining': 250}


class TestProgress(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.instance = mock.Mock()
        self.migration = mock.Mock()
        self.save = self.useFixture(fixtures.MockPatchObject(
            progress.nova_migration, 'save_stats')).mock

    def make(self, interval_s=0):
        return progress.Progress(self.instance, self.migration, interval_s)

    def wait(self, made):
        made._thread.join(10)

    def test_it_is_saved(self):
        made = self.make()
        made.show(STATS)
        self.wait(made)
        self.save.assert_called_once_with(
            self.instance.obj_clone(), self.migration.obj_clone(), mock.ANY,
            25)
        info = self.save.call_args.args[2]
        self.assertEqual((1000, 800, 250), (
            info.memory_total, info.memory_processed, info.memory_remaining))

    def test_nothing_is_known_of_the_memory(self):
        made = self.make()
        made.show({'type': 2})
        self.wait(made)
        self.assertEqual(100, self.save.call_args.args[3])

    def test_there_is_no_job(self):
        self.make().show({})
        self.instance.obj_clone.assert_not_called()

    def test_not_too_often(self):
        made = self.make(interval_s=60)
        made.show(STATS)
        self.save.assert_not_called()

    def test_one_that_hangs_holds_nobody_up(self):
        made, answer = self.make(), threading.Event()
        self.addCleanup(answer.set)
        self.save.side_effect = lambda *args: answer.wait(60)
        made.show(STATS)
        made.show(STATS)
        answer.set()
        self.wait(made)
        self.save.assert_called_once()

    def test_one_that_fails_harms_nobody(self):
        made = self.make()
        self.save.side_effect = ValueError
        made.show(STATS)
        self.wait(made)
        made.show(STATS)
        self.wait(made)
        self.assertEqual(2, self.save.call_count)
