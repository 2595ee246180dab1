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

"""What a live migration costs the guest, beside everything else that migrates.

1. ``scenario``   what is compared, in which order, and a run's figures
2. ``catalog``    contenders, workloads and comparisons as data
3. ``schedules``  how other systems choose the downtime limit
4. ``engine``     carries a comparison out, and goes on where it was ended
5. ``lab``        the lab's hosts, with ``memory``; ``nova_rig``,
                  ``libvirt_rig`` and ``qemu_rig`` migrate guests
                  between them. ``hosts``, two others for ``libvirt_rig``,
                  which ``hosts_file`` describes
6. ``analyze``    figures of many runs: medians, percentiles, intervals
7. ``plot``, ``html``  pictures, and the report with the pictures inside
8. ``cli``        ``nova-fastmig bench ...``

``scenario``, ``catalog``, ``schedules``, ``hosts_file`` are pure. ``monitor``,
a session with a QEMU, is for tests/qemu too.
"""
