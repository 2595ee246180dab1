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

"""The packets that the guest sends every millisecond.

The kernel of the host stamps each when it arrives, so that this process may
be late in reading them. Every QEMU sends from a port of its own, which tells
where the guest ran.
"""

import asyncio
import collections
import dataclasses
import socket
import statistics
import struct
import time

# from <asm-generic/socket.h>; Python's socket has no names for them
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
TIMESPEC = struct.Struct('@ll')
# see struct beacon in guest/init.c; behind an Ethernet header
BEACON = struct.Struct('=14s4s16sQQ')
MAGIC = b'nfmb'
ETHERTYPE_RARP = b'\x80\x35'
RECEIVE_BUFFER_BYTES = 4 << 20
# packets of the destination that end the observation
TAIL = 100

# how late even the fastest packet can be after the guest has read its clock: a
# vCPU that a busy host does not run
CLOCK_SLACK_MS = 500


class SwitchoverFault(Exception):
    """The packets show that a switchover went wrong."""


@dataclasses.dataclass(frozen=True)
class Packet:
    arrival_s: float
    sender: int  # port of the QEMU
    boot_id: bytes
    sequence: int
    guest_ns: int


@dataclasses.dataclass(frozen=True)
class Announcement:
    """A RARP frame, which QEMU sends for the guest."""

    arrival_s: float
    sender: int


@dataclasses.dataclass(frozen=True)
class Gap:
    """What the packets around one switchover say."""

    # from the source's last packet to the destination's first
    blackout_ms: float
    # how far the guest's clock ran ahead of the host's meanwhile: with TCG it
    # stands still with the guest, so that this is less than zero
    clock_gain_ms: float
    # the longest pause between two packets of the same QEMU: what the host
    # and the guest add by themselves
    noise_ms: float
    median_interval_ms: float
    lost: int
    # packets that both sent, or that came from the source after the
    # destination had sent one: the guest ran twice
    twice: int

    def check(self):
        """Raise if the guest ran twice or its clock jumped."""
        if self.twice:
            raise SwitchoverFault(f'the guest ran on both sides: {self}')
        if not (-self.blackout_ms - CLOCK_SLACK_MS < self.clock_gain_ms
                < CLOCK_SLACK_MS):
            raise SwitchoverFault(f"the guest's clock jumped: {self}")


class Receiver:
    def __init__(self):
        self._packets = []
        self._announcements = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        try:  # more than net.core.rmem_max needs root
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE,
                                    RECEIVE_BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF,
                                    RECEIVE_BUFFER_BYTES)
        self._socket.bind(('127.0.0.1', 0))
        self.port = self._socket.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def sender(self):
        """Return the socket of one QEMU, with a port that no other has.

        One that QEMU opens has SO_REUSEADDR: for UDP, the kernel may then
        give two QEMUs the same port, and nothing tells them apart.
        """
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sender.bind(('127.0.0.1', 0))
            sender.connect(('127.0.0.1', self.port))
        except OSError:
            sender.close()
            raise
        return sender

    def close(self):
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self):
        while True:
            try:
                data, control, _, address = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            seconds, ns = TIMESPEC.unpack(control[0][2])
            arrival_s, sender = seconds + ns / 1e9, address[1]
            if data[12:14] == ETHERTYPE_RARP:
                self._announcements.append(Announcement(arrival_s, sender))
            if len(data) < BEACON.size:
                continue
            _, magic, boot_id, sequence, guest_ns = BEACON.unpack_from(data)
            if magic != MAGIC:
                continue
            self._packets.append(Packet(arrival_s, sender, boot_id, sequence,
                                        guest_ns))

    def clear(self):
        self._read()
        del self._packets[:-1]
        self._announcements.clear()

    @property
    def announcements(self):
        self._read()
        return list(self._announcements)

    @property
    def packets(self):
        self._read()
        return list(self._packets)

    async def running(self):
        """Wait for the guest's first packets."""
        while len(self.packets) < TAIL:
            await asyncio.sleep(0.02)

    async def switchover(self, timeout_s):
        """Wait for packets from a second QEMU; tell what happened."""
        deadline = time.monotonic() + timeout_s
        while True:
            packets = self.packets
            senders = collections.Counter(p.sender for p in packets)
            if len(senders) > 1 and senders[packets[-1].sender] >= TAIL:
                return gap(packets)
            if time.monotonic() > deadline:
                silent_s = time.time() - packets[-1].arrival_s
                raise SwitchoverFault(
                    f'packets by the port of their QEMU: {dict(senders)}; '
                    f'need {TAIL} from the destination within {timeout_s} s; '
                    f'the last one is {silent_s:.1f} s old')
            await asyncio.sleep(0.02)


def _clock_lag_ms(packets):
    """By how much the guest's clock is less than the host's.

    The packet that was fastest knows best.
    """
    return min(p.arrival_s * 1000 - p.guest_ns / 1e6 for p in packets)


def gap(packets):
    source = [p for p in packets if p.sender == packets[0].sender]
    destination = [p for p in packets if p.sender != packets[0].sender]
    intervals = [(b.arrival_s - a.arrival_s) * 1000
                 for side in (source, destination)
                 for a, b in zip(side, side[1:], strict=False)]
    # the guest's counter goes on at the destination: nothing is sent again
    both = ({p.sequence for p in source}
            & {p.sequence for p in destination})
    late = [p for p in source
            if p.arrival_s > destination[0].arrival_s]
    sequences = {p.sequence for p in packets}
    return Gap(
        (destination[0].arrival_s - source[-1].arrival_s) * 1000,
        _clock_lag_ms(source[-TAIL:]) - _clock_lag_ms(destination[:TAIL]),
        max(intervals), statistics.median(intervals),
        max(sequences) - min(sequences) + 1 - len(sequences),
        max(len(both), len(late)))
