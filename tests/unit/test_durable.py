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

import os
import pathlib
import stat
from unittest import mock

import fixtures
from oslotest import base

from nova_fastmig import durable


class TestReplace(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'new', 'file')

    def test_new_and_again(self):
        for content in (b'one', b'', b'three'):
            durable.replace(self.path, content)
            self.assertEqual(content, self.path.read_bytes())
        self.assertEqual(0o640, stat.S_IMODE(self.path.stat().st_mode))
        self.assertEqual(['file'], os.listdir(self.path.parent))

    def test_an_error_at_any_point_leaves_the_old_content(self):
        durable.replace(self.path, b'old')
        for name in ('fsync', 'fchmod', 'replace'):
            with mock.patch.object(os, name, side_effect=OSError('full')):
                self.assertRaises(OSError, durable.replace, self.path, b'new')
            self.assertEqual(b'old', self.path.read_bytes())
            self.assertEqual(['file'], os.listdir(self.path.parent))

    def test_content_before_name_before_directory(self):
        calls = mock.Mock()
        for name in ('fsync', 'replace'):
            patch = mock.patch.object(
                os, name, getattr(calls, name))
            patch.start()
            self.addCleanup(patch.stop)
        durable.replace(self.path, b'new')
        self.assertEqual(['fsync', 'replace', 'fsync'],
                         [call[0] for call in calls.mock_calls])
