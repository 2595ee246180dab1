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

"""Validators of the ``fastmig:`` extra specs for nova-api.

Entry point group ``nova.api.extra_spec_validators``. Nova refuses unknown
keys of a namespace by itself once one key of it is known.
"""

from nova.api.validation.extra_specs import base
from nova import exception as nova_exception
from oslo_config import cfg

from nova_fastmig import conf
from nova_fastmig import exception
from nova_fastmig import request


class _Validator(base.ExtraSpecValidator):
    """Asks ``request``, so that nova-api and nova-compute agree.

    The bounds are read when a value is checked: nova-api imports its
    validators before it reads nova.conf.
    """

    def validate(self, name: str, value: str) -> None:
        try:
            request.parse_value(name, value, conf.sla_settings(cfg.CONF))
        except exception.FastMigError as error:
            raise nova_exception.ValidationError(
                f'Validation failed; {error}.') from error


def register() -> list[base.ExtraSpecValidator]:
    """Called by nova-api.

    The value's type is only shown by documentation tools; ``request`` does
    the checking.
    """
    return [_Validator(name=name, description=key.description,
                       value={'type': str})
            for name, key in request.KEYS.items()]
