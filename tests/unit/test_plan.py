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

import itertools

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import exception
from nova_fastmig import model
from nova_fastmig import plan
from tests.unit import values

POST_COPY = values.sla(on_miss=model.OnMiss.POST_COPY)


DESTINATION = values.host(host='compute2')


def make(sla=None, transport=None, host=None, destination=DESTINATION,
         wanted=frozenset(model.QemuFeature)) -> model.Plan:
    return plan.make(sla or values.sla(), host or values.host(), destination,
                     transport or values.transport(), wanted)


@ddt.ddt
class TestMake(base.BaseTestCase):

    def test_the_limits_are_those_of_the_flavor(self):
        sla = values.sla(max_downtime_ms=3, max_total_ms=777)
        made = make(sla)
        self.assertEqual(3, made.downtime_limit_ms)
        self.assertEqual(777, made.total_limit_ms)
        self.assertEqual(values.host(), made.source)
        self.assertIs(sla, made.sla)

    def test_an_ordinary_flavor(self):
        made = make()
        self.assertEqual(frozenset(), made.set_flags)
        self.assertEqual(
            {'PERSIST_DEST', 'AUTO_CONVERGE', 'COMPRESSED', 'PARALLEL',
             'POSTCOPY'}, made.clear_flags)

    @ddt.data((1, 'PARALLEL', False), (2, 'PARALLEL', True),
              (16, 'PARALLEL', True))
    @ddt.unpack
    def test_parallel_connections(self, count, flag, is_set):
        made = make(values.sla(parallel_connections=count))
        self.assertEqual(count, made.parallel_connections)
        self.assertEqual(is_set, flag in made.set_flags)
        self.assertEqual(not is_set, flag in made.clear_flags)

    def test_what_the_operator_configured_stays(self):
        """TLS and block migration, for example, are Nova's to decide."""
        made = make()
        self.assertEqual(
            set(), (made.set_flags | made.clear_flags) &
            {'TLS', 'NON_SHARED_INC', 'LIVE', 'PEER2PEER',
             'UNDEFINE_SOURCE'})

    def test_post_copy_only_for_a_flavor_that_asks_for_it(self):
        permitted = values.transport(post_copy_permitted=True)
        self.assertNotIn('POSTCOPY', make(POST_COPY, permitted).clear_flags)
        for on_miss in (model.OnMiss.ABORT, model.OnMiss.PROCEED):
            self.assertIn('POSTCOPY', make(
                values.sla(on_miss=on_miss), permitted).clear_flags)

    def test_someone_must_make_the_guest_persistent(self):
        """libvirt, where the destination's driver would not."""
        self.assertNotIn('PERSIST_DEST', make(destination=None).clear_flags)

    @hypothesis.given(values.slas)
    def test_no_flag_is_both_set_and_cleared(self, sla):
        made = make(
            sla, values.transport(post_copy_permitted=True),
            *[values.patched_host(qemu_version=(10, 1, 0))] * 2)
        self.assertEqual(frozenset(), made.set_flags & made.clear_flags)


