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

"""Writes to a guest's memory behind its back, through QEMU's gdbstub."""

import asyncio


async def _exchange(reader, writer, packet):
    data = packet.encode()
    writer.write(b'$%s#%02x' % (data, sum(data) % 256))
    answer = await reader.readuntil(b'#')
    await reader.readexactly(2)  # the checksum
    writer.write(b'+')
    answer = answer.split(b'$', 1)[1][:-1].decode()
    if answer.startswith('E') or not answer:
        raise RuntimeError(f"gdbstub: '{packet}' was answered '{answer}'")
    return answer


async def flip_bit(process, path, physical_address):
    """Flip the lowest bit of a byte of the guest's physical memory.

    path is where the gdbstub may make its socket.
    """
    await process.command('human-monitor-command', command_line=(
        f'gdbserver unix:{path},server=on,wait=off'))
    reader, writer = await asyncio.open_unix_connection(path)
    await _exchange(reader, writer, 'Qqemu.PhyMemMode:1')
    byte = await _exchange(reader, writer, f'm{physical_address:x},1')
    await _exchange(reader, writer,
                    f'M{physical_address:x},1:{int(byte, 16) ^ 1:02x}')
    await _exchange(reader, writer, 'D')  # lets the guest run again
    writer.close()
    await writer.wait_closed()
