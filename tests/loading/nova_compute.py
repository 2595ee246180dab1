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

"""nova-compute up to the point where it has loaded its driver.

Runs in an environment under test, as ``python nova_compute.py`` with
nova-compute's arguments. Everything before the driver is Nova's own
``main()``, in its order; prints the driver's class.
"""

import sys
from unittest import mock

# Chooses the concurrency backend, so it comes first, as in the real script.
from nova.cmd import compute

from nova import service
from nova.virt import driver


def load_driver(*args, **kwargs):
    # What ComputeManager does first; the rest of it needs a database.
    loaded = driver.load_compute_driver(mock.sentinel.virtapi)
    print(f'loaded {type(loaded).__module__}.{type(loaded).__name__}')
    sys.exit(0)


with mock.patch.object(service.Service, 'create', load_driver):
    compute.main()
