"""A job as a service embeds it: start, views, checkpoints, drain, stop, restarts, and what is refused."""

import asyncio
import logging
import re
import threading

import pytest
from msgspec import Struct, json

import streamactors as sa
from connectors.files import TextLines
from streamactors.core.connectors import Guarantee, Replay
from streamactors.engine.restarts import RestartPolicy

QUICK = RestartPolicy(restarts_max=2, backoff_first=0.0, backoff_max=0.0)


class Event(Struct):
    user: str
    at: int


def events(count, first=0):
    return [json.encode({"user": f"u{i % 3}", "at": 1_000 * i}) for i in range(first, first + count)]


def counting(name="counts", **more):
    flow = sa.Pipeline(name, **more)
    flow.topic("events", Event).key_by("user").count().to_view("counts")
    return flow


async def filled(data_dir, count=9, partitions=1):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events", partitions)
        await topic.append_many(events(count))


def settings(**more):
    return sa.Settings(**{"checkpoint_every_ms": 10_000, "restarts": QUICK, **more})


async def run_to_end(flow, data_dir, **more):
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.UNTIL_END, **more)) as job:
        await job.wait()
        return {name: dict(job.views[name].items()) for name in job.views.names()}


async def test_after_a_checkpoint_the_view_shows_what_was_read_before_it(data_dir):
    await filled(data_dir)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        await until_read(job, 9)
        await job.checkpoint()
        assert dict(job.views["counts"].items()) == {"u0": 3, "u1": 3, "u2": 3}


async def until_read(job, offset):
    """Wait until the sequencer has numbered everything up to *offset*."""
    while sum(p.offset for region in job.status().regions for p in region.partitions) < offset:
        await asyncio.sleep(0)


async def test_leaving_the_block_drains(data_dir):
    await filled(data_dir)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        await until_read(job, 9)
    assert job.state == "ended"
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        assert dict(job.views["counts"].items()) == {"u0": 3, "u1": 3, "u2": 3}


async def dividing(data_dir):
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        await until_read(job, 9)
        1 / 0  # noqa: B018 - what a handler's bug does


async def test_an_exception_in_the_block_stops_without_a_last_checkpoint(data_dir):
    await filled(data_dir)
    with pytest.raises(ZeroDivisionError):
        await dividing(data_dir)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        assert dict(job.views["counts"].items()) == {}


async def test_records_appended_by_a_handler_show_after_the_next_checkpoint(data_dir):
    await filled(data_dir, 0 + 3)
    async with sa.run(counting(), data_dir, settings=settings(checkpoint_every_ms=5)) as job:
        topic = await job.log.topic("events")
        await topic.append_many(events(3))
        while dict(job.views["counts"].items()) != {"u0": 2, "u1": 2, "u2": 2}:
            await asyncio.sleep(0)


async def test_catching_up_reads_your_own_writes(data_dir):
    await filled(data_dir, 3)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        topic = await job.log.topic("events")
        for more in range(1, 4):
            await topic.append_many(events(3))
            await job.catch_up()
            assert job.views["counts"]["u0"] == 1 + more


async def test_a_region_that_has_ended_does_not_keep_the_others_from_checkpoints(data_dir):
    await filled(data_dir, 3)
    flow = counting()
    flow.items([]).key_by(None).count().to_view("nothing")
    async with sa.run(flow, data_dir, settings=settings()) as job:
        items = next(region for region in job._regions if region.id == "items")
        items.drain()
        while not job._is_over(items):
            await asyncio.sleep(0)
        await job.catch_up()
        assert job.views["counts"]["u0"] == 1
        assert set(await job.checkpoint()) == {"events"}


async def test_a_record_that_is_reached_too_slowly_for_the_window_still_uses_up_the_restarts(data_dir):
    """Each attempt fails at the same checkpoint: it is no use however much time lies between the failures."""
    await filled(data_dir, 9)
    patient = RestartPolicy(restarts_max=3, window=0.0, backoff_first=0.0, backoff_max=0.0)
    attempts, flow = [], sa.Pipeline("counts")
    flow.topic("events", Event).map(lambda e: attempts.append(e) or 1 / 0).key_by(str).count().to_view("counts")
    with pytest.raises(sa.JobFailed):
        await run_to_end(flow, data_dir, restarts=patient)
    assert len(attempts) == 4


