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

"""All options, for oslo-config-generator and oslo-config-validator."""

from oslo_config import cfg

from nova_fastmig import calibration_store
from nova_fastmig import conf
from nova_fastmig import journal
from nova_fastmig import metrics
from nova_fastmig import reservation


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Entry point ``oslo.config.opts``."""
    (group, opts), *others = conf.list_opts()
    return [(group, [*opts, *calibration_store.OPTS, *journal.OPTS,
                     *metrics.OPTS, *reservation.OPTS]), *others]


def register(conf: cfg.ConfigOpts) -> None:
    """Register all of them, for commands; doing so twice is fine."""
    for group, options in list_opts():
        conf.register_group(group)
        conf.register_opts(options, group=group)
