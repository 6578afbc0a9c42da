"""Windows: which ones a record belongs to, and what the watermark makes of them. Pure: no state, no emission.

A window is [start, end). Its life, with its last instant L = end - 1 and the allowed lateness A:

      OPEN ── watermark >= L ──▶ FIRED ── watermark >= L + A ──▶ GONE
       records change it          a record changes it,            it takes no record any more
                                  and shows at once as a
                                  correction

With A = 0 a window is gone as soon as it fires. A record is late when all its windows are gone.

Windows that overlap are cut into *panes*: stretches of gcd(size, slide) ms on the grid of the starts, so that a window
is a whole number of panes, and two records of one pane are in the same windows. A record changes one pane, however many
windows it is in. A tumbling window is its own only pane.

A region that began in the middle of its input (``since``) has not seen all of a window that began before: such windows
are left out, as if there were none, and their records are not late.

Windows that begin less often than they are long leave gaps. A record in a gap is in no window, and nothing becomes of
it; as in Flink, it counts as late once the watermark has reached its own time plus the allowed lateness.

Invariants, cited elsewhere by these names:

  (W1) The watermark never goes back: a lower one is ignored.
  (W2) A pane whose state is held is registered, and one whose windows are all gone is not; so a pane that is not
       registered has no state, and can't be asked for again once its windows are gone.
  (W3) Windows fire, and go, in the order of their starts.

All times stay inside 64 bits: what lies beyond means the end or the start of time. The first windows are cut at the
start of time, and a window whose L + A would pass the end of time goes when the watermark reaches that end. Inside
this package a window is known by the start that it would have if time had none.

Source: the semantics are Flink's (WindowOperator, EventTimeTrigger, SlidingEventTimeWindows); panes are those of Li et
al., "No pane, no gain", 2005.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import gcd
from typing import Any

from streamactors.core.batch import Window
from streamactors.core.errors import PipelineError
from streamactors.core.times import MAX_TIME, MIN_TIME, Duration, clamp_time, duration_ms, shown


@dataclass(frozen=True, slots=True, init=False)
class Windows:
    """Windows of one size, of which one begins every *slide*: what ``Tumbling`` and ``Sliding`` are."""

    size: int
    """Length, ms; at least 1."""

    slide: int
    """From one start to the next, ms; at least 1."""

    offset: int
    """Where windows start, ms from a multiple of the slide; -slide < offset < slide."""

    pane: int
    """Length of a pane, ms: the greatest that divides size and slide."""

    def __init__(self, size: Duration, slide: Duration, offset: Duration) -> None:
        object.__setattr__(self, "size", duration_ms(size))
        object.__setattr__(self, "slide", duration_ms(slide))
        object.__setattr__(self, "offset", duration_ms(offset))
        if self.size < 1:
            raise PipelineError(f"a window of {self.size} ms holds no instant. Give a size of at least 1 ms.")
        if self.slide < 1:
            raise PipelineError(f"a slide of {self.slide} ms never gets to the next window. Give at least 1 ms.")
        if abs(self.offset) >= self.slide:
            period = "size" if self.size == self.slide else "slide"
            raise PipelineError(
                f"a window offset of {self.offset} ms is not inside the {period} of {self.slide} ms: it would mean the "
                f"same as {self.offset % self.slide} ms. Write that."
            )
        object.__setattr__(self, "pane", gcd(self.size, self.slide))

    @property
    def grid(self) -> tuple[int, ...]:
        """Durations whose greatest common divisor the watermark's step has to divide, ms."""
        return (self.size, self.slide, self.offset)

    @property
    def panes(self) -> int:
        """How many panes a window has."""
        return self.size // self.pane

    def start(self, timestamp: int) -> int:
        """Return the start of the pane that holds *timestamp*."""
        start = timestamp - (timestamp - self.offset) % self.pane
        return start if start > MIN_TIME else MIN_TIME

    def split(self, timestamps: Sequence[int]) -> dict[int, list[int]]:
        """Return, for each pane in *timestamps*, newest first, its rows in order. Cost: about 0.1 µs a row."""
        pane, offset = self.pane, self.offset
        rows: dict[int, list[int]] = {}
        for row, timestamp in enumerate(timestamps):
            start = timestamp - (timestamp - offset) % pane
            if start in rows:
                rows[start].append(row)
            else:
                rows[start] = [row]
        return {max(start, MIN_TIME): rows[start] for start in sorted(rows, reverse=True)}

    def first(self, time: int) -> int:
        """Return the first window that ends behind *time*."""
        above = time - self.size + 1
        return above + (self.offset - above) % self.slide

    def last(self, time: int) -> int:
        """Return the last window that has begun at *time*: it holds *time*, or this is a gap."""
        return time - (time - self.offset) % self.slide

    def holding(self, time: int) -> range:
        """Return the windows that hold *time*, oldest first: the same for all of a pane."""
        return range(self.first(time), self.last(time) + 1, self.slide)

    def window(self, start: int) -> Window:
        """Return the window that starts at *start*."""
        # The first window of all may begin before the start of time: its end counts from where it would begin.
        begin = start - (start - self.offset) % self.slide
        return clamp_time(start), clamp_time(begin + self.size)

    def due(self, start: int, allowance: int) -> int:
        """Return the watermark that reaches the last instant of a window plus *allowance*."""
        return min(min(start + self.size, MAX_TIME) - 1 + allowance, MAX_TIME)


