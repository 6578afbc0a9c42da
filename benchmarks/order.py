"""What the sequencer and the journal cost: the same plan with them, and with batches put straight into the stage.

    python -m benchmarks order

``Direct`` stands in for the sequencer: it hands on what the reader has, without choosing, judging time, or noting
anything; watermarks come from a list that was made before. The counts are equal.

Latency is that of an idle system at 5,000 events/s: from the durable append to the stage's operator.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import msgspec

import streamactors as sa
from streamactors.core.signals import Watermark
from streamactors.core.times import MAX_TIME
from streamactors.flow.sequencer import Sequencer
from streamactors.job import wiring

from .inputs import DISORDER_MS, SUBMISSIONS, submissions
from .jobs import fresh_folder
from .measuring import Measurement, Options, Side, begin, compare, digest, in_turn, run_loop, stop
from .windowed import LATENESS_MS, SIZE_MS, STEP_MS, Submission

Cuts = list[tuple[int, int]]
"""(offset behind which it stands, watermark)"""

RATE, GROUP, SECONDS = 5_000, 10, 4.0


class Direct(Sequencer):
    """Hand on what the reader has."""

    cuts: Cuts = []  # noqa: RUF012 - set once by the process that measures

    async def step(self) -> bool:
        if self._barrier is not None:
            self._send_barrier(*self._barrier)
            return not self.stopping
        if self.exhausted or not all(channel.has_room for channel in self._channels):
            return False
        ((key, reader),) = self._readers.items()
        head = reader.head()
        if head is None or head.batch is None:
            if head is None and reader.exhausted:
                self._exhaust((Watermark(MAX_TIME),))
            return False
        batch, end, _ = reader.take(len(head.batch))
        first, self.sequencing.partitions[key].offset = end - len(batch), end
        while self.cuts and self.cuts[0][0] < end:
            offset, watermark = self.cuts.pop(0)
            self._send(batch.slice(0, offset + 1 - first), self._channels)
            self._send(Watermark(watermark))
            batch, first = batch.slice(offset + 1 - first, len(batch)), offset + 1
        if batch.values:
            self._send(batch, self._channels)
        return True


def cuts_of(lines: Path) -> Cuts:
    """Return where the watermark passes a step."""
    decode, cuts, next_step = msgspec.json.Decoder(Submission).decode, Cuts(), 0
    with lines.open("rb") as file:
        for offset, line in enumerate(file):
            at = decode(line).submitted_at
            if at >= next_step:
                horizon = (at - DISORDER_MS) // STEP_MS * STEP_MS
                next_step = horizon + STEP_MS + DISORDER_MS
                cuts.append((offset, horizon - 1))
    return cuts


def ours(data: str) -> Measurement:
    """Count with the product's sequencer."""
    return run_loop(_counts(Path(data)))


def direct(data: str, cuts: Cuts) -> Measurement:
    """Count without it."""
    Direct.cuts = cuts
    with mock.patch.object(wiring, "Sequencer", Direct):
        return run_loop(_counts(Path(data)))


async def _counts(data: Path) -> Measurement:
    quiz = sa.Pipeline("quiz-counts")
    arriving = quiz.topic("submissions", Submission).event_time("submitted_at", disorder=DISORDER_MS)
    windows = arriving.key_by("quiz_id").window(sa.Tumbling(SIZE_MS)).allowed_lateness(LATENESS_MS)
    windows.count().to_view("quiz_counts")
    settings = sa.Settings(bound=sa.Bound.FINISH, checkpoint_every_ms=1_000)
    with fresh_folder(data) as folder:
        started = begin()
        async with sa.run(quiz, folder, settings=settings) as job:
            await job.wait()
            measured = stop(started)
            measured.answer = digest(job.views["quiz_counts"].items())
    return measured


# Latency. -------------------------------------------------------------------------------------------------------------


def ours_idle(seconds: float) -> Measurement:
    """Follow a slow stream with the product's sequencer."""
    return run_loop(_idle(seconds))


def direct_idle(seconds: float) -> Measurement:
    """Follow it without."""
    with mock.patch.object(wiring, "Sequencer", Direct):
        return run_loop(_idle(seconds))


async def _idle(seconds: float) -> Measurement:
    seen: list[float] = []
    durable: list[float] = []

    def note(number: int) -> int:
        seen.append(time.perf_counter())
        return number

    pipeline = sa.Pipeline("following")
    pipeline.topic("numbers", int).map(note).key_by(lambda number: number % 10).count().to_view("counts")
    with tempfile.TemporaryDirectory() as folder:
        async with sa.Log(Path(folder)) as log:
            topic = await log.create_topic("numbers")
            async with sa.run(pipeline, folder, log=log, checkpoint_every="1s"):
                began = time.perf_counter()
                for group in range(int(seconds * RATE / GROUP)):
                    await asyncio.sleep(max(0.0, began + group * GROUP / RATE - time.perf_counter()))
                    await topic.append_many([b"%d" % number for number in range(GROUP)])
                    durable += [time.perf_counter()] * GROUP
                while len(seen) < len(durable):  # noqa: ASYNC110 - after the measurement
                    await asyncio.sleep(0.001)
    delays = [at - since for at, since in zip(seen, durable, strict=True)]
    return Measurement(statistics.median(delays), answer=str(len(delays)), figures={"mean": statistics.mean(delays)})


def run(options: Options) -> None:
    """Compare throughput, then latency."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    sides = [
        Side("with sequencer and journal", "benchmarks.order:ours", {"data": str(made.data)}),
        Side("without", "benchmarks.order:direct", {"data": str(made.data), "cuts": cuts_of(made.lines)}),
    ]
    compare("cost of sequencer and journal", sides, options, records=made.count)
    seconds = 0.2 if options.quick else SECONDS
    slow = [
        Side("with", "benchmarks.order:ours_idle", {"seconds": seconds}),
        Side("without", "benchmarks.order:direct_idle", {"seconds": seconds}),
    ]
    print(f"\nlatency of sequencer and journal ({RATE:,} events/s; durable append to operator, median and mean)")
    for name, measured in in_turn(slow, options).items():
        median = statistics.median([one.seconds for one in measured])
        mean = statistics.median([(one.figures or {})["mean"] for one in measured])
        print(f"  {name:<34} {median * 1e3:>8.3f} ms {mean * 1e3:>8.3f} ms")