@ddt.ddt
class TestRefusals(base.BaseTestCase):

    def test_nothing_in_the_way(self):
        self.assertEqual([], plan.refusals(
            values.sla(), values.host(), values.transport()))

    def test_patched_qemu(self):
        sla = values.sla(qemu=model.QemuChoice.PATCHED)
        self.assertEqual([], plan.refusals(
            sla, values.patched_host(), values.transport()))
        self.assertEqual(
            ['the flavor asks for fastmig:qemu = patched, but the QEMU '
             '10.0.13 of host compute1 (/usr/bin/qemu-system-x86_64) is not '
             'patched'],
            plan.refusals(sla, values.host(), values.transport()))

    def test_tunnelled(self):
        self.assertEqual(
            ['[libvirt]live_migration_tunnelled is set on host compute1; a '
             'tunnelled stream cannot meet a downtime limit'],
            plan.refusals(values.sla(), values.host(),
                          values.transport(tunnelled=True)))

    def test_post_copy_not_permitted(self):
        self.assertEqual(
            ['the flavor asks for fastmig:on_miss = post-copy, but '
             '[libvirt]live_migration_permit_post_copy is off on host '
             'compute1'],
            plan.refusals(POST_COPY, values.host(), values.transport()))

    @ddt.data(((10, 0, 13), True), ((9, 2, 0), True), ((10, 1, 0), False),
              ((11, 0, 0), False))
    @ddt.unpack
    def test_post_copy_with_parallel_connections(self, version, refused):
        reasons = plan.refusals(
            values.sla(on_miss=model.OnMiss.POST_COPY,
                       parallel_connections=4),
            values.host(qemu_version=version),
            values.transport(post_copy_permitted=True))
        if not refused:
            self.assertEqual([], reasons)
            return
        text = '.'.join(map(str, version))
        self.assertEqual(
            ['the flavor asks for fastmig:on_miss = post-copy with '
             'fastmig:parallel_connections = 4, which needs QEMU 10.1.0; '
             f'host compute1 has {text}'], reasons)

    def test_post_copy_with_a_single_stream_needs_no_new_qemu(self):
        self.assertEqual([], plan.refusals(
            POST_COPY, values.host(qemu_version=(7, 2, 0)),
            values.transport(post_copy_permitted=True)))

    def test_every_reason_is_given_at_once(self):
        error = self.assertRaises(
            exception.PlanRefused, make,
            values.sla(qemu=model.QemuChoice.PATCHED,
                       on_miss=model.OnMiss.POST_COPY,
                       parallel_connections=2),
            values.transport(tunnelled=True))
        self.assertEqual(5, len(error.reasons))
        self.assertEqual('; '.join(error.reasons), str(error))


@ddt.ddt
class TestChooseFeatures(base.BaseTestCase):

    def choose(self, source, destination, wanted=frozenset(
            model.QemuFeature)) -> model.FeaturePlan:
        return plan.choose_features(source, destination, wanted)

    def test_every_feature_has_a_place(self):
        self.assertEqual(set(model.QemuFeature), set(plan._NEEDS))
        self.assertEqual(
            {each for each, needs in plan._NEEDS.items()
             if needs is plan._Needs.BOTH}, model.NEGOTIATED_FEATURES)

    def test_both_patched(self):
        chosen = self.choose(values.patched_host(), values.patched_host())
        self.assertEqual((), chosen.unused)
        self.assertEqual(set(model.QemuFeature), chosen.used)
        # Some do nothing on the other side.
        self.assertEqual({'x-single-memory-transaction'},
                         set(model.QemuFeature) - chosen.source)
        self.assertEqual(
            {'x-drained-switchover', 'x-direct-switchover',
             'x-overlap-device-state'},
            set(model.QemuFeature) - chosen.destination)

    def test_only_the_source_is_patched(self):
        chosen = self.choose(values.patched_host(), DESTINATION)
        self.assertEqual(frozenset(), chosen.destination)
        self.assertEqual(
            {'x-tcp-nodelay', 'x-drained-switchover', 'x-direct-switchover',
             'x-overlap-device-state', 'x-defer-switchover-work'},
            chosen.source)
        reasons = dict(chosen.unused)
        self.assertEqual(set(model.QemuFeature) - chosen.source,
                         set(reasons))
        self.assertEqual({'the QEMU of compute2 does not have it'},
                         set(reasons.values()))

    def test_only_the_destination_is_patched(self):
        chosen = self.choose(values.host(),
                             values.patched_host(host='compute2'))
        self.assertEqual(frozenset(), chosen.source)
        self.assertEqual(
            {'x-tcp-nodelay', 'x-single-memory-transaction',
             'x-defer-switchover-work'}, chosen.destination)
        self.assertEqual({'the QEMU of compute1 does not have it'},
                         set(dict(chosen.unused).values()))

    def test_neither(self):
        reasons = dict(self.choose(values.host(), DESTINATION).unused)
        self.assertEqual(
            'the QEMU of compute1 and compute2 does not have it',
            reasons['x-early-resume'])
        self.assertEqual('the QEMU of compute1 does not have it',
                         reasons['x-drained-switchover'])
        self.assertEqual('the QEMU of compute2 does not have it',
                         reasons['x-single-memory-transaction'])

    def test_a_destination_with_another_driver(self):
        chosen = self.choose(values.patched_host(), None)
        self.assertEqual(frozenset(), chosen.destination)
        self.assertEqual(
            'the QEMU of the destination, which runs another driver, does '
            'not have it', dict(chosen.unused)['x-early-resume'])

    def test_what_the_operator_leaves_out(self):
        chosen = self.choose(
            values.patched_host(), values.patched_host(),
            {model.QemuFeature.TCP_NODELAY})
        self.assertEqual({'x-tcp-nodelay'}, chosen.source)
        self.assertEqual({'x-tcp-nodelay'}, chosen.destination)
        self.assertEqual({'not in [fastmig]qemu_features'},
                         set(dict(chosen.unused).values()))

    feature_sets = st.frozensets(st.sampled_from(model.QemuFeature))

    @hypothesis.given(feature_sets, feature_sets, feature_sets)
    def test_properties(self, source, destination, wanted):
        chosen = self.choose(
            values.patched_host(qemu_features=source),
            values.patched_host(qemu_features=destination), wanted)
        self.assertLessEqual(chosen.source, source & wanted)
        self.assertLessEqual(chosen.destination, destination & wanted)
        # Each is used, or there is a reason why not.
        self.assertEqual(set(model.QemuFeature),
                         chosen.used | set(dict(chosen.unused)))
        self.assertEqual(frozenset(),
                         chosen.used & set(dict(chosen.unused)))
        # What needs both is never on at one side alone.
        for feature in model.NEGOTIATED_FEATURES:
            self.assertEqual(feature in chosen.source,
                             feature in chosen.destination)


