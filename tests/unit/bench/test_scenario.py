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

import collections
import dataclasses
import json
import string

import ddt
from hypothesis import given
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig.bench import catalog
from nova_fastmig.bench import scenario

Control, Driver, Option, Qemu = (
    scenario.Control, scenario.Driver, scenario.Option, scenario.Qemu)


def comparison(contenders=('nova', 'virsh', 'qemu'),
               workloads=('idle', 'l2fwd'), rounds=3, migrations=2):
    return catalog.comparison('test', contenders, workloads, rounds,
                              migrations)


def results(runs=()):
    return scenario.Results(comparison(), {'cores': 2, 'qemu': '10.0.13'},
                            'nova-fastmig bench run', tuple(runs),
                            {'rdma': 'no device'})


@ddt.ddt
class TestNames(base.BaseTestCase):

    @ddt.data(
        (dict(control=Control.QEMU, downtime_limit_ms=10),
         'qemu@distribution~10ms'),
        (dict(control=Control.NOVA, driver=Driver.STOCK,
              options=(Option.POST_COPY,), schedule='nova-500-10-75'),
         'nova-stock@distribution+post-copy~nova-500-10-75'),
        (dict(control=Control.QEMU, qemu=Qemu.PATCHED, downtime_limit_ms=9),
         'qemu@patched[none]~9ms'),
        (dict(control=Control.QEMU, qemu=Qemu.PATCHED, features=('all',),
              downtime_limit_ms=9), 'qemu@patched~9ms'),
        (dict(control=Control.QEMU, qemu=Qemu.PATCHED,
              features=('x-tcp-nodelay',), downtime_limit_ms=9),
         'qemu@patched[x-tcp-nodelay]~9ms'))
    @ddt.unpack
    def test_contender(self, fields, name):
        self.assertEqual(name, scenario.Contender(**fields).name)

    @ddt.data(
        dict(control=Control.NOVA, downtime_limit_ms=10),
        dict(control=Control.QEMU, driver=Driver.STOCK, downtime_limit_ms=1),
        dict(control=Control.QEMU, features=('all',), downtime_limit_ms=10),
        dict(control=Control.QEMU),
        dict(control=Control.QEMU, schedule='kubevirt', downtime_limit_ms=1))
    def test_contradictions(self, fields):
        self.assertRaises(ValueError, scenario.Contender, **fields)

    def test_names_that_files_of_results_have(self):
        """What is newer is in a name only where it is used."""
        self.assertEqual(
            'l2fwd-kernel-256MiB-1vcpu-64MiB-32MiBps-1000pps',
            catalog.WORKLOADS['l2fwd'].name)
        self.assertEqual(
            'idle-hugepages-kernel-256MiB-1vcpu-64MiB-2048KiBpages-0MiBps-'
            '1000pps', catalog.WORKLOADS['idle-hugepages'].name)
        self.assertEqual(
            'block-io-kernel-256MiB-1vcpu-64MiB-0MiBps-1000pps-disk8MiBps',
            catalog.WORKLOADS['block-io'].name)

    @ddt.data((dict(page_kib=64), 'page_kib 64: must be one of 4, 2048'),
              (dict(page_kib=2048, memory_mib=255), 'whole pages'))
    @ddt.unpack
    def test_impossible_pages(self, fields, message):
        error = self.assertRaises(ValueError, scenario.Guest, **fields)
        self.assertIn(message, str(error))

    def test_pages(self):
        self.assertEqual(0, scenario.Guest().hugepages)
        self.assertEqual(512, scenario.Guest(
            memory_mib=1024, page_kib=2048).hugepages)

    @ddt.data((256, 256), (512, 512), (1024, 576), (16384, 1536))
    @ddt.unpack
    def test_what_a_guest_touches(self, memory_mib, touched_mib):
        self.assertEqual(touched_mib, scenario.Guest(
            memory_mib=memory_mib).touched_mib)

    def test_a_guest_with_dpdk_has_no_disk(self):
        guest = catalog.WORKLOADS['l2fwd-dpdk'].guest
        error = self.assertRaises(ValueError, scenario.Workload, 'block-io',
                                  guest, disk_mib_per_s=8)
        self.assertIn('disk_mib_per_s 8', str(error))

    @ddt.data(0, 129)
    def test_a_working_set_that_the_guest_cannot_have(self, mib):
        error = self.assertRaises(ValueError, scenario.Workload, 'dirty',
                                  scenario.Guest(), working_set_mib=mib)
        self.assertIn(f'working_set_mib {mib}: must be from 1 to 128',
                      str(error))

    def test_how_much_is_rewritten(self):
        for mib, rewritten_mib in ((None, 64), (16, 16)):
            self.assertEqual(rewritten_mib, scenario.Workload(
                'dirty', scenario.Guest(), working_set_mib=mib).rewritten_mib)

    def test_every_field_is_in_the_name(self):
        contender = catalog.CONTENDERS['fastmig-patched']
        workload = catalog.WORKLOADS['l2fwd']
        for each, changes in (
                (contender, dict(features=('x-tcp-nodelay',),
                                 options=(Option.PARALLEL,),
                                 downtime_limit_ms=9)),
                (workload, dict(kind='dirty', packets_per_s=1,
                                rewrite_mib_per_s=1, working_set_mib=1,
                                disk_mib_per_s=1)),
                (workload.guest, dict(memory_mib=1, vcpus=9,
                                      data_plane=scenario.DataPlane.DPDK,
                                      working_set_mib=1, page_kib=2048))):
            self.assertEqual({field.name for field in
                              dataclasses.fields(each)} - {
                'control', 'driver', 'qemu', 'schedule', 'guest'},
                set(changes))
            for field, value in changes.items():
                changed = dataclasses.replace(each, **{field: value})
                self.assertNotEqual(each.name, changed.name, field)


