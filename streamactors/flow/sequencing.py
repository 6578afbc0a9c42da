"""Sequencing: the one order of a region's input, its watermark, and the journal of what was decided.

One host can afford a total order. Each batch that is read gets its place here; what depends on timing (which partition
was ready, who was idle, what the clock said) is decided here once, written to the journal, and nowhere else. All that
comes after is a function of it (T1).

Rule 1. No asyncio, no I/O, no clock: batches and marks go in, what to send comes out, entries pile up in ``journal``.
Rule 2. The watermark moves in steps. ``horizon`` (the watermark + 1) is always a multiple of the region's step, and a
        batch is cut *behind* the record that passes the next one. So the watermark is constant inside a piece, and
        how the input was batched can't be seen from behind (T2).
Rule 3. A live run and a replay from a journal share this class. They differ in who decides what comes next
        (``choose`` below, or the journal), not in what it then means.

    reach      = min over partitions that are not idle of (greatest event time - disorder)
    horizon    = reach rounded down to the step, never going back
    watermark  = horizon - 1

When the last partition falls idle, the reach is that of the latest one: in whatever order they fell silent, none holds
back what the others have brought (so does Flink). From there it goes on at the pace of the clock.

Invariants:

  (S1) Ranges of one partition are contiguous: each begins where the one before ended.
  (S2) The horizon is a multiple of the step and never goes back.
  (S3) The clock never goes back.

If we crash: entries that no checkpoint holds are gone, and so is all that they caused. Recovery begins at the
checkpoint's position and may decide otherwise; nobody saw the first decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.signals import ClockMark, End, Flush, Signal, Watermark
from streamactors.core.times import MAX_TIME, MIN_TIME

PartitionId = tuple[str, int]
"""(source id, partition)"""

Entry = tuple[Any, ...]
"""A row of the journal: one of

    ("read", source, partition, first offset, end offset)    ("idle", source, partition)
    ("pace", watermark)    ("clock", time)    ("flush",)     ("finish",)
