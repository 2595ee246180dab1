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

"""Two hosts of an operator's own, driven through libvirt and nothing else.

The generator runs here; what is on the hosts is asked of their libvirt. No
command is run there but by libvirt's own transport.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import importlib.metadata
import os
import pathlib
import shutil
import socket
import typing as ty

import libvirt
from lxml import etree

from nova_fastmig.bench import catalog
from nova_fastmig.bench import engine
from nova_fastmig.bench import hosts_file
from nova_fastmig.bench import lab
from nova_fastmig.bench import libvirt_rig
from nova_fastmig.bench import memory
from nova_fastmig.bench import scenario

VIRSH = 'virsh'


def read(path: pathlib.Path) -> hosts_file.Given:
    """Read a file of hosts.

    :raises: hosts_file.InvalidHosts
    """
    try:
        return hosts_file.parse(path.read_text())
    except (OSError, UnicodeError) as error:
        raise hosts_file.InvalidHosts(f'{path}: {error}') from error
    except hosts_file.InvalidHosts as error:
        raise hosts_file.InvalidHosts(f'{path}: {error}') from error


@contextlib.contextmanager
def _asked(name: str, host: hosts_file.Host) -> Iterator[libvirt.virConnect]:
    """A connection whose errors name the host."""
    try:
        with libvirt_rig.connected(host.uri) as connection:
            yield connection
    except libvirt.libvirtError as error:
        raise engine.RigError(f'{name}: {error}') from error


def _lacking_pages(connection: libvirt.virConnect, guest: scenario.Guest
                   ) -> str | None:
    """Why a host has no pages for a guest on hugepages; None if it has."""
    # -1: of all NUMA nodes together
    free = sum(pages[guest.page_kib] for pages in connection.getFreePages(
        [guest.page_kib], -1, 1).values())
    if free >= guest.hugepages:
        return None
    return (f'{free} pages of {guest.page_kib} KiB are free, '
            f'{guest.hugepages} are needed')


def _lacking_memory(connection: libvirt.virConnect, guest: scenario.Guest
                    ) -> str | None:
    """Why a host has no memory for a guest; None if it has."""
    # libvirt does not tell what is available; where little is in shared
    # memory, which counts as cached, this is not far from it
    stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    free_mib = (stats['free'] + stats['buffers'] + stats['cached']) // 1024
    needed_mib = guest.touched_mib + memory.RESERVE_MIB
    if free_mib >= needed_mib:
        return None
    return (f'{free_mib} MiB of memory are free or cached files, '
            f'{needed_mib} MiB are needed: {guest.touched_mib} MiB of the '
            f'guest, and {memory.RESERVE_MIB} MiB')


class Memory:
    """That of the hosts; see libvirt_rig.Memory.

    It is the operator's: nothing is added to a pool of hugepages there.
    """

    def __init__(self, hosts: Mapping[str, hosts_file.Host]):
        self._hosts = hosts

    def obstacle(self, guest: scenario.Guest) -> str | None:
        lacking = _lacking_pages if guest.hugepages else _lacking_memory
        try:
            for name, host in self._hosts.items():
                with _asked(name, host) as connection:
                    found = lacking(connection, guest)
                if found is not None:
                    return f'{name}: {found}'
        except engine.RigError as error:
            return str(error)
        return None

    @contextlib.contextmanager
    def hugepages(self, guest: scenario.Guest
                  ) -> Iterator[Callable[[], None]]:
        # libvirt starts a guest with <hugepages> on such pages or not at all;
        # how many are free says nothing, as others may use them, too
        yield lambda: None


class Hosts(lab.Packets):
    """Two hosts that a file describes; see libvirt_rig.Hosts.

    :raises: hosts_file.InvalidHosts, engine.RigError
    """

    names = hosts_file.HOSTS
    disk_is_shared = True
    one_clock = False

    def __init__(self, path: pathlib.Path,
                 checkout: pathlib.Path = lab.CHECKOUT):
        given = read(path)
        self._path, self._hosts, self._guest = path, given.hosts, given.guest
        program = pathlib.Path(given.generator.program)
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise hosts_file.InvalidHosts(
                f'{path}: [generator] program = {str(program)!r}: must be '
                f'the probe, a program on this machine; lab/probe/build '
                f'builds it')
        interface = given.generator.interface
        present = [name for _, name in socket.if_nameindex()]
        if interface not in present:
            raise hosts_file.InvalidHosts(
                f'{path}: [generator] interface = {interface!r}: must be one '
                f'of this machine: {", ".join(present)}')
        super().__init__(checkout, program, interface=interface,
                         source=given.generator.source)
        if shutil.which(VIRSH) is None:
            raise engine.RigError(
                f'{VIRSH} is not on this machine: it is in the package '
                f'libvirt-clients (Debian) or libvirt-client (Fedora)')
        self.memory = Memory(given.hosts)
        self.address = lab.Address(given.guest.mac, given.guest.ip)
        self.bridge = given.guest.bridge, given.guest.bridge_type
        self.accelerator = given.guest.accelerator
        # connections of cpu_ms
        self._kept: dict[str, libvirt.virConnect] = {}

    # ---- libvirt

    def uri(self, host: str) -> str:
        return self._hosts[host].uri

    def peer_uri(self, host: str) -> str:
        return self._hosts[host].peer_uri

    def migrate_uri(self, host: str) -> str:
        return self._hosts[host].migrate_uri

    def virsh(self, host: str) -> list[str]:
        return [VIRSH, '--connect', self.uri(host)]

    def _capabilities(self, host: str, emulator: str | None):
        """What guests can be there with this QEMU, or with libvirt's own.

        :raises: engine.RigError if there can be none
        """
        with _asked(host, self._hosts[host]) as connection:
            return etree.fromstring(connection.getDomainCapabilities(
                emulator, 'x86_64', 'pc',
                libvirt_rig.DOMAIN_TYPES[self.accelerator]))

    @functools.cached_property
    def _emulator(self) -> str:
        return self._guest.emulator or self._capabilities(
            self.names[0], None).findtext('path')

    def emulator(self, qemu: scenario.Qemu) -> str:
        return (self._guest.patched_emulator if qemu == scenario.Qemu.PATCHED
                else self._emulator)

    def qemu_obstacle(self, contender: scenario.Contender) -> str | None:
        if (contender.qemu == scenario.Qemu.PATCHED and
                self._guest.patched_emulator is None):
            return f'{self._path} has no [guest] patched_emulator'
        try:
            for host in self.names:
                self._capabilities(host, self.emulator(contender.qemu))
        except engine.RigError as error:
            return str(error)
        return None

    # ---- ports: LabOnly has those of guests with DPDK

    def use_switch(self, plane: scenario.DataPlane) -> None:
        pass

    def plug(self, host: str) -> None:
        raise engine.RigError(f'{host}: no vhost-user ports are made there')

    def unplug(self, host: str) -> None:
        pass

    # ---- the guest's disk: one that is only read serves all

    def place_disk(self, name: str, plane: scenario.DataPlane) -> str:
        return self._guest.disk

    def remove_disk(self, name: str) -> None:
        pass

    # ---- what the hosts are

    def machine(self) -> dict[str, ty.Any]:
        """What the results are measured on."""
        version = self.module('demo_report').version
        machine = {}
        for host in self.names:
            with _asked(host, self._hosts[host]) as connection:
                cpu = etree.fromstring(
                    connection.getCapabilities()).find('host/cpu')
                _, memory_mib, cores, *_ = connection.getInfo()
                machine |= {
                    host: connection.getHostname(),
                    # libvirt's name for the nearest one that it knows
                    f'{host}_cpu': ' '.join(filter(None, (
                        cpu.findtext('vendor'), cpu.findtext('model')))),
                    f'{host}_cores': cores,
                    f'{host}_memory_mib': memory_mib,
                    f'{host}_qemu': version(connection.getVersion()),
                    f'{host}_libvirt': version(connection.getLibVersion())}
        # these are others than libvirt's own, whose version is above
        given = {name: path for name in ('emulator', 'patched_emulator')
                 if (path := getattr(self._guest, name))}
        return {**machine, **given, **lab.revision(),
                'accel': self.accelerator,
                'nova_fastmig': importlib.metadata.version('nova-fastmig')}

    def guest_size(self) -> catalog.Size:
        """What guests have here where nothing else is said."""
        if self.accelerator != 'kvm':
            return catalog.AS_IT_IS
        machine = self.machine()
        cores, memory_mib = (
            min(machine[f'{host}_{what}'] for host in self.names)
            for what in ('cores', 'memory_mib'))
        return catalog.size_for(cores, memory_mib, 1)

    def cpu_ms(self, host: str) -> float:
        """Of the whole host, as its kernel counts: in ticks.

        It is asked for many times a second, so its connection is kept.
        """
        try:
            if host not in self._kept:
                self._kept[host] = libvirt.open(self.uri(host))
            stats = self._kept[host].getCPUStats(
                libvirt.VIR_NODE_CPU_STATS_ALL_CPUS)
        except libvirt.libvirtError as error:
            self._kept.pop(host, None)
            raise engine.RigError(f'{host}: processor time: {error}'
                                  ) from error
        return (stats['user'] + stats['kernel']) / 1e6


class LabOnly:
    """The rig of what hosts that are given cannot run."""

    def obstacle(self, turn: scenario.Turn) -> str:
        return (f'{turn.contender.control} with {turn.guest.data_plane} '
                f'forwarding runs on the lab only: --hosts has '
                f'{scenario.Control.LIBVIRT} with '
                f'{scenario.DataPlane.KERNEL} forwarding')

    def guest(self, turn: scenario.Turn):
        raise engine.RigError(self.obstacle(turn))
