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

"""The progress of a long migration, for the API to show.

Nova saves it through the conductor, and waits a minute for one that does not
answer. In that minute nobody would watch the guest, so it is saved aside.
"""

import threading
import time

from nova.virt.libvirt import guest as nova_guest
from nova.virt.libvirt import migration as nova_migration
from oslo_log import log as logging

LOG = logging.getLogger(__name__)


class Progress:
    """That of one migration.

    :param instance: nova.objects.Instance
    :param migration: nova.objects.Migration
    :param interval_s: between two that are saved
    """

    def __init__(self, instance, migration, interval_s: float):
        self._instance = instance
        self._migration = migration
        self._interval_s = interval_s
        self._saved_s = time.monotonic()
        self._thread: threading.Thread | None = None

    def show(self, stats: dict) -> None:
        """Begin to save it; does not wait, and does not raise.

        Nothing is done too soon, and as long as the last one is being saved.

        :param stats: libvirt's jobStats of a running job; may be empty
        """
        now_s = time.monotonic()
        if (not stats or now_s - self._saved_s < self._interval_s or
                self._thread is not None and self._thread.is_alive()):
            return
        self._saved_s = now_s
        # Of copies: the migration goes on meanwhile, and saves its own.
        self._thread = threading.Thread(
            target=self._save, name='progress', daemon=True, args=(
                self._instance.obj_clone(), self._migration.obj_clone(),
                nova_guest.JobInfo(**stats)))
        self._thread.start()

    @staticmethod
    def _save(instance, migration, info: nova_guest.JobInfo) -> None:
        remaining_percent = 100
        if info.memory_total:
            remaining_percent = round(
                info.memory_remaining * 100 / info.memory_total)
        try:
            nova_migration.save_stats(instance, migration, info,
                                      remaining_percent)
        except Exception as error:
            LOG.warning('The progress of the migration was not saved: %s',
                        error, instance=instance)
