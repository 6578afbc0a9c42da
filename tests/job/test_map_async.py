"""map_async in a job: checkpoints, crashes, ends, windows; and what is refused when the graph is built."""

import asyncio
from collections import Counter
from random import Random

import pytest

import streamactors as sa
from streamactors.engine.actor import STOP_GRACE_SECONDS
from streamactors.testing.idle import settle
from streamactors.testing.source import Crash, Pause, Script
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, CrashAtTime, Ended, World
from tests.job.test_runner import until_read, values

QUICK = sa.RestartPolicy(restarts_max=3, backoff_first=0.0, backoff_max=0.0)


def settings(**more):
    return sa.Settings(**{"bound": sa.Bound.UNTIL_END, "checkpoint_every_ms": 10_000, "restarts": QUICK, **more})


async def double(value):
    return value * 2


async def doubled_into_topic(stream, flow, data_dir, **more):
    stream.to_topic("out")
    async with sa.run(flow, data_dir, settings=settings(**more)) as job:
        await job.wait()
        return await values(job.log, "out")


async def test_results_come_in_the_order_of_the_records(data_dir):
    turn = asyncio.Condition()
    done = []

    async def last_first(value):
        async with turn:
            await turn.wait_for(lambda: len(done) == 9 - value)
            done.append(value)
            turn.notify_all()
        return value

    flow = sa.Pipeline("calls")
    stream = flow.items(range(10)).map_async(last_first, capacity=10)
    assert await doubled_into_topic(stream, flow, data_dir) == list(range(10))
    assert done == list(range(9, -1, -1))


async def test_a_lambda_that_hands_out_a_coroutine_will_do(data_dir):
    flow = sa.Pipeline("calls")
    stream = flow.items([1, 2]).map_async(lambda value: double(value + 1))
    assert await doubled_into_topic(stream, flow, data_dir) == [4, 6]


@pytest.mark.parametrize("bound", [sa.Bound.UNTIL_END, sa.Bound.FINISH])
async def test_a_bounded_run_waits_for_the_calls_before_event_time(data_dir, bound):
    async def slow(value):
        for _ in range(100 if value > 3 else 0):  # of the last batch, while the one before is taken
            await asyncio.sleep(0)
        return value

    flow = sa.Pipeline("calls")
    flow.items(range(6)).map_async(slow).event_time(None).key_by(None).count().to_view("counts")
    async with sa.run(flow, data_dir, settings=settings(bound=bound, batch_records=2)) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == dict.fromkeys(range(6), 1)


async def test_it_may_stand_before_event_time(data_dir):
    flow = sa.Pipeline("calls")
    counts = flow.items(range(30)).map_async(double, ordered=False).event_time(None).key_by(None)
    counts.window(sa.Tumbling(10)).early(every="1s").count().to_view("counts")
    async with sa.run(flow, data_dir, settings=settings()) as job:
        await job.wait()
        assert sum(dict(job.views["counts"].items()).values()) == 30


async def test_a_checkpoint_waits_for_the_calls_before_it_and_status_says_so(data_dir):
    answers = asyncio.Event()

    async def slow(value):
        await answers.wait()
        return value

    flow = sa.Pipeline("calls")
    flow.items([1, 2, 3]).map_async(slow, name="ask").key_by(None).count().to_view("counts")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.LIVE)) as job:
        await until_read(job, 3)
        asking = asyncio.create_task(job.checkpoint())
        await settle()
        (region,) = job.status().regions
        (ask,) = [operator for stage in region.stages for operator in stage.operators if operator.name == "calls/ask"]
        assert ask.calls == 3 and ask.oldest_call_ms >= 0
        assert any(name.startswith("calls/ask (3 calls in flight, the oldest for ") for name in region.waiting_for)
        assert not asking.done()
        answers.set()
        await asking
        assert dict(job.views["counts"].items()) == {1: 1, 2: 1, 3: 1}
        assert job.status().regions[0].waiting_for == []


