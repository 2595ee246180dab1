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

"""Print what a build of QEMU was made from, as JSON.

Nothing in it depends on the time, the machine or the place of the build.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import sys

# Switches of the build that no question over QMP shows: the vector
# instructions of the migration's zero page check.
CONFIG = ('CONFIG_AVX2_OPT', 'CONFIG_AVX512BW_OPT')


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(path: pathlib.Path) -> list[str]:
    text = re.sub(r'#.*', '', path.read_text())
    return [line.strip() for line in text.splitlines() if line.strip()]


def subject(patch: pathlib.Path) -> str:
    """What git format-patch wrote, without its [PATCH 1/9]."""
    match = re.search(r'^Subject: (?:\[[^]]*\] )?(.*(?:\n .*)*)',
                      patch.read_text(errors='replace'), re.MULTILINE)
    return ' '.join(match[1].split()) if match else ''


def sums(path: pathlib.Path) -> dict[str, str]:
    """The output of sha256sum."""
    return {name.lstrip('*'): value for value, name in (
        line.split(maxsplit=1) for line in path.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('build-id', 'prefix', 'source-kind', 'source-version',
                 'series', 'revision', 'pkgversion', 'compiler', 'linker'):
        parser.add_argument(f'--{name}', required=True)
    for name in ('root', 'source-tree', 'source-sums', 'capabilities',
                 'parameters', 'config'):
        parser.add_argument(f'--{name}', required=True, type=pathlib.Path)
    parser.add_argument('--patch', action='append', default=[],
                        type=pathlib.Path)
    parser.add_argument('options', nargs='*')
    arguments = parser.parse_args()

    epoch = int(os.environ['SOURCE_DATE_EPOCH'])
    config = arguments.config.read_text()
    version = (arguments.source_tree / 'VERSION').read_text()
    json.dump({
        'build_id': arguments.build_id,
        'date': datetime.datetime.fromtimestamp(
            epoch, datetime.UTC).isoformat(),
        'prefix': arguments.prefix,
        'qemu_version': version.strip(),
        'package_version': arguments.pkgversion,
        'source': {
            'kind': arguments.source_kind,
            'version': arguments.source_version,
            'sha256': sums(arguments.source_sums),
        },
        'series': arguments.series,
        'revision': arguments.revision,
        'patches': [{'name': patch.name, 'subject': subject(patch),
                     'sha256': sha256(patch)} for patch in arguments.patch],
        'capabilities': lines(arguments.capabilities),
        'parameters': lines(arguments.parameters),
        'configure': arguments.options,
        'config': {name: f'#define {name}\n' in config or
                   f'#define {name} 1\n' in config for name in CONFIG},
        'compiler': arguments.compiler,
        'linker': arguments.linker,
        'distribution': platform.freedesktop_os_release()['PRETTY_NAME'],
        'files': {str(path.relative_to(arguments.root)): sha256(path)
                  for path in sorted(arguments.root.rglob('*'))
                  if path.is_file()},
    }, sys.stdout, indent=2)
    print()


if __name__ == '__main__':
    main()
