"""The reader: reads ahead, assigns event time, stops at its bounds, and keeps what came from one record together."""

import asyncio
from random import Random

import pytest

import streamactors as sa
from connectors.memory import Items
from streamactors.core.batch import Batch
from streamactors.core.connectors import EndOfInput
from streamactors.core.limits import READ_AHEAD_BATCHES
from streamactors.durable.realtime import RealClock
from streamactors.flow.async_transforms import AsyncMap
from streamactors.flow.dead_letters import OnError
from streamactors.flow.event_time import AssignTime, EventTime
from streamactors.flow.operator import Operator, OperatorContext
from streamactors.flow.reader import Reader
from streamactors.flow.transforms import Filter, FlatMap, Map
from streamactors.testing.idle import settle


async def reader_of(values, *, start=0, end=None, chain=(), event_time=None, batch_records=4, on_error=OnError.FAIL):
    chain = [*chain, *([] if event_time is None else [AssignTime(event_time)])]
    for operator in chain:
        operator.on_error = on_error
        operator.open(OperatorContext("p/op", None, None, clock=RealClock(), random=Random(1)))
    source = await Items(values).reader(None, 0, start)
    return Reader(
        "p/reader[0]",
        ("items", 0),
        source,
        start=start,
        end=end,
        decoding=Operator(),
        chain=chain,
        batch_records=batch_records,
        clock=RealClock(),
    )


async def read_all(reader, take=1_000):
    """Take all batches as the sequencer would; return (rows, end offset) of each."""
    running, taken = asyncio.create_task(reader.run()), []
    try:
        while True:
            head = reader.head()
            if head is None:
                if running.done():
                    running.result()
                return taken
            if head.batch is None:
                await asyncio.sleep(0)
                if running.done():
                    running.result()
                continue
            batch, end, _ = reader.take(take)
            taken.append((list(zip(batch.offsets, batch.values, strict=True)), end))
    finally:
        reader.stop()
        if not running.done():
            await running


async def test_everything_is_read_in_order_with_the_offset_behind_each_batch():
    taken = await read_all(await reader_of([10, 11, 12, 13, 14, 15]))
    assert taken == [([(0, 10), (1, 11), (2, 12), (3, 13)], 4), ([(4, 14), (5, 15)], 6)]


async def test_a_reader_starts_where_the_checkpoint_says():
    assert await read_all(await reader_of([10, 11, 12], start=2)) == [([(2, 12)], 3)]


async def test_a_bounded_reader_stops_at_its_end():
    reader = await reader_of([10, 11, 12, 13, 14], end=3)
    assert await read_all(reader) == [([(0, 10), (1, 11), (2, 12)], 3)]
    assert reader.exhausted


