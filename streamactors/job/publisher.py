"""The publisher: what the coordinator is for the other guarantees, an at-most-once region has instead.

There is no barrier and no checkpoint. Every interval the rows of views that changed are stored, so that other processes
see them; views are taken one after the other, wherever the stages are just then, so what is stored belongs to no one
place in the stream. It goes into a transaction of the same form as a checkpoint, which refuses what bears an older
attempt; the position in it is for people to read, and no start goes on from it.

Somebody who asks for a checkpoint, and the end of a run, wait until all stages have handled what was numbered and all
sinks have written what they were given; then the views are stored.

If we crash: state and position are gone. The next attempt begins with empty state at the sources' ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from streamactors.core.limits import ENCODE_SLICE_ENTRIES
from streamactors.durable.store import Checkpoint
from streamactors.durable.views import ViewBuffer

from .immediate import Stopped
from .keeping import EpochReport, Keeper, Keeping, answer_all

POLL_SECONDS = 0.002
"""How often the publisher looks whether the stages have come to where somebody waits for them."""


class Publisher(Keeper):
    """Store views at an interval. See the module's header."""

    def __init__(self, name: str, keeping: Keeping, views: Sequence[ViewBuffer]) -> None:
        super().__init__(name, keeping)
        self._views = list(views)
        self._room.on_wait = self._hold
        for stage in self._stages:
            stage.press = self._press

    @property
    def unseen(self) -> bool:
        """Whether a view has something that is not stored, which other processes don't see."""
        return any(view.entries_dirty for view in self._views)

    async def run(self) -> None:
        """Store until the run ends, or until told to stop."""
        try:
            while not self.stopping:
                if self._sequencer.exhausted:
                    await self._end()
                    return
                if self._requests or self._sequencer.held or self._clock.monotonic() >= self._due_at:
                    await self._answer_and_publish()
                else:
                    await self.wait_woken_or(self._clock, self._due_at - self._clock.monotonic())
        finally:
            self._closed = True
            answer_all(self._requests, None)

    async def _end(self) -> None:
        self._sequencer.end()
        if await self._until_written():
            answers, self._requests = self._requests, []
            try:
                await self._publish()
            finally:
                answer_all(answers, self.report.epoch)
            for output in self._outputs:
                output.finish()

    async def _answer_and_publish(self) -> None:
        answers, self._requests = self._requests, []
        stored: int | None = None
        try:
            if answers and not await self._until_written():
                return
            if answers or self.unseen:
                await self._publish()
            else:
                self.shown_until = self._clock.monotonic()
            stored = self.report.epoch
        finally:
            answer_all(answers, stored)
        self._sequencer.sequencing.take_journal()  # nobody will follow it
        self._due_at = self._clock.monotonic() + self._interval
        if self._sequencer.held:
            self._sequencer.held = False
            self._sequencer.wake()

    async def _until_written(self) -> bool:
        """Wait until what is numbered now has been handled and written; False when told to stop."""
        sequence = self._sequencer.sequence
        while any(stage.handled < sequence for stage in self._stages):
            if self.stopping:
                return False
            await self._clock.sleep(POLL_SECONDS)
        try:
            for output in self._outputs:
                await output.before()
        except Stopped:
            if not self.stopping:
                raise
        return not self.stopping

    async def _publish(self) -> None:
        """Store what changed in the views, and how far the region has read."""
        epoch, started = self.report.epoch + 1, self._clock.monotonic()
        for view in self._views:
            view.freeze(epoch)
        for view in self._views:
            while not view.encode(ENCODE_SLICE_ENTRIES):  # noqa: ASYNC110 - the loop gets a turn between slices
                await asyncio.sleep(0)
        checkpoint = Checkpoint(
            region=self._region,
            attempt=self._attempt,
            epoch=epoch,
            position=msgspec.to_builtins(self._sequencer.sequencing.position),
            deltas=[delta for view in self._views for delta in view.hand_over()],
            created_ms=self._clock.now_ms(),
        )
        stats = await self._store_commit(checkpoint)
        for view in self._views:
            view.committed(epoch)
        elapsed = self._clock.monotonic() - started
        self.report = EpochReport(epoch, elapsed * 1_000, stats.bytes, checkpoint.created_ms)
        self._figures.note_checkpoint(elapsed, stats.bytes, checkpoint.deltas)
        self.shown_until = started

    def _hold(self) -> None:
        """There is no room: nothing more is numbered before what waits is stored."""
        self._sequencer.held = True
        self.wake()

    def _press(self) -> None:
        """The views hold too much that is not stored: nothing more is numbered before it is."""
        self._sequencer.held = True
        self.wake()
