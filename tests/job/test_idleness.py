"""Partitions that fall silent: they stop holding back the others, and the clock closes the last window."""

import asyncio

from msgspec import json

import streamactors as sa

SETTINGS = sa.Settings(checkpoint_every_ms=5)


def windows(**event_time):
    flow = sa.Pipeline("idle")
    by_user = flow.topic("events").event_time("at", **event_time).key_by("user")
    by_user.window(sa.Tumbling(10)).count().to_view("counts")
    return flow


async def shown(job, expected):
    while dict(job.views["counts"].items()) != expected:
        await asyncio.sleep(0)


async def test_a_silent_partition_no_longer_holds_back_the_others(data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events", 2)
        for at in (1, 2, 25):
            await topic.append(json.encode({"user": "u", "at": at}), key="the first partition")
    async with sa.run(windows(idle_after="20ms", pace_when_idle=False), data_dir, settings=SETTINGS) as job:
        await shown(job, {("u", 0): 2})
        assert {p.partition: p.idle for p in job.status().regions[0].partitions} != {0: False, 1: False}


async def test_when_all_are_silent_the_clock_closes_the_last_window(data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events")
        await topic.append(json.encode({"user": "u", "at": 1}))
    async with sa.run(windows(idle_after="5ms"), data_dir, settings=SETTINGS) as job:
        await shown(job, {("u", 0): 1})


async def test_a_bounded_run_takes_no_partition_for_idle(data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("events", 2)
        for at in (1, 2, 25):
            await topic.append(json.encode({"user": "u", "at": at}), key="the first partition")
    settings = sa.Settings(bound=sa.Bound.UNTIL_END)
    async with sa.run(windows(idle_after=0), data_dir, settings=settings) as job:
        await job.wait()
        assert dict(job.views["counts"].items()) == {}
