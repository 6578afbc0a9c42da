"""Versions side by side: the second follows the first's journal, is compared, is served, and makes way again."""

import asyncio
from random import Random

import pytest
from msgspec import json

import streamactors as sa
from streamactors.core.connectors import Guarantee
from streamactors.durable.catalogue import Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.durable.store import Store
from streamactors.flow.sequencing import joined
from streamactors.job.folders import job_folder

EVERY = "20ms"


def counting(rule=lambda e: True):
    flow = sa.Pipeline("quiz")
    events = flow.topic("events").event_time("at", disorder=50, idle_after="100ms")
    counts = events.filter(rule, name="rule").key_by("key").window(sa.Tumbling(100)).early(every="50ms").count()
    counts.to_view("counts")
    events.filter(rule, name="rule-2").key_by("key").count().to_view("totals")
    return flow


def running(flow, data_dir, version=None, **more):
    return sa.run(flow, data_dir, checkpoint_every=EVERY, settings=sa.Settings(version=version, **more))


def catalogue(data_dir):
    return Catalogue(RealDisk(), job_folder(data_dir, "quiz"))


def ask(data_dir, label):
    return catalogue(data_dir).change("quiz", "v1", 0, lambda found: found.ask(label, 0))


async def append(data_dir_or_log, count, seed=0, start=0):
    random = Random(seed)
    values = [
        json.encode({"key": random.choice("abc"), "at": 7 * (start + i) + random.randint(0, 60)}) for i in range(count)
    ]
    topic = await data_dir_or_log.create_topic("events", 2)
    for number in range(2):
        await topic.partition(number).append(Records.of(values[number::2]))
    return values


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def contents(job):
    with job.views.snapshot() as view:
        return {name: dict(view(name).items()) for name in ("counts", "totals")}


async def stand_together(first, second):
    """Return when both show the same: what followed has caught up."""
    await until(lambda: contents(first) == contents(second))


async def test_an_unchanged_second_version_comes_to_the_same_tables_beside_the_first(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 200)
        async with running(counting(), data_dir, log=log) if False else running(counting(), data_dir) as first:
            pass
    async with running(counting(), data_dir) as first:
        await first.catch_up()
        async with running(counting(), data_dir, "v2") as second:
            await until(lambda: len(second.views["totals"]) == 3)
            await append(first.log, 100, seed=1, start=200)
            await first.catch_up()
            await stand_together(first, second)
            assert second.version == "v2"


async def test_a_changed_rule_shows_in_the_second_version_alone_and_the_first_serves_all_the_while(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 200)
    async with running(counting(), data_dir) as first:
        await first.catch_up()
        with sa.open_views(data_dir, "quiz") as served:
            async with running(counting(lambda e: e["key"] != "b"), data_dir, "v2") as second:
                await until(lambda: len(second.views["totals"]) == 2)
                assert served.version == "v1"
                assert dict(served["totals"].items()) == dict(first.views["totals"].items())
                without_b = {key: n for key, n in first.views["totals"].items() if key != "b"}
                await until(lambda: dict(second.views["totals"].items()) == without_b)


async def test_a_promotion_while_both_run_hands_the_decision_over_and_back(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 100)
    async with running(counting(), data_dir) as first, running(counting(), data_dir, "v2") as second:
        with sa.open_views(data_dir, "quiz") as served:
            for label, start in (("v2", 100), ("v1", 200), ("v2", 300)):
                await append(first.log, 50, seed=start, start=start)
                ask(data_dir, label)
                await until(lambda label=label: served.version == label)
                await append(first.log, 50, seed=start + 1, start=start + 50)
                decides = second if label == "v2" else first
                await until(lambda d=decides: d._succession.following is None and d.state == "running")
                await decides.catch_up()
                await stand_together(first, second)
                assert sum(served["totals"].get(key, 0) for key in "abc") == 200 + (start - 100)
            history = [entry.label for entry in catalogue(data_dir).read().history]
            assert history == ["v1", "v2", "v1", "v2"]
    journals = []
    for label in ("v1", "v2"):
        with Store.open(job_folder(data_dir, "quiz") / label, read_only=True) as store:
            journals.append(list(joined(store.journal("events"))))
    shorter = min(map(len, journals))  # who decides last may have noted a mark of the clock that nobody could follow
    assert journals[0][:shorter] == journals[1][:shorter]
    assert shorter > 20


async def test_what_is_served_decides_when_it_starts_again_and_the_other_follows(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 100)
    async with running(counting(), data_dir) as first, running(counting(), data_dir, "v2") as second:
        await first.catch_up()
        await stand_together(first, second)
        ask(data_dir, "v2")
        await until(lambda: second._succession.following is None)
    async with running(counting(), data_dir) as job:
        assert job.version == "v2"
        await append(job.log, 50, seed=3, start=100)
        await job.catch_up()
        async with running(counting(), data_dir, "v1") as other:
            await stand_together(job, other)


async def test_a_second_version_that_reads_to_the_end_stops_where_the_first_stands(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 120)
    async with running(counting(), data_dir, bound=sa.Bound.UNTIL_END) as first:
        await first.wait()
        expected = contents(first)
    async with running(counting(), data_dir, "v2", bound=sa.Bound.UNTIL_END) as second:
        await second.wait()
        assert contents(second) == expected


async def test_a_second_version_that_reads_what_the_first_does_not_is_refused(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 10)
        await log.create_topic("more", 1)
    async with running(counting(), data_dir, bound=sa.Bound.UNTIL_END) as first:
        await first.wait()
    flow = sa.Pipeline("quiz")
    flow.topic("events").union(flow.topic("more")).key_by("key").count().to_view("totals")
    with pytest.raises(sa.PipelineError, match="version v1 does not read more"):
        async with running(flow, data_dir, "v2"):
            pass


async def test_at_most_once_keeps_no_place_in_a_journal_and_can_not_follow(data_dir):
    async with sa.Log(data_dir) as log:
        await append(log, 10)
    async with running(counting(), data_dir, bound=sa.Bound.UNTIL_END) as first:
        await first.wait()
    with pytest.raises(sa.PipelineError, match="keeps no place in it"):
        async with running(counting(), data_dir, "v2", guarantee=Guarantee.AT_MOST_ONCE):
            pass


async def test_a_version_without_a_journal_can_not_be_followed(data_dir):
    """At-most-once keeps none: who followed it would wait for ever."""
    async with sa.Log(data_dir) as log:
        await append(log, 10)
    async with running(counting(), data_dir, bound=sa.Bound.UNTIL_END, guarantee=Guarantee.AT_MOST_ONCE) as first:
        await first.wait()
    with pytest.raises(sa.PipelineError, match="version v1 ran as at-most-once, which keeps no journal"):
        async with running(counting(), data_dir, "v2"):
            pass
