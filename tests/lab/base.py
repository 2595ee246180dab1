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

"""What the tests in two real hosts share.

They run as root, inside the network namespace of the lab's controller
(run_tests.sh sees to that), so that Nova's API and the libvirtd of both hosts
can be reached; everything else goes through ``lab/in``.
"""

import contextlib
import os
import pathlib
import subprocess
import time
import unittest
import uuid

import libvirt
import openstack
from oslotest import base

from lab import probe_client
from nova_fastmig import report

LAB = pathlib.Path(__file__).parents[2] / 'lab'
NAME = os.environ.get('NOVA_FASTMIG_LAB_NAME')
STATE = pathlib.Path(os.environ.get(
    'NOVA_FASTMIG_LAB_DIR',
    '/var/lib/nova-fastmig-lab' + (f'-{NAME}' if NAME else '')))
CONTROLLER_IP = '10.77.0.10'
COMPUTE_IPS = {'compute1': '10.77.0.11', 'compute2': '10.77.0.12'}

# libvirt's own way to report an error is to print it
libvirt.registerErrorHandler(lambda context, error: None, None)

# What takes many minutes and is run by hand: all of it is worth an hour now
# and then, not with every change.
long = unittest.skipUnless(
    os.environ.get('NOVA_FASTMIG_LONG_TESTS'),
    'takes many minutes; NOVA_FASTMIG_LONG_TESTS=1 runs it')

FINAL_STATUSES = ('completed', 'failed', 'error', 'cancelled')


def lab(command: str, *arguments: str, timeout_s: int = 600) -> str:
    """Run one of the lab's commands; what it printed."""
    result = subprocess.run(
        [LAB / command, *arguments], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=timeout_s)
    if result.returncode:
        raise AssertionError(
            f'lab/{command} {" ".join(arguments)} ended with '
            f'{result.returncode}:\n{result.stdout}{result.stderr}')
    return result.stdout


def on_host(host: str, *command: str) -> str:
    return lab('in', host, *command)


def wait_until(what: str, condition, timeout_s: float = 60,
               interval_s: float = 0.1):
    """Poll until ``condition()`` is true; return what it returned."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f'not within {timeout_s} s: {what}')
        time.sleep(interval_s)


def connect():
    """:returns: openstack.connection.Connection of the lab's cloud"""
    return openstack.connect(
        auth_url=f'http://{CONTROLLER_IP}:5000/v3', username='admin',
        password='secret', project_name='admin',
        user_domain_id='default', project_domain_id='default',
        region_name='RegionOne',
        # the catalog has names that only the hosts can resolve
        compute_endpoint_override=f'http://{CONTROLLER_IP}:8774/v2.1',
        image_endpoint_override=f'http://{CONTROLLER_IP}:9292',
        network_endpoint_override=f'http://{CONTROLLER_IP}:9696',
        placement_endpoint_override=f'http://{CONTROLLER_IP}:8778')


