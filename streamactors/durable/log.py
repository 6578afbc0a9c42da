"""The log: topics of partitions in a data folder.

    DATA/log/<topic>/topic.json       how many partitions, fixed for the topic's life
    DATA/log/<topic>/<number>/        one partition; see segment.py

A topic exists when its topic.json does; that is renamed into place last, so a crash before leaves empty folders and no
topic. A key decides the partition by CRC-32, which is the same in all processes and releases (Python's own ``hash`` of
a string is not). Records without a key go round.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar
from zlib import crc32

import msgspec

from streamactors.core.errors import NO_ROOM, Held, QuotaFull, StorageError, UsageError
from streamactors.core.formats import newer
from streamactors.core.ports import Ports

from .appends import Appends
from .chunk import Chunk
from .frames import Records
from .partition import Partition, open_partition
from .realtime import real_ports
from .removal import may_go
from .tables import Producer
from .tail import POLL_SECONDS, Tails
from .whole import replace_whole

PARTITIONS_MAX = 1_024
"""Partitions of a topic: each is a folder, a lock and a thread when written; one machine has no use for more."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_DESCRIPTION = "topic.json"
_LANE = "log"

T = TypeVar("T")
PlainKey = bytes | str | int | None
"""A key as the caller has it; see ``key_bytes``."""

Encoding = Literal["json", "msgpack", "raw"]


class Place(NamedTuple):
    """Where a record is in its topic."""

    partition: int
    offset: int


_TOPIC_VERSION = 1


class _TopicFile(msgspec.Struct):
    partitions: int
    version: int = _TOPIC_VERSION


class Log:
    """The topics under one data folder. Use it as ``async with Log(data_dir) as log``."""

    def __init__(self, data_dir: Path, ports: Ports | None = None) -> None:
        self._folder = Path(data_dir) / "log"
        self._owns_ports = ports is None
        self._ports = ports if ports is not None else real_ports()
        self._tails = Tails(self._ports.clock)
        self._topics: dict[str, Topic] = {}
        self._opening = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def create_topic(self, name: str, partitions: int = 1) -> Topic:
        """
        Return topic *name* with *partitions* partitions, made if it is not there.

        Raises:
            UsageError: it is there with another number of partitions (which is fixed for a topic's life: a key would
            move to another partition), or the name or number is no good.

            QuotaFull: the disk is full; there is no such topic.
        """
        folder = self._topic_folder(name)
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise UsageError(f"a topic has 1 to {PARTITIONS_MAX} partitions, not {partitions}.")
        while True:
            try:
                found = await self._ports.threads.run(_LANE, self._make, folder, partitions)
                break
            except Held:  # another process is making it
                await self._ports.clock.sleep(POLL_SECONDS)
        if found != partitions:
            raise UsageError(
                f"topic {name} has {found} partitions, not {partitions}; the number is fixed for a topic's life. "
                f"Open it with {found}, or make a topic with another name."
            )
        topic = await self.topic(name)
        assert topic is not None, "its description was just read"
        return topic

    async def topic(self, name: str) -> Topic | None:
        """
        Return topic *name*, or None if there is none. All its partitions can be read up to their durable ends.

        A partition that a failed sync has closed is opened anew.
        """
        folder = self._topic_folder(name)
        async with self._opening:
            self._refuse_closed()
            if name in self._topics and self._topics[name].partition(0).deleted:
                await self._close(self._topics.pop(name))  # one of that name that was made since is another topic
            if name not in self._topics:
                partitions = await self._ports.threads.run(_LANE, self._described, folder)
                if partitions is None:
                    return None
                self._topics[name] = Topic(name, await self._open_partitions(name, folder, partitions))
            topic = self._topics[name]
            for number in range(topic.partitions):
                if topic.partition(number).failed:
                    await topic.partition(number).reopen()
            return topic

    async def topics(self) -> list[str]:
        """Return the names of all topics, sorted."""
        return await self._ports.threads.run(_LANE, self._names)

    def appends(self) -> dict[str, Appends]:
        """Return, by topic, what has been written through this object: partitions together."""
        found: dict[str, Appends] = {}
        for name, topic in list(self._topics.items()):
            for number in range(topic.partitions):
                appends = topic.partition(number).appends
                if appends.sync_seconds.count:
                    found.setdefault(name, Appends()).add(appends)
        return found

    async def typed(self, name: str, kind: type[T], *, encoding: Encoding = "json") -> TypedTopic[T]:
        """Return a handle on topic *name* for values of type *kind*, a ``msgspec.Struct`` say."""
        topic = await self.topic(name)
        if topic is None:
            raise UsageError(f"there is no topic {name} in {self._folder}. Make it with create_topic().")
        return TypedTopic(topic, kind, encoding)

    async def close(self) -> None:
        """Return when all appends that were taken are durable, and files, locks and threads are released."""
        self._closed = True
        async with self._opening:
            for topic in self._topics.values():
                await self._close(topic)
            self._topics.clear()
        await self._tails.close()
        if self._owns_ports:
            await self._ports.threads.close()

    async def _close(self, topic: Topic) -> None:
        for number in range(topic.partitions):
            await topic.partition(number).close()

    async def _open_partitions(self, name: str, folder: Path, partitions: int) -> list[Partition]:
        opened: list[Partition] = []
        try:
            for number in range(partitions):
                part = await open_partition(self._ports, self._tails, name, number, folder / str(number))
                opened.append(part)
        except BaseException:
            for part in opened:
                await part.close()
            raise
        return opened

    def _topic_folder(self, name: str) -> Path:
        self._refuse_closed()
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} can't name a topic: a letter or digit, then up to 99 letters, digits, '.', '_' or '-'."
            )
        return self._folder / name

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UsageError(f"the log in {self._folder} was closed. Make a new Log object to use it again.")

    # --- in the lane -------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        disk = self._ports.disk
        names = [name for name in disk.names(self._folder) if _NAME.fullmatch(name)]
        return [name for name in names if disk.exists(self._folder / name / _DESCRIPTION)]

    def _described(self, folder: Path) -> int | None:
        disk, path = self._ports.disk, folder / _DESCRIPTION
        if not disk.exists(path):
            return None
        file = disk.open(path)
        try:
            found = msgspec.json.decode(file.read(0, file.size()), type=_TopicFile)
        except msgspec.DecodeError as error:
            raise StorageError(f"{path} is not a topic's description ({error}). Restore it from a copy.") from error
        finally:
            file.close()
        if found.version > _TOPIC_VERSION:
            raise StorageError(newer(str(path), found.version, _TOPIC_VERSION))
        return found.partitions

    def _make(self, folder: Path, partitions: int) -> int:
        """Return the number of partitions that the topic has now."""
        try:
            return self._describe(folder, partitions)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise QuotaFull(
                f"the disk is full: topic {folder.name} was not made in {folder} ({error}). Make room, then make it "
                "again."
            ) from error

    def _describe(self, folder: Path, partitions: int) -> int:
        found = self._described(folder)
        if found is not None:
            return found
        disk = self._ports.disk
        disk.make_folder(folder)
        lock = disk.lock(folder / "topic.lock")
        try:
            found = self._described(folder)
            if found is not None:
                return found
            for number in range(partitions):
                disk.make_folder(folder / str(number))
            data = msgspec.json.encode(_TopicFile(partitions)) + b"\n"
            replace_whole(disk, folder / f"{_DESCRIPTION}.new", folder / _DESCRIPTION, data)
        finally:
            lock.release()
        return partitions


