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

"""A guest that forwards with DPDK, on QEMUs that are driven over QMP.

As the seed had it: two virtio-net ports, here on vhost-user, of which DPDK's
testpmd in the guest sends out of one what arrives at the other. Open vSwitch
with DPDK joins them to the generator. Both QEMUs are on this machine, in a
tree of their own (``lab/with-dpdk``).
"""

import asyncio
from collections.abc import Iterator
import contextlib
import pathlib
import shlex
import subprocess
import tempfile
import typing as ty

from nova_fastmig.bench import engine
from nova_fastmig.bench import lab as lab_
from nova_fastmig.bench import monitor
from nova_fastmig.bench import qemu_rig
from nova_fastmig.bench import scenario

SIDES = ('a', 'b')
# where lab/with-dpdk shows the directory and the guest's files
INSIDE, GUEST = '/run/bench', '/var/tmp/guest'  # noqa: S108
MACS = ('52:54:00:be:00:10', '52:54:00:be:00:11')
GENERATOR_MACS = ('52:54:00:be:01:00', '52:54:00:be:01:01')
START_TIMEOUT_S = 60
# an emulated testpmd takes its time
BOOT_TIMEOUT_S = 240
# DPDK needs SSE 4.2, and hugepages of 2 MiB for its buffers in the guest
CPU, HUGEPAGES = 'Nehalem', 64
# Linux measures an emulated TSC wrong on a busy machine
TCG_KERNEL_OPTIONS = ('clocksource=hpet', 'tsc=unstable', 'no_timer_check')


def command_line(guest: scenario.Guest, emulator: str, accelerator: str,
                 side: str) -> list[str]:
    """A QEMU with this guest at a side; paths as the tree has them."""
    options = ['console=ttyS0', 'quiet', 'panic=-1', 'mitigations=off',
               'nokaslr', f'hugepages={HUGEPAGES}',
               *(f'l2fwd.peer{port}={mac}'
                 for port, mac in enumerate(GENERATOR_MACS))]
    if accelerator == 'tcg':
        options += TCG_KERNEL_OPTIONS
    ports = []
    for port, mac in enumerate(MACS):
        ports += [
            '-chardev', f'socket,id=port{port},path={INSIDE}/{side}{port},'
                        'server=on,wait=off',
            '-netdev', f'vhost-user,id=net{port},chardev=port{port}',
            '-device', f'virtio-net-pci,netdev=net{port},mac={mac},romfile=']
    return [
        emulator, '-name', f'guest=dpdk-{side},debug-threads=on',
        '-nodefaults', '-no-user-config', '-display', 'none',
        '-machine', 'pc,usb=off,memory-backend=memory', '-accel', accelerator,
        '-cpu', 'host' if accelerator == 'kvm' else CPU,
        '-m', f'{guest.memory_mib}M', '-smp', str(guest.vcpus),
        # vhost-user works on the guest's memory
        '-object', f'{qemu_rig.memory_backend(guest)},share=on',
        '-kernel', f'{GUEST}/vmlinuz', '-initrd', f'{GUEST}/initramfs',
        '-append', ' '.join(options), *ports,
        '-serial', f'file:{INSIDE}/serial-{side}', '-only-migratable',
        '-qmp', f'unix:{INSIDE}/qmp-{side},server=on,wait=off']