class LabTest(base.BaseTestCase):
    """A test with its own servers and flavors."""

    # the driver that the compute hosts run
    driver = 'fastmig'
    # of lab/use-driver, beside it
    options: tuple[str, ...] = ()
    # the newest migration before the one that was asked for last
    _previous_id = 0

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # A new lab has no such file until a driver is chosen
        chosen = STATE / 'driver'
        if cls.options:
            lab('use-driver', cls.driver, *cls.options)
            cls.addClassCleanup(lab, 'use-driver', cls.driver)
        elif not (chosen.exists() and
                chosen.read_text().strip() == cls.driver):
            lab('use-driver', cls.driver)
        cls.cloud = connect()
        cls.compute = cls.cloud.compute
        cls.compute.default_microversion = '2.96'

    # ---- resources

    def flavor(self, **fastmig: str):
        """A flavor with these ``fastmig:`` extra specs, for this test."""
        # A run that was killed has left what it had.
        flavor = self.compute.create_flavor(
            name=f'{self.id().rpartition(".")[2]}-{uuid.uuid4().hex[:8]}',
            ram=256, vcpus=1, disk=0)
        self.addCleanup(self.compute.delete_flavor, flavor)
        if fastmig:
            self.compute.create_flavor_extra_specs(
                flavor, {f'fastmig:{key}': value
                         for key, value in fastmig.items()})
        return flavor

    def boot(self, flavor, host: str = 'compute1'):
        """A server that forwards, on a host; deleted after the test."""
        server = self.compute.create_server(
            name=flavor.name, flavor_id=flavor.id, host=host,
            image_id=self.cloud.image.find_image('forwarder').id,
            networks=[{'uuid': self.cloud.network.find_network('nfv').id}])
        self.addCleanup(self._delete, server)
        server = self.compute.wait_for_server(server, interval=0.3)
        self.domain_name = server.instance_name
        self.uuid = server.id
        with self.probe():
            pass
        return server

    def _delete(self, server):
        self.compute.delete_server(server)
        self.compute.wait_for_delete(server, interval=0.3, wait=60)

    def probe(self, rate: int = 1000, seconds: int = 600,
              **options) -> probe_client.Probe:
        return probe_client.Probe(
            STATE / 'share/bin/probe',
            next(self.cloud.network.ports(device_id=self.uuid)), rate=rate,
            answer_within_s=90, seconds=seconds, **options)

    # ---- what the hosts say

    @contextlib.contextmanager
    def _domain(self, host: str):
        """The server's domain on a host; None if there is none."""
        with contextlib.closing(libvirt.open(
                f'qemu+tcp://{COMPUTE_IPS[host]}/system')) as connection:
            yield next((domain for domain in connection.listAllDomains()
                        if domain.UUIDString() == self.uuid), None)

    def domain_state(self, host: str) -> tuple[bool, bool] | None:
        """(running, persistent), or None if the domain is not there."""
        with self._domain(host) as domain:
            if domain is None:
                return None
            try:
                return (domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING,
                        bool(domain.isPersistent()))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                return None  # it went just now

    def limit_bandwidth(self, host: str, mib_per_s: int) -> None:
        """Give the present or next migration from this host so much."""
        with self._domain(host) as domain:
            domain.migrateSetMaxSpeed(mib_per_s)

    def sent_bytes(self, host: str) -> int:
        """What the present migration from this host has sent; 0 at first."""
        with self._domain(host) as domain:
            return domain.jobInfo()[4]

    # ---- migrations

    def migrate(self) -> None:
        # The conductor makes the next one after the API has answered.
        previous = self._newest_migration()
        self._previous_id = previous.id if previous else 0
        # The SDK's own call takes an old microversion, with which nova-api
        # waits for the pre-checks.
        response = self.compute.post(
            f'/servers/{self.uuid}/action', microversion='2.96',
            json={'os-migrateLive': {'host': None,
                                     'block_migration': 'auto'}})
        openstack.exceptions.raise_from_response(response)

    def _newest_migration(self):
        found = list(self.compute.migrations(server_id=self.uuid))
        return max(found, key=lambda migration: migration.id, default=None)

    def migration(self):
        """The one that was asked for last; None as long as there is none."""
        newest = self._newest_migration()
        return newest if newest and newest.id > self._previous_id else None

    def running_migration(self, host: str = 'compute1'):
        """The migration from this host, when libvirt has begun with it.

        Nova calls it "running" a little earlier.
        """
        def running():
            migration = self.migration()
            if migration is None or migration.status != 'running':
                return None
            with self._domain(host) as domain:
                job_type = domain.jobInfo()[0]
            return migration if job_type != libvirt.VIR_DOMAIN_JOB_NONE \
                else None
        return wait_until('the migration runs', running)

    def finished_migration(self):
        def finished():
            migration = self.migration()
            if migration is not None and migration.status in FINAL_STATUSES:
                return migration
            return None
        migration = wait_until('the migration ends', finished, timeout_s=120)
        wait_until('the server has no task', lambda: self.compute.get_server(
            self.uuid).task_state is None)
        return migration

    def verdict(self) -> dict | None:
        """What the newest live migration's action events say."""
        action = next(action for action in self.compute.server_actions(
            self.uuid) if action.action == 'live-migration')
        action = self.compute.get_server_action(action.request_id, self.uuid)
        return next(filter(None, (report.parse_line(event.event)
                                  for event in action.events)), None)

    def assert_ends(self, status: str) -> None:
        """Wait for the newest migration; what it ended as, and why."""
        migration = self.finished_migration()
        if migration.status != status:
            self.fail(f'{migration.status} instead of {status}: '
                      f'{self.verdict()}')

    def assert_on(self, host: str) -> None:
        """Running, defined and known to Nova on this host and nowhere else."""
        server = self.compute.get_server(self.uuid)
        self.assertEqual(('ACTIVE', host),
                         (server.status, server.compute_host))
        self.assertEqual(
            {name: (True, True) if name == host else None
             for name in COMPUTE_IPS},
            {name: self.domain_state(name) for name in COMPUTE_IPS})

    def assert_unharmed(self, probe: probe_client.Probe) -> None:
        """The same guest all the while, and its memory as it left it."""
        self.assertTrue(probe.result['counter_continuous'], probe.result)
        self.assertEqual(0, probe.result['corruptions'], probe.result)
