"""From the due time of an event to its being visible in a view: open loop.

    python -m benchmarks latency

5,000 events/s are due at fixed times, whatever the system does: an append that comes late counts from when it was due.
Each append holds the events that are due (about 5, each millisecond). The view holds the greatest event number, and is
looked at each millisecond: an event is visible when the view shows its number or a greater one.

embedded     writer, job and viewer in one process and one loop. Exactly-once with a checkpoint every 50 ms; and
             at-least-once, which shows an event at once, with one every 200 ms, because nothing waits for it
separate     exactly-once, the writer in a process of its own: the job learns of appends by looking at the log's mapped
             end
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import streamactors as sa

from .measuring import ROOT, Measurement, Options, Side, measure, run_loop

RATE = 5_000
SECONDS = 15.0
WARM_SECONDS = 2.0
LEAD_SECONDS = 1.5
"""Until the first event is due: the other process has started by then."""


def pipeline() -> sa.Pipeline:
    """The greatest number of all."""
    latest = sa.Pipeline("latest")
    latest.topic("events", int).key_by(lambda number: "last").reduce(max).to_view("last")
    return latest


async def write(log: sa.Log, began: float, seconds: float) -> None:
    """Append each event when it is due."""
    topic = await log.create_topic("events")
    written, count, pending = 0, int(seconds * RATE), set[asyncio.Task[object]]()
    while written < count:
        due = min(count, int((time.monotonic() - began) * RATE))
        if due > written:
            task = asyncio.create_task(topic.append_many([b"%d" % number for number in range(written, due)]))
            pending.add(task)
            task.add_done_callback(pending.discard)
            written = due
        await asyncio.sleep(0.001)
    await asyncio.gather(*pending)


async def watch(job: sa.Job, began: float, seconds: float) -> list[float]:
    """Return each event's time from due to visible."""
    view, delays, shown, count = job.views["last"], [], -1, int(seconds * RATE)
    while shown < count - 1:
        last = view.get("last", -1)
        now = time.monotonic()
        delays += [now - began - number / RATE for number in range(shown + 1, last + 1)]
        shown = last
        await asyncio.sleep(0.001)
    return delays


def embedded(seconds: float, guarantee: str, every: str) -> Measurement:
    """Writer, job and viewer in one loop."""
    return run_loop(_embedded(seconds, guarantee, every))


async def _embedded(seconds: float, guarantee: str, every: str) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        async with sa.Log(Path(folder)) as log:
            await log.create_topic("events")
            async with sa.run(pipeline(), folder, checkpoint_every=every, guarantee=guarantee, log=log) as job:
                began = time.monotonic() + 0.2
                writing = asyncio.create_task(write(log, began, seconds))
                delays = await watch(job, began, seconds)
                await writing
    return _measured(delays)


def separate(seconds: float) -> Measurement:
    """The writer is another process."""
    return run_loop(_separate(seconds))


async def _separate(seconds: float) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        async with sa.Log(Path(folder)) as log:
            await log.create_topic("events")
        began = time.monotonic() + LEAD_SECONDS
        arguments = json.dumps({"folder": folder, "began": began, "seconds": seconds})
        command = [sys.executable, "-m", "benchmarks.measuring", "benchmarks.latency:writer", arguments, "-1"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:  # noqa: ASYNC220 - before it begins
            async with sa.run(pipeline(), folder, checkpoint_every="50ms") as job:
                delays = await watch(job, began, seconds)
            process.wait()
    return _measured(delays)


def writer(folder: str, began: float, seconds: float) -> Measurement:
    """Be the process that writes."""
    run_loop(_writer(Path(folder), began, seconds))
    return Measurement(seconds)


async def _writer(folder: Path, began: float, seconds: float) -> None:
    async with sa.Log(folder) as log:
        await write(log, began, seconds)


def _measured(delays: list[float]) -> Measurement:
    warm = min(len(delays) // 4, int(WARM_SECONDS * RATE))
    found = sorted(delays[warm:])
    share = {"p50": found[len(found) // 2], "p99": found[len(found) * 99 // 100], "max": found[-1]}
    return Measurement(share["p99"], answer=str(len(delays)), figures=share)


def run(options: Options) -> None:
    """Print both."""
    seconds = 0.5 if options.quick else SECONDS
    print(f"\ndue to visible, {RATE:,} events/s, open loop, {seconds:.0f} s")
    print(f"  {'':<34} {'p50':>8} {'p99':>11} {'max':>11} {'peak':>8}")
    sides = [
        _embedded_side(seconds, "exactly-once", "50ms"),
        _embedded_side(seconds, "at-least-once", "200ms"),
        Side("separate, exactly-once, 50ms", "benchmarks.latency:separate", {"seconds": seconds}),
    ]
    for side in sides:
        measured = measure(side, options)
        p50, p99, longest = ((measured.figures or {})[key] * 1e3 for key in ("p50", "p99", "max"))
        print(
            f"  {side.name:<34} {p50:>5.1f} ms {p99:>8.1f} ms {longest:>8.1f} ms {measured.peak_mb:>5.0f} MB",
            flush=True,
        )


def _embedded_side(seconds: float, guarantee: str, every: str) -> Side:
    arguments = {"seconds": seconds, "guarantee": guarantee, "every": every}
    return Side(f"embedded, {guarantee}, {every}", "benchmarks.latency:embedded", arguments)
