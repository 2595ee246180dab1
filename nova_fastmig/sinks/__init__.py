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

"""Where the report of a migration goes.

A sink is a class without constructor arguments under the entry point group
``nova_fastmig.sinks``; ``[fastmig]sinks`` names those in use.

Each sink works in a thread of its own. Nova runs as many live migrations at a
time as ``[DEFAULT]max_concurrent_live_migrations`` says, by default one: a
sink that waits for a dead message bus in the migration's own thread would
keep the host from migrating anything else.
"""

import abc
import functools
import queue

from oslo_log import log as logging
from stevedore import named

from nova_fastmig import model
from nova_fastmig import worker

LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_fastmig.sinks'

# Reports that wait for one sink. More than that many migrations end on a host
# only over hours, so a sink that is so far behind hangs.
MAX_WAITING = 100


class Sink(abc.ABC):
    @abc.abstractmethod
    def emit(self, context, report: model.SlaReport) -> None:
        """Take one report; may wait and may raise.

        :param context: nova.context.RequestContext of the migration
        """


def _on_load_failure(manager, entry_point, error):
    LOG.error('Cannot load the sink %s; reports do not go there: %s',
              entry_point.name, error)


def _on_missing(names):
    LOG.error('[fastmig]sinks names %s, but no installed package has it; '
              'reports do not go there', ', '.join(sorted(names)))


class _Worker:
    """Feeds one sink, so that it can be slow, hang or fail by itself."""

    def __init__(self, name: str, sink: Sink):
        self.name = name
        self.sink = sink
        self._worker = worker.Worker(f'fastmig-sink-{name}', MAX_WAITING)

    def put(self, context, report: model.SlaReport) -> None:
        """Hand a report over, without waiting for anything."""
        try:
            self._worker.put(functools.partial(self._emit, context, report))
        except queue.Full:
            LOG.error('The sink %s is %d reports behind; it does not get the '
                      'one of this migration', self.name, MAX_WAITING,
                      instance_uuid=report.instance_uuid)

    def _emit(self, context, report: model.SlaReport) -> None:
        try:
            self.sink.emit(context, report)
        except Exception:
            LOG.exception('The sink %s failed', self.name,
                          instance_uuid=report.instance_uuid)

    def join(self) -> None:
        self._worker.join()


class Sinks:
    """All sinks in use.

    :param names: of entry points; one that is missing or broken is logged
        and left out
    """

    def __init__(self, names: list[str]):
        manager = named.NamedExtensionManager(
            NAMESPACE, names, invoke_on_load=True, name_order=True,
            on_load_failure_callback=_on_load_failure,
            on_missing_entrypoints_callback=_on_missing)
        self._workers = [_Worker(extension.name, extension.obj)
                         for extension in manager]

    def emit(self, context, report: model.SlaReport) -> None:
        """Give a report to every sink.

        Returns at once; what a sink makes of it is logged only.
        """
        for each in self._workers:
            each.put(context, report)

    def join(self) -> None:
        """Wait until every sink has dealt with what it was given."""
        for each in self._workers:
            each.join()
