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

"""Wait until placement has the traits of this compute host.

nova-compute writes the ID of its node, which is that of its resource provider
as well, into ``compute_id`` below its ``state_path``, and reports the traits
once it is up. A host that only computes does not have the ``openstack resource
provider`` commands, but always openstacksdk.
"""

import argparse
import pathlib
import sys
import time

import openstack

# From here on placement knows traits.
MICROVERSION = '1.6'


def found_traits(cloud, compute_id: pathlib.Path) -> set[str] | None:
    """The traits of the provider, or None while it is not there.

    :raises openstack.exceptions.SDKException: if placement answers with
        another error than that
    """
    try:
        provider = compute_id.read_text().strip()
    except FileNotFoundError:
        return None
    response = cloud.placement.get(f'/resource_providers/{provider}/traits',
                                   microversion=MICROVERSION)
    if response.status_code == 404:
        return None
    openstack.exceptions.raise_from_response(response)
    return set(response.json()['traits'])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cloud', required=True, help='in clouds.yaml')
    parser.add_argument('--timeout', type=float, default=60, metavar='S')
    parser.add_argument('compute_id', type=pathlib.Path, metavar='FILE')
    parser.add_argument('traits', nargs='+', metavar='TRAIT')
    args = parser.parse_args(arguments)
    cloud = openstack.connect(cloud=args.cloud)
    end = time.monotonic() + args.timeout
    while True:
        found = found_traits(cloud, args.compute_id)
        missing = set(args.traits) - (found or set())
        if not missing:
            print('traits of this host: ' + ' '.join(sorted(
                name for name in found if name.startswith('CUSTOM_'))))
            return None
        if time.monotonic() > end:
            break
        time.sleep(1)
    if not args.compute_id.exists():
        return (f'{args.compute_id} is not there after {args.timeout:g} s: '
                f'nova-compute has not come up')
    if found is None:
        return (f'placement does not know this host after '
                f'{args.timeout:g} s: nova-compute has not reported to it')
    return (f'placement has no {" ".join(sorted(missing))} for this host '
            f'after {args.timeout:g} s')


if __name__ == '__main__':
    sys.exit(main())
