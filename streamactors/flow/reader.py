"""A reader: the actor that reads one partition ahead of the sequencer, decodes, and assigns event time.

All that may take time before a record can have its place in the sequence happens here, so that the sequencer decides
over batches that are ready. A reader decides nothing: it holds at most READ_AHEAD_BATCHES batches, in offset order.

Event time is assigned here and nowhere later, because the sequencer cuts by it. Operators that the pipeline puts before
``event_time`` (parsing, filtering) therefore run here as well.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import countOf
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import SourceReader
from streamactors.core.limits import READ_AHEAD_BATCHES
from streamactors.core.ports import Clock
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.engine.actor import Actor

from .operator import AsyncOperator, Operator, bad_record
from .selectors import Selector, column, known_type
from .sequencing import Head, PartitionId


@dataclass(frozen=True, slots=True)
class EventTime:
    """When a record happened, and what the source promises about the order."""

    selector: Selector
    """Field or function that gives event time as int ms since the epoch, UTC."""

    disorder_ms: int
    """A record comes at most this much event time after a later one of its partition, or it may be late."""

    idle_after_ms: int | None
    """A partition that had nothing for so long leaves the watermark's minimum. None: never."""

    of: Any = None
    """Type of all values that the selector is given, where a decoder has made sure of it."""

    pace_when_idle: bool = True
    """When all partitions are idle, event time goes on with the clock, so that the last window closes."""


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
        chain: Sequence[Operator],
        event_time: EventTime | None,
        batch_records: int,
        clock: Clock,
    ) -> None:
        super().__init__(name)
        self.partition = partition
        self.notify: Callable[[], None] = _nobody
        self.quiet_since: float | None = None
        """Monotonic time since which the reader has waited at the durable end, with all it had read taken."""

        self._source = source
        self._offset = start  # of the next record to read
        self._end = end  # where a bounded run stops
        self._chain = list(chain)
        self._event_time = event_time
        self._times = column(event_time.selector, event_time.of) if event_time is not None else None
        self._times_are_int = event_time is not None and known_type(event_time.selector, event_time.of) is int
        self._batch_records = batch_records
        self._clock = clock
        self._ready: deque[Head] = deque()
        self._waiting: asyncio.Task[None] | None = None
        self._output: list[Batch] = []
        for operator in self._chain:
            operator.emit = self._output.append

    @property
    def exhausted(self) -> bool:
        """Whether a bounded run has nothing more to take from here."""
        return self._end is not None and self._offset >= self._end and not self._ready

    @property
    def end(self) -> int:
        """The offset behind the source's last durable record."""
        return self._source.end()

    def head(self) -> Head | None:
        """Return what comes next here; a Head without a batch while it is being read; None when there is nothing."""
        if self._ready:
            return self._ready[0]
        if self._end is not None and self._offset >= self._end:
            return None
        return Head(batch=None) if self._source.end() > self._offset else None

    def take(self, records: int) -> tuple[Batch, int]:
        """Remove up to *records* rows of the head; return them and the offset behind them.

        Rows that came from one source record stay together, because positions and the journal count source records.
        """
        head = self._ready[0]
        batch = head.batch
        assert batch is not None, f"{self.name}: nothing was ready"
        cut = records
        while 0 < cut < len(batch) and batch.offsets[cut] == batch.offsets[cut - 1]:
            cut += 1
        if cut >= len(batch):
            self._ready.popleft()
            self.wake()
            return batch, head.end
        self._ready[0] = Head(batch.slice(cut, len(batch)), head.end)
        return batch.slice(0, cut), batch.offsets[cut]

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
        if len(self._ready) >= READ_AHEAD_BATCHES or (self._end is not None and self._offset >= self._end):
            return False
        if self._waiting is not None:
            if not self._waiting.done():
                self._note_quiet()
                return False
            self._waiting.result()
            self._waiting = None
        end = self._source.end()
        got = await self._source.read(self._batch_records)
        if got is None:
            self._offset = max(self._offset, end)  # retention has left nothing of what stood before the end
            self._wait()
            return False
        self.quiet_since = None
        batch, end = self._within_bounds(*got)
        self._offset = end
        self._ready.append(Head(await self._prepare(batch), end))
        self.notify()
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
        for operator in self._chain:
            self._output.clear()
            if isinstance(operator, AsyncOperator):
                batch = await operator.on_batch_async(batch)
            else:
                operator.on_batch(batch)
                batch = Batch.join(self._output) if self._output else batch.slice(0, 0)
            if not batch.values:
                return batch
        if self._times is not None and batch.values:
            batch = self._checked(batch.replace(timestamps=self._times(self.name, batch)))
        return batch

    def _checked(self, batch: Batch) -> Batch:
        """Refuse what is no time: a str or None would fail much later, at a place that says nothing."""
        times = batch.timestamps or []
        if self._times_are_int or countOf(map(type, times), int) == len(times):
            least, greatest = batch.time_bounds
            if least > MIN_TIME and greatest < MAX_TIME:
                return batch
        for index, time in enumerate(times):
            if type(time) is not int:
                reason = f"event time {time!r} is a {type(time).__name__}; give int milliseconds since the epoch"
                raise bad_record(self.name, batch, index, TypeError(reason))
            if not MIN_TIME < time < MAX_TIME:
                raise bad_record(self.name, batch, index, ValueError(f"event time {time} is outside 64 bits"))
        return batch


def _nobody() -> None:
    """Stand in until the sequencer listens."""
