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


import dataclasses
import math

import ddt
import hypothesis
from hypothesis import strategies as st
from oslotest import base

from nova_fastmig import blackout
from nova_fastmig import model
from tests.unit import values

# An ordinary switchover, in ms: name -> time.
STOCK = {'setup': -900, 'active': -890, 'stop': 0, 'pre-switchover': 0.4,
         'device': 2.9, 'completed': 36.2}


def moments(**at_ms) -> tuple[model.Moment, ...]:
    """What a QEMU has said, in this order; at a time of this century."""
    return tuple(
        model.Moment(name.replace('_', '-'),
                     1_770_000_000_000_000 + round(ms * 1000))
        for name, ms in at_ms.items())


def stock(**changes) -> tuple[model.Moment, ...]:
    changes = {name.replace('_', '-'): ms for name, ms in changes.items()}
    return moments(**{name: ms for name, ms in {**STOCK, **changes}.items()
                      if ms is not None})


def split(the_moments=(), **completed) -> model.BlackoutParts | None:
    return blackout.split(values.completed(
        **{'downtime_ms': 45, 'moments': the_moments, **completed}))


def as_known(parts: model.BlackoutParts) -> dict[str, float]:
    return {name: round(ms, 6)
            for name, ms in dataclasses.asdict(parts).items()
            if ms is not None}


@ddt.ddt
class TestOrdinaryQemu(base.BaseTestCase):

    def test_what_its_events_tell(self):
        self.assertEqual(
            {'qemu_stop_ms': 0.4, 'transfer_ms': 33.3,
             # 2.5 before the last pages and 8.8 at the end
             'libvirt_handover_ms': 11.3}, as_known(split(stock())))

    def test_all_of_libvirts_downtime_is_there(self):
        self.assertAlmostEqual(45, sum(as_known(split(stock())).values()))

    def test_nothing_has_come(self):
        self.assertIsNone(split())
        self.assertIsNone(split(moments(setup=0, active=1)))
        # Nothing but the stop says no part of it.
        self.assertIsNone(split(moments(stop=0)))

    @ddt.data(
        ({'pre_switchover': None}, {
            'qemu_stop_ms': 2.9, 'transfer_ms': 33.3,
            'libvirt_handover_ms': 8.8}),
        ({'device': None}, {'qemu_stop_ms': 0.4}),
        ({'completed': None}, {'qemu_stop_ms': 0.4}),
        ({'pre_switchover': None, 'device': None}, {}),
        ({'device': -5}, {'qemu_stop_ms': 0.4}),
        ({'device': 10 ** 9}, {'qemu_stop_ms': 0.4}),
        # A millisecond more than libvirt counts.
        ({'completed': 45.9}, {'qemu_stop_ms': 0.4, 'transfer_ms': 43.0,
                               'libvirt_handover_ms': 2.5}))
    @ddt.unpack
    def test_what_is_missing_or_wrong(self, changes, expected):
        self.assertEqual(expected, as_known(split(stock(**changes))))

    def test_libvirt_gives_no_downtime(self):
        self.assertEqual({'qemu_stop_ms': 0.4, 'transfer_ms': 33.3}, as_known(
            split(stock(), downtime_ms=None)))

    def test_the_last_stop_counts(self):
        """A switchover that was tried before, and a guest that was paused."""
        again = moments(stop=-500) + moments(device=-490, resume=-400)
        self.assertEqual(split(stock()), split(again + stock()))

    def test_what_comes_twice_counts_once(self):
        late = moments(stop=1) + moments(device=7) + moments(completed=99)
        self.assertEqual(split(stock()), split(stock() + late))


@ddt.ddt
class TestPatchedQemu(base.BaseTestCase):

    TOLD = values.blackout(clock_offset_ms=-12.5)
    KNOWN = {'qemu_stop_ms': 0.2, 'last_pages_ms': 0.8,
             'device_state_ms': 1.1, 'destination_load_ms': 0.9,
             'transfer_ms': 2.8, 'libvirt_handover_ms': 0.0,
             'resume_ms': 0.2, 'clock_offset_ms': -12.5,
             'clock_error_ms': 0.05}

    def known(self, the_moments=(), downtime_ms=9, **changes) -> dict:
        return as_known(split(
            the_moments, downtime_ms=downtime_ms,
            blackout=dataclasses.replace(self.TOLD, **changes)))

    def test_early_resume(self):
        known = self.known()
        self.assertEqual(self.KNOWN, known)
        self.assertAlmostEqual(self.TOLD.resumed_ms, sum(
            known[name] for name in (
                'qemu_stop_ms', 'transfer_ms', 'libvirt_handover_ms',
                'resume_ms')))

    def test_libvirt_resumes_it(self):
        known = self.known(resumed_ms=None)
        self.assertEqual(6.0, known['libvirt_handover_ms'])
        self.assertNotIn('resume_ms', known)
        self.assertNotIn('libvirt_handover_ms',
                         self.known(resumed_ms=None, downtime_ms=None))

    def test_without_a_direct_switchover_libvirt_is_waited_for(self):
        known = self.known(moments(stop=0, pre_switchover=.3, device=.8))
        self.assertEqual((0.3, 0.5), (known['last_pages_ms'],
                                      known['libvirt_handover_ms']))

    def test_a_wait_that_is_longer_than_there_is_room_for(self):
        known = self.known(moments(stop=0, pre_switchover=.3, device=9))
        self.assertEqual((0.0, 0.8), (known['last_pages_ms'],
                                      known['libvirt_handover_ms']))

    def test_the_destination_says_little(self):
        known = self.known(pages_loaded_ms=None, devices_loaded_ms=None)
        for name in 'destination_load_ms', 'transfer_ms', 'resume_ms':
            self.assertNotIn(name, known)
        self.assertEqual(0.8, known['last_pages_ms'])

    def test_the_clock_is_not_told(self):
        self.assertNotIn('clock_offset_ms', self.known(clock_offset_ms=None))


