"""Succession with sinks: what readers of targets know is one version's output at a time, each record once."""

import asyncio
import sqlite3

import pytest
from msgspec import json

import streamactors as sa
from streamactors.durable.catalogue import Catalogue, Served, Version, Versions
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.job.folders import job_folder
from streamactors.job.succession import Part, part_of

EVERY = "20ms"


# Who does what: pure. -------------------------------------------------------------------------------------------------


def versions(*labels, serving="v1"):
    return Versions("quiz", serving, [Version(label, 0) for label in labels], [Served(serving, 0)])


def test_who_is_served_writes_the_known_targets_and_the_others_their_own():
    found = versions("v1", "v2", "v3")
    assert part_of(None, "v1") == Part(None, None)
    assert part_of(found, "v1") == Part(None, None)
    assert part_of(found, "v2") == Part("v1", "v2")


def test_who_has_yielded_rests_and_both_rest_while_targets_are_exchanged():
    found = versions("v1", "v2", "v3")
    found.ask("v2", 1)
    assert part_of(found, "v1") == Part(None, None)
    found.yielded({})
    assert part_of(found, "v1") is None
    assert part_of(found, "v2") == Part("v1", "v2")
    found.exchange()
    assert [part_of(found, label) for label in ("v1", "v2", "v3")] == [None, None, Part("v1", "v3")]
    with pytest.raises(sa.UsageError, match="can't be taken back"):
        found.take_back()
    found.serve(2)
    assert [part_of(found, label) for label in ("v1", "v2", "v3")] == [
        Part("v2", "v1"),
        Part(None, None),
        Part("v2", "v3"),
    ]


# With sinks. ----------------------------------------------------------------------------------------------------------


def marking(mark, data_dir):
    """A pipeline that says who wrote each record, to a topic, a table and a folder."""
    flow = sa.Pipeline("quiz")
    events = flow.topic("events").map(lambda e: {"by": mark, "n": e["n"]}, name="mark")
    events.to_topic("out")
    events.to_sqlite(data_dir / "out.db", "out")
    events.to_json_lines(data_dir / "files")
    return flow


def running(flow, data_dir, version=None, **more):
    return sa.run(flow, data_dir, checkpoint_every=EVERY, settings=sa.Settings(version=version, **more))


def catalogue(data_dir):
    return Catalogue(RealDisk(), job_folder(data_dir, "quiz"))


def ask(data_dir, label):
    return catalogue(data_dir).change("quiz", "v1", 0, lambda found: found.ask(label, 0))


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def append(log, start, count):
    topic = await log.create_topic("events", 2)
    for number in range(2):
        await topic.partition(number).append(
            Records.of([json.encode({"n": n}) for n in range(start, start + count) if n % 2 == number])
        )


async def topic_rows(data_dir, name):
    async with sa.Log(data_dir) as log:
        topic = await log.topic(name)
        if topic is None:
            return []
        reader, rows = topic.partition(0).reader(0), []
        while chunks := await reader.read():
            rows += [json.decode(value) for chunk in chunks for value in chunk.values()]
        return sorted((row["by"], row["n"]) for row in rows)


def table_rows(data_dir, name):
    connection = sqlite3.connect(data_dir / "out.db")
    try:
        return sorted(connection.execute(f"SELECT by, n FROM {name}").fetchall())
    finally:
        connection.close()


def file_rows(folder):
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    return sorted((row["by"], row["n"]) for row in map(json.decode, lines))


def whole(mark, count):
    return sorted((mark, n) for n in range(count))


async def test_targets_are_exchanged_at_each_promotion_and_hold_each_version_s_output_once(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 0, 40)
    count = 40
    async with (
        running(marking("one", data_dir), data_dir) as first,
        running(marking("two", data_dir), data_dir, "v2") as second,
    ):
        for label in ("v2", "v1", "v2", "v1"):
            ask(data_dir, label)
            await append(first.log, count, 20)
            count += 20
            await until(lambda label=label: catalogue(data_dir).read().serving == label)
            deciding, other = (second, first) if label == "v2" else (first, second)
            await until(lambda d=deciding: d._succession.part == Part(None, None) and d.state == "running")
            await append(first.log, count, 20)
            count += 20
            await deciding.catch_up()
            await until(
                lambda o=other, l=label: (
                    o._succession.part is not None and o._succession.part.following == l and o.state == "running"
                )
            )
            await until(
                lambda o=other, c=count: (
                    o._regions[0].running is not None
                    and sum(p.offset for p in o._regions[0].running.sequencer.sequencing.partitions.values()) == c
                )
            )
            await other.checkpoint()
            mark, shadow, behind = ("two", "one", "v1") if label == "v2" else ("one", "two", "v2")
            assert await topic_rows(data_dir, "out") == whole(mark, count)
            assert await topic_rows(data_dir, f"out.{behind}") == whole(shadow, count)
            assert table_rows(data_dir, "out") == whole(mark, count)
            assert table_rows(data_dir, f"out__{behind}") == whole(shadow, count)
            assert file_rows(data_dir / "files") == whole("one", count)
            assert file_rows(data_dir / "files.v2") == whole("two", count)
