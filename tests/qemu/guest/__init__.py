# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""The guest of these tests: a Linux kernel with init.c as its user space."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess

HERE = pathlib.Path(__file__).parent
# Where 'build' puts the guest, or has put it.
DIRECTORY = pathlib.Path(os.environ.get(
    'QEMU_TEST_GUEST', HERE.parents[2] / 'build' / 'qemu-guest'))
KERNEL_OPTIONS = ('console=ttyS0 quiet panic=-1 mitigations=off nokaslr '
                  'no_timer_check ipv6.disable=1')
# On a busy host Linux measures the emulated TSC wrong, by any factor, and its
# clock then runs as much too fast; the HPET's rate is known.
TCG_KERNEL_OPTIONS = 'clocksource=hpet tsc=unstable'
# The verified window lies above the kernel and below the initramfs and the
# firmware's tables, which are at the end of the memory.
WINDOW_BASE_MIB = 96
WINDOW_DEFAULT_MIB = 64
ABOVE_WINDOW_MIB = 64
STATUS = (r'^guest: boot (?P<boot_id>\S+) passes (?P<passes>\d+) '
          r'verified (?P<verified>\d+) written (?P<written>\d+) '
          r'uptime_ms (?P<uptime_ms>\d+)\r?$')
FAULTS = re.compile(
    r'^.*(guest: FAULT|Kernel panic|BUG:|Oops|general protection|'
    r'soft lockup|rcu_sched|rcu: INFO).*$', re.MULTILINE)


class GuestFault(Exception):
    """The guest found its memory, clock or counters wrong."""


@dataclasses.dataclass(frozen=True)
class Files:
    kernel: pathlib.Path
    initramfs: pathlib.Path
    disk: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Status:
    boot_id: str
    passes: int
    verified: int
    written: int
    uptime_ms: int

    @classmethod
    def from_match(cls, match):
        values = match.groupdict()
        return cls(values.pop('boot_id'),
                   **{k: int(v) for k, v in values.items()})


def files():
    """The guest's files; they are built first if they are not there."""
    found = Files(DIRECTORY / 'vmlinuz', DIRECTORY / 'initramfs',
                  DIRECTORY / 'disk.img')
    sources = [HERE / 'build', HERE / 'init.c']
    newest = max(s.stat().st_mtime for s in sources)
    if not (found.disk.exists() and found.disk.stat().st_mtime > newest):
        subprocess.run([HERE / 'build', DIRECTORY], check=True)
    return found


def untouched(memory_mib, window_mib):
    """Where a guest has memory that its kernel need not know: MiB ranges.

    Without its 'struct page' array, 1/64 of the memory, the rest is never
    touched at all. As QEMU lays out the pc machine: what is more than
    3.5 GiB continues at 4 GiB, from 3 GiB on.
    """
    below_4g_mib = memory_mib if memory_mib < 3584 else 3072
    start_mib = WINDOW_BASE_MIB + window_mib
    return [(start_mib, below_4g_mib - ABOVE_WINDOW_MIB - start_mib),
            (4096, memory_mib - below_4g_mib)]


def command_line(memory_mib, options, accelerator, hide_untouched=False):
    """The kernel command line with the guest's options (see init.c)."""
    options = {'memory_mib': WINDOW_DEFAULT_MIB, 'base_mib': WINDOW_BASE_MIB,
               **options}
    window_mib = options['memory_mib']
    least_mib = WINDOW_BASE_MIB + window_mib + ABOVE_WINDOW_MIB
    if memory_mib < least_mib:
        raise ValueError(f'{memory_mib} MiB of guest memory: a window of '
                         f'{window_mib} MiB needs {least_mib} MiB or more')
    reserved = [(WINDOW_BASE_MIB, window_mib)]
    if hide_untouched:
        reserved += untouched(memory_mib, window_mib)
    return ' '.join([
        KERNEL_OPTIONS,
        *([TCG_KERNEL_OPTIONS] if accelerator == 'tcg' else []),
        *(f'memmap={size_mib}M${start_mib}M'
          for start_mib, size_mib in reserved if size_mib),
        *(f'guest.{k}={v}' for k, v in options.items())])


def make_disk(found, path, options):
    """Copy the disk to path, with these kernel options."""
    subprocess.run(['cp', '--sparse=always', found.disk, path], check=True)
    configuration = path.with_suffix('.cfg')
    configuration.write_text(
        'DEFAULT guest\nLABEL guest\n  KERNEL vmlinuz\n  INITRD initramfs\n'
        f'  APPEND {options}\n')
    if not shutil.which('mcopy'):
        raise FileNotFoundError('mcopy not found: apt-get install mtools')
    subprocess.run(['mcopy', '-o', '-i', path, configuration,
                    '::syslinux.cfg'], check=True)


def check_faults(serial):
    fault = FAULTS.search(serial)
    if fault:
        raise GuestFault(fault.group(0).strip())


def last_status(serial):
    """The guest's last status on its console; raises if it found a fault."""
    check_faults(serial)
    statuses = [Status.from_match(m)
                for m in re.finditer(STATUS, serial, re.MULTILINE)]
    if not statuses:
        raise GuestFault(f'the guest has not started: ...{serial[-2000:]}')
    if len({s.boot_id for s in statuses}) > 1:
        raise GuestFault('the guest booted more than once: '
                         f'{statuses[0].boot_id}, {statuses[-1].boot_id}')
    return statuses[-1]
