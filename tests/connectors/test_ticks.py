"""Ticks: each multiple of the period once, the same ones again by their offsets, from an anchor that is durable."""

import asyncio
from dataclasses import replace
from random import Random

import pytest

import streamactors as sa
from connectors.ticks import Ticks
from streamactors.core.connectors import World
from streamactors.durable.realtime import real_ports
from streamactors.testing.clock import START_MS, ManualClock
from streamactors.testing.idle import settle
from streamactors.testing.world import CrashAtPoint
from streamactors.testing.world import World as Machine


@pytest.fixture
async def world(data_dir):
    ports = real_ports()
    yield World(data_dir, replace(ports, clock=ManualClock()), None)
    await ports.threads.close()


async def values(reader):
    got = await reader.read(1_000)
    return [] if got is None else got[0].values


async def test_the_first_start_begins_now_and_a_later_one_goes_on_there(world):
    await world.ports.clock.advance(0.5)
    reader = await Ticks("2s").reader(world, 0, 0)
    assert await values(reader) == []
    await world.ports.clock.advance(4)
    assert await values(reader) == [START_MS + 2_000, START_MS + 4_000]
    await world.ports.clock.advance(60)
    again = await Ticks("2s").reader(world, 0, 1)
    assert (await values(again))[:2] == [START_MS + 4_000, START_MS + 6_000], "what was missed comes, from the anchor"
    assert await values(await Ticks("2s", id="mine").reader(world, 0, 0)) == []


async def test_a_start_that_falls_on_a_multiple_begins_with_it(world):
    assert await values(await Ticks("1s").reader(world, 0, 0)) == [START_MS]


async def test_a_reader_wakes_when_the_next_tick_is_due(world):
    clock = world.ports.clock
    reader = await Ticks("1s").reader(world, 0, 0)
    await values(reader)
    waiting = asyncio.create_task(reader.wait())
    await settle()
    await clock.advance(0.999)
    assert not waiting.done()
    await clock.advance(0.001)
    assert waiting.done() and await values(reader) == [START_MS + 1_000]


async def test_a_clock_that_goes_back_repeats_nothing(world):
    clock = world.ports.clock
    reader = await Ticks("1s").reader(world, 0, 0)
    await clock.advance(5)
    assert len(await values(reader)) == 6
    clock._start_ms -= 3_000
    assert await values(reader) == [] and reader.end() == 6
    await clock.advance(4)
    assert await values(reader) == [START_MS + 6_000]
    clock._start_ms -= 3_000
    assert await values(await Ticks("1s").reader(world, 0, 7)) == [], "nor does a restart"


async def test_ticks_since_a_time_need_no_file(world):
    reader = await Ticks("1d", since=0).reader(world, 0, 0)
    assert (await values(reader))[:2] == [0, 86_400_000]
    assert not (world.data_dir / "sources").exists()


async def test_an_anchor_that_was_lost_is_damage(world):
    await Ticks("1s").ends(world)
    with pytest.raises(sa.Damaged, match="1,000,000 ticks were read before"):
        await Ticks("1s").reader(world, 0, 1_000_000)


async def test_an_anchor_whose_bytes_changed_is_damage(world):
    await Ticks("1s").ends(world)
    path = world.data_dir / "sources" / "ticks.1s.ticks"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(sa.Damaged, match="checksum"):
        await Ticks("1s").ends(world)


@pytest.mark.parametrize("every", [0, "0s", "0.1ms"])
async def test_a_period_of_nothing_is_refused(every):
    with pytest.raises(sa.UsageError, match="at least 1 ms"):
        Ticks(every)


# In a job that is simulated. ------------------------------------------------------------------------------------------


def minutes(process, topic="out", **more):
    async def life():
        flow = sa.Pipeline(f"into-{topic}")
        flow.source(Ticks("1min")).to_topic(topic)
        settings = sa.Settings(sync=False, checkpoint_every_ms=1_000, **more)
        async with sa.run(flow, process.data_dir, ports=process.ports, settings=settings) as job:
            if more:
                await job.wait()
            else:
                await process.ports.clock.sleep(600)

    return life()


async def contents(process, topic):
    async with sa.Log(process.data_dir, process.ports) as log:
        reader, found = (await log.topic(topic)).partition(0).reader(0), []
        while chunks := await reader.read():
            found += [int(value) for chunk in chunks for value in chunk.values()]
        await reader.close()
        return found


@pytest.mark.parametrize("seed", range(4))
def test_a_job_of_ticks_misses_none_and_repeats_none_whatever_happens(tmp_path, seed):
    world, random = Machine(Random(seed), tmp_path), Random(seed)
    for _ in range(4):
        world.run(minutes, CrashAtPoint(random.randint(1, 400)))
    world.run(minutes)
    found = world.run(lambda process: contents(process, "out")).result
    assert len(found) >= 10
    assert found == list(range(found[0], found[-1] + 1, 60_000))


def test_a_journal_replays_the_very_same_ticks(tmp_path):
    world = Machine(Random(1), tmp_path)
    world.run(minutes)

    async def journal(process):
        flow = sa.Pipeline("into-out")
        flow.source(Ticks("1min")).to_topic("out")
        async with sa.run(flow, process.data_dir, ports=process.ports, settings=sa.Settings(sync=False)):
            return list(process.store.journal("ticks"))

    entries = world.run(journal).result
    world.run(lambda process: minutes(process, "again", follow={"ticks": entries}))
    first, again = (
        world.run(lambda process, topic=topic: contents(process, topic)).result for topic in ("out", "again")
    )
    assert len(again) >= 10 and first[: len(again)] == again
