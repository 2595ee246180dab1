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

import dataclasses
import inspect

import ddt
from oslotest import base

from nova_fastmig import model

NUMBERS = (int, float, int | None, float | None)


@ddt.ddt
class TestRange(base.BaseTestCase):

    @ddt.data((0, False), (1, True), (5, True), (9, True), (10, False))
    @ddt.unpack
    def test_inclusive(self, value, inside):
        self.assertEqual(inside, value in model.Range(1, 9))

    def test_text(self):
        self.assertEqual('1 to 9', str(model.Range(1, 9)))


class TestConventions(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.classes = [
            each for _, each in inspect.getmembers(model, inspect.isclass)
            if dataclasses.is_dataclass(each)]

    def test_values_cannot_change(self):
        for each in self.classes:
            self.assertTrue(each.__dataclass_params__.frozen, each)

    def test_every_number_names_its_unit(self):
        countless = {'lowest', 'highest', 'parallel_connections', 'count'}
        for each in self.classes:
            for field in dataclasses.fields(each):
                if field.type in NUMBERS and field.name not in countless:
                    self.assertRegex(
                        field.name, '_(ms|us|bytes|bytes_per_s|mib_s)$', each)
