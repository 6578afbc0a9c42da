"""The contracts of sources and sinks: what a connector gives, and what it may rely on.

A *source* is a set of partitions; each is read from an offset by a reader of its own. Offsets are ints that never go
down within a partition: record numbers, byte positions, whatever the system counts in. The same offset gives the same
records again, as far back as the source promises; that is what recovery and replay stand on.

What a source can do after a crash decides which guarantee it can keep: ``Replay``.

A *sink* turns batches into *payloads* inside its stage, without I/O, and commits them to its target after the
checkpoint that holds them, each with a stamp that the target compares and sets in its own transaction (E2). So a
payload is committed exactly once, however often the process dies in between, and no transaction of the target is ever
open across a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .batch import Batch
from .errors import BadRecord
from .ports import Ports


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a commit leaves in the target: who wrote last, and how far."""

    job: str
    sink: str
    incarnation: str  # random, new whenever the job starts from nothing
    epoch: int
    part: int  # 1 <= part <= parts
    parts: int


class Guarantee(Enum):
    """What a crash may do to the result."""

    EXACTLY_ONCE = "exactly-once"
    """Nothing is lost and nothing repeats: output is visible when its epoch is durable."""

    AT_LEAST_ONCE = "at-least-once"
    """Nothing is lost; output is visible at once, and what followed the last checkpoint repeats."""

    AT_MOST_ONCE = "at-most-once"
    """Nothing repeats; after a crash the job begins with empty state at the source's end."""


class Replay(Enum):
    """What a source gives again to a reader that starts where a checkpoint stood."""

    BY_OFFSET = "by offset"
    """The same offset gives the same records again: any guarantee."""

    UNACKNOWLEDGED = "unacknowledged"
    """What was never acknowledged comes again, in whatever order: at-least-once, at-most-once. Its readers are
    AcknowledgingReaders."""

    NOTHING = "nothing"
    """What was given once is gone: at-most-once."""


@dataclass(frozen=True, slots=True)
class World:
    """What a connector is opened with."""

    data_dir: Path
    ports: Ports
    log: Any
    """The job's log (streamactors.durable.log.Log); the built-in connectors share it."""

    bounded: bool = False
    """Whether the run reads to the ends as they were at its start, and no further."""

    follows: bool = False
    """Whether the run repeats a journal: what it reads was decided before, and nothing new is taken in."""

    shadow: str | None = None
    """Label of a version that is not served: its sinks write to targets of its own, which bear it. None: it is."""

    label: str | None = None
    """Label of the version, unless it is the job's first: for targets that no promotion can exchange."""


class EndOfInput(Exception):
    """Nothing will ever follow what was read: a partition whose end was not known has ended."""


class Undecodable(Exception):
    """
    Some of the records that were read can't be decoded: raised by ``SourceReader.read``, which goes on behind them.

    What then happens is the source's error policy. A reader that raises anything else fails.
    """

    def __init__(self, batch: Batch, end: int, bad: list[tuple[BadRecord, Batch]]) -> None:
        super().__init__(f"{len(bad)} records before offset {end} can't be decoded")
        self.batch, self.end = batch, end
        self.bad = bad
        """For each such record the error, and a batch of it alone: its bytes, offset and origin."""


class SourceReader(Protocol):
    """
    One partition, read forward from an offset.

    When is it called?       ``read`` when there is room for another batch; ``wait`` when ``read`` had nothing.
    In what order?           One call at a time.
    May it block?            ``read`` returns within the time of one disk or network read; only ``wait`` waits.
    What follows a restart?  A new reader, from the offset of the checkpoint.
    """

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        """Return the next records, at most *records_max*, and the offset behind them; None at the durable end."""

    def end(self) -> int:
        """Return the offset behind the last durable record, now."""

    async def wait(self) -> None:
        """
        Return when there is more to read. May be cancelled and called again.

        Raises:
            EndOfInput: nothing will follow. A partition whose end was not known ends a bounded run with it; a live one
            reads no more from here.
        """

    async def close(self) -> None:
        """Release what the reader holds."""


