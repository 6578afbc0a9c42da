"""The reasons of a real job: that the facts behind the sentences of test_why.py are gathered as they are."""

import asyncio
from datetime import UTC, datetime
from random import Random

import pytest

import streamactors as sa
from streamactors.core.connectors import Payload
from streamactors.testing.source import Pause, Script
from streamactors.testing.world import World

MINUTE = 60_000
TEN = int(datetime(2026, 5, 1, 10, tzinfo=UTC).timestamp() * 1_000)


@pytest.fixture
def world(tmp_path):
    return World(Random(1), tmp_path, shuffled=False)


def reasons(world, pipeline, seconds, **settings):
    """Run *pipeline* for so many seconds; return what it says then."""

    async def main(process):
        wanted = sa.Settings(**{"sync": False, "checkpoint_every_ms": 100, **settings})
        async with sa.run(pipeline, process.data_dir, ports=process.ports, settings=wanted) as job:
            for _ in range(seconds):
                await process.ports.clock.sleep(1)
                job.status()
            said = [reason for region in job.status().regions for reason in region.reasons]
            await job.stop()
            return said

    return world.run(main).result


def windows(*partitions, **event_time):
    flow = sa.Pipeline("quiz")
    times = flow.source(Script(*partitions, id="submissions")).event_time(lambda at: at, **event_time)
    times.key_by(lambda at: "k").window(sa.Tumbling("10min")).count().to_view("counts")
    return flow


def test_a_window_waits_for_the_partition_that_is_silent(world):
    flow = windows([TEN, TEN + 30 * MINUTE, Pause()], [TEN + MINUTE, Pause()], idle_after="60s")
    assert reasons(world, flow, 40) == [
        "nothing to read from submissions: all 2 partitions are at their ends",
        (
            "window 10:00 (2026-05-01T10:00Z) of quiz/window waits for partition 1 of submissions, which has had "
            "nothing for 40 s and is not idle before 60 s"
        ),
    ]


def test_a_window_that_no_record_has_passed_says_which_would(world):
    flow = windows([TEN + MINUTE, Pause()], idle_after=None, disorder="5s")
    assert reasons(world, flow, 9)[-1] == (
        "window 10:00 (2026-05-01T10:00Z) of quiz/window waits for a record from 2026-05-01T10:10:05Z on; the newest "
        "is of 2026-05-01T10:01Z"
    )


@pytest.mark.parametrize(
    ("paced", "said"),
    [
        (True, "all partitions are idle; event time goes on with the clock"),
        (
            False,
            (
                "all partitions are idle; event time stands until the next record; window 2026-05-01T10:00Z of "
                "quiz/window stays open"
            ),
        ),
    ],
)
def test_idle_partitions_say_what_event_time_does(world, paced, said):
    flow = windows([TEN, Pause()], [TEN, Pause()], idle_after="10s", pace_when_idle=paced)
    assert reasons(world, flow, 15)[-1] == said


class Writer:
    def write(self, batch):
        return 0

    def take(self):
        return [Payload(0, b"rows")]


class Stuck:
    """A sink whose target never answers."""

    id = "counts.sqlite"
    upserts = False

    async def partitions(self, world):
        return 1

    def writer(self, partitions):
        return Writer()

    async def target(self, world):
        return self

    async def last_stamp(self, partition, job, sink):
        return None

    async def commit(self, payload, stamp, expect):
        await asyncio.Event().wait()

    async def write(self, payload):
        await asyncio.Event().wait()

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("guarantee", "pending"),
    [("exactly-once", "commit of epoch 1"), ("at-least-once", "a write is"), ("at-most-once", "a write is")],
)
def test_a_sink_that_does_not_answer_is_named(world, guarantee, pending):
    flow = sa.Pipeline("quiz")
    flow.source(Script([1, Pause()])).to(Stuck())
    said = reasons(world, flow, 12, guarantee=sa.Guarantee(guarantee))
    assert f"sink counts.sqlite has taken no record for 12 s ({pending} pending)" in said


def test_a_stage_that_awaits_is_named_and_so_is_the_epoch_that_waits_for_it(world):
    async def enrich(value):
        await asyncio.Event().wait()

    flow = sa.Pipeline("quiz")
    flow.source(Script(list(range(20_000)))).map(enrich).key_by(str).count().to_view("counts")
    said = reasons(world, flow, 31, await_ms=0)
    assert said[0].startswith("operator quiz/map has awaited ") and said[0].endswith(" for 31 s")
    assert ".enrich (test_reasons.py:" in said[0]
    assert any(reason.startswith("epoch 1 has waited 31 s for quiz/map") for reason in said)
    assert any(reason.startswith("the mailbox of quiz/map is full (") for reason in said)


def test_a_journal_that_is_followed_says_what_is_missing(world):
    flow = sa.Pipeline("quiz")
    flow.source(Script([1, 2, Pause(), 3])).key_by(str).count().to_view("counts")
    journal = {"script": [("read", "script", 0, 0, 3)]}
    assert reasons(world, flow, 9, follow=journal) == [
        "the journal that is followed wants record 2 of script/0, which is not there"
    ]


def test_a_job_that_moves_has_nothing_to_explain(world):
    flow = sa.Pipeline("quiz")
    script = Script([1, Pause(), 2])
    flow.source(script).key_by(str).count().to_view("counts")

    async def main(process):
        wanted = sa.Settings(sync=False)
        async with sa.run(flow, process.data_dir, ports=process.ports, settings=wanted) as job:
            await process.ports.clock.sleep(5)
            script.go_on()
            await job.catch_up()
            return job.status().regions[0].reasons

    assert world.run(main).result == []
