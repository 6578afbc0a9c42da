"""The watchdog: when it speaks is pure; whom it names is tried with functions that block until they have been named."""

import asyncio
import logging
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.durable.realtime import real_ports
from streamactors.job import watchdog
from streamactors.job.watchdog import Heartbeat, Look, Patience, frames_of_loop, running_in
from streamactors.testing.clock import ManualClock
from streamactors.testing.idle import settle


class TestWhenItSpeaks:
    def test_at_the_bound_then_at_twice_the_time_before(self):
        patience = Patience(0.5)
        assert [seconds for seconds in range(20) if patience.is_up(seconds)] == [1, 2, 4, 8, 16]

    def test_a_loop_that_answers_is_only_asked_again(self):
        heartbeat = Heartbeat(0.5)
        assert heartbeat.look(0.0, answered=-1.0) == Look(ask=True)
        assert heartbeat.look(0.125, answered=0.001) == Look(ask=True)

    def test_one_that_does_not_is_told_at_the_bound_again_later_and_when_it_is_over(self):
        heartbeat = Heartbeat(0.5)
        heartbeat.look(0.0, answered=-1.0)
        looks = {now: heartbeat.look(now, answered=-1.0) for now in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)}
        assert {now: look.blocked for now, look in looks.items() if look.blocked} == {0.5: 0.5, 1.0: 1.0, 2.0: 2.0}
        assert heartbeat.look(2.5, answered=2.25) == Look(ask=True, ended=2.25)
        assert heartbeat.look(2.75, answered=2.5) == Look(ask=True)

    def test_a_look_that_is_late_by_a_bound_says_so_because_c_code_kept_the_thread_too(self):
        heartbeat = Heartbeat(0.5, started=0.0)
        assert heartbeat.look(0.9, answered=-1.0) == Look(ask=True)
        assert heartbeat.look(2.9, answered=0.91) == Look(ask=True, blocked=1.5)
        assert heartbeat.look(3.4, answered=2.95) == Look(ask=True)

    def test_a_silence_that_was_not_told_has_no_end_to_tell(self):
        heartbeat = Heartbeat(0.5)
        heartbeat.look(0.0, answered=-1.0)
        heartbeat.look(0.25, answered=-1.0)
        assert heartbeat.look(0.5, answered=0.45) == Look(ask=True)

    @given(st.integers(0, 10_000), st.integers(1, 5_000), st.integers(50, 2_000))
    def test_below_the_bound_nobody_is_named_and_from_twice_the_bound_on_somebody_is(self, begin, length, bound):
        """The oracle: a loop that is blocked once, and answers at once otherwise; looks come at their times."""
        heartbeat, answers, told = Heartbeat(bound), [-1.0], []
        for number in range((begin + length) // bound + 3):
            now = number * bound
            look = heartbeat.look(now, max(answer for answer in answers if answer <= now))
            told += [look.blocked] if look.blocked else []
            if look.ask:
                answers.append(begin + length if begin <= now < begin + length else now)
        if length < bound:
            assert not told
        if length >= 2 * bound:
            assert told


class Named(logging.Handler):
    """Lets go whatever blocks when the watchdog has spoken of this file: a busy machine may give it other cause."""

    def __init__(self):
        super().__init__()
        self.spoken = threading.Event()
        self.lines = []

    def emit(self, record):
        if "test_watchdog.py" in record.getMessage():
            self.lines.append(record.getMessage())
            self.spoken.set()


@pytest.fixture
def named():
    logger, handler = logging.getLogger("streamactors.watchdog"), Named()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def pipeline(function, name="job"):
    flow = sa.Pipeline(name)
    flow.items([1]).map(function).key_by(lambda value: value).count().to_view("counts")
    return flow


SETTINGS = sa.Settings(bound=sa.Bound.UNTIL_END, watchdog_ms=100)


async def test_a_function_that_blocks_the_loop_is_named_with_its_line_and_operator(data_dir, named):
    def blocks(value):
        assert named.spoken.wait(30)  # C code holds it; the frame of the user is what can be named
        return value

    async with sa.run(pipeline(blocks), data_dir, settings=SETTINGS) as job:
        await job.wait()
        while len(named.lines) < 2:  # when it is over
            await asyncio.sleep(0)
    assert "the event loop has been blocked for 0." in named.lines[0]
    assert ".blocks (test_watchdog.py:" in named.lines[0]
    assert "named.spoken.wait(30)" in named.lines[0]
    assert "called by job/map" in named.lines[0]
    assert named.lines[1].startswith("the event loop runs again: it was blocked for ")


async def test_c_code_that_keeps_the_lock_of_the_interpreter_is_named_when_it_returns(data_dir, named):
    def heavy(value):
        size = 1_000_000
        while not named.lines and size < 10**10:  # until it takes long enough
            sum(range(size))
            size *= 2
        return value

    async with sa.run(pipeline(heavy), data_dir, settings=SETTINGS) as job:
        await job.wait()
    assert ".heavy (test_watchdog.py:" in named.lines[0]


async def test_a_handler_of_the_service_around_is_named_too(data_dir, named):
    async def handler():
        named.spoken.wait(30)

    async with sa.run(pipeline(int), data_dir, settings=SETTINGS) as job:
        await job.wait()
        await asyncio.create_task(handler())
    assert "handler (test_watchdog.py:" in named.lines[0] and "called by no operator" in named.lines[0]


async def test_a_library_in_between_is_not_blamed_but_whoever_called_it(data_dir, named, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "slowlib.py").write_text("def wait(event):\n    event.wait(30)\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(watchdog, "_INSTALLED", (str(folder),))
    import slowlib

    def mine(value):
        slowlib.wait(named.spoken)
        return value

    async with sa.run(pipeline(mine), data_dir, settings=SETTINGS) as job:
        await job.wait()
    assert ".mine (test_watchdog.py:" in named.lines[0]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "streamactors/watchdog"]


async def test_there_is_one_thread_for_a_loop_as_long_as_a_job_runs_in_it(data_dir):
    assert not threads()
    async with sa.run(pipeline(int, "one"), data_dir):
        async with sa.run(pipeline(int, "two"), data_dir):
            assert len(threads()) == 1
        assert len(threads()) == 1
    assert not threads()


async def test_it_is_turned_off_by_a_bound_of_0(data_dir):
    async with sa.run(pipeline(int), data_dir, settings=replace(SETTINGS, watchdog_ms=0)) as job:
        assert not threads()
        await job.wait()


@pytest.mark.parametrize("wrong", ["watchdog_ms", "await_ms"])
def test_a_negative_bound_is_refused(wrong):
    with pytest.raises(sa.UsageError, match=f"{wrong}=-1 is below 0"):
        sa.Settings(**{wrong: -1})


async def test_an_idle_loop_blames_nobody():
    """What is left of its stack is Python's own; so a process that was suspended as a whole blames nobody either."""
    outside, found, me = frames_of_loop(), [], threading.get_ident()

    def look():
        while found[-1:] != [(None, None)] and len(found) < 1_000_000:  # until the loop has come to rest
            found.append(running_in(sys._current_frames()[me], outside))

    await asyncio.to_thread(look)
    assert found[-1] == (None, None)


class TestWhatIsAwaited:
    """In the hands of the test: the clock, and when the call returns."""

    async def hanging(self, data_dir, caplog, flow, play):
        clock = ManualClock()
        ports = replace(real_ports(), clock=clock)
        settings = sa.Settings(watchdog_ms=0, await_ms=10_000)
        async with sa.run(flow, data_dir, ports=ports, settings=settings) as job:
            with caplog.at_level(logging.WARNING):
                await play(job, clock, job._regions[0])
        await ports.threads.close()

    async def test_a_call_that_does_not_return_is_named_once_with_the_line_that_it_awaits_at(self, data_dir, caplog):
        gate, called = asyncio.Event(), asyncio.Event()

        async def enrich(value):
            called.set()
            await gate.wait()  # the service
            return value

        async def play(job, clock, region):
            await called.wait()
            await clock.advance(9)
            region.look()
            assert "has awaited" not in caplog.text
            (reason,) = job.status().regions[0].reasons[:1]
            assert reason.startswith("operator job/map has awaited ") and reason.endswith(" for 9.0 s")
            assert ".enrich (test_watchdog.py:" in reason and "await gate.wait()  # the service" in reason
            for _ in range(3):
                await clock.advance(2)
                region.look()
            assert caplog.text.count("has awaited") == 1
            assert "operator job/map has awaited " in caplog.text and " for 11 s. No checkpoint" in caplog.text
            gate.set()
            await settle()

        await self.hanging(data_dir, caplog, pipeline(enrich), play)

    async def test_of_many_calls_the_oldest_is_the_one(self, data_dir, caplog):
        gates, called = {}, asyncio.Event()

        async def quick(value):
            await gates.setdefault(value, asyncio.Event()).wait()

        async def stuck(value):
            await gates.setdefault(value, asyncio.Event()).wait()
            called.set()

        async def either(value):
            gates[value] = asyncio.Event()
            if len(gates) == 3:
                called.set()
            await (stuck if value == 1 else quick)(value)
            return value

        flow = sa.Pipeline("job")
        flow.items([1, 2, 3]).map_async(either, capacity=3).key_by(lambda value: value).count().to_view("counts")

        async def play(job, clock, region):
            await called.wait()
            await clock.advance(20)
            region.look()
            assert ".stuck (test_watchdog.py:" in caplog.text and ".quick" not in caplog.text
            assert any("the oldest of 3 calls" in reason for reason in job.status().regions[0].reasons)
            for gate in gates.values():
                gate.set()
            await settle()

        await self.hanging(data_dir, caplog, flow, play)

    async def test_a_new_call_has_its_own_time(self, data_dir, caplog):
        gates, called = [], asyncio.Queue()

        async def enrich(value):
            gates.append(asyncio.Event())
            called.put_nowait(value)
            await gates[-1].wait()
            return value

        flow = sa.Pipeline("job")
        flow.items([1, 2]).map(enrich).key_by(lambda value: value).count().to_view("counts")

        async def play(job, clock, region):
            for _ in range(2):
                await called.get()
                await clock.advance(6)
                region.look()
                gates[-1].set()
            await settle()
            assert "has awaited" not in caplog.text

        await self.hanging(data_dir, caplog, flow, play)
