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

import ddt
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import schedules
from nova_fastmig import model


@ddt.ddt
class TestCatalog(base.BaseTestCase):

    @ddt.data(catalog.CONTENDERS, catalog.WORKLOADS)
    def test_names_are_unique(self, known):
        self.assertEqual(len(known), len({each.name
                                          for each in known.values()}))

    def test_every_schedule_exists(self):
        for each in catalog.CONTENDERS.values():
            self.assertGreater(schedules.rule(
                each.schedule, each.downtime_limit_ms).interval_ms, 0)

    @ddt.data(*catalog.PRESETS)
    def test_presets(self, name):
        made = catalog.preset(name)
        preset = catalog.PRESETS[name]
        self.assertEqual(len(preset.contenders) * len(preset.workloads),
                         len(made.scenarios))

    def test_the_presets_have_everything(self):
        self.assertEqual(
            set(catalog.CONTENDERS.values()),
            {each.contender for name in ('full', 'features', 'total')
             for each in catalog.preset(name).scenarios})

    def test_all_features_but_one(self):
        left_out = [
            set(model.QemuFeature) - set(each.contender.features)
            for each in catalog.preset('total').scenarios
            if len(each.contender.features) > 1]
        self.assertEqual([{feature} for feature in model.QemuFeature
                          for _ in ('idle', 'l2fwd')], left_out)

    def test_the_cost_of_all_sizes(self):
        self.assertEqual(
            [256, 1024, 2048, 4096, 8192, 16384],
            sorted({each.workload.guest.memory_mib
                    for each in catalog.preset('cost').scenarios
                    if each.workload.kind == 'idle'}))

    def test_each_feature_alone(self):
        self.assertEqual(
            [(), (), *((feature,) for feature in model.QemuFeature),
             ('all',)],
            [each.contender.features
             for each in catalog.preset('features').scenarios])

    def test_features_exist(self):
        for each in catalog.CONTENDERS.values():
            self.assertEqual(set(), set(each.features) - {
                'all', *model.QemuFeature})

    @ddt.data((['novva'], ['idle'], "contender 'novva'"),
              (['nova'], ['busy'], "workload 'busy'"))
    @ddt.unpack
    def test_unknown(self, contenders, workloads, message):
        error = self.assertRaises(
            catalog.UnknownName, catalog.comparison, 'test', contenders,
            workloads, 1, 1)
        self.assertIn(message, str(error))
        self.assertIn('must be one of', str(error))

    def test_the_seeds_size_needs_a_host_for_it(self):
        small, seed = catalog.Size(), catalog.SEED_SIZE
        for cores, memory_mib, guests, wanted in (
                (10, 20480, 2, seed), (9, 20480, 2, small),
                (10, 20479, 2, small), (6, 12288, 1, seed),
                (2, 65536, 1, small)):
            self.assertEqual(wanted, catalog.size_for(cores, memory_mib,
                                                      guests))

    def test_titles_with_another_size(self):
        for name in catalog.WORKLOADS:
            made, = catalog.comparison(
                'made', ['virsh'], [name], 1, 1,
                catalog.Size(3072, 2)).scenarios
            self.assertEqual(name, catalog.title(made.workload))
            self.assertEqual(2, made.workload.guest.vcpus)

    def test_titles(self):
        for known in catalog.CONTENDERS, catalog.WORKLOADS:
            for name, each in known.items():
                self.assertEqual(name, catalog.title(each))
