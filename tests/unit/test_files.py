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

"""Rules for every file of the project."""

import pathlib
import re
import subprocess

from oslotest import base

ROOT = pathlib.Path(__file__).parents[2]
# Directories of one developer's or one CI's machine.
MACHINE_PATH = re.compile(
    rb'(?<![\w.$}-])/(?:work|Users|home/(?!\$)\w+|builds?|workspace)/')


def files() -> list[pathlib.Path]:
    listed = subprocess.run(
        ['git', '-c', f'safe.directory={ROOT}', 'ls-files', '-z'],
        cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listed.decode().split('\0') if name
            if (path := ROOT / name).is_file()]


class TestFiles(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        if not (ROOT / '.git').exists():
            self.skipTest('not a git checkout')

    def test_no_file_mentions_a_path_of_this_machine(self):
        checkout = bytes(ROOT) + b'/'
        found = [
            f'{path.relative_to(ROOT)}:{number}: {line.decode()}'
            for path in files() if path != pathlib.Path(__file__)
            for number, line in enumerate(path.read_bytes().split(b'\n'), 1)
            if MACHINE_PATH.search(line) or checkout in line]
        self.assertEqual([], found)

    def test_every_python_file_has_its_licence(self):
        self.assertEqual([], [
            str(path.relative_to(ROOT)) for path in files()
            if path.suffix == '.py' and path.stat().st_size
            and b'Licensed under the Apache License' not in path.read_bytes()
        ])

    def test_the_pattern(self):
        for line in (b'cd /work/nova', b'"/home/jane/x"', b'=/Users/x/y'):
            self.assertTrue(MACHINE_PATH.search(line), line)
        for line in (b'lab/work/x', b'/var/lib/nova', b'${root}/work/',
                     b'/home/$USER/x', b'https://example.org/networks/'):
            self.assertFalse(MACHINE_PATH.search(line), line)
