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

"""The domain: apply the Plan to it, ask it, make it persistent."""

from collections.abc import Collection
import threading
import time

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import config as nova_config
from nova.virt.libvirt import guest as nova_guest
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import strutils

from nova_fastmig import model
from nova_fastmig import qmp
from nova_fastmig import request

CONF = cfg.CONF
LOG = logging.getLogger(__name__)

_QEMU_NS = 'http://libvirt.org/schemas/domain/qemu/1.0'
_COMMANDLINE = f'{{{_QEMU_NS}}}commandline'
_ARGUMENT = f'{{{_QEMU_NS}}}arg'
# A migration capability of QEMU's that is on from its start. Nothing but
# this package writes such arguments into a domain of Nova's.
_GLOBAL = 'migration.{feature}=on'
_GLOBAL_PREFIX = 'migration.x-'

_RECONNECT_INTERVAL_S = 0.5


def _without_features(domain) -> None:
    commandline = domain.find(_COMMANDLINE)
    if commandline is None:
        return
    arguments = commandline.findall(_ARGUMENT)
    for option, argument in zip(arguments, arguments[1:], strict=False):
        if (option.get('value') == '-global' and
                argument.get('value', '').startswith(_GLOBAL_PREFIX)):
            commandline.remove(option)
            commandline.remove(argument)
    if len(commandline) == 0:
        domain.remove(commandline)


def adapt_xml(domain_xml: str, emulator: str | None = None,
              features: Collection[model.QemuFeature] = ()) -> str:
    """Choose the QEMU of a domain and what it has switched on from its start.

    :param emulator: path; '' for libvirt's choice, None to leave it as it is
    :param features: take the place of those that are there
    """
    domain = etree.fromstring(domain_xml)
    devices = domain.find('./devices')
    if emulator is not None and devices is not None:
        for element in devices.findall('./emulator'):
            devices.remove(element)
        if emulator:
            element = etree.Element('emulator')
            element.text = emulator
            devices.insert(0, element)
    _without_features(domain)
    if features:
        commandline = domain.find(_COMMANDLINE)
        if commandline is None:
            commandline = etree.SubElement(domain, _COMMANDLINE,
                                           nsmap={'qemu': _QEMU_NS})
        for feature in sorted(features):
            for value in ('-global', _GLOBAL.format(feature=feature)):
                etree.SubElement(commandline, _ARGUMENT, value=value)
    return etree.tostring(domain, encoding='unicode')


def passthrough_devices(domain_xml: str) -> list[str]:
    """Describe the devices of the host that a guest has."""
    devices = etree.fromstring(domain_xml).find('./devices')
    if devices is None:
        return []
    found = [f'the {kind} port {port.find("mac").get("address")}'
             if port.find('mac') is not None else f'a {kind} port'
             for type_, kind in (('hostdev', 'SR-IOV'), ('vdpa', 'vDPA'))
             for port in devices.findall(f'./interface[@type="{type_}"]')]
    for device in devices.findall('./hostdev'):
        address = device.find('./source/address')
        where = {} if address is None else address.attrib
        # Of a mediated device, of a PCI device, of anything else.
        name = where.get('uuid') or '.'.join(filter(None, (':'.join(
            where[each].removeprefix('0x') for each in (
                'domain', 'bus', 'slot') if each in where),
            where.get('function', '').removeprefix('0x'))))
        kind = {'mdev': 'mediated', 'pci': 'PCI'}.get(
            device.get('type'), device.get('type'))
        found.append(f'the {kind} device {name}'.rstrip())
    return found


def _bits(names: frozenset[str]) -> int:
    bits = 0
    for name in names:
        bits |= getattr(libvirt, f'VIR_MIGRATE_{name}')
    return bits


class _PlannedDomain:
    """A virDomain that migrates with more parameters than Nova gives it.

    Nova's ``Guest.migrate`` builds a fixed set, which depends on the release.
    """

    def __init__(self, domain, params: dict):
        self._domain = domain
        self._params = params

    def __getattr__(self, name):
        return getattr(self._domain, name)

    def migrateToURI3(self, dconnuri, params, flags):
        return self._domain.migrateToURI3(
            dconnuri, params={**params, **self._params}, flags=flags)


# VIR_MIGRATE_PARAM_BANDWIDTH_AVAIL_SWITCHOVER, which libvirt-python knows if
# it was built with libvirt 11.1; in MiB/s.
_SWITCHOVER_BANDWIDTH = 'bandwidth.avail.switchover'


