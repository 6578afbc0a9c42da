"""The built-in log as a source and as a sink.

As a source, chunks of the log are decoded a batch at a time: values that are lines go through one call of the line
decoder. The batch keeps the chunks, so that a late record can be passed on whole, with fields that nobody decoded.

As a sink, values are encoded in the stage, into the log's own columns; a commit only adds a header. The stamp travels
in that header, so compare-and-set and append are one write (E2).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import countOf
from typing import Any
from zlib import crc32

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import Payload, Replay, Stamp, Undecodable, World
from streamactors.core.errors import BadRecord, RecordPlace, UsageError
from streamactors.core.keys import CanonicalKey, plain_key
from streamactors.core.limits import APPEND_RECORDS_MAX, BATCH_BYTES_MAX, PENDING_CHUNK_BYTES, RECORD_BYTES_MAX
from streamactors.durable.chunk import Chunk
from streamactors.durable.exchange import shadow_name
from streamactors.durable.frames import Column, Records, line_count
from streamactors.durable.log import Topic, key_bytes
from streamactors.durable.partition import Reader

ENCODINGS = ("json", "msgpack", "raw")

_PART_CACHE_MAX = 200_000
"""Keys whose partition a sink remembers; then it starts afresh, or a stream of ever new keys would fill the memory."""

_SOUGHT_SINGLY = 32
"""Originals of a batch that are sought one by one: 32 of 1,000 lines take 90 µs, to split them takes 180."""


# The source. ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TopicSource:
    """A topic of the log, decoded into values of a type."""

    name: str
    type: Any = None
    encoding: str = "json"
    replay = Replay.BY_OFFSET

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UsageError(f"topic {self.name}: encoding {self.encoding!r} is none of {', '.join(ENCODINGS)}.")

    def __str__(self) -> str:
        kind = "" if self.type is None else f" of {getattr(self.type, '__name__', self.type)}"
        return f"topic {self.name} ({self.encoding}{kind})"

    @property
    def id(self) -> str:
        """The topic's name."""
        return self.name

    async def ends(self, world: World) -> list[int]:
        """Return the durable ends, or refuse a topic that is not there."""
        topic = await self._topic(world)
        return [topic.partition(number).durable_end() for number in range(topic.partitions)]

    async def reader(self, world: World, partition: int, start: int) -> _TopicReader:
        """Return a reader of one partition; 0 is the oldest record that retention has left."""
        opened = (await self._topic(world)).partition(partition)
        if start == 0:
            start = await opened.first_offset()
        opened.require(start)  # a bounded run would take it for the end, and skip what is appended up to there
        return _TopicReader(self, partition, opened.durable_end, opened.reader(start))

    async def _topic(self, world: World) -> Topic:
        topic: Topic | None = await world.log.topic(self.name)
        if topic is None:
            raise UsageError(
                f"there is no topic {self.name} in {world.data_dir}. Make it: `streamactors log append --data "
                f"{world.data_dir} {self.name} < lines.jsonl`, or log.create_topic({self.name!r})."
            )
        return topic


