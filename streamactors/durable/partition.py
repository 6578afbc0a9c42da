"""A partition: where its writer, its readers and its durable end meet.

    callers ─▶ GroupCommit ─▶ Appender ─▶ segment file ─▶ sync ─▶ cell (durable end)
                (loop)         (lane)                               │ watched here, polled by other processes
               Chunk ◀─ Reader ◀─ SegmentReader ◀─ segment file ◀───┘
                        (loop)    (lane "read")

Opening for reading is attaching the cell. If this boot of the machine has published none, whoever is here first takes
the writer's lock, recovers, publishes, and lets go; if somebody has the lock, he is doing just that, and we wait.

Opening for writing happens at the first append: then the lock is taken, and held until close.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

from streamactors.core.errors import Damaged, Held, LogClosed, UsageError
from streamactors.core.limits import BATCH_BYTES_MAX, BATCH_RECORDS_MAX
from streamactors.core.ports import Cell, Ports

from .appender import attach_cell, open_appender
from .appends import Appends
from .chunk import Chunk
from .commits import GroupCommit
from .frames import Records, Stamp
from .register import Erasure, read_register
from .segment import DELETED
from .segment_reader import Places, SegmentReader
from .tables import Producer
from .tail import POLL_SECONDS, Tails

READ_LANE = "read"

LOCK_TRIES = 4
"""Tries to take the writer's lock, POLL_SECONDS apart: a reader that recovers holds it for a moment, and a process
that was just killed for as long as it takes to die."""


class Partition:
    """One partition of a topic. Made by ``open_partition``."""

    def __init__(self, ports: Ports, tails: Tails, topic: str, number: int, folder: Path, cell: Cell) -> None:
        self._ports = ports
        self._tails = tails
        self._folder = folder
        self._cell = cell
        self._places = Places()
        self._readers: set[Reader] = set()
        self._commits: GroupCommit | None = None
        self._opening: asyncio.Task[GroupCommit] | None = None
        self._closed = False
        self._lookup = SegmentReader(ports.disk, folder, self._places)
        self.topic = topic
        self.number = number
        self.appends = Appends(ports.clock.monotonic)
        """What was written through this object."""

        self.lane = f"log/{topic}/{number}"

    def __repr__(self) -> str:
        return f"Partition({self.topic}/{self.number} to {self.durable_end()})"

    # --- reading -----------------------------------------------------------------------------------------------

    def durable_end(self) -> int:
        """Return the offset behind the last durable record. Cost: a load from memory."""
        return self._cell.load() - 1

    @property
    def deleted(self) -> bool:
        """Whether another process has deleted the topic since it was opened here."""
        return self._cell.load() == DELETED

    def reader(self, start: int = 0) -> Reader:
        """Return a reader whose first record is *start*; it may wait there if that is the durable end."""
        if self._closed:
            raise LogClosed(f"{self.topic}/{self.number} was closed by its owner. Open the log again to read.")
        reader = Reader(self, start)
        self._readers.add(reader)
        return reader

    def require(self, offset: int) -> None:
        """Refuse an offset behind the durable end: whoever has read so far before has read what is lost now."""
        end = self.durable_end()
        if offset > end:
            raise Damaged(
                f"{self.topic}/{self.number} is durable up to offset {end}, and is to be read from {offset}. If it was "
                "read up to there before, records that were durable are lost: restore the partition's folder from a "
                "copy."
            )

    async def first_offset(self) -> int:
        """Return the first offset that retention has left."""
        return await self._ports.threads.run(READ_LANE, self._lookup.first_offset)

    async def offset_at(self, append_time_ms: int) -> int:
        """Return the offset of the first record appended at or after that time; the durable end if there is none."""
        return await self._ports.threads.run(READ_LANE, self._lookup.offset_at, append_time_ms, self.durable_end())

    async def read_at(self, offset: int) -> bytes:
        """Return the value at *offset*, which must be durable. Cost: reads and checks its frame."""
        assert 0 <= offset < self.durable_end(), f"offset {offset} of {self!r}"
        chunks = await self._ports.threads.run(READ_LANE, self._lookup.read, offset, offset + 1)
        if not chunks or chunks[0].first > offset:
            raise UsageError(
                f"{self.topic}/{self.number}: the record at offset {offset} was erased (`streamactors forget`). Its "
                "place is kept, its value is gone for good."
            )
        return chunks[0].value(offset)

    async def time_at(self, offset: int) -> int:
        """Return the append time of the record at *offset*, which must be durable; of one that was erased too."""
        return await self._ports.threads.run(READ_LANE, self._lookup.time_at, offset)

    async def erasures(self) -> list[Erasure]:
        """Return which records were erased here, and when."""
        return await self._ports.threads.run(READ_LANE, read_register, self._ports.disk, self._folder)

    def now_ms(self) -> int:
        """Return the time that an append would get now."""
        return self._ports.clock.now_ms()

    async def size(self) -> tuple[int, int]:
        """Return how many segments there are, and their bytes."""
        return await self._ports.threads.run(READ_LANE, self._lookup.size)

    # --- writing -----------------------------------------------------------------------------------------------

    async def append(self, records: Records, *, producer: Producer | None = None) -> int:
        """
        Append *records* and return the offset of the first one.

        When this returns, the records are on disk and will be read back after a power failure. When it raises
        UsageError, Held or QuotaFull, none of them is in the log. Cancelling it is safe: the records are then either
        whole in the log or absent.

        Args:
            records:
                1 to ``limits.APPEND_RECORDS_MAX`` of them.

            producer:
                (id, sequence), with a sequence that grows by append. An append whose sequence is in the log already
                writes nothing and returns the offset of the first try, so that repeating an append whose answer was
                lost is harmless. (If it is older than its producer's last one, the answer is
                ``tables.OFFSET_UNKNOWN``.) Survives restarts.

        Raises:
            Held: another process writes this partition.

            QuotaFull: the disk is full; nothing was written. The same append may succeed later.

            LogClosed: closed by its owner, or a sync failed: whether the records are durable is not known. Repeat it
            with the same producer and sequence: the next append opens the files again, which recovers.

            StorageError, Damaged: the files can't be opened for appends; nothing was written.

        Cost:
            One write and one sync, shared by the appends that wait together.
        """
        return await (await self._writer()).append(records, producer)

    async def claim(self) -> None:
        """Take the writer's lock now, not at the first append. Raises as ``append`` does when it can't."""
        await self._writer()

    async def append_stamped(self, records: Records, stamp: Stamp, expect: Stamp | None) -> bool:
        """
        Append *records* with *stamp* if the last stamp of its (job, sink) here is *expect*; compared and set at once.

        The records are one frame: visible together, and with their stamp. What is more than a frame holds is several
        parts, each of which expects the one before.

        Returns:
            True when they are durable now, False when the last stamp is *stamp* itself: done already.

        Raises:
            SinkConflict: the last stamp is another one; nothing was written.

            Held, QuotaFull, LogClosed: as for ``append``.
        """
        return await (await self._writer()).append_stamped(records, stamp, expect)

    async def last_stamp(self, job: str, sink: str) -> Stamp | None:
        """Return the last stamp of *sink* here, or None. Takes the writer's lock: only its writer may rely on it."""
        return await (await self._writer()).last_stamp(job, sink)

    async def remove_segments(self, may_go: Callable[[int, int, int], bool]) -> int:
        """Remove old segments; see ``Topic.retain``."""
        return await (await self._writer()).remove_segments(may_go)

    @property
    def writes(self) -> bool:
        """Whether this process holds the writer's lock through this object, so that nobody else can move the end."""
        return self._commits is not None and self._commits.closed is None

    @property
    def failed(self) -> bool:
        """Whether a failure has closed it for appends; it can still be read."""
        return self._commits is not None and self._commits.closed is not None

    async def _writer(self) -> GroupCommit:
        if self._closed:
            raise LogClosed(f"{self.topic}/{self.number} was closed by its owner. Open the log again to append.")
        if self._commits is not None and self._commits.closed is None:
            return self._commits
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_writer(), name=f"{self.lane} opens")
        # Shielded: a caller that is cancelled meanwhile must not leave a lock behind that nobody owns.
        return await asyncio.shield(self._opening)

    async def _open_writer(self) -> GroupCommit:
        await self._release()
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                appender = await self._ports.threads.run(
                    self.lane, open_appender, self._ports.disk, self._folder, self._ports.new_id
                )
            except Held:
                if not tries_left:
                    raise
                await self._ports.clock.sleep(POLL_SECONDS)
                continue
            break
        appender.appends = self.appends  # one follows the other when a failure has closed it; the counts go on
        self._commits = GroupCommit(self._ports, self.lane, appender, f"{self.topic}/{self.number}")
        return self._commits

    async def reopen(self) -> None:
        """Give files and lock back, also those that are just being opened; the next append opens, and recovers."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wait({opening})
            if not opening.cancelled():
                opening.exception()  # its caller has it, or was cancelled
        await self._release()

    async def _release(self) -> None:
        commits, self._commits = self._commits, None
        if commits is not None:
            await commits.close()

    async def close(self) -> None:
        """Return when what was taken is durable, and all files and the lock are released."""
        self._closed = True
        await self.reopen()
        for reader in list(self._readers):
            await reader.close()
        await self._ports.threads.run(READ_LANE, self._lookup.close)
        self._cell.close()


class Reader:
    """Reads one partition in order, from a start, as far as it is durable. For one task at a time."""

    def __init__(self, partition: Partition, start: int) -> None:
        self._partition = partition
        self._files = SegmentReader(partition._ports.disk, partition._folder, partition._places)  # noqa: SLF001 - one unit
        self._ready: deque[Chunk] = deque()  # read and checked, not yet handed out
        self.position = start
        """Offset of the record that ``read`` returns next."""

        self.erased_records = 0
        """Tombstones that were passed over: offsets whose record was erased."""

    def __repr__(self) -> str:
        return f"Reader({self._partition.topic}/{self._partition.number} at {self.position})"

    async def read(self, max_records: int = BATCH_RECORDS_MAX, max_bytes: int = BATCH_BYTES_MAX) -> list[Chunk]:
        """
        Return the next records, at least one and at most *max_records*; nothing at the durable end.

        *max_bytes* bounds the values' bytes; a single larger record is returned alone. A record that was erased is
        passed over: its offset is in none of the chunks.

        Raises:
            Damaged: what was durable can't be read; with file and position. Also when the start lies past the
            durable end: who has read that far before has read what is lost now.

            UsageError: retention has removed the records.
        """
        while not self._ready:
            partition, end = self._partition, self._partition.durable_end()
            if partition.deleted:
                raise UsageError(
                    f"topic {partition.topic} was deleted by another process, while it was read here, at offset "
                    f"{self.position} of partition {partition.number}. What was not read by then is gone; unless a "
                    "promotion has exchanged it: then it bears its version's label now, and this name is the new one's."
                )
            if self.position >= end:
                partition.require(self.position)
                return []
            run = partition._ports.threads.run  # noqa: SLF001 - one unit
            chunks = await run(READ_LANE, self._files.read, self.position, end)
            self._ready.extend(chunks)
            if not chunks:
                self._pass_to(self._files.offset)
        return self._take(max_records, max_bytes)

    async def wait(self) -> None:
        """Return when there is more to read."""
        partition = self._partition
        while not self._ready and partition.durable_end() <= self.position:
            await partition._tails.wait_past(partition._cell, self.position + 1, poll=not partition.writes)  # noqa: SLF001

    async def close(self) -> None:
        """Release the file that is open; harmless when repeated."""
        self._ready.clear()
        self._partition._readers.discard(self)  # noqa: SLF001 - one unit
        await self._partition._ports.threads.run(READ_LANE, self._files.close)  # noqa: SLF001

    def _pass_to(self, offset: int) -> None:
        """Stand at *offset*; what is between is tombstones."""
        self.erased_records += offset - self.position
        self.position = offset

    def _take(self, records: int, size: int) -> list[Chunk]:
        taken: list[Chunk] = []
        goal = records
        while self._ready and records > 0:
            chunk = self._ready.popleft()
            fitting = chunk.count_within(size)
            count = min(records, fitting)
            too_large = fitting == 1 and chunk.size > size
            # To cut a chunk and join the piece to others costs more than a batch that isn't full.
            full_enough = count < chunk.count and 2 * records < goal
            if taken and (too_large or full_enough):
                self._ready.appendleft(chunk)
                break
            head, rest = chunk.split(count) if count < chunk.count else (chunk, None)
            if rest is not None:
                self._ready.appendleft(rest)
            taken.append(head)
            self._pass_to(head.first)
            records -= head.count
            size -= head.size
            self.position = head.end
            if size <= 0:
                break
        return taken


async def open_partition(ports: Ports, tails: Tails, topic: str, number: int, folder: Path) -> Partition:
    """Return the partition, ready to be read up to its durable end; recover it if nobody has since the last boot."""
    lane = f"log/{topic}/{number}"
    while True:
        cell = await ports.threads.run(READ_LANE, attach_cell, ports.disk, folder)
        if cell is not None:
            return Partition(ports, tails, topic, number, folder, cell)
        try:
            await ports.threads.run(lane, _recover, ports, folder)
        except Held:  # the holder is recovering: wait for what he publishes
            await ports.clock.sleep(POLL_SECONDS)


def _recover(ports: Ports, folder: Path) -> None:
    open_appender(ports.disk, folder, ports.new_id).close()
