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

"""Options of the tests, in tempest.conf."""

from oslo_config import cfg

service_option = cfg.BoolOpt(
    'nova_fastmig', default=True,
    help='Whether nova-fastmig is expected to be available.')

fastmig_group = cfg.OptGroup('fastmig', title='nova-fastmig')

FastmigGroup = [
    cfg.StrOpt(
        'flavor_name', default='nfv.small',
        help='Name of a tagged flavor. The tests boot their tagged server '
             'with it.'),
    cfg.ListOpt(
        'accepted_verdicts', default=['met', 'missed'],
        item_type=cfg.types.String(choices=['met', 'missed']),
        help='Verdicts with which the tests pass. Hosts whose guests are '
             'emulated miss short limits; "met" alone is for real ones.'),
    cfg.IntOpt(
        'verdict_timeout', default=60, min=1,
        help='How long, in seconds, to wait for the verdict after a '
             'migration.'),
]