async def test_a_crash_repeats_the_calls_in_flight_and_the_result_is_exact(data_dir):
    answers, asked = asyncio.Event(), Counter()

    async def ask(value):
        asked[value] += 1
        if asked[1] > 1:  # the second attempt
            answers.set()
        await answers.wait()
        return value * 2

    flow = sa.Pipeline("calls")
    script = Script([1, 2, Pause(), 3, Crash(), 4])
    flow.source(script).map_async(ask, capacity=9).to_topic("out")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.LIVE)) as job:
        await until_read(job, 2)
        script.go_on()
        await asyncio.wait_for(answers.wait(), 20)
        await job.catch_up()
        assert await values(job.log, "out") == [2, 4, 6, 8]
    assert asked[1] == 2 and asked[4] == 1


async def test_a_drain_awaits_the_calls_in_flight(data_dir):
    answers = asyncio.Event()

    async def slow(value):
        await answers.wait()
        return value

    flow = sa.Pipeline("calls")
    flow.items([1, 2, 3]).map_async(slow).to_topic("out")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.LIVE)) as job:
        await until_read(job, 3)
        draining = asyncio.create_task(job.drain())
        await settle()
        assert not draining.done()
        answers.set()
        await draining
        assert await values(job.log, "out") == [1, 2, 3]


async def test_a_stop_with_hanging_calls_does_not_wait_for_them(data_dir):
    cancelled = []

    async def hang(value):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(value)
            raise

    flow = sa.Pipeline("calls")
    flow.items([1, 2, 3]).map_async(hang, timeout=None).to_topic("out")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.LIVE)) as job:
        await until_read(job, 3)
        await settle()
        started = asyncio.get_running_loop().time()
        await job.stop()
        assert asyncio.get_running_loop().time() - started < STOP_GRACE_SECONDS / 2
    assert cancelled == [1, 2, 3]


async def test_a_call_that_fails_every_time_fails_the_job_with_operator_record_and_place(data_dir):
    tried = []

    async def refuse(value):
        tried.append(value)
        raise OSError("away")

    flow = sa.Pipeline("calls")
    stream = flow.items([7]).map_async(refuse, name="ask", retries=sa.Retry(2, backoff_first=0.0))
    once = sa.RestartPolicy(restarts_max=1, backoff_first=0.0)
    with pytest.raises(sa.JobFailed, match=r"calls/ask can't handle record 7 \(items/0 at offset 0\): OSError: away"):
        await doubled_into_topic(stream, flow, data_dir, restarts=once)
    assert len(tried) == 2 * 3


async def test_behind_windows_rows_keep_their_identity_and_deletes_pass(data_dir):
    called = []

    async def shown(count):
        called.append(count)
        await asyncio.sleep(0)
        return f"{count} times"

    flow = sa.Pipeline("calls")
    events = flow.items([(0, "a"), (1, "a"), (2, "b"), (12, "a"), (25, "a")]).event_time(lambda e: e[0])
    counts = events.key_by(lambda e: e[1]).window(sa.Tumbling(10)).early(every="1s").count()
    counts.filter(lambda count: count > 1).map_async(shown).to_view("counts")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.FINISH)) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == {("a", 0): "2 times"}
    assert None not in called


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("ordered", [True, False])
async def test_no_record_becomes_late_behind_slow_calls(data_dir, parts, ordered):
    random = Random(parts)
    events = [(f"k{random.randrange(5)}", 10 * at + random.randrange(20)) for at in range(300)]

    async def slow(event):
        for _ in range(random.randrange(8)):
            await asyncio.sleep(0)
        return event

    flow = sa.Pipeline("calls", parts=parts)
    source = flow.items(events).event_time(lambda e: e[1], disorder=20).map_async(slow, capacity=20, ordered=ordered)
    results = source.key_by(lambda e: e[0]).window(sa.Tumbling(100)).count()
    results.to_view("counts")
    results.late.map(lambda e: e[1]).to_view("late", key=lambda at: at)
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.FINISH, batch_records=7)) as job:
        await job.wait()
        found = dict(job.views["counts"].items())
        assert dict(job.views["late"].items()) == {}
    assert found == dict(Counter((key, at - at % 100) for key, at in events))


