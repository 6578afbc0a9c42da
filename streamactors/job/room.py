"""Waiting for room: what a region does on a full disk, or a full quota.

Everything that may meet one has written nothing when it says so (QuotaFull), and can be asked the same again: a commit
of the store, a stamped commit of a sink. So nothing is given up and no restart is used: the same thing is tried again,
after a pause that grows, until there is room. Meanwhile numbering is held, so the source stops; views stay readable;
``waiting`` says why.

    the job runs      it is tried again for as long as it takes
    the job drains    once more at once; then the reserve is given up, and once more; then the error goes up. What was
                      not stored comes again at the next start
    stop, restart     the error goes up at once: nothing may be tried behind the back of what comes next

A wait is between two tries, when neither the writer's thread nor a target has anything of ours. So to end one is safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamactors.core.connectors import Payload, SinkTarget, Stamp
from streamactors.core.errors import NO_ROOM, QuotaFull
from streamactors.core.ports import Clock

T = TypeVar("T")

PAUSE_SECONDS_FIRST = 0.1
"""Between the first two tries: somebody may have emptied the disk just now. Doubles."""

PAUSE_SECONDS_MAX = 5.0
"""Between two tries, at most: that long a job may stand although there is room. Each try writes what fits, and costs a
full disk's owner as much as that."""


class Room:
    """The room that one region needs. See the module's header."""

    def __init__(self, clock: Clock, give_up_reserve: Callable[[], Awaitable[bool]], name: str) -> None:
        self.waiting: str | None = None
        """Why the region waits for room; None: it does not."""

        self.on_wait: Callable[[], None] = lambda: None
        """Called when a wait begins."""

        self.on_change: Callable[[], None] = lambda: None
        """Called when ``waiting`` has changed: the region's state shows it."""

        self._clock = clock
        self._give_up_reserve = give_up_reserve
        self._log = logging.getLogger(f"streamactors.{name}")
        self._pause = PAUSE_SECONDS_FIRST
        self._ending = False
        self._closed = False
        self._hurry = asyncio.Event()

    def begin(self) -> None:
        """An attempt begins: it may wait."""
        self._closed = False
        self._hurry.clear()

    def end(self) -> None:
        """The job drains: use the reserve, and wait no more."""
        self._ending = True
        self._hurry.set()

    def close(self) -> None:
        """The attempt ends: whoever waits gives up."""
        self._closed = True
        self._hurry.set()

    async def until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what *attempt* returns, as soon as there is room for it."""
        while True:
            try:
                done = await attempt()
            except (QuotaFull, OSError) as error:
                if not is_full(error):
                    raise
                await self.wait(error)
            else:
                self._go_on()
                return done

    async def wait(self, error: Exception) -> None:
        """Return when what failed with *error* should be tried again; raise it when it should not."""
        self._raise_if_closed(error)
        if self._ending:
            if await self._give_up_reserve():
                return
            raise error
        if self.waiting is None:
            self._log.warning("waits for room and goes on by itself: %s", error)
        self._say(str(error))
        self.on_wait()
        pause, self._pause = self._pause, min(2 * self._pause, PAUSE_SECONDS_MAX)
        tasks = [asyncio.create_task(self._clock.sleep(pause)), asyncio.create_task(self._hurry.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        self._raise_if_closed(error)

    def _raise_if_closed(self, error: Exception) -> None:
        if self._closed:
            self._say(None)
            raise error

    def _go_on(self) -> None:
        if self.waiting is not None:
            self._log.info("there is room again, and it goes on")
        self._say(None)
        self._pause = PAUSE_SECONDS_FIRST

    def _say(self, waiting: str | None) -> None:
        changed, self.waiting = waiting != self.waiting, waiting
        if changed:
            self.on_change()


class PatientTarget:
    """A sink's target that waits for room. Its stamps make a repeated commit harmless, whoever the target is."""

    def __init__(self, target: SinkTarget, room: Room) -> None:
        self._target = target
        self._room = room

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        """See SinkTarget: opening a target may write to it."""
        return await self._room.until_done(lambda: self._target.last_stamp(partition, job, sink))

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        """See SinkTarget."""
        await self._room.until_done(lambda: self._target.commit(payload, stamp, expect))

    async def write(self, payload: Payload) -> None:
        """See SinkTarget."""
        await self._room.until_done(lambda: self._target.write(payload))

    async def close(self) -> None:
        """See SinkTarget."""
        await self._target.close()


def is_full(error: BaseException) -> bool:
    """Return whether *error* says that there is no room."""
    return isinstance(error, QuotaFull) or (isinstance(error, OSError) and error.errno in NO_ROOM)
