"""``check_source``: run anyone's source through everything that a job may do with it.

    async def test_my_source_keeps_the_contract(world):
        checked = await check_source(lambda: MySource("amqp://..."), world, expected=[["a", "b"]])
        print(checked)          # what was tried, and what is not covered

The contract is core/connectors.py. The modes, each over every partition:

    all at once            as many records as a batch may hold
    one at a time          the same records, offsets and originals
    reopened everywhere    by offset: a reader from any offset that was given gives exactly what follows
    closed anywhere        after any number of records, and while it waits; it must not hang
    waiting, cancelled     before the first record and behind the last one, and called again; nothing is lost by it
    acknowledged           unacknowledged: after any number of acknowledgements, exactly the rest comes again
    told twice             a JobWatcher hears that the job has ended, and hears it again

A source of which nothing comes again (Replay.NOTHING) is made anew for each mode, and must give the same: let *make*
see to that. Records that somebody else has to send are sent by *feed*, which runs beside each reading.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import (
    AcknowledgingReader,
    EndOfInput,
    JobWatcher,
    Replay,
    Source,
    SourceReader,
    Undecodable,
    World,
)
from streamactors.core.limits import BATCH_RECORDS_MAX

from .idle import settle

NOT_COVERED = (
    "what a crash of the process or the machine leaves: run a job over the source in testing/world.py, or kill one",
    "whether read() keeps the event loop: the watchdog of a running job names a function that does",
    "records that are removed while they are read (retention), and speed",
)

Row = tuple[int, Any, Any]
"""(offset, value, original)"""

Feed = Callable[[Any], Awaitable[None]]


class SourceFault(AssertionError):
    """A source does not keep the contract; the message says in which mode, and how."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was tried."""

    source: str
    records: list[int]
    """How many each partition gave."""

    modes: list[str]
    not_covered: tuple[str, ...] = NOT_COVERED

    def __str__(self) -> str:
        covered = f"{self.source}: {sum(self.records)} records; {', '.join(self.modes)}"
        return "\n  ".join([covered, *(f"not covered: {what}" for what in self.not_covered)])


async def check_source(
    make: Callable[[], Source],
    world: World,
    *,
    expected: Sequence[Sequence[Any]] | None = None,
    feed: Feed | None = None,
    places_max: int = 40,
    patience_seconds: float = 10.0,
) -> Checked:
    """
    Run the source that *make* gives through all modes; see the module's header.

    Args:
        make:
            Returns the source; called for each reading. By offset, it must be the same each time.

        world:
            What it is opened with.

        expected:
            For each partition, the values that it holds. None: whatever comes must come in every mode.

        feed:
            Called with the source while it is read, for one that is sent to; cancelled afterwards.

        places_max:
            At how many places a partition is reopened, closed and acknowledged, at most, spread over it.

        patience_seconds:
            How long a read, a wait or a close may take before it counts as hanging.

    Raises:
        SourceFault: it does not keep the contract.
    """
    return await _Check(make, world, feed, places_max, patience_seconds).run(expected)


