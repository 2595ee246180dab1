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

"""Adds to Nova's fake libvirt what a live migration needs.

Nova's own tests replace ``migrateToURI3`` as a whole. Here it behaves as
libvirt does: it blocks, reports a job, can be cancelled, moves the domain to
the connection that the URI names, and tells about it by events.
"""

import dataclasses
import functools
import json
import pathlib
import time
import urllib.parse

import fixtures
import libvirt_qemu
from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_config import cfg

from nova_fastmig import opts
from tests import fake_libvirt_names
from tests import fake_qemu

PATCHED = 'Debian 1:10.0.2+ds-1, nova-fastmig 1'

QEMU_DEFAULT_DOWNTIME_MS = 300


@dataclasses.dataclass
class Behaviour:
    """How the next migrations go.

    :ivar converges: otherwise one goes on until it is cancelled, or the guest
        is paused, or post-copy is started
    :ivar downtime_ms: in the completed statistics, like total_ms; None leaves
        the field out
    :ivar error: what makes the migration fail when it has converged
    :ivar fails_at_the_end: the same when the source has given the guest away
    :ivar hangs: the guest is paused for the switchover, which then does not
        finish while this is so; one that is cancelled resumes the guest
    :ivar refuses_to_abort: in a switchover that hangs
    :ivar pass_s: how long a pass over the memory takes, with its event at the
        start; None for a first pass that does not end
    :ivar dirty_mib_s: what the guest dirties; 32 MiB/s are sent
    :ivar disk_is_full: no definition can be written
    """

    converges: bool = True
    downtime_ms: int | None = 7
    total_ms: int | None = 800
    error: str | None = None
    fails_at_the_end: str | None = None
    hangs: bool = False
    refuses_to_abort: bool = False
    pass_s: float | None = None
    dirty_mib_s: int = 0
    disk_is_full: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of migrateToURI3, with what was in force when it began."""

    uuid: str
    params: dict
    flags: int
    downtime_limit_ms: int

    def has(self, flag: str) -> bool:
        value = getattr(fakelibvirt, f'VIR_MIGRATE_{flag}')
        return bool(self.flags & value)


class Domain(fakelibvirt.Domain):

    def __init__(self, connection, xml, running=False, transient=False):
        super().__init__(connection, xml, running, transient)
        tree = etree.fromstring(xml)
        self._metadata = tree.find('metadata')
        self._commandline = tree.find(
            '{http://libvirt.org/schemas/domain/qemu/1.0}commandline')
        self._emulator = tree.findtext('./devices/emulator')
        self._passthrough = []
        self.downtime_limit_ms = QEMU_DEFAULT_DOWNTIME_MS
        self._reason = 0
        self._started = None
        self._pass = 0
        self._cancelled = False
        self._post_copy = False

    def XMLDesc(self, flags):
        tree = etree.fromstring(super().XMLDesc(flags))
        for element in (self._metadata, self._commandline):
            if element is not None:
                tree.append(element)
        tree.find('./devices').extend(map(etree.fromstring,
                                          self._passthrough))
        tree.find('./devices/emulator').text = self._emulator or (
            etree.fromstring(self._connection.getDomainCapabilities(
                None, 'x86_64', None, 'kvm', 0)).findtext('./path'))
        return etree.tostring(tree, encoding='unicode')

    def connect(self):
        return self._connection

    def plug_in(self, xml):
        """A device of the host, which does not move with the guest."""
        self._passthrough.append(xml)

    def state(self, flags=0):
        return [self._state, self._reason]

    def suspend(self):
        super().suspend()
        # libvirt's reason, whoever it was.
        self._reason = (fakelibvirt.VIR_DOMAIN_PAUSED_USER
                        if self._started is None else
                        fakelibvirt.VIR_DOMAIN_PAUSED_MIGRATION)

    def resume(self):
        super().resume()
        self._reason = 0

    def wait_for_source(self):
        """Be the destination of a migration that is not over."""
        super().suspend()
        self._reason = fakelibvirt.VIR_DOMAIN_PAUSED_MIGRATION

    def isPersistent(self):
        return int(not self._transient)

    def migrateGetMaxDowntime(self, flags=0):
        return self.downtime_limit_ms

    def migrateSetMaxDowntime(self, downtime, flags=0):
        self.downtime_limit_ms = downtime

    def migrateStartPostCopy(self, flags=0):
        self._post_copy = True

    def abortJob(self):
        if self._connection.behaviour.refuses_to_abort:
            raise self._error('cannot abort now',
                              fakelibvirt.VIR_ERR_OPERATION_INVALID)
        self._cancelled = True

    def _switch_over(self):
        behaviour = self._connection.behaviour
        says = functools.partial(self._connection.qemu_says, self)
        says('STOP', 0)
        says('MIGRATION', 0.5, status='pre-switchover')
        says('MIGRATION', 2, status='device')
        if not behaviour.hangs:
            return
        super().suspend()
        self._reason = fakelibvirt.VIR_DOMAIN_PAUSED_MIGRATION
        while behaviour.hangs:
            if self._cancelled:
                self.resume()
                says('RESUME', 250)
                raise self._cancellation()
            time.sleep(0.01)

    def _cancellation(self):
        return self._error(
            'operation aborted: migration out job: canceled by client',
            fakelibvirt.VIR_ERR_OPERATION_ABORTED)

    def jobStats(self, flags=0):
        if not self.isActive():
            raise self._error('domain is not running',
                              fakelibvirt.VIR_ERR_OPERATION_INVALID)
        if self._started is None:
            return {'type': fakelibvirt.VIR_DOMAIN_JOB_NONE}
        return {'type': fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED,
                'time_elapsed': int((time.monotonic() - self._started) * 1000),
                'memory_total': 1 << 30, 'memory_processed': 1 << 29,
                'memory_remaining': 1 << 29, 'memory_iteration': self._pass,
                'memory_bps': 32 << 20, 'memory_page_size': 4096,
                'memory_dirty_rate':
                    (self._connection.behaviour.dirty_mib_s << 20) // 4096}

    def _next_pass(self):
        """Begin another pass when it is time."""
        pass_s = self._connection.behaviour.pass_s
        if pass_s and (time.monotonic() - self._started >=
                       self._pass * pass_s):
            self._pass += 1
            self._connection.emit('MIGRATION_ITERATION', self, self._pass)

    def migrateToURI3(self, dconnuri, params, flags):
        connection = self._connection
        behaviour = connection.behaviour
        # The destination's QEMU is started first.
        time.sleep(0.1)
        connection.calls.append(Call(
            self.UUIDString(), params, flags, self.downtime_limit_ms))
        self._started = time.monotonic()
        self._pass = 1
        self._cancelled = self._post_copy = False
        try:
            connection.qemu_says(self, 'MIGRATION', -300, status='active')
            connection.emit('MIGRATION_ITERATION', self, 1)
            while not behaviour.converges:
                if self._cancelled:
                    raise self._cancellation()
                if (self._post_copy or
                        self._state == fakelibvirt.VIR_DOMAIN_PAUSED):
                    break
                self._next_pass()
                time.sleep(0.01)
            self._switch_over()
            if behaviour.error:
                raise self._error(behaviour.error,
                                  fakelibvirt.VIR_ERR_OPERATION_FAILED)
        finally:
            self._started = None
        connection.qemu_says(self, 'MIGRATION', 5, status='completed')
        if behaviour.fails_at_the_end:
            time.sleep(0.2)
            raise self._error(behaviour.fails_at_the_end,
                              fakelibvirt.VIR_ERR_OPERATION_FAILED)
        host = urllib.parse.urlsplit(dconnuri).hostname
        incoming = connection.hosts[host].createXML(
            params['destination_xml'], 0)
        incoming._transient = not (
            flags & fakelibvirt.VIR_MIGRATE_PERSIST_DEST)
        self._leave()
        stats = {'downtime': behaviour.downtime_ms,
                 'time_elapsed': behaviour.total_ms,
                 'memory_bps': 1 << 30}
        connection.emit('JOB_COMPLETED', self, {
            'type': fakelibvirt.VIR_DOMAIN_JOB_COMPLETED,
            **{name: value for name, value in stats.items()
               if value is not None}})

    def _leave(self):
        self._state = fakelibvirt.VIR_DOMAIN_SHUTOFF
        self._connection._mark_not_running(self)
        if not self._transient:
            self._connection._undefine(self)

    @staticmethod
    def _error(message, code):
        return fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, message, error_code=code,
            error_domain=fakelibvirt.VIR_FROM_QEMU, error_message=message)


class Connection(fakelibvirt.Connection):
    """A host. The fixture sets the class attributes for each test.

    :cvar hosts: connections by host name
    :cvar behaviour: of migrations that leave any host
    :cvar calls: every migrateToURI3, in order
    :cvar qemu_callbacks: those that get QEMU's own events
    """

    hosts: dict[str, 'Connection']
    qemu_callbacks: dict
    behaviour: Behaviour
    calls: list[Call]

    def __init__(self, *args, hostname=None, **kwargs):
        super().__init__(*args, hostname=hostname, **kwargs)
        self._callbacks = {}
        self._next_callback_id = 0
        self.free_pages = {}
        self.hosts[hostname] = self

    def defineXML(self, xml):
        """A running domain stays as it is and becomes persistent.

        Or libvirt loses it, if it cannot write what it shall define.
        """
        name = etree.fromstring(xml).findtext('name')
        running = self._vms.get(name)
        if self.behaviour.disk_is_full:
            if running is not None and running._transient:
                del self._vms[name]
            raise fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'No space left on device',
                error_code=fakelibvirt.VIR_ERR_INTERNAL_ERROR)
        if running is None or not running.isActive():
            return super().defineXML(xml)
        running._transient = False
        return running

    def listAllDomains(self, flags=0):
        if flags == fakelibvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT:
            return [domain for domain in self._vms.values()
                    if domain._transient]
        return super().listAllDomains(flags)

    def isAlive(self):
        return 1

    def getVersion(self):
        """That of the patched QEMU, which no test is about."""
        return 10_000_002

    def getFreePages(self, pages, start_cell, cell_count, flags=0):
        return {cell: {size: free[size] for size in pages}
                for cell, free in self.free_pages.items()
                if start_cell <= cell < start_cell + cell_count}

    def domainEventRegisterAny(self, dom, eventid, callback, opaque):
        self._next_callback_id += 1
        self._callbacks[self._next_callback_id] = eventid, callback, opaque
        return self._next_callback_id

    def domainEventDeregisterAny(self, callback_id):
        del self._callbacks[callback_id]

    def emit(self, event: str, domain, *details) -> None:
        event_id = getattr(fakelibvirt, f'VIR_DOMAIN_EVENT_ID_{event}')
        for each_id, callback, opaque in list(self._callbacks.values()):
            if each_id == event_id:
                callback(self, domain, *details, opaque)


    def qemu_says(self, domain, event: str, at_ms: float, **details) -> None:
        """Pass on what a QEMU says of itself, at its time."""
        for wanted, callback in list(self.qemu_callbacks.values()):
            if wanted == event:
                callback(self, domain, event, 1_770_000_000,
                         round(at_ms * 1000), json.dumps(details), None)


class FakeLibvirt(fixtures.Fixture):
    """To be used after Nova's LibvirtFixture.

    :ivar hosts: Connection by host name
    :ivar behaviour: of the migrations of this test
    :ivar calls: of migrateToURI3
    :ivar emulator: path of the patched QEMU on all hosts; there is none until
        ``install_patched_qemu``
    :ivar monitor_commands: what QEMUs were told, with their arguments
    :ivar query_migrate: what QEMUs say about a migration
    :ivar announced: (host, domain's uuid) of each announce-self
    """

    def install_patched_qemu(self, *features: str) -> None:
        """Of no use to hosts that have reported their resources before."""
        self.features = features
        fake_qemu.install(self.emulator, PATCHED, features)

    def remove_patched_qemu(self) -> None:
        self.emulator.unlink()

    def _monitor_command(self, domain, command, flags):
        command = json.loads(command)
        if command['execute'] == 'announce-self':
            self.announced.append((domain._connection.hostname,
                                   domain.UUIDString()))
            return json.dumps({'return': {}})
        if domain._emulator != str(self.emulator):
            raise AssertionError('who asks the distribution\'s QEMU marks '
                                 'the guest as tainted')
        self.monitor_commands.append(
            (command['execute'], command.get('arguments', {})))
        answers = {'query-migrate': self.query_migrate,
                   **fake_qemu.answers(PATCHED, self.features)}
        return json.dumps({'return': answers.get(command['execute'], {})})

    def _register(self, connection, domain, event, callback, opaque):
        self._callback_ids += 1
        self.qemu_callbacks[self._callback_ids] = event, callback
        return self._callback_ids

    def _deregister(self, connection, callback_id):
        del self.qemu_callbacks[callback_id]

    def _setUp(self):
        self.hosts = {}
        self.calls = []
        self.monitor_commands = []
        self.announced = []
        self.behaviour = Behaviour()
        self.emulator = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu'))
        self.features = ()
        self.qemu_callbacks = {}
        self._callback_ids = 0
        self.query_migrate = {}
        opts.register(cfg.CONF)
        # Not oslo.config's fixture: it resets all options at its end, and
        # Nova's fixtures stop their services after that, with the waits of
        # production.
        for name, value in (
                ('emulator', self.emulator),
                ('calibration_path', self.emulator.parent / 'calibration'),
                ('migrations_path', self.emulator.parent / 'migrations')):
            cfg.CONF.set_override(name, str(value), group='fastmig')
            self.addCleanup(cfg.CONF.clear_override, name, group='fastmig')
        for name, value in fake_libvirt_names.CONSTANTS.items():
            if not hasattr(fakelibvirt, name):
                self.useFixture(fixtures.MonkeyPatch(
                    f'{fakelibvirt.__name__}.{name}', value))
        for cls in (Domain, Connection):
            self.useFixture(fixtures.MonkeyPatch(
                f'{fakelibvirt.__name__}.{cls.__name__}', cls))
        for name in ('hosts', 'behaviour', 'calls', 'qemu_callbacks'):
            self.useFixture(fixtures.MockPatchObject(
                Connection, name, getattr(self, name), create=True))
        for module in fake_libvirt_names.MODULES:
            self.useFixture(fixtures.MonkeyPatch(
                f'nova_fastmig.{module}.libvirt', fakelibvirt))
        for name, function in (
                ('qemuMonitorCommand', self._monitor_command),
                ('qemuMonitorEventRegister', self._register),
                ('qemuMonitorEventDeregister', self._deregister)):
            self.useFixture(fixtures.MockPatchObject(
                libvirt_qemu, name, side_effect=function))