class Topic:
    """A named sequence of records in partitions. Made by ``Log``."""

    def __init__(self, name: str, partitions: list[Partition]) -> None:
        self._partitions = partitions
        self._next = 0  # the partition of the next record without a key
        self._claimed: int | None = None
        self.name = name

    def __repr__(self) -> str:
        return f"Topic({self.name}, {self.partitions} partitions)"

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return len(self._partitions)

    def partition(self, number: int) -> Partition:
        """Return one partition, 0 <= number < partitions."""
        return self._partitions[number]

    async def claim(self) -> int:
        """
        Take a partition that no other process writes, for records without a key; return its number.

        For several processes that append to one topic, each to a partition of its own: the workers of a web service.
        The partition stays taken until the log is closed or the process ends, however it ends. Give the topic some
        partitions more than there are processes: one that starts may meet one that is still ending.

        Raises:
            Held: other processes write all partitions.
        """
        for partition in self._partitions:
            try:
                await partition.claim()
            except Held as held:
                error = held
                continue
            self._claimed = partition.number
            return partition.number
        raise error

    async def append(self, value: bytes, *, key: PlainKey = None, producer: Producer | None = None) -> Place:
        """
        Append one record and return its place once it is durable; see ``Partition.append``.

        A producer's sequences are kept by partition: with a *producer*, give a key, or use one partition; else a
        repeated append may go to another partition, which does not know the first.
        """
        encoded = key_bytes(key)
        partition = self._partitions[self._choose(encoded)]
        records = Records.of([value], None if encoded is None else [encoded])
        return Place(partition.number, await partition.append(records, producer=producer))

    async def append_many(self, values: Sequence[bytes], *, keys: Sequence[PlainKey] | None = None) -> dict[int, int]:
        """
        Append *values*, each to the partition of its key; return the first offset in each partition that got some.

        Those of one partition become durable together, in their order; different partitions don't.
        """
        if not values:
            return {}
        encoded = None if keys is None else [key_bytes(key) for key in keys]
        shares = {number: records for number, records in self._share(values, encoded) if records.count}
        offsets = await asyncio.gather(*(self._partitions[number].append(shares[number]) for number in shares))
        return dict(zip(shares, offsets, strict=True))

    async def retain(
        self,
        *,
        max_age_ms: int | None = None,
        max_bytes: int | None = None,
        keep_from: dict[int, int] | None = None,
    ) -> int:
        """
        Remove old records, a segment at a time, and return how many segments went.

        Args:
            max_age_ms:
                Remove segments whose last record was appended longer ago than this.

            max_bytes:
                Remove the oldest segments while a partition has more bytes than this.

            keep_from:
                For each partition, an offset from which on records are still needed, by a live job say.

        The last segment of a partition stays, and producers' sequences and sinks' stamps stay with it.
        """
        removed = 0
        for partition in self._partitions:
            rule = may_go(
                before_ms=None if max_age_ms is None else partition.now_ms() - max_age_ms,
                bytes_max=max_bytes,
                needed=(keep_from or {}).get(partition.number),
            )
            removed += await partition.remove_segments(rule)
        return removed

    def _choose(self, key: bytes | None) -> int:
        if key is not None:
            return crc32(key) % len(self._partitions)
        if self._claimed is not None:
            return self._claimed
        number, self._next = self._next, (self._next + 1) % len(self._partitions)
        return number

    def _share(self, values: Sequence[bytes], keys: list[bytes | None] | None) -> list[tuple[int, Records]]:
        """Return each partition's share, each in order."""
        count = len(self._partitions)
        if count == 1:
            return [(0, Records.of(values, keys))]
        if keys is None and self._claimed is not None:
            return [(self._claimed, Records.of(values))]
        if keys is None:
            start, self._next = self._next, (self._next + len(values)) % count
            shares = [((start + i) % count, values[i::count]) for i in range(min(count, len(values)))]
            return [(number, Records.of(share)) for number, share in shares]
        if len(keys) != len(values):
            raise UsageError(f"{len(keys)} keys for {len(values)} values. Give one key a value (None for none).")
        rows: dict[int, tuple[list[bytes], list[bytes | None]]] = {}
        for value, key in zip(values, keys, strict=True):
            share_values, share_keys = rows.setdefault(self._choose(key), ([], []))
            share_values.append(value)
            share_keys.append(key)
        return [(number, Records.of(*share)) for number, share in sorted(rows.items())]


