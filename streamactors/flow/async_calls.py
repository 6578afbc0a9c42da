"""Operators whose function is awaited, for one record or for many at once; and how often a call is tried.

Such an operator stands at the head of a stage. The stage gives it what comes from the mailbox and takes from it what
may go on; it never waits inside it. So while calls are under way the stage encodes state, hears of commits, and hears
the word to stop. What may leave when is decided in flow/in_flight.py.

The calls are made by *workers*: tasks that call for one row after another, as many as there are rows to call, and at
most ``capacity``. A worker ends when no row waits. So a backlog costs one task for each of the ``capacity`` calls that
are in flight, and not one for each record; a record that comes alone costs a task (12 µs). With a capacity of 1 a
function is awaited for one record after another, in order: the awaited forms of ``map``, ``filter``, ... are that.

A call, in the order of the code:

    1. the function is called and awaited, for at most ``timeout``: then it is cancelled, and TimeoutError is its error
    2. an Exception, and no other BaseException, is followed by another try, after a wait that doubles
    3. the last try's error goes to ``failed``: the one place where a call has failed for good. The error policy
       decides; a record that is left out is refused when its batch leaves, in the order of the sequence
    4. a CancelledError that nobody here asked for is an error of the function: taken for a cancellation, the row would
       be waited for, for ever

A function that swallows its cancellation and goes on can't be stopped by anyone: its timeout holds when it lets go.
One that answers it, with a value or an error of its own, is not called again when the stage closes.

How a stage with calls in flight ends: on *drain* all of them are awaited, because the end of the stream is behind them.
On *stop*, or when the region fails, they are cancelled; the next attempt reads their records, and calls, again.

Timeouts count by the event loop's clock, which in a simulation is the simulated one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, UsageError
from streamactors.core.ports import Clock
from streamactors.core.signals import Signal
from streamactors.core.times import shown
from streamactors.engine.restarts import backoff

from .dead_letters import OnError
from .in_flight import Answered, InFlight, Left, Row
from .operator import Operator, OperatorContext, bad_record


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is tried again, and how long between. Durations in seconds."""

    retries_max: int = 3
    """Tries after the first one."""

    backoff_first: float = 0.1
    """The longest wait before the first retry; doubles with each one."""

    backoff_max: float = 10.0
    """No wait is longer than this."""

    def __post_init__(self) -> None:
        """Refuse what can't be followed."""
        for name in ("retries_max", "backoff_first", "backoff_max"):
            if not getattr(self, name) >= 0:  # nan too
                raise UsageError(f"Retry: {name}={getattr(self, name)} is no number from 0 on. Give one.")

    def delay(self, tries: int, random: Random) -> float:
        """Return how long to wait after *tries* failed tries."""
        return backoff(self.backoff_first, self.backoff_max, tries, random)


ONCE = Retry(0)
"""The first failure is final."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What a row has answered that is left out."""

    bad: BadRecord