@ddt.ddt
class TestDestinationEmulator(base.BaseTestCase):

    @ddt.data(
        (values.host(), values.patched_host(emulator='/there'), '/there'),
        (values.patched_host(), values.host(emulator='/stock'), '/stock'),
        (values.patched_host(), None, ''),
        (values.host(emulator='/here'), None, '/here'),
        (values.host(), values.host(emulator=''), ''))
    @ddt.unpack
    def test_path(self, source, destination, expected):
        self.assertEqual(expected, make(
            host=source, destination=destination).destination_emulator)

    def test_the_flavor_wants_it_at_the_destination_too(self):
        sla = values.sla(qemu=model.QemuChoice.PATCHED)
        for destination, words in (
                (DESTINATION, 'of host compute2'),
                (None, 'the destination runs another driver')):
            error = self.assertRaises(
                exception.PlanRefused, make, sla,
                host=values.patched_host(), destination=destination)
            self.assertIn(words, str(error))


@ddt.ddt
class TestDowntimeLimit(base.BaseTestCase):

    def limit(self, max_downtime_ms, fixed_ms):
        return plan.downtime_limit_ms(
            max_downtime_ms, values.estimate(fixed_ms=fixed_ms))

    def hopeless(self, max_downtime_ms, least_fixed_ms):
        return plan.why_hopeless(
            max_downtime_ms, 'compute1', 'compute2',
            values.estimate(least_fixed_ms=least_fixed_ms))

    def test_nothing_is_known(self):
        self.assertEqual(10, plan.downtime_limit_ms(10, None))
        self.assertEqual('', plan.why_hopeless(
            10, 'compute1', 'compute2', None))

    @ddt.data((10, 0, 10), (10, 6.0, 4), (10, 6.1, 3), (10, 9.0, 1),
              (10, 9.5, 1), (10, 41.52, 1))
    @ddt.unpack
    def test_what_is_left(self, max_downtime_ms, fixed_ms, left_ms):
        self.assertEqual(left_ms, self.limit(max_downtime_ms, fixed_ms))

    @ddt.data((10, 9.1), (10, 10), (10, 41.52), (1, 0.5))
    @ddt.unpack
    def test_nothing_is_left(self, max_downtime_ms, fixed_ms):
        self.assertEqual(
            f'the flavor allows a downtime of {max_downtime_ms} ms, but '
            f'from host compute1 to host compute2 {fixed_ms:.1f} ms do '
            'not depend on memory (learned from 12 migrations)',
            self.hopeless(max_downtime_ms, fixed_ms))

    @hypothesis.given(st.integers(1, 1000), st.floats(0, 2000))
    def test_both_parts_fit_the_sla_if_there_is_hope(self, max_downtime_ms,
                                                     fixed_ms):
        left_ms = self.limit(max_downtime_ms, fixed_ms)
        self.assertGreaterEqual(left_ms, 1)
        self.assertLessEqual(left_ms, max_downtime_ms)
        if not self.hopeless(max_downtime_ms, fixed_ms):
            self.assertLessEqual(left_ms + fixed_ms, max_downtime_ms + 1e-9)


