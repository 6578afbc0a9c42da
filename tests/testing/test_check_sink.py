"""check_sink finds what is wrong with a sink, and names the attack."""

import asyncio
from typing import ClassVar

import pytest

from connectors.sqlite import SqliteTable
from streamactors.core.batch import Kind
from streamactors.core.codec import decode_value, encode_value
from streamactors.core.connectors import Payload
from streamactors.core.errors import SinkConflict
from streamactors.core.keys import plain_key
from streamactors.testing.check_sink import check_sink
from tests.connectors.test_every_sink import rows


class Shelf:
    """A sink into memory that outlives its lives, right by itself; a subclass gets one thing wrong."""

    id = "shelf"
    upserts = False
    targets: ClassVar = {}  # folder -> [(values, stamps) of each partition]

    def __init__(self, folder):
        self.kept = self.targets.setdefault(folder, [([], {}), ([], {})])

    async def partitions(self, world):
        return 2

    def writer(self, partitions):
        self.rows = []
        return self

    def write(self, batch):
        self.rows += zip(batch.keys, batch.values, strict=True)
        return len(self.rows)

    def take(self):
        rows, self.rows = self.rows, []
        parts = {}
        for key, value in rows:
            payload = parts.setdefault(int(plain_key(key)[-1]) % 2, [[]])
            if len(payload[-1]) == 3:
                payload.append([])
            payload[-1].append(value)
        return [Payload(number, encode_value(part)) for number, payloads in parts.items() for part in payloads]

    async def target(self, world):
        return self

    async def last_stamp(self, partition, job, sink):
        return self.kept[partition][1].get((job, sink))

    async def commit(self, payload, stamp, expect):
        values, stamps = self.kept[payload.partition]
        shown = stamps.get((stamp.job, stamp.sink))
        if shown == stamp:
            return
        if shown != expect:
            raise SinkConflict(f"{shown} is neither {expect} nor {stamp}")
        values += decode_value(payload.data)
        stamps[stamp.job, stamp.sink] = stamp

    async def write_now(self, payload):
        self.kept[payload.partition][0].extend(decode_value(payload.data))

    async def close(self):
        pass

    @classmethod
    def read(cls, folder):
        return [list(values) for values, _ in cls.targets.get(folder, [])]


class ShelfTarget:
    """The target is an object of its own, because a writer has a ``write`` too."""

    def __init__(self, shelf):
        self.last_stamp, self.commit, self.close = shelf.last_stamp, shelf.commit, shelf.close
        self.write = shelf.write_now


class Right(Shelf):
    async def target(self, world):
        return ShelfTarget(self)


class IgnoresItsStamp(Right):
    async def commit(self, payload, stamp, expect):
        values, stamps = self.kept[payload.partition]
        values += decode_value(payload.data)
        stamps[stamp.job, stamp.sink] = stamp


class StampsInAStepOfItsOwn(Right):
    async def commit(self, payload, stamp, expect):
        values, stamps = self.kept[payload.partition]
        if stamps.get((stamp.job, stamp.sink)) == stamp:
            return
        if stamps.get((stamp.job, stamp.sink)) != expect:
            raise SinkConflict("?")
        values += decode_value(payload.data)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stamps[stamp.job, stamp.sink] = stamp


class StampsFirst(Right):
    async def commit(self, payload, stamp, expect):
        values, stamps = self.kept[payload.partition]
        if stamps.get((stamp.job, stamp.sink)) == stamp:
            return
        if stamps.get((stamp.job, stamp.sink)) != expect:
            raise SinkConflict("?")
        stamps[stamp.job, stamp.sink] = stamp
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        values += decode_value(payload.data)


class ExpectsAnything(Right):
    async def commit(self, payload, stamp, expect):
        await super().commit(payload, stamp, self.kept[payload.partition][1].get((stamp.job, stamp.sink)))


class ShowsBeforeTheCheckpoint(Right):
    def take(self):
        payloads = super().take()
        for payload in payloads:
            self.kept[payload.partition][0].extend(decode_value(payload.data))
            payload.data = encode_value([])
        return payloads


