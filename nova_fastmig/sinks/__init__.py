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
"""

import abc

from oslo_log import log as logging
from stevedore import named

from nova_fastmig import model

LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_fastmig.sinks'


class Sink(abc.ABC):
    @abc.abstractmethod
    def emit(self, context, report: model.SlaReport) -> None:
        """Take one report.

        :param context: nova.context.RequestContext of the migration
        """


def _on_load_failure(manager, entry_point, error):
    LOG.error('Cannot load the sink %s; reports do not go there: %s',
              entry_point.name, error)


def _on_missing(names):
    LOG.error('[fastmig]sinks names %s, but no installed package has it; '
              'reports do not go there', ', '.join(sorted(names)))


class Sinks:
    """All sinks in use.

    :param names: of entry points; one that is missing or broken is logged
        and left out
    """

    def __init__(self, names: list[str]):
        self._manager = named.NamedExtensionManager(
            NAMESPACE, names, invoke_on_load=True, name_order=True,
            on_load_failure_callback=_on_load_failure,
            on_missing_entrypoints_callback=_on_missing)

    def emit(self, context, report: model.SlaReport) -> None:
        """Give a report to every sink; a sink's error is only logged."""
        for extension in self._manager:
            try:
                extension.obj.emit(context, report)
            except Exception:
                LOG.exception('The sink %s failed', extension.name)
