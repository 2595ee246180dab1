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

"""Fast live migration of NFV guests under OpenStack Nova.

One migration reads top to bottom in this order:

1. ``driver``        Nova's entry points, each a few lines that call super()
2. ``session``       one migration from request to report
3. ``request``       flavor extra specs and defaults -> Sla
4. ``capabilities``  libvirt and QEMU of this host -> HostCaps
5. ``plan``          Sla and HostCaps -> Plan, or why there is none
6. ``guest``         applies the Plan to the domain
7. ``watch``         libvirt's events and job statistics
8. ``policy``        Plan and what was seen -> Decision
9. ``report``        Plan, Decisions and Completed -> SlaReport
10. ``sinks``        where a report goes

``ports`` sees to the network on the way: before the migration at the
destination, where ``gate`` decides, and in the switchover at the source.

``request``, ``plan``, ``gate``, ``policy`` and ``report`` are pure: they
import nothing but the standard library, ``model`` and ``exception``, and time
comes in as an argument.
"""