class TypedTopic(Generic[T]):
    """A topic whose values are of one type, encoded on append and decoded on read."""

    def __init__(self, topic: Topic, kind: type[T], encoding: Encoding) -> None:
        self.topic = topic
        self._encode: Any = bytes
        self._decode: Any = bytes
        if encoding == "json":
            self._encode = msgspec.json.Encoder(order="deterministic").encode
            decoder = msgspec.json.Decoder(kind)
            self._decode, self._decode_lines = decoder.decode, decoder.decode_lines
        elif encoding == "msgpack":
            self._encode = msgspec.msgpack.Encoder(order="deterministic").encode
            self._decode = msgspec.msgpack.Decoder(kind).decode
        elif encoding != "raw":
            raise UsageError(f"encoding {encoding!r} is none of 'json', 'msgpack', 'raw'.")
        self._json = encoding == "json"

    async def append(self, value: T, *, key: PlainKey = None, producer: Producer | None = None) -> Place:
        """Append one value; see ``Topic.append``."""
        return await self.topic.append(self._encode(value), key=key, producer=producer)

    async def append_many(self, values: Sequence[T], *, keys: Sequence[PlainKey] | None = None) -> dict[int, int]:
        """Append values; see ``Topic.append_many``."""
        return await self.topic.append_many(list(map(self._encode, values)), keys=keys)

    def decode(self, chunk: Chunk) -> list[T]:
        """Return the values of a chunk. Raises ``msgspec.DecodeError`` if one is of another type."""
        if self._json and chunk.lines:
            values: list[T] = self._decode_lines(chunk.blob)
            if len(values) == chunk.count:
                return values
        return list(map(self._decode, chunk.values()))


def key_bytes(key: PlainKey) -> bytes | None:
    """Return a key's bytes: text in UTF-8, a number in decimal."""
    if key is None or isinstance(key, bytes):
        return key
    return str(key).encode()
