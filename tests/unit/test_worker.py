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

import queue
import threading

from oslotest import base

from nova_fastmig import worker


class TestWorker(base.BaseTestCase):

    def test_one_after_the_other(self):
        made, done = worker.Worker('test'), []
        for number in range(5):
            made.put(lambda number=number: done.append(number))
        made.join()
        self.assertEqual([0, 1, 2, 3, 4], done)

    def test_an_error_is_not_the_end(self):
        made, done = worker.Worker('test'), []
        made.put(lambda: 1 / 0)
        made.put(lambda: done.append(True))
        made.join()
        self.assertEqual([True], done)

    def test_not_more_than_may_wait(self):
        made = worker.Worker('test', 1)
        taken, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def hang():
            taken.set()
            go_on.wait(60)

        made.put(hang)
        taken.wait(60)
        made.put(lambda: None)
        self.assertRaises(queue.Full, made.put, lambda: None)
