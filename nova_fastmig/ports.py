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

"""A guest's ports: in the destination's switch, and in Neutron."""

import copy
import http
import threading
import time
import typing as ty

from neutronclient.common import exceptions as neutron_exceptions
from nova.network import model as network_model
from nova.network import neutron
from oslo_config import cfg
from oslo_log import log as logging
from vif_plug_ovs.ovsdb import ovsdb_lib

from nova_fastmig import exception
from nova_fastmig import gate
from nova_fastmig import model

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.1
# In the details of a destination's binding, which Nova carries from there to
# the source with the data of one migration, and nowhere else.
_SEEN = 'fastmig_wired'
# Of a trunk's own bridge; what forwards is its patch port.
_TRUNK_BRIDGE = 'tbr-'
# How long Neutron may take for an activation before the next step of the
# migration stops waiting for it. It goes on in its thread.
_ACTIVATION_TIMEOUT_S = 30


def _in_open_vswitch(vif_type: str, details: dict) -> bool:
    return (vif_type == network_model.VIF_TYPE_OVS or
            bool(details.get(network_model.VIF_DETAILS_VHOSTUSER_OVS_PLUG)))


def _wiring(vif) -> gate.Wiring:
    """:param vif: nova.objects.migrate_data.VIFMigrateData"""
    details = vif.vif_details
    if not _in_open_vswitch(vif.vif_type, details):
        return gate.Wiring.UNKNOWN
    bridge = details.get(network_model.VIF_DETAILS_BRIDGE_NAME) or ''
    if bridge.startswith(_TRUNK_BRIDGE):
        return gate.Wiring.UNKNOWN
    if 'ovn' in (details.get('bound_drivers') or {}).values():
        return gate.Wiring.OVN
    return gate.Wiring.AGENT


class Switch:
    """Open vSwitch of this host, asked the way os-vif does."""

    def __init__(self):
        self._library: ovsdb_lib.BaseOVS | None = None

    def _find(self, table: str, *condition, columns: list[str]) -> list[dict]:
        if self._library is None:
            self._library = ovsdb_lib.BaseOVS(CONF.os_vif_ovs)
        return self._library.ovsdb.db_find(
            table, condition, columns=columns).execute(check_error=True)

    def look(self, port_id: str, wiring: gate.Wiring) -> gate.Port:
        """What the switch has for one of Neutron's ports.

        :raises: any error of the library, if the switch cannot be asked
        """
        if wiring is gate.Wiring.UNKNOWN:
            return gate.Port(port_id, wiring)
        found = self._find(
            'Interface', 'external_ids', '=', {'iface-id': port_id},
            columns=['name', 'ofport', 'error', 'external_ids'])
        if not found:
            return gate.Port(port_id, wiring)
        interface = found[0]
        port = next(iter(self._find(
            'Port', 'name', '=', interface['name'], columns=['tag'])), {})
        # An optional column without a value is an empty list.
        return gate.Port(
            port_id, wiring, ofport=interface['ofport'] or None,
            error=interface['error'] or '', vlan=port.get('tag') or None,
            installed=(interface['external_ids'].get('ovn-installed') ==
                       'true'))


def announce_move(context, instance) -> None:
    """Tell Neutron that a guest is on its way to this host.

    Nova does that when it has plugged the ports. Neutron's agent leaves a
    port alone that it finds before, until the binding is activated.
    """
    neutron.API().setup_networks_on_host(context, instance, CONF.host)


def create_taps(migrate_data) -> None:
    """Have os-vif create the taps before the destination's QEMU does.

    Neutron's agent wires a port that has a device, and without one there is
    no "network-vif-plugged" that Nova could wait for. os-vif 5.2 has this for
    ML2/OVS (``[ovs_driver]ovs_create_tap``), if Neutron asks for it.
    """
    for vif in _vifs(migrate_data):
        if _is_tap(vif.vif_type, vif.vnic_type, vif.vif_details):
            vif.vif_details = {
                **vif.vif_details,
                network_model.VIF_DETAILS_OVS_CREATE_TAP: True}


def _per_port_bridge() -> bool:
    try:
        return CONF.os_vif_ovs.per_port_bridge
    except cfg.NoSuchOptError:
        # of an os-vif that cannot do it, or does not have the plugin
        return False


