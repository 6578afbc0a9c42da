"""Immediate output: what a sink was given is written as soon as what came before it has been (at-least-once and
at-most-once).

    in the stage   the sink's writer turns batches into payloads, as always
    here           an actor takes the payloads that have gathered while the last ones were written, and writes them, one
                   at a time and in order. No linger: at low load a batch is written at once, at high load many together
    backpressure   the stage takes no message while the writer holds more than a bound, in bytes, and in records as many
                   as the target took in a checkpoint interval: a barrier never waits for minutes behind a slow target

Where there are checkpoints, each waits until all that was given before it has been written (``before``): else the
source would not come back to what a crash takes from the memory here.

If we crash: what was not written is gone with the process. At-least-once reads its records again; those that had been
written since the last checkpoint are then written twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from streamactors.core.batch import Batch
from streamactors.core.connectors import SinkTarget, SinkWriter
from streamactors.core.limits import IMMEDIATE_BYTES_MAX, UNPACED_RECORDS_MAX
from streamactors.core.ports import Clock
from streamactors.durable.store import Delta
from streamactors.engine.actor import Actor

from .pending import Committer

_RECORDS_MIN = 16
"""As in engine/mailbox.py: below it the fixed cost of a write would slow the target down further."""


class SinkOutput(Protocol):
    """How the output of one sink goes with a checkpoint; pending.Committer is the other one."""

    sink: str
    """The sink's id."""

    @property
    def waiting_bytes(self) -> int:
        """What waits for the target's answer."""

    async def before(self) -> Sequence[Delta]:
        """Return rows for the checkpoint, when it may be committed."""

    async def after(self, deltas: Sequence[Delta]) -> None:
        """The checkpoint of *deltas* is durable."""

    def finish(self) -> None:
        """Nothing follows in this run."""


class Stopped(Exception):
    """The output has ended before all that it was given was written; the region is being stopped."""


class ImmediateOutput(Actor):
    """Write one sink's output at once. See the module's header."""

    def __init__(
        self, name: str, writer: SinkWriter, target: SinkTarget, committer: Committer, *, clock: Clock, interval: float
    ) -> None:
        super().__init__(name)
        self.on_room: Callable[[], None] = lambda: None
        """Called when there is room again."""

        self.records_max = UNPACED_RECORDS_MAX
        """Records that may wait; follows the target."""

        self._writer = writer
        self._target = target
        self._committer = committer  # of what exactly-once has left
        self.sink = committer.sink
        self.writing_since: float | None = None
        """Monotonic seconds since which the target has not answered a write."""

        self._clock = clock
        self._interval = interval
        self._waiting_bytes = self._waiting_records = self._writing_bytes = 0
        self._given = self._written = 0  # batches
        self._flushing: list[asyncio.Future[None]] = []
        self._finishing = False
        self._over: Exception | None = None

    @property
    def waiting_bytes(self) -> int:
        """What the target has not answered for."""
        return self._waiting_bytes + self._writing_bytes

    @property
    def has_room(self) -> bool:
        """Whether the stage may handle another message."""
        return self._waiting_bytes < IMMEDIATE_BYTES_MAX and self._waiting_records < self.records_max

    def write(self, batch: Batch) -> None:
        """Take *batch*; it is written soon."""
        self._waiting_bytes = self._writer.write(batch)
        self._waiting_records += len(batch)
        self._given += 1
        self.wake()

    async def before(self) -> list[Delta]:
        """Wait until all that was given has been written; return the deletion of old pending output."""
        wanted = self._given
        while self._written < wanted:
            if self._over is not None:
                raise self._over
            flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append(flushed)
            await flushed
        return self._committer.take_settled()

    async def after(self, deltas: Sequence[Delta]) -> None:
        """Nothing waits for a checkpoint here."""

    def finish(self) -> None:
        """End when all is written."""
        self._finishing = True
        self.wake()

    async def run(self) -> None:
        """Write until told to stop, or until finished."""
        try:
            await super().run()
        except Exception as error:
            self._over = error
            raise
        finally:
            self._over = self._over or Stopped(f"{self.name} was stopped before all was written")
            self._answer()

    async def step(self) -> bool:
        """Write what has gathered; False when there is nothing."""
        if self._written == self._given:
            self.stopping = self.stopping or self._finishing
            return False
        given, records, started = self._given, self._waiting_records, self._clock.monotonic()
        payloads = self._writer.take()
        self._writing_bytes = self._waiting_bytes
        self._waiting_bytes = self._waiting_records = 0
        self.on_room()
        self.writing_since = started
        for payload in payloads:
            await self._target.write(payload)
        self.writing_since = None
        self._writing_bytes = 0
        self._written = given
        self._pace(records, self._clock.monotonic() - started)
        self._answer()
        return True

    def _pace(self, records: int, seconds: float) -> None:
        if seconds > 0:
            self.records_max = max(_RECORDS_MIN, int(records / seconds * self._interval))

    def _answer(self) -> None:
        flushing, self._flushing = self._flushing, []
        for flushed in flushing:
            if not flushed.done():
                flushed.set_result(None)
