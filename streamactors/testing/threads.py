"""Lanes without threads: each piece of work takes a virtual time drawn from a seed, and is done in one go at its end.

The contract of the Threads port is kept: work of one lane is done one at a time and in order; a caller that is
cancelled does not take back what it handed over. Between lanes any order may come up.

``on_work(label)`` is called on both sides of each piece of work, and may raise: the process dies before the work was
done, or after it and before anybody heard of it. As a commit to LMDB is one piece of work, both sides of each commit
are such points.

What this does not show: two lanes in the middle of their work at once, because each piece is whole. Real processes and
threads are tested where their work meets (tests/durable).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

_Work = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]]


class SimThreads:
    """The Threads port inside a loop of virtual time."""

    def __init__(self, random: Random, *, slowest: float = 0.02) -> None:
        self._random = random
        self._slowest = slowest  # seconds
        self._lanes: dict[str, deque[_Work]] = {}
        self.on_work: Callable[[str], None] = lambda label: None
        self.on_result: Callable[[object], None] = lambda result: None
        """Told what each piece of work returned."""

    async def run(self, lane: str, work: Callable[..., T], *args: object) -> T:
        """Do ``work(*args)`` when it is its turn in *lane*; return what it returns."""
        self.on_work("hand over")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._lanes.setdefault(lane, deque())
        waiting.append((done, work, args))
        if len(waiting) == 1:
            self._begin(waiting)
        return await done

    async def close(self) -> None:
        """Return when all lanes have finished their work."""
        for lane in list(self._lanes):
            await self.run(lane, int)

    def _begin(self, waiting: deque[_Work]) -> None:
        # Most work is quick and some is slow: the square of an even draw.
        seconds = self._slowest * self._random.random() ** 2
        asyncio.get_running_loop().call_later(seconds, self._work, waiting)

    def _work(self, waiting: deque[_Work]) -> None:
        done, work, args = waiting[0]
        label = getattr(work, "__qualname__", repr(work)).replace(".<locals>", "")
        self.on_work(f"before {label}")
        result, failure = None, None
        try:
            result = work(*args)
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the work
            failure = error
        if failure is None:
            self.on_result(result)
        self.on_work(f"after {label}")
        waiting.popleft()
        if not done.done():  # else its caller was cancelled
            if failure is None:
                done.set_result(result)
            else:
                done.set_exception(failure)
        if waiting:
            self._begin(waiting)
