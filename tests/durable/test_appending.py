"""Appending: shared syncs, cancellation, failures, retries and stamps."""

import asyncio
import errno

import pytest

from streamactors.core.errors import Held, LogClosed, QuotaFull, SinkConflict
from streamactors.durable import commits, tables
from streamactors.durable.frames import NOTHING, Records, Stamp

X = Records.of([b"x"])


def stamp(epoch, part=0, parts=1, sink="sink"):
    return Stamp("job", sink, "incarnation", epoch, part, parts)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_appends_that_wait_together_share_one_write_and_one_sync(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"first"]))
    writes, threads = world.count("write"), world.threads
    threads.gate.clear()

    appends = [asyncio.create_task(partition.append(Records.of([b"%d" % n, b"more"]))) for n in range(10)]
    await settle()
    threads.gate.set()

    assert await asyncio.gather(*appends) == [1 + 2 * n for n in range(10)]
    assert len(writes) == 1, "all were waiting when the lane was free"
    assert (await read_all(partition))[1::2] == [b"%d" % n for n in range(10)]


async def test_appends_that_come_during_a_write_go_together_as_the_next_one(world):
    partition = await world.partition()
    await partition.append(X)
    syncs, threads = world.count("sync"), world.threads
    threads.gate.clear()

    appends = [asyncio.create_task(partition.append(X))]
    await settle()
    appends += [asyncio.create_task(partition.append(X)) for _ in range(9)]
    await settle()
    threads.gate.set()
    await asyncio.gather(*appends)

    assert len(syncs) == 2


async def test_a_group_is_bounded_in_bytes(world, monkeypatch):
    monkeypatch.setattr(commits, "GROUP_BYTES_MAX", 100)
    partition = await world.partition()
    await partition.append(X)
    writes = world.count("write")

    await asyncio.gather(*(partition.append(Records.of([b"x" * 40])) for _ in range(6)))

    assert len(writes) == 3


async def test_nothing_is_visible_before_its_sync(world):
    partition = await world.partition()
    await partition.append(X)
    ends = []
    world.disk.on_operation = lambda label, path: ends.append((label, partition.durable_end()))

    await partition.append(X)

    assert ends == [("write", 1), ("sync", 1), ("store", 1)] and partition.durable_end() == 2


async def test_an_append_cancelled_before_it_was_taken_leaves_nothing(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"first"]))
    world.threads.gate.clear()
    writing = asyncio.create_task(partition.append(Records.of([b"in flight"])))
    await settle()
    waiting = asyncio.create_task(partition.append(Records.of([b"waiting"])))
    await settle()

    waiting.cancel()
    world.threads.gate.set()
    await writing

    assert await read_all(partition) == [b"first", b"in flight"]
    assert await partition.append(Records.of([b"next"])) == 2


async def test_an_append_cancelled_during_its_write_is_whole_in_the_log(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"first"]))
    world.threads.gate.clear()
    writing = asyncio.create_task(partition.append(Records.of([b"a", b"b"])))
    await settle()

    writing.cancel()
    await settle()
    world.threads.gate.set()

    assert await partition.append(Records.of([b"next"])) == 3
    assert await read_all(partition) == [b"first", b"a", b"b", b"next"]


async def test_cancelling_the_first_append_while_it_opens_leaves_no_orphaned_lock(world):
    partition = await world.partition()
    world.threads.gate.clear()
    first = asyncio.create_task(partition.append(X))
    await settle()
    first.cancel()
    await settle()
    world.threads.gate.set()

    assert await partition.append(X) == 0


