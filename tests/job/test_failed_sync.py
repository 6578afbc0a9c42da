"""A sync that fails, in a whole job: who appends sees one clear error, the region starts again, nothing is lost.

The run is simulated, and the n-th sync fails, for every n that there is.
"""

import errno
from random import Random

import pytest
from msgspec import json

from streamactors import Bound, Pipeline, RestartPolicy, Settings, run
from streamactors.core.errors import LogClosed, StorageError
from streamactors.durable.frames import Records
from streamactors.testing.world import Ended, World

LINES = [json.encode({"n": n}) for n in range(12)]


def copying():
    pipeline = Pipeline("copying")
    lines = pipeline.topic("lines", encoding="json")
    lines.map(lambda value: value["n"]).to_topic("copies", partitions=2)
    lines.key_by(lambda value: value["n"] % 2).count().to_view("counts")

    @pipeline.before_start
    async def prepare(log):
        await log.create_topic("lines")

    return pipeline


def settings(**more):
    policy = RestartPolicy(restarts_max=5)
    return Settings(**{"checkpoint_every_ms": 50, "restarts": policy, "sync": False, **more})


class FailingSync:
    """The *number*-th sync of a file whose kind contains *what* fails."""

    def __init__(self, what, number):
        self._what, self._left, self.failed = what, number, False

    def __call__(self, point):
        if point.startswith(("sync ", "sync_folder ")) and self._what in point:
            self._left -= 1
            if not self._left:
                self.failed = True
                raise OSError(errno.EIO, "the disk has failed")


async def append(topic, number, line, seen):
    """Append as a web handler does: when an answer is not known, the same append again."""
    while True:
        try:
            return await topic.partition(0).append(Records.of([line]), producer=("handler", number))
        except (LogClosed, StorageError) as error:
            seen.append(error)
            assert len(seen) == 1, seen


async def read_all(log, name):
    topic = await log.topic(name)
    return [
        json.decode(await topic.partition(number).read_at(offset))
        for number in range(topic.partitions)
        for offset in range(topic.partition(number).durable_end())
    ]


@pytest.mark.parametrize("what", ["lines", "copies"])
def test_whichever_sync_fails_nothing_is_lost_or_repeated(tmp_path, what, record_property):
    restarts = number = 0
    while True:
        number += 1
        failing = FailingSync(what, number)
        world = World(Random(number), tmp_path / f"{number}")

        async def life(process, failing=failing):
            seen = []
            async with run(copying(), process.data_dir, ports=process.ports, settings=settings()) as job:
                process.on_point = failing
                topic = await job.log.topic("lines")
                for count, line in enumerate(LINES):
                    await append(topic, count, line, seen)
                    await process.ports.clock.sleep(0.04)
                await job.catch_up()
                assert dict(job.views["counts"].items()) == {0: 6, 1: 6}
                return job.status().regions[0].restarts

        async def look(process):
            async with run(
                copying(), process.data_dir, ports=process.ports, settings=settings(bound=Bound.UNTIL_END)
            ) as job:
                await job.wait()
                assert await read_all(job.log, "lines") == [json.decode(line) for line in LINES]
                assert sorted(await read_all(job.log, "copies")) == list(range(12))

        outcome = world.run(life)
        assert isinstance(outcome, Ended)
        restarts += outcome.result
        assert isinstance(world.run(look), Ended)
        if not failing.failed:
            break
    record_property("said", f"{number - 1} syncs of {what} failed, {restarts} restarts")
    assert number > 5
