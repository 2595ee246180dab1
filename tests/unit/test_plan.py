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
import hypothesis
from oslotest import base

from nova_fastmig import exception
from nova_fastmig import model
from nova_fastmig import plan
from tests.unit import values

POST_COPY = values.sla(on_miss=model.OnMiss.POST_COPY)


def make(sla=None, transport=None, host=None,
         destination_defines_arrivals=True) -> model.Plan:
    return plan.make(sla or values.sla(), host or values.host(),
                     transport or values.transport(),
                     destination_defines_arrivals)


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
        self.assertNotIn(
            'PERSIST_DEST',
            make(destination_defines_arrivals=False).clear_flags)

    @hypothesis.given(values.slas)
    def test_no_flag_is_both_set_and_cleared(self, sla):
        made = make(
            sla, values.transport(post_copy_permitted=True),
            values.host(qemu_version=(10, 1, 0), patched_qemu=True))
        self.assertEqual(frozenset(), made.set_flags & made.clear_flags)


@ddt.ddt
class TestRefusals(base.BaseTestCase):

    def test_nothing_in_the_way(self):
        self.assertEqual([], plan.refusals(
            values.sla(), values.host(), values.transport()))

    def test_patched_qemu(self):
        sla = values.sla(qemu=model.QemuChoice.PATCHED)
        self.assertEqual([], plan.refusals(
            sla, values.host(patched_qemu=True), values.transport()))
        self.assertEqual(
            ['the flavor asks for fastmig:qemu = patched, but the QEMU '
             '10.0.13 of host compute1 is not patched'],
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
        self.assertEqual(4, len(error.reasons))
        self.assertEqual('; '.join(error.reasons), str(error))
