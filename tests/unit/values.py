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

"""Ordinary values of the model, for tests that care about one field."""

from hypothesis import strategies as st

from nova_fastmig import model


def sla(**changes) -> model.Sla:
    return model.Sla(**{
        'max_downtime_ms': 10,
        'max_total_ms': 2000,
        'on_miss': model.OnMiss.ABORT,
        'parallel_connections': 1,
        'qemu': model.QemuChoice.ANY,
        **changes})


def settings(**changes) -> model.SlaSettings:
    return model.SlaSettings(**{
        'default': sla(),
        'max_downtime_ms': model.Range(1, 1000),
        'max_total_ms': model.Range(100, 600000),
        'parallel_connections': model.Range(1, 16),
        **changes})


def host(**changes) -> model.HostCaps:
    return model.HostCaps(**{
        'host': 'compute1',
        'emulator': '/usr/bin/qemu-system-x86_64',
        'qemu_version': (10, 0, 13),
        'qemu_series': '',
        'qemu_features': frozenset(),
        'libvirt_version': (11, 3, 0),
        'driver_version': '1.0.0',
        **changes})


def patched_host(**changes) -> model.HostCaps:
    return host(**{
        'emulator': '/opt/nova-fastmig/qemu/bin/qemu-system-x86_64',
        'qemu_series': 'nova-fastmig 1',
        'qemu_features': frozenset(model.QemuFeature),
        **changes})


def transport(**changes) -> model.TransportSettings:
    return model.TransportSettings(**{
        'tunnelled': False,
        'post_copy_permitted': False,
        **changes})


def plan(**changes) -> model.Plan:
    return model.Plan(**{
        'sla': sla(),
        'source': host(),
        'destination': host(host='compute2'),
        'destination_emulator': '/usr/bin/qemu-system-x86_64',
        'qemu_features': model.FeaturePlan(),
        'downtime_limit_ms': 10,
        'total_limit_ms': 2000,
        'switchover_limit_ms': 2000,
        'parallel_connections': 1,
        'set_flags': frozenset(),
        'clear_flags': frozenset({'PERSIST_DEST'}),
        **changes})


def estimate(**changes) -> model.Estimate:
    return model.Estimate(**{
        'fixed_ms': 6.5,
        'bandwidth_bytes_per_s': 1e9,
        'count': 12,
        'least_fixed_ms': 6.0,
        **changes})


def blackout(**changes) -> model.Blackout:
    return model.Blackout(**{
        'stopped_ms': 0.2,
        'pages_sent_ms': 1.0,
        'devices_sent_ms': 2.1,
        'pages_loaded_ms': 1.5,
        'devices_loaded_ms': 3.0,
        'resumed_ms': 3.2,
        'clock_error_ms': 0.05,
        **changes})


def completed(**changes) -> model.Completed:
    return model.Completed(**{
        'outcome': model.Outcome.COMPLETED,
        'reason': '',
        'downtime_ms': 7,
        'total_ms': 800,
        **changes})


# Every Sla within the bounds of settings().
slas = st.builds(
    model.Sla,
    max_downtime_ms=st.integers(1, 1000),
    max_total_ms=st.integers(100, 600000),
    on_miss=st.sampled_from(model.OnMiss),
    parallel_connections=st.integers(1, 16),
    qemu=st.sampled_from(model.QemuChoice))
