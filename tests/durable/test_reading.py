"""Reading: from any offset, over segments, waiting at the end, finding by time, and what retention leaves."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamactors.core.errors import Damaged, UsageError
from streamactors.durable import segment_reader
from streamactors.durable.frames import Records
from streamactors.durable.log import Log, Topic


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def fill(world, appends, segment_bytes=500):
    """Append lists of values, 1 s apart, in small segments; return the partition."""
    partition = await world.partition()
    for number, values in enumerate(appends):
        await partition.append(Records.of(values))
        world.clock.ms += 1_000
        if number == 0:
            partition._commits._appender.segment_bytes_max = segment_bytes
    return partition


TENS = [[b"%d" % n for n in range(start, start + 10)] for start in range(0, 200, 10)]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 55, 199, 200])
async def test_a_read_may_start_at_any_offset(world, read_all, start):
    partition = await fill(world, TENS)
    assert (await partition.size())[0] >= 4, "over several segments"

    assert await read_all(partition, start) == [b"%d" % n for n in range(start, 200)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20), st.lists(st.integers(1, 40), min_size=1), st.integers(1, 100)
)
def test_bounded_reads_return_every_record_once_and_keep_their_bounds(new_world, sizes, bounds, size_max):
    async def run():
        numbers = itertools.count()
        partition = await fill(new_world(3), [[b"%d" % next(numbers) for _ in range(size)] for size in sizes])
        reader, values = partition.reader(), []
        for bound in itertools.cycle(bounds):
            chunks = await reader.read(bound, size_max)
            if not chunks:
                break
            got = [value for chunk in chunks for value in chunk.values()]
            assert 1 <= len(got) <= bound
            assert len(got) == 1 or sum(chunk.size for chunk in chunks) <= size_max
            assert chunks[0].first == len(values) and reader.position == len(values) + len(got)
            values += got
        assert values == [b"%d" % n for n in range(sum(sizes))]

    asyncio.run(run())


async def test_small_frames_are_read_as_one_chunk_with_their_own_append_times(world):
    partition = await fill(world, [[b"a"], [b"b", b"c"], [b"d"]], segment_bytes=10_000)
    (chunk,) = await partition.reader().read()

    assert chunk.values() == [b"a", b"b", b"c", b"d"]
    assert chunk.append_times() == [1_000_000, 1_001_000, 1_001_000, 1_002_000]


async def test_a_large_frame_is_checked_once_and_handed_out_in_parts(world):
    partition = await fill(world, [[b"%d" % n for n in range(3_000)]])
    reader, reads = partition.reader(), world.count("read")
    sizes = []
    while chunks := await reader.read(1_000):
        sizes.append([chunk.count for chunk in chunks])

    assert sizes == [[1_000]] * 3
    assert len(reads) == 3, "the segment's head, its frame, and the place behind it"


async def test_append_times_never_go_back_though_the_clock_does(world):
    partition = await world.partition()
    await partition.append(Records.of([b"a"]))
    world.clock.ms -= 10_000
    await partition.append(Records.of([b"b"]))
    await partition.close()

    world.crash(power=True)
    partition = await world.partition()
    await partition.append(Records.of([b"c"]))
    (chunk,) = await partition.reader().read()
    assert chunk.append_times() == [1_000_000] * 3


async def test_the_first_record_at_or_after_an_append_time_is_found(world):
    partition = await fill(world, TENS)

    for number in range(20):
        time = 1_000_000 + 1_000 * number
        assert await partition.offset_at(time) == 10 * number
        assert await partition.offset_at(time - 1) == 10 * number
        assert await partition.offset_at(time + 1) == 10 * number + 10
    assert await partition.offset_at(0) == 0
    assert await partition.offset_at(10**12) == partition.durable_end() == 200
    assert await (await world.log().create_topic("empty")).partition(0).offset_at(0) == 0


async def test_a_place_passed_once_is_found_without_hopping_from_the_start(world, monkeypatch):
    monkeypatch.setattr(segment_reader, "INDEX_EVERY_BYTES", 1_000)
    monkeypatch.setattr(segment_reader, "READ_BYTES", 500)
    partition = await fill(world, [[b"x" * 150]] * 100, segment_bytes=1_000_000)
    reader = partition.reader()
    while await reader.read():
        pass

    assert partition._places.before(reader._files._head, 99) > 15_000
    assert await partition.read_at(42) == b"x" * 150


async def test_opening_to_read_does_not_scan(world):
    partition = await fill(world, TENS)
    await partition.close()
    reads = world.count("read")

    again = await world.partition()
    assert again.durable_end() == 200
    assert [path.name for path in reads] == ["topic.json", "topic.json"]


# --- waiting ---------------------------------------------------------------------------------------------------


async def test_a_waiting_reader_is_woken_by_its_own_process_without_a_poll(world):
    """Also when reader and writer have opened the log each for itself."""
    reader = (await world.partition()).reader()
    waiting = asyncio.create_task(reader.wait())
    await settle()
    assert not waiting.done()

    await (await world.partition()).append(Records.of([b"x"]))
    await settle()
    assert waiting.done() and [chunk.values() for chunk in await reader.read()] == [[b"x"]]


async def test_a_reader_beside_the_writer_needs_no_timer(world):
    partition = await world.partition()
    await partition.append(Records.of([b"x"]))
    waiting = asyncio.create_task(partition.reader(1).wait())
    await settle()
    assert world.clock.sleeping == 0 and not waiting.done()

    await partition.append(Records.of([b"y"]))
    await settle()
    assert waiting.done()


async def test_another_processs_appends_are_seen_at_the_next_poll(world):
    partition = await world.partition()
    waiting = asyncio.create_task(partition.reader().wait())
    others = [asyncio.create_task(partition.reader().wait()) for _ in range(3)]
    await settle()
    assert world.clock.sleeping == 1, "one timer for all"

    cell = next(path for path in world.disk.files() if path.name.startswith("durable_end"))
    world.disk._names[cell].cell = 2  # as another process's store: nobody is called
    await settle()
    assert not waiting.done()
    world.clock.advance(40)
    await asyncio.gather(waiting, *others)
    await settle()
    assert world.clock.sleeping == 0, "nobody waits, nothing polls"


async def test_another_process_that_goes_on_appending_is_looked_at_more_often(world):
    partition = await world.partition()
    cell = next(path for path in world.disk.files() if path.name.startswith("durable_end"))
    for appended, within_ms in [(1, 41), (2, 6), (3, 6)]:
        waiting = asyncio.create_task(partition.reader(appended - 1).wait())
        await settle()
        world.disk._names[cell].cell = appended + 1
        world.clock.advance(within_ms)
        await waiting
        await settle()
    waiting = asyncio.create_task(partition.reader(3).wait())
    await settle()
    for pause in (6, 11, 21, 41):  # and less and less often when it falls silent
        assert world.clock.sleeping == 1
        world.clock.advance(pause)
        await settle()
    world.disk._names[cell].cell = 5
    world.clock.advance(6)
    await settle()
    assert not waiting.done()
    world.clock.advance(41)
    await waiting


async def test_a_wait_with_something_to_read_returns_at_once(world):
    reader = (await fill(world, [[b"a", b"b"]])).reader()
    await reader.wait()
    await reader.read(1)
    await reader.wait()
    assert [chunk.values() for chunk in await reader.read()] == [[b"b"]]
    assert await reader.read() == []


async def test_closing_the_log_ends_the_timer(world):
    log = world.log()
    partition = (await log.create_topic("t")).partition(0)
    waiting = asyncio.create_task(partition.reader().wait())
    await settle()

    waiting.cancel()
    await log.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "log tails"] == []


# --- what is not there -----------------------------------------------------------------------------------------


async def test_a_start_past_the_durable_end_is_a_loss_with_both_numbers(world):
    partition = await fill(world, [[b"a"]])
    with pytest.raises(Damaged, match="durable up to offset 1, and is to be read from 5"):
        await partition.reader(5).read()


async def test_retention_removes_whole_segments_by_age(world, read_all):
    partition = await fill(world, TENS)
    topic = Topic("t", [partition])

    assert await topic.retain(max_age_ms=10_500) > 0
    first = await partition.first_offset()
    assert 0 < first <= 100, "the last ten appends are younger; what shares a segment with them stays"
    assert await read_all(partition, first) == [b"%d" % n for n in range(first, 200)]
    assert await partition.offset_at(0) == first
    with pytest.raises(UsageError, match=f"before {first}"):
        await read_all(partition, 0)


async def test_retention_removes_the_oldest_by_size_but_never_the_last_segment(world):
    partition = await fill(world, TENS)
    topic = Topic("t", [partition])
    _, size = await partition.size()

    await topic.retain(max_bytes=size // 2)
    assert size // 2 - 800 < (await partition.size())[1] <= size // 2
    await topic.retain(max_bytes=0)
    assert (await partition.size())[0] == 1
    await partition.append(Records.of([b"x"]))


async def test_retention_keeps_what_is_still_needed(world):
    partition = await fill(world, TENS)
    topic = Topic("t", [partition])

    await topic.retain(max_bytes=0, keep_from={0: 95})
    assert 50 <= await partition.first_offset() <= 95
    await topic.retain(max_bytes=0, keep_from={0: 0})
    assert 50 <= await partition.first_offset() <= 95


async def test_a_reader_finishes_the_segment_that_it_has_open_and_then_says_that_the_next_one_went(data_dir):
    """On a real file system a removed file lives as long as somebody reads it."""
    async with Log(data_dir) as log:
        topic = await log.create_topic("t")
        partition = topic.partition(0)
        for _ in range(3):
            await partition.append(Records.of([b"x", b"y"]))
            partition._commits._appender.segment_bytes_max = 0
        reader = partition.reader()
        await reader.read(1)
        await topic.retain(max_bytes=0)

        assert [chunk.values() for chunk in await reader.read()] == [[b"y"]]
        with pytest.raises(UsageError, match="offset 2 is no longer there, retention has removed what stood before 4"):
            await reader.read()
