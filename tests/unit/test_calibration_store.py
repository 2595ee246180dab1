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


import pathlib
import time
from unittest import mock

import fixtures
from oslo_config import cfg
from oslotest import base

from nova_fastmig import calibration
from nova_fastmig import calibration_store
from nova_fastmig import durable
from nova_fastmig import model

PAIR = calibration.Pair('compute1', 'compute2')
VERSIONS = calibration.Versions('old', 'new')


class TestStore(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'fastmig',
            'calibration.json')

    def store(self, max_age_s=3600,
              retry_s=3600) -> calibration_store.Store:
        return calibration_store.Store(str(self.path), max_age_s, retry_s)

    def fill(self, store, count=5) -> None:
        for _ in range(count):
            store.add(PAIR, VERSIONS, 6.5, 1e9)

    def test_it_survives_a_restart(self):
        self.fill(self.store())
        again = self.store()
        self.assertEqual(model.Estimate(6.5, 1e9, 5, 6.5),
                         again.estimate(PAIR, VERSIONS))
        self.assertEqual({PAIR: VERSIONS}, again.pairs())

    def test_it_forgets_with_time(self):
        store = self.store(max_age_s=-1)
        self.fill(store)
        self.assertIsNone(store.estimate(PAIR, VERSIONS))

    def test_it_forgets_with_versions(self):
        store = self.store()
        self.fill(store)
        newer = calibration.Versions('old', 'newer')
        self.assertIsNone(store.estimate(PAIR, newer))
        store.add(PAIR, newer, 1, 1e9)
        self.assertIsNone(self.store().estimate(PAIR, VERSIONS))

    def test_nothing_there(self):
        with mock.patch.object(calibration_store.LOG, 'warning') as warning:
            self.assertEqual({}, self.store().pairs())
        warning.assert_not_called()

    def test_a_file_that_is_none_of_its_own(self):
        self.path.parent.mkdir()
        for content in (b'', b'{', b'\xff', b'[]', b'[' * 10 ** 5,
                        b'{"format": 9}'):
            self.path.write_bytes(content)
            with mock.patch.object(calibration_store.LOG,
                                   'warning') as warning:
                store = self.store()
            warning.assert_called_once()
            self.fill(store)
            self.assertIsNotNone(self.store().estimate(PAIR, VERSIONS))

    def test_a_file_that_cannot_be_read(self):
        self.path.mkdir(parents=True)
        with mock.patch.object(calibration_store.LOG, 'warning') as warning:
            self.store()
        self.assertIn('Cannot read', warning.call_args.args[0])

    def test_a_disk_that_is_full(self):
        store = self.store()
        self.fill(store, 4)
        with mock.patch.object(durable, 'replace', side_effect=OSError), \
                mock.patch.object(calibration_store.LOG,
                                  'warning') as warning:
            self.fill(store, 1)
        warning.assert_called_once()
        self.assertIsNotNone(store.estimate(PAIR, VERSIONS))
        self.assertIsNone(self.store().estimate(PAIR, VERSIONS))
        self.fill(store, 1)
        self.assertEqual(6, self.store().estimate(PAIR, VERSIONS).count)

    def test_the_options(self):
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.StrOpt(
            'state_path', default=str(self.path.parent.parent))])
        conf([], default_config_files=[], default_config_dirs=[])
        store = calibration_store.Store.configured(conf)
        self.fill(store)
        self.assertTrue(self.path.exists())
        self.assertEqual((86400, 3600), (store._max_age_s, store._retry_s))
        conf.set_override('calibration_retry_s', 0, group='fastmig')
        self.assertEqual(float('inf'), calibration_store.Store.configured(
            conf)._retry_s)

    def test_one_trial_at_a_time(self):
        store = self.store(retry_s=0.2)
        self.assertFalse(store.begin_trial(PAIR, VERSIONS))
        self.fill(store)
        self.assertFalse(store.is_trial_due(PAIR, VERSIONS))
        self.assertFalse(store.begin_trial(PAIR, VERSIONS))
        while not store.is_trial_due(PAIR, VERSIONS):
            time.sleep(0.01)
        before_s = time.time()
        self.assertEqual([True, False], [
            store.begin_trial(PAIR, VERSIONS) for _ in range(2)])
        # It is not forgotten with a restart.
        self.assertGreaterEqual(
            self.store(retry_s=0.2).next_trial_s(PAIR), before_s + 0.2)
