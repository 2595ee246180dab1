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

"""Processes and wires of the lab's hosts, from outside: to stop and to cut."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

from tests.lab import base

LAB_NAME = base.NAME or 'nfm'
FABRIC = f'{LAB_NAME}-fabric'


def processes(host: str, *words: str) -> list[int]:
    """Those in a host's network namespace whose command line has all words."""
    namespace = os.stat(f'/run/netns/{LAB_NAME}-{host}').st_ino
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / 'cmdline').read_bytes().replace(b'\0', b' ')
            if (all(word.encode() in command for word in words) and
                    (entry / 'ns/net').stat().st_ino == namespace):
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


def qemu(host: str, uuid: str) -> list[int]:
    """The server's QEMU on a host; empty if there is none."""
    return processes(host, 'qemu-system', f'-uuid {uuid}')


def service(host: str, unit: str) -> list[int]:
    """All processes of a systemd unit."""
    listed = base.on_host(host, 'systemctl', 'show', '--property=MainPID',
                          '--value', unit).strip()
    # Its number out here is another one than inside.
    inside = f'\t{listed}\n'
    found = []
    for pid in processes(host):
        with contextlib.suppress(OSError):
            status = pathlib.Path(f'/proc/{pid}/status').read_text()
            line = next(line for line in status.splitlines()
                        if line.startswith('NSpid:'))
            if f'{line}\n'.endswith(inside):
                found.append(pid)
    return found


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def frozen(pids: list[int]):
    """Have processes stand still meanwhile."""
    send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        send(signal.SIGCONT, pids)


@contextlib.contextmanager
def held_switchover(guest, host: str, mib_per_s: int):
    """Meanwhile the guest stands still at the source of its migration.

    Its QEMU has stopped it and waits for libvirt, as it does before every
    switchover (pause-before-switchover), and libvirt stands still. The patched
    QEMU does not wait with the feature direct-switchover.

    :param guest: a base.LabTest, as tool.Guest is
    :param mib_per_s: how fast its migration is when it comes to that
    :raises AssertionError: it does not come to that
    """
    libvirtd = service(host, 'libvirtd')
    guest.migrate()
    guest.running_migration(host)
    base.wait_until('QEMU has begun',
                    lambda: guest.sent_bytes(host), interval_s=0.05)
    guest.limit_bandwidth(host, mib_per_s)
    with frozen(libvirtd):
        base.wait_until('the guest stands still',
                        lambda: _stands_still(host, guest.uuid))
        yield


def _stands_still(host: str, uuid: str) -> bool:
    """None of the server's virtual CPUs runs for a quarter of a second."""
    def executed_ns() -> list[str]:
        return [(task / 'schedstat').read_text().split()[0]
                for pid in qemu(host, uuid)
                for task in pathlib.Path(f'/proc/{pid}/task').iterdir()
                if (task / 'comm').read_text().startswith('CPU ')]

    before = executed_ns()
    time.sleep(0.25)
    return before == executed_ns() != []


def wire(network: str, host: str, up: bool) -> None:
    """Cut a host's cable to one of the lab's networks, or mend it.

    :param network: ``mgmt``, ``mig`` or ``data``
    """
    subprocess.run(
        ['ip', '-n', FABRIC, 'link', 'set', f'{network}-{host}',
         'up' if up else 'down'], check=True)


@contextlib.contextmanager
def cut(network: str, host: str):
    """Cut a host off from one of the lab's networks meanwhile."""
    wire(network, host, up=False)
    try:
        yield
    finally:
        wire(network, host, up=True)
