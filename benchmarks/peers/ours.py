"""Our side of the comparison with peers, as a program like theirs: exactly-once, a checkpoint each second.

    python -m benchmarks.peers.ours '{"workload": "windowed", "lines": FILE, "folder": FOLDER, "form": "log", ...}'

Form ``log`` reads the records from our own log, where they are already, as a peer's file is; form ``files`` reads the
very same file of JSON lines as the peers. Counts of windows go into a view, all else into a topic, durable when the
run ends. What is then copied into a file for the comparison is neither in the time nor in the memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa
from benchmarks.jobs import fresh_folder, values_of
from benchmarks.measuring import begin, run_loop, stop
from benchmarks.windowed import Slim
from benchmarks.words import count

from .programs.entry import SCORE_MIN, SIZE_MS, WAIT_MS, Task, main


class Quiet(msgspec.Struct, gc=False):
    """A submission without its comment, which is not decoded."""

    submission_id: int
    quiz_id: str
    user_id: str
    score: float
    submitted_at: int


def arriving(task: Task, pipeline: sa.Pipeline, topic: str, kind: Any) -> sa.Stream[Any]:
    """Return the stream of decoded records."""
    if task.form == "files":
        return pipeline.json_lines(task.lines, kind)
    return pipeline.topic(topic, kind)


def windowed(task: Task) -> dict[str, float]:
    """Count each quiz's submissions in each window; with a wait that lets every straggler count."""
    pipeline = sa.Pipeline("windowed")
    submissions = arriving(task, pipeline, "submissions", Slim).event_time("submitted_at", disorder=WAIT_MS)
    submissions.key_by("quiz_id").window(sa.Tumbling(SIZE_MS)).count().to_view("counts")
    return run_loop(run(task, pipeline))


def stateless(task: Task) -> dict[str, float]:
    """Filter and drop the comment."""
    pipeline = sa.Pipeline("stateless")
    arriving(task, pipeline, "submissions", Quiet).filter(lambda s: s.score >= SCORE_MIN).to_topic("rows")
    return run_loop(run(task, pipeline))


def words(task: Task) -> dict[str, float]:
    """A result for every word."""
    pipeline = sa.Pipeline("words")
    split = arriving(task, pipeline, "text", str).flat_map(str.split)
    split.key_by(lambda word: word).map_with_state(count).to_topic("rows")
    return run_loop(run(task, pipeline))


async def run(task: Task, pipeline: sa.Pipeline) -> dict[str, float]:
    """Run to the end; what follows is not measured."""
    settings = sa.Settings(bound=sa.Bound.FINISH, checkpoint_every_ms=1_000)
    async with data_folder(task) as folder:
        started = begin()
        async with sa.run(pipeline, folder, settings=settings) as job:
            await job.wait()
            measured = stop(started)
            encode = msgspec.json.encode
            if task.workload == "windowed":
                rows = [encode([*key, n]) for key, n in job.views["counts"].items()]
            else:
                rows = await values_of(job.log, "rows")
    (task.out / "rows.jsonl").write_bytes(b"\n".join(rows))
    return {"seconds": measured.seconds, "cpu": measured.cpu, "peak_mb": measured.peak_mb}


@asynccontextmanager
async def data_folder(task: Task) -> AsyncIterator[Path]:
    """Lend a data folder for the job, beside the cached log where that is read."""
    if task.form == "files":
        with tempfile.TemporaryDirectory(dir=task.folder) as folder:
            yield Path(folder)
    else:
        with fresh_folder(task.data) as folder:
            yield folder


if __name__ == "__main__":
    main({"windowed": windowed, "stateless": stateless, "words": words})
