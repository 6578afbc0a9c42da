"""What the workloads do with jobs: a folder of their own beside a cached log, and reading a topic back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamactors import Bound, Log, Pipeline, Settings, run

from .measuring import Measurement, begin, digest, stop


@contextmanager
def fresh_folder(data: Path) -> Iterator[Path]:
    """Lend a data folder without jobs that has the topics of *data*; what is written there goes with it."""
    with tempfile.TemporaryDirectory(dir=data.parent) as name:
        folder = Path(name)
        (folder / "log").mkdir()
        for topic in (data / "log").iterdir():
            (folder / "log" / topic.name).symlink_to(topic)
        yield folder


async def into_topic(pipeline: Pipeline, data: Path, topic: str) -> Measurement:
    """Run *pipeline* over the log to its end; what is in *topic* then is the answer."""
    settings = Settings(bound=Bound.UNTIL_END, checkpoint_every_ms=1_000)
    with fresh_folder(data) as folder:
        started = begin()
        async with run(pipeline, folder, settings=settings) as job:
            await job.wait()
            measured = stop(started)
            measured.answer = digest(await values_of(job.log, topic))
    return measured


async def values_of(log: Log, name: str) -> list[bytes]:
    """Return all values of a topic's first partition; empty when there is no such topic."""
    topic = await log.topic(name)
    if topic is None:
        return []
    reader, values = topic.partition(0).reader(), []
    while chunks := await reader.read():
        for chunk in chunks:
            values += chunk.values()
    await reader.close()
    return values
