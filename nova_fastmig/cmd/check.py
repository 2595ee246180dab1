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

"""``nova-fastmig check``: is this host ready?"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import enum
import importlib.metadata
import math
import os
import pathlib
import time
import typing as ty

from cliff import lister
import nova.conf

from nova_fastmig import calibration_store
from nova_fastmig import capabilities
from nova_fastmig import conf as fastmig_conf
from nova_fastmig import inspection
from nova_fastmig import model
from nova_fastmig import plan

CONF = nova.conf.CONF

DRIVER = 'fastmig.FastMigDriver'


class Status(enum.StrEnum):
    OK = 'ok'
    WARNING = 'warning'
    FAILED = 'failed'


class Item(ty.NamedTuple):
    """One thing that was looked at.

    :ivar todo: empty if nothing has to be done
    """

    name: str
    status: Status
    found: str
    todo: str = ''


def _version(version: tuple[int, int, int]) -> str:
    return '.'.join(map(str, version))


def check_driver(conf) -> Item:
    driver = conf.compute_driver or 'not set'
    if driver == DRIVER:
        return Item('compute driver', Status.OK, driver)
    return Item('compute driver', Status.FAILED, driver,
                f'set [DEFAULT]compute_driver = {DRIVER}')


def check_settings(conf) -> Item:
    settings = fastmig_conf.sla_settings(conf).default
    return Item(
        'SLA settings', Status.OK,
        f'by default {settings.max_downtime_ms} ms of downtime, '
        f'{settings.max_total_ms} ms in total, then {settings.on_miss}')


def check_transport(conf) -> Item:
    transport = fastmig_conf.transport_settings(conf)
    if transport.tunnelled:
        return Item(
            'transport', Status.FAILED, 'tunnelled through libvirt',
            'take [libvirt]live_migration_tunnelled out')
    if not conf.libvirt.live_migration_with_native_tls:
        return Item(
            'transport', Status.WARNING, 'memory is sent without encryption',
            'set [libvirt]live_migration_with_native_tls, unless the network '
            'is trusted or encrypts by itself')
    return Item('transport', Status.OK, 'native TLS')


def check_post_copy(conf) -> Item:
    permitted = fastmig_conf.transport_settings(conf).post_copy_permitted
    found = 'permitted' if permitted else 'not permitted'
    if not permitted and (fastmig_conf.sla_settings(conf).default.on_miss is
                          model.OnMiss.POST_COPY):
        return Item(
            'post-copy', Status.FAILED,
            f'{found}, but [fastmig]default_on_miss = post-copy',
            'set [libvirt]live_migration_permit_post_copy')
    return Item('post-copy', Status.OK, found)


def check_kvm(conf) -> Item:
    if conf.libvirt.virt_type != 'kvm':
        return Item(
            'KVM', Status.WARNING,
            f'[libvirt]virt_type = {conf.libvirt.virt_type}',
            'emulated guests are for trials; set [libvirt]virt_type = kvm')
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return Item(
            'KVM', Status.FAILED, '/dev/kvm is missing or not accessible',
            'load the module kvm_intel or kvm_amd, switch virtualization on '
            'in the firmware, run this command as root or in the group kvm')
    return Item('KVM', Status.OK, '/dev/kvm')


def check_sinks(conf) -> Item:
    known = {each.name for each in importlib.metadata.entry_points(
        group='nova_fastmig.sinks')}
    names = conf.fastmig.sinks
    missing = [name for name in names if name not in known]
    if missing:
        return Item(
            'sinks', Status.FAILED, f'unknown: {", ".join(missing)}',
            f'correct [fastmig]sinks; installed: {", ".join(sorted(known))}')
    if not names:
        return Item('sinks', Status.WARNING, 'none; reports go nowhere',
                    'set [fastmig]sinks')
    if ('notification' in names and
            conf.notifications.notification_format == 'unversioned'):
        return Item(
            'sinks', Status.FAILED,
            'notification, but Nova sends no versioned ones',
            'set [notifications]notification_format = versioned, or both')
    return Item('sinks', Status.OK, ', '.join(names))


def check_files(conf) -> Item:
    """Only what the kernel lets the caller do can be told."""
    paths = [conf.fastmig.calibration_path, conf.fastmig.migrations_path]
    for sink, path in (('journal', conf.fastmig.journal_path),
                       ('prometheus', conf.fastmig.prometheus_textfile)):
        if sink in conf.fastmig.sinks:
            paths.append(path)
    for path in paths:
        directory = pathlib.Path(path).parent
        while not directory.exists():
            directory = directory.parent
        if not directory.is_dir() or not os.access(
                directory, os.W_OK | os.X_OK):
            return Item(
                'files', Status.FAILED, f'{directory} cannot be written',
                f'let nova-compute write {path}, or set another path in '
                f'[fastmig]; run this command as the user of nova-compute')
    return Item('files', Status.OK, ', '.join(paths))


def check_bandwidth(conf) -> Item:
    at_once = conf.max_concurrent_live_migrations
    mib_s = conf.fastmig.migration_bandwidth_mib_s
    if mib_s:
        return Item('bandwidth', Status.OK, f'{mib_s} MiB/s to share')
    if at_once != 1:
        return Item(
            'bandwidth', Status.WARNING,
            f'nothing is reserved, but {at_once or "any number of"} '
            f'migrations may leave this host at the same time',
            'set [fastmig]migration_bandwidth_mib_s')
    return Item('bandwidth', Status.OK, 'nothing is reserved')


def check_calibration(conf) -> Item:
    """Also whether what was learned refuses migrations."""
    store = calibration_store.Store.configured(conf)
    allowed_ms = fastmig_conf.sla_settings(conf).default.max_downtime_ms
    refused = [
        f'{why} ({_next_trial(store.next_trial_s(pair))})'
        for pair, versions in store.pairs().items()
        if (why := plan.why_hopeless(
            allowed_ms, pair.source, pair.destination,
            store.estimate(pair, versions)))]
    found = f'{len(store.pairs())} pairs of hosts are known'
    if not refused:
        return Item('calibration', Status.OK, found)
    return Item(
        'calibration', Status.WARNING,
        f'{found}; with the default SLA migrations are refused between '
        f'{len(refused)}: ' + '; '.join(refused),
        'raise the downtime that flavors allow, or use the patched QEMU; '
        '[fastmig]calibration_retry_s says when one is tried')


def _next_trial(at_s: float) -> str:
    if at_s == math.inf:
        return 'without trials'
    return 'next trial from ' + time.strftime('%Y-%m-%dT%H:%M:%SZ',
                                              time.gmtime(at_s))


def _can_tell_bandwidth(name: str, found: str, version: tuple[int, int, int],
                        needed: tuple[int, int, int]) -> Item:
    """Whether QEMU can be told the bandwidth of the switchover with it."""
    if version < needed:
        return Item(
            name, Status.WARNING, found,
            f'from {_version(needed)} on QEMU can be told the bandwidth of '
            f'the switchover')
    return Item(name, Status.OK, found)


def check_libvirt(caps: model.HostCaps) -> Item:
    return _can_tell_bandwidth(
        'libvirt', _version(caps.libvirt_version), caps.libvirt_version,
        plan.SWITCHOVER_BANDWIDTH_LIBVIRT)


def check_qemu(caps: model.HostCaps, virt_type: str) -> Item:
    found = f'{_version(caps.qemu_version)} at {caps.emulator}'
    if virt_type == 'qemu' and caps.qemu_version < plan.SOUND_UNDER_TCG:
        return Item(
            'QEMU', Status.FAILED, found,
            f'emulated guests lose memory when they migrate; use '
            f'{_version(plan.SOUND_UNDER_TCG)} or newer')
    return _can_tell_bandwidth('QEMU', found, caps.qemu_version,
                               plan.SWITCHOVER_BANDWIDTH_QEMU)


def check_patched_qemu(caps: model.HostCaps) -> Item:
    if not caps.patched_qemu:
        return Item(
            'patched QEMU', Status.WARNING, 'no',
            'flavors with fastmig:qemu=patched do not migrate from or to this '
            'host; install the patched QEMU for them')
    return Item('patched QEMU', Status.OK, caps.qemu_series)


OF_SETTINGS: tuple[Callable[..., Item], ...] = (
    check_driver, check_settings, check_transport, check_post_copy, check_kvm,
    check_sinks, check_files, check_bandwidth, check_calibration)


def _try(check: Callable[..., Item], *arguments) -> Item:
    """An error is a finding, and no reason to leave out the others."""
    try:
        return check(*arguments)
    except Exception as error:
        name = check.__name__.removeprefix('check_').replace('_', ' ')
        return Item(name, Status.FAILED, str(error) or repr(error),
                    'see the message')


def all_items(conf) -> Iterator[Item]:
    """Look at everything."""
    for check in OF_SETTINGS:
        yield _try(check, conf)
    uri = conf.libvirt.connection_uri or 'qemu:///system'
    try:
        with contextlib.closing(inspection.Host(uri)) as host:
            caps = capabilities.read(host, conf.host)
    except Exception as error:
        yield Item('libvirt', Status.FAILED, f'{uri}: {error}',
                   'start libvirtd or virtqemud; run this command as a user '
                   'that may connect to it')
        return
    yield _try(check_libvirt, caps)
    yield _try(check_qemu, caps, conf.libvirt.virt_type)
    yield _try(check_patched_qemu, caps)


class Check(lister.Lister):
    """Say whether this host is ready, and what to do if it is not.

    Ends with 1 if something has failed. Run it as the user of nova-compute:
    what another user may do is not what nova-compute may do.
    """

    _failed = False

    def take_action(self, parsed_args):
        items = list(all_items(CONF))
        self._failed = any(each.status is Status.FAILED for each in items)
        return (('Item', 'Status', 'Found', 'What to do'),
                [(each.name, str(each.status), each.found, each.todo)
                 for each in items])

    def run(self, parsed_args):
        return super().run(parsed_args) or int(self._failed)
