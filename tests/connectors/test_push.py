"""Push: a send returns when its records are safe, waits for room, and never for a job that has ended."""

import asyncio
from collections import Counter

import pytest
from msgspec import Struct

import streamactors as sa
from connectors.push import Push
from streamactors.core.connectors import EndOfInput, Guarantee
from streamactors.testing.idle import settle


class Submission(Struct):
    user: str
    n: int = 0


async def opened(push, start=0):
    await push.ends(None)
    return await push.reader(None, 0, start)


async def values(reader, records_max=100):
    got = await reader.read(records_max)
    return [] if got is None else got[0].values


async def test_a_send_returns_when_its_record_is_acknowledged():
    push = Push()
    reader = await opened(push, 7)
    sending = asyncio.create_task(push.send({"user": "u"}))
    await settle()
    batch, end = await reader.read(10)
    assert (batch.values, list(batch.offsets), batch.originals(), end) == ([{"user": "u"}], [7], [b'{"user":"u"}'], 8)
    await settle()
    assert not sending.done()
    await reader.acknowledge(8)
    await sending


async def test_values_of_one_call_stay_together_and_calls_keep_their_order():
    push = Push(records_max=2)
    reader = await opened(push)
    tasks = [asyncio.create_task(push.send_many([call * 10 + n for n in range(3)])) for call in range(4)]
    found, end = [], 0
    while len(found) < 12:
        await settle()
        batch, end = await reader.read(10)
        assert len(batch) <= 2
        found += batch.values
        await reader.acknowledge(end)
    assert found == [call * 10 + n for call in range(4) for n in range(3)]
    await asyncio.gather(*tasks)


async def test_a_sender_waits_while_there_is_no_room_by_records_or_bytes():
    for push in (Push(records_max=3), Push(bytes_max=12)):
        reader = await opened(push)
        senders = [asyncio.create_task(push.send("xx")) for _ in range(5)]
        await settle()
        assert len(await values(reader)) == 3
        await reader.acknowledge(1)
        await settle()
        assert senders[0].done() and not senders[1].done()
        assert len(await values(reader)) == 1, "what was read is kept until it is safe, and takes room until then"
        push.job_ended()
        await asyncio.gather(*senders, return_exceptions=True)


async def test_a_record_larger_than_all_the_room_is_taken_alone():
    push = Push(bytes_max=10)
    reader = await opened(push)
    sending = asyncio.create_task(push.send("x" * 100))
    await settle()
    assert await values(reader) == ["x" * 100]
    await reader.acknowledge(1)
    await sending


async def test_a_cancelled_sender_that_waited_for_room_is_not_counted_and_wakes_the_next():
    push = Push(records_max=1)
    reader = await opened(push)
    senders = [asyncio.create_task(push.send(n)) for n in range(4)]
    await settle()
    senders[1].cancel()  # waits for room
    senders[2].cancel()  # waits for its turn
    await settle()
    assert await values(reader) == [0]
    await reader.acknowledge(1)
    await settle()
    assert await values(reader) == [3]
    await reader.acknowledge(2)
    await asyncio.gather(*senders, return_exceptions=True)
    assert [sender.cancelled() for sender in senders] == [False, True, True, False]


async def test_a_cancelled_sender_whose_record_was_taken_does_not_disturb_the_others():
    push = Push()
    reader = await opened(push)
    senders = [asyncio.create_task(push.send(n)) for n in range(3)]
    await settle()
    senders[1].cancel()
    await settle()
    assert await values(reader) == [0, 1, 2]
    await reader.acknowledge(3)
    await senders[2]


async def test_what_is_not_safe_comes_again_in_the_next_attempt_and_what_a_checkpoint_holds_does_not():
    push = Push()
    reader = await opened(push)
    senders = [asyncio.create_task(push.send(n)) for n in range(6)]
    await settle()
    await reader.read(4)
    await reader.acknowledge(1)
    await reader.close()
    again = await push.reader(None, 0, 3)  # the checkpoint holds 3, only one of which was acknowledged
    await settle()
    assert [sender.done() for sender in senders] == [True] * 3 + [False] * 3
    batch, end = await again.read(10)
    assert (batch.values, list(batch.offsets), end) == ([3, 4, 5], [3, 4, 5], 6)
    await again.acknowledge(6)
    await asyncio.gather(*senders)


