"""What a guarantee costs: the windowed quiz counts under each of the three, in turn, in one run.

    python -m benchmarks guarantees

Checkpoints, or the storing of views, each second; late submissions into a topic. Without a crash all three give the
same counts, and the same late records in the same order. The first side is at-most-once: what the others pay for not
losing and not repeating is their "ours is".
"""

from __future__ import annotations

from pathlib import Path

import streamactors as sa

from .inputs import SUBMISSIONS, submissions
from .jobs import fresh_folder, values_of
from .measuring import Measurement, Options, Side, begin, compare, digest, run_loop, stop
from .windowed import pipeline


def counts(data: str, guarantee: str) -> Measurement:
    """Run the windowed counts over the log to its end."""
    return run_loop(_counts(Path(data), guarantee))


async def _counts(data: Path, guarantee: str) -> Measurement:
    settings = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1_000)
    with fresh_folder(data) as folder:
        started = begin()
        async with sa.run(pipeline(), folder, guarantee=guarantee, settings=settings) as job:
            await job.wait()
            measured = stop(started)
            found = sorted(job.views["quiz_counts"].items())
            late = await values_of(job.log, "late")
    measured.answer = digest([*found, *late])
    return measured


def run(options: Options) -> None:
    """Compare the three."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    names = [guarantee.value for guarantee in reversed(sa.Guarantee)]
    sides = [Side(name, "benchmarks.guarantees:counts", {"data": str(made.data), "guarantee": name}) for name in names]
    compare("windowed quiz counts by guarantee", sides, options, records=made.count)
