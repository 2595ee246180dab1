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

"""Flavor extra specs -> Sla. Pure.

The same functions serve nova-api, which refuses bad values when a flavor is
changed, and nova-compute, which meets the values that an older API stored.
"""

from collections.abc import Callable
from collections.abc import Mapping
import typing as ty

from nova_fastmig import exception
from nova_fastmig import model

NAMESPACE = 'fastmig'
ENABLED = f'{NAMESPACE}:enabled'
MAX_DOWNTIME_MS = f'{NAMESPACE}:max_downtime_ms'
MAX_TOTAL_MS = f'{NAMESPACE}:max_total_ms'
ON_MISS = f'{NAMESPACE}:on_miss'
PARALLEL_CONNECTIONS = f'{NAMESPACE}:parallel_connections'
QEMU = f'{NAMESPACE}:qemu'

# The spellings that oslo.utils' strict bool_from_string() takes, because
# nova-api uses it for every boolean extra spec.
_TRUE = frozenset({'1', 't', 'true', 'on', 'y', 'yes'})
_FALSE = frozenset({'0', 'f', 'false', 'off', 'n', 'no'})


def _boolean(key: str, value: str, _: model.SlaSettings) -> bool:
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise exception.InvalidExtraSpec(key, value, 'true or false')


def _integer(bounds: str) -> Callable[[str, str, model.SlaSettings], int]:
    def parse(key: str, value: str, settings: model.SlaSettings) -> int:
        allowed: model.Range = getattr(settings, bounds)
        # Digits only: int() would also take '1_0', ' 10 ' and '٣'. The length
        # keeps it from working on a number of a thousand digits.
        if value.isascii() and value.isdigit() and len(value) <= 9:
            number = int(value)
            if number in allowed:
                return number
        raise exception.InvalidExtraSpec(
            key, value, f'a whole number from {allowed}')
    return parse


def _choice(
        enumeration: type[model.OnMiss] | type[model.QemuChoice],
) -> Callable[[str, str, model.SlaSettings], ty.Any]:
    def parse(key: str, value: str, _: model.SlaSettings) -> ty.Any:
        try:
            return enumeration(value)
        except ValueError:
            raise exception.InvalidExtraSpec(
                key, value, ', '.join(enumeration)) from None
    return parse


class Key(ty.NamedTuple):
    """One extra spec: how it is read and what it means."""

    parse: Callable[[str, str, model.SlaSettings], ty.Any]
    description: str


KEYS: Mapping[str, Key] = {
    ENABLED: Key(_boolean, (
        'Whether servers of this flavor are NFV guests whose live migration '
        'is planned, watched and judged against the limits below.')),
    MAX_DOWNTIME_MS: Key(_integer('max_downtime_ms'), (
        'How long the guest may stand still during a live migration, in '
        'milliseconds.')),
    MAX_TOTAL_MS: Key(_integer('max_total_ms'), (
        "How long a live migration may take, in milliseconds, from libvirt's "
        'start to its end.')),
    ON_MISS: Key(_choice(model.OnMiss), (
        'What happens when the total time runs out before the switchover: '
        '"abort" leaves the guest running at the source, "proceed" goes on '
        'and reports the miss, "post-copy" switches over at once.')),
    PARALLEL_CONNECTIONS: Key(_integer('parallel_connections'), (
        'Number of connections that carry guest memory; 1 is a single '
        'stream.')),
    QEMU: Key(_choice(model.QemuChoice), (
        'Which QEMU both hosts must have: "patched" or "any".')),
}


def parse_value(key: str, value: str, settings: model.SlaSettings) -> ty.Any:
    """Read one extra spec.

    :raises: InvalidExtraSpec, also for a ``fastmig:`` key that is not known
    """
    try:
        known = KEYS[key]
    except KeyError:
        raise exception.InvalidExtraSpec(
            key, value, 'one of the keys ' + ', '.join(KEYS)) from None
    return known.parse(key, value, settings)


def parse(extra_specs: Mapping[str, str],
          settings: model.SlaSettings) -> model.Sla | None:
    """Read the SLA of a flavor.

    :param extra_specs: all extra specs of the flavor, other namespaces too
    :returns: None if the flavor is not tagged as NFV; its other ``fastmig:``
        keys are then not looked at, so the stock path is taken unchanged
    :raises: InvalidExtraSpec for the first value that is not valid
    """
    tag = extra_specs.get(ENABLED)
    if tag is None or not parse_value(ENABLED, tag, settings):
        return None

    given = {
        key.partition(':')[2]: parse_value(key, value, settings)
        for key, value in sorted(extra_specs.items())
        if key.startswith(f'{NAMESPACE}:') and key != ENABLED}
    default = settings.default
    return model.Sla(
        max_downtime_ms=given.get('max_downtime_ms', default.max_downtime_ms),
        max_total_ms=given.get('max_total_ms', default.max_total_ms),
        on_miss=given.get('on_miss', default.on_miss),
        parallel_connections=given.get(
            'parallel_connections', default.parallel_connections),
        qemu=given.get('qemu', default.qemu))
