"""What a stage with awaited calls has taken and not passed on: which row is called next, and what may leave when.

    take(sequence, batch or signal)      from the mailbox, in the order of the sequence
    begin()                              the next row to call
    answer(row, result)                  in any order
    leave()                              what may go on now, with its number in the sequence

Rule 1. No asyncio, no clock. The workers (flow/async_calls.py) await, the stage (flow/stage.py) takes and passes on.
Rule 2. A signal leaves when all that was taken before it has left, and before anything that was taken behind it. So a
        watermark makes no record late, and when a barrier leaves, what is behind it has changed nothing yet: calls for
        it may be in flight, but nothing of them is stored, and a restart repeats them.

Calls are begun across signals. Else a replay, which meets a watermark after every few records, would call no more
than those few at once, and each barrier would let the line of calls run dry.

Two orders in which results leave:

    InSequence   a batch leaves whole, when all its rows have answered and it is the first. The sequence stays (T1).
    AsAnswered   rows leave as they answer, within the signals that they stand between. A row then takes the lowest
                 number that is still free there, not its own: whoever reads takes a number only when nothing more can
                 come for it, and would otherwise wait for the slowest call of all before it.

Invariants:

  (A1) At most ``capacity`` rows are being called.
  (A2) No more than ``capacity`` + BATCH_RECORDS_MAX rows are held before another batch is taken: answers that wait for
       a slow one before them are bounded.
  (A3) What leaves has numbers that never go down, and none at or below ``passed``.

If we crash: nothing here is stored. What was in flight is read again from the source, and called again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamactors.core.batch import Batch, Kind
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.core.signals import Signal


@dataclass(slots=True, eq=False)
class Piece:
    """A batch that was taken, and what its rows have answered."""

    sequence: int
    batch: Batch
    results: list[Any]
    unanswered: int
    section: _Section | None = None
    ready: list[int] = field(default_factory=list)
    """Rows that have answered and have not left. As answered only."""


Row = tuple[Piece, int]


class Answered(NamedTuple):
    """Rows that were taken, and what each of them has answered; None for a DELETE."""

    batch: Batch
    results: list[Any]


class Left(NamedTuple):
    """What goes on, and with which number."""

    sequence: int
    message: Answered | Signal


class InFlight:
    """See the module's header."""

    def __init__(self, capacity: int, *, ordered: bool = True) -> None:
        self.capacity = capacity
        self.rows = 0
        """Taken, and not left."""

        self.waiting: deque[Row] = deque()
        """Rows that are not called yet."""

        self._started: dict[Row, float] = {}  # in the order in which they began
        self._order = _InSequence() if ordered else _AsAnswered()

    @property
    def calling(self) -> int:
        """How many rows are being called."""
        return len(self._started)

    @property
    def wanted(self) -> int:
        """How many rows have not answered: called, or waiting to be."""
        return len(self._started) + len(self.waiting)

    @property
    def oldest(self) -> float | None:
        """When the call began that has been in flight for longest."""
        return next(iter(self._started.values()), None)

    @property
    def oldest_row(self) -> Row | None:
        """The row of that call."""
        return next(iter(self._started), None)

    @property
    def has_room(self) -> bool:
        """Whether another message may be taken (A1), (A2)."""
        return self.wanted < self.capacity and self.rows < self.capacity + BATCH_RECORDS_MAX

    @property
    def passed(self) -> int | None:
        """Nothing more can leave with a number up to this; None: up to whatever was taken."""
        return self._order.passed

    def take(self, sequence: int, message: Batch | Signal) -> None:
        """Take the next message of the sequence."""
        if not isinstance(message, Batch):
            self._order.take_signal(sequence, message)
            return
        if not message.values:
            return
        piece = Piece(sequence, message, [None] * len(message), len(message))
        self.rows += len(message)
        self._order.take(piece)
        kinds = message.kinds
        for index in range(len(message)):
            if kinds is not None and kinds[index] == Kind.DELETE:  # there is no value to call with
                self._order.answered(piece, index)
            else:
                self.waiting.append((piece, index))

    def begin(self, now: float) -> Row | None:
        """Return the next row to call, or None when there is none, or no room for it."""
        if not self.waiting or self.calling >= self.capacity:
            return None
        row = self.waiting.popleft()
        self._started[row] = now
        return row

    def answer(self, row: Row, result: Any) -> bool:
        """Note what a row has answered; return whether that makes a difference to the stage."""
        del self._started[row]
        piece, index = row
        piece.results[index] = result
        return self._order.answered(piece, index) or self.has_room

    def leave(self, begun: int, *, room: bool) -> Left | None:
        """
        Return what goes on next, or None.

        *begun* is the number that the stage stands at. It begins another only with *room* in all its outputs (D1), but
        never waits in the middle of one: what a receiver is not given of it, it may wait for on every channel.
        """
        left = self._order.leave(lambda sequence: room or sequence == begun)
        if left is not None and isinstance(left.message, Answered):
            self.rows -= len(left.message.batch)
        return left


