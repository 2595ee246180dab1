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

"""A source tree that tools/build-qemu builds in a second.

It has a configure that writes a build.ninja. The "binary" is EMULATOR, a
program that answers QMP's questions as QEMU does; its migration capabilities
are those of the tree's qapi/migration.json, so it shows which patches were
applied.
"""

import difflib
import os
import pathlib
import textwrap

VERSION = '10.0.13'

CONFIGURE = r'''#!/bin/bash
# Waits as long as the file $STANDIN_HOLD-configure exists; notes that it ran.
set -eu
echo configure >>"$STANDIN_LOG"
while [[ -e $STANDIN_HOLD-configure ]]; do sleep 0.05; done
src=$(dirname "$0")
for option; do
    [[ $option != --with-pkgversion=* ]] || package=${option#*=}
done
printf '%s\n' "$@" >options
echo '#define CONFIG_AVX2_OPT' >config-host.h
echo "$package" >package
cat >build.ninja <<NINJA
rule compile
  command = echo \$out >>"$STANDIN_LOG"; echo part >\$out; \$
    while [ -e "$STANDIN_HOLD-\$out" ]; do sleep 0.05; done; echo of >>\$out
rule link
  command = echo link >>"$STANDIN_LOG"; \$
    cat one two >/dev/null; python3 $src/link.py $src package \$out
build one: compile
build two: compile one
build qemu-system-x86_64: link | one two
NINJA
'''

LINK = r'''
import pathlib, sys
src, package, out = map(pathlib.Path, sys.argv[1:])
if [line for name in ('one', 'two')
        for line in pathlib.Path(name).read_text().split()] != [
        'part', 'of'] * 2:
    sys.exit('an object file is not complete')
text = (src / 'emulator.py').read_text()
text = text.replace('@PACKAGE@', package.read_text().strip())
text = text.replace('@CAPABILITIES@', repr(
    (src / 'qapi/migration.json').read_text().split()))
out.write_text(text)
out.chmod(0o755)
'''

EMULATOR = r'''#!/usr/bin/env python3
import json, sys
NAMES = @CAPABILITIES@
TYPES = {'accel': ['kvm-accel', 'tcg-accel'],
         'device': ['virtio-net-pci', 'virtio-blk-pci', 'virtio-scsi-pci',
                    'vfio-pci', 'vhost-user-blk-pci', 'vhost-user-fs-pci',
                    'vhost-vdpa-device-pci', 'virtio-balloon-pci',
                    'virtio-rng-pci', 'virtio-vga', 'VGA', 'usb-tablet',
                    'tpm-crb']}
ENUMS = [['threads', 'native', 'io_uring'], ['none', 'zlib', 'zstd']]
ANSWERS = {
    'query-version': {'package': '@PACKAGE@'},
    'query-migrate-capabilities': [
        {'capability': name.rstrip('!'), 'state': name.endswith('!')}
        for name in NAMES],
    'query-migrate-parameters': {
        name.rstrip('!'): int(name.endswith('!')) for name in NAMES},
    'query-qmp-schema': [{'meta-type': 'enum', 'values': values}
                         for values in ENUMS] + [
        {'meta-type': 'command', 'name': 'query-vnc'}],
    'query-command-line-options': [{'option': 'sandbox'}],
}
print(json.dumps({'QMP': {}}))
for line in sys.stdin:
    command = json.loads(line)
    name = command['execute']
    answer = ANSWERS.get(name, {})
    if name == 'qom-list-types':
        answer = [{'name': name}
                  for name in TYPES[command['arguments']['implements']]]
    reply = {'return': answer}
    if name == 'object-add':
        reply = {'error': {'desc': 'Invalid host-nodes value: 65535'}}
    print(json.dumps(reply | {'id': command['id']}))
'''

# One word is one capability; a trailing ! makes it on by default.
CAPABILITIES = [f'stock-{number}' for number in range(30)]
SWITCHES = ['x-measure-eager-cleanup', 'x-measure-sse2-zero-page',
            'x-measure-cpu-state-sync']


def make_tree(place: pathlib.Path) -> pathlib.Path:
    (place / 'qapi').mkdir(parents=True)
    (place / 'pc-bios' / 'keymaps').mkdir(parents=True)
    for name, text in {
            'VERSION': VERSION + '\n',
            'configure': CONFIGURE,
            'link.py': LINK,
            'emulator.py': EMULATOR,
            'qapi/migration.json': '\n'.join(CAPABILITIES) + '\n',
            'pc-bios/keymaps/de': 'map 0x407\n',
            'pc-bios/keymaps/meson.build': '# not installed\n'}.items():
        (place / name).write_text(text)
        os.utime(place / name, (1700000000, 1700000000))
    (place / 'configure').chmod(0o755)
    return place


def make_patch(name: str, old: list[str], new: list[str]) -> str:
    """As git format-patch writes it, for qapi/migration.json."""
    path = 'qapi/migration.json'
    diff = difflib.unified_diff(
        [line + '\n' for line in old], [line + '\n' for line in new],
        f'a/{path}', f'b/{path}')
    return textwrap.dedent(f'''\
        From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
        From: Somebody <somebody@example.org>
        Date: Mon, 1 Jan 2024 00:00:00 +0000
        Subject: [PATCH 1/2] {name}

        Why.
        ---
        ''') + ''.join(diff) + '--\n2.39.5\n'


def make_series(place: pathlib.Path, added: list[str]) -> pathlib.Path:
    """Two patches: the first adds names at the top, the second at the end."""
    place.mkdir()
    first = added[:1] + CAPABILITIES
    second = first + added[1:]
    (place / '0001-first.patch').write_text(
        make_patch('migration: the first', CAPABILITIES, first))
    (place / '0002-second.patch').write_text(
        make_patch('migration: the second', first, second))
    (place / 'series').write_text(
        '# in this order\n0001-first.patch\n0002-second.patch\n')
    (place / 'capabilities').write_text(
        '# what they add\n' + ''.join(
            name.rstrip('!') + '\n' for name in added))
    (place / 'parameters').write_text(f'{CAPABILITIES[0]}\n')
    return place
