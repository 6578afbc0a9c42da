"""Pathway: JSON lines read in static mode, persistence of inputs and operators on, tumbling windows.

Static mode reads the file to its end; its documentation uses it for files that do not grow. Streaming mode never ends.
Word count is not here: Pathway emits a word's count at each of its commits, not a result for each word.
"""

import pathway as pw
from entry import SCORE_MIN, SIZE_MS, main


class Submission(pw.Schema):
    """What the count needs."""

    quiz_id: str
    submitted_at: int


class Quiet(pw.Schema):
    """A submission without its comment."""

    submission_id: int
    quiz_id: str
    user_id: str
    score: float
    submitted_at: int


def windowed(task):
    """Count each quiz's submissions in each window."""
    arriving = pw.io.jsonlines.read(task.lines, schema=Submission, mode="static")
    windows = arriving.windowby(
        arriving.submitted_at, window=pw.temporal.tumbling(duration=SIZE_MS), instance=arriving.quiz_id
    )
    finish(task, windows.reduce(quiz=pw.this["_pw_instance"], start=pw.this["_pw_window_start"], n=pw.reducers.count()))


def stateless(task):
    """Filter."""
    arriving = pw.io.jsonlines.read(task.lines, schema=Quiet, mode="static")
    finish(task, arriving.filter(arriving.score >= SCORE_MIN))


def finish(task, table):
    """Write *table* and run."""
    pw.io.jsonlines.write(table, task.out / "rows.jsonl")
    backend = pw.persistence.Backend.filesystem(task.folder / "persistence")
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(backend, snapshot_interval_ms=1_000),
    )


if __name__ == "__main__":
    main({"windowed": windowed, "stateless": stateless})