class _TopicReader:
    def __init__(self, source: TopicSource, partition: int, durable_end: Callable[[], int], reader: Reader) -> None:
        self._reader = reader
        self._partition = partition
        self._source = source.name
        self.end = durable_end
        self._decode_lines: Callable[[bytes], list[Any]] | None = None
        if source.encoding == "json":
            decoder = msgspec.json.Decoder(Any if source.type is None else source.type)
            self._decode: Callable[[bytes], Any] = decoder.decode
            self._decode_lines = decoder.decode_lines
        elif source.encoding == "msgpack":
            self._decode = msgspec.msgpack.Decoder(Any if source.type is None else source.type).decode
        else:
            self._decode = bytes

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        chunks = await self._reader.read(records_max, BATCH_BYTES_MAX)
        if not chunks:
            return None
        end, count = chunks[-1].end, sum(map(len, chunks))
        offsets: Sequence[int] = range(chunks[0].first, end)
        if len(offsets) != count:  # records were erased
            offsets = [offset for chunk in chunks for offset in range(chunk.first, chunk.end)]
        origin = _TopicOrigin(self._source, self._partition, chunks)
        size = sum(chunk.size for chunk in chunks)
        values = self._lines(chunks)
        if values is None:
            values = self._one_by_one(chunks, origin, end, size)
        return Batch(values, offsets=offsets, origin=origin, bytes=size), end

    async def wait(self) -> None:
        await self._reader.wait()

    async def close(self) -> None:
        await self._reader.close()

    def _lines(self, chunks: list[Chunk]) -> list[Any] | None:
        """Return the values in one call of the line decoder; None when they are no lines, or not all can be decoded."""
        if self._decode_lines is None or not all(chunk.lines for chunk in chunks):
            return None
        blob = chunks[0].blob if len(chunks) == 1 else b"".join([chunk.blob for chunk in chunks])
        try:
            values = self._decode_lines(blob)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return values if len(values) == sum(map(len, chunks)) else None

    def _one_by_one(self, chunks: list[Chunk], origin: _TopicOrigin, end: int, size: int) -> list[Any]:
        """Return the values, or raise Undecodable with those that can be decoded."""
        values: list[Any] = []
        offsets: list[int] = []
        bad: list[tuple[BadRecord, Batch]] = []
        for chunk in chunks:
            for offset, value in enumerate(chunk.values(), chunk.first):
                try:
                    values.append(self._decode(value))
                    offsets.append(offset)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    bad.append(self._bad(bytes(value), offset, origin, error))
        if bad:
            raise Undecodable(Batch(values, offsets=offsets, origin=origin, bytes=size), end, bad)
        return values

    def _bad(self, value: bytes, offset: int, origin: _TopicOrigin, error: Exception) -> tuple[BadRecord, Batch]:
        place = RecordPlace(self._source, self._partition, offset)
        bad = BadRecord(f"topic {self._source}", place, value, f"{type(error).__name__}: {error}", 0)
        bad.__cause__ = error
        return bad, Batch([value], offsets=[offset], origin=origin)


class _TopicOrigin:
    __slots__ = ("_chunks", "_firsts", "partition", "source")

    def __init__(self, source: str, partition: int, chunks: list[Chunk]) -> None:
        self.source = source
        self.partition = partition
        self._chunks = chunks
        self._firsts = [chunk.first for chunk in chunks]

    def originals(self, offsets: Sequence[int]) -> list[bytes]:
        chunks = [self._chunks[bisect_right(self._firsts, offset) - 1] for offset in offsets]
        if len(offsets) > _SOUGHT_SINGLY:
            for chunk in dict.fromkeys(chunks):
                chunk.values()  # splits it, once: from here on each value costs an index
        return [chunk.value(offset) for chunk, offset in zip(chunks, offsets, strict=True)]


# The sink. ------------------------------------------------------------------------------------------------------------


class _Columns(msgspec.Struct, array_like=True):
    """A payload: the columns of one stamped append."""

    count: int
    blob: bytes
    lengths: bytes | None
    nonempty: bool
    keys: _Columns | None = None

    @classmethod
    def of(cls, column: Column, keys: Column | None = None) -> _Columns:
        lengths = None if column.lengths is None else column.lengths.tobytes()
        return cls(column.count, column.blob, lengths, column.nonempty, None if keys is None else cls.of(keys))

    def column(self) -> Column:
        lengths = None if self.lengths is None else array("i", self.lengths)
        return Column(self.count, self.blob, lengths, self.nonempty)

    def records(self) -> Records:
        return Records(self.column(), None if self.keys is None else self.keys.column())


_encode_payload = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(_Columns).decode


def without_records(payload: bytes, goes: Callable[[bytes | None, bytes], bool]) -> tuple[bytes, int]:
    """
    Return a payload of this sink with tombstones for the records of which *goes*(key, value) is true, and how many.

    For output that waits in a checkpoint: committed later, its offsets are what they would have been.
    """
    records = _decode_payload(payload).records()
    values = records.column.values()
    keys = [None] * len(values) if records.key_column is None else records.key_column.values()
    pairs = enumerate(zip(keys, values, strict=True))
    rows = [row for row, (key, value) in pairs if value is not None and goes(key, value)]
    if not rows:
        return payload, 0
    left = records.without(rows)
    return _encode_payload(_Columns.of(left.column, left.key_column)), len(rows)


