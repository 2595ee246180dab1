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

"""What the tools share that are run by hand, as their texts say.

::

    sudo lab/hold nsenter --net=/run/netns/nfm-controller \
        .venv/nova-34/bin/python -m tests.lab.network --help
"""

import contextlib
import threading

import libvirt
import libvirt_qemu

from tests.lab import base


class Guest(base.LabTest):
    """One server, with what the tests can do with theirs; a context manager.

    :param name: what the server's and its flavor's begin with
    """

    def __init__(self, name: str):
        super().__init__('nothing')
        self._name = name

    def nothing(self):
        """What the test case would run."""

    def id(self):
        return f'tool.{self._name}'

    @classmethod
    def use(cls, driver: str) -> None:
        """Choose the driver; connect to the cloud."""
        cls.driver = driver
        cls.setUpClass()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.doCleanups()

    def host(self) -> str:
        """Where Nova has it."""
        return self.compute.get_server(self.uuid).compute_host


class QemuEvents:
    """QEMU's own events on both hosts, with QEMU's time; a context manager.

    :param events: their names
    :ivar seen: (host, domain's uuid, event, seconds since the epoch)
    """

    def __init__(self, *events: str):
        self.seen: list[tuple[str, str, str, float]] = []
        self._events = events
        self._stack = contextlib.ExitStack()
        self._stop = False

    def __enter__(self):
        libvirt.virEventRegisterDefaultImpl()
        for host, address in base.COMPUTE_IPS.items():
            connection = self._stack.enter_context(contextlib.closing(
                libvirt.open(f'qemu+tcp://{address}/system')))
            for event in self._events:
                libvirt_qemu.qemuMonitorEventRegister(
                    connection, None, event, self._on_event, host)
        # something to wake up for, so that it can end
        libvirt.virEventAddTimeout(100, lambda timer, opaque: None, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        while not self._stop:
            libvirt.virEventRunDefaultImpl()

    def _on_event(self, connection, domain, event, seconds, microseconds,
                  details, host):
        self.seen.append((host, domain.UUIDString(), event,
                          seconds + microseconds / 1e6))

    def __exit__(self, *exc_info):
        self._stop = True
        self._thread.join()
        self._stack.close()

    def last(self, host: str, uuid: str, event: str) -> float | None:
        """When this happened last; None if it did not."""
        return max((at for where, whose, what, at in self.seen
                    if (where, whose, what) == (host, uuid, event)),
                   default=None)
