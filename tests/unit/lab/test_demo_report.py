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

import copy
import unittest

from lab import demo_report
from nova_fastmig import model
from nova_fastmig import report

REQUEST = 'req-6f0c4b3e-3d0f-4f5a-9f8f-0c1d2e3f4a5b'
API_LOG = f"""\
2026-01-02 03:04:04.100 40 INFO nova.api.openstack.requestlog [{REQUEST} \
req-0 admin admin - - default default] 10.77.0.10 "GET /v2.1/servers/x" \
status: 200 len: 1 microversion: 2.1 time: 0.010000
2026-01-02 03:04:05.500 40 INFO nova.api.openstack.requestlog [{REQUEST} \
req-0 admin admin - - default default] 10.77.0.10 \
"POST /v2.1/servers/1f/action" status: 202 len: 0 microversion: 2.96 \
time: 0.250000
""".splitlines()
COMPUTE_LOG = f"""\
2026-01-02 03:04:07.001 99 DEBUG nova.virt.libvirt.driver [None {REQUEST} \
admin] [instance: 1f] Migration operation thread has finished \
_live_migration_operation /opt/driver.py:11623
2026-01-02 03:04:07.400 99 INFO nova.virt.libvirt.driver [None {REQUEST} \
admin] [instance: 1f] Migration operation has completed
2026-01-02 03:04:07.418 99 INFO nova.compute.manager [None {REQUEST} admin] \
[instance: 1f] _post_live_migration() is started..
a line that is not oslo.log's: _post_live_migration() is started..
2026-01-02 03:04:09.250 99 INFO nova.compute.manager [None {REQUEST} admin] \
[instance: 1f] Migrating instance to compute2 finished successfully.
""".splitlines()

BOOT_ID = '2f9d1c55-7a64-4a7a-8f9c-3b1e0c9d8a77'
RUN = {
    'driver': 'stock', 'server': 'tagged', 'cli': 'nova live-migration',
    'cli_exit_code': 0, 'cli_output': '', 'qemu': '10.0.13',
    'source': 'compute1', 'destination': 'compute2', 'status': 'completed',
    'request_id': REQUEST, 'error': None, 'post_copy': False,
    'server_status': 'ACTIVE',
    'domain': {'compute1': 'absent', 'compute2': 'running, persistent'},
    'blackout_ms': 40.0, 'gap_ms': 43.5, 'downtime_libvirt_ms': 41,
    'total_libvirt_ms': 900, 'total_nova_ms': 3500.0, 'post_gap_ms': 417.0,
    'guest_continuous': True, 'verdict': None, 'verdict_expected': False,
    'probe_stalled': False,
    'probe': {'first_boot_id': BOOT_ID, 'last_boot_id': BOOT_ID,
              'counter_continuous': True, 'corruptions': 0,
              'silent_at_end_ms': 2.5, 'unsent': 0, 'dropped': 0,
              'clock_step_ms': -0.01,
              'working_set_mib': 64, 'wanted_working_set_mib': None,
              'disk_faults': None},
    'failures': [],
}
STAYED = {'destination': None, 'domain': {
    'compute1': 'running, persistent', 'compute2': 'absent'}}
MACHINE = {'cpu': 'a CPU', 'cores': 2, 'memory_mib': 4096, 'accel': 'tcg',
           'nova': '34.0.0', 'libvirt': '11.3.0', 'qemu': '10.0.13'}


def run(**changes):
    return copy.deepcopy(RUN) | changes


def fastmig_run(**changes):
    line = report.to_line(report.make(
        'uuid', 'compute1', 'compute2',
        model.Sla(10, 2000, model.OnMiss.PROCEED, 1, model.QemuChoice.ANY),
        (), model.Completed(model.Outcome.COMPLETED, '', 21, 900)))
    return run(**{
        'driver': 'fastmig', 'verdict_expected': True,
        'verdict': demo_report.verdict(['compute_live_migration', line]),
    } | changes)


