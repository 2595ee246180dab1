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

"""The hand-over of early resume as a state machine, searched exhaustively.

The states of the guest's ownership have the names that QEMU gives them
(``MigrationHandover`` in qapi/migration.json, explained in
docs/devel/migration/early-resume.rst).  Everything that can happen is a
transition: steps of the two QEMUs, delivery of the messages in flight,
errors, the loss of the connection with any part of what was in flight, the
death of either side, and what management may ask of either monitor at any
time.

Each rule of the protocol is a name in RULES and can be left out, to show
what it is there for.
"""

import collections
import dataclasses

RULES = {
    'ask': 'the destination runs the guest only with the permission',
    'give-before-send': 'the source lets go before it sends the permission',
    'no-resume-given': 'the source does not resume while it has no answer',
    'no-resume-timeout': 'no answer in time is no answer',
    'no-cont-given': 'the source refuses cont while it has no answer',
    'no-cont-taken': 'the source refuses cont after the guest was taken',
    'no-cancel-given': 'the source refuses cancel after it has let go',
    'no-migrate-given': 'a guest that is given away cannot be migrated again',
    'no-cont-refused': 'a destination that refused never starts the guest',
    'refuse-lost': 'a destination that lost the source refuses the guest',
    'refuse-for-good': 'the permission is void after the refusal',
    'return-images': 'a destination that refuses lets go of the images',
    'release-dead': 'management releases only with the destination dead',
}


@dataclasses.dataclass(frozen=True)
class State:
    """Both QEMUs and what is in flight between them."""
    # Image locks protect a guest that has images, but only that
    disks: bool = True
    # Source
    s_alive: bool = True
    s_run: bool = True          # vCPUs run
    s_images: bool = True       # block devices active
    s_own: str = 'none'         # none given taken refused released
    # migrating: the guest runs; sent: stopped, all state is sent;
    # giving: about to send HANDOVER; answer: waits for the answer; ended
    s_step: str = 'migrating'
    s_why: str = ''             # error-desc
    # Destination
    d_alive: bool = True
    d_run: bool = False
    d_images: bool = False
    d_own: str = 'none'         # none ready given taken refused
    d_hold: bool = False        # the monitor asked for a stopped guest
    # Connection; each queue is in order, the oldest message first
    up: bool = True
    s2d: tuple = ()
    d2s: tuple = ()


def _send_s(st, msg):
    return dataclasses.replace(st, s2d=st.s2d + (msg,)) if st.up else st


def _send_d(st, msg):
    return dataclasses.replace(st, d2s=st.d2s + (msg,)) if st.up else st


def _source_fails(st, why, rules):
    """The migration ends on the source and not by success."""
    st = dataclasses.replace(st, s_step='ended', s_why=why)
    if st.s_own == 'given':
        rule = 'no-resume-timeout' if why == 'timeout' else 'no-resume-given'
        if rule in rules:
            return st
    return _source_starts(st)


def _source_starts(st):
    """Take the images back and run.  Their locks show who else has them."""
    if st.disks and st.d_images:
        return dataclasses.replace(st, s_why='images are locked')
    return dataclasses.replace(st, s_images=True, s_run=True)


def _destination_refuses(st):
    asked = st.d_own in ('ready', 'given')
    st = dataclasses.replace(st, d_own='refused')
    return _send_d(st, 'REFUSED' if asked else 'SHUT error')


def _destination_starts(st):
    return dataclasses.replace(st, d_images=True, d_run=True)


def _source_steps(st, rules):
    """What the source's migration does by itself."""
    if not st.s_alive:
        return
    if st.s_step == 'migrating':
        yield 'source: stop, send the state', _send_s(
            dataclasses.replace(st, s_run=False, s_images=False,
                                s_step='sent'), 'STATE')
    if st.s_step in ('migrating', 'sent'):
        yield 'source: error', _source_fails(st, 'error', rules)
    if st.s_step == 'giving':
        after = dataclasses.replace(st, s_step='answer')
        yield 'source: send HANDOVER', _send_s(after, 'HANDOVER')
    if st.s_step == 'answer':
        if 'give-before-send' not in rules and st.s_own == 'none':
            yield 'source: notes that it gave the guest', \
                dataclasses.replace(st, s_own='given')
        yield 'source: timeout', _source_fails(st, 'timeout', rules)

    if st.s_step == 'ended':
        return
    if not st.d2s:
        if not st.up:
            yield 'source: connection lost', _source_fails(
                st, 'connection lost', rules)
        return
    yield from _source_receives(
        dataclasses.replace(st, d2s=st.d2s[1:]), st.d2s[0], rules)


