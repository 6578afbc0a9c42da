"""What runs on the small disk of test_full_disk.py: ``python full_disk_child.py <scenario> <folder>``."""

import asyncio
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from msgspec import Struct, json

import streamactors as sa
from streamactors.core.connectors import Guarantee
from streamactors.core.errors import JobFailed, QuotaFull
from tests.durable.small_disk import Filling


class Event(Struct):
    user: str
    text: str


def copied(event):
    """Return a copy that takes more room than the original: then the sink is the first to have none."""
    return Event(event.user, event.text * 4)


def counting():
    flow = sa.Pipeline("counts")
    events = flow.topic("events", Event)
    events.key_by("user").count().to_view("counts")
    events.map(copied).to_topic("copies")

    @flow.before_start
    async def prepare(log):
        await log.create_topic("events")

    return flow


def running(folder, **more):
    return sa.run(counting(), folder, settings=sa.Settings(checkpoint_every_ms=20, **more))


class Appender:
    """Appends as a web handler does, and remembers what was acknowledged."""

    def __init__(self):
        self.acknowledged = []
        self.refused = 0

    async def append(self, job, count):
        topic = await job.log.topic("events")
        for _ in range(count):
            number = len(self.acknowledged) + self.refused
            value = json.encode(Event(f"u{number % 70}", f"{number}-" + "x" * 200))
            try:
                await topic.append(value)
            except QuotaFull:
                self.refused += 1
            else:
                self.acknowledged.append(value)
            await asyncio.sleep(0)

    @property
    def counts(self):
        return dict(Counter(json.decode(value, type=Event).user for value in self.acknowledged))


async def until(condition, what):
    for _ in range(6_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"60 s and still not: {what}")


async def check_the_end(folder, appender, **more):
    """Run to the end: what was acknowledged is counted once, and copied once, in order."""
    async with running(folder, bound=sa.Bound.UNTIL_END, **more) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == appender.counts
        topic = await job.log.topic("copies")
        end = topic.partition(0).durable_end()
        copies = [json.decode(await topic.partition(0).read_at(offset)) for offset in range(end)]
        originals = [json.decode(value, type=Event) for value in appender.acknowledged]
        assert copies == [{"user": event.user, "text": event.text * 4} for event in originals]


async def no_room_left(job, appender, other):
    """Append to a full disk until the job waits for room; return what the view shows then."""
    await appender.append(job, 200)
    await job.catch_up()
    shown = dict(job.views["counts"].items())
    assert shown == appender.counts
    leave = 300_000
    while job.state != "waiting":
        assert leave >= 0, "the disk is full, and the job does not wait"
        other.fill(leave=leave)
        leave -= 10_000
        await appender.append(job, 50)
        await asyncio.sleep(0.05)
    return shown


async def goes_on_at_least_once(folder):
    """The same where sinks are written at once: without a crash nothing repeats."""
    return await goes_on(folder, guarantee=Guarantee.AT_LEAST_ONCE)


async def goes_on(folder, **more):
    """Full, several times; each time it goes on by itself, without a restart."""
    appender, other = Appender(), Filling(folder)
    async with running(folder, **more) as job:
        for _ in range(3):
            await no_room_left(job, appender, other)
            region = job.status().regions[0]
            assert region.restarts == 0
            shown = dict(job.views["counts"].items())
            assert 0 < sum(shown.values()) <= len(appender.acknowledged), "views stay readable"
            other.clear()
            await until(lambda: job.state == "running", "the job goes on")
            await appender.append(job, 50)
            await job.catch_up()
            assert dict(job.views["counts"].items()) == appender.counts
        assert job.status().regions[0].restarts == 0
    await check_the_end(folder, appender, **more)
    return f"{len(appender.acknowledged)} acknowledged, {appender.refused} refused"


async def drains(folder):
    """Drained while it waits: the reserve lets the last checkpoint succeed, and what was acknowledged is shown."""
    appender, other = Appender(), Filling(folder)
    async with running(folder) as job:
        await no_room_left(job, appender, other)
        assert (folder / "jobs/counts/v1/reserve").stat().st_size > 0
        await job.drain()
        assert job.state == "ended"
        drained = sum(dict(job.views["counts"].items()).values())
    other.clear()
    await check_the_end(folder, appender)
    assert (folder / "jobs/counts/v1/reserve").stat().st_size > 0, "the next start has made it again"
    return f"{len(appender.acknowledged)} acknowledged, {appender.refused} refused, {drained} shown when it drained"


async def drains_without_reserve(folder):
    """Without a reserve the drain ends with a clear error; the next start goes on from the last checkpoint."""
    appender, other = Appender(), Filling(folder)
    try:
        async with running(folder) as job:
            await no_room_left(job, appender, other)
            other.fill()
            with (folder / "jobs/counts/v1/reserve").open("r+b") as file:
                file.truncate(0)
            other.fill()
            await job.drain()
    except JobFailed as failed:
        if not all(isinstance(cause, QuotaFull) for cause in failed.exceptions):
            raise
        message = str(failed)
    else:
        raise AssertionError("it drained without room")
    other.clear()
    await check_the_end(folder, appender)
    return message


async def stops(folder):
    """Stopped while it waits: it ends at once."""
    appender, other = Appender(), Filling(folder)
    async with running(folder) as job:
        await no_room_left(job, appender, other)
        await asyncio.wait_for(job.stop(), 10)
        assert job.state == "ended"
    other.clear()
    await check_the_end(folder, appender)
    return "stopped"


async def starts(folder):
    """Started on a full disk: it waits, or says why not; later it goes on."""
    appender, other = Appender(), Filling(folder)
    async with running(folder) as job:
        await appender.append(job, 300)
    outcomes = []
    for leave in (0, 4_096, 8_192, 40_000):
        other.fill(leave=leave)
        try:
            async with running(folder) as job:
                await appender.append(job, 3)
                other.clear()
                await job.catch_up()
                outcomes.append("went on")
        except QuotaFull as error:
            outcomes.append(f"refused: {error}"[:60])
            other.clear()
    await check_the_end(folder, appender)
    return outcomes


if __name__ == "__main__":
    print(asyncio.run(globals()[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201 - its answer
