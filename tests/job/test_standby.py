"""Standing by: one runs the job, the next takes over, and each entry and exit is what it says."""

import asyncio
import logging
import os
from contextlib import contextmanager

import pytest

import streamactors as sa
from streamactors.testing.source import Crash, Pause, Script


def counting(script):
    pipeline = sa.Pipeline("job")
    pipeline.source(script).key_by(str).count().to_view("counts")
    return pipeline


async def until(fact):
    while not fact():
        await asyncio.sleep(0.001)


async def test_the_second_stands_by_and_takes_over_when_the_first_has_drained(data_dir, caplog):
    script = Script(["a", "b", Pause(), "a", Pause()])
    with caplog.at_level(logging.INFO):
        async with sa.stand_by(counting(script), data_dir) as first:
            assert first.job is not None and str(first) in {"starting", "running"}
            await first.job.catch_up()
            async with sa.stand_by(counting(script), data_dir) as second:
                assert (second.job, second.holder) == (None, os.getpid())
                assert str(second) == f"stands by, process {os.getpid()} runs the job"
                assert str(first) == "running"
        assert first.job is None

        async with sa.stand_by(counting(script), data_dir) as first:
            second = sa.stand_by(counting(script), data_dir)
            standing = await second.__aenter__()
            assert standing.job is None
        await until(lambda: standing.job is not None)
        script.go_on()
        await standing.job.catch_up()
        assert dict(standing.job.views["counts"].items()) == {"a": 2, "b": 1}
        await second.__aexit__(None, None, None)
    said = [record.getMessage() for record in caplog.records if "stands by" in record.getMessage()]
    assert said == [f"process {os.getpid()} runs the job; this one stands by, and takes over when it is gone"] * 2


async def test_leaving_ends_the_standing_by_at_once(data_dir):
    async with sa.stand_by(counting(Script(["a", Pause()])), data_dir):
        began = asyncio.get_running_loop().time()
        async with sa.stand_by(counting(Script(["a", Pause()])), data_dir):
            pass
        assert asyncio.get_running_loop().time() - began < 0.4  # no wait for the next try


async def test_a_job_that_can_not_start_says_so_at_the_entry(data_dir):
    pipeline = sa.Pipeline("job")
    pipeline.topic("missing").to_topic("out")
    with pytest.raises(sa.UsageError):
        async with sa.stand_by(pipeline, data_dir):
            raise AssertionError("the block began")


async def test_a_job_that_gives_up_is_not_tried_again_and_is_raised_at_the_exit(data_dir):
    settings = sa.Settings(restarts=sa.RestartPolicy("none"))
    standing = sa.stand_by(counting(Script(["a", Crash(), Pause()])), data_dir, settings=settings)
    here = await standing.__aenter__()
    await until(lambda: here.error is not None)
    assert here.job is None and str(here).startswith("gave up: job job gave up")
    with pytest.raises(sa.JobFailed):
        await standing.__aexit__(None, None, None)


async def test_the_job_runs_inside_what_is_put_around_it(data_dir):
    seen = []

    @contextmanager
    def around(job):
        seen.append(("in", job.name))
        yield
        seen.append("out")

    async with sa.stand_by(counting(Script(["a", Pause()])), data_dir, around=around):
        assert seen == [("in", "job")]
    assert seen == [("in", "job"), "out"]
