"""The log on a simulated disk that is full now and then, and whose process and machine die: acknowledged is there."""

import asyncio
from random import Random, SystemRandom

import pytest

from streamactors.core.errors import LogClosed, QuotaFull, StorageError
from streamactors.durable import appender
from streamactors.durable.frames import Records, Stamp
from streamactors.testing.disk import Crash

PARTITIONS = 2


def stamp(epoch):
    return Stamp("job", "sink", "incarnation", epoch, 1, 1)


class Life:
    """One process: appends until it dies. What was promised outlives it."""

    def __init__(self, world, random, promised, stamps):
        self.world, self.random, self.promised, self.stamps = world, random, promised, stamps
        self.refused = 0

    async def run(self, topic):
        for _ in range(self.random.randint(1, 12)):
            disk = self.world.disk
            disk.quota_bytes = self.random.choice([None, disk.used + int(self.random.random() ** 2 * 3_000)])
            work = [self.append(topic) for _ in range(self.random.randint(1, 5))] + [self.commit(topic)]
            await asyncio.gather(*work)

    async def append(self, topic):
        partition = self.random.randrange(PARTITIONS)
        lines = [self.random.randbytes(self.random.randint(1, 300)) for _ in range(self.random.randint(1, 3))]
        try:
            offset = await topic.partition(partition).append(Records.of(lines))
        except QuotaFull:
            self.refused += 1
        else:
            self.promised.append((partition, offset, lines))

    async def commit(self, topic):
        """A sink's commit: tried again until it is done, by this process or the next one."""
        last = len(self.stamps)
        expect = stamp(last) if last else None
        try:
            await topic.partition(0).append_stamped(Records.of([b"commit %d" % (last + 1)]), stamp(last + 1), expect)
        except QuotaFull:
            self.refused += 1
        else:
            self.stamps.append(last + 1)


async def one_seed(new_world, seed, read_all):
    world, random = new_world(seed), Random(seed)
    promised, stamps, refused, deaths = [], [], 0, 0
    for _ in range(6):
        life = Life(world, random, promised, stamps)
        try:
            try:
                topic = await world.log().create_topic("t", PARTITIONS)
                world.disk.fail_at(random.randint(1, 80))
                await life.run(topic)
            finally:
                refused += life.refused
        except (Crash, QuotaFull, LogClosed, StorageError) as error:
            deaths += isinstance(error, Crash)
        world.crash()
        topic = await world.log().create_topic("t", PARTITIONS)
        last = await topic.partition(0).last_stamp("job", "sink")
        assert (0 if last is None else last.epoch) - len(stamps) in (0, 1), "a commit that was answered is there"
        if last is not None and last.epoch > len(stamps):
            stamps.append(last.epoch)
        found = [await read_all(topic.partition(number)) for number in range(PARTITIONS)]
        for partition, offset, lines in promised:
            assert found[partition][offset : offset + len(lines)] == lines, "what was promised is there"
        commits = [value for value in found[0] if value.startswith(b"commit ")]
        assert commits == [b"commit %d" % epoch for epoch in stamps], "each commit is there once"
        world.crash(power=False)
    return refused, deaths


@pytest.mark.parametrize("turn", range(4))
async def test_what_was_promised_is_there_however_full_the_disk_was(
    new_world, read_all, monkeypatch, record_property, turn
):
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 1_500)
    first = SystemRandom().randrange(10**9)
    refused = deaths = 0
    for seed in range(first, first + 25):
        try:
            more = await one_seed(new_world, seed, read_all)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        refused, deaths = refused + more[0], deaths + more[1]
    record_property("said", f"seeds from {first}: {refused} refused, {deaths} deaths")
    assert refused
    assert deaths