def _source_receives(st, msg, rules):
    label = f'source: receive {msg}'
    if msg == 'READY':
        if st.s_step == 'sent' and st.s_own == 'none':
            own = 'given' if 'give-before-send' in rules else 'none'
            yield label, dataclasses.replace(st, s_own=own, s_step='giving')
    elif msg == 'TAKEN':
        if st.s_own in ('none', 'given'):
            yield label, dataclasses.replace(st, s_own='taken',
                                             s_step='ended')
        else:
            yield label, st
    elif msg == 'REFUSED':
        if st.s_own in ('none', 'given'):
            st = dataclasses.replace(st, s_own='refused')
        yield label, _source_fails(st, 'destination refused', rules)
    else:
        yield label, _source_fails(st, 'destination failed', rules)


def _destination_steps(st, rules):
    if not st.d_alive:
        return
    if st.d_own == 'given':
        yield 'destination: take over', _send_d(_taken(st), 'TAKEN')
        failed = dataclasses.replace(
            st, d_images='return-images' not in rules)
        yield 'destination: images cannot be activated', \
            _destination_refuses(failed)

    if st.d_own in ('none', 'ready') and not st.s2d and not st.up:
        if 'refuse-lost' in rules:
            yield 'destination: connection lost', _destination_refuses(st)
        elif st.d_own == 'ready':
            yield 'destination: connection lost, starts', \
                _destination_starts(dataclasses.replace(st, d_own='taken'))
    if not st.s2d:
        return
    msg, rest = st.s2d[0], st.s2d[1:]
    st = dataclasses.replace(st, s2d=rest)
    if msg == 'STATE' and st.d_own == 'none':
        yield 'destination: load fails', _destination_refuses(st)
        if 'ask' in rules:
            yield 'destination: load, ask', _send_d(
                dataclasses.replace(st, d_own='ready'), 'READY')
        else:
            yield 'destination: load, start', _send_d(_taken(st), 'TAKEN')
    elif msg == 'HANDOVER' and st.d_own == 'ready':
        yield 'destination: receive HANDOVER', dataclasses.replace(
            st, d_own='given')
    elif msg == 'HANDOVER' and st.d_own == 'refused':
        if 'refuse-for-good' not in rules:
            st = dataclasses.replace(st, d_own='given')
        yield 'destination: receive HANDOVER late', st


def _taken(st):
    return dataclasses.replace(st, d_own='taken', d_images=True,
                               d_run=not st.d_hold)


def _faults(st):
    if st.up:
        yield 'fault: connection cut', dataclasses.replace(st, up=False)
        # Only the stream can be broken, with the return path still working
        if st.d_alive and st.d_own == 'ready':
            yield 'fault: broken stream', _destination_refuses(st)
    else:
        if st.s2d:
            yield f'fault: {st.s2d[-1]} lost', dataclasses.replace(
                st, s2d=st.s2d[:-1])
        if st.d2s:
            yield f'fault: {st.d2s[-1]} lost', dataclasses.replace(
                st, d2s=st.d2s[:-1])
    if st.s_alive:
        yield 'fault: source dies', dataclasses.replace(
            st, s_alive=False, s_run=False, s_images=False, up=False, d2s=())
    if st.d_alive:
        yield 'fault: destination dies', dataclasses.replace(
            st, d_alive=False, d_run=False, d_images=False, up=False, s2d=())


def _management(st, rules):
    """Whatever a confused management may ask, at any time."""
    if st.s_alive:
        yield from _asked_of_source(st, rules)
    if st.d_alive:
        yield from _asked_of_destination(st, rules)


