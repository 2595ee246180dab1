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

"""What happens to a guest that stands still, and to one that must not."""

import json
import signal

from tests.lab import base
from tests.lab import hosts
from tests.lab import tool

# The guest writes to 64 MiB of its memory, 32 MiB of them per second.
SLOW_MIB_PER_S = 16
FAST_MIB_PER_S = 1000
PATIENT_MS = '120000'
# The default for flavors with a limit of up to 100 ms, the poll that notices
# it, and what QEMU and a busy machine take for the cancellation.
SWITCHOVER_TIMEOUT_MS = 2000
POLL_MS = 500
SLACK_MS = 1500


class HangingTest(base.LabTest):
    """A switchover that cannot finish, because it is broken in its middle.

    Something is broken when QEMU has stopped the guest and waits for libvirt,
    which is held until then.
    """

    max_downtime_ms = 10
    # How fast the migration is when it comes to the switchover, and how fast
    # the guest rewrites its memory.
    mib_per_s: int
    rewrite_mib_per_s: int
    timeout_ms = SWITCHOVER_TIMEOUT_MS

    def setUp(self):
        super().setUp()
        self.boot(self.flavor(enabled='true', max_total_ms=PATIENT_MS,
                              max_downtime_ms=str(self.max_downtime_ms)))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)

    def _hold(self, break_it, repair) -> None:
        self.addCleanup(repair)
        with self.probe(rewrite_mib_per_s=self.rewrite_mib_per_s) as probe:
            with hosts.held_switchover(self, 'compute1', self.mib_per_s):
                break_it()
            base.wait_until('the guest resumes at the source', lambda:
                            self.domain_state('compute1') == (True, True),
                            timeout_s=30)
            repair()
            self.assert_ends('cancelled')
        # The destination learns of it by itself.
        base.wait_until('the destination has given up', lambda:
                        self.domain_state('compute2') is None)
        self.assert_on('compute1')
        self.assert_unharmed(probe)
        # Not those that were lost: the first thousand wait in the queue of the
        # tap until the guest resumes, and are answered late.
        self.assertGreater(probe.result['gap_ms'],
                           self.timeout_ms - POLL_MS)
        self.assertLess(probe.result['gap_ms'],
                        self.timeout_ms + POLL_MS + SLACK_MS)
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual('aborted', verdict['outcome'])
        self.assertIn('has stood still', verdict['reason'])

        # and it can be migrated after that
        self.limit_bandwidth('compute1', FAST_MIB_PER_S)
        self.migrate()
        self.assert_ends('completed')
        self.assert_on('compute2')

    def _cut_the_link(self) -> None:
        self._hold(lambda: hosts.wire('mig', 'compute2', up=False),
                   lambda: hosts.wire('mig', 'compute2', up=True))


class WatchdogTest(HangingTest):
    """QEMU has sent all that was left, and can be told to cancel.

    So little is left, 256 KiB, that the source's socket holds it, or QEMU
    would wait in its send, as that of BusyWatchdogTest does.
    """

    mib_per_s = 25
    rewrite_mib_per_s = 1
    # The patched QEMU does not wait for libvirt.
    options = ('--qemu', 'distribution')

    def test_the_link_is_cut(self):
        self._cut_the_link()

    def test_the_destinations_qemu_is_stuck(self):
        stuck = []

        def freeze():
            stuck.extend(hosts.qemu('compute2', self.uuid))
            hosts.send(signal.SIGSTOP, stuck)

        self._hold(freeze, lambda: hosts.send(signal.SIGCONT, stuck))


class BusyWatchdogTest(HangingTest):
    """QEMU waits in its send, and executes no command that could end that.

    25 MiB are left, which take a quarter of a second: more than the sockets
    hold. Only the patched QEMU can be told before that it must not wait for
    ever.
    """

    # With its features it stops the guest only when the sockets are empty, and
    # does not wait for libvirt.
    options = ('--qemu', 'patched', '--features', 'none')
    max_downtime_ms = 250
    mib_per_s = 100
    rewrite_mib_per_s = 32
    timeout_ms = 20 * max_downtime_ms

    def test_the_link_is_cut(self):
        self._cut_the_link()


