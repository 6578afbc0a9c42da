"""From process start to the first correct result for a key that existed, with 1,000,000 keys of state.

    python -m benchmarks start

A job has counted each of the keys once; one more record of one of them is in the log. The clock starts before the new
process does, so the interpreter and all imports are in the figure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from pathlib import Path

import streamactors as sa
from streamactors.durable.frames import Records

from .measuring import Measurement, Options, Side, measure, run_loop

KEYS = 1_000_000
FRAME = 50_000


def pipeline() -> sa.Pipeline:
    """A running count for each key."""
    counting = sa.Pipeline("counting")
    counting.topic("keys", int).key_by(lambda key: key).count().to_view("counts")
    return counting


async def prepare(folder: Path, keys: int) -> None:
    """Count each key once."""
    async with sa.Log(folder) as log:
        partition = (await log.create_topic("keys")).partition(0)
        for first in range(0, keys, FRAME):
            lines = b"".join([b"%d\n" % key for key in range(first, min(first + FRAME, keys))])
            await partition.append(Records.from_lines(lines, lines.count(b"\n")))
        settings = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1_000)
        async with sa.run(pipeline(), folder, settings=settings, log=log) as job:
            await job.wait()
            assert len(job.views["counts"]) == keys


async def add(folder: Path, key: int) -> None:
    """Append one more record of *key*."""
    async with sa.Log(folder) as log:
        topic = await log.topic("keys")
        assert topic is not None
        await topic.append(b"%d" % key)


def first_result(folder: str, key: int, expected: int, began: float) -> Measurement:
    """Start the job; return when the view is right. *began* is on the machine's monotonic clock."""
    return run_loop(_first_result(Path(folder), key, expected, began))


async def _first_result(folder: Path, key: int, expected: int, began: float) -> Measurement:
    async with sa.run(pipeline(), folder, checkpoint_every="20ms") as job:
        view = job.views["counts"]
        while view.get(key) != expected:  # noqa: ASYNC110 - as a reader of the view would
            await asyncio.sleep(0.001)
        return Measurement(time.monotonic() - began, answer="right")


def run(options: Options) -> None:
    """Start several times."""
    keys = 1_000 if options.quick else KEYS
    folder = options.cache / f"start-{keys}-{os.getpid()}"
    key, seconds, peak = keys // 3, [], 0.0
    try:
        asyncio.run(prepare(folder, keys))
        for number in range(options.rounds):
            asyncio.run(add(folder, key))
            arguments = {"folder": str(folder), "key": key, "expected": number + 2, "began": time.monotonic()}
            measured = measure(Side("start", "benchmarks.start:first_result", arguments), options)
            seconds.append(measured.seconds)
            peak = max(peak, measured.peak_mb)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rounds = " ".join(f"{one:.2f}" for one in seconds)
    print(f"\nstart with {keys:,} keys of state: process start to the first right result for a key that existed")
    print(f"  {statistics.median(seconds):>8.3f} s {peak:>5.0f} MB   {rounds}", flush=True)