def _params(plan: model.Plan) -> dict:
    params = {}
    if plan.parallel_connections > 1:
        params[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = (
            plan.parallel_connections)
    if plan.switchover_bandwidth_mib_s is not None:
        params[_SWITCHOVER_BANDWIDTH] = plan.switchover_bandwidth_mib_s
    return params


# A migration parameter of the patched QEMU, in milliseconds. The error of one
# that has run out names it, too.
_SWITCHOVER_TIMEOUT = 'x-switchover-timeout'


def _says(error: Exception, text: str) -> bool:
    """Whether QEMU's words are in libvirt's error."""
    return isinstance(error, libvirt.libvirtError) and text in str(error)


def is_switchover_timeout(error: Exception) -> bool:
    """Whether QEMU has ended a switchover that took too long."""
    return _says(error, _SWITCHOVER_TIMEOUT)


# Of the patched QEMU's error, if the answer to x-early-resume's hand-over is
# missing.
_UNANSWERED = 'The guest was handed over to the destination'


def is_unanswered_handover(error: Exception) -> bool:
    """Whether QEMU has given the guest away and not heard that it arrived."""
    return _says(error, _UNANSWERED)


def is_no_domain(error: Exception) -> bool:
    """Whether libvirt says that it does not know the guest."""
    return (isinstance(error, libvirt.libvirtError) and
            error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


class FastGuest(nova_guest.Guest):
    """A Guest that migrates by its Plan.

    Nova's LibvirtDriver builds the destination's XML and URIs and then calls
    ``migrate``; only what the plan is about is changed there.
    """

    def __init__(self, domain, plan: model.Plan):
        super().__init__(_PlannedDomain(domain, _params(plan)))
        self._plan = plan

    def migrate(self, destination, *args, destination_xml=None, flags=0,
                **kwargs):
        """Migrate with the plan's flags and limits; blocks until the end.

        The downtime limit is set before the start, so that QEMU never runs
        with its default of 300 ms. The limits belong to the QEMU process, so
        those that were in force come back if the guest stays.

        :raises: libvirt.libvirtError
        """
        if destination_xml:
            # The destination's QEMU cannot be reached before the migration
            # has begun, so it gets its features on its command line.
            destination_xml = adapt_xml(
                destination_xml, self._plan.destination_emulator,
                self._plan.qemu_features.destination)
        if self._plan.source.patched_qemu:
            self._set_features(self._plan.qemu_features.source)
        previous_ms = self._domain.migrateGetMaxDowntime()
        self.migrate_configure_max_downtime(self._plan.downtime_limit_ms)
        # Nova 33 and newer: from Nova's own option.
        kwargs.pop('parallel', None)
        if self._plan.bandwidth_limit_mib_s:
            # Nova's own limit, where there is one, holds too.
            kwargs['bandwidth'] = min(filter(None, (
                kwargs.get('bandwidth'), self._plan.bandwidth_limit_mib_s)))
        flags |= _bits(self._plan.set_flags)
        flags &= ~_bits(self._plan.clear_flags)
        # Of a guest that is paused anyway it is no blackout.
        self._limit_switchover(0 if self.is_paused() else
                               self._plan.switchover_limit_ms)
        try:
            super().migrate(destination, *args, flags=flags,
                            destination_xml=destination_xml, **kwargs)
        except libvirt.libvirtError:
            self._restore_limits(previous_ms)
            raise

    def _set_features(self, features: Collection[model.QemuFeature]) -> None:
        """Switch on these and switch off the others that this QEMU has."""
        qmp.execute(self._domain, 'migrate-set-capabilities', capabilities=[
            {'capability': feature, 'state': feature in features}
            for feature in sorted(self._plan.source.qemu_features)])

    def _limit_switchover(self, limit_ms: int) -> None:
        """Have QEMU end a switchover that hangs; 0 for never.

        While it sends the last pages it executes no command, so that nobody
        else can. The distribution's is left alone, and one from an earlier
        series does not know the parameter.
        """
        if (self._plan.source.patched_qemu and _SWITCHOVER_TIMEOUT in
                qmp.execute(self._domain, 'query-migrate-parameters')):
            qmp.execute(self._domain, 'migrate-set-parameters',
                        **{_SWITCHOVER_TIMEOUT: limit_ms})

    def _restore_limits(self, downtime_ms: int) -> None:
        for restore, limit_ms in (
                (self.migrate_configure_max_downtime, downtime_ms),
                (self._limit_switchover, 0)):
            try:
                restore(limit_ms)
            except (libvirt.libvirtError, ValueError, KeyError) as error:
                LOG.debug('A limit of %s stays as it is: %s',
                          self._plan.sla, error)

    def job_stats(self) -> dict:
        """Statistics of the running job; empty if libvirt has none to give."""
        try:
            return self._domain.jobStats()
        except libvirt.libvirtError as error:
            LOG.debug('No job statistics: %s', error)
            return {}

    def query_migrate(self) -> dict:
        """What QEMU says about its migration; empty if it is gone."""
        try:
            return qmp.execute(self._domain, 'query-migrate')
        except (libvirt.libvirtError, ValueError, KeyError) as error:
            LOG.warning('The QEMU of %s could not be asked about its '
                        'migration: %s', self.name, error)
            return {}

    def reconnect(self, host, timeout_s: float) -> bool:
        """Ask libvirt again, if it has been lost; wait until it is back.

        :param host: nova.virt.libvirt.host.Host
        :param timeout_s: for libvirt to come back. The guest's questions stay
            without an answer if it does not
        :returns: False if libvirt is back and does not know the guest
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._domain.connect().isAlive():
            try:
                self._domain = _PlannedDomain(
                    host.get_connection().lookupByUUIDString(self.uuid),
                    _params(self._plan))
            except (libvirt.libvirtError,
                    nova_exception.NovaException) as error:
                if is_no_domain(error):
                    return False
                if time.monotonic() > deadline_s:
                    LOG.error('libvirt cannot be asked about %s: %s',
                              self.uuid, error)
                    break
                time.sleep(_RECONNECT_INTERVAL_S)
        return True

    def has_ended_here(self) -> bool:
        """Whether the guest has come to its end instead of leaving.

        False for one that has left, and if libvirt does not say.
        """
        try:
            state, reason = self._domain.state()
        except libvirt.libvirtError as error:
            LOG.debug('No domain state: %s', error)
            return False
        return state == libvirt.VIR_DOMAIN_SHUTOFF and reason in (
            libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
            libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED,
            libvirt.VIR_DOMAIN_SHUTOFF_CRASHED,
            libvirt.VIR_DOMAIN_SHUTOFF_FAILED)

    def is_paused(self) -> bool:
        """Whether the vCPUs stand still; False if libvirt does not say."""
        return self._pause_reason() is not None

    def is_switching_over(self) -> bool:
        """Whether they stand still for the migration.

        An I/O error, a snapshot or somebody who paused the guest before is
        another reason. ``virsh suspend`` in a migration is not: libvirt says
        the same then.
        """
        return self._pause_reason() == libvirt.VIR_DOMAIN_PAUSED_MIGRATION

    def _pause_reason(self) -> int | None:
        """VIR_DOMAIN_PAUSED_*; None for a guest that is not paused."""
        try:
            state, reason = self._domain.state()
        except libvirt.libvirtError as error:
            LOG.debug('No domain state: %s', error)
            return None
        return reason if state == libvirt.VIR_DOMAIN_PAUSED else None


def _is_tagged(domain_xml: str) -> bool:
    """Whether the flavor in the domain's Nova metadata is tagged."""
    text = etree.fromstring(domain_xml).findtext(
        './metadata/nova:instance/nova:flavor/nova:extraSpecs/'
        f'nova:extraSpec[@name="{request.ENABLED}"]',
        namespaces={'nova': nova_config.NOVA_NS})
    return text is not None and strutils.bool_from_string(text)


def _is_incoming(domain) -> bool:
    """Whether this is the destination of a migration that is not over."""
    state, reason = domain.state()
    return not (state == libvirt.VIR_DOMAIN_RUNNING or
                (state, reason) == (libvirt.VIR_DOMAIN_PAUSED,
                                    libvirt.VIR_DOMAIN_PAUSED_USER))


# A domain of this host that is never started, and is there for a moment.
_TRIAL_NAME = 'nova-fastmig-trial'
_TRIAL_UUID = '2b8a3f4e-6d1c-5e97-8f05-c4a7d9e01b36'
_TRIAL_MEMORY_KIB = '1024'
_trial = threading.Lock()


def _trial_xml(domain_xml: str) -> str:
    """A domain without anything, whose definition is not smaller."""
    of = etree.fromstring(domain_xml)
    domain = etree.Element('domain', type=of.get('type', 'kvm'))
    for name, text in (('name', _TRIAL_NAME), ('uuid', _TRIAL_UUID),
                       ('description', 'x' * 2 * len(domain_xml)),
                       ('memory', _TRIAL_MEMORY_KIB)):
        etree.SubElement(domain, name).text = text
    for path, parent in (('os/type', 'os'), ('devices/emulator', 'devices')):
        found = of.find(path)
        if found is not None:
            etree.SubElement(domain, parent).append(found)
    return etree.tostring(domain, encoding='unicode')


def _try_to_define(host, xml: str) -> None:
    """See whether libvirt can write a definition now.

    If it cannot write that of a guest that runs and is not defined yet,
    libvirt 11.3 forgets the guest, whose QEMU goes on. So something else is
    defined first.

    :raises: libvirt.libvirtError
    """
    with _trial:
        connection = host.get_connection()
        connection.defineXML(_trial_xml(xml)).undefine()


def persist_if_tagged(host, domain) -> bool:
    """Define a tagged guest that is here and is not defined yet.

    The migration leaves that out to keep it out of the blackout.

    :param host: nova.virt.libvirt.host.Host
    :param domain: libvirt.virDomain
    :returns: whether the domain was defined by this call
    :raises: libvirt.libvirtError
    """
    if domain.isPersistent() or _is_incoming(domain):
        return False
    guest = nova_guest.Guest(domain)
    xml = guest.get_xml_desc(dump_inactive=True, dump_sensitive=True)
    if not _is_tagged(xml):
        return False
    # The features were for this migration, not for the guest's next start.
    xml = adapt_xml(xml)
    _try_to_define(host, xml)
    host.write_instance_config(xml)
    LOG.info('Made the migrated domain %s persistent', guest.name)
    return True


# For about four seconds, which covers the time that Neutron takes to activate
# the bindings; QEMU's own announcements end after less than one.
_ANNOUNCE = {'initial': 50, 'max': 250, 'rounds': 20, 'step': 50}


def announce_if_tagged(domain) -> None:
    """Have QEMU tell the network where a tagged guest is now (RARP).

    :param domain: libvirt.virDomain
    :raises: libvirt.libvirtError, ValueError, KeyError
    """
    if CONF.fastmig.announce and _is_tagged(domain.XMLDesc(0)):
        qmp.execute(domain, 'announce-self', **_ANNOUNCE)


def announce_by_uuid(host, uuid: str) -> None:
    """``announce_if_tagged`` for one guest; a failure is logged."""
    try:
        announce_if_tagged(host.get_connection().lookupByUUIDString(uuid))
    except (libvirt.libvirtError, ValueError, KeyError) as error:
        LOG.warning('Could not announce domain %s to the network: %s', uuid,
                    error)


def welcome(host, uuid: str) -> None:
    """What to do at once for a guest that has resumed here.

    One that is defined has not just come.
    """
    try:
        domain = host.get_connection().lookupByUUIDString(uuid)
        has_come = not domain.isPersistent() and not _is_incoming(domain)
    except libvirt.libvirtError as error:
        LOG.debug('Domain %s is not here any more: %s', uuid, error)
        return
    if has_come:
        announce_by_uuid(host, uuid)
        persist_by_uuid(host, uuid)


def persist_by_uuid(host, uuid: str) -> None:
    """``persist_if_tagged`` for one guest; a failure is logged.

    It is tried again at the next look, so nothing is lost by going on.
    """
    try:
        persist_if_tagged(host, host.get_connection().lookupByUUIDString(uuid))
    except libvirt.libvirtError as error:
        LOG.warning('Could not make domain %s persistent, will try again: %s',
                    uuid, error)


def persist_all(host) -> None:
    """``persist_by_uuid`` for every guest on this host.

    Finds the guests that arrived while nova-compute was down.
    """
    try:
        uuids = [domain.UUIDString()
                 for domain in host.get_connection().listAllDomains(
                     libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)]
    except libvirt.libvirtError as error:
        LOG.warning('Could not look for domains that are not persistent: %s',
                    error)
        return
    for uuid in uuids:
        persist_by_uuid(host, uuid)
