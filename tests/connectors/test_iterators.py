"""Async iterators: batched by what is there, never ahead without bound, closed in the task that pulled them."""

import asyncio
from contextlib import asynccontextmanager

import pytest

import streamactors as sa
from connectors.iterators import AHEAD_ITEMS, AsyncItems
from streamactors.core.connectors import EndOfInput, Guarantee
from streamactors.testing.idle import settle


class Subscription:
    """An async generator that a test feeds, and that says what became of it."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.pulled = 0
        self.ended_by = None
        self.task = None
        self.cleaned_in = None

    async def items(self):
        self.task = asyncio.current_task()
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.pulled += 1
                yield item
        except BaseException as error:
            self.ended_by = type(error)
            raise
        finally:
            await asyncio.sleep(0)  # a connection's goodbye
            self.cleaned_in = asyncio.current_task()

    def put(self, *items):
        for item in items:
            self.queue.put_nowait(item)


@asynccontextmanager
async def reading(source, start=0):
    reader = await source.reader(None, 0, start)
    try:
        yield reader
    finally:
        await reader.close()


async def test_a_batch_is_what_is_there():
    feed = Subscription()
    async with reading(AsyncItems(feed.items), 5) as reader:
        assert await reader.read(10) is None
        feed.put("a", "b", "c")
        await reader.wait()
        await settle()
        batch, end = await reader.read(2)
        assert (batch.values, list(batch.offsets), end) == (["a", "b"], [5, 6], 7)
        assert (await reader.read(10))[0].values == ["c"]
        assert reader.end() == 8


async def test_a_slow_job_stops_the_iterator():
    feed = Subscription()
    feed.put(*range(5 * AHEAD_ITEMS))
    async with reading(AsyncItems(feed.items)) as reader:
        await settle()
        assert feed.pulled == AHEAD_ITEMS
        await reader.read(10)
        await settle()
        assert feed.pulled == AHEAD_ITEMS + 10


async def test_closing_cancels_the_generator_where_it_waits_and_awaits_its_goodbye():
    feed = Subscription()
    async with reading(AsyncItems(feed.items)):
        await settle()
    assert feed.ended_by is asyncio.CancelledError
    assert feed.cleaned_in is feed.task is not None


async def test_closing_closes_a_generator_that_waits_at_its_yield():
    feed = Subscription()
    feed.put(*range(AHEAD_ITEMS))
    async with reading(AsyncItems(feed.items)):
        await settle()
    assert feed.ended_by is GeneratorExit
    assert feed.cleaned_in is feed.task


async def test_what_came_before_an_exception_is_given_before_it():
    feed = Subscription()
    feed.put(1, 2, OSError("connection lost"))
    async with reading(AsyncItems(feed.items)) as reader:
        await settle()
        assert (await reader.read(10))[0].values == [1, 2]
        with pytest.raises(OSError, match="connection lost"):
            await reader.read(10)
        with pytest.raises(OSError, match="connection lost"):
            await reader.wait()


async def test_the_end_is_said_when_all_is_read():
    feed = Subscription()
    feed.put(1, None)
    async with reading(AsyncItems(feed.items)) as reader:
        await reader.wait()
        await reader.read(10)
        with pytest.raises(EndOfInput):
            await reader.wait()


async def test_an_iterator_that_was_begun_is_not_taken_for_a_new_one():
    source = AsyncItems(Subscription().items())
    async with reading(source):
        pass
    with pytest.raises(sa.UsageError, match="Give AsyncItems a function"):
        await source.reader(None, 0, 0)


@pytest.mark.parametrize("wrong", [5, [1, 2], "text"])
async def test_what_is_no_async_iterator_is_refused(wrong):
    with pytest.raises(sa.UsageError, match="no async iterator"):
        AsyncItems(wrong)
    with pytest.raises(sa.UsageError, match="gave"):
        await AsyncItems(lambda: wrong).reader(None, 0, 0)


async def test_a_class_with_aiter_is_one_too():
    class Three:
        def __init__(self):
            self.n = 0

        def __aiter__(self):
            return self

        async def __anext__(self):
            self.n += 1
            if self.n > 3:
                raise StopAsyncIteration
            return self.n

    async with reading(AsyncItems(Three)) as reader:
        await settle()
        assert (await reader.read(10))[0].values == [1, 2, 3]


# In a job. ------------------------------------------------------------------------------------------------------------


def settings(**more):
    quick = sa.RestartPolicy(restarts_max=2, backoff_first=0.0, backoff_max=0.0)
    return sa.Settings(guarantee=Guarantee.AT_MOST_ONCE, checkpoint_every_ms=20, **{"restarts": quick, **more})


def counting(source):
    flow = sa.Pipeline("items")
    flow.source(source).key_by(lambda n: n % 3).count().to_view("counts")
    return flow


@pytest.mark.parametrize("bound", [sa.Bound.UNTIL_END, sa.Bound.FINISH])
async def test_a_bounded_run_ends_when_the_iterator_has_ended(data_dir, bound):
    async def items():
        for n in range(5_000):
            if n % 100 == 0:
                await asyncio.sleep(0)
            yield n

    async with sa.run(counting(AsyncItems(items)), data_dir, settings=settings(bound=bound)) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == {0: 1_667, 1: 1_667, 2: 1_666}


async def test_a_live_run_goes_on_when_the_iterator_has_ended(data_dir):
    async def items():
        yield 1

    async with sa.run(counting(AsyncItems(items)), data_dir, settings=settings()) as job:
        while job.status().regions[0].records < 1:
            await asyncio.sleep(0)
        await job.checkpoint()
        assert job.state == "running"
    assert job.state == "ended"


async def test_an_exception_of_the_iterator_is_a_failure_of_its_reader(data_dir):
    begun = []

    async def items():
        begun.append(len(begun))
        yield 0
        raise OSError("connection lost")

    with pytest.raises(sa.JobFailed, match="connection lost"):
        async with sa.run(counting(AsyncItems(items)), data_dir, settings=settings()) as job:
            await job.wait()
    assert begun == [0, 1, 2]


async def test_windows_close_behind_an_iterator_that_has_ended(data_dir):
    """An ended partition falls idle, and event time goes on with the clock."""

    async def items():
        for n in range(10):
            yield {"at": n * 10, "n": n}

    flow = sa.Pipeline("windows")
    stream = flow.source(AsyncItems(items)).event_time("at", idle_after="10ms").key_by(lambda _: "all")
    stream.window(sa.Tumbling("50ms")).count().to_view("counts")
    async with sa.run(flow, data_dir, settings=settings()) as job:
        while len(dict(job.views["counts"].items())) < 2:
            await asyncio.sleep(0.001)
