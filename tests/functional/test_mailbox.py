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

"""Events come from a thread that the concurrency backend knows nothing of."""

import time

from oslotest import base

from nova_fastmig import watch
from tests.functional import native


class TestMailbox(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.mailbox = watch.Mailbox()

    def put_later(self, item, seconds: float) -> None:
        def put():
            native.time.sleep(seconds)
            self.mailbox.put(item)
        thread = native.threading.Thread(target=put)
        thread.start()
        self.addCleanup(thread.join)

    def test_a_native_thread_wakes_the_waiting_one(self):
        self.put_later('event', 0.1)
        started = time.monotonic()
        self.assertEqual(['event'], self.mailbox.take(30))
        self.assertLess(time.monotonic() - started, 10)

    def test_nothing_comes(self):
        started = time.monotonic()
        self.assertEqual([], self.mailbox.take(0.2))
        self.assertGreaterEqual(time.monotonic() - started, 0.19)
        self.assertEqual([], self.mailbox.take(0))
        self.assertEqual([], self.mailbox.take(-1))

    def test_after_a_timeout_the_next_event_is_seen(self):
        self.assertEqual([], self.mailbox.take(0.01))
        self.put_later('event', 0.01)
        self.assertEqual(['event'], self.mailbox.take(30))
        self.assertEqual([], self.mailbox.take(0.01))
