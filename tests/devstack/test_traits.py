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

"""devstack/lib/wait_for_traits.py, with openstacksdk and a small placement."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import fixtures
from oslotest import base

from nova_fastmig import capabilities
from tests.devstack import test_plugin

SCRIPT = test_plugin.ROOT / 'devstack/lib/wait_for_traits.py'
NODE = '7d3b9f34-2c0a-4a51-9a3b-4f2a3f5b6c71'


class Placement(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
        status, body = 404, {}
        if self.path == '/':
            status, body = 200, {'versions': [{
                'id': 'v1.0', 'status': 'CURRENT', 'min_version': '1.0',
                'max_version': '1.39', 'links': [
                    {'rel': 'self', 'href': ''}]}]}
        elif self.headers['OpenStack-API-Version'] == 'placement 1.6':
            self.server.asked.append(self.path)
            answers = self.server.answers
            # the last one stays
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


def traits(*names):
    return 200, {'traits': list(names)}


class TestWaitForTraits(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.compute_id = self.place / 'compute_id'
        self.compute_id.write_text(NODE + '\n')
        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), Placement)
        self.server.asked = []
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)
        (self.place / 'clouds.yaml').write_text(
            'clouds:\n  devstack-admin:\n    auth_type: none\n'
            '    placement_endpoint_override: '
            f'http://127.0.0.1:{self.server.server_port}\n')

    def run_script(self, *names, timeout_s=0):
        return subprocess.run(
            [sys.executable, SCRIPT, '--cloud', 'devstack-admin', '--timeout',
             str(timeout_s), self.compute_id, *names],
            text=True, capture_output=True, timeout=60,
            env={**os.environ, 'OS_CLIENT_CONFIG_FILE':
                 str(self.place / 'clouds.yaml')})

    def test_there(self):
        self.server.answers = [traits('HW_CPU_X86_AVX', capabilities.TRAIT,
                                      capabilities.TRAIT_QEMU)]
        done = self.run_script(capabilities.TRAIT, capabilities.TRAIT_QEMU)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual(
            'traits of this host: CUSTOM_FASTMIG CUSTOM_FASTMIG_QEMU\n',
            done.stdout)
        self.assertEqual([f'/resource_providers/{NODE}/traits'],
                         self.server.asked)

    def test_one_is_missing(self):
        self.server.answers = [traits(capabilities.TRAIT)]
        done = self.run_script(capabilities.TRAIT, capabilities.TRAIT_QEMU)
        self.assertEqual(1, done.returncode)
        self.assertEqual('placement has no CUSTOM_FASTMIG_QEMU for this host '
                         'after 0 s\n', done.stderr)

    def test_waits(self):
        self.server.answers = [(404, {}), traits(),
                               traits(capabilities.TRAIT)]
        done = self.run_script(capabilities.TRAIT, timeout_s=30)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual(3, len(self.server.asked))

    def test_not_reported(self):
        self.server.answers = [(404, {})]
        done = self.run_script(capabilities.TRAIT)
        self.assertEqual(1, done.returncode)
        self.assertIn('placement does not know this host', done.stderr)

    def test_nova_compute_is_not_up(self):
        self.compute_id.unlink()
        done = self.run_script(capabilities.TRAIT)
        self.assertEqual(1, done.returncode)
        self.assertIn('nova-compute has not come up', done.stderr)
        self.assertEqual([], self.server.asked)

    def test_placement_fails(self):
        self.server.answers = [(403, {})]
        done = self.run_script(capabilities.TRAIT, timeout_s=30)
        self.assertNotEqual(0, done.returncode)
        self.assertIn('403', done.stderr)