async def test_an_offset_of_another_life_says_nothing_about_what_was_never_given():
    push = Push()
    reader = await opened(push, 5)
    sending = asyncio.create_task(push.send("a"))
    await settle()
    await reader.close()
    assert await values(await push.reader(None, 0, 100)) == ["a"]
    assert not sending.done()
    push.job_ended()
    with pytest.raises(sa.Unacknowledged, match=r"1 of 1 records .* may or may not"):
        await sending


async def test_a_job_that_ends_answers_every_sender():
    push = Push(records_max=2)
    reader = await opened(push)
    first = asyncio.create_task(push.send_many([1, 2, 3]))
    second = asyncio.create_task(push.send(4))
    await settle()
    await reader.read(1)
    await reader.acknowledge(1)
    await settle()
    push.job_ended()
    with pytest.raises(sa.Unacknowledged, match="2 of 3 records"):
        await first
    with pytest.raises(sa.UsageError, match="nothing was taken"):
        await second


async def test_a_call_whose_taken_records_are_all_safe_hears_of_those_that_were_not_taken():
    push = Push(records_max=1)
    reader = await opened(push)
    sending = asyncio.create_task(push.send_many([1, 2, 3]))
    for end in (1, 2):
        await settle()
        await reader.read(1)
        if end == 1:
            await reader.acknowledge(end)
    push._session.acknowledge(2)
    push.job_ended()
    with pytest.raises(sa.Unacknowledged, match="1 more were not taken"):
        await sending


@pytest.mark.parametrize("closed", [False, True])
async def test_nobody_waits_for_a_job_that_is_not_there(closed):
    push = Push(id="answers")
    if closed:
        push.close()
    with pytest.raises(sa.UsageError, match="answers was closed" if closed else "no job reads push answers"):
        await push.send(1)


async def test_a_value_of_another_type_is_the_senders_error():
    push = Push(Submission)
    await opened(push)
    for wrong in ({"user": 7}, {"n": 1}, Submission(7), object(), 5):
        with pytest.raises(sa.UsageError, match="was not taken"):
            await push.send_many([Submission("u"), wrong])
    assert push._session.records == []


async def test_a_sender_may_change_its_object_afterwards():
    push, value = Push(), {"user": "u"}
    reader = await opened(push)
    sending = asyncio.create_task(push.send(value))
    await settle()
    value["user"] = "v"
    assert await values(reader) == [{"user": "u"}]
    push.job_ended()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_push_of_two_jobs_is_refused():
    push = Push()
    await opened(push)
    with pytest.raises(sa.UsageError, match="read by a running job already"):
        await push.ends(None)


async def test_sending_from_another_loop_is_refused():
    push = Push()
    await opened(push)
    with pytest.raises(sa.UsageError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(push.send(1)))


async def test_a_closed_push_ends_when_all_is_read():
    push = Push()
    reader = await opened(push)
    sending = asyncio.create_task(push.send(1))
    await settle()
    waiting = asyncio.create_task(reader.wait())
    await waiting
    assert await values(reader) == [1]
    waiting = asyncio.create_task(reader.wait())
    await settle()
    push.close()
    with pytest.raises(EndOfInput):
        await waiting
    await reader.acknowledge(1)
    await sending


# In a job. ------------------------------------------------------------------------------------------------------------


def counting(push, through=False, fail_once_at=None):
    flow = sa.Pipeline("pushed")
    stream = flow.source(push)
    if through:
        stream = stream.through_log("pushed")
    failed = []

    def once(value):
        if fail_once_at is not None and value.n == fail_once_at and not failed:
            failed.append(value)
            raise OSError("once")
        return value

    stream.map(once).key_by("user").count().to_view("counts")
    return flow


def settings(guarantee, **more):
    quick = sa.RestartPolicy(restarts_max=3, backoff_first=0.0, backoff_max=0.0)
    return sa.Settings(guarantee=guarantee, checkpoint_every_ms=20, **{"restarts": quick, **more})


@pytest.mark.parametrize("through", [False, True])
async def test_what_was_sent_when_send_returns_is_counted_and_survives(data_dir, through):
    guarantee = Guarantee.EXACTLY_ONCE if through else Guarantee.AT_LEAST_ONCE
    push = sa.Push(Submission)
    async with sa.run(counting(push, through), data_dir, settings=settings(guarantee)) as job:
        await asyncio.gather(*(push.send(Submission(user)) for user in "abca" * 50))
        await push.send_many([Submission("a")] * 20_000)
        await job.stop()  # no last checkpoint: what is safe must be safe without one
    again = sa.Push(Submission)
    async with sa.run(counting(again, through), data_dir, settings=settings(guarantee)) as job:
        await job.catch_up()
        assert dict(job.views["counts"].items()) == {"a": 20_100, "b": 50, "c": 50}


