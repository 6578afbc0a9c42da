"""A slow sink: its mailbox stays small, nothing is lost, checkpoints go on, and the source waits."""

import asyncio

from msgspec import json

import streamactors as sa
from streamactors.core.connectors import Payload
from streamactors.core.limits import MAILBOX_RECORDS_MAX, UNPACED_RECORDS_MAX
from streamactors.job import pending

RECORDS = 3_000
PER_SECOND = 1_000


class SlowSink:
    """Takes PER_SECOND records in a second, and keeps what was committed."""

    id = "slow"
    upserts = False

    def __init__(self):
        self.committed = []
        self.stamps = {}
        self.held_most = 0

    def __str__(self):
        return "a slow sink"

    async def partitions(self, world):
        return 1

    def writer(self, partitions):
        return SlowWriter(self)

    async def target(self, world):
        return self

    async def last_stamp(self, partition, job, sink):
        return self.stamps.get(partition)

    async def commit(self, payload, stamp, expect):
        assert self.stamps.get(payload.partition) == expect
        self.stamps[payload.partition] = stamp
        self.committed += json.decode(payload.data)

    async def close(self):
        pass


class SlowWriter:
    def __init__(self, sink):
        self.sink = sink
        self.values = []

    def write(self, batch):
        self.values += batch.values
        self.sink.held_most = max(self.sink.held_most, len(self.values))
        return len(self.values)

    def take(self):
        values, self.values = self.values, []
        return [Payload(0, json.encode(values))] if values else []


async def slowly(value):
    await asyncio.sleep(1 / PER_SECOND)  # the speed of the outside world, which is what this test is about
    return value


async def test_a_slow_operator_holds_back_the_source_and_not_the_checkpoints(data_dir):
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("numbers")
        await topic.append_many([b"%d" % number for number in range(RECORDS)])
    sink, flow = SlowSink(), sa.Pipeline("slow")
    flow.topic("numbers").map(slowly).to(sink)
    settings = sa.Settings(checkpoint_every_ms=50, bound=sa.Bound.UNTIL_END)
    epochs, mailbox_most = set(), 0
    async with sa.run(flow, data_dir, settings=settings) as job:
        waiting = asyncio.create_task(job.wait())
        while not waiting.done():
            for region in job.status().regions:
                if region.checkpoint.epoch:
                    epochs.add(region.checkpoint.epoch)
                mailbox_most = max([mailbox_most, *(stage.mailbox_records for stage in region.stages)])
            await asyncio.sleep(0.005)
        await waiting
    assert sink.committed == list(range(RECORDS))
    assert len(epochs) >= 5, epochs
    assert mailbox_most < MAILBOX_RECORDS_MAX
    assert sink.held_most <= 2 * UNPACED_RECORDS_MAX < RECORDS  # what came before the operator's speed was known


class Bytes(SlowSink):
    """Says that each record has a kilobyte; keeps how many an epoch had."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def writer(self, partitions):
        return Kilobytes(self)

    async def commit(self, payload, stamp, expect):
        await super().commit(payload, stamp, expect)
        self.epochs.append(len(json.decode(payload.data)))


class Kilobytes(SlowWriter):
    def write(self, batch):
        return super().write(batch) * 1_000


async def test_output_that_reaches_its_limit_begins_an_epoch_and_the_source_goes_on(data_dir, monkeypatch):
    monkeypatch.setattr(pending, "EPOCH_OUTPUT_BYTES_MAX", 100_000)
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("numbers")
        await topic.append_many([b"%d" % number for number in range(RECORDS)])
    sink, flow = Bytes(), sa.Pipeline("much")
    flow.topic("numbers").to(sink)
    settings = sa.Settings(checkpoint_every_ms=3_600_000, bound=sa.Bound.UNTIL_END, batch_records=10)
    async with sa.run(flow, data_dir, settings=settings) as job:
        await job.wait()
    assert sink.committed == list(range(RECORDS))
    # What an epoch has beyond the limit is what stood in the mailbox before its barrier.
    assert len(sink.epochs) > 1, sink.epochs
    assert min(sink.epochs[:-1]) >= 100, sink.epochs