class _InSequence:
    """Batches leave whole, in the order in which they came."""

    def __init__(self) -> None:
        self._queue: deque[Piece | Left] = deque()

    @property
    def passed(self) -> int | None:
        return self._queue[0].sequence - 1 if self._queue else None

    def take(self, piece: Piece) -> None:
        self._queue.append(piece)

    def take_signal(self, sequence: int, signal: Signal) -> None:
        self._queue.append(Left(sequence, signal))

    def answered(self, piece: Piece, index: int) -> bool:
        del index
        piece.unanswered -= 1
        return not piece.unanswered

    def leave(self, may_begin: Callable[[int], bool]) -> Left | None:
        if not self._queue or not may_begin(self._queue[0].sequence):
            return None
        first = self._queue[0]
        if isinstance(first, Piece):
            if first.unanswered:
                return None
            first = Left(first.sequence, Answered(first.batch, first.results))
        self._queue.popleft()
        return first


@dataclass(slots=True, eq=False)
class _Section:
    """What was taken between two signals."""

    numbers: deque[int] = field(default_factory=deque)
    """Of the batches: what leaves takes one of these."""

    ready: deque[Piece] = field(default_factory=deque)
    """Batches of which rows have answered and not left."""

    rows: int = 0
    signal: Left | None = None
    """Behind it."""


class _AsAnswered:
    """Rows leave when they have answered, and never pass a signal."""

    def __init__(self) -> None:
        self._sections: deque[_Section] = deque([_Section()])
        self._used = 0  # the number with which something left

    @property
    def passed(self) -> int | None:
        first = self._sections[0]
        if first.rows:
            return first.numbers[0] - 1
        return None if first.signal is None else first.signal.sequence - 1

    def take(self, piece: Piece) -> None:
        piece.section = section = self._sections[-1]
        section.numbers.append(piece.sequence)
        section.rows += len(piece.batch)

    def take_signal(self, sequence: int, signal: Signal) -> None:
        self._sections[-1].signal = Left(sequence, signal)
        self._sections.append(_Section())

    def answered(self, piece: Piece, index: int) -> bool:
        section = piece.section
        assert section is not None, f"a row of {piece.batch!r} answered that was not taken"
        if not piece.ready:
            section.ready.append(piece)
        piece.ready.append(index)
        return section is self._sections[0]

    def leave(self, may_begin: Callable[[int], bool]) -> Left | None:
        first = self._sections[0]
        # A number that something left with is given up as soon as there is another for what follows.
        while len(first.numbers) > 1 and first.numbers[0] <= self._used:
            first.numbers.popleft()
        if first.ready and may_begin(first.numbers[0]):
            return self._leave_rows(first)
        if first.rows or first.signal is None or not may_begin(first.signal.sequence):
            return None
        self._sections.popleft()
        return first.signal

    def _leave_rows(self, section: _Section) -> Left:
        piece = section.ready.popleft()
        rows, piece.ready = piece.ready, []
        section.rows -= len(rows)
        self._used = section.numbers[0]
        if not section.rows:  # then all its numbers are passed
            section.numbers.clear()
        return Left(self._used, Answered(piece.batch.take(rows), [piece.results[row] for row in rows]))
