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

import os

import hypothesis
from nova import monkey_patch

# nova.tests, which some tests use, would choose eventlet for all of them.
os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', 'true')
monkey_patch.patch()

# The same examples on every run, and no limit per example: machines that run
# the tests are often busy.
hypothesis.settings.register_profile(
    'tests', derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile('tests')
