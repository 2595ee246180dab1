# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""What the lab's commands ask of its cloud; runs on the controller.

One process and openstacksdk: an ``openstack`` command takes seconds each.
"""

import argparse
import hashlib
import os
import sys
import time
import warnings

import openstack
import requests

REGION = 'RegionOne'
COMPUTES = ('compute1', 'compute2')
SERVICES = (
    # name, type, URL
    ('nova', 'compute', 'http://controller:8774/v2.1'),
    ('glance', 'image', 'http://controller:9292'),
    ('placement', 'placement', 'http://controller:8778'),
    ('neutron', 'network', 'http://controller:9696'),
)


def catalog(cloud, args):
    """Service users and endpoints; repeatable."""
    identity = cloud.identity
    roles = {role.name: role for role in identity.roles()}
    service_role = roles.get('service') or identity.create_role(name='service')
    project = (next(identity.projects(name='service'), None) or
               identity.create_project(name='service', domain_id='default'))
    for name, type_, url in SERVICES:
        user = (next(identity.users(name=name), None) or
                identity.create_user(name=name, password='secret',
                                     domain_id='default'))
        for role in (roles['admin'], service_role):
            identity.assign_project_role_to_user(project, user, role)
        service = (next(identity.services(type=type_), None) or
                   identity.create_service(name=name, type=type_))
        have = {endpoint.interface for endpoint
                in identity.endpoints(service_id=service.id)}
        for interface in {'public', 'internal', 'admin'} - have:
            identity.create_endpoint(service_id=service.id, url=url,
                                     interface=interface, region_id=REGION)


def wait_for_apis(cloud, args):
    """Every API answers; uWSGI listens before its application is loaded."""
    deadline = time.monotonic() + args.timeout_s
    for url in ['http://controller:5000/'] + [url for _, _, url in SERVICES]:
        while True:
            try:
                requests.get(url, timeout=args.timeout_s)
                break
            except requests.ConnectionError as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f'{url}: {error}') from error
                time.sleep(0.3)


def wait_for_computes(cloud, args):
    """Both nova-computes answer, and their hypervisors are "up" in Nova.

    The state in the API alone says little: it stays "up" for
    service_down_time after a service has stopped. A ping is answered once
    the service has initialised its driver.
    """
    # oslo.messaging takes a second to import and warns of eventlet
    warnings.simplefilter('ignore')
    from oslo_config import cfg
    import oslo_messaging as messaging

    messaging.set_transport_defaults(control_exchange='nova')
    # the global one: oslo.messaging registers its tracing options nowhere else
    cfg.CONF([], default_config_files=['/etc/nova/nova.conf'])
    transport = messaging.get_rpc_transport(cfg.CONF)
    deadline = time.monotonic() + args.timeout_s
    for host in COMPUTES:
        # tried again every now and then: a ping that meets the service while
        # it creates its queues has been seen to get lost
        client = messaging.get_rpc_client(
            transport, messaging.Target(topic='compute', server=host),
            timeout=3)
        while True:
            try:
                client.call({}, 'oslo_rpc_server_ping')
                break
            except messaging.MessagingTimeout as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f'nova-compute on {host} does not answer '
                                     f'after {args.timeout_s:g} s') from error
    while True:
        # a compute host is known once a cell maps it
        up = {hypervisor.name for hypervisor in cloud.compute.hypervisors()
              if hypervisor.state == 'up'}
        missing = [host for host in COMPUTES if host not in up]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise SystemExit('not up in Nova after '
                             f'{args.timeout_s:g} s: {" ".join(missing)}')
        time.sleep(0.3)


def wait_for_switch(cloud, args):
    """Neutron's agents say that they have such ports, or that they do not."""
    deadline = time.monotonic() + args.timeout_s
    while True:
        # what an agent says when it has started
        types = {
            agent.host: agent.configuration.get('ovs_capabilities', {}).get(
                'iface_types', [])
            for agent in cloud.network.agents() if agent.is_alive}
        missing = [host for host in COMPUTES if host not in types or
                   (args.switch == 'vhost-user') !=
                   ('dpdkvhostuserclient' in types[host])]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f'{args.switch} ports: Neutron does not know of '
                             f'them after {args.timeout_s:g} s on '
                             f'{" ".join(missing)}')
        time.sleep(0.5)


