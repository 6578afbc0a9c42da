"""What a savepoint costs: how long it takes, how long the stream stands still, how much the job's file grows meanwhile.

    python -m benchmarks savepoints

A job holds a running count for each of 1,000,000 keys, in state and in a view. A savepoint is taken while the stream
goes on flowing at full speed (records of one key) and a checkpoint every 200 ms replaces 1,000 random rows, all in one
process; then of the same state without a job, as ``streamactors savepoint create`` does it; then a
store is made of it. The gap is the longest time between two records of the stream in its operator. While a savepoint
is read LMDB reuses no page: the growth is what that costs the job's file.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import streamactors as sa
from streamactors.core.connectors import Replay
from streamactors.durable.files import RealDisk
from streamactors.durable.savepoint_files import write_savepoint
from streamactors.durable.sharing import reading
from streamactors.durable.store import Store
from streamactors.job.folders import version_folder
from streamactors.job.savepoints import Sinks, Start, start_from

from .epochs import Heart, Pulses
from .measuring import Measurement, Options, Side, measure, run_loop

CHANGED = 1_000


@dataclass(eq=False)
class Steady(Pulses):
    """The same, for a job that keeps what it has read: nobody goes back to it here."""

    replay: Replay = Replay.BY_OFFSET


class Live(NamedTuple):
    """A savepoint beside the stream."""

    seconds: float
    gap_ms: float
    """The stream's longest."""

    gap_without_ms: float
    """In three seconds before, with the same checkpoints."""

    growth: int
    """Of the job's file, bytes."""

    size: int
    """Of the savepoint, bytes."""


def savepoints(keys: int, rounds: int) -> Measurement:
    """Measure all of it for a number of keys."""
    return run_loop(_savepoints(keys, rounds))


async def _savepoints(keys: int, rounds: int) -> Measurement:
    pulses, heart = Steady(), Heart()
    pipeline = sa.Pipeline("savepoints")
    pipeline.source(pulses).map(heart.beat).key_by(lambda key: key).count().to_view("counts")
    live = []
    with tempfile.TemporaryDirectory() as folder:
        data, target = Path(folder) / "data", Path(folder) / "a.savepoint"
        store_file = version_folder(data, "savepoints", "v1") / "data.mdb"
        async with sa.run(pipeline, data, checkpoint_every="200ms") as job:
            pulses.asked = list(range(keys))
            while pulses.asked or await job.checkpoint() == {}:  # noqa: ASYNC110 - it is not measured
                await asyncio.sleep(0.01)
            for _ in range(rounds):
                live.append(await _beside_the_stream(job, pulses, heart, keys, target, store_file))
                target.unlink()
            await job.stop()
        figures = {"live": live, **_at_rest(data, Path(folder), target)}
    return Measurement(0.0, figures=figures)


async def _beside_the_stream(job: Any, pulses: Pulses, heart: Heart, keys: int, target: Path, store_file: Path) -> Live:
    changing = asyncio.create_task(_change(pulses, keys))
    await job.checkpoint()
    await asyncio.sleep(1.0)
    without, _ = await _gap(heart, asyncio.sleep(3.0))
    before = size_of(store_file)
    gap, seconds = await _gap(heart, job.savepoint(target))
    changing.cancel()
    return Live(seconds, gap, without, size_of(store_file) - before, size_of(target))


async def _gap(heart: Heart, meanwhile: Awaitable[Any]) -> tuple[float, float]:
    """Return the longest gap of the stream in ms while something is awaited, and the seconds of that."""
    heart.longest, heart.last = 0.0, time.perf_counter()
    started = time.perf_counter()
    await meanwhile
    return heart.longest * 1e3, time.perf_counter() - started


def size_of(path: Path) -> int:
    """Return a file's bytes."""
    return path.stat().st_size


async def _change(pulses: Pulses, keys: int) -> None:
    rng = random.Random(7)
    while True:
        pulses.asked += rng.sample(range(keys), min(keys, CHANGED))
        await asyncio.sleep(0.2)


def _at_rest(data: Path, folder: Path, target: Path) -> dict[str, float]:
    """Return the seconds of a savepoint of a job that does not run, and of a start from it."""
    source = version_folder(data, "savepoints", "v1")
    started = time.perf_counter()
    write_savepoint(RealDisk(), reading(source), target, now_ms=0)
    created = time.perf_counter()
    made = folder / "made"
    made.mkdir()
    start_from(Start(target, Sinks.CONTINUE, made, "savepoints", "v1", "0" * 32), RealDisk(), None)
    ended = time.perf_counter()
    with Store.open(made, read_only=True) as store, store.snapshot() as snapshot:
        assert snapshot.count("view:counts") > 0, "nothing was made of the savepoint"
    return {"create": created - started, "restore": ended - created}


def run(options: Options) -> None:
    """Print the table."""
    keys, rounds = (1_000, 1) if options.quick else (1_000_000, 3)
    print(f"\na savepoint of {keys:,} keys (each a row of state and a row of a view)")
    side = Side(f"{keys:,} keys", "benchmarks.savepoints:savepoints", {"keys": keys, "rounds": rounds})
    measured = measure(side, options)
    figures = measured.figures or {}
    for live in itertools.starmap(Live, figures["live"]):
        print(
            f"  beside the stream  {live.seconds:>6.2f} s   longest gap {live.gap_ms:>5.1f} ms, without it "
            f"{live.gap_without_ms:>5.1f} ms   the file grew by {live.growth / 1e6:>6.1f} MB   savepoint "
            f"{live.size / 1e6:>6.1f} MB"
        )
    print(
        f"  job at rest        {figures['create']:>6.2f} s   a start from it {figures['restore']:>6.2f} s", flush=True
    )
    print(f"  peak {measured.peak_mb:.0f} MB")
