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

import io
import os
import pathlib
import threading
from unittest import mock

import fixtures
import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
from oslotest import base

from nova_fastmig import journal


class JournalTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'new' / 'fastmig'
        self.path = self.directory / 'journal.jsonl'

    def journal(self, max_bytes=10 ** 6, backup_count=3) -> journal.Journal:
        return journal.Journal(self.path, max_bytes, backup_count)

    def numbers(self) -> list[int]:
        return [record['n'] for record in self.journal()]

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))


class TestAppend(JournalTestCase):

    def test_what_is_appended_is_read(self):
        records = [{'n': 1, 'text': 'zwölf\nlines\u2028'}, {'n': 2, 'x': None}]
        for record in records:
            self.journal().append(record)
        self.assertEqual(records, list(self.journal()))
        self.assertEqual(2, self.path.read_bytes().count(b'\n'))

    def test_not_there_yet(self):
        self.assertEqual([], list(self.journal()))

    def test_only_the_service_and_its_group_read_it(self):
        self.journal().append({})
        self.assertEqual(0, self.path.stat().st_mode & 0o137)

    def test_it_is_on_the_disk_when_append_returns(self):
        synced = []
        with mock.patch('os.fsync', side_effect=lambda descriptor: (
                synced.append(os.readlink(f'/proc/self/fd/{descriptor}')))):
            self.journal().append({'n': 1})
            self.journal().append({'n': 2})
        self.assertEqual([str(self.path), str(self.directory),
                          str(self.path)], synced)

    def test_what_json_has_no_form_for_leaves_no_trace(self):
        self.journal().append({'n': 1})
        self.assertRaises(TypeError, self.journal().append, {'n': object()})
        self.assertRaises(ValueError, self.journal().append,
                          {'n': float('nan')})
        self.assertEqual([1], self.numbers())

    def test_a_disk_that_takes_a_part_only(self):
        """A write may be short; the rest is written then."""

        class ShortWriter(io.FileIO):
            def write(self, data):
                return super().write(data[:5])

        with mock.patch.object(
                journal, 'open', create=True,
                side_effect=lambda descriptor, mode, buffering:
                ShortWriter(descriptor, mode)):
            self.journal().append({'n': 1})
            self.journal().append({'n': 2})
        self.assertEqual([1, 2], self.numbers())

    def test_many_threads(self):
        made = self.journal(max_bytes=200, backup_count=1000)
        threads = [threading.Thread(target=made.append, args=({'n': number},))
                   for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(list(range(50)), sorted(self.numbers()))


class TestCrash(JournalTestCase):

    @hypothesis.given(st.data())
    def test_a_torn_line_costs_itself_only(self, data):
        """Whatever part of the last record reached the disk."""
        made = self.journal()
        self.path.unlink(missing_ok=True)
        made.append({'n': 1})
        whole = self.path.read_bytes()
        made.append({'n': 2, 'text': 'ü'})
        torn = self.path.read_bytes()
        self.path.write_bytes(
            torn[:data.draw(st.integers(len(whole), len(torn) - 2))])
        self.assertEqual([1], self.numbers())
        made.append({'n': 3})
        self.assertEqual([1, 3], self.numbers())

    def test_a_line_that_lost_its_end_of_line_only(self):
        self.journal().append({'n': 1})
        self.path.write_bytes(self.path.read_bytes()[:-1])
        self.journal().append({'n': 2})
        self.assertEqual([1, 2], self.numbers())

    def test_what_is_no_record_is_named(self):
        self.journal().append({'n': 1})
        with open(self.path, 'ab') as file:
            file.write(b'\0\0\0\n[1]\n\n' + b'[' * 100000 + b'\n\xff\n')
        self.journal().append({'n': 2})
        with mock.patch.object(journal.LOG, 'warning') as warning:
            self.assertEqual([1, 2], self.numbers())
        self.assertEqual([2, 3, 5, 6],
                         [call.args[2] for call in warning.mock_calls])

    def test_a_crash_in_the_middle_of_a_rotation(self):
        made = self.journal(max_bytes=10, backup_count=3)
        for number in range(4):
            made.append({'n': number})
        real = pathlib.Path.replace
        calls = []

        def replace(path, target):
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(path, target)

        with mock.patch.object(pathlib.Path, 'replace', replace):
            self.assertRaises(KeyboardInterrupt, made.append, {'n': 4})
        # The oldest had to go anyway.
        self.assertEqual([1, 2, 3], self.numbers())
        made.append({'n': 5})
        self.assertEqual([2, 3, 5], self.numbers()[-3:])


class TestRotation(JournalTestCase):

    def test_by_size_and_count(self):
        made = self.journal(max_bytes=20, backup_count=2)
        for number in range(10, 20):
            made.append({'n': number})
        self.assertEqual(['journal.jsonl', 'journal.jsonl.1',
                          'journal.jsonl.2'], self.names())
        self.assertEqual([14, 15, 16, 17, 18, 19], self.numbers()[-6:])
        for name in self.names():
            self.assertLessEqual((self.directory / name).stat().st_size, 20)

    def test_no_backups(self):
        made = self.journal(max_bytes=20, backup_count=0)
        for number in range(10, 13):
            made.append({'n': number})
        self.assertEqual(['journal.jsonl'], self.names())
        self.assertEqual([12], self.numbers())

    def test_a_record_that_is_too_large_is_kept(self):
        made = self.journal(max_bytes=20)
        made.append({'n': 1, 'text': 'x' * 100})
        made.append({'n': 2})
        self.assertEqual(['journal.jsonl', 'journal.jsonl.1'], self.names())
        self.assertEqual([1, 2], self.numbers())

    def test_other_files_are_none_of_its_own(self):
        self.journal().append({'n': 1})
        for name in ('journal.jsonl.bak', 'journal.jsonl.1x', 'other.1'):
            (self.directory / name).write_text('{"n": 9}\n')
        self.assertEqual([1], self.numbers())

    def test_reading_during_a_rotation(self):
        """Each record exactly once, wherever the rotation falls."""
        for when in range(4):
            with self.subTest(when=when):
                for name in (self.names() if self.directory.exists() else ()):
                    (self.directory / name).unlink()
                made = self.journal(max_bytes=10, backup_count=9)
                for number in range(3):
                    made.append({'n': number})
                opened = []

                def open_and_rotate(path, mode, opened=opened, made=made,
                                    when=when):
                    if len(opened) == when:
                        opened.append(path)
                        made.append({'n': 3})
                    opened.append(path)
                    return open(path, mode)

                with mock.patch.object(journal, 'open', open_and_rotate,
                                       create=True):
                    made._write = mock.Mock()
                    found = [record['n'] for record in made]
                self.assertEqual([0, 1, 2], found)


class TestConfigured(JournalTestCase):

    def test_the_options(self):
        conf = cfg.ConfigOpts()
        conf.register_opts([cfg.StrOpt('state_path',
                                       default=str(self.directory.parent))])
        conf([], default_config_files=[], default_config_dirs=[])
        made = journal.Journal.configured(conf)
        made.append({'n': 1})
        self.assertEqual([1], self.numbers())
        self.assertEqual(10 * 1024 ** 2, made._max_bytes)
        self.assertEqual(5, made._backup_count)
