"""What an epoch costs: how long the stream stands still, how long it takes, and how many bytes it writes.

    python -m benchmarks epochs

A job holds a running count for each of 10,000, 100,000 or 1,000,000 keys, in state and in a view. Then 0.1, 1, 10 or
100 % of the keys change and a checkpoint is taken while the stream goes on flowing at full speed (records of one key).
The gap is the longest time between two records of that stream in its operator, from the checkpoint's request to its
answer, other threads included; without a checkpoint it is the time between two batches.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import streamactors as sa
from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, World

from .measuring import Measurement, Options, Side, measure, run_loop

PULSE = -1
PULSES = [PULSE] * 256
SHARES = (0.001, 0.01, 0.1, 1.0)


@dataclass(eq=False)
class Pulses:
    """A source that never ends: what was asked for, else pulses. Plays its part in this process only."""

    id: str = "pulses"
    type: Any = int
    replay: Replay = Replay.BY_OFFSET
    asked: list[int] = field(default_factory=list)
    taken: int = 0

    async def ends(self, world: World) -> list[int]:
        return [0]

    async def reader(self, world: World, partition: int, start: int) -> Pulses:
        return self

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        values = self.asked[:records_max] or PULSES
        del self.asked[:records_max]
        first, self.taken = self.taken, self.taken + len(values)
        return Batch(list(values), offsets=range(first, self.taken)), self.taken

    def end(self) -> int:
        return self.taken

    async def wait(self) -> None:
        raise AssertionError("there is always something")

    async def close(self) -> None:
        """Nothing is held."""


class Heart:
    """The longest time between two pulses."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.longest = 0.0

    def beat(self, value: int) -> int:
        """Note a record."""
        if value == PULSE:
            now = time.perf_counter()
            self.longest = max(self.longest, now - self.last)
            self.last = now
        return value


def changes(keys: int, rounds: int) -> Measurement:
    """Measure all shares for a number of keys."""
    return run_loop(_changes(keys, rounds))


async def _changes(keys: int, rounds: int) -> Measurement:
    pulses, heart, rng = Pulses(), Heart(), random.Random(7)
    pipeline = sa.Pipeline("epochs")
    pipeline.source(pulses).map(heart.beat).key_by(lambda key: key).count().to_view("counts")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with sa.run(pipeline, folder, checkpoint_every="1h") as job:
            pulses.asked = list(range(keys))
            await _handled(pulses)
            await job.checkpoint()
            for share in SHARES:
                found = []
                for _ in range(rounds):
                    pulses.asked = rng.sample(range(keys), max(1, int(keys * share)))
                    await _handled(pulses)
                    heart.longest, heart.last = 0.0, time.perf_counter()
                    await job.checkpoint()
                    status = job.status().regions[0].checkpoint
                    found.append((heart.longest * 1e3, status.ms, status.bytes))
                found.sort()
                rows.append((share, *found[len(found) // 2]))
            await job.stop()
    return Measurement(0.0, figures={"rows": rows})


async def _handled(pulses: Pulses) -> None:
    """Return when everything that was asked for has passed the operator."""
    while pulses.asked:  # noqa: ASYNC110 - the source has no event to wait for, and this is not measured
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


def run(options: Options) -> None:
    """Print the table."""
    print("\nepochs beside a stream at full speed (each changed key is a row of state and a row of a view)")
    print(f"  {'keys':>10} {'changed':>8} {'longest gap':>12} {'epoch':>10} {'bytes':>12} {'peak':>8}")
    for keys in (1_000,) if options.quick else (10_000, 100_000, 1_000_000):
        side = Side(f"{keys:,} keys", "benchmarks.epochs:changes", {"keys": keys, "rounds": 1 if options.quick else 3})
        measured = measure(side, options)
        for share, gap, ms, size in (measured.figures or {})["rows"]:
            print(
                f"  {keys:>10,} {share:>8.1%} {gap:>9.1f} ms {ms:>7.0f} ms {size:>12,} {measured.peak_mb:>5.0f} MB",
                flush=True,
            )