class AsyncOperator(Operator):
    """An operator that calls an async function for each row. See the module's header."""

    def __init__(
        self, *, capacity: int = 1, ordered: bool = True, timeout_ms: int | None = None, retry: Retry = ONCE
    ) -> None:
        super().__init__()
        self.in_flight = InFlight(capacity, ordered=ordered)
        self.wake: Callable[[], None] = _nobody
        """Called when there is something to take, or room for more."""

        self.workers: dict[asyncio.Task[None], None] = {}
        """The tasks that call, in the order in which they began: a set has none."""

        self._working = 0  # workers that will look for another row: a task ends a little later
        self._timeout_ms = timeout_ms
        self._retry = retry
        self._clock: Clock
        self._random: Random
        self._error: BaseException | None = None
        self._closing = False

    # What an operator says. -------------------------------------------------------------------------------------------

    def call(self, batch: Batch, row: int) -> Awaitable[Any]:
        """Return what is awaited for a row; called once for each try, in the order of the rows."""
        raise NotImplementedError

    def made(self, batch: Batch, results: list[Any]) -> Batch:
        """Return what goes on when the rows of *batch* have answered; called when they may leave."""
        raise NotImplementedError

    def explained(self, batch: Batch, row: int, error: Exception) -> BadRecord:
        """Return the error that names operator, record and place."""
        return bad_record(self.name, batch, row, error)

    def failed(self, batch: Batch, row: int, error: Exception) -> Refused:
        """No try is left: raise, or leave the record out, as the error policy says. It is refused in its place."""
        bad = self.explained(batch, row, error)
        bad.__cause__ = error
        if self.on_error is OnError.FAIL:
            raise bad
        return Refused(bad)

    # For the stage. ---------------------------------------------------------------------------------------------------

    def open(self, context: OperatorContext) -> None:
        """Take the context: called once, before anything else."""
        super().open(context)
        assert context.clock is not None, f"{self.name} was opened without a clock"
        assert context.random is not None, f"{self.name} was opened without randomness"
        self._clock, self._random = context.clock, context.random

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest call has been in flight; 0 when there is none."""
        oldest = self.in_flight.oldest
        return 0.0 if oldest is None else self._clock.monotonic() - oldest

    def take(self, sequence: int, message: Batch | Signal) -> None:
        """Take the next message of the sequence, and begin calls."""
        if isinstance(message, Batch):
            self.records_in += len(message)
        self.in_flight.take(sequence, message)
        for _ in range(self._working, min(self.in_flight.capacity, self.in_flight.wanted)):
            self._working += 1
            worker = asyncio.create_task(self._work(), name=f"{self.name}: call")
            self.workers[worker] = None
            worker.add_done_callback(self._ended)

    def leave(self, begun: int, *, room: bool) -> Left | None:
        """Return what goes on next, or None. See InFlight. Raise what a call has failed with."""
        if self._error is not None:
            raise self._error
        return self.in_flight.leave(begun, room=room)

    def pass_on(self, answered: Answered) -> None:
        """Emit what becomes of rows that have answered; called when the stage stands at their place."""
        made = self._made(answered)
        if made.values:
            self.emit(made)

    async def close(self) -> None:
        """Cancel what is in flight; return when it is gone."""
        self._closing = True
        for worker in self.workers:
            worker.cancel()
        if self.workers:
            await asyncio.wait(list(self.workers))

    async def on_batch_async(self, batch: Batch) -> Batch:
        """Return what becomes of *batch*: for a reader, which prepares one at a time, in the order of its offsets."""
        self.in_flight, woken = InFlight(self.in_flight.capacity), asyncio.Event()
        self.wake = woken.set
        self.take(1, batch)
        try:
            while (left := self.leave(0, room=True)) is None:
                woken.clear()
                await woken.wait()
        except BaseException:
            await self.close()
            raise
        assert isinstance(left.message, Answered)
        return self._made(left.message)

    def _made(self, answered: Answered) -> Batch:
        batch, results = answered
        refused = [row for row, result in enumerate(results) if type(result) is Refused]
        if not refused:
            return self.made(batch, results)
        for row in refused:
            self.refuse(results[row].bad, batch, row)
        gone = set(refused)
        if batch.kinds is not None:  # what went before such a row is taken back, as filter() does it
            deleted = {row for row in gone if batch.kinds[row] != Kind.FINAL}
            batch = batch.replace(kinds=[Kind.DELETE if i in deleted else kind for i, kind in enumerate(batch.kinds)])
            results, gone = [None if i in deleted else result for i, result in enumerate(results)], gone - deleted
        kept = [row for row in range(len(batch)) if row not in gone]
        return self.made(batch.take(kept), [results[row] for row in kept])

    # The workers. -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Call for one row after another, until none waits."""
        in_flight = self.in_flight
        try:
            while not self._closing and self._error is None:
                row = in_flight.begin(self._clock.monotonic())
                if row is None:
                    break
                result = await self._answer(row)
                if in_flight.answer(row, result):
                    self.wake()
        finally:
            self._working -= 1

    async def _answer(self, row: Row) -> Any:
        """Return what the function gives for *row*, by as many tries as it may have."""
        piece, index = row
        for tries in count(1):
            try:
                return await self._try(piece.batch, index)
            except asyncio.CancelledError:
                if self._closing:
                    raise
                return self.failed(piece.batch, index, RuntimeError(_CANCELLED))
            except Exception as error:  # noqa: BLE001 - it goes to ``failed``, which raises it
                if tries > self._retry.retries_max or self._closing:
                    return self.failed(piece.batch, index, error)
            await self._clock.sleep(self._retry.delay(tries, self._random))
        raise AssertionError("unreachable: tries are counted without an end")

    async def _try(self, batch: Batch, row: int) -> Any:
        if self._timeout_ms is None:
            return await self.call(batch, row)
        limit = asyncio.timeout(self._timeout_ms / 1_000)
        try:
            async with limit:
                return await self.call(batch, row)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"it has not answered within {shown(self._timeout_ms)}") from error

    def _ended(self, worker: asyncio.Task[None]) -> None:
        del self.workers[worker]
        if worker.cancelled():
            error: BaseException | None = RuntimeError(f"{self.name}: {_CANCELLED}") if not self._closing else None
        else:
            error = worker.exception()
        self._error = self._error or error
        self.wake()


_CANCELLED = (
    "CancelledError, and nobody here had cancelled it: the function raised it, or cancelled its own task. Let it raise "
    "TimeoutError or an error of its own"
)


def _nobody() -> None:
    """Stand in until the stage listens."""
