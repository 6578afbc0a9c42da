"""Async calls: 10,000 calls of 1 ms, 100 at once, into a topic; against gather with a semaphore, and against workers.

    python -m benchmarks async_calls

A call is a sleep of 1 ms, so what is measured is what stands around it. Exactly-once on our side: the output is part of
a checkpoint each second, which waits for the calls before it. The plain scripts keep the results in a list. At 100 at
once, 1 ms each, no script can take less than 0.1 s.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import streamactors as sa

from .jobs import into_topic
from .measuring import Measurement, Options, Side, begin, compare, digest, run_loop, stop

CALLS, AT_ONCE, CALL_SECONDS = 10_000, 100, 0.001


async def ask(number: int) -> int:
    """Stand in for a service that answers after a millisecond."""
    await asyncio.sleep(CALL_SECONDS)
    return number * 2


def ours(data: str, calls: int) -> Measurement:
    """Call with map_async."""
    pipeline = sa.Pipeline("calling")
    pipeline.items(range(calls)).map_async(ask, capacity=AT_ONCE).to_topic("answers")
    return run_loop(into_topic(pipeline, Path(data), "answers"))


def gathered(calls: int) -> Measurement:
    """A task for each call, a semaphore around it."""
    return run_loop(_gathered(calls))


async def _gathered(calls: int) -> Measurement:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> int:
        async with limit, asyncio.timeout(30):
            return await ask(number)

    started = begin()
    answers = await asyncio.gather(*map(one, range(calls)))
    return _measured(started, answers)


def by_workers(calls: int) -> Measurement:
    """As many tasks as calls at once, each for one call after another."""
    return run_loop(_by_workers(calls))


async def _by_workers(calls: int) -> Measurement:
    answers, numbers = [0] * calls, iter(range(calls))

    async def work() -> None:
        for number in numbers:
            async with asyncio.timeout(30):
                answers[number] = await ask(number)

    started = begin()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return _measured(started, answers)


def _measured(started: tuple[float, float], answers: list[int]) -> Measurement:
    measured = stop(started)
    measured.answer = digest(b"%d" % answer for answer in answers)
    return measured


def run(options: Options) -> None:
    """Compare the three."""
    calls = 500 if options.quick else CALLS
    data = options.cache / "async_calls"
    (data / "log").mkdir(parents=True, exist_ok=True)
    sides = [
        Side("map_async, exactly-once", "benchmarks.async_calls:ours", {"data": str(data), "calls": calls}),
        Side("gather and a semaphore", "benchmarks.async_calls:gathered", {"calls": calls}),
        Side("workers", "benchmarks.async_calls:by_workers", {"calls": calls}),
    ]
    compare("async calls", sides, options, records=calls, unit="calls")