def _network(cloud, name, physical, cidr, pools=None):
    """A network with one subnet."""
    # Neutron 29 answers 500 to GET /ports if that is the first query it gets
    network = cloud.network.find_network(name)
    if network is None:
        network = cloud.network.create_network(
            name=name, provider_network_type='flat',
            provider_physical_network=physical, shared=True,
            port_security_enabled=False)
    if not list(cloud.network.subnets(network_id=network.id)):
        cloud.network.create_subnet(
            name=name, network_id=network.id, ip_version=4, cidr=cidr,
            enable_dhcp=False, gateway_ip=None,
            **({'allocation_pools': pools} if pools else {}))


def resources(cloud, args):
    """The network ``nfv`` and the image ``forwarder``; repeatable."""
    _network(cloud, 'nfv', 'data', '10.88.0.0/24',
             # the rest is the probe's
             [{'start': '10.88.0.20', 'end': '10.88.0.199'}])
    if args.image:
        upload(cloud, 'forwarder', args.image)


def dpdk(cloud, args):
    """The image ``l2fwd`` and the network ``nfv-far``; repeatable."""
    _network(cloud, 'nfv-far', 'far', '10.89.0.0/24')
    # an emulated TSC is measured wrong on a busy machine
    upload(cloud, 'l2fwd', args.image, hw_time_hpet='true')


def upload(cloud, name, path, **properties):
    """Upload a raw disk unless the image has this content already."""
    with open(path, 'rb') as disk:
        checksum = hashlib.file_digest(disk, 'sha512').hexdigest()
    for image in cloud.image.images(name=name):
        if image.hash_value == checksum and image.status == 'active':
            return
        cloud.image.delete_image(image)
    image = cloud.image.create_image(
        name=name, disk_format='raw', container_format='bare',
        visibility='public', filename=path, wait=True, **properties)
    image = cloud.image.get_image(image.id)
    if image.hash_value != checksum:
        raise SystemExit(f'image {name}: uploaded {checksum}, Glance has '
                         f'{image.hash_value}')


def status(cloud, args):
    """Nova's and Neutron's view; fails if something expected is down."""
    down = []
    row = '{:28} {:12} {:7} {}'.format
    found = set()
    for service in cloud.compute.services():
        found.add((service.binary, service.host))
        print(row(service.binary, service.host, service.state, ''))
        if service.state != 'up':
            down.append(f'{service.binary} on {service.host}')
    down += [f'nova-compute on {host}' for host in COMPUTES
             if ('nova-compute', host) not in found]
    for agent in cloud.network.agents():
        state = 'up' if agent.is_alive else 'down'
        print(row(agent.binary, agent.host, state, ''))
        if not agent.is_alive:
            down.append(f'{agent.binary} on {agent.host}')
    for hypervisor in cloud.compute.hypervisors(details=True):
        print(row('hypervisor', hypervisor.name, hypervisor.state, ''))
    for server in cloud.compute.servers(all_projects=True):
        print(row(f'server {server.name}', server.compute_host or '-',
                  server.status.lower(), server.id))
    if down:
        raise SystemExit('down: ' + ', '.join(down))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name, function):
        sub = commands.add_parser(name, help=function.__doc__)
        sub.set_defaults(function=function)
        return sub

    command('catalog', catalog)
    for name, function in (('wait-for-apis', wait_for_apis),
                           ('wait-for-computes', wait_for_computes)):
        sub = command(name, function)
        sub.add_argument('--timeout-s', type=float, default=90)
    sub = command('resources', resources)
    sub.add_argument('--image', help='raw disk of the image "forwarder"')
    sub = command('dpdk', dpdk)
    sub.add_argument('image', help='raw disk of the image "l2fwd"')
    sub = command('wait-for-switch', wait_for_switch)
    sub.add_argument('switch', choices=('tap', 'vhost-user'))
    sub.add_argument('--timeout-s', type=float, default=90)
    command('status', status)
    args = parser.parse_args()
    args.function(openstack.connect(cloud=os.environ.get('OS_CLOUD', 'lab')),
                  args)


if __name__ == '__main__':
    sys.exit(main())
