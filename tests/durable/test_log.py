"""Topics: made once, found by name, records placed by key, values typed."""

import asyncio
from collections import Counter

import msgspec
import pytest

from streamactors.core.errors import StorageError, UsageError
from streamactors.durable.frames import Records
from streamactors.durable.log import Log


class Score(msgspec.Struct):
    user: str
    score: int


async def test_a_topic_is_there_after_it_was_made_and_not_before(world):
    log = world.log()
    assert await log.topic("t") is None and await log.topics() == []

    await log.create_topic("t", 3)
    await log.create_topic("a")
    assert await log.topics() == ["a", "t"] and (await world.log().topic("t")).partitions == 3


async def test_making_a_topic_again_returns_it_unless_the_number_differs(world):
    log = world.log()
    assert await log.create_topic("t", 2) is await log.create_topic("t", 2)
    with pytest.raises(UsageError, match="topic t has 2 partitions, not 3"):
        await log.create_topic("t", 3)


async def test_two_who_make_the_same_topic_agree(world):
    made = await asyncio.gather(
        world.log().create_topic("t", 2), world.log().create_topic("t", 3), return_exceptions=True
    )
    assert sum(isinstance(result, UsageError) for result in made) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "ü", "x" * 101, "a\n"])
async def test_a_name_that_is_no_safe_folder_name_is_refused(world, name):
    with pytest.raises(UsageError, match="can't name a topic"):
        await world.log().create_topic(name)


@pytest.mark.parametrize("partitions", [0, -1, 1_025])
async def test_a_number_of_partitions_that_makes_no_sense_is_refused(world, partitions):
    with pytest.raises(UsageError, match=f"not {partitions}"):
        await world.log().create_topic("t", partitions)


async def test_a_damaged_description_is_named(world):
    await world.log().create_topic("t")
    path = next(path for path in world.disk.files() if path.name == "topic.json")
    world.disk.damage(path, 0, b"[")
    with pytest.raises(StorageError, match=r"topic\.json"):
        await world.log().topic("t")


async def test_a_log_does_nothing_before_it_is_used(tmp_path):
    async with Log(tmp_path / "nothing") as log:
        assert await log.topics() == []
    assert not (tmp_path / "nothing").exists()


async def test_a_closed_log_says_so(world):
    async with world.log() as log:
        topic = await log.create_topic("t")
    with pytest.raises(UsageError, match="was closed"):
        await log.topic("t")
    with pytest.raises(StorageError, match="was closed"):
        topic.partition(0).reader()


async def test_a_key_decides_the_partition_for_ever(world, read_all):
    """CRC-32 of its bytes: these places must never change, or old and new records of a key part ways."""
    topic = await world.log().create_topic("t", 4)
    keys = ["alice", "bob", b"carol", 7, "dave"]
    places = [await topic.append(b"v", key=key) for key in keys]

    assert [place.partition for place in places] == [3, 0, 3, 2, 0]
    assert [place.offset for place in places] == [0, 0, 1, 0, 1]
    (chunk,) = await topic.partition(0).reader().read()
    assert chunk.keys() == [b"bob", b"dave"]


async def test_records_without_a_key_go_round(world):
    topic = await world.log().create_topic("t", 3)
    assert [(await topic.append(b"v")).partition for _ in range(4)] == [0, 1, 2, 0]

    await topic.append_many([b"v"] * 8)
    assert [topic.partition(number).durable_end() for number in range(3)] == [4, 4, 4]


async def test_many_records_keep_the_order_of_their_partition(world, read_all):
    topic = await world.log().create_topic("t", 3)
    values = [b"%d" % n for n in range(100)]
    firsts = await topic.append_many(values, keys=[None if n % 5 else n for n in range(100)])

    assert firsts == {0: 0, 1: 0, 2: 0}
    read = [[int(value) for value in await read_all(topic.partition(number))] for number in range(3)]
    assert all(part == sorted(part) for part in read)
    assert Counter(n for part in read for n in part) == Counter(range(100))


async def test_appending_nothing_is_nothing(world):
    assert await (await world.log().create_topic("t")).append_many([]) == {}


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_typed_values_come_back_typed(world, encoding):
    log = world.log()
    await log.create_topic("scores")
    scores = await log.typed("scores", Score, encoding=encoding)
    await scores.append(Score("ann", 1), key="ann")
    await scores.append_many([Score("bob", 2), Score("ann", 3)])

    (chunk,) = await scores.topic.partition(0).reader().read()
    assert scores.decode(chunk) == [Score("ann", 1), Score("bob", 2), Score("ann", 3)]


async def test_raw_values_are_bytes(world):
    log = world.log()
    await log.create_topic("raw")
    raw = await log.typed("raw", bytes, encoding="raw")
    await raw.append(b"\x00\n")
    (chunk,) = await raw.topic.partition(0).reader().read()
    assert raw.decode(chunk) == [b"\x00\n"]


async def test_json_over_several_lines_or_with_blanks_is_decoded_value_by_value(world):
    log = world.log()
    topic = await log.create_topic("t")
    await topic.partition(0).append(Records.of([b'{"user":\n"ann","score":1}', b' {"user":"bob","score":2} ']))
    (chunk,) = await topic.partition(0).reader().read()
    assert (await log.typed("t", Score)).decode(chunk) == [Score("ann", 1), Score("bob", 2)]


async def test_a_blank_value_is_not_skipped_in_silence(world):
    log = world.log()
    topic = await log.create_topic("t")
    await topic.append_many([b'{"user":"ann","score":1}', b" "])
    (chunk,) = await topic.partition(0).reader().read()
    with pytest.raises(msgspec.DecodeError):
        (await log.typed("t", Score)).decode(chunk)


async def test_typed_needs_a_topic_and_an_encoding(world):
    log = world.log()
    with pytest.raises(UsageError, match="no topic t"):
        await log.typed("t", Score)
    await log.create_topic("t")
    with pytest.raises(UsageError, match="'pickle' is none of"):
        await log.typed("t", Score, encoding="pickle")
