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

"""Runs the probe against one server."""

import json
import os
import pathlib
import shlex
import signal
import subprocess

INTERFACE = 'probe0'
# where packets come back from a guest with two ports (lab/use-switch)
FAR_INTERFACE = 'probe1'
# on the guests' network, but no host's own: a host would answer the guest's
# answers with ICMP errors
SOURCE = '10.88.0.253'
# DPDK leaves network cards alone, and takes no hugepages, which guests need
EAL_OPTIONS = ('--no-pci', '--no-huge', '-m', '64', '--iova-mode=va',
               '--no-shconf', '--no-telemetry', '--log-level=error')


def dpdk_command(program: pathlib.Path, near: str, far: str) -> list[str]:
    """The probe that sends with DPDK, as far as its ports.

    :param program: the probe's path; that with DPDK is beside it
        (lab/use-switch --install), and DPDK's own directory, too
    :param near: the interface that packets leave from
    :param far: that where they come back
    """
    cpus = ','.join(map(str, sorted(os.sched_getaffinity(0))))
    return ['env', f'RUNTIME_DIRECTORY={program.parent}',
            str(program.with_name(f'{program.name}-dpdk')), *EAL_OPTIONS,
            f'--lcores=0@({cpus})',
            f'--vdev=net_af_packet0,iface={near},qdisc_bypass=1',
            f'--vdev=net_af_packet1,iface={far},qdisc_bypass=1', '--',
            '--interface', 'net_af_packet0', '--far', 'net_af_packet1']


class ProbeError(Exception):
    """The guest does not answer, or the probe does not run."""


class Probe:
    """A running probe; a context manager.

    The block is entered when the guest answers. ``result`` is the probe's own
    JSON and is there when the block is left.

    :param program: the probe's path
    :param port: openstack.network.v2.port.Port of the server
    :param rate: probes per second
    :param rewrite_mib_per_s: how fast the guest is to rewrite its memory from
        now on; None: as it does
    :param working_set_mib: how much of it; None: as much as it does
    :param disk_mib_per_s: how fast it is to use its disk meanwhile; 0: not
    :param seconds: it ends by itself after so long
    :param interface: that it sends from
    :param source: its IP address there, and no host's own
    """

    def __init__(self, program: pathlib.Path, port, rate=1000,
                 answer_within_s=10, rewrite_mib_per_s=None,
                 working_set_mib=None, disk_mib_per_s=0, seconds=600,
                 interface=INTERFACE, source=SOURCE):
        self._command = [
            str(program), '--interface', interface, '--source', source,
            '--mac', port.mac_address,
            '--destination', port.fixed_ips[0]['ip_address'],
            '--rate', str(rate), '--answer-within', str(answer_within_s),
            '--seconds', str(seconds)]
        if rewrite_mib_per_s is not None:
            self._command += ['--rewrite', str(rewrite_mib_per_s)]
        if working_set_mib is not None:
            self._command += ['--working-set', str(working_set_mib)]
        if disk_mib_per_s:
            self._command += ['--disk', str(disk_mib_per_s)]
        self.result = None

    @classmethod
    def two_ports(cls, program: pathlib.Path, near: str, far: str, mac: str,
                  rate=1000, answer_within_s=10):
        """A probe of a forwarder between two ports, with DPDK.

        :param program: see dpdk_command
        :param near: the generator's interface that packets leave from
        :param far: its interface where they come back
        :param mac: of the guest's port next to the near one
        """
        made = cls.__new__(cls)
        made._command = [
            *dpdk_command(program, near, far), '--mac', mac,
            '--rate', str(rate), '--answer-within', str(answer_within_s)]
        made.result = None
        return made

    def mark(self):
        """A phase ends; ``phases`` of the result has each by itself.

        Twice at most: what comes before, during and after a migration.
        """
        self._process.send_signal(signal.SIGUSR1)

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True)
        said = ''
        for line in self._process.stderr:
            if line == 'ready\n':
                return self
            said += line
        self._process.communicate()
        raise ProbeError(f'{shlex.join(self._command)}: {said}')

    def __exit__(self, *exception):
        self._process.terminate()
        try:
            output, errors = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise ProbeError(f'{shlex.join(self._command)} does not end'
                             ) from error
        if self._process.returncode:
            raise ProbeError(f'{shlex.join(self._command)}: {errors}')
        self.result = json.loads(output)
