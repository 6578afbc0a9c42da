"""Real time and real threads behind their ports."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from streamactors.core.ports import Ports

from .files import RealDisk

T = TypeVar("T")


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
        self._lanes: dict[str, ThreadPoolExecutor] = {}

    async def run(self, lane: str, work: Callable[..., T], *args: object) -> T:
        """Run ``work(*args)`` in the thread of *lane* and return what it returns."""
        executor = self._lanes.get(lane)
        if executor is None:
            executor = self._lanes[lane] = ThreadPoolExecutor(1, thread_name_prefix=lane)
        return await asyncio.get_running_loop().run_in_executor(executor, partial(work, *args))

    async def close(self) -> None:
        """Return when all lanes have finished their work and their threads are gone."""
        while self._lanes:
            lane = next(iter(self._lanes))
            await self.run(lane, int)  # behind all other work of the lane: the join below waits for no disk
            self._lanes.pop(lane).shutdown(wait=True)


def real_ports() -> Ports:
    """Return the ports of the real world. No thread exists before its lane is used."""
    return Ports(RealClock(), RealDisk(), RealThreads(), random.SystemRandom())