@dataclass(frozen=True, eq=False)
class TopicSink:
    """A topic of the log, appended to once an epoch, exactly once."""

    name: str
    partition_count: int | None = None
    encoding: str = "json"
    upserts = False

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS[:2]:
            raise UsageError(f"topic {self.name}: encoding {self.encoding!r} is neither json nor msgpack.")

    def __str__(self) -> str:
        return f"topic {self.name} ({self.encoding})"

    @property
    def address(self) -> tuple[str, ...]:
        """The topic's name, as readers know it."""
        return "topic", self.name

    def _name(self, world: World) -> str:
        return self.name if world.shadow is None else shadow_name(self.name, world.shadow)

    @property
    def id(self) -> str:
        """The topic's name, in a space of its own: a topic may be a source of the same pipeline's next version."""
        return f"topic.{self.name}"

    async def partitions(self, world: World) -> int:
        """Make the topic when it is not there; return its number of partitions."""
        name = self._name(world)
        topic: Topic | None = await world.log.topic(name)
        if topic is None or (self.partition_count is not None and topic.partitions != self.partition_count):
            topic = await world.log.create_topic(name, self.partition_count or await self._partitions_known(world))
        return topic.partitions

    async def _partitions_known(self, world: World) -> int:
        """Return how many partitions the topic has that readers know: a shadow gets as many."""
        known: Topic | None = await world.log.topic(self.name)
        return 1 if known is None else known.partitions

    def writer(self, partitions: int) -> _TopicWriter:
        """Return a writer."""
        return _TopicWriter(self, partitions)

    async def target(self, world: World) -> _TopicTarget:
        """Open the topic for commits."""
        return _TopicTarget(world.log, await world.log.topic(self._name(world)))


class _TopicWriter:
    def __init__(self, sink: TopicSink, partitions: int) -> None:
        self._name = f"topic {sink.name}"
        json = sink.encoding == "json"
        self._json = msgspec.json.Encoder(order="deterministic") if json else None
        self._encode: Callable[[Any], bytes] = (
            self._json.encode if self._json is not None else msgspec.msgpack.Encoder(order="deterministic").encode
        )
        self._partitions = range(partitions)
        self._groups = [_Group() for _ in self._partitions]
        self._payloads: list[Payload] = []
        self._part_of: dict[CanonicalKey, int] = {}
        self._bytes = 0

    def write(self, batch: Batch) -> int:
        """Encode the batch into the columns of its partitions."""
        if not batch.values:
            return self._bytes
        if len(self._partitions) == 1:
            made = {0: self._columns(batch)}
        else:
            made = {part: self._columns(batch.take(rows)) for part, rows in self._rows_by_partition(batch).items()}
        for partition, pieces in made.items():  # all could be encoded
            for column, keys in pieces:
                if not self._groups[partition].fits(column):
                    self._close_group(partition)
                self._groups[partition].add(column, keys)
                self._bytes += _size(column) + _size(keys)
        return self._bytes

    def take(self) -> list[Payload]:
        """Return payloads of about PENDING_CHUNK_BYTES, those of a partition in order."""
        for partition in self._partitions:
            self._close_group(partition)
        payloads, self._payloads = self._payloads, []
        self._bytes = 0
        return payloads

    def _close_group(self, partition: int) -> None:
        """Make a payload of a partition's group as soon as it is whole: an epoch's end has little left to do."""
        group, self._groups[partition] = self._groups[partition], _Group()
        if group.columns:
            assert len(group.keys) in (0, len(group.columns)), f"{self._name}: a stream has keys, or it has none"
            columns = _Columns.of(Column.join(group.columns), Column.join(group.keys) if group.keys else None)
            self._payloads.append(Payload(partition, _encode_payload(columns)))

    def _columns(self, batch: Batch) -> list[tuple[Column, Column | None]]:
        """Return the batch's columns, cut so that each fits into a frame."""
        column, keys = self._column(batch.values), None if batch.keys is None else _key_column(batch.keys)
        size = max(_size(column), _size(keys))
        if size <= RECORD_BYTES_MAX + len(b"\n"):
            return [(column, keys)]
        if len(batch) == 1:
            raise BadRecord(
                self._name,
                None,
                batch.values[0],
                f"it has {size - 1:,} bytes, a record of the log at most {RECORD_BYTES_MAX:,} "
                "(limits.RECORD_BYTES_MAX). Store it elsewhere, and put its name into the topic",
            )
        middle = len(batch) // 2
        first, second = batch.take(list(range(middle))), batch.take(list(range(middle, len(batch))))
        return [*self._columns(first), *self._columns(second)]

    def _column(self, values: list[Any]) -> Column:
        kinds = {type(values[0])}
        if countOf(map(type, values), *kinds) != len(values):
            kinds = set(map(type, values))
        try:
            if kinds == {bytes}:
                return Column.of(values)
            if self._json is not None and bytes not in kinds:
                blob = self._json.encode_lines(values)
                if line_count(blob) == len(values):  # else a msgspec.Raw brought a newline of its own
                    return Column(len(values), blob, None, nonempty=True)
            return Column.of([v if type(v) is bytes else self._encode(v) for v in values])
        except (TypeError, ValueError, OverflowError) as error:
            raise self._bad(values, error) from error

    def _bad(self, values: list[Any], error: Exception) -> BadRecord:
        for value in values:
            try:
                self._encode(value)
            except (TypeError, ValueError, OverflowError) as one:
                return BadRecord(self._name, None, value, f"it can't be encoded ({one}). Map it to plain values first")
        return BadRecord(self._name, None, values, str(error))

    def _rows_by_partition(self, batch: Batch) -> dict[int, list[int]]:
        partitions = len(self._partitions)
        rows: dict[int, list[int]] = {}
        if batch.keys is None:  # by offset, which a restart or another batching does not change (T1, T2)
            for row, offset in enumerate(batch.offsets):
                rows.setdefault(offset % partitions, []).append(row)
            return rows
        if len(self._part_of) > _PART_CACHE_MAX:
            self._part_of.clear()
        for key in set(batch.keys).difference(self._part_of):
            self._part_of[key] = crc32(_key_bytes(key)) % partitions
        for row, key in enumerate(batch.keys):
            rows.setdefault(self._part_of[key], []).append(row)
        return rows


