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

"""Migrations that Nova's API is asked for, through ``lab/demo.py``."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import re
import typing as ty

from nova_fastmig.bench import engine
from nova_fastmig.bench import lab as lab_
from nova_fastmig.bench import libvirt_rig
from nova_fastmig.bench import scenario

DIRECTORY = 'bench'
SERVER = 'demo-tagged'
# [DEFAULT]reserved_host_memory_mb, Nova's default
RESERVED_MIB = 512
# Nova's [libvirt] for each option
LIBVIRT_OPTIONS = {
    # a second per GiB, at least two: the least that there is
    scenario.Option.POST_COPY: (
        'live_migration_permit_post_copy=true',
        'live_migration_completion_timeout=1',
        'live_migration_timeout_action=force_complete'),
    scenario.Option.AUTO_CONVERGE: (
        'live_migration_permit_auto_converge=true',),
    scenario.Option.PARALLEL: ('live_migration_parallel_connections=2',),
}
# of the flavor, which has the say where the project's driver is
EXTRA_SPECS = {
    scenario.Option.PARALLEL: 'fastmig:parallel_connections=2',
}
OPTIONS = {scenario.Driver.STOCK: LIBVIRT_OPTIONS,
           scenario.Driver.FASTMIG: EXTRA_SPECS}


def libvirt_options(contender: scenario.Contender) -> list[str]:
    """NAME=VALUE of Nova's [libvirt] for a contender."""
    options = []
    if contender.driver == scenario.Driver.STOCK:
        for option in contender.options:
            options += LIBVIRT_OPTIONS[option]
    steps = re.fullmatch(r'nova-(\d+)-(\d+)-(\d+)', contender.schedule)
    if steps:
        options += [f'live_migration_downtime{name}={value}' for name, value
                    in zip(('', '_steps', '_delay'), steps.groups(),
                           strict=True)]
    return options


def flavor_arguments(contender: scenario.Contender,
                     guest: scenario.Guest) -> list[str]:
    """Of ``lab/demo.py prepare``, for a contender's guest."""
    arguments = ['--ram-mib', str(guest.memory_mib), '--vcpus',
                 str(guest.vcpus), '--data-plane', str(guest.data_plane)]
    extra_specs = []
    if guest.hugepages:
        extra_specs.append(f'hw:mem_page_size={guest.page_kib}')
    if contender.driver == scenario.Driver.FASTMIG:
        extra_specs += [EXTRA_SPECS[option] for option in contender.options]
    for each in extra_specs:
        arguments += ['--extra-spec', each]
    return arguments


def cpu_options(guest: scenario.Guest, accelerator: str) -> list[str]:
    """NAME=VALUE of Nova's [libvirt] for what a guest needs."""
    if guest.data_plane != scenario.DataPlane.DPDK or accelerator == 'kvm':
        return []
    return ['cpu_mode=custom', f'cpu_models={lab_.DPDK_CPU}']


def figures(run: dict[str, ty.Any], heard: dict[str, ty.Any]
            ) -> dict[str, ty.Any]:
    """Fields of Figures from a run of ``lab/demo.py``.

    :param heard: those that QEMU's events have
    """
    return {
        **lab_.packet_figures(run['probe']),
        **lab_.job_figures(run['libvirt_job']),
        **heard,
        'total_nova_ms': run['total_nova_ms'],
        'post_gap_ms': run['post_gap_ms']}


def memory_obstacle(host_mib: Mapping[str, int], guest: scenario.Guest
                    ) -> str | None:
    """Why Nova finds no host for a guest; None if it does.

    Nova takes all of a guest's memory from what a host has, touched or not.

    :param host_mib: host -> its memory, as libvirt says it
    """
    for host, mib in host_mib.items():
        if mib - RESERVED_MIB < guest.memory_mib:
            return (f'{host} has {mib - RESERVED_MIB} MiB of memory for '
                    f'Nova, {guest.memory_mib} MiB are needed')
    return None