"""

Message = Batch | Signal


class PartitionPosition(msgspec.Struct):
    """How far one partition was read."""

    source: str
    partition: int
    disorder: int = 0  # ms that a record may come after a later one
    offset: int = 0  # of the next record to read
    time_max: int = MIN_TIME  # the greatest event time so far
    idle: bool = False


class Position(msgspec.Struct):
    """All that sequencing must know to go on from a checkpoint."""

    partitions: list[PartitionPosition]
    horizon: int = MIN_TIME
    clock: int = MIN_TIME
    clock_until: int = MIN_TIME
    stirred: bool = False  # a record came since the last clock mark: after a restart too, it has yet to be shown
    sequence: int = 0
    finished: bool = False
    entries: int = 0  # of the journal that were begun; neighbouring ranges of one partition are one
    reading: tuple[str, int] | None = None  # the partition that the last entry reads; None: it is no range
    since: int = MIN_TIME  # no record before this region's beginning has this event time, or a later one


class Sequencing:
    """Decide what each batch and mark means. See the module's header."""

    def __init__(self, position: Position, *, step: int | None, clock_longest: int = 0) -> None:
        assert step is None or step > 0, f"a step is a positive number of ms, got {step}"
        self.step = step
        self.position = position
        self.journal: list[Entry] = []
        self.partitions: dict[PartitionId, PartitionPosition] = {
            (p.source, p.partition): p for p in position.partitions
        }
        self._clock_longest = clock_longest  # the longest period that an operator waits for

    @property
    def watermark(self) -> int:
        """No record with a timestamp <= this will come, or it is late."""
        horizon = self.position.horizon
        return horizon if horizon in (MIN_TIME, MAX_TIME) else horizon - 1

    @property
    def reach(self) -> int:
        """How far event time is known to have come, before rounding; MIN_TIME while an active partition is empty."""
        return min((_reach(p) for p in self.partitions.values() if not p.idle), default=MIN_TIME)

    def admit(self, source: PartitionId, batch: Batch, end: int) -> Iterator[Message]:
        """Give *batch* its place: yield its pieces, and the watermark behind each record that passes a step.

        *end* is the offset behind the last record that was read for it, which a filter may have dropped.
        """
        partition = self.partitions[source]
        first, partition.offset, partition.idle = partition.offset, end, False
        self._note_read(source, first, end)
        if not batch.values:
            return
        self.position.stirred = True
        if self.step is None:
            yield batch
        else:
            yield from self._cut(partition, batch, self.step)

    def _cut(self, partition: PartitionPosition, batch: Batch, step: int) -> Iterator[Message]:
        times = batch.timestamps
        assert times is not None, f"{partition.source}: event time is assigned before the sequencer"
        others = min(
            (_reach(p) for p in self.partitions.values() if p is not partition and not p.idle), default=MAX_TIME
        )
        last, start = batch.time_bounds[1], 0
        # (While another partition has brought nothing yet, ``others`` is MIN_TIME: event time can't have begun.)
        while others != MIN_TIME and min(max(partition.time_max, last) - partition.disorder, others) >= _next(
            self.position.horizon, step
        ):
            threshold = _next(self.position.horizon, step) + partition.disorder
            cut = next((i for i in range(start, len(times)) if times[i] >= threshold), None)
            if cut is None:
                break
            partition.time_max = max(partition.time_max, max(times[start : cut + 1]))
            yield batch.slice(start, cut + 1)
            start = cut + 1
            yield from self._advance(min(_reach(partition), others))
        partition.time_max = max(partition.time_max, last)
        if start < len(times):
            yield batch.slice(start, len(times))

    def idle(self, source: PartitionId) -> Iterator[Message]:
        """A partition no longer holds back the watermark, until its next record."""
        if not self.partitions[source].idle:
            self.partitions[source].idle = True
            self._note(("idle", *source))
            yield from self._advance(self.reach_when_idle if self.all_idle else self.reach)

    @property
    def all_idle(self) -> bool:
        """Whether event time may go on at the pace of the clock."""
        return all(p.idle for p in self.partitions.values())

    @property
    def reach_when_idle(self) -> int:
        """Where event time stands when all partitions are idle: at the latest of them, or at the horizon."""
        return max(self.position.horizon, max((_reach(p) for p in self.partitions.values()), default=MIN_TIME))

    def pace(self, reach: int) -> Iterator[Message]:
        """All partitions are idle and the clock says that event time has come to *reach*."""
        before = self.position.horizon
        yield from self._advance(reach)
        if self.position.horizon != before:
            self._note(("pace", self.watermark))

    def clock(self, mark: int) -> Iterator[Message]:
        """Processing time has reached *mark*, a multiple of the clock period.

        Marks stop when no record came for the longest period that an operator waits for: nothing waits any more, and
        an idle night must not fill the journal.
        """
        if mark <= self.position.clock:
            return
        if self.position.stirred:
            self.position.clock_until = mark + self._clock_longest
            self.position.stirred = False
        if mark <= self.position.clock_until:
            yield from self.mark(mark)

    def mark(self, time: int) -> Iterator[Message]:
        """Processing time is *time* from here on (S3)."""
        assert time > self.position.clock, f"S3: the clock went from {self.position.clock} to {time}"
        self.position.clock = time
        self._note(("clock", time))
        yield ClockMark(time)

    def flush(self) -> Iterator[Message]:
        """A bounded run ends: early results come out; event time does not move."""
        self._note(("flush",))
        yield Flush()

    def finish(self) -> Iterator[Message]:
        """The input is complete: event time ends, everything fires finally."""
        self.position.finished = True
        self.position.horizon = MAX_TIME
        self._note(("finish",))
        yield Watermark(MAX_TIME)

    def end(self) -> Iterator[Message]:
        """Nothing follows in this run; not journaled, because it changes nothing."""
        yield End()

    def take_journal(self) -> list[Entry]:
        """Return the entries since the last call, for the checkpoint that makes them true."""
        entries, self.journal = self.journal, []
        return entries

    def _advance(self, reach: int) -> Iterator[Message]:
        """Yield the watermark when *reach* has passed another step (S2)."""
        if self.step is None or reach == MIN_TIME:
            return
        horizon = reach - reach % self.step
        if horizon > self.position.horizon:
            self.position.horizon = horizon
            yield Watermark(horizon - 1)

    def _note_read(self, source: PartitionId, first: int, end: int) -> None:
        assert end >= first, f"S1: {source} went from {first} back to {end}"
        if end == first:
            return
        if self.position.reading != source:
            self._note(("read", *source, first, end), reading=source)
        elif self.journal:
            self.journal[-1] = (*self.journal[-1][:4], end)
        else:  # the entry goes on in the next epoch's row
            self.journal.append(("read", *source, first, end))

    def _note(self, entry: Entry, reading: PartitionId | None = None) -> None:
        self.journal.append(entry)
        self.position.entries += 1
        self.position.reading = reading


