"""Awaited calls: how many, how long, how often; and the stage that has them in flight and does not wait for them."""

import asyncio
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, UsageError
from streamactors.core.signals import Barrier, End, Watermark
from streamactors.durable.store import Delta
from streamactors.engine.mailbox import Channel
from streamactors.flow.async_calls import Retry
from streamactors.flow.async_transforms import AsyncMap
from streamactors.flow.dead_letters import OnError
from streamactors.flow.operator import OperatorContext
from streamactors.flow.stage import Chain, Forward, Stage
from streamactors.testing.clock import ManualClock, SimClock
from streamactors.testing.idle import settle
from streamactors.testing.loop import SimLoop


class Origin:
    source, partition = "clicks", 3

    def originals(self, offsets):
        return [b"%d" % offset for offset in offsets]


ORIGIN = Origin()


def batch(*values, **columns):
    return Batch(list(values), offsets=list(values), origin=ORIGIN, **columns)


def in_loop(main, seed=1):
    """Run in virtual time: an hour of timeouts takes no time."""
    loop = SimLoop(Random(seed))
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


class Service:
    """The other side: answers when the test says so, and counts."""

    def __init__(self):
        self.asked, self.waiting, self.most = [], {}, 0

    async def __call__(self, value):
        self.asked.append(value)
        self.waiting[value] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.waiting))
        try:
            return await self.waiting[value]
        finally:
            del self.waiting[value]

    async def answer(self, *values):
        for value in values:
            self.waiting[value].set_result(f"answer {value}")
        await settle()


class Running:
    """A stage with one calling operator between two mailboxes, running."""

    def __init__(self, function, *, clock=None, durables=(), **options):
        self.clock = clock or ManualClock()
        self.operator = AsyncMap(function, **options)
        self.operator.open(OperatorContext("job/ask", None, None, clock=self.clock, random=Random(1)))
        chain = Chain([self.operator], [self.operator.on_batch], [0], list(durables))
        self.stage = Stage("job/ask", chain, clock=self.clock, interval=1.0)
        self.source = Channel("in", lambda: None, self.stage.wake)
        self.sink = Channel("out", self.stage.wake, lambda: None)
        self.stage.inputs, self.stage.outputs = [self.source], [self.sink]
        self.operator.emit = Forward(self.stage, self.sink)
        self.handed = []
        self.stage.hand_over = lambda name, epoch, deltas: self.handed.append(epoch)
        self.sequence = 0
        self.task = asyncio.ensure_future(self.stage.run())

    async def put(self, *messages):
        for message in messages:
            self.sequence += 1
            self.source.put(self.sequence, message, len(message) if isinstance(message, Batch) else 0)
            self.source.advance(self.sequence)
        await settle()

    def out(self):
        """What can be taken downstream now: up to what the stage has promised."""
        taken = []
        while self.sink.head is not None and self.sink.head[0] <= self.sink.progress:
            message = self.sink.take()[1]
            taken += message.values if isinstance(message, Batch) else [message]
        return taken

    async def stop(self):
        self.stage.stop()
        await asyncio.wait([self.task])


async def test_no_more_calls_are_in_flight_than_the_capacity_and_they_cross_batches():
    service = Service()
    running = Running(service, capacity=3)
    await running.put(batch(1, 2), batch(3, 4), batch(5, 6))
    assert list(service.waiting) == [1, 2, 3]
    await service.answer(2)
    assert list(service.waiting) == [1, 3, 4]
    await service.answer(1, 3, 4)
    await service.answer(5, 6)
    assert service.most == 3
    assert running.out() == [f"answer {value}" for value in range(1, 7)]
    await running.stop()


async def test_when_full_the_stage_takes_nothing_more_and_the_mailbox_fills():
    service = Service()
    running = Running(service, capacity=2)
    running.source.pace(16)
    await running.put(*(batch(value) for value in range(30)))
    assert len(service.asked) == 2 and running.source.records == 28 and not running.source.has_room
    await service.answer(0)
    assert len(service.asked) == 3 and running.source.records == 27
    await running.stop()


async def test_results_that_can_not_go_on_hold_back_the_calls_as_well():
    running = Running(_echo, capacity=5)
    running.sink.pace(16)
    await running.put(*(batch(*range(first, first + 500)) for first in range(0, 8_000, 500)))
    assert running.source.records > 2_000  # nothing is taken while answers wait for room
    assert running.sink.records == 500
    while running.out():
        await settle()
    assert running.operator.records_in == 8_000
    await running.stop()


async def _echo(value):
    return value


async def test_a_barrier_waits_for_the_calls_before_it_and_calls_behind_it_begin_meanwhile():
    service = Service()
    running = Running(service, capacity=9)
    await running.put(batch(1), Barrier(1, 7), batch(2))
    assert list(service.waiting) == [1, 2] and running.handed == []
    await service.answer(2)
    assert running.handed == [] and running.out() == []
    await service.answer(1)
    assert running.handed == [7]
    assert running.out() == ["answer 1", Barrier(1, 7), "answer 2"]
    await running.stop()


