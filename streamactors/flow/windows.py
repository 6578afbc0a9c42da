"""Windows: which one a record belongs to, and what the watermark makes of it. Pure: no state, no emission.

A window is [start, end). Its life, with its last instant L = end - 1 and the allowed lateness A:

      OPEN ── watermark >= L ──▶ FIRED ── watermark >= L + A ──▶ GONE
       records change it          a record changes it,            a record is late: it goes to the late output
                                  and shows at once as a
                                  correction

With A = 0 a window is gone as soon as it fires.

Invariants, cited elsewhere by these names:

  (W1) The watermark never goes back: a lower one is ignored.
  (W2) A window whose state is held is registered, and one that is gone is not; so a start that is not registered has
       no state, and can't be asked for again once it is gone.
  (W3) Windows fire, and go, in the order of their starts.

All times stay inside 64 bits: what lies beyond means the end or the start of time. The first window that fits is cut
at the start of time, and a window whose L + A would pass the end of time goes when the watermark reaches that end.

Source: the semantics are Flink's (WindowOperator, EventTimeTrigger, TumblingEventTimeWindows).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from streamactors.core.batch import Window
from streamactors.core.errors import PipelineError
from streamactors.core.times import MIN_TIME, Duration, clamp_time, duration_ms, shown


@dataclass(frozen=True, slots=True, init=False)
class Tumbling:
    """Windows of one size that follow each other without gap, aligned to *offset*: ``Tumbling("10min")``."""

    size: int
    """Length, ms; at least 1."""

    offset: int
    """Where windows start, ms from a multiple of the size; -size < offset < size."""

    def __init__(self, size: Duration, offset: Duration = 0) -> None:
        object.__setattr__(self, "size", duration_ms(size))
        object.__setattr__(self, "offset", duration_ms(offset))
        if self.size < 1:
            raise PipelineError(f"a window of {self.size} ms holds no instant. Give a size of at least 1 ms.")
        if abs(self.offset) >= self.size:
            raise PipelineError(
                f"a window offset of {self.offset} ms is not inside the size of {self.size} ms: it would mean the "
                f"same as {self.offset % self.size} ms. Write that."
            )

    def __str__(self) -> str:
        return f"tumbling {shown(self.size)}" + (f" from {shown(self.offset)}" if self.offset else "")

    @property
    def grid(self) -> tuple[int, ...]:
        """Durations whose greatest common divisor the watermark's step has to divide, ms."""
        return (self.size, self.offset)

    def start(self, timestamp: int) -> int:
        """Return the start of the window that holds *timestamp*."""
        start = timestamp - (timestamp - self.offset) % self.size
        return start if start > MIN_TIME else MIN_TIME

    def window(self, start: int) -> Window:
        """Return the window that starts at *start*."""
        # The first window of all may begin before the start of time: its end counts from where it would begin.
        return start, clamp_time(start - (start - self.offset) % self.size + self.size)

    def split(self, timestamps: Sequence[int]) -> dict[int, list[int]]:
        """Return, for each window in *timestamps*, newest first, its rows in order. Cost: about 0.1 µs a row."""
        size, offset = self.size, self.offset
        rows: dict[int, list[int]] = {}
        for row, timestamp in enumerate(timestamps):
            start = timestamp - (timestamp - offset) % size
            if start in rows:
                rows[start].append(row)
            else:
                rows[start] = [row]
        return {max(start, MIN_TIME): rows[start] for start in sorted(rows, reverse=True)}


class Phase(Enum):
    """Where a window is in its life."""

    OPEN = "open"
    FIRED = "fired"
    GONE = "gone"


class Lifecycle:
    """Decide which windows are held, which fire and which go."""

    def __init__(self, assigner: Tumbling, lateness: int, watermark: int = MIN_TIME) -> None:
        if lateness < 0:
            raise PipelineError(f"an allowed lateness of {lateness} ms is negative. Give 0 or more.")
        self.assigner = assigner
        self.lateness = lateness
        self.watermark = watermark
        self._held: list[int] = []  # starts of the windows that have state, ascending (W2)

    @property
    def held(self) -> list[int]:
        """Starts of the windows that have state, oldest first; a copy."""
        return self._held.copy()

    @property
    def open(self) -> list[int]:
        """Starts of the windows that have state and have not fired, oldest first."""
        return self._held[self._count_passed(0) :]

    def phase(self, start: int) -> Phase:
        """Return where the window is, held or not."""
        last = self.assigner.window(start)[1] - 1
        if last > self.watermark:
            return Phase.OPEN
        return Phase.FIRED if clamp_time(last + self.lateness) > self.watermark else Phase.GONE

    def register(self, start: int) -> bool:
        """Note that the window has state now; return whether it had none."""
        assert self.phase(start) is not Phase.GONE, f"W2: window {start} was asked for again"
        place = bisect_left(self._held, start)
        if place < len(self._held) and self._held[place] == start:
            return False
        self._held.insert(place, start)
        return True

    def advance(self, watermark: int) -> tuple[list[int], list[int]]:
        """Move the watermark; return the windows that fire and the windows that go, in order (W3)."""
        if watermark <= self.watermark:  # (W1)
            return [], []
        fired_before = self._count_passed(0)
        self.watermark = watermark
        fire = self._held[fired_before : self._count_passed(0)]
        gone = self._count_passed(self.lateness)
        go = self._held[:gone]
        del self._held[:gone]
        return fire, go

    def snapshot(self) -> list[Any]:
        """Return what a restart needs, as builtins."""
        return [self.watermark, self._held.copy()]

    def restore(self, snapshot: list[Any]) -> None:
        """Become what ``snapshot`` returned."""
        self.watermark, self._held = snapshot[0], list(snapshot[1])

    def _count_passed(self, allowance: int) -> int:
        """Return how many of the held windows have end - 1 + *allowance* <= watermark: a prefix of them."""
        return bisect_right(
            self._held,
            self.watermark,
            key=lambda start: clamp_time(self.assigner.window(start)[1] - 1 + allowance),
        )