@pytest.mark.parametrize("wrong", [{"checkpoint_every_ms": 0}, {"batch_records": 0}])
def test_settings_that_would_never_rest_are_refused(wrong):
    with pytest.raises(sa.UsageError, match="below 1"):
        sa.Settings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"checkpoint_every_ms": "1s"}, "checkpoint_every_ms='1s' is no whole number"),
        ({"batch_records": 2.5}, "batch_records=2.5 is no whole number"),
        ({"await_ms": True}, "await_ms=True is no whole number"),
        ({"watchdog_ms": None}, "watchdog_ms=None is no whole number"),
        ({"watchdog_ms": -1}, "watchdog_ms=-1 is below 0"),
        ({"quota_bytes": "1GB"}, "quota_bytes='1GB' is no whole number"),
        ({"quota_bytes": 0}, "quota_bytes=0 is below 1"),
        ({"guarantee": "twice"}, "'twice' is none of exactly-once"),
        ({"restarts": 5}, "restarts=5 is no RestartPolicy"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_settings_of_a_wrong_kind_are_refused_where_they_are_made(wrong, message):
    with pytest.raises(sa.UsageError, match=re.escape(message)):
        sa.Settings(**wrong)


@pytest.mark.parametrize("wrong", [{"window": "1min"}, {"restarts_max": None}, {"backoff_max": float("nan")}], ids=str)
def test_a_restart_policy_of_a_wrong_kind_is_refused_where_it_is_made(wrong):
    with pytest.raises(sa.UsageError, match="no number from 0 on"):
        RestartPolicy(**wrong)


def test_a_guarantee_may_be_named():
    assert sa.Settings(guarantee="at-least-once").guarantee is Guarantee.AT_LEAST_ONCE


async def test_what_retention_has_removed_wholly_is_not_waited_for(data_dir):
    await filled(data_dir, 3)
    async with sa.Log(data_dir) as log:
        partition = (await log.topic("events")).partition(0)
        partition_end = partition.durable_end()
    flow = counting()

    class Emptied:
        """A topic of which retention has left nothing."""

        id, type, replay = "emptied", None, Replay.BY_OFFSET

        async def ends(self, world):
            return [partition_end]

        async def reader(self, world, partition, start):
            return self

        async def read(self, records_max):
            return None

        def end(self):
            return partition_end

        async def wait(self):
            await asyncio.Event().wait()

        async def close(self):
            pass

    flow.source(Emptied()).key_by(None).count().to_view("nothing")
    assert await run_to_end(flow, data_dir) == {"counts": {"u0": 1, "u1": 1, "u2": 1}}


async def test_catching_up_with_a_job_that_has_ended_is_refused(data_dir):
    await filled(data_dir, 3)
    async with sa.run(counting(), data_dir, settings=settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()
        with pytest.raises(sa.UsageError, match="has ended"):
            await job.catch_up()


async def test_a_bounded_run_reads_to_the_end_and_the_next_goes_on(data_dir):
    await filled(data_dir, 4)
    assert await run_to_end(counting(), data_dir) == {"counts": {"u0": 2, "u1": 1, "u2": 1}}
    async with sa.Log(data_dir) as log:
        await (await log.topic("events")).append_many(events(3))
    assert await run_to_end(counting(), data_dir) == {"counts": {"u0": 3, "u1": 2, "u2": 2}}


async def test_a_finished_job_says_so_and_reads_nothing_more(data_dir):
    await filled(data_dir, 4)
    async with sa.run(counting(), data_dir, settings=settings(bound=sa.Bound.FINISH)) as job:
        await job.wait()
    async with sa.Log(data_dir) as log:
        await (await log.topic("events")).append_many(events(3))
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        await job.wait()
        assert job.state == "finished"
        assert dict(job.views["counts"].items()) == {"u0": 2, "u1": 1, "u2": 1}


async def test_an_empty_topic_ends_a_bounded_run_at_once(data_dir):
    async with sa.Log(data_dir) as log:
        await log.create_topic("events", 3)
    assert await run_to_end(counting(), data_dir) == {}


async def test_a_failing_function_restarts_the_region_and_its_effects_count_once(data_dir):
    await filled(data_dir, 9)
    failures = iter([True, True, False])

    def sometimes(event):
        if event.at == 5_000 and next(failures, False):
            raise ValueError("not now")
        return event

    flow = sa.Pipeline("counts")
    flow.topic("events", Event).map(sometimes).key_by("user").count().to_view("counts")
    async with sa.run(flow, data_dir, settings=settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == {"u0": 3, "u1": 3, "u2": 3}


async def test_a_function_that_always_fails_fails_the_job_and_names_operator_record_and_place(data_dir):
    await filled(data_dir, 9)
    flow = sa.Pipeline("counts")
    flow.topic("events", Event).map(lambda e: 1 // (e.at - 5_000), name="divide").key_by(str).count().to_view("counts")
    with pytest.raises(sa.JobFailed) as failed:
        await run_to_end(flow, data_dir)
    (cause,) = failed.value.exceptions
    assert isinstance(cause, sa.BadRecord)
    for part in ["counts/divide", "u2", "events/0 at offset 5", "ZeroDivisionError", "test_runner.py:"]:
        assert part in str(cause)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (None, {1j}, r"view counts can't handle record \(None, \{1j\}\): it can't be stored"),
        (None, 2**70, "view counts can't handle record .* it can't be stored"),
        (2**70, 1, "can't handle record .*does not fit into 64 bits"),
    ],
)
async def test_what_a_view_can_not_hold_is_named(data_dir, key, value, words):
    flow = sa.Pipeline("odd")
    flow.items([1]).key_by(lambda _: key).map(lambda _: value).to_view("counts")
    with pytest.raises(sa.JobFailed, match=words):
        await run_to_end(flow, data_dir)


async def test_a_record_that_can_not_be_decoded_is_named(data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events")
        await topic.append_many([*events(2), b'{"user": 7}', *events(2)])
    with pytest.raises(sa.JobFailed) as failed:
        await run_to_end(counting(), data_dir)
    assert "events/0 at offset 2" in str(failed.value.exceptions[0])


async def test_a_restart_is_logged(data_dir, caplog):
    await filled(data_dir, 9)
    failures = iter([True])
    flow = sa.Pipeline("counts")
    flow.topic("events", Event).map(lambda e: 1 / 0 if next(failures, False) else e).key_by("user").count().to_view("c")
    with caplog.at_level(logging.WARNING):
        await run_to_end(flow, data_dir)
    assert "ZeroDivisionError" in caplog.text


async def test_two_jobs_run_in_one_loop(data_dir):
    await filled(data_dir)
    one, two = counting("one"), counting("two")
    results = await asyncio.gather(run_to_end(one, data_dir), run_to_end(two, data_dir))
    assert results[0] == results[1] == {"counts": {"u0": 3, "u1": 3, "u2": 3}}


async def test_a_second_start_of_a_running_job_is_refused(data_dir):
    await filled(data_dir)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        with pytest.raises(sa.Held):
            async with sa.run(counting(), data_dir):
                pass
        assert job.state == "running"


async def test_a_missing_topic_is_a_clear_refusal(data_dir):
    with pytest.raises(sa.UsageError, match="there is no topic events"):
        async with sa.run(counting(), data_dir):
            pass


async def test_a_preparation_may_make_the_topic(data_dir):
    flow = counting()

    @flow.before_start
    async def fill(log):
        if await log.topic("events") is None:
            topic = await log.create_topic("events")
            await topic.append_many(events(3))

    assert await run_to_end(flow, data_dir) == {"counts": {"u0": 1, "u1": 1, "u2": 1}}
    assert await run_to_end(flow, data_dir) == {"counts": {"u0": 1, "u1": 1, "u2": 1}}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            lambda flow, stream: stream.sum("at", name="aggregate").to_view("counts"),
            r"aggregate \(test_runner\.py:\d+\) +running count\(\) by 'user' +running sum\('at'\) by 'user' +refused",
        ),
        (
            lambda flow, stream: stream.count(name="other").to_view("counts"),
            r"other \(test_runner\.py:\d+\) +not there +running count",
        ),
        (lambda flow, stream: stream.count().to_view("renamed"), r"view\.counts +view +gone +refused"),
    ],
)
async def test_a_checkpoint_that_does_not_fit_the_pipeline_is_refused(data_dir, changed, named):
    await filled(data_dir)
    await run_to_end(counting(), data_dir)
    flow = sa.Pipeline("counts")
    changed(flow, flow.topic("events", Event).key_by("user"))
    with pytest.raises(sa.PipelineError, match=named):
        await run_to_end(flow, data_dir)
    assert await run_to_end(counting(), data_dir) == {"counts": {"u0": 3, "u1": 3, "u2": 3}}


