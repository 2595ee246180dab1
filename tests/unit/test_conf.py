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
import subprocess
import sys

import ddt
import fixtures
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_fastmig import conf
from nova_fastmig import exception
from nova_fastmig import model
from tests.unit import values

ROOT = pathlib.Path(__file__).parents[2]
ETC = ROOT / 'etc' / 'nova-fastmig'


@ddt.ddt
class TestSlaSettings(base.BaseTestCase):

    def read(self, *arguments, **overrides) -> cfg.ConfigOpts:
        made = cfg.ConfigOpts()
        # oslo.config keeps overrides with the group, which is shared; the
        # fixture takes them back.
        fixture = self.useFixture(config_fixture.Config(made))
        conf.register_opts(made)
        made(arguments, default_config_files=[], default_config_dirs=[])
        fixture.config(group='fastmig', **overrides)
        return made

    def test_defaults(self):
        self.assertEqual(values.settings(), conf.sla_settings(self.read()))

    def test_every_option_arrives(self):
        self.assertEqual(
            model.SlaSettings(
                default=model.Sla(
                    max_downtime_ms=20, max_total_ms=3000,
                    on_miss=model.OnMiss.PROCEED, parallel_connections=4,
                    qemu=model.QemuChoice.PATCHED),
                max_downtime_ms=model.Range(2, 30),
                max_total_ms=model.Range(200, 4000),
                parallel_connections=model.Range(1, 8)),
            conf.sla_settings(self.read(
                default_max_downtime_ms=20, default_max_total_ms=3000,
                default_on_miss='proceed', default_parallel_connections=4,
                default_qemu='patched', lowest_max_downtime_ms=2,
                highest_max_downtime_ms=30, lowest_max_total_ms=200,
                highest_max_total_ms=4000, highest_parallel_connections=8)))

    @ddt.data(
        ({'default_max_downtime_ms': 1001}, 'default_max_downtime_ms = 1001',
         '1 to 1000'),
        ({'default_max_total_ms': 99}, 'default_max_total_ms = 99',
         '100 to 600000'),
        ({'default_parallel_connections': 17},
         'default_parallel_connections = 17', '1 to 16'),
        ({'lowest_max_downtime_ms': 50, 'highest_max_downtime_ms': 40},
         'highest_max_downtime_ms = 40',
         'at least lowest_max_downtime_ms = 50'),
    )
    @ddt.unpack
    def test_contradictions(self, overrides, found, allowed):
        error = self.assertRaises(
            exception.InvalidSetting, conf.sla_settings,
            self.read(**overrides))
        self.assertEqual(
            f'[fastmig] {found} is not valid; allowed: {allowed}', str(error))

    @ddt.data('0', '-1', 'ten', '10.5')
    def test_oslo_config_refuses(self, text):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).join('conf'))
        path.write_text(f'[fastmig]\ndefault_max_downtime_ms = {text}\n')
        self.assertRaises(
            cfg.ConfigFileValueError, conf.sla_settings,
            self.read('--config-file', str(path)))

    def test_qemu_features(self):
        self.assertEqual(frozenset(model.QemuFeature),
                         conf.qemu_features(self.read()))
        self.assertEqual(
            {model.QemuFeature.EARLY_RESUME, model.QemuFeature.TCP_NODELAY},
            conf.qemu_features(self.read(
                qemu_features=['x-early-resume', 'x-tcp-nodelay'])))
        self.assertEqual(frozenset(),
                         conf.qemu_features(self.read(qemu_features=[])))

    @ddt.data('x-measure-eager-cleanup', 'early-resume', 'xbzrle', '')
    def test_an_unknown_feature(self, name):
        error = self.assertRaises(
            exception.InvalidSetting, conf.qemu_features,
            self.read(qemu_features=['x-early-resume', name]))
        self.assertIn(f"[fastmig] qemu_features = x-early-resume,{name} is "
                      f"not valid; allowed: no '{name}', any of "
                      "x-tcp-nodelay, x-drained-switchover", str(error))

    def test_features_change_without_a_restart(self):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).join('conf'))
        path.write_text('[fastmig]\nqemu_features = x-early-resume\n')
        made = self.read('--config-file', str(path))
        conf.qemu_features(made)
        path.write_text('[fastmig]\nqemu_features = x-tcp-nodelay\n')
        made.mutate_config_files()
        self.assertEqual({'x-tcp-nodelay'}, conf.qemu_features(made))

    def test_registering_twice_is_fine(self):
        made = self.read()
        conf.register_opts(made)
        self.assertEqual(500, made.fastmig.poll_interval_ms)


class TestTransportSettings(base.BaseTestCase):

    def test_reads_novas_own_options(self):
        made = cfg.ConfigOpts()
        made.register_opts(
            [cfg.BoolOpt('live_migration_tunnelled', default=False),
             cfg.BoolOpt('live_migration_permit_post_copy', default=False)],
            group='libvirt')
        made.register_opt(cfg.BoolOpt('skip_hypervisor_version_check_on_lm',
                                      default=False), group='workarounds')
        made([], default_config_files=[], default_config_dirs=[])
        self.assertEqual(values.transport(), conf.transport_settings(made))
        made.set_override('live_migration_tunnelled', True, 'libvirt')
        self.assertEqual(values.transport(tunnelled=True),
                         conf.transport_settings(made))
        made.set_override('live_migration_permit_post_copy', True, 'libvirt')
        self.assertEqual(
            values.transport(tunnelled=True, post_copy_permitted=True),
            conf.transport_settings(made))
        made.set_override('skip_hypervisor_version_check_on_lm', True,
                          'workarounds')
        self.assertTrue(conf.transport_settings(made).older_qemu_permitted)


class TestSample(base.BaseTestCase):

    def test_the_sample_is_what_the_generator_writes(self):
        written = self.useFixture(fixtures.TempDir()).join('sample')
        subprocess.run(
            [pathlib.Path(sys.executable).parent / 'oslo-config-generator',
             '--config-file', ETC / 'nova-fastmig-config-generator.conf',
             '--output-file', written],
            check=True, capture_output=True, cwd=ROOT)
        self.assertEqual(
            pathlib.Path(written).read_text(),
            (ETC / 'nova-fastmig.conf.sample').read_text(),
            'run "tox -e genconfig" to write the sample anew')

    def test_every_option_is_explained(self):
        for group, options in conf.list_opts():
            self.assertTrue(group.help)
            for option in options:
                self.assertGreater(len(option.help or ''), 40, option.name)
