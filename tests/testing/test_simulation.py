import asyncio
from random import Random

import pytest

from streamactors.core.batch import Batch
from streamactors.engine.mailbox import Channel
from streamactors.testing.clock import ManualClock
from streamactors.testing.idle import settle
from streamactors.testing.loop import Deadlock, SimLoop
from streamactors.testing.threads import SimThreads
from streamactors.testing.unchanged import values_stay_unchanged
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, CrashAtTime, Crashed, Ended, World


def in_loop(main, seed=1):
    loop = SimLoop(Random(seed))
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def test_an_hour_takes_no_time():
    async def main():
        await asyncio.sleep(3_600)
        return asyncio.get_running_loop().time()

    assert in_loop(main()) == pytest.approx(3_600)


def orders(seed):
    async def main():
        said = []

        async def say(what):
            said.append(what)

        await asyncio.gather(*map(say, range(5)))
        return said

    return in_loop(main(), seed)


def test_the_order_of_tasks_is_the_seeds():
    assert orders(1) == orders(1)
    assert len({tuple(orders(seed)) for seed in range(20)}) > 10


def test_waiting_for_nobody_is_an_error_that_names_who_waits():
    async def main():
        await asyncio.get_running_loop().create_future()

    loop = SimLoop(Random(1))
    task = loop.create_task(main(), name="the one who waits")
    with pytest.raises(Deadlock, match="the one who waits"):
        loop.run_forever()
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


async def test_a_manual_clock_wakes_sleepers_in_the_order_of_their_time():
    clock, woken = ManualClock(), []

    async def sleep(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2, 9)]
    await clock.advance(5)
    assert woken == [(1, 1), (2, 2), (3, 3)] and clock.monotonic() == 5 and clock.sleepers == 1
    tasks[-1].cancel()
    await settle()


def test_work_of_one_lane_keeps_its_order_and_other_lanes_do_not_wait():
    async def main(threads, done):
        def work(lane, number):
            done.append((lane, number))

        await asyncio.gather(*(threads.run(lane, work, lane, n) for n in range(20) for lane in "ab"))

    seen = set()
    for seed in range(10):
        done = []
        in_loop(main(SimThreads(Random(seed)), done), seed)
        for lane in "ab":
            numbers = [number for other, number in done if other == lane]
            assert len(numbers) == 20
        seen.add(tuple(done))
    assert len(seen) > 5


async def test_a_caller_that_is_cancelled_does_not_take_back_its_work():
    threads, done = SimThreads(Random(1), slowest=0), []
    task = asyncio.create_task(threads.run("a", done.append, 1))
    await asyncio.sleep(0)
    task.cancel()
    await threads.close()
    assert done == [1]


def test_a_process_that_died_does_nothing_any_more(tmp_path):
    world, did = World(Random(1), tmp_path), []

    async def life(process):
        disk, threads = process.ports.disk, process.ports.threads
        try:
            await threads.run("a", disk.make_folder, process.data_dir)
            did.append("made")
            await process.ports.clock.sleep(100)
        finally:
            await threads.run("a", did.append, "cleared away")

    assert world.run(life, CrashAtLabel("after SimDisk.make_folder")) == Crashed("after SimDisk.make_folder")
    assert did == []
    assert isinstance(world.run(life, CrashAtPoint(1)), Crashed) and did == []
    assert world.run(life, CrashAtTime(50)) == Crashed("an instant") and did == ["made"]
    assert isinstance(world.run(life, CrashAtTime(500)), Ended) and did == ["made", "made", "cleared away"]


def test_a_task_that_outlives_its_job_is_found(tmp_path):
    async def life(process):
        asyncio.create_task(process.ports.clock.sleep(100), name="left over")  # noqa: RUF006 - that is the mistake

    with pytest.raises(AssertionError, match="left over"):
        World(Random(1), tmp_path).run(life)


def test_a_value_that_is_changed_in_place_is_found():
    channel = Channel("a > b", lambda: None, lambda: None)
    value = {"n": 1}
    with values_stay_unchanged():
        channel.put(1, Batch([value]), 1)
        channel.put(2, Batch([value]), 1)
        channel.take()
        value["n"] = 2
        with pytest.raises(AssertionError, match="a > b: a value was changed in place"):
            channel.take()
