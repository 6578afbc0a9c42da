"""Group commit: appends that wait together share one frame, one write and one sync.

While a write is on its way to the disk, appends gather; when it is back, all that wait go as the next one (L2). So a
slow disk makes larger groups instead of a longer queue, and nobody sets a linger time.

What decides is here, in the event loop, between two writes: which appends go together, whether a producer's append is
a retry (P1), whether a stamp fits (P2). What touches the disk is the appender, in the partition's lane.

A caller that is cancelled before its append was taken leaves nothing in the log; later, its records are in it, whole.
The write itself belongs to no caller and is never cancelled.

A sink's commit has a frame of its own: then the stamp and the records that it stands for are durable at once.

Source: group commit is from Gray and Reuter, Transaction Processing, 1992.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamactors.core.errors import LogClosed, QuotaFull, SinkConflict
from streamactors.core.limits import APPEND_RECORDS_MAX
from streamactors.core.ports import Ports

from .appender import Appender
from .frames import NOTHING, Records, Stamp
from .tables import OFFSET_UNKNOWN, Producer, Tables, encode_changes

GROUP_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of appends that go together. Beyond it a sync costs less than its write, and sharing it gains nothing."""


@dataclass(slots=True)
class _Append:
    records: Records
    done: asyncio.Future[int]  # the first offset; DONE_ALREADY for a stamped one that the log has
    producer: Producer | None = None
    stamp: Stamp | None = None
    expect: Stamp | None = None
    question: bool = False  # nothing is written; it is answered when all that was taken before it is durable


_DONE_ALREADY = -2


class _Group:
    """The appends that go into one frame, and what the frame changes in the tables."""

    def __init__(self, tables: Tables, offset: int) -> None:
        self._tables = tables
        self._end = self._first = offset
        self._bytes = 0
        self._producers: dict[str, tuple[int, int]] = {}  # id -> (sequence, first offset), of this group
        self._stamp: Stamp | None = None
        self.appends: list[tuple[_Append, int]] = []  # those that bring records, with their first offsets
        self.repeats: list[tuple[_Append, int]] = []  # retries; answered when durable: the first try may be in here

    def fits(self, append: _Append) -> bool:
        """Return whether *append* may share a frame with what is here already."""
        return not self.appends or (
            not append.question
            and append.stamp is None
            and self._stamp is None
            and self._bytes + append.records.size <= GROUP_BYTES_MAX
            and self._end - self._first + append.records.count <= APPEND_RECORDS_MAX
        )

    def take(self, append: _Append, where: str) -> None:
        """Add *append*, or answer it at once if nothing is to be written for it."""
        if append.question:
            _answer(append, 0)
            return
        if append.stamp is not None:
            try:
                if not self._tables.admits(append.stamp, append.expect, where):
                    _answer(append, _DONE_ALREADY)
                    return
            except SinkConflict as error:
                _answer(append, error)
                return
            self._stamp = append.stamp
        elif append.producer is not None:
            if (offset := self._seen(append.producer)) is not None:
                self.repeats.append((append, offset))
                return
            self._producers[append.producer[0]] = (append.producer[1], self._end)
        self.appends.append((append, self._end))
        self._end += append.records.count
        self._bytes += append.records.size

    def _seen(self, producer: Producer) -> int | None:
        if producer[0] in self._producers:
            last, offset = self._producers[producer[0]]
            if producer[1] <= last:
                return offset if producer[1] == last else OFFSET_UNKNOWN
            return None
        return self._tables.seen(producer)

    def extras(self) -> bytes:
        """Return what the frame changes in the tables, encoded."""
        producers = [(name, *last) for name, last in self._producers.items()]
        return encode_changes(producers, [] if self._stamp is None else [self._stamp])

    def settle(self) -> None:
        """The frame is durable: change the tables, answer the callers."""
        for name, (sequence, offset) in self._producers.items():
            self._tables.note_producer((name, sequence), offset)
        if self._stamp is not None:
            self._tables.note_stamp(self._stamp)
        self.answer(None)

    def answer(self, error: BaseException | None) -> None:
        """Answer all callers: each its offset, or *error*."""
        for append, offset in (*self.appends, *self.repeats):
            _answer(append, offset if error is None else error)