class ComparesEpochsOnly(Right):
    """Parts of one epoch look alike to it."""

    async def commit(self, payload, stamp, expect):
        shown = self.kept[payload.partition][1].get((stamp.job, stamp.sink))
        if shown is not None and shown.epoch == stamp.epoch and shown.incarnation == stamp.incarnation:
            return
        await super().commit(payload, stamp, shown)


class HasOneStampForAllPartitions(Right):
    async def last_stamp(self, partition, job, sink):
        return self.kept[0][1].get((job, sink))

    async def commit(self, payload, stamp, expect):
        stamps = self.kept[0][1]
        if stamps.get((stamp.job, stamp.sink)) != stamp:
            self.kept[payload.partition][0].extend(decode_value(payload.data))
        stamps[stamp.job, stamp.sink] = stamp


class HasOneStampForAllJobs(Right):
    async def last_stamp(self, partition, job, sink):
        return self.kept[partition][1].get("stamp")

    async def commit(self, payload, stamp, expect):
        values, stamps = self.kept[payload.partition]
        if stamps.get("stamp") == stamp:
            return
        if stamps.get("stamp") != expect:
            raise SinkConflict("?")
        values += decode_value(payload.data)
        stamps["stamp"] = stamp


class ForgetsItsStamps(Right):
    def __init__(self, folder):
        super().__init__(folder)
        for _, stamps in self.kept:
            stamps.clear()


class TurnsRound(Right):
    def take(self):
        return [Payload(p.partition, encode_value(decode_value(p.data)[::-1])) for p in super().take()]


class Stamps(Right):
    """Its ``write`` leaves a stamp."""

    async def write_now(self, payload):
        stamps = self.kept[payload.partition][1]
        await super().write_now(payload)
        stamps.clear()


class Drops(Right):
    def take(self):
        return super().take()[:3]


async def test_a_right_one_passes(tmp_path):
    attacks = await check_sink(Right, Right.read, folder=tmp_path)
    assert {"no death", "repeated", "unexpected", "foreign", "new incarnation", "unstamped"} <= set(attacks)
    assert len(attacks) > 100


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (IgnoresItsStamp, "more than once"),
        (StampsInAStepOfItsOwn, "during.*more than once"),
        (StampsFirst, "during.*not visible"),
        (ExpectsAnything, "'unexpected'.*not refused"),
        (ShowsBeforeTheCheckpoint, "should not be"),
        (ComparesEpochsOnly, "not visible"),
        (HasOneStampForAllPartitions, "SinkConflict|not visible|more than once"),
        (HasOneStampForAllJobs, "'beside another job'"),
        (ForgetsItsStamps, "SinkConflict|more than once"),
        (TurnsRound, "not in the order"),
        (Stamps, "'unstamped'.*changed the stamps"),
        (Drops, "not visible"),
    ],
)
async def test_a_wrong_one_is_found_and_the_attack_named(tmp_path, wrong, what):
    with pytest.raises(AssertionError, match=f"(?s)check_sink, attack .*{what}"):
        await check_sink(wrong, wrong.read, folder=tmp_path)


@pytest.mark.parametrize("ignored", [{Kind.DELETE}, {Kind.ON_TIME, Kind.UPDATE}])
async def test_rows_that_are_not_deleted_or_not_there_are_found(tmp_path, ignored, monkeypatch):
    from connectors.sqlite.writer import TableWriter

    write = TableWriter.write

    def wrong(self, batch):
        return write(self, batch.select([kind not in ignored for kind in batch.kinds]))

    monkeypatch.setattr(TableWriter, "write", wrong)

    def table(folder):
        return {(row.pop("key"), (row.pop("window_start"), row.pop("window_end"))[0]): row for row in rows(folder)}

    with pytest.raises(AssertionError, match=r"check_sink, attack 'windows: no death'.*row \('"):
        await check_sink(lambda folder: SqliteTable(folder / "out.db", "out", upserts=True), table, folder=tmp_path)
