"""Windowed quiz counts: exactly-once, a checkpoint each second, late submissions into a topic; against plain scripts.

    python -m benchmarks windowed

10-minute windows, 10 minutes of allowed lateness, 60 s of disorder. All sides give the same counts and the same late
records in the same order. Plain and tuned plain have no fault tolerance: they read a file and print numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa

from .inputs import DISORDER_MS, SUBMISSIONS, submissions
from .jobs import fresh_folder, values_of
from .measuring import Measurement, Options, Side, begin, compare, digest, run_loop, stop

SIZE_MS = LATENESS_MS = STEP_MS = 600_000
TUNED_BYTES = 256 * 1024


class Submission(msgspec.Struct):
    """What the count needs of a submission."""

    quiz_id: str
    submitted_at: int


class Slim(msgspec.Struct, gc=False):
    """The same, out of the garbage collector's sight."""

    quiz_id: str
    submitted_at: int


Counts = dict[tuple[str, int], int]


def pipeline() -> sa.Pipeline:
    """The counting half of examples/quiz_counts.py."""
    quiz = sa.Pipeline("quiz-counts")
    arriving = quiz.topic("submissions", Slim).event_time("submitted_at", disorder=DISORDER_MS)
    windows = arriving.key_by("quiz_id").window(sa.Tumbling(SIZE_MS)).allowed_lateness(LATENESS_MS)
    counts = windows.early(every="1s").count()
    counts.to_view("quiz_counts")
    counts.late.original().to_topic("late")
    return quiz


def ours(data: str, batch_records: int = 0) -> Measurement:
    """Run the pipeline over the log to its end."""
    return run_loop(count_windows(Path(data), batch_records))


async def count_windows(
    data: Path, batch_records: int = 0, around: Callable[[sa.Job], AbstractContextManager[Any]] = nullcontext
) -> Measurement:
    """Run the pipeline over the log to its end, with something around the job."""
    settings = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1_000)
    if batch_records:
        settings = replace(settings, batch_records=batch_records)
    with fresh_folder(data) as folder:
        started = begin()
        async with sa.run(pipeline(), folder, settings=settings) as job:
            with around(job):
                await job.wait()
                measured = stop(started)
            counts = dict(job.views["quiz_counts"].items())
            late = await values_of(job.log, "late")
    measured.answer = _answer(counts, late)
    return measured


def plain(lines: str) -> Measurement:
    """Count line by line, with dicts."""
    started = begin()
    counts: Counts = {}
    late = []
    decode = msgspec.json.Decoder(Submission).decode
    horizon, next_step = -1, 0
    with Path(lines).open("rb") as file:
        for line in file:
            submission = decode(line)
            at = submission.submitted_at
            start = at - at % SIZE_MS
            if start + SIZE_MS + LATENESS_MS <= horizon:
                late.append(line[:-1])
                continue
            key = submission.quiz_id, start
            counts[key] = counts.get(key, 0) + 1
            if at >= next_step:  # event time has passed a step: so has the watermark
                horizon = (at - DISORDER_MS) // STEP_MS * STEP_MS
                next_step = horizon + STEP_MS + DISORDER_MS
    measured = stop(started)
    measured.answer = _answer(counts, late)
    return measured


def tuned(lines: str) -> Measurement:
    """Count by blocks of lines: columns, and a Counter for the newest window; stragglers one by one."""
    started = begin()
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    late: list[bytes] = []
    horizon, next_step, rest = -1, 0, b""
    decode = msgspec.json.Decoder(Slim).decode_lines
    times_of, quizzes_of = attrgetter("submitted_at"), attrgetter("quiz_id")
    with Path(lines).open("rb", buffering=0) as file:
        while block := file.read(TUNED_BYTES):
            end = block.rfind(b"\n") + 1
            block, rest = rest + block[:end], block[end:]
            values, split = decode(block), None
            all_times, all_quizzes = list(map(times_of, values)), list(map(quizzes_of, values))
            first = 0
            while first < len(all_times):
                behind, times, quizzes = len(all_times), all_times, all_quizzes
                if first:
                    times, quizzes = times[first:], quizzes[first:]
                if (greatest := max(times)) >= next_step:  # the piece ends behind the record that passes the step
                    behind = first + next(row for row, at in enumerate(times) if at >= next_step) + 1
                    times, quizzes = all_times[first:behind], all_quizzes[first:behind]
                    greatest = times[-1]
                newest = greatest // SIZE_MS * SIZE_MS
                count = counts[newest]
                count.update(quizzes)
                for row in [row for row, at in enumerate(times) if at < newest]:
                    quiz, start = quizzes[row], times[row] // SIZE_MS * SIZE_MS
                    count[quiz] -= 1
                    if start + SIZE_MS + LATENESS_MS <= horizon:
                        split = split or block.split(b"\n")
                        late.append(split[first + row])
                    else:
                        counts[start][quiz] += 1
                if greatest >= next_step:
                    horizon = (greatest - DISORDER_MS) // STEP_MS * STEP_MS
                    next_step = horizon + STEP_MS + DISORDER_MS
                first = behind
    found = {(quiz, start): n for start, count in counts.items() for quiz, n in count.items() if n}
    measured = stop(started)
    measured.answer = _answer(found, late)
    return measured


def _answer(counts: Counts, late: list[bytes]) -> str:
    return digest([*sorted(counts.items()), *late])


def run(options: Options) -> None:
    """Compare the three."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    sides = [
        Side("StreamActors, exactly-once", "benchmarks.windowed:ours", {"data": str(made.data)}),
        Side("plain", "benchmarks.windowed:plain", {"lines": str(made.lines)}),
        Side("tuned plain", "benchmarks.windowed:tuned", {"lines": str(made.lines)}),
    ]
    compare("windowed quiz counts", sides, options, records=made.count)


def batches(options: Options) -> None:
    """Compare sizes of batches."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    sides = [
        Side(f"{size} records", "benchmarks.windowed:ours", {"data": str(made.data), "batch_records": size})
        for size in (1_024, 256, 512, 2_048, 4_096)
    ]
    compare("windowed quiz counts by size of batches", sides, options, records=made.count)
