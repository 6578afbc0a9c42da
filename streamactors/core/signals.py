"""Signals: what travels in the mailboxes between the batches, in order with them.

Each signal takes a sequence number of its own and goes to every channel, so that a stage with several channels meets
it at the same place on each: alignment is the order of the sequence, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watermark:
    """No record with a timestamp <= *time* will come, or it is late. Moves in steps, never back."""

    time: int


@dataclass(frozen=True, slots=True)
class ClockMark:
    """Processing time has reached *time* (ms, on the grid of the region's clock period); journaled."""

    time: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """The line between epoch *epoch* and the next one."""

    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Flush:
    """A bounded run ends here: windows with early results emit what they hold; nothing is purged."""


@dataclass(frozen=True, slots=True)
class End:
    """No message follows. The stage hands over for the last time and its actor ends."""


Signal = Watermark | ClockMark | Barrier | Flush | End