class Tumbling(Windows):
    """Windows of one size that follow each other without gap, aligned to *offset*: ``Tumbling("10min")``."""

    __slots__ = ()

    def __init__(self, size: Duration, offset: Duration = 0) -> None:
        super().__init__(size, size, offset)

    def __str__(self) -> str:
        return f"tumbling {shown(self.size)}{_origin(self)}"


class Sliding(Windows):
    """
    Windows of one size of which one begins every *slide*: ``Sliding("1h", slide="1min")``.

    A record is in each window that holds its time: in size / slide of them, or where the slide is longer than the size
    in one or none. What a record costs does not depend on that number, what a firing costs grows with its logarithm
    (flow/panes.py). Choose size, slide and offset with a large common divisor: it is the length of a pane, and the
    step in which the watermark moves.
    """

    __slots__ = ()

    def __init__(self, size: Duration, slide: Duration, offset: Duration = 0) -> None:
        super().__init__(size, slide, offset)

    def __str__(self) -> str:
        return f"sliding {shown(self.size)} every {shown(self.slide)}{_origin(self)}"


def _origin(windows: Windows) -> str:
    return f" from {shown(windows.offset)}" if windows.offset else ""


class Phase(Enum):
    """What a record of a pane does."""

    OPEN = "open"
    """Changes windows that have not fired, and no others that are held."""

    FIRED = "fired"
    """Changes one or more windows that have fired; maybe open ones too."""

    GONE = "gone"
    """Nothing: all its windows are gone."""

    GAP = "gap"
    """Nothing: it is in no window, or in none that is not left out."""


