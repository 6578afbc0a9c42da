"""Claiming a partition: several writers of one topic, each with a partition of its own."""

import pytest

from streamactors.core.errors import Held
from streamactors.durable.log import Log


async def test_each_writer_gets_a_partition_and_appends_there_what_has_no_key(data_dir):
    async with Log(data_dir) as one, Log(data_dir) as other:
        mine, theirs = await one.create_topic("in", 3), await other.create_topic("in", 3)
        assert (await mine.claim(), await theirs.claim()) == (0, 1)
        assert await mine.claim() == 0, "to claim again changes nothing"
        assert [(await mine.append(b"a")).partition for _ in range(3)] == [0, 0, 0]
        assert await theirs.append_many([b"b", b"c"]) == {1: 0}
        assert (mine.partition(1).durable_end(), mine.partition(2).durable_end()) == (2, 0)


async def test_a_key_still_decides_the_partition(data_dir):
    async with Log(data_dir) as one, Log(data_dir) as other:
        mine, theirs = await one.create_topic("in", 2), await other.create_topic("in", 2)
        await mine.claim()
        await theirs.claim()
        refused = 0
        for key in range(10):
            try:
                await mine.append(b"a", key=key)
            except Held:
                refused += 1
        assert 0 < refused < 10


async def test_when_all_are_taken_it_says_by_whom_and_what_is_given_back_can_be_claimed(data_dir):
    async with Log(data_dir) as other:
        theirs = await other.create_topic("in", 1)
        async with Log(data_dir) as one:
            await (await one.create_topic("in", 1)).claim()
            with pytest.raises(Held, match="is in use by process"):
                await theirs.claim()
        assert await theirs.claim() == 0
