"""A reader: the actor that reads one partition ahead of the sequencer, decodes, and assigns event time.

All that may take time before a record can have its place in the sequence happens here, so that the sequencer decides
over batches that are ready. A reader decides nothing: it holds at most READ_AHEAD_BATCHES batches, in offset order.

Event time is assigned here and nowhere later, because the sequencer cuts by it. Operators that the pipeline puts before
``event_time`` (parsing, filtering) therefore run here as well.

What is taken from a source that keeps records until they are safe is acknowledged here, when the coordinator says so.
Such a source stays open behind the last barrier of a run, until the last checkpoint is durable: else it would give
again, to whoever comes next, all that this one holds.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

from streamactors.core.batch import Batch
from streamactors.core.connectors import AcknowledgingReader, EndOfInput, SourceReader, Undecodable
from streamactors.core.limits import READ_AHEAD_BATCHES
from streamactors.core.ports import Clock
from streamactors.engine.actor import Actor

from .async_calls import AsyncOperator
from .operator import Operator
from .sequencing import Head, PartitionId


class Reader(Actor):
    """Read one partition ahead."""

    def __init__(
        self,
        name: str,
        partition: PartitionId,
        source: SourceReader,
        *,
        start: int,
        end: int | None,
        decoding: Operator,
        chain: Sequence[Operator],
        batch_records: int,
        clock: Clock,
    ) -> None:
        """
        Describe the reader.

        Args:
            name, partition, source, start: What is read, and from where.

            end: Where a bounded run stops.

            decoding: Stands for the source's decoder: its name, its error policy, its count.

            chain: Operators that the batches go through before they are sequenced; the last one assigns event time.

            batch_records, clock: As for the sequencer.
        """
        super().__init__(name)
        self.partition = partition
        self.notify: Callable[[], None] = _nobody
        self.quiet_since: float | None = None
        """Monotonic time since which the reader has waited at the durable end, with all it had read taken."""

        self.acknowledges_at_once = False
        """Whether what is read need never come again: at-most-once."""

        self._source = source
        self._acknowledging = source if isinstance(source, AcknowledgingReader) else None
        self._offset = start  # of the next record to read
        self._end = end  # where a bounded run stops, as soon as it is known
        self._prepared = start  # offset behind what is ready, or was
        self._taken = start  # offset behind what the sequencer was given
        self._acknowledged = start
        self._leaving = False  # the sequencer takes no more
        self._chain = list(chain)
        self._batch_records = batch_records
        self._clock = clock
        self._ready: deque[Head] = deque()
        self._waiting: asyncio.Task[None] | None = None
        self._output: list[Batch] = []
        self._dead: list[Batch] = []  # of the batch that is being prepared
        self._decoding = decoding
        self._takes = [operator.taking() for operator in self._chain]
        for operator in [decoding, *self._chain]:
            operator.emit, operator.emit_dead = self._output.append, self._dead.append

    @property
    def exhausted(self) -> bool:
        """Whether a bounded run has nothing more to take from here."""
        return self._end is not None and self._prepared >= self._end and not self._ready

    @property
    def operators(self) -> list[Operator]:
        """What is done before a record gets its place in the sequence, upstream first."""
        return self._chain

    @property
    def end(self) -> int:
        """The offset behind the source's last durable record."""
        return self._source.end()

    @property
    def refused(self) -> int:
        """Records that were left out before they were sequenced, in this attempt."""
        return sum(operator.refused_records for operator in self.refusing)

    @property
    def refusing(self) -> list[Operator]:
        """What may leave a record out before it is sequenced: the source's decoder, and the operators."""
        return [self._decoding, *self._chain]

    def head(self) -> Head | None:
        """Return what comes next here; a Head without a batch while it is being read; None when there is nothing."""
        if self._ready:
            return self._ready[0]
        if self._end is not None and self._prepared < self._offset:
            return Head(batch=None)  # a function is awaited for what was read; a live run does not wait for the last
        if self._at_end:
            return None
        return Head(batch=None) if self._source.end() > self._offset else None

    def has_nothing_before(self, offset: int) -> bool:
        """Return whether all before *offset* was read, and of what was read nothing is left to be taken."""
        return not self._ready and self._prepared >= offset

    def take(self, records: int, until: int | None = None) -> tuple[Batch, int, Batch | None]:
        """Remove up to *records* rows of the head; return them, the offset behind them, and dead letters before that.

        Rows that came from one source record stay together, because positions and the journal count source records.
        None of them stands behind offset *until*, where a range of the journal ends; nor does the end that is returned.
        """
        head = self._ready[0]
        batch = head.batch
        assert batch is not None, f"{self.name}: nothing was ready"
        cut = records
        while 0 < cut < len(batch) and batch.offsets[cut] == batch.offsets[cut - 1]:
            cut += 1
        end = head.end if cut >= len(batch) else batch.offsets[cut]
        if until is not None:  # it may be among records that a filter has dropped, or that could not be handled
            end = min(end, until)
        self._taken = end
        if end == head.end:
            self._ready.popleft()
            self.wake()
            return batch, end, head.dead
        dead, rest = parted(head.dead, end)
        self._ready[0] = Head(batch.slice(cut, len(batch)), head.end, rest)
        return batch.slice(0, cut), end, dead

    async def acknowledge(self, end: int) -> None:
        """Tell the source, if it waits to hear it, that all below offset *end* is safe. Harmless for any other."""
        if self._acknowledging is not None and end > self._acknowledged and not self.stopping:
            await self._acknowledging.acknowledge(end)
            self._acknowledged = end
            if self._leaving:
                self.leave()

    def leave(self) -> None:
        """Read no more, because nobody will take it; end when what was taken is acknowledged."""
        self._leaving = True
        if self._acknowledging is None or self._acknowledged >= self._taken:
            self.stop()

    async def run(self) -> None:
        """Read until told to stop; then release the source."""
        try:
            await super().run()
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
            await self._source.close()

    async def step(self) -> bool:
        """Read one batch; False when there is no room, or nothing to read."""
        if self._leaving or len(self._ready) >= READ_AHEAD_BATCHES:
            return False
        if self._at_end or not self._has_waited():
            self._note_quiet()
            return False
        end = self._source.end()
        got = await self._read()
        if got is None:
            # Retention, or an erasure, has left nothing of what stood before the end.
            self._offset = self._prepared = max(self._offset, end)
            self._wait()
            return False
        self.quiet_since = None
        batch, end = self._within_bounds(*got)
        self._offset = end
        if self.acknowledges_at_once:
            await self.acknowledge(end)
        self._ready.append(Head(await self._prepare(batch), end, self._take_dead(end)))
        self._prepared = end
        self.notify()
        return True

    @property
    def _at_end(self) -> bool:
        return self._end is not None and self._offset >= self._end

    def _has_waited(self) -> bool:
        """Whether there may be more to read: nobody waits for it, or the wait is over and did not meet the end."""
        if self._waiting is None:
            return True
        if not self._waiting.done():
            return False
        waited, self._waiting = self._waiting, None
        try:
            waited.result()
        except EndOfInput:
            self._end = self._offset
            self.notify()
            return False
        return True

    def _within_bounds(self, batch: Batch, end: int) -> tuple[Batch, int]:
        if self._end is None or end <= self._end:
            return batch, end
        keep = next((i for i, offset in enumerate(batch.offsets) if offset >= self._end), len(batch))
        return batch.slice(0, keep), self._end

    def _wait(self) -> None:
        self._note_quiet()
        self._waiting = asyncio.create_task(self._source.wait(), name=f"{self.name}: wait")
        self._waiting.add_done_callback(lambda _: self.wake())
        self.notify()

    def _note_quiet(self) -> None:
        # Quiet begins when all that was read is taken, not when the end was met: a full mailbox is no idleness.
        if self.quiet_since is None and not self._ready:
            self.quiet_since = self._clock.monotonic()

    async def _prepare(self, batch: Batch) -> Batch:
        for operator, take in zip(self._chain, self._takes, strict=True):
            if not batch.values:
                return batch
            self._output.clear()
            if isinstance(operator, AsyncOperator):
                batch = await operator.on_batch_async(batch)
            else:
                take(batch)
                batch = Batch.join(self._output) if self._output else batch.slice(0, 0)
        return batch

    async def _read(self) -> tuple[Batch, int] | None:
        """Read; what can't be decoded goes the way that the source's error policy says."""
        try:
            return await self._source.read(self._batch_records)
        except Undecodable as found:
            for bad, record in found.bad:
                self._decoding.refuse(bad, record, 0)
            return found.batch, found.end

    def _take_dead(self, end: int) -> Batch | None:
        """Return the dead letters of the batch that was prepared, in the order of their records."""
        dead = sorted((letter for letter in self._dead if letter.offsets[0] < end), key=lambda one: one.offsets[0])
        self._dead.clear()
        return Batch.join(dead) if dead else None


def parted(dead: Batch | None, end: int) -> tuple[Batch | None, Batch | None]:
    """Return the dead letters of records before offset *end*, and the others."""
    if dead is None:
        return None, None
    at = bisect_left(dead.offsets, end)
    return (dead.slice(0, at) if at else None), (dead.slice(at, len(dead)) if at < len(dead) else None)


def _nobody() -> None:
    """Stand in until the sequencer listens."""
