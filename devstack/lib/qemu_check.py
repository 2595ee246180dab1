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

"""Ask an installed QEMU whether it is what it should be.

Compares its files with its manifest, starts it twice without a guest, and asks
it over QMP for the capabilities of the patches and for what libvirt and Nova
need. Prints a line for each; the exit status is 1 if one of them is not met.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys

# Where the project's paper had its gains: cleanup after the switchover instead
# of inside it, the vectorised zero page check, and one synchronisation of the
# clocks instead of the whole CPU state. Every QEMU has them. The patches can
# switch each one off, which shows that they are there to be switched off.
OPTIMIZATIONS = {
    'deferred cleanup': 'x-measure-eager-cleanup',
    'vectorised zero page check': 'x-measure-sse2-zero-page',
    'single TSC synchronisation': 'x-measure-cpu-state-sync',
}
DEVICES = ('virtio-net-pci', 'virtio-blk-pci', 'virtio-scsi-pci', 'vfio-pci',
           'vhost-user-blk-pci', 'vhost-user-fs-pci', 'vhost-vdpa-device-pci',
           'virtio-balloon-pci', 'virtio-rng-pci', 'virtio-vga', 'VGA',
           'usb-tablet', 'tpm-crb')
# What only some builds have -> values of one enumeration in QEMU's schema.
ENUMERATIONS = {
    'io_uring': {'threads', 'native', 'io_uring'},
    'zstd compression of multifd': {'none', 'zlib', 'zstd'},
}
TIMEOUT_S = 60


class Failure(Exception):
    pass


def ask(binary: pathlib.Path, options: list[str], questions: list) -> list:
    """Start the binary, put the questions, return the answers."""
    commands = ['qmp_capabilities', *questions, 'quit']
    lines = []
    for number, question in enumerate(commands):
        name, arguments = (question if isinstance(question, tuple)
                           else (question, {}))
        lines.append(json.dumps(
            {'execute': name, 'arguments': arguments, 'id': number}))
    command = [str(binary), '-nodefaults', '-no-user-config', '-display',
               'none', '-S', '-accel', 'tcg', '-qmp', 'stdio', *options]
    try:
        done = subprocess.run(  # noqa: S603
            command, input='\n'.join(lines) + '\n', capture_output=True,
            text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f'{binary} cannot be asked: {error}') from error
    answers = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if 'id' in message:
            answers[message['id']] = message
    if len(answers) != len(commands):
        raise Failure(f'{" ".join(command)} ended with {done.returncode}: '
                      f'{done.stderr.strip()}')
    for number, question in enumerate(commands):
        if 'error' in answers[number]:
            raise Failure(f'{question}: {answers[number]["error"]["desc"]}')
    return [answers[number]['return'] for number in range(
        1, len(commands) - 1)]


class Report:
    def __init__(self):
        self.failed = 0

    def line(self, good: bool, what: str, otherwise: str) -> None:
        print(f'ok    {what}' if good else f'FAIL  {what}: {otherwise}')
        self.failed += not good


def check_files(report: Report, target: pathlib.Path, manifest: dict) -> None:
    bad = []
    for name, expected in manifest['files'].items():
        try:
            found = hashlib.sha256((target / name).read_bytes()).hexdigest()
        except OSError as error:
            bad.append(f'{name} ({error.strerror})')
            continue
        if found != expected:
            bad.append(f'{name} (changed)')
    report.line(not bad, f'{len(manifest["files"])} files as they were built',
                ', '.join(bad))


def check_features(report: Report, manifest: dict, answers: list) -> None:
    (version, capabilities, parameters, accelerators, devices, schema,
     options) = answers
    wanted = manifest['package_version']
    report.line(wanted in version['package'], f'version says "{wanted}"',
                f'it says "{version["package"].strip()}"')

    states = {item['capability']: item['state'] for item in capabilities}
    for name in manifest['capabilities']:
        report.line(states.get(name) is False, f'capability {name}',
                    'on by default' if name in states else 'missing')
    # One that was built before there were any has no list.
    for name in manifest.get('parameters', ()):
        report.line(parameters.get(name) == 0, f'parameter {name}',
                    'on by default' if name in parameters else 'missing')
    for what, name in OPTIMIZATIONS.items():
        report.line(states.get(name) is False,
                    f'{what}, which {name} switches off',
                    f'{name} is {"on" if states.get(name) else "missing"}')
    report.line(manifest['config']['CONFIG_AVX2_OPT'],
                'built with AVX2 zero page check', 'CONFIG_AVX2_OPT is off')

    for what, types, names in (
            ('accelerator', accelerators, ('kvm-accel', 'tcg-accel')),
            ('device', devices, DEVICES)):
        there = {item['name'] for item in types}
        missing = [name for name in names if name not in there]
        report.line(not missing, f'{what}s {", ".join(names)}',
                    f'missing: {", ".join(missing)}')
    enumerations = [set(item['values']) for item in schema
                    if item['meta-type'] == 'enum']
    for what, values in ENUMERATIONS.items():
        report.line(any(values <= known for known in enumerations), what,
                    'not in the QMP schema')
    commands = {item['name'] for item in schema
                if item['meta-type'] == 'command'}
    report.line('query-vnc' in commands, 'VNC', 'no command query-vnc')
    report.line('sandbox' in {item['option'] for item in options},
                'seccomp sandbox', 'no option -sandbox')


def check_program(report: Report, binary: pathlib.Path,
                  manifest: dict) -> None:
    try:
        check_features(report, manifest, ask(binary, ['-machine', 'none'], [
            'query-version',
            'query-migrate-capabilities',
            'query-migrate-parameters',
            ('qom-list-types', {'implements': 'accel', 'abstract': False}),
            ('qom-list-types', {'implements': 'device', 'abstract': False}),
            'query-qmp-schema',
            'query-command-line-options',
        ]))
    except Failure as failure:
        report.line(False, 'answers over QMP', str(failure))
    # A node that cannot be; a QEMU without libnuma says that it has no nodes.
    try:
        ask(binary, ['-machine', 'none'], [('object-add', {
            'qom-type': 'memory-backend-ram', 'id': 'numa', 'size': 4096,
            'host-nodes': [65535]})])
    except Failure as failure:
        report.line('Invalid host-nodes value' in str(failure),
                    'memory on chosen NUMA nodes', str(failure))
    what = "a machine with the distribution's firmware and with TLS"
    try:
        # Each of these needs a ROM; TLS is asked for with its own object.
        ask(binary, ['-machine', 'pc', '-m', '64', '-device', 'VGA',
                     '-device', 'virtio-net-pci', '-object',
                     'tls-cipher-suites,id=tls,priority=NORMAL'],
            ['query-status'])
        report.line(True, what, '')
    except Failure as failure:
        report.line(False, what, str(failure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', type=pathlib.Path,
                        help='the prefix in which it is installed')
    parser.add_argument('--files-only', action='store_true',
                        help='compare the files with the manifest, no more')
    arguments = parser.parse_args()
    target = arguments.target
    report = Report()
    manifest = json.loads((target / 'manifest.json').read_text())
    check_files(report, target, manifest)
    if not arguments.files_only:
        check_program(report, target / 'bin' / 'qemu-system-x86_64', manifest)
    failed = report.failed
    if failed:
        sys.exit(f'build-qemu: {target}: {failed} checks failed')


if __name__ == '__main__':
    main()