class DpdkRig:
    """QEMU over QMP, with vhost-user ports; the guest is DPDK's."""

    sides = SIDES

    def __init__(self, lab: lab_.Lab):
        self._lab = lab
        self._host: subprocess.Popen | None = None
        self._directory = pathlib.Path()

    def obstacle(self, turn: scenario.Turn) -> str | None:
        if turn.contender.control != scenario.Control.QEMU:
            return (f'{turn.contender.control} on the lab has no vhost-user '
                    f'ports: its Open vSwitch is without DPDK')
        return (qemu_rig.option_obstacle(self._lab, turn.contender) or
                self._lab.memory.obstacle(turn.guest))

    # ---- for qemu_rig.QemuGuest

    def uri(self, side: str) -> str:
        return f'unix:{INSIDE}/migration-{side}'

    async def start(self, side: str, turn: scenario.Turn, *arguments: str
                    ) -> monitor.Monitor:
        line = command_line(turn.guest, lab_.EMULATOR[turn.contender.qemu],
                            self._lab.accelerator, side)
        self._host.stdin.write(shlex.join([*line, *arguments]) + '\n')
        self._host.stdin.flush()
        address = str(self._directory / f'qmp-{side}')
        made = monitor.Monitor(f'{turn.contender.qemu} QEMU at {side}')
        try:
            await qemu_rig.until_it_listens(address, made.name)
        except engine.RigError as error:
            raise engine.RigError(f'{error}: {self._said()}') from error
        await made.connect(address)
        return made

    async def end(self, side: str, ended: monitor.Monitor) -> None:
        await ended.command('quit')
        await ended.disconnect()
        # the next QEMU at this side makes them anew
        for name in (f'qmp-{side}', f'migration-{side}'):
            (self._directory / name).unlink(missing_ok=True)

    def watched(self, workload: scenario.Workload):
        @contextlib.contextmanager
        def watch() -> Iterator[tuple[ty.Any, None]]:
            probe = self._probe(workload.packets_per_s)
            with lab_.probing(self._lab, probe):
                yield probe, None
        return watch()

    def cpu_figures(self, cpu: None, source: str, started_s: float,
                    ended_s: float) -> dict[str, float]:
        return {}  # both sides are one host

    def failures(self, probed: dict[str, ty.Any]) -> tuple[str, ...]:
        serial = (self._directory / f'serial-{SIDES[0]}').read_text(
            errors='replace')
        if 'l2fwd: testpmd ended' in serial:
            return (f'testpmd ended: {serial[-500:]}',)
        return ()

    # ---- the turn

    def _said(self) -> str:
        log = self._directory / 'qemu.log'
        return log.read_text(errors='replace')[-500:] if log.exists() else ''

    def _probe(self, packets_per_s: int, answer_within_s: int = 10):
        return self._lab.module('probe_client').Probe.two_ports(
            self._lab.state / 'share/bin/probe', f'{self._lab.name}-dpdk',
            'gen0', 'gen1', MACS[0], packets_per_s, answer_within_s)

    def _wait_for_guest(self) -> None:
        probe_error = self._lab.module('probe_client').ProbeError
        try:
            with self._probe(20, BOOT_TIMEOUT_S):
                pass
        except probe_error as error:
            serial = (self._directory / f'serial-{SIDES[0]}')
            said = serial.read_text(errors='replace')[-1000:] \
                if serial.exists() else self._said()
            raise engine.RigError(f'the guest forwards nothing: {error}; its '
                                  f'console: {said}') from error

    def _start_host(self) -> None:
        self._host = subprocess.Popen(  # noqa: S603
            [self._lab.commands / 'with-dpdk', self._directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._host.stdout.readline() != 'ready\n':
            self._host.wait(START_TIMEOUT_S)
            log = self._directory / 'vswitchd.log'
            said = log.read_text()[-500:] if log.exists() else ''
            raise engine.RigError(f'lab/with-dpdk ended with '
                                  f'{self._host.returncode}: {said}')

    @contextlib.contextmanager
    def guest(self, turn: scenario.Turn) -> Iterator[engine.Guest]:
        with tempfile.TemporaryDirectory(prefix='bench-dpdk-') as directory, \
                self._lab.memory.hugepages(turn.guest) as check:
            self._directory = pathlib.Path(directory)
            self._start_host()
            try:
                with asyncio.Runner() as runner:
                    guest = None
                    try:
                        with qemu_rig.monitored():
                            guest = qemu_rig.QemuGuest(self, turn, runner.run)
                        self._wait_for_guest()
                        check()
                        yield guest
                    finally:
                        if guest is not None:
                            guest.close()
            finally:
                # its QEMUs and its switch end with it
                self._host.stdin.close()
                self._host.stdout.close()
                self._host.wait(60)
