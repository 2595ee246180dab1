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

"""Keeps reports in a durable file, see ``nova_fastmig.journal``."""

import dataclasses

from oslo_config import cfg
from oslo_utils import timeutils

from nova_fastmig import journal
from nova_fastmig import model
from nova_fastmig import sinks

CONF = cfg.CONF

# Of a record. A program that reads records leaves out what it does not know;
# a change that breaks such a program needs another number.
VERSION = 1


def to_record(report: model.SlaReport) -> dict:
    """Everything in a report, in the shape of the model.

    :returns: of what JSON has a form for: sets become sorted lists
    """
    return {'version': VERSION,
            'time': timeutils.utcnow().isoformat(
                timespec='milliseconds') + 'Z',
            'report': _plain(dataclasses.asdict(report))}


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return value


class JournalSink(sinks.Sink):
    def __init__(self):
        self._journal = journal.Journal.configured(CONF)

    def emit(self, context, report: model.SlaReport) -> None:
        self._journal.append(to_record(report))