class Lifecycle:
    """Decide which panes are held, which windows fire and which go."""

    def __init__(self, assigner: Windows, lateness: int, watermark: int = MIN_TIME, *, since: int = MIN_TIME) -> None:
        if lateness < 0:
            raise PipelineError(f"an allowed lateness of {lateness} ms is negative. Give 0 or more.")
        self.assigner = assigner
        self.lateness = lateness
        self.watermark = watermark
        self._held: list[int] = []  # starts of the panes that have state, ascending (W2)
        least = since if since > MIN_TIME else MIN_TIME - assigner.size  # no window that holds a time begins before
        self._least = least + (assigner.offset - least) % assigner.slide  # the first window that is not left out

    @property
    def held(self) -> list[int]:
        """Starts of the panes that have state, oldest first; a copy."""
        return self._held.copy()

    @property
    def open(self) -> list[int]:
        """Starts of the panes that have state and are in a window that has not fired, oldest first."""
        return self._held[self._count_passed(0) :]

    def phase(self, pane: int) -> Phase:
        """Return what a record of the pane does, whether the pane is held or not."""
        windows = self.assigner
        last = windows.last(pane)
        if last + windows.size <= pane or last < self._least:
            return Phase.GAP
        if windows.due(last, self.lateness) <= self.watermark:
            return Phase.GONE
        return Phase.FIRED if self.fired(pane) else Phase.OPEN

    def fired(self, pane: int) -> range:
        """Return the windows of the pane that have fired and are not gone, oldest first."""
        due, watermark, lateness = self.assigner.due, self.watermark, self.lateness
        windows = self._holding(pane)
        if due(windows[0], 0) > watermark:
            return windows[:0]
        gone = bisect_right(windows, watermark, key=lambda start: due(start, lateness))
        return windows[gone : bisect_right(windows, watermark, key=lambda start: due(start, 0))]

    def unfired(self, pane: int) -> range:
        """Return the windows of the pane that have not fired, oldest first."""
        due, windows = self.assigner.due, self._holding(pane)
        return windows[bisect_right(windows, self.watermark, key=lambda start: due(start, 0)) :]

    def _holding(self, pane: int) -> range:
        """Return the windows of the pane that are not left out, oldest first; the pane has some."""
        windows = self.assigner.holding(pane)
        return windows if windows[0] >= self._least else windows[bisect_left(windows, self._least) :]

    def _first(self, time: int) -> int:
        """Return the first window that ends behind *time* and is not left out."""
        return max(self.assigner.first(time), self._least)

    def is_late(self, time: int) -> bool:
        """Return whether a record of a gap is late."""
        return self.assigner.last(time) >= self._least and clamp_time(time + self.lateness) <= self.watermark

    def holds(self, pane: int) -> bool:
        """Return whether the pane has state."""
        place = bisect_left(self._held, pane)
        return place < len(self._held) and self._held[place] == pane

    def register(self, pane: int) -> bool:
        """Note that the pane has state now; return whether it had none."""
        assert self.phase(pane) in (Phase.OPEN, Phase.FIRED), f"W2: pane {pane} was asked for again"
        if self.holds(pane):
            return False
        self._held.insert(bisect_left(self._held, pane), pane)
        return True

    def advance(self, watermark: int) -> tuple[list[int], list[int]]:
        """Move the watermark; return the windows that fire and the windows that go, in order (W3)."""
        if watermark <= self.watermark:  # (W1)
            return [], []
        before, self.watermark = self.watermark, watermark
        return list(self._reached(before, 0)), list(self._reached(before, self.lateness))

    def release(self) -> list[int]:
        """Forget the panes whose windows are all gone; return them, oldest first (W2)."""
        gone = self._count_passed(self.lateness)
        panes = self._held[:gone]
        del self._held[:gone]
        return panes

    def snapshot(self) -> list[Any]:
        """Return what a restart needs, as builtins."""
        return [self.watermark, self._held.copy()]

    def restore(self, snapshot: list[Any]) -> None:
        """Become what ``snapshot`` returned."""
        self.watermark, self._held = snapshot[0], list(snapshot[1])

    def _count_passed(self, allowance: int) -> int:
        """Return how many of the held panes have no window that is not due: a prefix of them."""
        last, due = self.assigner.last, self.assigner.due
        return bisect_right(self._held, self.watermark, key=lambda pane: due(last(pane), allowance))

    def _reached(self, before: int, allowance: int) -> Iterator[int]:
        """Yield the windows that hold something and have become due since the watermark *before*, in order."""
        windows, held = self.assigner, self._held
        start = self._first(before - allowance + 1)
        while (place := bisect_left(held, start)) < len(held):
            if held[place] >= start + windows.size:
                start = self._first(held[place])  # nothing is held from here to there
                continue
            if (due := windows.due(start, allowance)) > self.watermark:
                return
            if due > before:  # near the end of time several windows are due at once, and were before
                yield start
            start += windows.slide
