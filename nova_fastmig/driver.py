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

"""Nova's entry points. Each one delegates; the logic is in ``session``."""

import contextlib
import functools
import threading

from nova import exception as nova_exception
from nova.virt import event as nova_event
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import driver as nova_driver
from oslo_config import cfg

from nova_fastmig import capabilities
from nova_fastmig import conf
from nova_fastmig import guest as fast_guest
from nova_fastmig import session
from nova_fastmig import worker

CONF = cfg.CONF


class FastMigDriver(nova_driver.LibvirtDriver):
    """Nova's libvirt driver, with planned migrations of tagged flavors.

    A server whose flavor has no ``fastmig:enabled=true`` takes the path of
    LibvirtDriver, unchanged.
    """

    def __init__(self, virtapi, read_only=False):
        self._for_nova = worker.Worker('fastmig-events-for-nova')
        self._for_us = worker.Worker('fastmig-events')
        super().__init__(virtapi, read_only)
        # Settings that contradict each other stop nova-compute here rather
        # than a migration later.
        conf.sla_settings(CONF)
        conf.qemu_features(CONF)
        self._sessions = session.Sessions(self._host)
        # libvirt's call that finds its connection closed tells Nova so at
        # once, in the thread that holds this lock. Nova's is not reentrant.
        self._host._wrapped_conn_lock = threading.RLock()

    # When a guest is built or built again.

    def _get_guest_xml(self, context, instance, *args, **kwargs):
        return session.choose_emulator(
            instance,
            super()._get_guest_xml(context, instance, *args, **kwargs))

    # For the scheduler.

    def update_provider_tree(self, provider_tree, nodename, allocations=None):
        super().update_provider_tree(provider_tree, nodename, allocations)
        for trait, has_it in capabilities.traits().items():
            (provider_tree.add_traits if has_it
             else provider_tree.remove_traits)(nodename, trait)

    # At both ends, before a migration.

    def check_can_live_migrate_destination(self, context, instance,
                                           src_compute_info, dst_compute_info,
                                           block_migration=False,
                                           disk_over_commit=False):
        session.check_host(self._host, instance)
        # Not after Nova's step: that makes a file on the storage, which
        # Nova's manager removes only if this returns.
        with self._sessions.expect(instance, is_next=False):
            return super().check_can_live_migrate_destination(
                context, instance, src_compute_info, dst_compute_info,
                block_migration, disk_over_commit)

    def check_can_live_migrate_source(self, context, instance,
                                      dest_check_data, block_device_info=None):
        session.check_host(self._host, instance, running_here=True)
        checked = super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info)
        # Nova has found out by now whether disks are shared.
        session.check_guest(self._host, instance, checked)
        self._sessions.check_pair(context, instance, checked)
        self._sessions.prepare(context, instance, checked)
        return checked

    # At the source.

    def live_migration(self, context, instance, dest, post_method,
                       recover_method, block_migration=False,
                       migrate_data=None):
        with self._sessions.noted(
                self._manager, context, instance, dest, block_migration,
                migrate_data, post_method, recover_method) as (post, recover):
            self._sessions.run(
                context, instance, dest,
                functools.partial(
                    super().live_migration, context, instance, dest, post,
                    recover, block_migration, migrate_data),
                functools.partial(
                    recover, context, instance, dest, migrate_data),
                migrate_data)

    def _live_migration_operation(self, context, instance, dest,
                                  block_migration, migrate_data, guest,
                                  device_names):
        operation = functools.partial(
            super()._live_migration_operation, context, instance, dest,
            block_migration, migrate_data, device_names=device_names)
        fast = self._sessions.get(instance)
        if fast is None:
            operation(guest=guest)
        else:
            fast.operate(guest._domain,
                         lambda fast_guest: operation(guest=fast_guest))

    def _live_migration_monitor(self, context, instance, guest, dest,
                                post_method, recover_method, block_migration,
                                migrate_data, future, disk_paths):
        fast = self._sessions.get(instance)
        if fast is None:
            super()._live_migration_monitor(
                context, instance, guest, dest, post_method, recover_method,
                block_migration, migrate_data, future, disk_paths)
            return
        give_up_s = int(CONF.libvirt.live_migration_completion_timeout *
                        self._live_migration_data_gb(instance, disk_paths))
        try:
            fast.follow(
                guest._domain, self.active_migrations, migrate_data.migration,
                not self._get_vpmems(instance), give_up_s,
                functools.partial(post_method, context, instance, dest,
                                  block_migration, migrate_data),
                functools.partial(recover_method, context, instance, dest,
                                  migrate_data))
        finally:
            self._clear_empty_migration(instance)

    def live_migration_abort(self, instance):
        fast = self._sessions.get(instance)
        with (fast.aborting('live-migration-abort was requested')
              if fast else contextlib.nullcontext()):
            super().live_migration_abort(instance)

    def live_migration_force_complete(self, instance):
        super().live_migration_force_complete(instance)
        fast = self._sessions.get(instance)
        if fast is not None:
            fast.force()

    # At the destination. Its bandwidth is reserved until one of these finds
    # that the migration is over, or its time is, which is short until libvirt
    # has the guest; and whichever comes first makes the guest persistent.

    def pre_live_migration(self, context, instance, block_device_info,
                           network_info, disk_info, migrate_data):
        with self._sessions.expect(instance, is_next=True):
            return self._sessions.plug(
                context, instance, migrate_data, functools.partial(
                    super().pre_live_migration, context, instance,
                    block_device_info, network_info, disk_info, migrate_data))

    def _unplug_vifs(self, instance, network_info, ignore_errors):
        super()._unplug_vifs(
            instance, self._sessions.plan_ports(instance, network_info),
            ignore_errors)

    def emit_event(self, event):
        if not isinstance(event, nova_event.LifecycleEvent):
            super().emit_event(event)
            return
        # Nova asks its conductor about each. Without eventlet it does so in
        # libvirt's event loop: while the conductor does not answer, a
        # migration would get no events and libvirtd no signs of life.
        self._for_nova.put(functools.partial(super().emit_event, event))
        if event.transition == nova_event.EVENT_LIFECYCLE_RESUMED:
            self._for_us.put(functools.partial(
                fast_guest.welcome, self._host, event.uuid))
        elif event.transition == nova_event.EVENT_LIFECYCLE_STARTED:
            self._sessions.begun(event.uuid)
        elif event.transition == nova_event.EVENT_LIFECYCLE_STOPPED:
            self._sessions.arrived(event.uuid)

    def rollback_live_migration_at_destination(self, context, instance,
                                               network_info,
                                               block_device_info,
                                               destroy_disks=True,
                                               migrate_data=None):
        self._sessions.arrived(instance.uuid)
        super().rollback_live_migration_at_destination(
            context, instance, network_info, block_device_info,
            destroy_disks, migrate_data)

    def post_live_migration_at_destination(self, context, instance,
                                           network_info, block_migration=False,
                                           block_device_info=None):
        self._sessions.landed(instance.uuid)
        fast_guest.persist_by_uuid(self._host, instance.uuid)
        # Neutron has activated the bindings by now.
        fast_guest.announce_by_uuid(self._host, instance.uuid)
        finish = functools.partial(
            super().post_live_migration_at_destination, context, instance,
            network_info, block_migration, block_device_info)
        try:
            finish()
        except nova_exception.InstanceNotFound:
            # As for a hard reboot.
            if not self._sessions.keep(instance, lambda: self._get_guest_xml(
                    context, instance, network_info,
                    blockinfo.get_disk_info(
                        CONF.libvirt.virt_type, instance, instance.image_meta,
                        block_device_info),
                    instance.image_meta,
                    block_device_info=block_device_info)):
                raise
            finish()

    def init_host(self, host):
        super().init_host(host)
        fast_guest.persist_all(self._host)
        if self._manager is not None:
            self._sessions.finish_interrupted(self._manager)

    @property
    def _manager(self):
        """nova.compute.manager.ComputeManager; None in tests of Nova's"""
        return getattr(self.virtapi, '_compute', None)

    def get_available_resource(self, nodename):
        # Nova asks for the first time when it has looked at its instances.
        self._sessions.finish_interrupted_later()
        fast_guest.persist_all(self._host)
        for instance, network_info in self._sessions.left_over():
            self._unplug_vifs(instance, network_info, True)
        resources = super().get_available_resource(nodename)
        resources['stats'] = {
            **resources.get('stats', {}),
            **capabilities.to_stats(
                capabilities.read(self._host, CONF.host))}
        return resources
