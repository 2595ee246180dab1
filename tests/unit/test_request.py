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

import string

import ddt
import hypothesis
from hypothesis import strategies as st
from oslo_utils import strutils
from oslotest import base

from nova_fastmig import exception
from nova_fastmig import model
from nova_fastmig import request
from tests.unit import values

INTEGERS = ('fastmig:max_downtime_ms', 'fastmig:max_total_ms',
            'fastmig:parallel_connections')


def to_extra_specs(sla: model.Sla) -> dict[str, str]:
    return {
        'fastmig:enabled': 'true',
        'fastmig:max_downtime_ms': str(sla.max_downtime_ms),
        'fastmig:max_total_ms': str(sla.max_total_ms),
        'fastmig:on_miss': sla.on_miss.value,
        'fastmig:parallel_connections': str(sla.parallel_connections),
        'fastmig:qemu': sla.qemu.value}


@ddt.ddt
class TestTag(base.BaseTestCase):

    def test_a_flavor_without_extra_specs_is_not_tagged(self):
        self.assertIsNone(request.parse({}, values.settings()))

    def test_other_namespaces_do_not_tag(self):
        self.assertIsNone(request.parse(
            {'hw:cpu_policy': 'dedicated', 'enabled': 'true',
             'fastmigration:enabled': 'true'}, values.settings()))

    @ddt.data('true', 'True', ' yes ', '1', 'on', 't', 'y')
    def test_true(self, word):
        self.assertEqual(
            values.sla(),
            request.parse({'fastmig:enabled': word}, values.settings()))

    @ddt.data('false', 'FALSE', 'no', '0', 'off', 'f', 'n')
    def test_false(self, word):
        self.assertIsNone(
            request.parse({'fastmig:enabled': word}, values.settings()))

    @ddt.data('', 'maybe', '2', 'none')
    def test_neither(self, word):
        error = self.assertRaises(
            exception.InvalidExtraSpec, request.parse,
            {'fastmig:enabled': word}, values.settings())
        self.assertEqual(
            f"flavor extra spec 'fastmig:enabled' = '{word}' is not valid; "
            f"allowed: true or false", str(error))

    def test_other_keys_of_an_untagged_flavor_are_not_looked_at(self):
        for tag in ({}, {'fastmig:enabled': 'false'}):
            self.assertIsNone(request.parse(
                {'fastmig:max_downtime_ms': 'soon', 'fastmig:nonsense': '1',
                 **tag}, values.settings()))

    @hypothesis.given(st.text(string.ascii_letters + string.digits + ' '))
    def test_agrees_with_the_booleans_of_nova_api(self, word):
        """nova-api reads booleans with oslo.utils' strict parser."""
        try:
            expected = strutils.bool_from_string(word, strict=True)
        except ValueError:
            self.assertRaises(
                exception.InvalidExtraSpec, request.parse_value,
                'fastmig:enabled', word, values.settings())
        else:
            self.assertIs(expected, request.parse_value(
                'fastmig:enabled', word, values.settings()))


@ddt.ddt
class TestValues(base.BaseTestCase):

    @hypothesis.given(values.slas)
    def test_what_a_flavor_says_is_what_comes_out(self, sla):
        self.assertEqual(
            sla, request.parse(to_extra_specs(sla), values.settings()))

    @hypothesis.given(values.slas, st.sets(st.sampled_from(
        sorted(set(request.KEYS) - {request.ENABLED}))))
    def test_defaults_fill_what_a_flavor_leaves_out(self, sla, left_out):
        """Half from the flavor, half from the defaults: the same Sla."""
        extra_specs = {key: value
                       for key, value in to_extra_specs(sla).items()
                       if key not in left_out}
        self.assertEqual(sla, request.parse(
            extra_specs, values.settings(default=sla)))

    @ddt.data(*INTEGERS)
    def test_bounds_are_inclusive(self, key):
        settings = values.settings(
            max_downtime_ms=model.Range(5, 9),
            max_total_ms=model.Range(5, 9),
            parallel_connections=model.Range(5, 9))
        for number in (5, 9):
            self.assertEqual(
                number, request.parse_value(key, str(number), settings))
        for number in (4, 10):
            error = self.assertRaises(
                exception.InvalidExtraSpec, request.parse_value, key,
                str(number), settings)
            self.assertEqual(
                f"flavor extra spec '{key}' = '{number}' is not valid; "
                f"allowed: a whole number from 5 to 9", str(error))

    @ddt.data('', ' 10', '10 ', '1_0', '+10', '-10', '10.0', '1e1', '0x10',
              '٣', '²', 'ten', '9' * 5000)
    def test_only_plain_digits_are_a_number(self, text):
        for key in INTEGERS:
            error = self.assertRaises(
                exception.InvalidExtraSpec, request.parse_value, key, text,
                values.settings())
            self.assertEqual((key, text), (error.key, error.value))

    @ddt.data(('fastmig:on_miss', 'abort, proceed, post-copy'),
              ('fastmig:qemu', 'any, patched'))
    @ddt.unpack
    def test_a_choice_that_is_none(self, key, allowed):
        for text in ('', 'Abort', 'ANY', 'postcopy', 'patched '):
            error = self.assertRaises(
                exception.InvalidExtraSpec, request.parse_value, key, text,
                values.settings())
            self.assertEqual(
                f"flavor extra spec '{key}' = '{text}' is not valid; "
                f"allowed: {allowed}", str(error))

    def test_an_unknown_key_of_a_tagged_flavor(self):
        error = self.assertRaises(
            exception.InvalidExtraSpec, request.parse,
            {'fastmig:enabled': 'true', 'fastmig:max_downtime': '5'},
            values.settings())
        self.assertEqual(
            "flavor extra spec 'fastmig:max_downtime' = '5' is not valid; "
            'allowed: one of the keys fastmig:enabled, '
            'fastmig:max_downtime_ms, fastmig:max_total_ms, fastmig:on_miss, '
            'fastmig:parallel_connections, fastmig:qemu', str(error))

    @hypothesis.given(st.dictionaries(
        st.sampled_from(sorted(request.KEYS)) |
        st.text().map('fastmig:{}'.format), st.text(max_size=20)))
    def test_any_text_gives_an_sla_within_bounds_or_an_error(self, specs):
        settings = values.settings()
        try:
            sla = request.parse(
                {**specs, 'fastmig:enabled': 'true'}, settings)
        except exception.InvalidExtraSpec as error:
            self.assertEqual(specs[error.key], error.value)
        else:
            self.assertIn(sla.max_downtime_ms, settings.max_downtime_ms)
            self.assertIn(sla.max_total_ms, settings.max_total_ms)
            self.assertIn(sla.parallel_connections,
                          settings.parallel_connections)
