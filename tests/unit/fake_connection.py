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

"""A libvirt connection with one running domain, for the commands."""

import libvirt

UUID = '7d2a3f0e-1a2b-4c3d-8e9f-0a1b2c3d4e5f'

_XML = '''
<domain type='{type}'><name>instance-1</name><metadata>
 <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
  <nova:flavor name='nfv'><nova:extraSpecs>{specs}</nova:extraSpecs>
  </nova:flavor></nova:instance></metadata></domain>'''


class Domain:

    def __init__(self, connection):
        self._connection = connection

    def name(self):
        return 'instance-1'

    def XMLDesc(self, flags=0):
        return _XML.format(type=self._connection.domain_type, specs=''.join(
            f"<nova:extraSpec name='{name}'>{value}</nova:extraSpec>"
            for name, value in self._connection.extra_specs.items()))

    def info(self):
        return [1, 1 << 20, self._connection.memory_bytes // 1024, 2, 12345]

    def startDirtyRateCalc(self, seconds, flags=0):
        self._connection.measurements.append((seconds, flags))


class Connection:
    """A virConnect.

    :ivar extra_specs: of the flavor, in Nova's metadata
    :ivar dirty_rate_mib_s: what a measurement brings
    :ivar answers_until_measured: how often it is asked in vain
    :ivar measurements: that were asked for, as (seconds, flags)
    """

    def __init__(self):
        self.extra_specs = {'fastmig:enabled': 'true'}
        self.domain_type = 'kvm'
        self.memory_bytes = 512 << 20
        self.dirty_rate_mib_s = 100
        self.answers_until_measured = 1
        self.measurements = []
        self.is_closed = False

    def _domain(self, known, asked):
        if known != asked:
            raise libvirt.libvirtError(
                f"Domain not found: no domain with '{asked}'")
        return Domain(self)

    def lookupByUUIDString(self, uuid):
        return self._domain(UUID, uuid)

    def lookupByName(self, name):
        return self._domain('instance-1', name)

    def domainListGetStats(self, domains, stats, flags=0):
        domain, = domains
        assert stats == libvirt.VIR_DOMAIN_STATS_DIRTYRATE
        seconds, mode = self.measurements[-1]
        common = {'dirtyrate.calc_start_time': 1000,
                  'dirtyrate.calc_period': seconds}
        if self.answers_until_measured:
            self.answers_until_measured -= 1
            return [(domain, {
                'dirtyrate.calc_status': libvirt.VIR_DOMAIN_DIRTYRATE_MEASURING
                if self.answers_until_measured
                else libvirt.VIR_DOMAIN_DIRTYRATE_UNSTARTED, **common})]
        return [(domain, {
            'dirtyrate.calc_status': libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED,
            'dirtyrate.megabytes_per_second': self.dirty_rate_mib_s,
            **common})]

    def getCapabilities(self):
        return ('<capabilities><host><cpu><arch>x86_64</arch></cpu></host>'
                '</capabilities>')

    def close(self):
        self.is_closed = True
