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

"""The destination's ports -> may the guest come? Pure.

A guest that resumes where its port is not wired stands still for its peers
however short its blackout was.
"""

from collections.abc import Collection
import dataclasses
import enum

# Where Neutron's Open vSwitch agent puts ports that it does not want to
# forward (neutron.plugins.ml2.common.constants.DEAD_VLAN_TAG).
DEAD_VLAN = 4095


class Wiring(enum.Enum):
    """Who makes a port forward, and how one sees that it does."""

    # Neutron's Open vSwitch agent: it sets the port's VLAN tag with its flows.
    AGENT = enum.auto()
    # OVN's controller: it sets ovn-installed when its flows are in place.
    OVN = enum.auto()
    # Something that this driver cannot look into.
    UNKNOWN = enum.auto()


@dataclasses.dataclass(frozen=True)
class Port:
    """One port of the guest at the destination, as the switch shows it.

    :ivar port_id: Neutron's
    :ivar ofport: number of the interface in the switch; None if it is not
        there, negative if there is no device behind it
    :ivar error: what the switch says of the interface; empty for nothing
    :ivar vlan: local VLAN tag of the port; None for none
    :ivar installed: OVN says that its flows are there
    """

    port_id: str
    wiring: Wiring
    ofport: int | None = None
    error: str = ''
    vlan: int | None = None
    installed: bool = False


class Answer(enum.StrEnum):
    OPEN = 'open'
    WAIT = 'wait'
    SHUT = 'shut'


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether the migration may begin.

    :ivar wired: every port was seen to be wired
    """

    answer: Answer
    reason: str
    wired: bool = False


def why_absent(port: Port) -> str:
    """Why nothing can get through; empty if the switch has the port."""
    if port.wiring is Wiring.UNKNOWN:
        return ''
    because = f' ({port.error})' if port.error else ''
    if port.ofport is None:
        return f'port {port.port_id} is not in the switch{because}'
    if port.ofport < 0:
        return f'port {port.port_id} has no device in the switch{because}'
    if port.wiring is Wiring.AGENT and port.vlan in (None, DEAD_VLAN):
        return (f"Neutron's agent has not wired port {port.port_id} "
                f'(VLAN tag {port.vlan or "none"})')
    return ''


def why_unsure(port: Port) -> str:
    """Why nobody knows whether a port that is not absent is wired."""
    if port.wiring is Wiring.UNKNOWN:
        return (f'port {port.port_id} is of a kind that this driver cannot '
                f'look at')
    if port.wiring is Wiring.OVN and not port.installed:
        return (f'OVN has not said that the flows of port {port.port_id} are '
                f'installed')
    return ''


def decide(ports: Collection[Port], waited_ms: float,
           limit_ms: float) -> Decision:
    """Say whether a migration may begin.

    OVN before 22.06, or without Neutron's support for a port on two chassis,
    installs nothing at the destination before the binding is activated, so
    its silence does not forbid the migration.

    :param waited_ms: for the ports, since they were plugged
    :param limit_ms: for which to wait; 0 for no gate at all
    """
    if not limit_ms:
        return Decision(Answer.OPEN, 'nobody looked '
                        '([fastmig]port_wiring_timeout_s = 0)')
    absent = [*filter(None, map(why_absent, ports))]
    unsure = [*filter(None, map(why_unsure, ports))]
    # Waiting does not show what cannot be seen.
    hopeful = absent or any(
        port.wiring is not Wiring.UNKNOWN and why_unsure(port)
        for port in ports)
    if hopeful and waited_ms < limit_ms:
        return Decision(Answer.WAIT, '; '.join(absent + unsure))
    if absent:
        return Decision(
            Answer.SHUT, '; '.join(absent) + f', {waited_ms:.0f} ms after it '
            f'was plugged; {limit_ms:.0f} ms are allowed '
            f'([fastmig]port_wiring_timeout_s)')
    if unsure:
        return Decision(Answer.OPEN, '; '.join(unsure))
    return Decision(Answer.OPEN, f'{len(ports)} of {len(ports)} ports were '
                    f'wired {waited_ms:.0f} ms after they were plugged',
                    wired=True)