@pytest.mark.parametrize("opened_by", ["the next append", "asking for the topic"])
async def test_after_a_failed_sync_the_files_are_opened_again_which_recovers(world, read_all, opened_by):
    """A web handler holds a topic for its life: it sees one clear error, and then it works again."""
    log = world.log()
    partition = (await log.create_topic("t")).partition(0)
    await partition.append(Records.of([b"before"]))
    world.refuse("sync", OSError(errno.EIO, "no"))

    with pytest.raises(LogClosed, match="durable is not known"):
        await partition.append(Records.of([b"unknown"]))
    assert await read_all(partition) == [b"before"], "it is still readable, up to the durable end"

    if opened_by == "asking for the topic":
        assert (await log.topic("t")).partition(0) is partition
    await partition.append(Records.of([b"after"]))
    assert await read_all(partition) == [b"before", b"unknown", b"after"]

    world.crash(power=True)  # recovery wrote it anew: a second sync alone would have lied
    assert await read_all(await world.partition()) == [b"before", b"unknown", b"after"]


async def test_all_who_wait_behind_a_failed_sync_are_told(world):
    partition = await world.partition()
    await partition.append(X)
    world.threads.gate.clear()
    appends = [asyncio.create_task(partition.append(X))]
    await settle()
    appends.append(asyncio.create_task(partition.append(X)))
    await settle()
    world.refuse("sync", OSError(errno.EIO, "no"))
    world.threads.gate.set()

    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(result) for result in results] == [LogClosed, LogClosed]


async def test_a_full_disk_writes_nothing_and_the_partition_goes_on(world, read_all):
    partition = await world.partition()
    await partition.append(Records.of([b"before"]))
    world.refuse("write", OSError(errno.ENOSPC, "full"))

    with pytest.raises(QuotaFull, match="None of 1 records was written"):
        await partition.append(X, producer=("p", 0))

    assert await partition.append(Records.of([b"after"]), producer=("p", 0)) == 1, "the refused one was not noted"
    assert await read_all(partition) == [b"before", b"after"]


async def test_a_closed_log_takes_what_was_handed_over_and_no_more(world):
    log = world.log()
    partition = (await log.create_topic("t")).partition(0)
    await partition.append(X)
    world.threads.gate.clear()
    handed_over = asyncio.create_task(partition.append(X))
    await settle()
    closing = asyncio.create_task(log.close())
    await settle()
    world.threads.gate.set()
    await closing

    assert await handed_over == 1
    with pytest.raises(LogClosed, match="closed by its owner"):
        await partition.append(X)


async def test_one_writer_at_a_time(world):
    first, second = await world.partition(), await world.partition()
    await first.append(X)

    refused = asyncio.create_task(second.append(X))
    while not refused.done():
        await settle()
        world.clock.advance(40)
    with pytest.raises(Held, match=r"writer\.lock is in use by process 1"):
        await refused

    await first.close()
    assert await second.append(X) == 1


# --- producers -------------------------------------------------------------------------------------------------


async def test_a_repeated_append_writes_nothing_and_has_the_first_ones_offset(world, read_all):
    partition = await world.partition()
    await partition.append(X)

    assert await partition.append(Records.of([b"once"]), producer=("p", 0)) == 1
    assert await partition.append(Records.of([b"once"]), producer=("p", 0)) == 1
    assert await partition.append(Records.of([b"other"]), producer=("q", 0)) == 2
    assert await partition.append(Records.of([b"later"]), producer=("p", 5)) == 3
    assert await partition.append(Records.of([b"once"]), producer=("p", 0)) == tables.OFFSET_UNKNOWN
    assert await read_all(partition) == [b"x", b"once", b"other", b"later"]


async def test_a_retry_in_the_same_group_waits_for_the_first_try(world, read_all):
    partition = await world.partition()
    await partition.append(X)

    tries = [partition.append(Records.of([b"once"]), producer=("p", 0)) for _ in range(3)]
    assert await asyncio.gather(*tries) == [1, 1, 1]
    assert await read_all(partition) == [b"x", b"once"]


@pytest.mark.parametrize("rolled", [False, True])
async def test_sequences_and_stamps_survive_restarts_and_new_segments(world, read_all, rolled):
    partition = await world.partition()
    await partition.append(Records.of([b"once"]), producer=("p", 3))
    await partition.append_stamped(Records.of([b"s"]), stamp(1), None)
    if rolled:
        partition._commits._appender.segment_bytes_max = 0
        await partition.append(X)
        await partition.append(X)
    world.crash(power=True)
    partition = await world.partition()

    assert await partition.append(Records.of([b"once"]), producer=("p", 3)) == 0
    assert not await partition.append_stamped(Records.of([b"s"]), stamp(1), None)
    assert await partition.last_stamp("job", "sink") == stamp(1)
    assert await read_all(partition) == [b"once", b"s"] + [b"x", b"x"] * rolled


