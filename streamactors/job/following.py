"""Following: how a version that is not served hears of what the one that decides has decided.

The journal's rows are read from the other version's store as its checkpoints make them durable, and fed to the guide of
our sequencer. What is not committed there is not followed here: it could still be decided anew. The other version may
run in this process, in another one, or not at all.

A replay takes all of the processor that it is given. A process of its own is given what others leave: the command
lowers its priority. In a process in which another version runs, in the same event loop maybe, nobody can lower it. So
there the guide is fed by small portions, and after each one we rest for as long as it took: half of the time belongs to
whoever serves.

It is cheap to ask: one look at the newest checkpoint's number, a few times in each of the other's intervals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamactors.core.connectors import Guarantee
from streamactors.core.errors import PipelineError
from streamactors.core.ports import Clock, Threads
from streamactors.durable.sharing import forget, reading, written
from streamactors.engine.actor import Actor
from streamactors.flow.guide import Guide
from streamactors.flow.sequencer import Sequencer
from streamactors.flow.sequencing import Entry

from .guarantees import PROMISES

POLL_SECONDS = 0.02
"""How often the other version's newest checkpoint is looked at: a tenth of its usual interval, 50 µs a look."""

ROWS_MAX = 65_536
"""Rows of a journal that are held ahead of the sequencer: about 10 MB."""

PORTION_OFFSETS = 4_096
"""Offsets that are fed in one go where another version runs in this process: a batch, some ms of work."""

PORTION_POLL_SECONDS = 0.002
"""How often it is looked whether a portion is done."""

PAUSE_SECONDS_MAX = 0.1
"""Behind a portion, at most: one that has waited for a sink, or for records, has taken nobody's time."""

_LANE = "follow"


@dataclass(frozen=True, slots=True)
class Lead:
    """Whose journal a region follows."""

    version: str
    folder: Path
    """Of that version's state."""

    region: str
    to_end: bool = False
    """Whether the run ends where the journal ended when it began."""


class JournalTail(Actor):
    """Feed a guide with the journal that another version writes."""

    def __init__(
        self, name: str, lead: Lead, guide: Guide, sequencer: Sequencer, threads: Threads, clock: Clock
    ) -> None:
        super().__init__(name)
        self.epoch = 0
        """The other version's newest checkpoint whose decisions are all in the guide, or about to be."""

        self._lead = lead
        self._guide = guide
        self._sequencer = sequencer
        self._threads = threads
        self._clock = clock
        self._end: int | None = None  # the epoch with which the run ends, when it ends there
        self._rows: deque[Entry] = deque()  # of epochs up to ``epoch``, not yet fed

    async def run(self) -> None:
        """Feed until told to stop, or until the sequencer has ended."""
        try:
            if self._lead.to_end:
                self._end = await self._threads.run(_LANE, newest_epoch, self._lead)
            while not self.stopping and not self._sequencer.stopping and not self._guide.closed:
                if len(self._guide) >= ROWS_MAX or not await self._feed():
                    await self.wait_woken_or(self._clock, POLL_SECONDS)
        finally:
            await self._threads.run(_LANE, forget, self._lead.folder)

    async def _feed(self) -> bool:
        """Feed what is new; return whether anything was."""
        rows, epoch = await self._threads.run(_LANE, self._read)
        self.epoch = epoch
        if written() > 1:
            self._rows.extend(portions(rows))
            await self._feed_portions()
        else:
            self._guide.feed(rows)
        self._guide.closed = not self._rows and self._end is not None and self.epoch >= self._end
        if rows or self._guide.closed:
            self._sequencer.wake()
        return bool(rows)

    async def _feed_portions(self) -> None:
        """Feed what was read, and rest after each portion for as long as it took."""
        while self._rows and not self.stopping and not self._sequencer.stopping:
            began, offsets, portion = self._clock.monotonic(), 0, list[Entry]()
            while self._rows and offsets < PORTION_OFFSETS:
                portion.append(self._rows.popleft())
                offsets += _offsets(portion[-1])
            self._guide.feed(portion)
            self._sequencer.wake()
            while not self._is_idle():
                await self._clock.sleep(PORTION_POLL_SECONDS)
            if self._rows:
                await self._clock.sleep(min(PAUSE_SECONDS_MAX, self._clock.monotonic() - began))

    def _is_idle(self) -> bool:
        """Whether what was fed is done, or never will be."""
        done = self._guide.next is None and self._sequencer.taken
        return done or self.stopping or self._sequencer.stopping or self._sequencer.exhausted

    def _read(self) -> tuple[list[Entry], int]:
        """Return rows behind those that were fed, of whole epochs, and the last epoch that they belong to."""
        store = reading(self._lead.folder)
        # Asked for first: a checkpoint without rows is passed by its number, and one that is taken while we look for
        # rows must not be.
        epoch = max(self.epoch, newest_epoch(self._lead))
        rows: list[Entry] = []
        for number, entries in store.journal_by_epoch(self._lead.region, after_epoch=self.epoch):
            rows += entries
            if len(rows) >= ROWS_MAX:
                return rows, number
            epoch = max(epoch, number)
        return rows, epoch


def portions(rows: Iterable[Entry]) -> Iterator[Entry]:
    """Cut ranges, so that none has more than a portion."""
    for row in rows:
        if row[0] != "read":
            yield row
            continue
        kind, source, partition, first, end = row
        for start in range(first, end, PORTION_OFFSETS):
            yield kind, source, partition, start, min(end, start + PORTION_OFFSETS)


def _offsets(row: Entry) -> int:
    return row[4] - row[3] if row[0] == "read" else 0


def newest_epoch(lead: Lead) -> int:
    """Return the newest checkpoint of the version that is followed."""
    restored = reading(lead.folder).restore(lead.region)
    return 0 if restored is None else restored.epoch


def refuse_sources(lead: Lead, sources: set[str], pipeline: str) -> None:
    """Refuse to follow a journal that knows nothing of a source, and a version that keeps none."""
    store = reading(lead.folder)
    stored = Guarantee(store.guarantee or Guarantee.EXACTLY_ONCE)
    if not PROMISES[stored].keeps:
        raise PipelineError(
            f"pipeline {pipeline}: version {lead.version} ran as {stored.value}, which keeps no journal, so there is "
            "nothing that this version could follow. Run it anew as exactly-once or at-least-once, under another name "
            "of the pipeline; then replay beside that."
        )
    restored = store.restore(lead.region)
    if restored is None:
        return  # it has decided nothing yet
    known = {part["source"] for part in restored.position["partitions"]}
    if missing := sorted(sources - known):
        raise PipelineError(
            f"pipeline {pipeline}: version {lead.version} does not read {', '.join(missing)}, so its journal does not "
            f"say in which order that was read, and this version can't follow it. Read {', '.join(sorted(known))} "
            "only, or give the pipeline another name and let it start anew."
        )
