"""Waiting at the durable end: woken by this process's own writers at once, by others' within a poll.

Another process's store into a cell makes no sound, so while somebody waits for a partition that another process may
write, its cell is looked at every POLL_SECONDS, more often while news comes: a load of eight bytes. One timer serves
all waiters of a log, so many idle partitions cost no more than one. Nobody waiting, or all of them behind our own
writers: no timer at all.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from streamactors.core.ports import Cell, Clock

POLL_SECONDS = 0.04
"""Seconds between two looks at other processes' cells. A reader there wakes within 50 ms, with 10 ms to spare for a
busy loop; and a timer of the event loop costs up to 260 µs a round (measured on a small virtual machine), so 50 looks a
second would be more than 1 % of a core."""

POLL_SECONDS_MIN = 0.005
"""The same while another process is appending: who has just brought something will soon bring more. Doubles with each
look that finds nothing, so a partition that falls silent is looked at as seldom as before after three of them."""


class Tails:
    """All waiters of one log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._polled: dict[asyncio.Future[None], tuple[Cell, int]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._pause = POLL_SECONDS

    async def wait_past(self, cell: Cell, value: int, *, poll: bool) -> None:
        """Return when *cell* shows more than *value*; may return earlier when the cell's partition is closed."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        end_watch = cell.watch(lambda: _wake(loop, woken))
        try:
            if cell.load() > value:  # stored before the watch began
                return
            if poll:
                self._polled[woken] = cell, value
                if self._poller is None or self._poller.done():
                    self._poller = asyncio.create_task(self._poll(), name="log tails")
            await woken
        finally:
            self._polled.pop(woken, None)
            end_watch()

    async def close(self) -> None:
        """Return when the timer has ended."""
        if self._poller is not None and not self._poller.done():
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def _poll(self) -> None:
        while self._polled:
            await self._clock.sleep(self._pause)
            self._pause = min(2 * self._pause, POLL_SECONDS)
            for woken, (cell, value) in list(self._polled.items()):
                if cell.load() > value:
                    del self._polled[woken]
                    _set(woken)
                    self._pause = POLL_SECONDS_MIN


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the waiter's loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_set, woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
