"""The coordinator: the actor that begins epochs, gathers what was handed over, and commits.

    1. an epoch is due (interval, request, a limit reached, the end of the run)  -> ask the sequencer for a barrier
    2. the sequencer hands over the position and the journal's new entries; each stage hands over what changed
    3. when the last one has (E1), and the epoch before is settled (B1): one write transaction in the writer's thread,
       as soon as the sinks that are written at once have written what belongs to it
    4. stages are told, the sinks' targets get their output (E2), sources hear what is safe, who asked for a checkpoint
       is answered

The next epoch may be aligned while one commits. The commit path uses no mailbox, so a full one can't hold it up (D1).

If a commit fails, nothing of the epoch is stored: the coordinator fails, and the region goes back to the epoch before.
Before the region starts again, a commit that is with the writer's thread or a target is waited for: else it could land
after the rewind, and its records would count twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from streamactors.core.signals import Barrier
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.durable.store import Checkpoint, Delta
from streamactors.flow.reader import Reader
from streamactors.flow.sequencing import Entry
from streamactors.flow.stage import Stage

from .epochs import EpochLedger, EpochState
from .immediate import Stopped
from .keeping import EpochReport, Keeper, Keeping, answer_all


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What somebody outside has of an epoch, and has not answered for."""

    epoch: int
    to: str
    """``the disk``, or ``sink`` and its id."""

    since: float
    """Monotonic seconds."""


@dataclass
class _Gathered:
    epoch: int
    started: float
    position: Any = None
    journal: list[Entry] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)


