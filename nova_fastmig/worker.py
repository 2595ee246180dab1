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

"""A thread for what can be slow and must not hold anybody up."""

from collections.abc import Callable
import queue
import threading

from oslo_log import log as logging

LOG = logging.getLogger(__name__)


class Worker:
    """Calls what it is given, one after the other, in a thread of its own.

    :param name: of the thread, and in the log
    :param most: how many calls may wait; 0 for any number
    """

    def __init__(self, name: str, most: int = 0):
        self._name = name
        self._waiting: queue.Queue[Callable[[], object]] = queue.Queue(most)
        self._lock = threading.Lock()
        self._started = False

    def put(self, call: Callable[[], object]) -> None:
        """Have something called; does not wait for anything.

        What it raises is logged.

        :raises: queue.Full
        """
        # Not in __init__: nova-compute makes its driver before it is ready
        # to start threads.
        with self._lock:
            if not self._started:
                threading.Thread(target=self._run, daemon=True,
                                 name=self._name).start()
                self._started = True
        self._waiting.put_nowait(call)

    def _run(self) -> None:
        while True:
            call = self._waiting.get()
            try:
                call()
            except Exception:
                LOG.exception('%s failed', self._name)
            finally:
                self._waiting.task_done()

    def join(self) -> None:
        """Wait until everything has been called."""
        self._waiting.join()