@pytest.mark.parametrize("through", [False, True])
async def test_an_attempt_that_fails_loses_nothing_that_was_sent(data_dir, through):
    guarantee = Guarantee.EXACTLY_ONCE if through else Guarantee.AT_LEAST_ONCE
    push = Push(Submission)
    flow = counting(push, through, fail_once_at=300)
    async with sa.run(flow, data_dir, settings=settings(guarantee)) as job:
        sent = [Submission("abc"[n % 3], n) for n in range(900)]
        await asyncio.gather(*(push.send(one) for one in sent))
        await job.catch_up()
        counts, expected = dict(job.views["counts"].items()), Counter(one.user for one in sent)
        assert job.status().regions[0].restarts == 1
        assert counts == expected if through else all(counts[user] >= expected[user] for user in expected)


async def test_senders_hear_that_the_job_has_failed(data_dir):
    push = Push(Submission)
    flow = counting(push, fail_once_at=1)
    none = sa.RestartPolicy(restarts_max=0)
    with pytest.raises(sa.JobFailed):  # noqa: PT012 - the senders' errors come before the job's
        async with sa.run(flow, data_dir, settings=settings(Guarantee.AT_LEAST_ONCE, restarts=none)):
            with pytest.raises(sa.Unacknowledged):
                await push.send(Submission("u", 1))
            with pytest.raises(sa.UsageError, match="no job reads"):
                await push.send(Submission("u", 2))


async def test_senders_hear_that_a_job_could_not_start(data_dir):
    push = Push()
    flow = sa.Pipeline("pushed")
    flow.source(push).key_by("user").count().to_view("a")
    flow.topic("none").key_by("user").count().to_view("b")
    with pytest.raises(sa.UsageError, match="there is no topic none"):
        async with sa.run(flow, data_dir, settings=settings(Guarantee.AT_LEAST_ONCE)):
            pass
    with pytest.raises(sa.UsageError, match="no job reads"):
        await push.send(1)


async def test_draining_answers_who_was_read_and_refuses_who_was_not(data_dir):
    push = Push(Submission)
    answered = []

    async def send(n):
        try:
            await push.send(Submission("u", n))
            answered.append(n)
        except (sa.Unacknowledged, sa.UsageError):
            pass

    async with sa.run(counting(push), data_dir, settings=settings(Guarantee.AT_LEAST_ONCE)) as job:
        tasks = [asyncio.create_task(send(n)) for n in range(500)]
        await push.send(Submission("u", -1))
        tasks += [asyncio.create_task(send(n)) for n in range(500, 1_000)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    async with sa.run(counting(Push(Submission)), data_dir, settings=settings(Guarantee.AT_LEAST_ONCE)) as job:
        assert job.views["counts"].get("u") >= len(answered) + 1


async def test_a_bounded_run_ends_with_close(data_dir):
    push = Push(Submission)
    flow = counting(push)
    bounded = settings(Guarantee.AT_LEAST_ONCE, bound=sa.Bound.UNTIL_END)
    async with sa.run(flow, data_dir, settings=bounded) as job:
        await push.send_many([Submission("u")] * 10)
        push.close()
        await job.wait()
        assert dict(job.views["counts"].items()) == {"u": 10}


@pytest.mark.parametrize("through", [False, True])
async def test_at_most_once_goes_on_after_a_failure_and_repeats_nothing(data_dir, through):
    push = Push(Submission)
    flow = counting(push, through, fail_once_at=1)
    async with asyncio.timeout(20), sa.run(flow, data_dir, settings=settings(Guarantee.AT_MOST_ONCE)) as job:
        await push.send(Submission("before", 0))
        await push.send(Submission("u", 1))
        while job.status().regions[0].restarts == 0 or job.status().regions[0].state != "running":
            await asyncio.sleep(0)
        await push.send(Submission("after", 2))
        while job.views["counts"].get("after") is None:
            await asyncio.sleep(0.001)
        assert dict(job.views["counts"].items()).get("before", 1) == 1