def _reach(partition: PartitionPosition) -> int:
    return MIN_TIME if partition.time_max == MIN_TIME else partition.time_max - partition.disorder


def _next(horizon: int, step: int) -> int:
    return MIN_TIME if horizon == MIN_TIME else horizon + step


def joined(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield *entries* with neighbouring ranges of one partition joined: the journal as it means, not as it was cut."""
    last: Entry | None = None
    for entry in map(tuple, entries):
        if last is not None and last[0] == entry[0] == "read" and last[1:3] == entry[1:3] and last[4] == entry[3]:
            last = (*last[:4], entry[4])
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


# What to read next, when no journal says it. --------------------------------------------------------------------------


class Head(msgspec.Struct):
    """What is known of a partition that has durable records which nobody was given yet."""

    batch: Batch | None  # None: they are still being read and decoded
    end: int = 0  # offset behind the batch
    dead: Batch | None = None  # dead letters of the records that were read for it


def choose(sequencing: Sequencing, heads: Mapping[PartitionId, Head], chunk: int) -> tuple[PartitionId, int] | None:
    """
    Return which partition's head comes next and how many of its records, or None to wait for a head to be read.

    Records come in step by event time: by the partition's running maximum in units of the region's step, then
    partition, then offset. So the order of a backlog is a function of its content, and one fast partition can't fill
    the state with windows that wait for a slow one. (A step, not a millisecond: the watermark knows no finer time, and
    interleaved partitions would be cut to pieces of a few records each.) A region without event time takes chunks of
    *chunk* offsets from each partition in turn.

    A partition that has caught up has no head and is not waited for: that is what makes a live run live.
    """
    ranks = {key: _rank(sequencing, key, head, chunk) for key, head in heads.items()}
    ordered = sorted(ranks.items(), key=lambda item: (item[1], item[0]))
    key, rank = ordered[0]
    batch = heads[key].batch
    if batch is None:
        return None
    if len(ordered) == 1 or not batch.values:
        return key, len(batch)
    rival, rival_rank = ordered[1]
    bound = rival_rank + (1 if key < rival else 0)  # this partition's turn ends when its rank reaches this
    return key, _records_below(sequencing, batch, max(bound, rank + 1), chunk)


def _rank(sequencing: Sequencing, key: PartitionId, head: Head, chunk: int) -> int:
    partition = sequencing.partitions[key]
    if sequencing.step is None:
        return partition.offset // chunk
    time = partition.time_max
    if head.batch is not None and head.batch.timestamps:
        time = max(time, head.batch.timestamps[0])
    return time // sequencing.step


def _records_below(sequencing: Sequencing, batch: Batch, bound: int, chunk: int) -> int:
    """Return how many records of *batch* come before its rank reaches *bound*."""
    if sequencing.step is None:
        # Offsets may be byte positions: a chunk ends at the first record behind its end.
        limit, column = bound * chunk, batch.offsets
    else:
        limit, column = bound * sequencing.step, batch.timestamps or ()
    if max(column) < limit:
        return len(batch)
    return next(i for i, at in enumerate(column) if at >= limit)