names = st.sampled_from(['stop', 'resume', 'setup', 'active',
                         'pre-switchover', 'device', 'completed', 'failed',
                         'cancelled', '', 'x-new'])
# Late, double, missing, out of order, from a clock that jumps.
any_moments = st.lists(
    st.builds(model.Moment, names,
              st.integers(0, 10 ** 6) | st.integers(-1 << 63, 1 << 63)),
    max_size=12)
ms = st.floats(0, 1e6)
any_blackout = st.none() | st.builds(
    model.Blackout, ms, ms, ms, st.none() | ms, st.none() | ms,
    st.none() | ms, ms, st.none() | st.floats(-1e9, 1e9))


class TestAnything(base.BaseTestCase):

    @hypothesis.given(any_moments, any_blackout,
                      st.none() | st.integers(0, 1 << 63))
    def test_no_part_is_negative_or_endless(self, the_moments, told,
                                            downtime_ms):
        parts = split(tuple(the_moments), blackout=told,
                      downtime_ms=downtime_ms)
        if parts is None:
            self.assertIsNone(told)
            return
        for name, value in dataclasses.asdict(parts).items():
            if name != 'clock_offset_ms' and value is not None:
                self.assertTrue(0 <= value < math.inf, name)

    @hypothesis.given(any_moments)
    def test_the_pause_at_the_source(self, the_moments):
        paused_ms = blackout.source_pause_ms(the_moments)
        if paused_ms is not None:
            self.assertTrue(0 <= paused_ms < math.inf)
            said = [each.name for each in the_moments
                    if each.name in ('stop', 'resume')]
            # It goes on in the end.
            self.assertIn(said[-1:], ([], ['resume']))
            if 'stop' not in said:
                self.assertEqual(0, paused_ms)


@ddt.ddt
class TestPauseAtTheSource(base.BaseTestCase):

    def test_nothing_could_be_heard(self):
        self.assertIsNone(blackout.source_pause_ms(None))
        self.assertIsNone(split(None))

    def test_nothing_has_come(self):
        """libvirt can cancel before QEMU has begun."""
        self.assertEqual(0, blackout.source_pause_ms(()))

    def test_never(self):
        self.assertEqual(0, blackout.source_pause_ms(
            moments(setup=0, active=1, cancelled=99)))

    def test_once_and_again(self):
        once = moments(setup=0, stop=10, device=11, failed=12, resume=30.5)
        self.assertEqual(20.5, blackout.source_pause_ms(once))
        self.assertEqual(25.5, blackout.source_pause_ms(
            once + moments(stop=40) + moments(stop=41, resume=45)))

    def test_it_still_stands(self):
        self.assertIsNone(blackout.source_pause_ms(moments(stop=10)))

    def test_a_resume_alone(self):
        self.assertEqual(0, blackout.source_pause_ms(moments(resume=5)))

    @ddt.data(9, 10 ** 9)
    def test_a_time_that_cannot_be(self, resumed_ms):
        self.assertIsNone(blackout.source_pause_ms(
            moments(stop=10, resume=resumed_ms)))


@ddt.ddt
class TestForeignStop(base.BaseTestCase):

    @ddt.data(
        ('', False), ('active', False), ('stop', True),
        ('active stop', True), ('stop pre-switchover', False),
        ('stop device', False), ('stop completed', False),
        ('stop resume', False), ('stop resume stop', True),
        ('stop device failed resume stop', True),
        # It was paused before and switches over now.
        ('stop active device', False),
        # Not heard of the stop: libvirt is believed.
        ('pre-switchover device', False))
    @ddt.unpack
    def test_what_has_stopped_the_guest(self, said, expected):
        self.assertIs(expected, blackout.is_foreign_stop(
            [model.Moment(name, 0) for name in said.split()]))