@runtime_checkable
class AcknowledgingReader(SourceReader, Protocol):
    """A reader of a source that keeps each record until it is told that the record is safe.

    Its offsets are its own: it counts from *start* on what it is given, in the order in which it passes it on. It is
    closed when what was taken from it is acknowledged, or when the attempt has failed.
    """

    async def acknowledge(self, end: int) -> None:
        """
        Take note that everything below offset *end* is safe: it never has to come again.

        When is it called?  After the checkpoint that holds those records is durable; at-most-once: when they are read.
                            A ``read`` or ``wait`` may be under way.
        How often?          Once for each checkpoint in which the reader moved. *end* rises.
        What follows a crash before it? The records come again, to the next reader: at-least-once.
        """


class Source(Protocol):
    """Something to read from, described as plain data; nothing is opened before the job starts."""

    @property
    def id(self) -> str:
        """Stable name: of the journal's entries and of the region that reads it."""

    @property
    def type(self) -> Any:
        """The type of a value, or None when it is not known."""

    @property
    def replay(self) -> Replay:
        """What it gives again after a crash."""

    async def ends(self, world: World) -> Sequence[int | None]:
        """
        Return, for each partition, the offset behind its last durable record, or None where that is not known.

        Called once at each start of the job: the number of partitions is fixed for the life of the job, and the ends
        are where a bounded run stops. A partition without one is read until its reader says EndOfInput. Refuse a
        source that is not there.
        """

    async def reader(self, world: World, partition: int, start: int) -> SourceReader:
        """Return a reader of one partition from offset *start* (0: from the first record)."""


@runtime_checkable
class JobWatcher(Protocol):
    """What a source is as well when somebody waits on it, and must hear that nobody will read from it any more."""

    def job_ended(self) -> None:
        """Take note that the job has ended or failed: no reader of it is open, and it will open none."""


@dataclass(slots=True)
class Payload:
    """Output of one epoch for one partition of the target."""

    partition: int
    data: bytes


class SinkWriter(Protocol):
    """Turns batches into payloads; runs inside the sink's stage."""

    def write(self, batch: Batch) -> int:
        """
        Take a batch; return roughly how many bytes are now held.

        Raises:
            BadRecord: one of its values can't be written; nothing of the batch was taken.
        """

    def take(self) -> Sequence[Payload]:
        """Return what was written since the last call, in order; at each barrier. Must not wait."""


class SinkTarget(Protocol):
    """The other side: where payloads become visible."""

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        """Return the stamp that (*job*, *sink*) left last in this partition."""

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        """
        Make *payload* visible together with *stamp*, durably, in one transaction of the target.

        When the target shows *stamp* already, do nothing. When it shows neither *expect* nor *stamp*, raise
        SinkConflict. When this returns, the answer is durable.

        Raises:
            QuotaFull: there is no room, and nothing was written; so does an OSError that says so (ENOSPC). The same
            call is made again until there is room. Other errors take the region back to its checkpoint.
        """

    async def write(self, payload: Payload) -> None:
        """
        Make *payload* visible now, without a stamp: at-least-once and at-most-once.

        One call at a time, in order. When this returns, it is as durable as the target's own clients get it.
        """

    async def close(self) -> None:
        """Release what the target holds."""


class Sink(Protocol):
    """Something to write to, described as plain data."""

    @property
    def id(self) -> str:
        """Stable name of the target; two sinks of a job never share one."""

    @property
    def upserts(self) -> bool:
        """Whether it takes an upsert stream: rows replace earlier ones of their key and window, or delete them.

        False: the sink appends, and a stream of corrections is refused when the graph is built.
        """

    async def partitions(self, world: World) -> int:
        """Make the target if need be; return its number of partitions."""

    def writer(self, partitions: int) -> SinkWriter:
        """Return a writer for this run."""

    async def target(self, world: World) -> SinkTarget:
        """Open the target."""


@runtime_checkable
class Shadowed(Protocol):
    """
    A sink that several versions of a job may have, because each version writes a target of its own.

    ``World.shadow`` tells which. A promotion exchanges what readers know for the shadow (job/swapping.py), or can't:
    then ``World.label`` names the version's target for good.
    """

    @property
    def address(self) -> tuple[str, ...]:
        """Kind of the target (``topic``, ``sqlite``, ``folder``), and where it is: kept in the catalogue."""
