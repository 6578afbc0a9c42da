"""``through_log``: what a source gives is appended to a topic, and the job reads the topic.

So any source becomes one that can replay, and its guarantee starts at the durable append:

    inner partition ─▶ [ingest] ─append, stamped─▶ topic ─▶ readers of the job, by offset
                          └ acknowledge, when it is durable

There is one ingest for each partition of the inner source; they live with the reader of the topic's partition 0, and
when one fails, that reader fails with its error: the restart policy decides, as for any reader.

What a crash between reading and appending does depends on what the inner source can do:

    BY_OFFSET        nothing: each append carries a stamp with the offset that was read up to, compared and set in the
                     append itself (tables.py, P2). The next ingest begins there; nothing is lost, nothing repeats.
    UNACKNOWLEDGED   what was not appended comes again. It is acknowledged behind the append; a crash between the two
                     makes it repeat: at-least-once into the log, and exactly once from there.
    NOTHING          what was read and not yet appended is lost: one batch, and what the source had read ahead.

Invariants:

  (G1) A stamp's epoch is the inner offset behind the last record of its append: one for each inner partition in each
       partition of the topic.
  (G2) Every record of the topic stands in an append with a stamp of ours. A topic that somebody else has filled is
       refused; who appends to it later is stopped by the writer's lock, or is in this process.

Records without a key go to the partition of the topic with their inner partition's number (modulo); so they keep their
order. With a key, equal keys keep theirs. After a crash a keyed ingest reads again from the least of the topic's stamps
and drops what each partition holds; a partition of the topic that no key ever meets makes that the whole source.

A run that follows a journal reads the topic alone: a job that repeats another one's beside it must not take in what
that one does. A bounded run reads the inner source to the ends that it had at the start, or until it says EndOfInput,
and then the topic to its end.

What the inner source holds as JSON (or in another of the log's encodings) is appended as it stands, with all its
fields, and also when it can't be decoded: the reader's error policy then applies. Other values are encoded as JSON, and
come back as JSON gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import (
    AcknowledgingReader,
    EndOfInput,
    JobWatcher,
    Replay,
    Source,
    SourceReader,
    Stamp,
    Undecodable,
    World,
)
from streamactors.core.errors import BadRecord, SinkConflict, UsageError
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.durable.frames import Records
from streamactors.durable.log import Topic, key_bytes

Keys = Callable[[str, Batch], Sequence[Any]]
"""Returns the key of each record of a batch, for the operator of that name."""

_encode = msgspec.json.Encoder(order="deterministic").encode


class ThroughLog:
    """*inner*, read through a topic. See the module's header."""

    replay = Replay.BY_OFFSET

    def __init__(self, inner: Source, topic: Source, *, partitions: int = 1, keys: Keys | None = None) -> None:
        """
        Describe the source.

        Args:
            inner: What is read.

            topic: The source that reads the topic, in the inner source's encoding or in JSON.

            partitions: Of the topic, fixed for its life.

            keys: Gives each record its key in the topic.
        """
        self.inner = inner
        self.topic = topic
        self.id = inner.id
        self.type = inner.type
        self.ingest: Ingest | None = None
        """Of the running attempt."""

        self.inner_ends: list[int | None] = []
        """As they were when the job started."""

        self.keys = keys
        self._partitions = partitions
        self._world: World | None = None  # of the job that reads it

    def __str__(self) -> str:
        return f"{self.inner}, through {self.topic}"

    @property
    def place(self) -> str:
        """What its offsets are positions in."""
        return f"topic {self.topic.id}"

    async def ends(self, world: World) -> list[int | None]:
        """Make the topic if need be; where a bounded run ends is known when the inner source is read."""
        begins, self._world = self._world != world, world
        if begins and not world.follows:
            self.inner_ends = list(await self.inner.ends(world))
        topic = await world.log.create_topic(self.topic.id, self._partitions)
        if begins and world.bounded:
            return [None] * self._partitions
        return [topic.partition(number).durable_end() for number in range(self._partitions)]  # of an attempt, say

    async def reader(self, world: World, partition: int, start: int) -> _ThroughReader:
        """Return a reader of one partition of the topic; that of partition 0 runs the ingests."""
        if self._world != world:  # a version that has followed and decides now takes records in from here on
            await self.ends(world)
        if partition == 0 and not world.follows:
            self.ingest = Ingest(self, world, await world.log.topic(self.topic.id))
        return _ThroughReader(self, partition, await self.topic.reader(world, partition, start), start)

    def job_ended(self) -> None:
        """Tell the inner source, if it wants to know."""
        self._world = None
        if isinstance(self.inner, JobWatcher):
            self.inner.job_ended()