class Slices:
    """A Durable that is encoded in many slices."""

    full = False

    def __init__(self):
        self.left, self.durable = 0, []

    def freeze(self, epoch):
        self.left = 50

    def encode(self, entries):
        self.left -= 1
        return self.left <= 0

    def hand_over(self):
        return [Delta("d")]

    def committed(self, epoch):
        self.durable.append(epoch)


async def test_a_call_that_hangs_keeps_no_epoch_before_it_from_being_handed_over_and_committed():
    service, state = Service(), Slices()
    running = Running(service, capacity=1, durables=[state])
    await running.put(Barrier(1, 7), batch(1))
    assert running.handed == [7]
    running.stage.committed(7)
    await settle()
    assert state.durable == [7] and list(service.waiting) == [1]
    await running.stop()


async def test_as_answered_a_watermark_still_waits_for_the_records_before_it():
    service = Service()
    running = Running(service, capacity=9, ordered=False)
    await running.put(batch(1, 2), Watermark(99), batch(3))
    await service.answer(3, 2)
    assert running.out() == []  # 2 has left; its number may still bring more
    assert running.sink.records == 1
    await service.answer(1)
    assert running.out() == ["answer 2", "answer 1", Watermark(99), "answer 3"]
    await running.stop()


async def test_a_delete_is_not_called_for_and_the_rows_keep_their_identity():
    service = Service()
    running = Running(service, capacity=9)
    kinds = [Kind.EARLY, Kind.DELETE, Kind.ON_TIME]
    rows = batch(1, 2, 3, timestamps=[7, 8, 9], keys=["a", "b", "c"], windows=[(0, 1), (1, 2), (2, 3)], kinds=kinds)
    await running.put(rows)
    assert service.asked == [1, 3]
    await service.answer(1, 3)
    made = running.sink.take()[1]
    assert made.values == ["answer 1", None, "answer 3"]
    for column in ("timestamps", "keys", "windows", "kinds", "offsets", "origin"):
        assert getattr(made, column) is getattr(rows, column)
    await running.stop()