class GroupCommit:
    """One partition's appends, from their callers to its appender."""

    def __init__(self, ports: Ports, lane: str, appender: Appender, where: str) -> None:
        self._ports = ports
        self._lane = lane
        self._appender = appender
        self._where = where
        self._waiting: deque[_Append] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self.closed: LogClosed | None = None
        """Why nothing more is taken."""

    async def append(self, records: Records, producer: Producer | None) -> int:
        """Return the first offset of *records* once they are durable."""
        return await self._enter(_Append(records, asyncio.get_running_loop().create_future(), producer))

    async def append_stamped(self, records: Records, stamp: Stamp, expect: Stamp | None) -> bool:
        """Compare and append (P2); return False if the commit is in the log already."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await self._enter(_Append(records, done, None, stamp, expect)) != _DONE_ALREADY

    async def last_stamp(self, job: str, sink: str) -> Stamp | None:
        """Return the last stamp of *sink*, of all that was taken before the call."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await self._enter(_Append(NOTHING, done, question=True))
        return self._appender.tables.last_stamp(job, sink)

    async def remove_segments(self, may_go: Callable[[int, int, int], bool]) -> int:
        """Remove old segments, oldest first; see Appender.remove_segments."""
        if self.closed is not None:
            raise self.closed
        return await self._ports.threads.run(self._lane, self._appender.remove_segments, may_go)

    async def close(self) -> None:
        """Return when all that was taken is durable, and files and lock are released."""
        if self.closed is None:
            self.closed = LogClosed(f"{self._where} was closed by its owner. Open the log again to append.")
        await self._idle()
        await self._ports.threads.run(self._lane, self._appender.close)

    async def _idle(self) -> None:
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait({self._flusher})

    async def _enter(self, append: _Append) -> int:
        if self.closed is not None:
            raise self.closed
        self._waiting.append(append)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name=f"{self._where} commits")
        return await append.done

    async def _flush(self) -> None:
        while self._waiting:
            group = self._next_group()
            try:
                if group.appends:
                    await self._ports.threads.run(self._lane, self._write, group, self._ports.clock.now_ms())
            except QuotaFull as error:  # nothing was written; the next group may fit
                group.answer(error)
                continue
            except asyncio.CancelledError as error:  # the loop is being ended: nobody may be left waiting
                self._close_failed(group, error)
                raise
            except BaseException as error:  # noqa: BLE001 - it goes to the callers, who raise it
                self._close_failed(group, error)
                return
            group.settle()

    def _next_group(self) -> _Group:
        group = _Group(self._appender.tables, self._appender.offset)
        while self._waiting and group.fits(self._waiting[0]):
            append = self._waiting.popleft()
            if not append.done.done():  # else its caller was cancelled
                group.take(append, self._where)
        return group

    def _write(self, group: _Group, now_ms: int) -> None:
        records = Records.join([append.records for append, _ in group.appends])
        self._appender.append(records, group.extras(), now_ms)

    def _close_failed(self, group: _Group, error: BaseException) -> None:
        if isinstance(error, LogClosed):
            self.closed = error
        else:
            self.closed = LogClosed(
                f"an append to {self._where} ended in {error!r}. Whether it is durable is not known. The next append "
                "opens the files again, which recovers; repeat this one with its producer and sequence."
            )
        # What is no Exception is nobody's to handle here (the end of a simulated process, say): it goes on as it is.
        answer = self.closed if isinstance(error, Exception | asyncio.CancelledError) else error
        group.answer(answer)
        while self._waiting:
            _answer(self._waiting.popleft(), answer)


def _answer(append: _Append, answer: int | BaseException) -> None:
    if append.done.done():  # its caller was cancelled
        return
    if isinstance(answer, BaseException):
        append.done.set_exception(answer)
    else:
        append.done.set_result(answer)