async def test_a_reader_reads_no_further_ahead_than_its_limit():
    reader = await reader_of(list(range(100)))
    running = asyncio.create_task(reader.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(reader._ready) == READ_AHEAD_BATCHES
    reader.stop()
    await running


async def test_what_comes_before_event_time_runs_in_the_reader():
    chain = [Map(lambda n: n + 1), Filter(lambda n: n % 2)]
    event_time = EventTime(lambda n: n * 100, disorder_ms=0, idle_after_ms=None)
    reader = await reader_of([0, 1, 2, 3], chain=chain, event_time=event_time)
    running = asyncio.create_task(reader.run())
    while not reader._ready:
        await asyncio.sleep(0)
    batch, end, dead = reader.take(10)
    assert dead is None
    assert (batch.values, batch.timestamps, list(batch.offsets), end) == ([1, 3], [100, 300], [0, 2], 4)
    reader.stop()
    await running


async def test_what_a_function_is_awaited_for_is_still_to_come():
    """A bounded run that took the reader for exhausted would end without it, and for ever if its input is complete."""
    answer = asyncio.Event()

    async def later(value):
        await answer.wait()
        return value

    reader = await reader_of([1, 2], end=2, chain=[AsyncMap(later)])
    running = asyncio.create_task(reader.run())
    await settle()
    assert not reader.exhausted
    assert reader.head() is not None and reader.head().batch is None
    answer.set()
    await settle()
    assert reader.take(9)[0].values == [1, 2]
    assert reader.exhausted and reader.head() is None
    reader.stop()
    await running


async def test_a_flat_map_that_makes_many_batches_of_one_loses_none():
    reader = await reader_of([3_000, 2], chain=[FlatMap(range)])
    rows = [row for batch, _ in await read_all(reader) for row in batch]
    assert rows == [(0, n) for n in range(3_000)] + [(1, 0), (1, 1)]


async def test_values_that_came_from_one_record_stay_together():
    """Positions and the journal count source records: a cut inside one could not be written down."""
    reader = await reader_of([1, 3, 2], chain=[FlatMap(lambda n: [n] * n)])
    taken = await read_all(reader, take=2)
    assert [([offset for offset, _ in rows], end) for rows, end in taken] == [([0, 1, 1, 1], 2), ([2, 2], 3)]


async def test_a_batch_of_which_nothing_is_left_still_moves_the_offset():
    reader = await reader_of([1, 2, 3], chain=[Filter(lambda n: False)])
    assert await read_all(reader) == [([], 3)]


@pytest.mark.parametrize(
    ("value", "words"),
    [("12:00", "is a str"), (None, "is a NoneType"), (1.5, "is a float"), (True, "is a bool"), (2**63, "64 bits")],
)
async def test_an_event_time_that_is_none_names_the_record(value, words):
    event_time = EventTime(None, disorder_ms=0, idle_after_ms=None)
    with pytest.raises(sa.BadRecord, match=f"items/0 at offset 1.*{words}"):
        await read_all(await reader_of([5, value, 6], event_time=event_time))


async def test_dead_letters_go_with_the_batch_that_their_record_would_have_been_in():
    """However the batch is cut: a position says that everything before it was handled, dead letters too."""
    chain = [Map(lambda n: 10 // n)]
    reader = await reader_of([0, 1, 2, 0, 3, 0], chain=chain, batch_records=6, on_error=OnError.DEAD_LETTER)
    running = asyncio.create_task(reader.run())
    while not reader._ready:
        await asyncio.sleep(0)
    taken = [reader.take(1) for _ in range(3)]
    assert [(batch.values, end, dead and list(dead.offsets)) for batch, end, dead in taken] == [
        ([10], 2, [0]),
        ([5], 4, [3]),
        ([3], 6, [5]),
    ]
    assert reader.refused == 3
    reader.stop()
    await running


async def test_a_reader_that_waits_at_the_end_says_since_when_and_stops_when_told():
    reader = await reader_of([1])
    running = asyncio.create_task(reader.run())
    while not reader._ready:
        await asyncio.sleep(0)
    reader.take(10)
    while reader.quiet_since is None:
        await asyncio.sleep(0)
    assert reader.head() is None
    reader.stop()
    await running


# Sources that keep records until they are acknowledged, and ends that are not known. ----------------------------------


class Delivered:
    """A source's reader that is fed by the test and notes what it is told."""

    def __init__(self, *values):
        self.values, self.next = list(values), 0
        self.over = asyncio.Event()
        self.told = []
        self.closed = False
        self.answer = asyncio.Event()
        self.answer.set()

    async def read(self, records_max):
        first, end = self.next, min(self.next + records_max, len(self.values))
        if first >= end:
            return None
        self.next = end
        return Batch(self.values[first:end], offsets=range(first, end)), end

    def end(self):
        return len(self.values)

    async def wait(self):
        await self.over.wait()
        raise EndOfInput

    async def acknowledge(self, end):
        await self.answer.wait()
        assert not self.closed, "told after it was closed"
        self.told.append(end)

    async def close(self):
        self.closed = True


def reader_on(source, **more):
    more = {"start": 0, "end": None, "decoding": Operator(), "chain": [], "batch_records": 2, **more}
    return Reader("p/reader[0]", ("s", 0), source, clock=RealClock(), **more)


async def test_a_partition_whose_end_was_not_known_is_exhausted_when_its_reader_says_so():
    source = Delivered(1, 2, 3)
    reader = reader_on(source)
    running = asyncio.create_task(reader.run())
    await settle()
    assert [reader.take(9)[1], reader.take(9)[1]] == [2, 3]
    await settle()
    assert not reader.exhausted and reader.quiet_since is not None
    woken = []
    reader.notify = lambda: woken.append(True)
    source.over.set()
    await settle()
    assert reader.exhausted and woken and reader.head() is None
    reader.stop()
    await running


async def test_an_end_that_is_met_while_batches_wait_is_no_loss():
    source = Delivered(1, 2, 3)
    source.over.set()
    reader = reader_on(source)
    running = asyncio.create_task(reader.run())
    await settle()
    assert not reader.exhausted
    rows = [reader.take(9)[0].values for _ in range(2)]
    await settle()
    assert rows == [[1, 2], [3]] and reader.exhausted
    reader.stop()
    await running


async def test_an_acknowledgement_is_passed_on_once_and_only_to_who_waits_for_it():
    source = Delivered(1, 2, 3)
    reader = reader_on(source)
    await reader.step()
    reader.take(9)
    for end in (1, 1, 2, 2):
        await reader.acknowledge(end)
    assert source.told == [1, 2]
    await (await reader_of([1, 2])).acknowledge(2)


async def test_a_reader_that_leaves_stays_until_what_was_taken_is_acknowledged():
    source = Delivered(1, 2, 3)
    reader = reader_on(source)
    running = asyncio.create_task(reader.run())
    await settle()
    reader.take(1)
    reader.leave()
    await settle()
    assert not source.closed
    source.answer.clear()
    telling = asyncio.create_task(reader.acknowledge(1))
    reader.leave()
    await settle()
    assert not source.closed, "while it is being told"
    source.answer.set()
    await telling
    await running
    assert source.closed and source.told == [1]


async def test_a_reader_that_leaves_with_nothing_taken_or_to_be_told_ends_at_once():
    for source in (Delivered(1, 2), await Items([1, 2]).reader(None, 0, 0)):
        reader = reader_on(source)
        running = asyncio.create_task(reader.run())
        await settle()
        reader.leave()
        await running


async def test_nothing_is_told_to_a_source_whose_attempt_has_failed():
    source = Delivered(1, 2)
    reader = reader_on(source)
    running = asyncio.create_task(reader.run())
    await settle()
    reader.take(9)
    reader.stop()
    await running
    await reader.acknowledge(2)
    assert source.told == []
