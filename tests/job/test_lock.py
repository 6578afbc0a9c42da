"""One process at a time runs a job; the others are told which one does, and a dead one's lock is taken over."""

import signal
import subprocess
import sys

import pytest

import streamactors as sa

CHILD = """
import asyncio, sys
import streamactors as sa

async def main():
    flow = sa.Pipeline("held")
    flow.topic("t").key_by("k").count().to_view("v")
    async with sa.run(flow, sys.argv[1]):
        print("running", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def pipeline():
    flow = sa.Pipeline("held")
    flow.topic("t").key_by("k").count().to_view("v")
    return flow


async def test_a_job_that_another_process_runs_is_refused_with_its_pid_until_that_process_is_dead(data_dir):
    async with sa.Log(data_dir) as log:
        await log.create_topic("t")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(data_dir)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        with pytest.raises(sa.Held, match=f"process {child.pid}"):
            async with sa.run(pipeline(), data_dir):
                pass
        child.send_signal(signal.SIGKILL)
    async with sa.run(pipeline(), data_dir) as job:
        assert job.state == "running"
