"""A process that dies at any step of taking a savepoint, or of starting from one, leaves all or nothing."""

import shutil
from random import Random

import pytest
from msgspec import json

import streamactors as sa
from streamactors.core.errors import UsageError
from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.durable.savepoint_files import check_all, open_savepoint
from streamactors.flow.sequencer import Bound
from streamactors.job.runner import run
from streamactors.job.settings import Settings
from streamactors.testing.world import CrashAtPoint, Crashed, Ended, World

COUNT = 60


def pipeline(parts=1):
    flow = sa.Pipeline("quiz", parts=parts)
    events = flow.topic("events").event_time("at", disorder=20, idle_after=None).key_by("key")
    events.window(sa.Tumbling(50)).allowed_lateness(20).count().to_view("counts")
    events.count(name="totals").to_view("totals")
    events.map_with_state(lambda e, s: ([e["key"], (s or 0) + 1], (s or 0) + 1), name="numbered").to_topic("numbers")
    return flow


def values(first, last):
    return [json.encode({"key": "abc"[n * n % 3], "at": 5 * n + n * 7 % 30}) for n in range(first, last)]


async def fill(process, first, last):
    async with Log(process.data_dir, process.ports) as log:
        topic = await log.create_topic("events", 1)
        await topic.partition(0).append(Records.of(values(first, last)))


async def numbers(log):
    topic = await log.topic("numbers")
    reader = topic.partition(0).reader(0)
    found = []
    while chunks := await reader.read():
        found += [json.decode(value) for chunk in chunks for value in chunk.values()]
    await reader.close()
    return found


async def to_end(process, parts=1, **more):
    settings = Settings(checkpoint_every_ms=20, bound=Bound.FINISH, sync=False, **more)
    async with run(pipeline(parts), process.data_dir, ports=process.ports, settings=settings) as job:
        await job.wait()
        with job.views.snapshot() as view:
            views = {name: dict(view(name).items()) for name in ("counts", "totals")}
        return views, sorted(await numbers(job.log))


async def half(process):
    """Fill half of the input, run it to its end, take a savepoint."""
    await fill(process, 0, COUNT // 2)
    settings = Settings(checkpoint_every_ms=20, bound=Bound.UNTIL_END, sync=False)
    async with run(pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
        await job.wait()


async def take(process):
    """Go on from what is there, and take a savepoint under a name that is free."""
    settings = Settings(checkpoint_every_ms=20, sync=False)
    async with run(pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
        await job.catch_up()
        await job.savepoint(process.data_dir / "a.savepoint")


async def start(process, parts=3):
    """Start from the savepoint, unless that was done already: as somebody does who gives the command again."""
    more = {"from_savepoint": process.data_dir / "a.savepoint", "sinks": "continue"}
    try:
        return await to_end(process, parts, **more)
    except UsageError as error:
        if "has state already" not in str(error):
            raise
        return await to_end(process, parts)


async def whole_or_absent(process):
    path = process.data_dir / "a.savepoint"
    if process.disk.exists(path):
        with open_savepoint(process.disk, path) as decoder:
            check_all(decoder)
        return True
    return False


def result(outcome):
    assert isinstance(outcome, Ended), f"died where it should not: {outcome}"
    return outcome.result


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one comes to that never stopped."""
    world = World(Random(0), tmp_path_factory.mktemp("plain"))

    async def all_of_it(process):
        await fill(process, 0, COUNT)
        return await to_end(process)

    return result(world.run(all_of_it))


def prepared(seed, folder):
    world = World(Random(seed), folder)
    result(world.run(half))
    return world


@pytest.mark.parametrize("step", [*range(1, 60, 3)])
def test_a_process_that_dies_while_it_takes_one_leaves_a_whole_one_or_none(tmp_path, step):
    world = prepared(step, tmp_path)
    outcome = world.run(take, CrashAtPoint(step))
    there = result(world.run(whole_or_absent))
    if isinstance(outcome, Ended):
        assert there
    elif not there:
        result(world.run(take))
        assert result(world.run(whole_or_absent))


@pytest.mark.parametrize("step", [*range(1, 100, 5)])
def test_a_process_that_dies_while_it_starts_from_one_is_as_if_it_had_not(tmp_path, step, expected):
    world = prepared(step, tmp_path)
    result(world.run(take))
    shutil.rmtree(world.data_dir / "jobs")

    async def rest(process):
        await fill(process, COUNT // 2, COUNT)

    result(world.run(rest))
    for number in range(3):  # dies early, later, and then comes through
        outcome = world.run(start, CrashAtPoint(step + 7 * number))
        assert isinstance(outcome, Crashed | Ended)
        if isinstance(outcome, Ended):
            break
    assert result(world.run(start)) == expected