def _asked_of_source(st, rules):
    refused = (st.s_own == 'given' and 'no-cont-given' in rules or
               st.s_own == 'taken' and 'no-cont-taken' in rules)
    if st.s_step == 'ended' and not st.s_run and not refused:
        yield 'source: cont', _source_starts(st)
    if st.s_step != 'ended' and (st.s_own == 'none' or
                                 'no-cancel-given' not in rules):
        cancelled = dataclasses.replace(st, s_step='ended', up=False,
                                        s_why='cancelled')
        yield 'source: migrate_cancel', _source_starts(cancelled)
    if (st.s_own == 'given' and st.s_step == 'ended' and
            'no-migrate-given' not in rules):
        # A new migration forgets what became of the one before, and
        # fails
        yield 'source: migrate elsewhere', _source_starts(
            dataclasses.replace(st, s_own='none'))
    if st.s_own == 'given' and (not st.d_alive or
                                'release-dead' not in rules):
        released = dataclasses.replace(st, s_own='released')
        if st.s_step != 'ended':
            released = _source_fails(
                dataclasses.replace(released, up=False), 'released',
                rules)
        yield 'source: x-migrate-handover-release', released
    if st.s_own == 'taken' and st.s_step == 'ended' and not st.d_alive:
        yield 'source: x-migrate-handover-release stale', \
            dataclasses.replace(st, s_own='released')


def _asked_of_destination(st, rules):
    if st.d_own in ('none', 'ready', 'given') and not st.d_hold:
        yield 'destination: stop', dataclasses.replace(st, d_hold=True)
    if st.d_own in ('none', 'ready', 'given') and st.d_hold:
        yield 'destination: cont', dataclasses.replace(st, d_hold=False)
    if st.d_own == 'taken':
        if st.d_run:
            yield 'destination: stop', dataclasses.replace(
                st, d_run=False)
        else:
            yield 'destination: cont', _destination_starts(st)
    if st.d_own == 'refused' and 'no-cont-refused' not in rules:
        yield 'destination: cont', _destination_starts(st)


def transitions(st, rules):
    """All that can happen next, as (who: what, state after)."""
    yield from _source_steps(st, rules)
    yield from _destination_steps(st, rules)
    yield from _faults(st)
    yield from _management(st, rules)


def at_rest(st, rules):
    """Nothing more happens by itself: it is for management to act."""
    return not any(True for _ in _source_steps(st, rules)) and \
        not any(True for _ in _destination_steps(st, rules))


def violation(st, rules):
    """What is wrong with a state, or None."""
    if st.s_run and st.d_run:
        return 'double run'
    if st.disks and st.s_images and st.d_images:
        return 'double use of images'
    if not at_rest(st, rules):
        return None
    if st.s_run or st.d_run or not (st.s_alive or st.d_alive):
        return None
    # Nobody runs the guest, and somebody is there
    if st.d_alive and st.d_own == 'taken':
        return None     # stopped at the destination by management
    if st.s_alive:
        if st.s_own == 'given' and st.s_why:
            return None     # paused, in doubt, and says so
        if st.s_own == 'taken' and not st.d_alive:
            return None     # the guest died at the destination
        if st.s_own == 'released':
            return None     # management has only to say cont
        return 'silent loss'
    # The source is dead, and the destination had not got the guest
    return None if st.d_own == 'refused' else 'silent loss'


@dataclasses.dataclass
class Search:
    states: set
    violations: dict    # name -> shortest trace
    at_rest: set


def search(rules=frozenset(RULES)):
    """Visit every state that can be reached, with and without disks."""
    unknown = set(rules) - set(RULES)
    if unknown:
        raise ValueError(f'unknown rules: {sorted(unknown)}; '
                         f'known: {sorted(RULES)}')
    came_from = {State(disks=disks): None for disks in (True, False)}
    found = {}
    resting = set()
    todo = collections.deque(came_from)
    while todo:
        st = todo.popleft()
        name = violation(st, rules)
        if name:
            if name not in found:
                found[name] = trace(came_from, st)
            continue
        if at_rest(st, rules):
            resting.add(st)
        for label, after in transitions(st, rules):
            if after not in came_from:
                came_from[after] = (label, st)
                todo.append(after)
    return Search(set(came_from), found, resting)


def trace(came_from, st):
    labels = []
    while came_from[st]:
        label, st = came_from[st]
        labels.append(label)
    return labels[::-1]