@ddt.ddt
class TestObstacles(base.BaseTestCase):

    DEVICES = ('the PCI device 0000:81:00.1', 'a vDPA port')
    PCI = 'the guest has the PCI device 0000:81:00.1 of host compute1'

    def test_what_is_found(self):
        self.assertEqual([], plan.obstacles('compute1', (), False))
        found = plan.obstacles('compute1', self.DEVICES, True)
        self.assertEqual(['passthrough', 'passthrough', 'block-migration'],
                         [obstacle for obstacle, _ in found])
        self.assertEqual(self.PCI, found[0][1])

    @ddt.data(
        ((), 3), (('passthrough',), 1), (('block-migration',), 2),
        (('passthrough', 'block-migration'), 0))
    @ddt.unpack
    def test_what_is_not_permitted(self, permitted, count):
        found = plan.obstacles('compute1', self.DEVICES, True)
        reasons = plan.not_permitted(found, set(
            map(model.Obstacle, permitted)))
        self.assertEqual(count, len(reasons))
        self.assertTrue(all('[fastmig]permitted_obstacles' in each
                            for each in reasons))

    def make(self, *permitted: model.Obstacle) -> model.Plan:
        return plan.make(
            values.sla(), values.host(), DESTINATION, values.transport(), (),
            found=plan.obstacles('compute1', self.DEVICES[:1], False),
            permitted=permitted)

    def test_a_plan(self):
        self.assertEqual((f'no limit is certain, because {self.PCI}',),
                         self.make(model.Obstacle.PASSTHROUGH).concessions)
        error = self.assertRaises(exception.PlanRefused, self.make)
        self.assertIn(self.PCI, str(error))
        self.assertEqual((), make().concessions)


@ddt.ddt
class TestSwitchoverLimit(base.BaseTestCase):

    @ddt.data((10, 0, 2000), (1, 0, 2000), (100, 0, 2000), (101, 0, 2020),
              (1000, 0, 20000), (10, 500, 500), (1000, 500, 1000),
              (1000, 60000, 60000), (10, 86400000, 2000000))
    @ddt.unpack
    def test_limit(self, max_downtime_ms, configured_ms, limit_ms):
        made = plan.make(
            values.sla(max_downtime_ms=max_downtime_ms), values.host(),
            DESTINATION, values.transport(), (),
            switchover_timeout_ms=configured_ms)
        self.assertEqual(limit_ms, made.switchover_limit_ms)


