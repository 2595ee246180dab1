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

"""Nova's API, conductor, scheduler and two compute hosts in one process."""

import os
import sys

from nova.tests.functional.libvirt import base as nova_base
from testtools import testcase

from nova_fastmig import driver
from nova_fastmig import report
from tests.functional import fake_libvirt


# One test at least for each way in which the driver meets Nova: run_tests.sh
# takes these for the oldest release.
every_nova = testcase.attr('every_nova')


class TwoHosts(testcase.WithAttributes, nova_base.ServersTestBase):

    # instance action events with the details of a failure
    microversion = '2.84'
    ADMIN_API = True
    # RPC casts stay casts, so that the API answers before the migration is
    # over and errors show where an operator would find them.
    CAST_AS_CALL = False
    COMPUTE_DRIVER = 'fastmig.FastMigDriver'

    def setUp(self):
        super().setUp()
        self.fake = self.useFixture(fake_libvirt.FakeLibvirt())
        for host in 'src', 'dest':
            self.start_compute(hostname=host, host_info=self.host_info())
        for compute in self.computes.values():
            self.assertIsInstance(compute.driver, driver.FastMigDriver)

    def _setup_compute_service(self):
        self.flags(compute_driver=self.COMPUTE_DRIVER)

    def _setup_services(self):
        # A wheel installs the file next to the interpreter, where Nova's
        # fixture does not look.
        self.flags(api_paste_config=os.path.join(
            sys.prefix, 'etc/nova/api-paste.ini'), group='wsgi')
        super()._setup_services()

    def host_info(self):
        """What each host has; None for what Nova's fixture takes."""
        return None

    def _wait_for_migration_status(self, server, expected_statuses):
        """As Nova's, which gives up after some five seconds, but longer.

        Tests share the cores, and some migrations take three by themselves.
        """
        for attempt in range(12):
            try:
                return super()._wait_for_migration_status(
                    server, expected_statuses)
            except AssertionError:
                if attempt == 11:
                    raise

    def boot(self, **extra_specs) -> dict:
        """A server on host src.

        :param extra_specs: without the namespace: enabled='true'
        """
        flavor = self._create_flavor(extra_spec={
            f'fastmig:{key}': value for key, value in extra_specs.items()})
        return self._create_server(flavor_id=flavor, host='src',
                                   networks='none')

    def boot_tagged(self, **extra_specs) -> dict:
        return self.boot(enabled='true', **extra_specs)

    def domain(self, host: str, server: dict):
        """The server's domain on a host, or None."""
        for domain in self.fake.hosts[host]._vms.values():
            if domain.UUIDString() == server['id']:
                return domain
        return None

    def start_live_migration(self, server: dict) -> int:
        """Ask for it and wait until it runs.

        :returns: the migration's id
        """
        self._live_migrate(server, 'running', 'MIGRATING')
        return self.migration(server)['id']

    def migration(self, server: dict) -> dict:
        return self.api.api_get(
            f'/os-migrations?instance_uuid={server["id"]}'
        ).body['migrations'][0]

    def action(self, server: dict) -> dict:
        """The newest live-migration action with its events."""
        request = next(
            each['request_id']
            for each in self.api.get_instance_actions(server['id'])
            if each['action'] == 'live-migration')
        return self.api.api_get(
            f'/servers/{server["id"]}/os-instance-actions/{request}'
        ).body['instanceAction']

    def verdicts(self, server: dict) -> list[dict]:
        """What the API shows of the reports of the last live migration."""
        found = (report.parse_line(event['event'])
                 for event in self.action(server)['events'])
        return [each for each in found if each is not None]

    def keep_journal(self):
        """Have the source write its reports to a file; its path."""
        journal = self.fake.emulator.parent / 'journal'
        self.flags(sinks=['instance_action', 'journal'],
                   journal_path=str(journal), group='fastmig')
        self.restart_compute_service('src')
        return journal

    def wait_for_verdict(self, server: dict) -> dict:
        """The report comes after Nova's last change of the migration."""
        self._wait_for_assert(
            lambda: self.assertNotEqual([], self.verdicts(server)))
        verdict, = self.verdicts(server)
        return verdict

    def assert_moved(self, server: dict) -> None:
        """The guest runs on dest only, and is defined there."""
        shown = self.api.get_server(server['id'])
        self.assertEqual(('ACTIVE', 'dest'),
                         (shown['status'], shown['OS-EXT-SRV-ATTR:host']))
        self.assertIsNone(self.domain('src', server))
        there = self.domain('dest', server)
        self.assertTrue(there.isActive())
        self.assertTrue(there.isPersistent())

    def assert_stayed(self, server: dict) -> None:
        """The guest runs on src only, with the limit it had before."""
        shown = self.api.get_server(server['id'])
        self.assertEqual(('ACTIVE', 'src'),
                         (shown['status'], shown['OS-EXT-SRV-ATTR:host']))
        self.assertIsNone(self.domain('dest', server))
        here = self.domain('src', server)
        self.assertTrue(here.isActive())
        self.assertTrue(here.isPersistent())
        self.assertEqual(fake_libvirt.QEMU_DEFAULT_DOWNTIME_MS,
                         here.downtime_limit_ms)

    def assert_allocated(self, server: dict, host: str) -> None:
        """The server has something on this host only, a migration nothing."""
        self.assertEqual(
            {self.compute_rp_uuids[host]},
            set(self._get_allocations_by_server_uuid(server['id'])))
        self.assertEqual({}, self._get_allocations_by_server_uuid(
            self.migration(server)['uuid']))