async def test_only_the_latest_producers_are_carried_into_a_new_segment(monkeypatch):
    monkeypatch.setattr(tables, "PRODUCERS_KEPT", 2)
    table = tables.Tables()
    for number in range(4):
        table.note_producer((f"p{number}", 0), number)
    table.note_producer(("p0", 1), 9)
    carried = tables.Tables()
    carried.apply(table.encode())

    assert [carried.seen((f"p{number}", 0)) for number in range(4)] == [tables.OFFSET_UNKNOWN, None, None, 3]


# --- stamps ----------------------------------------------------------------------------------------------------


async def test_a_stamped_append_happens_once(world, read_all):
    partition = await world.partition()

    assert await partition.append_stamped(Records.of([b"1"]), stamp(1), None)
    assert await partition.append_stamped(Records.of([b"2"]), stamp(2), stamp(1))
    assert not await partition.append_stamped(Records.of([b"2"]), stamp(2), stamp(1)), "done already"
    assert await read_all(partition) == [b"1", b"2"]


@pytest.mark.parametrize(("new", "expect"), [(stamp(2), None), (stamp(3), stamp(2)), (stamp(1, 1, 2), stamp(1, 0, 2))])
async def test_any_other_stamp_is_a_conflict_and_nothing_is_written(world, read_all, new, expect):
    partition = await world.partition()
    await partition.append_stamped(X, stamp(1), None)

    with pytest.raises(SinkConflict, match=r"t/0 shows Stamp\(job='job'"):
        await partition.append_stamped(X, new, expect)
    assert await read_all(partition) == [b"x"]


async def test_sinks_do_not_see_each_others_stamps(world):
    partition = await world.partition()
    await partition.append_stamped(X, stamp(1), None)

    assert await partition.last_stamp("job", "other") is None
    assert await partition.append_stamped(X, stamp(1, sink="other"), None)


async def test_a_commit_has_a_frame_of_its_own_between_appends_that_wait_with_it(world, read_all):
    partition = await world.partition()
    await partition.append(X)
    writes = world.count("write")

    await asyncio.gather(
        partition.append(Records.of([b"a"])),
        partition.append(Records.of([b"b"])),
        partition.append_stamped(Records.of([b"s1"]), stamp(1), None),
        partition.append_stamped(Records.of([b"s2"]), stamp(2), stamp(1)),
        partition.append(Records.of([b"c"])),
    )

    assert len(writes) == 4
    assert await read_all(partition) == [b"x", b"a", b"b", b"s1", b"s2", b"c"]


async def test_a_commit_may_have_no_records(world, read_all):
    partition = await world.partition()
    assert await partition.append_stamped(NOTHING, stamp(1), None)
    world.crash(power=True)
    partition = await world.partition()

    assert await partition.last_stamp("job", "sink") == stamp(1)
    assert await partition.append(X) == 0 and await read_all(partition) == [b"x"]


async def test_the_last_stamp_is_told_while_others_keep_appending(world):
    """A sink that starts again asks for it. Waiting for silence would keep it from starting under load."""
    partition = await world.partition()
    await partition.append_stamped(X, stamp(1), None)

    async def append_for_ever():
        while True:
            await partition.append(X)

    appending = [asyncio.create_task(append_for_ever()) for _ in range(3)]
    for _ in range(50):
        await asyncio.sleep(0)
    last = partition._commits.append_stamped(X, stamp(2), stamp(1))
    on_its_way = asyncio.create_task(last)
    await asyncio.sleep(0)
    assert await asyncio.wait_for(partition.last_stamp("job", "sink"), 10) == stamp(2), "what was taken before counts"
    assert on_its_way.done()
    for task in appending:
        task.cancel()
    await asyncio.wait(appending)
