"""Clocks that tests and simulations hold in their hands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from .idle import settle
from .loop import SimLoop

START_MS = 1_700_000_000_000
"""Wall-clock time at which these clocks begin, ms since the epoch."""


class ManualClock:
    """A clock that stands until a test moves it."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._start_ms = start_ms
        self._seconds = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()  # sleepers of one instant wake in the order in which they went to sleep

    @property
    def sleepers(self) -> int:
        """How many sleep now."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    def now_ms(self) -> int:
        """Return wall-clock time in ms since the epoch, UTC."""
        return self._start_ms + int(self._seconds * 1_000)

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was moved by *seconds*."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._seconds + seconds, next(self._numbers), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move the clock, instant by instant: who is due wakes, and all settle, before it goes on."""
        await settle()
        end = self._seconds + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heappop(self._sleepers)
            if not woken.done():
                self._seconds = max(self._seconds, due)
                woken.set_result(None)
                await settle()
        self._seconds = end


class SimClock:
    """The virtual time of a SimLoop. *check* is called around each sleep and may raise: a dead process has no time."""

    def __init__(self, loop: SimLoop, check: Callable[[], None] = lambda: None) -> None:
        self._loop = loop
        self._check = check

    def now_ms(self) -> int:
        """Return wall-clock time in ms since the epoch, UTC."""
        return START_MS + int(self._loop.now * 1_000)

    def monotonic(self) -> float:
        """Return virtual seconds."""
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds* of virtual time."""
        self._check()
        await asyncio.sleep(seconds)
        self._check()
