"""Why does one key among 2,000,000 events have its value: ``streamactors explain``, from process start to the answer.

    python -m benchmarks explain

The job that is explained has counted the class day by quiz: running, and in windows. It does not run meanwhile. The
interpreter's start and all imports are in the figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec

import streamactors as sa

from .inputs import DAY_START, submissions
from .measuring import ROOT, Options

WINDOW_MS = 600_000
JOB = "explained"


class Submission(msgspec.Struct):
    """What is counted of a submission."""

    quiz_id: str
    score: float
    submitted_at: int


pipeline = sa.Pipeline(JOB)
by_quiz = pipeline.topic("submissions", Submission).event_time("submitted_at", disorder="1min").key_by("quiz_id")
by_quiz.aggregate(count=sa.count(), mean_score=sa.mean("score")).to_view("totals")
by_quiz.window(sa.Tumbling(WINDOW_MS)).allowed_lateness("10min").count().to_view("windows")


async def _count(data: Path) -> None:
    async with sa.run(pipeline, data, checkpoint_every="1s", settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()


def run(options: Options) -> None:
    """Ask for a running result, and for one of a window, several times each."""
    made = submissions(options.cache, 10_000 if options.quick else 2_000_000)
    asyncio.run(_count(made.data))  # goes on from its checkpoint: at once where it was run before
    with sa.open_views(made.data, JOB) as views:
        rows = list(views["windows"].items())
    (quiz, start), _ = max(rows, key=lambda row: row[1])
    print(f"\nexplain of one key among {made.count:,} events: process start to the answer", flush=True)
    for view, key in (("totals", quiz), ("windows", [quiz, start])):
        assert start >= DAY_START - WINDOW_MS, "the class day begins later"
        seconds = [_ask(made.data, view, key) for _ in range(options.rounds)]
        rounds = " ".join(f"{wall:.2f}" for wall, _, _ in seconds)
        wall, cpu = (statistics.median(column) for column in list(zip(*seconds, strict=True))[:2])
        print(
            f"  {view:<8} {wall:>7.3f} s, {cpu:.3f} s of processor   {seconds[0][2]:,} records   {rounds}", flush=True
        )


def _ask(data: Path, view: str, key: object) -> tuple[float, float, int]:
    """Return seconds, seconds of processor, and how many records were listed."""
    command = [
        sys.executable,
        "-m",
        "streamactors",
        "explain",
        "--data",
        str(data),
        JOB,
        view,
        json.dumps(key),
        "--json",
    ]
    began, before = time.monotonic(), os.times()
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    elapsed, after = time.monotonic() - began, os.times()
    summary = json.loads(answer.stdout.splitlines()[-1])
    assert summary["agrees"], summary
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return elapsed, cpu, int(summary["records"])