def test_each_try_has_its_timeout_and_the_last_one_fails_with_the_place():
    tries = []

    async def hang(value):
        tries.append(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    async def main():
        loop = asyncio.get_running_loop()
        retry = Retry(2, backoff_first=1.0)
        running = Running(hang, clock=SimClock(loop), capacity=5, timeout_ms=30_000, retry=retry)
        await running.put(batch(4))
        await asyncio.wait([running.task])
        return running.task.exception(), loop.time()

    error, ended = in_loop(main())
    assert isinstance(error, BadRecord) and isinstance(error.__cause__, TimeoutError)
    message = (
        "operator job/ask can't handle record 4 (clicks/3 at offset 4): TimeoutError: it has not answered within 30s"
    )
    assert str(error) == message
    assert len(tries) == 3 and 91.5 <= ended <= 93.1


async def test_retries_wait_longer_each_time_and_never_quite_as_long_as_the_last():
    tries, clock = [], ManualClock()

    async def fail(value):
        tries.append(clock.monotonic())
        raise OSError("away")

    running = Running(fail, clock=clock, retry=Retry(4, backoff_first=1.0, backoff_max=3.0))
    await running.put(batch(1))
    await clock.advance(60)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert len(gaps) == 4
    for gap, longest in zip(gaps, [1.0, 2.0, 3.0, 3.0], strict=True):
        assert longest / 2 <= gap <= longest
    assert gaps[2] != gaps[3]
    with pytest.raises(BadRecord, match=r"clicks/3 at offset 1\): OSError: away \(in test_async_map.py"):
        await running.task


async def test_a_call_that_succeeds_in_the_end_is_no_failure():
    failures = [OSError(), ValueError()]

    async def flaky(value):
        if failures:
            raise failures.pop()
        return value

    clock = ManualClock()
    running = Running(flaky, clock=clock, retry=Retry(2))
    await running.put(batch(1))
    await clock.advance(60)
    assert running.out() == [1]
    await running.stop()


async def test_a_function_that_raises_cancelled_error_is_an_error_and_not_tried_again():
    tries = []

    async def cancels(value):
        tries.append(value)
        raise asyncio.CancelledError

    running = Running(cancels, retry=Retry(5))
    await running.put(batch(1))
    with pytest.raises(BadRecord, match=r"offset 1\): RuntimeError: CancelledError, and nobody here had cancelled it"):
        await running.task
    assert tries == [1]


async def test_a_function_that_raises_no_exception_is_not_tried_again():
    class NoException(BaseException):
        pass

    async def odd(value):
        raise NoException

    running = Running(odd, retry=Retry(5))
    await running.put(batch(1))
    with pytest.raises(NoException):
        await running.task


async def test_a_function_that_was_never_async_says_so():
    async def not_really(value):
        return await value

    running = Running(not_really)
    await running.put(batch(1))
    with pytest.raises(BadRecord, match="can't be used in 'await' expression"):
        await running.task


async def test_when_a_call_fails_the_others_are_cancelled_and_gone():
    service = Service()

    async def ask(value):
        return await service(value)

    running = Running(ask, capacity=9)
    await running.put(batch(1, 2, 3))
    service.waiting[2].set_exception(OSError("away"))
    with pytest.raises(BadRecord, match="offset 2"):
        await running.task
    assert service.waiting == {} and running.operator.workers == {}


async def test_stopping_cancels_what_is_in_flight_and_does_not_wait_for_it():
    service = Service()
    running = Running(service, capacity=9)
    await running.put(batch(1, 2, 3))
    await running.stop()
    assert service.waiting == {} and running.task.exception() is None


async def test_draining_awaits_what_is_in_flight():
    service = Service()
    running = Running(service, capacity=9)
    await running.put(batch(1), Barrier(1, 1), End())
    assert not running.task.done()
    await service.answer(1)
    await running.task
    assert running.out() == ["answer 1", Barrier(1, 1), End()] and running.handed == [1]


async def test_a_record_that_comes_alone_costs_a_task_and_a_backlog_one_for_each_call_at_once():
    seen = set()

    async def who(value):
        await asyncio.sleep(0)
        seen.add(asyncio.current_task())
        return value

    running = Running(who, capacity=4)
    await running.put(batch(*range(100)))
    assert len(seen) == 4 and running.operator.workers == {}
    assert running.out() == list(range(100))
    await running.stop()


async def test_what_is_in_flight_can_be_seen():
    service, clock = Service(), ManualClock()
    running = Running(service, clock=clock, capacity=9)
    await running.put(batch(1))
    await clock.advance(5)
    await running.put(batch(2))
    assert (running.operator.in_flight.calling, running.operator.oldest_seconds) == (2, 5.0)
    await service.answer(1)
    assert (running.operator.in_flight.calling, running.operator.oldest_seconds) == (1, 0.0)
    await running.stop()


@pytest.mark.parametrize("wrong", [{"retries_max": -1}, {"backoff_first": -0.1}, {"backoff_max": float("nan")}])
def test_a_retry_that_can_not_be_followed_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Retry(**wrong)


@given(
    st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=12),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_same_comes_out_as_of_a_plain_loop(cuts, capacity, ordered, seed):
    """Delays, failures, the order of tasks and the cuts are drawn; the empty cuts are watermarks."""

    async def main():
        loop, random, started = asyncio.get_running_loop(), Random(seed), set()

        async def slow(value):
            started.add(value)
            await asyncio.sleep(random.random() * 3)  # virtual time
            if random.random() < 0.3:
                raise OSError("away")
            return value * 2

        running = Running(
            slow, clock=SimClock(loop), capacity=capacity, ordered=ordered, timeout_ms=2_500, retry=Retry(10_000)
        )
        out = []
        for number, values in enumerate(cuts):
            running.sequence += 1
            message = Batch(values, offsets=list(range(len(values)))) if values else Watermark(number)
            running.source.put(running.sequence, message, len(values))
            running.source.advance(running.sequence)
            await asyncio.sleep(random.random())
            out += running.out()
        running.source.put(running.sequence + 1, End())
        running.source.advance(running.sequence + 1)
        await running.task
        return out + running.out()

    def sections(messages):
        found = [[]]
        for message in messages:
            found[-1].append(message) if isinstance(message, int) else found.extend([message, []])
        return found if ordered else [sorted(part) if isinstance(part, list) else part for part in found]

    expected = []
    for number, values in enumerate(cuts):
        expected += [value * 2 for value in values] if values else [Watermark(number)]
    assert sections(in_loop(main(), seed)) == sections([*expected, End()])


@pytest.mark.parametrize("answer", ["a value", "an error"])
async def test_a_function_that_answers_its_cancellation_is_not_called_again_when_the_stage_closes(answer):
    asked = []

    async def stubborn(value):
        asked.append(value)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if answer == "an error":
                raise ValueError(value) from None
        return value

    running = Running(stubborn, capacity=2, retry=Retry(1_000, backoff_first=0))
    await running.put(batch(*range(50)))
    assert asked == [0, 1]
    await running.stop()
    await settle()
    assert asked == [0, 1]
    assert not running.operator.workers


@pytest.mark.parametrize("upsert", [False, True])
async def test_a_record_whose_calls_all_failed_is_left_out_in_its_place(upsert):
    """A row of an upsert stream takes back what went before it, unless it is the only one of its key."""

    async def refuse_odd(value):
        if value % 2:
            raise ValueError("odd")
        return value * 10

    running, dead = Running(refuse_odd, capacity=4), []
    running.operator.on_error = OnError.DEAD_LETTER
    running.operator.emit_dead = lambda letter: dead.append((running.stage.sequence, letter.values[0].offset))
    kinds = [Kind.UPDATE, Kind.UPDATE, Kind.FINAL, Kind.UPDATE] if upsert else None
    await running.put(batch(0, 1, 3, 4, kinds=kinds), batch(5))
    made = running.sink.take()[1]
    assert made.values == ([0, None, 40] if upsert else [0, 40])
    assert made.kinds == ([Kind.UPDATE, Kind.DELETE, Kind.UPDATE] if upsert else None)
    assert dead == [(1, 1), (1, 3), (2, 5)] and running.operator.refused_records == 3
    await running.stop()