class NovaTimesTest(unittest.TestCase):
    def test_from_the_request_and_to_the_post_step(self):
        # received at 05.250, finished at 09.250; 07.001 to 07.418
        self.assertEqual(
            {'total_nova_ms': 4000.0, 'post_gap_ms': 417.0},
            demo_report.nova_times(API_LOG, COMPUTE_LOG))

    def test_missing_lines(self):
        self.assertEqual({'total_nova_ms': None, 'post_gap_ms': None},
                         demo_report.nova_times([], COMPUTE_LOG[:1]))
        self.assertEqual({'total_nova_ms': None, 'post_gap_ms': None},
                         demo_report.nova_times(API_LOG[:1], []))

    def test_request_that_was_refused(self):
        refused = [line.replace('status: 202', 'status: 409')
                   for line in API_LOG]
        self.assertIsNone(demo_report.api_request_time(refused))


    def test_first_error(self):
        error = (f'2026-01-02 03:04:06.000 40 ERROR oslo_messaging.rpc.server '
                 f'[None {REQUEST} admin] No valid host: [x] is full')
        self.assertEqual('No valid host: [x] is full',
                         demo_report.first_error([*API_LOG, error, error]))
        self.assertIsNone(demo_report.first_error(API_LOG))


    def test_post_copy(self):
        switched = (f'2026-01-02 03:04:06.000 40 INFO nova.virt.libvirt.'
                    f'migration [None {REQUEST} admin] [instance: 1f] '
                    f'Switching to post-copy migration mode')
        self.assertTrue(demo_report.went_post_copy([*COMPUTE_LOG, switched]))
        self.assertFalse(demo_report.went_post_copy(COMPUTE_LOG))


class VerdictTest(unittest.TestCase):
    def test_found_among_other_events(self):
        verdict = fastmig_run()['verdict']
        self.assertEqual('missed', verdict['verdict'])
        self.assertEqual(21, verdict['downtime_ms'])

    def test_none(self):
        self.assertIsNone(demo_report.verdict(['compute_live_migration']))


class FailuresTest(unittest.TestCase):
    def test_good_runs(self):
        self.assertEqual([], demo_report.failures(run()))
        self.assertEqual([], demo_report.failures(fastmig_run()))

    def assert_fails(self, text, run):
        found = demo_report.failures(run)
        self.assertEqual(1, len(found), found)
        self.assertIn(text, found[0])

    def test_command(self):
        self.assert_fails(
            'nova live-migration exited with 1: No valid host',
            run(cli_exit_code=1, cli_output='No valid host', **STAYED))

    def test_status(self):
        self.assert_fails(
            f'is error, not completed (request {REQUEST}: No valid host)',
            run(status='error', error='No valid host', **STAYED))
        self.assert_fails('is ERROR, not ACTIVE', run(server_status='ERROR'))

    def test_domain_elsewhere(self):
        found = demo_report.failures(run(
            status='running', destination=None,
            domain={'compute1': 'absent',
                    'compute2': 'running, persistent'}))
        self.assertIn('the domain on compute1 is absent, '
                      'not running, persistent', found)
        self.assertIn('the domain on compute2 is running, persistent, '
                      'not absent', found)

    def test_domain_left_behind(self):
        self.assert_fails(
            'compute1 is shut off, persistent, not absent',
            run(domain={'compute1': 'shut off, persistent',
                        'compute2': 'running, persistent'}))

    def test_domain_not_persistent(self):
        self.assert_fails(
            'compute2 is running, transient',
            run(domain={'compute1': 'absent',
                        'compute2': 'running, transient'}))

    def test_server_that_did_not_move(self):
        self.assert_fails('the server is still on compute1', run(**STAYED))

    def test_guest(self):
        self.assert_fails('did not go on', run(
            probe=RUN['probe'] | {'counter_continuous': False}))
        self.assert_fails('nothing back in the last 900 ms', run(
            probe=RUN['probe'] | {'silent_at_end_ms': 900.4}))
        # of a guest that does not count
        self.assertEqual([], demo_report.failures(run(
            probe=RUN['probe'] | {'counter_continuous': None})))
        self.assert_fails('boot id was', run(
            probe=RUN['probe'] | {'last_boot_id': 'another'}))
        for field, value, message in (
                ('unsent', 4, "4 of the generator's packets did not leave"),
                ('dropped', 5, 'no room for 5 packets'),
                ('clock_step_ms', -30.5, 'clock was set by -30.5 ms')):
            self.assert_fails(message, run(
                probe=RUN['probe'] | {field: value}))
        self.assert_fails('3 wrong words', run(
            probe=RUN['probe'] | {'corruptions': 3}))
        self.assert_fails('2 blocks of its disk', run(
            probe=RUN['probe'] | {'disk_faults': 2}))
        self.assert_fails('rewrites 64 MiB of memory, not 128', run(
            probe=RUN['probe'] | {'wanted_working_set_mib': 128}))

    def test_figures_that_are_missing(self):
        self.assert_fails('no statistics', run(downtime_libvirt_ms=None))
        self.assertEqual([], demo_report.failures(run(
            downtime_libvirt_ms=None, post_copy=True)))
        self.assert_fails('logs do not have', run(post_gap_ms=None))

    def test_verdict(self):
        self.assert_fails('has one', fastmig_run(verdict=None))
        self.assert_fails('has none', fastmig_run(verdict_expected=False))


