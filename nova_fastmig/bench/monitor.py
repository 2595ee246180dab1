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

"""A session with a QEMU: its commands, its events, its migrations.

It needs qemu.qmp and nothing of Nova or libvirt: tests/qemu uses it where
neither is installed.
"""

import asyncio

import qemu.qmp as qmp


class Ended(Exception):
    """The QEMU is gone."""


def event_name(event, data):
    """What an event tells: MIGRATION its status, MIGRATION_PASS ``pass-1``."""
    if event == 'MIGRATION':
        return data['status']
    return f'pass-{data["pass"]}' if event == 'MIGRATION_PASS' else event


def _time_us(event):
    stamp = event['timestamp']
    return stamp['seconds'] * 1_000_000 + stamp['microseconds']


class Monitor:
    """A QEMU's monitor, over QMP.

    :ivar events: all events so far, as QMP has them
    """

    def __init__(self, name):
        self.name = name
        self.events = []
        self.qmp = qmp.QMPClient(name)
        self._listener = qmp.EventListener()
        self._changed = asyncio.Condition()
        self._tasks = []

    async def connect(self, address):
        """Open the session.

        :param address: a socket, or what asyncio connects to
        :raises: qemu.qmp.ConnectError
        """
        self.qmp.register_listener(self._listener)
        await self.qmp.connect(address)
        self._tasks.append(asyncio.create_task(self._read_events()))
        self._tasks.append(asyncio.create_task(self._watch_session()))

    async def _watch_session(self):
        while self.qmp.runstate == qmp.Runstate.RUNNING:
            await self.qmp.runstate_changed()
        await self.wake()

    async def disconnect(self):
        try:
            await self.qmp.disconnect()
        except (EOFError, OSError):
            pass  # the process is gone, and so is its end of the socket
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_running(self, what):
        """Raise if the QEMU ended before what was waited for."""
        if self.qmp.runstate != qmp.Runstate.RUNNING:
            raise Ended(f'{self.name}: QEMU ended before {what}')

    async def _read_events(self):
        async for event in self._listener:
            self.events.append(event)
            await self.wake()

    async def wake(self):
        """Let those who wait look again."""
        async with self._changed:
            self._changed.notify_all()

    async def command(self, name, **arguments):
        """Run a QMP command; an underscore in a keyword is a dash."""
        return await self.qmp.execute(
            name, {k.replace('_', '-'): v for k, v in arguments.items()})

    async def until(self, predicate, what):
        """Wait until predicate() holds; it is asked after every event."""
        async with self._changed:
            while not predicate():
                self.check_running(what)
                await self._changed.wait()

    def event(self, name, since=0):
        """The last such event, if it is not among the first 'since'."""
        return next((e for e in reversed(self.events[since:])
                     if e['event'] == name), None)

    async def wait_event(self, name, since=0):
        await self.until(lambda: self.event(name, since), f'the event {name}')
        return self.event(name, since)

    def event_s(self, name, since=0):
        """QEMU's time stamp of the last such event, or None."""
        event = self.event(name, since)
        if event is None:
            return None
        return _time_us(event) / 1e6

    def times_us(self, since=0):
        """event_name -> QEMU's time stamp of the first such event."""
        times_us = {}
        for each in self.events[since:]:
            times_us.setdefault(
                event_name(each['event'], each.get('data', {})),
                _time_us(each))
        return times_us

    @property
    def migration_statuses(self):
        """Every status of every migration, in the order of the events."""
        return [e['data']['status'] for e in self.events
                if e['event'] == 'MIGRATION']

    async def migration_status(self, number):
        """Wait for the status that has so many before it."""
        await self.until(lambda: len(self.migration_statuses) > number,
                         'the end of the migration')
        return self.migration_statuses[number]

    async def configure_migration(self, capabilities, parameters):
        """Switch on these capabilities, and off all others.

        The capability ``events`` is always on.

        :raises: ValueError for a capability that this QEMU does not have
        """
        wanted = {'events', *capabilities}
        # a source may still have what it needed as a destination
        present = {c['capability']: c['state'] for c in
                   await self.command('query-migrate-capabilities')}
        unknown = wanted - present.keys()
        if unknown:
            raise ValueError(f'{self.name} has no migration capability '
                             f'{", ".join(sorted(unknown))}')
        await self.command('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': name in wanted}
            for name, state in present.items() if state != (name in wanted)])
        await self.qmp.execute('migrate-set-parameters', dict(parameters))
