"""Event time: when a record happened, assigned once, by its partition's reader, before anything is repartitioned."""

from __future__ import annotations

from dataclasses import dataclass
from operator import countOf
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.times import MAX_TIME, MIN_TIME

from .operator import Operator, bad_record
from .selectors import Selector, column, known_type


@dataclass(frozen=True, slots=True)
class EventTime:
    """When a record happened, and what the source promises about the order."""

    selector: Selector
    """Field or function that gives event time as int ms since the epoch, UTC."""

    disorder_ms: int
    """A record comes at most this much event time after a later one of its partition, or it may be late."""

    idle_after_ms: int | None
    """A partition that had nothing for so long leaves the watermark's minimum. None: never."""

    of: Any = None
    """Type of all values that the selector is given, where a decoder has made sure of it."""

    pace_when_idle: bool = True
    """When all partitions are idle, event time goes on with the clock, so that the last window closes."""


class AssignTime(Operator):
    """Give each row its timestamp; runs last in a reader."""

    def __init__(self, event_time: EventTime) -> None:
        super().__init__()
        self._times = column(event_time.selector, event_time.of)
        self._are_int = known_type(event_time.selector, event_time.of) is int

    def on_batch(self, batch: Batch) -> None:
        """Emit the rows with their timestamps; refuse what is no time: it would fail later, where nobody knows why."""
        batch = batch.replace(timestamps=self._times(self.name, batch))
        times = batch.timestamps or []
        if self._are_int or countOf(map(type, times), int) == len(times):
            least, greatest = batch.time_bounds
            if least > MIN_TIME and greatest < MAX_TIME:
                self.emit(batch)
                return
        for index, time in enumerate(times):
            if type(time) is not int:
                reason = f"event time {time!r} is a {type(time).__name__}; give int milliseconds since the epoch"
                raise bad_record(self.name, batch, index, TypeError(reason))
            if not MIN_TIME < time < MAX_TIME:
                raise bad_record(self.name, batch, index, ValueError(f"event time {time} is outside 64 bits"))
        raise AssertionError(f"{self.name}: {times} are times, and were refused")
