"""Write the golden files of this release: ``python -m tests.golden.make RELEASE``. Once; then they are only read.

RELEASE/data         a data folder: log, catalogue and state of a job that was stopped amid its input
RELEASE/a.savepoint  a savepoint of it
RELEASE/content.json what they hold, as the release that wrote them read it
"""

import asyncio
import shutil
import sys
from pathlib import Path

import msgspec

import streamactors as sa
from streamactors.durable.frames import Records

from .pipeline import pipeline, values
from .reading import content

HERE = Path(__file__).parent


async def make(folder: Path) -> None:
    """Run half of the input, drain, take a savepoint; note what is there."""
    data = folder / "data"
    async with sa.Log(data) as log:
        topic = await log.create_topic("submissions", 2)
        lines = values(0, 60)
        for number in range(2):
            await topic.partition(number).append(Records.of(lines[number:40:2]))
        await topic.append_many(lines[40:], keys=[str(n).encode() for n in range(len(lines) - 40)])
    settings = sa.Settings(sync=False)
    flow = pipeline()
    flow.file = None  # paths are those of a machine
    async with sa.run(flow, data, checkpoint_every="20ms", settings=settings) as job:
        await job.catch_up()
        await job.savepoint(folder / "a.savepoint")
    for left in [*data.rglob("durable_end*"), *data.rglob("*.lock"), *data.rglob("lock.mdb")]:
        left.unlink()
    copy = folder / "copy"
    shutil.copytree(data, copy)
    (folder / "content.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(await content(copy, folder)), indent=1)
    )
    shutil.rmtree(copy)


if __name__ == "__main__":
    made = HERE / sys.argv[1]
    made.mkdir()
    asyncio.run(make(made))