class NovaGuest:
    def __init__(self, lab: lab_.Lab, contender: scenario.Contender,
                 rig: 'NovaRig'):
        self._lab, self._contender, self._rig = lab, contender, rig

    def migrate(self, key: scenario.Key,
                workload: scenario.Workload) -> scenario.Run:
        contender, lab = self._contender, self._lab
        events = libvirt_rig.Events()
        told = () if workload.guest.data_plane == scenario.DataPlane.DPDK \
            else ('--rewrite-mib-per-s', str(workload.rewrite_mib_per_s),
                  '--working-set-mib', str(workload.rewritten_mib),
                  '--disk-mib-per-s', str(workload.disk_mib_per_s))
        with lab_.CpuRecorder(lab) as cpu, libvirt_rig.spoken(), \
                contextlib.ExitStack() as stack:
            for host in lab.names:
                stack.enter_context(events.heard(
                    stack.enter_context(libvirt_rig.connected(lab.uri(host))),
                    host))
            self._rig.demo(
                'migrate', '--driver', str(contender.driver), '--server',
                SERVER, '--count', '1', '--variant', contender.name,
                '--features', ','.join(contender.features) or 'none',
                '--packets-per-s', str(workload.packets_per_s), *told)
            run = self._rig.last_run()
            heard = events.figures(run['source'], run['destination'])
        return scenario.Run(
            key, lab_.iso_time(run['started_s']), run['source'],
            scenario.Figures(
                **figures(run, heard),
                **cpu.used(run['source'], run['started_s'], run['ended_s'])),
            tuple(run['failures']), run['probe']['blackout_stall_ms'])


class NovaRig:
    """Nova's own driver and this project's, in turns on the same hosts."""

    def __init__(self, lab: lab_.Lab):
        self._lab = lab
        libvirt_rig.listen()

    def demo(self, *arguments: str) -> None:
        self._lab.on(
            'controller', 'chrt', '--idle', '0', 'python',
            '/usr/src/nova-fastmig/lab/demo.py', '--directory',
            f'/opt/lab/{DIRECTORY}', *arguments, timeout_s=300)

    def clean(self) -> None:
        """Remove a guest that may be there."""
        self.demo('clean')

    def last_run(self) -> dict[str, ty.Any]:
        path = self._lab.state / 'share' / DIRECTORY / 'runs.jsonl'
        return json.loads(path.read_text().splitlines()[-1])

    def _host_mib(self) -> dict[str, int]:
        found = {}
        for host in self._lab.names:
            with libvirt_rig.spoken(), libvirt_rig.connected(
                    self._lab.uri(host)) as connection:
                found[host] = connection.getInfo()[1]
        return found

    def obstacle(self, turn: scenario.Turn) -> str | None:
        unfit = (lab_.obstacle(turn) or
                 self._lab.memory.obstacle(turn.guest) or
                 memory_obstacle(self._host_mib(), turn.guest))
        if unfit:
            return unfit
        driver = turn.contender.driver
        unknown = set(turn.contender.options) - OPTIONS[driver].keys()
        if unknown:
            return (f'Nova with the {driver} driver has no option for '
                    f'{", ".join(sorted(unknown))}')
        return self._lab.qemu_obstacle(turn.contender)

    @contextlib.contextmanager
    def guest(self, turn: scenario.Turn) -> Iterator[engine.Guest]:
        contender = turn.contender
        options = []
        for option in (*libvirt_options(contender),
                       *cpu_options(turn.guest, self._lab.accelerator)):
            options += ['--libvirt', option]
        if contender.driver == scenario.Driver.FASTMIG:
            options += ['--qemu', str(contender.qemu), '--features',
                        ','.join(contender.features) or 'none']
        self._lab.use_switch(turn.guest.data_plane)
        # before nova-compute is started, which counts them then
        with self._lab.memory.hugepages(turn.guest) as check:
            self._lab.run('use-driver', str(contender.driver), *options)
            try:
                self.demo('prepare', '--server', SERVER,
                          *flavor_arguments(contender, turn.guest))
                check()
                yield NovaGuest(self._lab, contender, self)
            finally:
                with contextlib.suppress(engine.RigError):
                    self.clean()