def _size(column: Column | None) -> int:
    return 0 if column is None else len(column.blob)


class _Group:
    """Columns that become one append of a good size."""

    __slots__ = ("columns", "count", "keys", "size")

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.keys: list[Column] = []
        self.size = self.count = 0

    def fits(self, column: Column) -> bool:
        """Return whether *column* may be added."""
        return not self.columns or (
            self.size + len(column.blob) <= PENDING_CHUNK_BYTES and self.count + column.count <= APPEND_RECORDS_MAX
        )

    def add(self, column: Column, keys: Column | None) -> None:
        """Add a batch's columns."""
        self.columns.append(column)
        if keys is not None:
            self.keys.append(keys)
        self.size += len(column.blob)
        self.count += column.count


def _key_column(keys: list[CanonicalKey]) -> Column:
    with suppress(TypeError):  # not all are str
        blob = "\n".join([*keys, ""]).encode()  # type: ignore[list-item]  # as the line above says
        if line_count(blob) == len(keys):
            return Column(len(keys), blob, None, nonempty=all(keys))
    return Column.of(list(map(_key_bytes, keys)))


def _key_bytes(key: CanonicalKey) -> bytes:
    """Return a record's key in the log: text as it is, anything else as JSON."""
    plain = plain_key(key)
    encoded = key_bytes(plain) if isinstance(plain, str | bytes | int) and type(plain) is not bool else None
    return msgspec.json.encode(plain) if encoded is None else encoded


class _TopicTarget:
    def __init__(self, log: Any, topic: Any) -> None:
        self._log = log
        self._topic: Topic = topic

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        # A region that starts again asks this first. If a failed sync has closed the partition, the log opens it anew.
        self._topic = await self._log.topic(self._topic.name)
        return await self._topic.partition(partition).last_stamp(job, sink)

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        records = _decode_payload(payload.data).records()
        await self._topic.partition(payload.partition).append_stamped(records, stamp, expect)

    async def write(self, payload: Payload) -> None:
        await self._topic.partition(payload.partition).append(_decode_payload(payload.data).records())

    async def close(self) -> None:
        """Let go of the writers' locks; the log itself is the job's."""
        for number in range(self._topic.partitions):
            await self._topic.partition(number).reopen()