async def test_a_pipeline_that_never_came_to_a_checkpoint_may_be_changed(data_dir):
    with pytest.raises(sa.UsageError, match="there is no topic events"):
        await run_to_end(counting(), data_dir)
    await filled(data_dir)
    flow = sa.Pipeline("counts")
    flow.topic("events", Event).key_by("user").count(name="other").to_view("renamed")
    assert await run_to_end(flow, data_dir) == {"renamed": {"u0": 3, "u1": 3, "u2": 3}}


async def test_more_partitions_than_the_checkpoint_has_read_are_refused(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(TextLines, "place", "the same place")  # else other files are refused before

    def lines(*names):
        for name in names:
            (tmp_path / name).write_text(f"{name}\n")
        flow = sa.Pipeline("lines")
        flow.text_lines(*[tmp_path / name for name in names]).key_by(None).count().to_view("lines")
        return flow

    assert await run_to_end(lines("a"), data_dir) == {"lines": {"a": 1}}
    with pytest.raises(sa.JobFailed, match="has 2 partitions, its checkpoint has read 1"):
        await run_to_end(lines("a", "b"), data_dir)


async def test_a_disorder_that_was_changed_is_used_from_the_next_start_on(data_dir):
    def windows(disorder):
        flow = sa.Pipeline("windows")
        by_user = flow.topic("events", Event).event_time("at", disorder=disorder).key_by("user")
        by_user.window(sa.Tumbling("1s")).count().to_view("counts")
        return flow

    await filled(data_dir, 4)  # at 0, 1, 2 and 3 s
    assert await run_to_end(windows("1h"), data_dir) == {}
    async with sa.Log(data_dir) as log:
        await (await log.topic("events")).append_many(events(1, first=4))
    assert len((await run_to_end(windows(0), data_dir))["counts"]) == 4


async def test_a_journal_whose_ranges_end_among_records_that_a_filter_drops_can_be_followed(data_dir):
    idle = ("idle", "items", 0)
    journal = [("read", "items", 0, 0, 3), idle, ("read", "items", 0, 3, 5), idle, ("read", "items", 0, 5, 10)]
    flow = sa.Pipeline("filtered")
    flow.items(range(10)).filter(lambda n: n >= 7).event_time(None).to_topic("out")
    async with sa.run(flow, data_dir, settings=settings(follow={"items": journal})) as job:
        await job.wait()
        assert [tuple(entry) for entry in job._store.journal("items")] == journal
        assert await values(job.log, "out") == [7, 8, 9]


async def test_another_number_of_parts_goes_on_with_the_same_state(data_dir):
    await filled(data_dir)
    before = await run_to_end(counting(), data_dir)
    assert await run_to_end(counting(parts=2), data_dir) == before


async def test_no_thread_outlives_the_job(data_dir):
    await filled(data_dir)
    before = set(threading.enumerate())
    await run_to_end(counting(), data_dir)
    assert set(threading.enumerate()) <= before


async def test_no_thread_outlives_a_start_that_was_refused(data_dir):
    before = set(threading.enumerate())
    with pytest.raises(sa.UsageError):
        await run_to_end(counting(), data_dir)
    assert set(threading.enumerate()) <= before


async def test_a_checkpoint_of_a_job_that_has_ended_is_refused(data_dir):
    await filled(data_dir)
    async with sa.run(counting(), data_dir, settings=settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()
        with pytest.raises(sa.UsageError, match="has ended"):
            await job.checkpoint()


async def test_status_shows_records_mailboxes_and_the_last_checkpoint(data_dir):
    await filled(data_dir)
    async with sa.run(counting(), data_dir, settings=settings()) as job:
        await until_read(job, 9)
        epochs = await job.checkpoint()
        (region,) = job.status().regions
        assert region.checkpoint.epoch == epochs["events"]
        assert [(p.source, p.partition, p.offset, p.end) for p in region.partitions] == [("events", 0, 9, 9)]
        stages = {stage.name: stage for stage in region.stages}
        counted = {op.name: (op.records_in, op.records_out) for stage in region.stages for op in stage.operators}
        assert counted == {"counts/key_by": (9, 9), "counts/aggregate": (9, 3), "counts/view.counts": (3, 0)}
        assert stages["counts/events"].mailbox_records == 0


async def test_async_functions_are_awaited_in_order(data_dir):
    await filled(data_dir)

    async def shift(event):
        await asyncio.sleep(0)
        return Event(event.user, event.at + 1)

    async def number(event, seen):
        await asyncio.sleep(0)
        return [event.at, (seen or 0) + 1], (seen or 0) + 1

    flow = sa.Pipeline("async")
    flow.topic("events", Event).map(shift).key_by("user").map_with_state(number).to_view("last")
    assert await run_to_end(flow, data_dir) == {"last": {"u0": [6_001, 3], "u1": [7_001, 3], "u2": [8_001, 3]}}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("partitions", [1, 3])
async def test_parts_and_partitions_give_equal_tables(data_dir, parts, partitions):
    await filled(data_dir, 50, partitions)
    views = await run_to_end(counting(parts=parts), data_dir)
    assert views == {"counts": {"u0": 17, "u1": 17, "u2": 16}}


async def test_every_way_out_of_a_window(data_dir):
    """Early, on time, corrected, late and final results, from one window operator."""
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events")
        times = [1, 5, 12, 3, 25, 4, 40, 2]
        await topic.append_many([json.encode({"user": "u", "at": at, "extra": at * 10}) for at in times])
    flow = sa.Pipeline("windows")
    by_user = flow.topic("events", Event).event_time("at").key_by("user")
    results = by_user.window(sa.Tumbling(10)).allowed_lateness(20).count()
    results.to_view("counts")
    results.final().rows().to_topic("finals")
    results.changes().to_topic("changes")
    results.late.original().to_topic("late")
    await run_to_end(flow, data_dir)
    async with sa.Log(data_dir) as log:
        read = {name: await values(log, name) for name in ["finals", "changes", "late"]}
    assert read["late"] == [{"user": "u", "at": 2, "extra": 20}]
    assert [(row["window_start"], row["value"]) for row in read["finals"]] == [(0, 4), (10, 1)]
    assert [(row["window_start"], row["value"], row["kind"]) for row in read["changes"]] == [
        (0, 2, "on_time"),
        (0, 3, "correction"),
        (10, 1, "on_time"),
        (0, 4, "correction"),
        (20, 1, "on_time"),
    ]


async def values(log, name):
    topic = await log.topic(name)
    found = []
    for number in range(topic.partitions):
        reader = topic.partition(number).reader(0)
        while chunks := await reader.read():
            found += [json.decode(value) for chunk in chunks for value in chunk.values()]
        await reader.close()
    return found
