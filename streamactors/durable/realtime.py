"""Real time and real threads behind their ports.

A lane is a thread and a queue of our own instead of a ThreadPoolExecutor: a hand-over there and back costs 45 µs
instead of 110 (measured), and a pipeline makes one for each read, each write and each checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from streamactors.core.ports import Ports

from .files import RealDisk

T = TypeVar("T")

_Work = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[object, ...]]


class RealClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return wall-clock time in ms since the epoch, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds*."""
        await asyncio.sleep(seconds)


class RealThreads:
    """One thread a lane, made when the lane is first used."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    async def run(self, lane: str, work: Callable[..., T], *args: object) -> T:
        """Run ``work(*args)`` in the thread of *lane* and return what it returns. What was handed over is done."""
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane(lane)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        found.queue.put((loop, done, work, args))
        return await done

    async def close(self) -> None:
        """Return when all lanes have finished their work and their threads are gone."""
        while self._lanes:
            name = next(iter(self._lanes))
            await self.run(name, int)  # behind all other work of the lane, so the join below waits for no disk
            lane = self._lanes.pop(name)
            lane.queue.put(None)
            lane.thread.join()


class _Lane:
    def __init__(self, name: str) -> None:
        self.queue: SimpleQueue[_Work | None] = SimpleQueue()
        # A daemon: a program that ends without closing ends as it would in a crash, which the disk work survives.
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            loop, done, work, args = item
            result, failure = None, None
            try:
                result = work(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the work
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done, result, failure)
            del item, loop, done, work, args, result, failure  # an idle lane keeps nothing alive


def _settle(done: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
    if done.done():  # its caller was cancelled
        return
    if failure is None:
        done.set_result(result)
    else:
        done.set_exception(failure)


def real_ports() -> Ports:
    """Return the ports of the real world. No thread exists before its lane is used."""
    return Ports(RealClock(), RealDisk(), RealThreads(), random.SystemRandom())