class TrendTest(base.LabTest):

    def test_one_that_never_converges_is_not_paused(self):
        """Aborted by the trend, long before the time is over.

        A pass takes four seconds, in which all of the 64 MiB are written to:
        as much as is sent. So what tells is that too little time is left for
        the benefit of the doubt that a trend has.
        """
        self.boot(self.flavor(enabled='true', max_total_ms='45000'))
        self.limit_bandwidth('compute1', SLOW_MIB_PER_S)
        with tool.QemuEvents('STOP') as events, self.probe() as probe:
            self.migrate()
            self.assert_ends('cancelled')
        self.assert_on('compute1')
        self.assert_unharmed(probe)
        self.assertIsNone(events.last('compute1', self.uuid, 'STOP'))
        verdict = base.wait_until('the verdict', self.verdict, timeout_s=10)
        self.assertEqual('aborted', verdict['outcome'])
        self.assertIn('will not converge', verdict['reason'])


class ConfiguredTest(base.LabTest):
    """With options of [fastmig] that the lab does not have."""

    FILE = '/etc/nova/nova.conf.d/test.conf'

    def configure(self, **options) -> None:
        self.addCleanup(self._write, '')
        self._write('[fastmig]\n' + ''.join(
            f'{name} = {value}\n' for name, value in options.items()))

    def _write(self, content: str) -> None:
        for host in base.COMPUTE_IPS:
            base.on_host(host, 'sh', '-euc', f'printf "%s" "$1" >{self.FILE}',
                         'sh', content)
        base.lab('use-driver', self.driver)

    def _journal(self, host: str) -> str:
        return base.on_host(host, 'tail', '-n', '1',
                            '/var/lib/nova/fastmig/journal.jsonl')


@base.long
class ReservationTest(ConfiguredTest):

    def test_no_room(self):
        """256 MiB in two seconds need 256 MiB/s, and so does the next one."""
        self.configure(migration_bandwidth_mib_s=300,
                       migration_bandwidth_wait_s=1)
        self.boot(self.flavor(enabled='true', on_miss='proceed'))
        tool.Guest.use(self.driver)
        with tool.Guest('another') as another:
            another.boot(another.flavor(enabled='true', on_miss='proceed'),
                         host='compute2')
            # It holds what is reserved for it until its end, which is not to
            # come yet.
            self.addCleanup(hosts.wire, 'mig', 'compute2', up=True)
            hosts.wire('mig', 'compute2', up=False)
            self.migrate()
            self.running_migration()
            # Nova lets one migration leave a host at a time, so this is one
            # that comes from the other.
            another.migrate()
            another.assert_ends('error')
            another.assert_on('compute2')
            self.assertIn('[fastmig]migration_bandwidth_mib_s',
                          self._details(another))

            hosts.wire('mig', 'compute2', up=True)
            self.assert_ends('completed')
            another.migrate()
            another.assert_ends('completed')

    def _details(self, guest) -> str:
        """Of the newest live migration's events."""
        action = next(action for action in self.compute.server_actions(
            guest.uuid) if action.action == 'live-migration')
        action = self.compute.get_server_action(action.request_id, guest.uuid)
        return ' '.join(event.details or '' for event in action.events)


@base.long
class CalibrationTest(ConfiguredTest):

    def test_the_limit_becomes_the_rest(self):
        """What is known of the pair's blackout is kept from QEMU's limit."""
        self.configure(calibration_max_age_s=3600)
        for host in base.COMPUTE_IPS:
            base.on_host(host, 'rm', '-f',
                         '/var/lib/nova/fastmig/calibration.json')
        self.boot(self.flavor(enabled='true', max_downtime_ms='900',
                              max_total_ms='60000', on_miss='proceed'))
        limits = []
        for destination in 6 * ('compute2', 'compute1'):
            source = self.compute.get_server(self.uuid).compute_host
            self.migrate()
            self.assert_ends('completed')
            self.assert_on(destination)
            base.wait_until('the verdict', self.verdict, timeout_s=10)
            limits.append(self._limit_ms(source))
        self.assertEqual(900, limits[0])
        self.assertLess(limits[-1], 900)
        self.assertGreater(limits[-1], 0)

    def _limit_ms(self, host: str) -> int:
        return json.loads(self._journal(host))['report']['downtime_limit_ms']