class Ingest:
    """Appends what the inner source gives, until it ends or is closed."""

    def __init__(self, source: ThroughLog, world: World, topic: Topic) -> None:
        self._source = source
        self._world = world
        self._topic = topic
        self._id = world.ports.new_id()  # else two ingests that run at once could take each other's stamp for their own
        self._encoded = getattr(source.inner, "encoding", None) is not None  # originals are what the topic holds
        self.task = asyncio.create_task(self._run(), name=f"{source.id}: ingest into {topic.name}")
        self.task.add_done_callback(lambda task: None if task.cancelled() else task.exception())  # the reader raises it

    async def close(self) -> None:
        """Return when nothing is read or appended any more."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for partition, state in enumerate(await self._appended()):
                    group.create_task(self._partition(partition, state), name=f"{self._source.id}: ingest {partition}")
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were stopped by it

    async def _appended(self) -> list[list[Stamp | None]]:
        """Return the last stamps of each inner partition, by partition of the topic; refuse a topic of others (G2)."""
        inner, outer = range(len(self._source.inner_ends)), range(self._topic.partitions)
        last = [
            [await self._topic.partition(to).last_stamp("through_log", self._sink(of)) for to in outer] for of in inner
        ]
        for to in outer:
            end = self._topic.partition(to).durable_end()
            if end and not any(stamps[to] for stamps in last):
                raise UsageError(
                    f"topic {self._topic.name} has {end:,} records in partition {to} that source {self._source.id} did "
                    "not write: the order of two writers would mean nothing after a crash. Give through_log() a topic "
                    "of its own."
                )
        return last

    def _sink(self, partition: int) -> str:
        return f"{self._source.id}/{partition}"

    async def _partition(self, number: int, stamps: list[Stamp | None]) -> None:
        source = self._source
        start = self._start(number, stamps)
        until = source.inner_ends[number] if self._world.bounded else None
        reader = await source.inner.reader(self._world, number, start)
        acknowledging = reader if isinstance(reader, AcknowledgingReader) else None
        try:
            while until is None or start < until:
                end = reader.end()
                got = await self._read(reader)
                if got is None:
                    start = max(start, end)
                    await reader.wait()
                    continue
                rows, start = got
                await self._append(number, [row for row in rows if until is None or row[0] < until], start, stamps)
                if acknowledging is not None:
                    await acknowledging.acknowledge(start)
        except EndOfInput:
            pass
        finally:
            await reader.close()

    def _start(self, number: int, stamps: list[Stamp | None]) -> int:
        """Return the inner offset to go on from (G1)."""
        theirs = stamps if self._source.keys is not None else [stamps[number % len(stamps)]]
        offsets = [0 if stamp is None else stamp.epoch for stamp in theirs]
        # Offsets of a source that counts what it gives mean nothing again: go on above all of them.
        return min(offsets) if self._source.inner.replay is Replay.BY_OFFSET else max(offsets)

    async def _read(self, reader: SourceReader) -> tuple[list[_Row], int] | None:
        """Return the next rows and the offset behind them."""
        try:
            got = await reader.read(BATCH_RECORDS_MAX)
        except Undecodable as found:
            if not self._encoded:
                raise found.bad[0][0] from None
            bad = [(batch.offsets[0], batch.values[0], None) for _, batch in found.bad]
            return sorted([*self._rows(found.batch), *bad], key=lambda row: row[0]), found.end
        return None if got is None else (self._rows(got[0]), got[1])

    def _rows(self, batch: Batch) -> list[_Row]:
        if not batch.values:
            return []
        values = batch.originals() if self._encoded else [self._encoded_value(value) for value in batch.values]
        keys = self._source.keys
        encoded = [None] * len(values) if keys is None else [_key(key) for key in keys(self._source.id, batch)]
        return list(zip(batch.offsets, values, encoded, strict=True))

    def _encoded_value(self, value: Any) -> bytes:
        try:
            return _encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"it can't be encoded for topic {self._topic.name} ({error}). Give values that JSON can hold"
            raise BadRecord(self._source.id, None, value, reason) from error

    async def _append(self, number: int, rows: list[_Row], end: int, stamps: list[Stamp | None]) -> None:
        """Append each row to its partition of the topic, unless that holds it already, and note the stamps."""
        shares: dict[int, list[_Row]] = {}
        for row in rows:
            to = (number if row[2] is None else crc32(row[2])) % len(stamps)
            last = stamps[to]
            if last is None or row[0] >= last.epoch:
                shares.setdefault(to, []).append(row)
        for to, share in shares.items():
            stamp = Stamp("through_log", self._sink(number), self._id, end, 1, 1)
            records = Records.of(
                [value for _, value, _ in share],
                None if self._source.keys is None else [key for _, _, key in share],
            )
            try:
                await self._topic.partition(to).append_stamped(records, stamp, stamps[to])
            except SinkConflict as conflict:
                raise UsageError(
                    f"topic {self._topic.name} is written by another job that reads source {self._source.id} through "
                    f"it; nothing was appended here. Stop one of them, or give it a topic of its own. ({conflict})"
                ) from conflict
            stamps[to] = stamp


_Row = tuple[int, bytes, bytes | None]
"""(inner offset, value, key)"""


class _ThroughReader:
    def __init__(self, source: ThroughLog, partition: int, reader: SourceReader, start: int) -> None:
        self._source = source
        self._partition = partition
        self._reader = reader
        self._next = start
        self.end = reader.end

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        self._raise_if_failed()
        end = self._reader.end()
        try:
            got = await self._reader.read(records_max)
        except Undecodable as found:
            self._next = found.end
            raise
        self._next = max(self._next, end) if got is None else got[1]
        return got

    async def wait(self) -> None:
        self._raise_if_failed()
        ingest = self._source.ingest
        if ingest is not None and ingest.task.done():
            if self._reader.end() <= self._next:
                raise EndOfInput
            return
        waiting = asyncio.ensure_future(self._reader.wait())
        try:
            await asyncio.wait([waiting, *([] if ingest is None else [ingest.task])], return_when="FIRST_COMPLETED")
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.result()

    async def close(self) -> None:
        if self._partition == 0 and self._source.ingest is not None:
            await self._source.ingest.close()
            self._source.ingest = None
        await self._reader.close()

    def _raise_if_failed(self) -> None:
        ingest = self._source.ingest
        if ingest is not None and ingest.task.done() and not ingest.task.cancelled():
            ingest.task.result()


def _key(key: Any) -> bytes | None:
    """Return a key as topics have it: text as it is, anything that is no text or number as JSON."""
    plain = key is None or (isinstance(key, str | bytes | int) and type(key) is not bool)
    return key_bytes(key) if plain else _encode(key)
