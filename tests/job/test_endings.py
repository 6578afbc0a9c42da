"""Ends that meet a failure: the last epoch of all, a stop, a cancellation, a checkpoint that was just asked for."""

import asyncio

import pytest
from msgspec import json

import streamactors as sa
from streamactors.core.connectors import Payload
from streamactors.durable.files import RealFile
from streamactors.engine.restarts import RestartPolicy
from streamactors.testing.idle import settle

SETTINGS = {"checkpoint_every_ms": 1, "restarts": RestartPolicy(restarts_max=1, backoff_first=0.0, backoff_max=0.0)}


class Target:
    """A sink whose commits wait for ``open``, and fail as often as ``failures`` says."""

    id = "target"
    upserts = False

    def __init__(self, failures=0):
        self.failures = failures
        self.committed = []
        self.stamp = None
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def partitions(self, world):
        return 1

    def writer(self, partitions):
        return Writer()

    async def target(self, world):
        return self

    async def last_stamp(self, partition, job, sink):
        return self.stamp

    async def commit(self, payload, stamp, expect):
        self.reached.set()
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("the target is away")
        assert self.stamp == expect
        self.stamp = stamp
        self.committed += json.decode(payload.data)

    async def close(self):
        pass


class Writer:
    def __init__(self):
        self.values = []

    def write(self, batch):
        self.values += batch.values
        return 0

    def take(self):
        values, self.values = self.values, []
        return [Payload(0, json.encode(values))] if values else []


def pipeline(function, *sinks, values=(1, 2, 3)):
    flow = sa.Pipeline("ends")
    stream = flow.items(values).map(function)
    for sink in sinks:
        stream.to(sink)
    if not sinks:
        stream.to_topic("out")
    return flow


async def run(flow, data_dir, bound):
    async with sa.run(flow, data_dir, settings=sa.Settings(bound=bound, **SETTINGS)) as job:
        await job.wait()
    return job


@pytest.mark.parametrize("bound", [sa.Bound.UNTIL_END, sa.Bound.FINISH])
async def test_the_last_output_is_committed_even_if_the_target_was_away_at_the_end(data_dir, bound):
    target = Target(failures=1)
    await run(pipeline(int, target), data_dir, bound)
    assert target.committed == [1, 2, 3]


async def test_a_finished_job_still_commits_what_an_earlier_process_left_pending(data_dir):
    target = Target(failures=2)  # restarts are used up: as if the process had died behind the checkpoint
    with pytest.raises(sa.JobFailed, match="away"):
        await run(pipeline(int, target), data_dir, sa.Bound.FINISH)
    assert (await run(pipeline(int, target), data_dir, sa.Bound.LIVE)).state == "finished"
    assert target.committed == [1, 2, 3]


async def failing_beside_a_commit(job, target):
    """Return when the region goes down because of record 2, and waits for the commit of record 1."""
    topic = await job.log.create_topic("numbers")
    await topic.append(b"1")
    await target.reached.wait()
    await topic.append(b"2")
    await going_down(job)


async def going_down(job):
    region = job._regions[0]
    while region.running is None or not region.running.coordinator.stopping:
        await asyncio.sleep(0)
    await settle()


def numbers(target, failures):
    """A pipeline that fails at record 2, as often as *failures* has items."""

    def fail_at_two(value):
        if value == 2 and failures:
            failures.pop()
            raise ValueError(value)
        return value

    flow = sa.Pipeline("ends")

    @flow.before_start
    async def make(log):
        await log.create_topic("numbers")

    stream = flow.topic("numbers", int)
    stream.map(fail_at_two).to(target)
    return flow, stream


async def test_stopping_a_region_that_is_just_failing_does_not_start_it_again(data_dir):
    target = Target()
    target.open.clear()
    flow, _ = numbers(target, [1])
    async with sa.run(flow, data_dir, settings=sa.Settings(**SETTINGS)) as job:
        await failing_beside_a_commit(job, target)
        stopping = asyncio.create_task(job.stop())
        await settle()
        target.open.set()
        await stopping
    assert job.status().regions[0].restarts == 0


async def test_a_checkpoint_asked_for_while_a_region_goes_down_is_taken_by_its_next_attempt(data_dir):
    slow = asyncio.Event()
    flow, stream = numbers(Target(), [1])

    async def wait_at_two(value):
        if value == 2:
            await slow.wait()

    stream.map(wait_at_two).to_topic("slow")
    async with sa.run(flow, data_dir, settings=sa.Settings(**SETTINGS)) as job:
        topic = await job.log.topic("numbers")
        await topic.append_many([b"1", b"2"])
        await going_down(job)  # the coordinator has ended; the region waits for the slow one
        asking = asyncio.create_task(job.checkpoint())
        await settle()
        slow.set()
        await asking
        assert job.status().regions[0].restarts == 1


async def cancels(value):
    raise asyncio.CancelledError


async def test_a_function_that_raises_cancelled_error_fails_the_job_instead_of_hanging_it(data_dir):
    with pytest.raises(sa.JobFailed, match="CancelledError, and nobody here had cancelled it"):
        await run(pipeline(cancels), data_dir, sa.Bound.FINISH)


class NoException(BaseException):
    pass


def raises_no_exception(value):
    raise NoException


async def test_what_is_no_exception_is_not_swallowed(data_dir):
    with pytest.raises(NoException):
        await run(pipeline(raises_no_exception), data_dir, sa.Bound.FINISH)


async def test_a_sink_topic_that_a_failed_sync_has_closed_is_opened_anew_by_the_restart(data_dir, monkeypatch):
    failures, sync = [OSError(5, "I/O error")], RealFile.sync

    def sync_that_fails_once(file):
        if failures and "/log/out/" in str(file._path) and file._path.suffix == ".segment":
            raise failures.pop()
        sync(file)

    monkeypatch.setattr(RealFile, "sync", sync_that_fails_once)
    job = await run(pipeline(int), data_dir, sa.Bound.UNTIL_END)
    assert job.status().regions[0].restarts == 1
    async with sa.Log(data_dir) as log:
        assert (await log.topic("out")).partition(0).durable_end() == 3


async def test_a_start_that_is_cancelled_at_any_point_leaves_nothing_held(data_dir):
    async def embedded():
        async with sa.run(pipeline(int), data_dir, settings=sa.Settings(**SETTINGS)):
            await asyncio.Event().wait()

    for rounds in range(0, 400, 3):
        starting = asyncio.create_task(embedded())
        for _ in range(rounds):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