# Of no use with a Nova that has no word for it.
_CAN_CREATE_TAPS = hasattr(network_model, 'VIF_DETAILS_OVS_CREATE_TAP')


def _is_tap(vif_type: str, vnic_type: str, details: dict) -> bool:
    """Whether the guest's own tap is a port of the integration bridge."""
    return (_CAN_CREATE_TAPS and
            vif_type == network_model.VIF_TYPE_OVS and
            vnic_type == network_model.VNIC_TYPE_NORMAL and
            not details.get(network_model.VIF_DETAILS_OVS_HYBRID_PLUG) and
            not _per_port_bridge())


def _has_tap(vif: network_model.VIF) -> bool:
    return _is_tap(vif.get('type'), vif.get('vnic_type'),
                   vif.get('details') or {})


def have_taps(network_info: network_model.NetworkInfo | None) -> bool:
    """Whether ``with_taps`` has anything to do."""
    return any(map(_has_tap, network_info or ()))


def with_taps(network_info: network_model.NetworkInfo) -> \
        network_model.NetworkInfo:
    """The same ports, so that os-vif removes a tap that it has created.

    libvirt's own taps are gone with their QEMU before that.
    """
    found = []
    for vif in network_info:
        if _has_tap(vif):
            vif = copy.copy(vif)
            vif['details'] = {
                **(vif['details'] or {}),
                network_model.VIF_DETAILS_OVS_CREATE_TAP: True}
        found.append(vif)
    return network_model.NetworkInfo(found)


def _vifs(migrate_data) -> list:
    """:returns: of nova.objects.migrate_data.VIFMigrateData"""
    if not migrate_data or 'vifs' not in migrate_data:
        return []
    return list(migrate_data.vifs or [])


def wait_until_wired(switch: Switch, migrate_data, limit_s: float) -> None:
    """Hold a migration at its destination until its ports are wired.

    What was found is noted in migrate_data, for the source to read.

    :param limit_s: how long to wait; 0 for no gate
    :raises: PortsNotWired with what is missing
    """
    vifs = _vifs(migrate_data)
    started_s = time.monotonic()
    while True:
        waited_ms = (time.monotonic() - started_s) * 1000
        try:
            ports = [switch.look(vif.port_id, _wiring(vif)) for vif in vifs]
        except Exception as error:
            # It may just have been restarted.
            LOG.warning('Open vSwitch cannot be asked: %s', error)
            ports = [gate.Port(vif.port_id, _wiring(vif), error=str(error))
                     for vif in vifs]
        decision = gate.decide(ports, waited_ms, limit_s * 1000)
        if decision.answer is not gate.Answer.WAIT:
            break
        time.sleep(_LOOK_AGAIN_S)
    if decision.answer is gate.Answer.SHUT:
        raise exception.PortsNotWired(CONF.host, decision.reason)
    LOG.info('The ports at the destination: %s', decision.reason)
    for vif in vifs:
        vif.vif_details = {
            **vif.vif_details,
            _SEEN: {'wired': decision.wired, 'reason': decision.reason}}


def seen(migrate_data) -> tuple[bool, str]:
    """What the destination has found out about the ports.

    :returns: whether they were seen to be wired before the migration began,
        and its words
    """
    for vif in _vifs(migrate_data):
        found = vif.vif_details.get(_SEEN)
        if isinstance(found, dict):
            return bool(found.get('wired')), str(found.get('reason', ''))
    return False, 'the destination did not look at the ports'