@ddt.ddt
class TestOrder(base.BaseTestCase):

    def test_every_scenario_has_its_migrations(self):
        made = comparison()
        keys = [key for turn in made.turns() for key, _ in turn.migrations]
        self.assertEqual(len(keys), len(set(keys)))
        self.assertEqual(
            {each.name: made.rounds * made.migrations
             for each in made.scenarios},
            dict(collections.Counter(key.scenario for key in keys)))

    @ddt.data(('nova', 'virsh', 'qemu'), ('nova', 'virsh', 'qemu', 'ovirt'))
    def test_every_contender_is_first_once(self, names):
        rounds = collections.defaultdict(list)
        for turn in comparison(names, rounds=len(names)).turns():
            rounds[turn.round].append(catalog.title(turn.contender))
        self.assertEqual(list(names), [turns[0] for turns in rounds.values()])
        # the second round goes backwards
        self.assertEqual([names[1], names[0], *names[:1:-1]], rounds[1])

    def test_contenders_take_turns(self):
        turns = [turn.contender for turn in comparison().turns()]
        for first in range(0, len(turns), 3):
            self.assertEqual(3, len(set(turns[first:first + 3])))

    @ddt.data((('idle', 'l2fwd'), 1, 2), (('idle', 'l2fwd'), 2, 1),
              (('idle',), 2, 1), (('idle', 'l2fwd', 'dirty-8'), 2, 1))
    @ddt.unpack
    def test_every_workload_goes_both_ways(self, workloads, rounds,
                                           migrations):
        """Hosts alternate: the first there, the second back, ..."""
        sources = collections.defaultdict(set)
        for turn in comparison(('virsh',), workloads, rounds,
                               migrations).turns():
            sides = turn.sides(('a', 'b'))
            for number, (_, workload) in enumerate(turn.migrations):
                sources[catalog.title(workload)].add(sides[number % 2])
        self.assertEqual(dict.fromkeys(workloads, {'a', 'b'}), sources)

    @given(st.sets(st.integers(0, 35)))
    def test_an_interrupted_comparison_goes_on(self, done):
        made = comparison()
        keys = [key for turn in made.turns() for key, _ in turn.migrations]
        done = {keys[number] for number in done}
        left = [key for turn in made.remaining(done)
                for key, _ in turn.migrations]
        self.assertEqual([key for key in keys if key not in done], left)

    def test_nothing_is_left(self):
        made = comparison()
        keys = [key for turn in made.turns() for key, _ in turn.migrations]
        self.assertEqual([], list(made.remaining(keys)))


_text = st.text(string.printable, max_size=9)
_number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
_figures = st.builds(
    scenario.Figures, blackout_ms=_number, packets_lost=st.none() |
    st.integers(), steps_ms=st.dictionaries(_text, st.floats(0, 9)))
_run = st.builds(
    scenario.Run, key=st.builds(scenario.Key, st.integers(), _text,
                                st.integers()),
    time=_text, source=_text, figures=_figures,
    failures=st.lists(_text).map(tuple),
    probe_stall_ms=st.floats(0, 9),
    limits_ms=st.lists(st.tuples(st.floats(0, 9), st.integers())).map(tuple))


@ddt.ddt
class TestJson(base.BaseTestCase):

    @given(st.lists(_run, max_size=3))
    def test_round_trip(self, runs):
        made = results(runs)
        self.assertEqual(made, scenario.Results.from_json(
            json.loads(json.dumps(made.to_json()))))

    @ddt.data(None, [], {}, {'version': 2}, 'text')
    def test_another_version(self, data):
        self.assertRaises(scenario.BadResults, scenario.Results.from_json,
                          data)

    @ddt.data(
        ('results.comparison.scenarios[0].contender.control',
         ['comparison', 'scenarios', 0, 'contender', 'control'], 'xen'),
        ('unknown colour',
         ['comparison', 'scenarios', 0, 'workload', 'colour'], 'red'),
        ('what Nova has', ['comparison', 'scenarios', 0, 'contender',
                           'driver'], None))
    @ddt.unpack
    def test_what_is_wrong_is_named(self, message, path, value):
        data = json.loads(json.dumps(results().to_json()))
        place = data
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        error = self.assertRaises(scenario.BadResults,
                                  scenario.Results.from_json, data)
        self.assertIn(message, str(error))

    def test_total_is_of_the_innermost_layer(self):
        figures = scenario.Figures(total_libvirt_ms=5, total_nova_ms=9)
        self.assertEqual(5, figures.total_ms)
        self.assertEqual(3, dataclasses.replace(
            figures, total_qemu_ms=3).total_ms)
        self.assertIsNone(scenario.Figures().total_ms)