@pytest.mark.parametrize("batch_records", [1, 4, 1_024])
async def test_results_that_meet_again_from_several_parts_are_the_same_for_any_cut(data_dir, batch_records):
    random = Random(5)

    async def slow(pair):
        await asyncio.sleep(random.random() * 0.001)
        return pair

    flow = sa.Pipeline("calls", parts=3)
    numbered = flow.items(range(200)).key_by(lambda n: n % 7).map_with_state(lambda n, seen: (n, (seen or 0) + 1))
    stream = numbered.map_async(slow, capacity=8)
    out = await doubled_into_topic(stream, flow, data_dir, batch_records=batch_records)
    assert out == list(range(200))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_crashes_whenever_the_result_is_exact(tmp_path, seed, record_property):
    """Simulated: calls take their time and fail, processes and machines die, and a topic holds each result once."""
    record_property("said", f"seed {seed}")
    random = Random(seed)
    world, wanted = World(Random(seed), tmp_path), 60

    def life(bound):
        async def run(process):
            async def ask(value):
                await process.ports.clock.sleep(process.random.random() ** 2 * 3)
                if process.random.random() < 0.1:
                    raise OSError("away")
                return value * 2

            flow = sa.Pipeline("calls")
            stream = flow.topic("numbers", int)
            options = {"capacity": 1 + seed % 7, "timeout": "2s", "retries": sa.Retry(50)}
            stream.map_async(ask, **options).to_topic("ordered")
            stream.map_async(ask, ordered=False, **options).to_topic("answered")

            @flow.before_start
            async def fill(log):
                if await log.topic("numbers") is None:
                    await log.create_topic("numbers")
                topic = await log.topic("numbers")
                end = topic.partition(0).durable_end()
                if end < wanted:
                    await topic.append_many([b"%d" % number for number in range(end, wanted)])

            chosen = settings(bound=bound, checkpoint_every_ms=700, batch_records=random.choice([1, 5, 50]))
            async with sa.run(flow, process.data_dir, settings=chosen, ports=process.ports) as job:
                if bound is sa.Bound.LIVE:
                    await process.ports.clock.sleep(random.random() * 20)
                else:
                    await job.wait()
                return await values(job.log, "ordered"), await values(job.log, "answered")

        return run

    for _ in range(4):
        plan = random.choice(
            [
                CrashAtTime(random.random() * 15),
                CrashAtLabel("after Store.commit", random.randint(1, 4)),
                CrashAtLabel("before Store.commit", random.randint(1, 4)),
                CrashAtPoint(random.randint(1, 300)),
                None,
            ]
        )
        world.run(life(sa.Bound.LIVE), plan)
    outcome = world.run(life(sa.Bound.UNTIL_END))
    assert isinstance(outcome, Ended)
    ordered, answered = outcome.result
    assert ordered == [2 * number for number in range(wanted)]
    assert sorted(answered) == ordered


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"capacity": True}, "capacity=True"),
        ({"timeout": 0}, "lets nothing answer"),
        ({"timeout": "soon"}, "'soon' is not a duration"),
        ({"retries": -1}, "retries_max=-1"),
        ({"retries": "often"}, "retries='often'"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_their_place(options, words):
    with pytest.raises(sa.PipelineError, match=rf"map_async at test_map_async.py:\d+: .*{words}"):
        sa.Pipeline("calls").items([1]).map_async(double, **options)


def test_corrections_can_not_go_on_as_they_answer():
    counts = sa.Pipeline("calls").items([1]).key_by(None).count()
    with pytest.raises(sa.PipelineError, match="an old one could come last"):
        counts.map_async(double, ordered=False)
    counts.map_async(double)


def test_what_is_no_function_is_refused():
    with pytest.raises(sa.PipelineError, match="7 is no function"):
        sa.Pipeline("calls").items([1]).map_async(7)
