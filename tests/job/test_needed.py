"""What retention must not remove: the records from the last checkpoint of each live job on."""

import pytest
from msgspec import Struct, json

import streamactors as sa
from streamactors.core.connectors import Guarantee
from streamactors.core.errors import Damaged
from streamactors.durable import appender
from streamactors.job.folders import version_folder
from streamactors.job.needed import Need, Needed, needed_offsets


class Event(Struct):
    user: str


def counting(name, topic="events"):
    flow = sa.Pipeline(name)
    flow.topic(topic, Event).key_by("user").count().to_view("counts")
    return flow


async def append(data_dir, count, partitions=2, topic="events"):
    async with sa.Log(data_dir) as log:
        opened = await log.create_topic(topic, partitions)
        await opened.append_many([json.encode(Event(f"u{n}")) for n in range(count)])


async def run(data_dir, name, bound=sa.Bound.UNTIL_END, **more):
    settings = sa.Settings(bound=bound, checkpoint_every_ms=10_000, **more)
    async with sa.run(counting(name), data_dir, settings=settings) as job:
        await job.wait()


def test_of_several_jobs_the_one_that_stands_farthest_back_decides():
    needs = [Need("a", "t", 0, 7), Need("b", "t", 0, 5), Need("b", "t", 1, 9), Need("c", "other", None, 0)]
    needed = Needed(needs)
    assert needed.keep_from("t", 3) == {0: 5, 1: 9}
    assert needed.first("t", 0).job == "b"
    assert needed.keep_from("other", 2) == {0: 0, 1: 0}
    assert needed.keep_from("unread", 2) == {}


async def test_a_job_needs_what_lies_behind_its_checkpoint(data_dir):
    await append(data_dir, 10)
    await run(data_dir, "first")
    await append(data_dir, 6)
    await run(data_dir, "second")

    needed = needed_offsets(data_dir)
    assert needed.keep_from("events", 2) == {0: 5, 1: 5}
    assert needed.first("events", 1).job == "first/v1"


async def test_a_finished_job_and_one_that_keeps_no_position_need_nothing(data_dir):
    await append(data_dir, 10)
    await run(data_dir, "finished", bound=sa.Bound.FINISH)
    await run(data_dir, "sampling", guarantee=Guarantee.AT_MOST_ONCE)
    assert needed_offsets(data_dir).keep_from("events", 2) == {}


async def test_a_job_that_has_begun_and_taken_no_checkpoint_needs_everything(data_dir):
    await append(data_dir, 10)
    async with sa.run(counting("begun"), data_dir, settings=sa.Settings(checkpoint_every_ms=10_000)) as job:
        while job.state == "starting" or not job.status().regions[0].attempt:
            await job.log.topics()
        await job.stop()
    assert needed_offsets(data_dir).keep_from("events", 2) == {0: 0, 1: 0}


async def test_who_does_not_know_what_a_job_needs_is_refused(data_dir):
    await append(data_dir, 10)
    await run(data_dir, "first")
    (version_folder(data_dir, "first", "v1") / "data.mdb").write_bytes(b"")
    with pytest.raises(Damaged):
        needed_offsets(data_dir)


async def test_retention_leaves_a_job_what_it_needs(data_dir, monkeypatch):
    """The oracle: after the most greedy retention the job goes on as if nothing had been removed."""
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 200)
    removed = 0
    for round_ in range(4):
        await append(data_dir, 30, partitions=2)
        async with sa.Log(data_dir) as log:
            topic = await log.topic("events")
            removed += await topic.retain(max_bytes=0, keep_from=needed_offsets(data_dir).keep_from("events", 2))
            firsts = [await topic.partition(number).first_offset() for number in range(2)]
        assert all(first <= 15 * round_ for first in firsts)
        await run(data_dir, "first")
    assert removed, "old segments go, once they are counted"
    async with sa.run(counting("first"), data_dir) as job:
        assert sum(dict(job.views["counts"].items()).values()) == 120