class TestCalibratedPlan(base.BaseTestCase):

    EXPECTED = values.estimate(fixed_ms=6.2, least_fixed_ms=6.1)

    def make(self, max_downtime_ms=10, destination=DESTINATION,
             is_trial_due=False, **changes):
        return plan.make(
            values.sla(max_downtime_ms=max_downtime_ms), values.host(),
            destination, values.transport(**changes), (), self.EXPECTED,
            is_trial_due=is_trial_due)

    def test_the_limit_is_what_the_fixed_part_leaves(self):
        made = self.make()
        self.assertEqual((3, self.EXPECTED),
                         (made.downtime_limit_ms, made.expected))

    def test_nothing_is_left(self):
        error = self.assertRaises(exception.PlanRefused, self.make, 7,
                                  tunnelled=True)
        self.assertEqual(2, len(error.reasons))
        self.assertIn(
            'from host compute1 to host compute2 6.1 ms do not depend on '
            'memory', error.reasons[1])

    def test_a_trial(self):
        made = self.make(7, is_trial_due=True)
        self.assertEqual((1, True), (made.downtime_limit_ms, made.is_trial))
        concession, = made.concessions
        self.assertIn('a trial, because the flavor allows a downtime of 7 ms',
                      concession)

    def test_with_hope_it_is_no_trial(self):
        made = self.make(8, is_trial_due=True)
        self.assertEqual((1, False, ()), (
            made.downtime_limit_ms, made.is_trial, made.concessions))

    def test_of_another_driver_nothing_is_known(self):
        made = self.make(destination=None)
        self.assertEqual((10, None), (made.downtime_limit_ms, made.expected))


@ddt.ddt
class TestSwitchoverBandwidth(base.BaseTestCase):

    LEARNED = values.estimate(bandwidth_bytes_per_s=900.7 * (1 << 20))

    def bandwidth(self, configured_mib_s=0, expected=LEARNED,
                  reserved_mib_s=None, destination=DESTINATION, **host):
        return plan.make(
            values.sla(), values.host(**host), destination,
            values.transport(), (), expected, reserved_mib_s,
            switchover_bandwidth_mib_s=configured_mib_s
        ).switchover_bandwidth_mib_s

    def test_what_was_learned(self):
        self.assertEqual(900, self.bandwidth())
        self.assertEqual(1, self.bandwidth(
            expected=values.estimate(bandwidth_bytes_per_s=5.0)))

    def test_nothing_was_learned(self):
        self.assertIsNone(self.bandwidth(expected=None))
        self.assertIsNone(self.bandwidth(destination=None))

    def test_the_operator_knows_better(self):
        self.assertEqual(1200, self.bandwidth(1200))
        self.assertEqual(1200, self.bandwidth(1200, reserved_mib_s=500))
        self.assertEqual(1200, self.bandwidth(1200, None))

    @ddt.data((500, 500), (1000, 900))
    @ddt.unpack
    def test_never_more_than_is_reserved(self, reserved_mib_s, expected):
        self.assertEqual(expected,
                         self.bandwidth(reserved_mib_s=reserved_mib_s))

    @ddt.data(({'libvirt_version': (11, 0, 9)}, None),
              ({'libvirt_version': (11, 1, 0)}, 900),
              ({'qemu_version': (8, 1, 99)}, None),
              ({'qemu_version': (8, 2, 0)}, 900))
    @ddt.unpack
    def test_versions(self, host, expected):
        self.assertEqual(expected, self.bandwidth(**host))
        self.assertEqual(expected and 7, self.bandwidth(7, **host))