class _Check:
    def __init__(
        self, make: Callable[[], Source], world: World, feed: Feed | None, places_max: int, patience: float
    ) -> None:
        self._make = make
        self._world = world
        self._feed = feed
        self._places_max = places_max
        self._patience = patience
        self._mode = ""
        self._modes: list[str] = []
        self._name = str(make())

    async def run(self, expected: Sequence[Sequence[Any]] | None) -> Checked:
        self._begin("all at once")
        async with self._opened() as (source, ends):
            replay, rows = source.replay, [await self._all(source, part, ends[part]) for part in range(len(ends))]
        for part, wanted in enumerate(expected or ()):
            self._same(
                [value for _, value, _ in rows[part]], list(wanted), f"partition {part}, against what is expected"
            )
        self._begin("one at a time")
        async with self._opened() as (source, ends):
            for part, whole in enumerate(rows):
                self._same(await self._all(source, part, ends[part], records_max=1), whole, f"partition {part}")
        for part, whole in enumerate(rows):
            if replay is Replay.BY_OFFSET:
                await self._reopened(part, whole)
            await self._closed(part, whole)
            await self._waited(part, whole)
            if replay is Replay.UNACKNOWLEDGED:
                await self._acknowledged(part, whole)
        await self._told_twice()
        return Checked(self._name, list(map(len, rows)), self._modes)

    # The modes. -------------------------------------------------------------------------------------------------------

    async def _reopened(self, part: int, whole: list[Row]) -> None:
        self._begin("reopened everywhere")
        async with self._opened() as (source, ends):
            for index in self._places(len(whole)):
                start = whole[index][0]
                found = await self._all(source, part, ends[part], start=start)
                self._same(found, whole[index:], f"partition {part} from offset {start}")

    async def _closed(self, part: int, whole: list[Row]) -> None:
        self._begin("closed anywhere")
        for index in self._places(len(whole)):
            async with self._opened() as (source, ends), self._reader(source, part, 0) as reader:
                await self._rows(reader, part, 0, ends[part], 1, stop_after=index)

    async def _waited(self, part: int, whole: list[Row]) -> None:
        self._begin("waiting, cancelled")
        async with self._opened() as (source, ends), self._reader(source, part, 0) as reader:
            await self._cancelled_wait(reader)
            found, _ = await self._rows(reader, part, 0, ends[part], BATCH_RECORDS_MAX)
            self._same(found, whole, f"partition {part} after waits that were cancelled")
            await self._cancelled_wait(reader)

    async def _acknowledged(self, part: int, whole: list[Row]) -> None:
        self._begin("acknowledged")
        values = [value for _, value, _ in whole]
        for index in self._places(len(whole)):
            async with self._opened() as (source, ends):
                async with self._reader(source, part, 0) as reader:
                    self._require(isinstance(reader, AcknowledgingReader), "its reader has no acknowledge()")
                    assert isinstance(reader, AcknowledgingReader), "as was just required"
                    given, end = await self._rows(reader, part, 0, ends[part], 1)
                    self._require(end == len(given), f"its reader counted to {end} over {len(given)} records")
                    if index:
                        await self._timely(reader.acknowledge(index), "acknowledge")
                async with self._reader(source, part, index) as reader:
                    again, _ = await self._rows(reader, part, index, ends[part], 3)
                self._same(
                    Counter(map(repr, (value for _, value, _ in again))),
                    Counter(map(repr, values[index:])),
                    f"partition {part}: what comes again after {index} of {len(values)} were acknowledged",
                )

    async def _told_twice(self) -> None:
        async with self._opened() as (source, _):
            if isinstance(source, JobWatcher):
                self._begin("told twice")
                source.job_ended()

    # Reading. ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Source, list[int | None]]]:
        """Give a source, its ends, and the feed beside it; tell it in the end that nobody will read."""
        source = self._make()
        ends = list(await self._timely(source.ends(self._world), "ends"))
        self._require(bool(ends), "ends() names no partition")
        self._require(all(end is None or end >= 0 for end in ends), f"ends() gave {ends}")
        feeding = None if self._feed is None else asyncio.ensure_future(self._feed(source))
        try:
            yield source, ends
        finally:
            if isinstance(source, JobWatcher):
                source.job_ended()
            if feeding is not None:
                feeding.cancel()
                await asyncio.wait([feeding])
                if not feeding.cancelled():
                    feeding.exception()  # that it was not answered is the contract

    @asynccontextmanager
    async def _reader(self, source: Source, part: int, start: int) -> AsyncIterator[SourceReader]:
        reader = await self._timely(source.reader(self._world, part, start), "reader")
        try:
            yield reader
        finally:
            await self._timely(reader.close(), "close")

    async def _all(
        self, source: Source, part: int, end: int | None, *, start: int = 0, records_max: int = BATCH_RECORDS_MAX
    ) -> list[Row]:
        async with self._reader(source, part, start) as reader:
            rows, _ = await self._rows(reader, part, start, end, records_max)
            return rows

    async def _rows(
        self,
        reader: SourceReader,
        part: int,
        position: int,
        until: int | None,
        records_max: int,
        stop_after: int | None = None,
    ) -> tuple[list[Row], int]:
        """Read to the end, or until *stop_after* records; return the rows and the offset behind the last one read."""
        rows: list[Row] = []
        while (until is None or position < until) and (stop_after is None or len(rows) < stop_after):
            end = reader.end()
            got = await self._read(reader, part, position, records_max)
            if got is not None:
                more, position = got
                rows += [row for row in more if until is None or row[0] < until]
                continue
            position = max(position, end) if until is not None else position
            if until is not None and position >= until:
                break
            try:
                await self._timely(reader.wait(), "wait (nothing came, and it did not say EndOfInput)")
            except EndOfInput:
                break
        return rows, position

    async def _read(
        self, reader: SourceReader, part: int, position: int, records_max: int
    ) -> tuple[list[Row], int] | None:
        bad: list[Row] = []
        try:
            got = await self._timely(reader.read(records_max), "read")
        except Undecodable as found:
            got = found.batch, found.end
            bad = [(batch.offsets[0], None, batch.values[0]) for _, batch in found.bad]
        if got is None:
            return None
        batch, end = got
        rows = sorted([*self._columns(batch, part), *bad], key=lambda row: row[0])
        offsets = [offset for offset, _, _ in rows]
        self._require(len(rows) <= records_max, f"read({records_max}) gave {len(rows)} records")
        self._require(end > position, f"read() at offset {position} gave the end {end}: it does not move on")
        self._require(
            not offsets or position <= offsets[0] <= offsets[-1] < end,
            f"read() gave offsets {offsets[:1]} to {offsets[-1:]} between {position} and {end}",
        )
        self._require(reader.end() >= end, f"end() says {reader.end()}, and read() came to {end}")
        return rows, end

    def _columns(self, batch: Batch, part: int) -> list[Row]:
        if not batch.values:
            return []
        self._require(len(batch.offsets) == len(batch.values), f"{batch!r} has {len(batch.offsets)} offsets")
        self._require(list(batch.offsets) == sorted(batch.offsets), f"offsets go down in {batch!r}")
        if batch.origin is None:
            raise self._fault(f"{batch!r} has no origin: late records could not be passed on")
        self._require(
            batch.origin.partition == part, f"{batch!r} says that it is of partition {batch.origin.partition}"
        )
        originals = batch.originals()
        self._require(len(originals) == len(batch.values), f"{batch!r} has {len(originals)} originals")
        return list(zip(batch.offsets, batch.values, originals, strict=True))

    async def _cancelled_wait(self, reader: SourceReader) -> None:
        for _ in range(2):
            waiting = asyncio.ensure_future(reader.wait())
            await settle()
            waiting.cancel()
            await self._timely(asyncio.wait([waiting]), "wait, when it was cancelled,")
            with suppress(EndOfInput, asyncio.CancelledError):
                waiting.result()

    # Saying it. -------------------------------------------------------------------------------------------------------

    def _begin(self, mode: str) -> None:
        self._mode = mode
        if mode not in self._modes:
            self._modes.append(mode)

    def _places(self, count: int) -> list[int]:
        """Return indices from 0 to count - 1, all of them or spread evenly."""
        step = max(1, -(-count // self._places_max))
        return sorted({*range(0, count, step), *([count - 1] if count else [])})

    async def _timely(self, what: Awaitable[Any], name: str) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await what
        except TimeoutError:
            raise self._fault(f"{name} took more than {self._patience} s") from None

    def _same(self, found: Any, wanted: Any, what: str) -> None:
        if found != wanted:
            raise self._fault(f"{what}:\n  found    {_short(found)}\n  expected {_short(wanted)}")

    def _require(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - what is required
        if not holds:
            raise self._fault(otherwise)

    def _fault(self, what: str) -> SourceFault:
        return SourceFault(f"{self._name}, {self._mode}: {what}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 500 else shown[:500] + "…"
