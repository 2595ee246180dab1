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

"""Nova's own tests of its libvirt driver, with FastMigDriver in its place."""

# First of all, because it chooses Nova's concurrency backend.
import nova.tests.unit  # noqa: F401

from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import libvirt as nova_libvirt
from nova.virt.libvirt import driver as nova_driver

from nova_fastmig import driver
from tests import fake_libvirt_names

fake_libvirt_names.add_to(fakelibvirt)

# The fixtures library tells static methods from others only if it finds them
# in the class itself.
for name, value in vars(nova_driver.LibvirtDriver).items():
    if isinstance(value, staticmethod):
        setattr(driver.FastMigDriver, name, value)

# Nova's tests look the class up in these two modules.
nova_driver.LibvirtDriver = driver.FastMigDriver
nova_libvirt.LibvirtDriver = driver.FastMigDriver


def load_tests(loader, standard_tests, pattern):
    return loader.loadTestsFromName('nova.tests.unit.virt.libvirt.test_driver')