@ddt.ddt
class TestTheTwoEnds(base.BaseTestCase):

    def reasons(self, source, destination, **transport) -> list[str]:
        try:
            plan.make(values.sla(), source, destination,
                      values.transport(**transport), ())
        except exception.PlanRefused as error:
            return list(error.reasons)
        return []

    @ddt.data((True, True), (False, False), (None, True), (False, None))
    @ddt.unpack
    def test_they_agree_on_tls(self, here, there):
        self.assertEqual([], self.reasons(
            values.host(native_tls=here), values.host(native_tls=there)))

    @ddt.data((True, 'compute1', 'compute2'), (False, 'compute2', 'compute1'))
    @ddt.unpack
    def test_they_do_not(self, at_source, on, off):
        self.assertEqual(
            [f'[libvirt]live_migration_with_native_tls is on on host {on} '
             f'and off on host {off}'],
            self.reasons(values.host(native_tls=at_source), values.host(
                host='compute2', native_tls=not at_source)))

    OLDER = ['the guest runs on QEMU 10.2.0 of host compute1, but host '
             'compute2 has 10.0.13 (/qemu)']

    @ddt.data(
        (values.patched_host, values.patched_host, OLDER),
        (values.patched_host, values.host, OLDER),
        (values.host, values.patched_host, OLDER),
        # Nova has compared these.
        (values.host, values.host, []))
    @ddt.unpack
    def test_an_older_qemu_there(self, source, destination, expected):
        source = source(qemu_version=(10, 2, 0))
        destination = destination(host='compute2', emulator='/qemu')
        self.assertEqual(expected, self.reasons(source, destination))
        self.assertEqual([], self.reasons(source, destination,
                                          older_qemu_permitted=True))

    @ddt.data((10, 0, 12), (10, 0, 13), (10, 2, 0))
    def test_one_that_is_not_older(self, version):
        """A machine type is the same in all of a minor release."""
        self.assertEqual([], self.reasons(
            values.patched_host(),
            values.patched_host(host='compute2', qemu_version=version)))

    @ddt.data((True, (7, 2, 9), True), (True, (8, 0, 0), False),
              (False, (7, 2, 9), False))
    @ddt.unpack
    def test_an_emulator_that_loses_memory(self, emulates, version, refused):
        reasons = plan.refusals(
            values.sla(), values.host(emulates=emulates,
                                      qemu_version=version),
            values.transport())
        self.assertEqual(refused, bool(reasons))
        for reason in reasons:
            self.assertIn('host compute1 emulates its guests with QEMU 7.2.9',
                          reason)


sizes = st.sampled_from([2048, 1 << 20])
pages = st.integers(0, 20)


@ddt.ddt
class TestHugepages(base.BaseTestCase):

    @ddt.data(
        ([], {}),
        ([(2048, 256)], {2048: [256]}),
        ([(2048, 256)], {2048: [0, 300]}),
        ([(2048, 100), (2048, 300)], {2048: [300, 100]}),
        ([(2048, 100), (1 << 20, 2)], {2048: [100, 0], 1 << 20: [0, 2]}))
    @ddt.unpack
    def test_enough(self, cells, free):
        self.assertEqual([], plan.lacking_pages('compute2', cells, free))

    @ddt.data(
        ([(2048, 256)], {2048: [255]}, 256, 2048, 255),
        ([(2048, 256)], {2048: [128, 128]}, 256, 2048, 128),
        ([(2048, 256)], {}, 256, 2048, 0),
        ([(2048, 256), (2048, 100)], {2048: [400]}, 100, 2048, 0),
        ([(2048, 1), (1 << 20, 2)], {2048: [9], 1 << 20: [1]}, 2, 1 << 20, 1))
    @ddt.unpack
    def test_too_few(self, cells, free, needed, size_kib, left):
        self.assertEqual(
            [f'the guest needs {needed} free hugepages of {size_kib} KiB on a '
             f'NUMA node of host compute2, but {left} are free'],
            plan.lacking_pages('compute2', cells, free))

    @hypothesis.given(
        st.lists(st.tuples(st.just(2048), pages), max_size=4),
        st.lists(pages, max_size=4))
    def test_as_if_every_placement_had_been_tried(self, cells, nodes):
        possible = any(
            all(need <= left for (_, need), left in zip(
                cells, order, strict=True))
            for order in itertools.permutations(nodes, len(cells)))
        # A cell without pages needs no node.
        hypothesis.assume(all(need for _, need in cells))
        self.assertEqual(possible, not plan.lacking_pages(
            'compute2', cells, {2048: nodes}))

    @hypothesis.given(st.lists(st.tuples(sizes, pages), max_size=4),
                      st.dictionaries(sizes, st.lists(pages, max_size=4)))
    def test_more_free_pages_never_hurt(self, cells, free):
        if not plan.lacking_pages('compute2', cells, free):
            self.assertEqual([], plan.lacking_pages('compute2', cells, {
                size: [left + 1 for left in nodes]
                for size, nodes in free.items()}))
