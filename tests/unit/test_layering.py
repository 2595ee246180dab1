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

"""The import rules, read from the code itself."""

import ast
import configparser
import pathlib
import sys

import ddt
from oslotest import base

import nova_fastmig

ROOT = pathlib.Path(nova_fastmig.__file__).parent

PURE = {'blackout', 'calibration', 'exception', 'forecast', 'gate', 'ledger',
        'model', 'request', 'plan', 'policy', 'report'}
# They may use each other, too.
PURE_BENCH = {'bench.scenario', 'bench.catalog', 'bench.schedules',
              'bench.hosts_file'}
# In the standard library, yet not pure.
CLOCKS_LOGS_AND_IO = {'asyncio', 'datetime', 'io', 'logging', 'os',
                      'pathlib', 'random', 'select', 'shutil', 'socket',
                      'subprocess', 'tempfile', 'threading', 'time'}
MAY_USE_LIBVIRT = {'driver', 'session', 'capabilities', 'guest', 'inspection',
                   'interrupted', 'progress', 'watch', 'bench.hosts',
                   'bench.libvirt_rig'}


def module_name(path: pathlib.Path) -> str:
    """nova_fastmig/sinks/log.py -> sinks.log"""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


MODULES = {module_name(path): path for path in ROOT.rglob('*.py')}


def imports(source: str) -> set[str]:
    """Full names of everything that a module imports, wherever it does.

    ``from a import b`` counts as a.b: b may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError('relative imports hide what is imported')
            names.update(f'{node.module}.{alias.name}'
                         for alias in node.names)
    return names


def not_pure(name: str) -> bool:
    top = name.partition('.')[0]
    if top == 'nova_fastmig':
        return name not in ('nova_fastmig.model', 'nova_fastmig.exception')
    return top not in sys.stdlib_module_names or top in CLOCKS_LOGS_AND_IO


def is_libvirt(name: str) -> bool:
    return (name.partition('.')[0] == 'libvirt' or
            f'{name}.'.startswith('nova.virt.libvirt.'))


@ddt.ddt
class TestLayering(base.BaseTestCase):

    def test_the_modules_that_the_rules_name_exist(self):
        self.assertEqual(
            set(), (PURE | PURE_BENCH | MAY_USE_LIBVIRT) - set(MODULES))

    def test_the_branches_of_all_pure_modules_are_covered(self):
        config = configparser.ConfigParser()
        config.read(ROOT.parent / 'tests' / 'pure.coveragerc')
        for section in 'run', 'report':
            named = {pathlib.PurePath(path).stem
                     for path in config[section]['include'].split()}
            self.assertEqual(set(), PURE - named)
            self.assertEqual(set(), named - set(MODULES))

    @ddt.data(*sorted(PURE))
    def test_pure_modules_import_nothing_else(self, name):
        found = imports(MODULES[name].read_text())
        self.assertEqual([], sorted(filter(not_pure, found)))

    @ddt.data(*sorted(PURE_BENCH))
    def test_the_benchmarks_pure_modules(self, name):
        found = imports(MODULES[name].read_text())
        self.assertEqual([], sorted(
            each for each in filter(not_pure, found)
            if each.removeprefix('nova_fastmig.') not in PURE_BENCH))

    @ddt.data(*sorted(set(MODULES) - MAY_USE_LIBVIRT))
    def test_only_some_modules_know_libvirt(self, name):
        found = imports(MODULES[name].read_text())
        self.assertEqual([], sorted(filter(is_libvirt, found)))

    @ddt.data(*sorted(set(MODULES) - {'qmp', 'bench.libvirt_rig'}))
    def test_only_qmp_calls_what_eventlet_would_wait_for(self, name):
        found = imports(MODULES[name].read_text())
        self.assertEqual([], [each for each in found if
                              each.partition('.')[0] == 'libvirt_qemu'])

    @ddt.data(*sorted(set(MODULES) - {'session'}))
    def test_only_the_session_knows_the_sinks(self, name):
        if name.startswith('sinks.'):
            return
        found = imports(MODULES[name].read_text())
        self.assertEqual([], [each for each in found
                              if each.startswith('nova_fastmig.sinks')])


@ddt.ddt
class TestTheTest(base.BaseTestCase):
    """That the rules above can fail."""

    @ddt.data('import time', 'from time import monotonic',
              'def f():\n    import os.path', 'from oslo_log import log',
              'import libvirt', 'from nova_fastmig import guest',
              'from nova_fastmig.sinks import log')
    def test_not_pure(self, source):
        self.assertTrue(all(map(not_pure, imports(source))))

    @ddt.data('import re', 'from collections.abc import Mapping',
              'from nova_fastmig import model')
    def test_pure(self, source):
        self.assertFalse(any(map(not_pure, imports(source))))

    @ddt.data('import libvirt', 'from nova.virt.libvirt import guest',
              'from nova.virt import libvirt', 'import nova.virt.libvirt')
    def test_libvirt(self, source):
        self.assertTrue(all(map(is_libvirt, imports(source))))

    def test_relative(self):
        self.assertRaises(AssertionError, imports, 'from . import model')
