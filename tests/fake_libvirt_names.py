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

"""What libvirt.h has and Nova's fake libvirt has not."""

import importlib

# The values are libvirt's.
CONSTANTS = {
    'VIR_CONNECT_LIST_DOMAINS_TRANSIENT': 8,
    'VIR_DOMAIN_EVENT_ID_JOB_COMPLETED': 21,
    'VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION': 20,
    'VIR_DOMAIN_PAUSED_MIGRATION': 2,
    'VIR_DOMAIN_PAUSED_USER': 1,
    'VIR_DOMAIN_SHUTOFF_CRASHED': 3,
    'VIR_DOMAIN_SHUTOFF_DESTROYED': 2,
    'VIR_DOMAIN_SHUTOFF_FAILED': 6,
    'VIR_DOMAIN_SHUTOFF_MIGRATED': 4,
    'VIR_DOMAIN_SHUTOFF_SHUTDOWN': 1,
    'VIR_DOMAIN_SHUTOFF_UNKNOWN': 0,
    'VIR_ERR_OPERATION_ABORTED': 78,
    'VIR_MIGRATE_COMPRESSED': 2048,
    'VIR_MIGRATE_PARALLEL': 131072,
    'VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS': 'parallel.connections',
}

# Modules of nova_fastmig that import libvirt.
MODULES = ('capabilities', 'guest', 'interrupted', 'session', 'watch')


def add_to(fakelibvirt) -> None:
    """Complete the fake for good, and let nova_fastmig use it."""
    for name, value in CONSTANTS.items():
        if not hasattr(fakelibvirt, name):
            setattr(fakelibvirt, name, value)
    for module in MODULES:
        importlib.import_module(f'nova_fastmig.{module}').libvirt = fakelibvirt