class Arrivals:
    """The ports that were plugged for guests that are to come here.

    Nova does not remove them from the destination of a migration that has
    failed, if the instances are on shared storage.
    """

    def __init__(self):
        self._by_uuid: dict[
            str, tuple[float, float | None, ty.Any, ty.Any]] = {}

    def expect(self, instance, migrate_data, begins_s: float,
               lasts_s: float) -> None:
        """Remember what is plugged.

        :param begins_s: when libvirt has the guest or will not get it
        :param lasts_s: when it is here or will not come, from then on
        """
        self._by_uuid[instance.uuid] = (
            time.monotonic() + begins_s, lasts_s, instance,
            network_model.NetworkInfo(
                vif.get_dest_vif() for vif in _vifs(migrate_data)))

    def not_begun(self) -> list:
        """:returns: nova.objects.Instance of each that libvirt had not yet"""
        return [instance
                for _, lasts_s, instance, _ in list(self._by_uuid.values())
                if lasts_s is not None]

    def begun(self, uuid: str) -> float | None:
        """libvirt has the guest, whose migration may take its time now.

        :returns: how long; None for one that is not expected, or has begun
        """
        _, lasts_s, *what = self._by_uuid.get(uuid, (None, None))
        if lasts_s is not None:
            self._by_uuid[uuid] = (time.monotonic() + lasts_s, None, *what)
        return lasts_s

    def landed(self, uuid: str) -> None:
        """The guest is here, and so its ports stay."""
        self._by_uuid.pop(uuid, None)

    def overdue(self) -> list[tuple[ty.Any, network_model.NetworkInfo]]:
        """Forget those whose time is over.

        :returns: (nova.objects.Instance, its ports)
        """
        now_s = time.monotonic()
        found = [uuid for uuid, (until_s, *_) in self._by_uuid.items()
                 if until_s < now_s]
        return [self._by_uuid.pop(uuid)[2:] for uuid in found]


class Bindings:
    """The bindings of a guest's ports at both ends of one migration.

    Not by Nova's ``migrate_instance_start``: in a switchover there is no time
    for a new client, and for asking about each binding first.

    :param instance: nova.objects.Instance
    :param migrate_data: without ports in it Neutron has no bindings at two
        hosts, and nothing is done here
    """

    def __init__(self, context, instance, migrate_data, source: str,
                 destination: str):
        self._instance = instance
        self._port_ids = [vif.port_id for vif in _vifs(migrate_data)]
        self._source = source
        self._destination = destination
        self._client = self._make_client(context) if self._port_ids else None
        self._thread: threading.Thread | None = None
        self._began_s = 0.0
        self._took_ms: float | None = None

    def _make_client(self, context):
        """:returns: None if Neutron cannot be reached now"""
        try:
            return neutron.get_client(context, admin=True)
        except Exception as error:
            LOG.warning("Only Nova's post step will bind the ports to %s: %s",
                        self._destination, error, instance=self._instance)
            return None

    def _bind_to(self, host: str) -> None:
        for port_id in self._port_ids:
            try:
                self._client.activate_port_binding(port_id, host)
            except neutron_exceptions.NeutronClientException as error:
                if error.status_code != http.HTTPStatus.CONFLICT:
                    raise
                LOG.debug('Port %s is bound to %s already', port_id, host,
                          instance=self._instance)

    def _run(self) -> None:
        try:
            self._bind_to(self._destination)
        except Exception as error:
            # Nova's post step does it again.
            LOG.warning('Could not activate the port bindings at %s: %s',
                        self._destination, error, instance=self._instance)
            return
        self._took_ms = (time.monotonic() - self._began_s) * 1000
        LOG.info('Activated the port bindings at %s, which took %.0f ms',
                 self._destination, self._took_ms, instance=self._instance)

    def activate(self) -> None:
        """Begin to activate those at the destination; does not wait.

        To be called when the source has given the guest away, and not later:
        Neutron takes longer than the rest of the switchover.
        """
        if self._client is not None and self._thread is None:
            self._began_s = time.monotonic()
            self._thread = threading.Thread(
                target=self._run, name='port-bindings', daemon=True)
            self._thread.start()

    def wait(self) -> float | None:
        """Wait for what ``activate`` has begun.

        :returns: how many milliseconds it took; None if it was not begun, has
            failed or takes too long
        """
        if self._thread is not None:
            self._thread.join(_ACTIVATION_TIMEOUT_S)
        return self._took_ms

    def back_to_source(self) -> None:
        """Undo ``activate``, for a guest that has stayed.

        Nova's rollback does not know of it.
        """
        if self._thread is None:
            return
        self.wait()
        try:
            self._bind_to(self._source)
        except Exception:
            LOG.exception('The ports are bound to %s, but the guest is at %s',
                          self._destination, self._source,
                          instance=self._instance)


def report(migrate_data, activated_ms: float | None) -> model.Network:
    """The network's part of a migration, as far as anybody knows it."""
    if not _vifs(migrate_data):
        return model.Network(None, 'Nova has told nothing about ports',
                             activated_ms)
    wired, words = seen(migrate_data)
    return model.Network(
        blackout_ms=0.0 if wired else None, reason=words,
        activation_ms=None if activated_ms is None else round(activated_ms, 1))