class Coordinator(Keeper):
    """Begin, gather, commit. See the module's header."""

    def __init__(self, name: str, keeping: Keeping, readers: Sequence[Reader]) -> None:
        super().__init__(name, keeping)
        self._readers = list(readers)
        self._ledger = EpochLedger(["sequencer", *(stage.name for stage in self._stages)], last=keeping.last_epoch)
        self._gathered: _Gathered | None = None
        self._committing: asyncio.Task[None] | None = None
        self._answering: list[asyncio.Future[int | None]] = []
        self._pressed = False
        self.handed_over: HandedOver | None = None
        """What an epoch that commits waits for; stays when its commit fails."""

        self._room.on_wait = self._hold
        self._sequencer.on_cut = self._on_cut
        self._sequencer.on_caught_up = self._hurry
        for stage in self._stages:
            stage.hand_over = self._on_hand_over
            stage.press = partial(self._press, stage)

    @property
    def waiting_for(self) -> frozenset[str]:
        """Who has not handed over the epoch that is aligning."""
        return self._ledger.waiting_for

    @property
    def aligning(self) -> tuple[int, float] | None:
        """The epoch that is aligning, and since when, monotonic seconds."""
        return None if self._gathered is None else (self._gathered.epoch, self._gathered.started)

    @property
    def unseen(self) -> bool:
        """Whether something was numbered that is not visible yet."""
        return self._sequencer.changed or self._gathered is not None or self.commits

    @property
    def commits(self) -> bool:
        """Whether something was handed out and is not answered."""
        return self._committing is not None and not self._committing.done()

    async def answered(self) -> None:
        """Return when what was handed to the writer's thread or a target is answered, well or not."""
        if self._committing is not None:
            await asyncio.wait([self._committing])

    async def abandon(self) -> None:
        """Wait no more for an answer: nothing follows in this process, and the next one asks the targets."""
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.wait([self._committing])
            if not self._committing.cancelled():
                self._committing.exception()  # it is known, or nobody's to know any more

    async def run(self) -> None:
        """Take checkpoints until the run ends, or until told to stop."""
        try:
            while await self._until_due():
                last = self._sequencer.exhausted
                self._begin(last=last)
                if not await self._until_gathered():
                    return
                if self._committing is not None:
                    await self._committing
                self._committing = asyncio.create_task(self._commit(*self._take()), name=f"{self.name}: commit")
                self._committing.add_done_callback(lambda _: self.wake())
                if last:
                    await self._committing
                    for output in self._outputs:
                        output.finish()
                    return
        finally:
            await self._close()

    async def _until_due(self) -> bool:
        """Wait until an epoch should begin; False when told to stop."""
        while not self.stopping:
            self._raise_if_commit_failed()
            now = self._clock.monotonic()
            if self._sequencer.exhausted or self._requests or self._pressed:
                return True
            if now >= self._due_at:
                self._due_at = now + self._interval
                if self._sequencer.changed:
                    return True
                if not self.commits:
                    self.shown_until = now
            await self.wait_woken_or(self._clock, self._due_at - now)
        return False

    def _begin(self, *, last: bool) -> None:
        epoch = self._ledger.start()
        self._due_at = self._clock.monotonic() + self._interval
        self._gathered = _Gathered(epoch, self._clock.monotonic())
        self._answering, self._requests = [*self._answering, *self._requests], []
        self._pressed = False
        self._sequencer.request_barrier(Barrier(self._attempt, epoch), last=last)

    async def _until_gathered(self) -> bool:
        """Wait until all have handed over; False when told to stop."""
        while self._ledger.waiting_for:
            if self.stopping:
                return False
            self._raise_if_commit_failed()
            await self.wait_woken()
        return True

    def _on_cut(self, epoch: int, position: Any, entries: list[Entry]) -> None:
        assert self._gathered is not None, f"E1: epoch {epoch} was cut without having begun"
        self._gathered.position, self._gathered.journal = position, entries
        self._hand_over("sequencer", epoch)

    def _on_hand_over(self, stage: str, epoch: int, deltas: list[Delta]) -> None:
        assert self._gathered is not None, f"E1: {stage} handed over epoch {epoch} without its having begun"
        self._gathered.deltas += deltas
        self._hand_over(stage, epoch)

    def _hand_over(self, member: str, epoch: int) -> None:
        if self._ledger.hand_over(member, epoch):
            self.wake()

    def _hurry(self) -> None:
        """A followed journal has come to its end for now: a checkpoint here stands where its version's stands."""
        if self._gathered is None and self._clock.monotonic() < self._due_at:
            self._due_at = self._clock.monotonic()
            self.wake()

    def _hold(self) -> None:
        """There is no room: nothing more is numbered before what waits is durable."""
        self._sequencer.held = True

    def _press(self, stage: Stage) -> None:
        """A limit is reached: an epoch begins now. While one is not durable, nothing more is numbered before it is."""
        if self._pressed or (stage.name in self._ledger.waiting_for and not stage.encodes):
            return  # a barrier, which takes the load off it, is on its way there
        self._pressed = True
        if self._gathered is not None or self.commits:
            self._sequencer.held = True
        self.wake()

    def _take(self) -> tuple[_Gathered, list[asyncio.Future[int | None]]]:
        """Take what was gathered, and who waits for it: from here on the next epoch may begin."""
        gathered, self._gathered = self._gathered, None
        answers, self._answering = self._answering, []
        assert gathered is not None, "E1: nothing was gathered"
        self._ledger.commit(gathered.epoch)
        return gathered, answers

    async def _commit(self, gathered: _Gathered, answers: list[asyncio.Future[int | None]]) -> None:
        settled: int | None = None
        try:
            await self._make_durable(gathered)
            settled = gathered.epoch
        except Stopped:
            if not self.stopping:
                raise
        finally:
            answer_all(answers, settled)

    async def _make_durable(self, gathered: _Gathered) -> None:
        epoch = gathered.epoch
        sinks: list[Delta] = []
        for output in self._outputs:
            self._hand_to(epoch, f"sink {output.sink}")
            sinks += await output.before()
        checkpoint = Checkpoint(
            region=self._region,
            attempt=self._attempt,
            epoch=epoch,
            position=gathered.position,
            journal=gathered.journal,
            deltas=[*sinks, *gathered.deltas],
            created_ms=self._clock.now_ms(),
            horizon=None if gathered.position["horizon"] in (MIN_TIME, MAX_TIME) else gathered.position["horizon"],
            stats={"duration_ms": round((self._clock.monotonic() - gathered.started) * 1_000, 3)},
        )
        self._hand_to(epoch, "the disk")
        stats = await self._store_commit(checkpoint)
        self._ledger.committed(epoch)
        for stage in self._stages:
            stage.committed(epoch)
        assert self._ledger.state(epoch) is EpochState.COMMITTED, f"E2: epoch {epoch} is shown before it is durable"
        for output in self._outputs:
            self._hand_to(epoch, f"sink {output.sink}")
            await output.after(gathered.deltas)
        self._ledger.settle(epoch)
        self._hand_to(epoch, "the source, to acknowledge")
        await self._acknowledge(gathered.position)
        self.handed_over = None
        elapsed = self._clock.monotonic() - gathered.started
        self.report = EpochReport(epoch, elapsed * 1_000, stats.bytes, checkpoint.created_ms)
        self._figures.note_checkpoint(elapsed, stats.bytes, checkpoint.deltas)
        self.shown_until = gathered.started
        if not self._pressed:
            self._sequencer.held = False
            self._sequencer.wake()

    def _hand_to(self, epoch: int, to: str) -> None:
        self.handed_over = HandedOver(epoch, to, self._clock.monotonic())

    async def _acknowledge(self, position: Any) -> None:
        """Tell the sources how far their records are safe: a checkpoint holds what they did."""
        offsets = {(part["source"], part["partition"]): part["offset"] for part in position["partitions"]}
        for reader in self._readers:
            await reader.acknowledge(offsets[reader.partition])

    def _raise_if_commit_failed(self) -> None:
        if self._committing is not None and self._committing.done():
            self._committing.result()

    async def _close(self) -> None:
        """Wait for what was handed to the writer's thread or a target; tell who waits that there will be no answer."""
        self._closed = True
        try:
            if self._committing is not None and not self._committing.done():
                await asyncio.wait([self._committing])
        finally:
            answer_all([*self._requests, *self._answering], None)