class SummaryTest(unittest.TestCase):
    def test_medians_spread_and_ratio(self):
        runs = ([run(blackout_ms=value) for value in (40.0, 30.0, 80.0)]
                + [fastmig_run(blackout_ms=value) for value in (10.0, 20.0)]
                + [fastmig_run(server='untagged', blackout_ms=50.0)])
        summary = demo_report.summarize(runs)
        self.assertEqual({'n': 3, 'median': 40.0, 'min': 30.0, 'max': 80.0},
                         summary['stock']['blackout_ms'])
        self.assertEqual(15.0, summary['fastmig']['blackout_ms']['median'])
        self.assertEqual(
            50.0, summary['fastmig_untagged']['blackout_ms']['median'])
        self.assertEqual(2.67, summary['blackout_ratio'])
        self.assertEqual(0, summary['failed_runs'])

    def test_stalled_and_failed_runs_are_kept_but_not_counted(self):
        runs = [run(blackout_ms=40.0),
                run(blackout_ms=400.0, probe_stalled=True),
                run(blackout_ms=None, failures=['it broke'])]
        summary = demo_report.summarize(runs)
        self.assertEqual(3, summary['stock']['runs'])
        self.assertEqual(1, summary['stock']['counted'])
        self.assertEqual(40.0, summary['stock']['blackout_ms']['max'])
        self.assertEqual(1, summary['failed_runs'])
        self.assertEqual(1, summary['stalled_runs'])

    def test_one_driver_only(self):
        summary = demo_report.summarize([run()])
        self.assertIsNone(summary['fastmig'])
        self.assertIsNone(summary['blackout_ratio'])

    def test_no_division_by_a_blackout_of_zero(self):
        summary = demo_report.summarize([run(), fastmig_run(blackout_ms=0.0)])
        self.assertIsNone(summary['blackout_ratio'])


class TextTest(unittest.TestCase):
    def text(self, *runs):
        return demo_report.text({
            'machine': MACHINE, 'runs': runs,
            'summary': demo_report.summarize(runs)})

    def test_every_run_has_a_row(self):
        text = self.text(run(), fastmig_run(blackout_ms=10.0))
        self.assertRegex(text, r'\| 1 +\| stock +\| tagged +\| nova +\|')
        self.assertRegex(text, r'\| 2 +\| fastmig .* missed \|')
        self.assertIn('stock / FastMigDriver = 4.00', text)

    def test_a_stall_is_marked(self):
        self.assertIn(' 40* |', self.text(run(probe_stalled=True)))

    def test_failures_are_named(self):
        text = self.text(run(), run(
            failures=['the server is ERROR, not ACTIVE'], status='error',
            destination=None, blackout_ms=None))
        self.assertIn('FAILED: run 2: the server is ERROR, not ACTIVE', text)
        self.assertIn('compute1 -> ?', text)

    def test_line(self):
        self.assertEqual(
            'stock, tagged, nova live-migration: compute1 -> compute2, '
            'completed, blackout 40, gap 44, downtime 41, total 900 ms, '
            'SLA -', demo_report.line(run()))
