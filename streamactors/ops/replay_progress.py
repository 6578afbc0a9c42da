"""How far a replay is: when it has caught up, how many bytes are left, and when that will be. Pure.

goal        where the version stands that is followed, as of its newest checkpoint; it moves while that one runs
caught up   all that it had decided one checkpoint ago is in a checkpoint of ours. While it runs there is always
            something newer; if it does not run there is never, and then its last place has to be reached
time left   what is left by the rate of the last seconds, less the rate at which the goal moves away. Not known for
            the first seconds; never, where the goal moves faster
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from streamactors.core.times import MIN_TIME
from streamactors.durable.store import Restored
from streamactors.job.why import duration_text

from .output import iso_time

RATE_SECONDS = 10.0
"""Over which the rates are taken: batches and checkpoints no longer show, a change of the load soon does."""

RATE_SECONDS_MIN = 1.0
"""Before which nobody knows a rate."""


class Chase:
    """Decide when one version has caught up with another."""

    def __init__(self) -> None:
        self._newest: dict[str, Restored] = {}
        self._before: dict[str, Restored] = {}

    def caught_up(self, mine: Mapping[str, Restored], its: Mapping[str, Restored]) -> bool:
        """Note where both stand; return whether *mine* has caught up in every region."""
        for region, restored in its.items():
            known = self._newest.get(region)
            if known is None or known.epoch != restored.epoch:
                self._newest[region] = restored
                if known is not None:
                    self._before[region] = known
        common = [region for region in self._newest if region in mine]
        return bool(common) and all(
            _reached(mine[region], self._before.get(region, self._newest[region])) for region in common
        )


def _reached(mine: Restored, its: Restored) -> bool:
    offsets = offsets_of(mine)
    behind = any(offsets.get(key, 0) < offset for key, offset in offsets_of(its).items())
    return not behind and bool(mine.position["entries"] >= its.position["entries"])


def offsets_of(restored: Restored) -> dict[tuple[str, int], int]:
    """Return how far each partition was read."""
    return {(part["source"], part["partition"]): part["offset"] for part in restored.position["partitions"]}


def time_of(standing: Mapping[str, Restored]) -> int:
    """Return the greatest event time that was read."""
    parts: list[dict[str, Any]] = [part for restored in standing.values() for part in restored.position["partitions"]]
    return max((part["time_max"] for part in parts), default=MIN_TIME)


def bytes_before(segments: Sequence[tuple[int, int]], end: int, offset: int) -> int:
    """Return how many bytes of *segments* (first offset, bytes) lie before *offset*; *end*: of the last one."""
    place = bisect_right(segments, offset, key=lambda segment: segment[0]) - 1
    if place < 0:
        return 0
    base, size = segments[place]
    behind = segments[place + 1][0] if place + 1 < len(segments) else max(end, base + 1)
    inside = size * min(offset - base, behind - base) // max(1, behind - base)
    return sum(size for _, size in segments[:place]) + inside


@dataclass(frozen=True, slots=True)
class Sample:
    """How far both were at one time."""

    seconds: float
    done: int
    """Bytes, or offsets where a source has no bytes."""

    goal: int
    records: int
    time: int = MIN_TIME
    """Event time, ms."""

    time_goal: int = MIN_TIME


class Course:
    """Samples of the last seconds, and what they say."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Note a sample."""
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].seconds <= sample.seconds - RATE_SECONDS:
            self._samples.popleft()

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self._samples[-1]

    @property
    def records_rate(self) -> float | None:
        """Records a second; None: not known yet."""
        return self._rate(_records)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the goal is reached; None: not known yet; inf: never, at this rate."""
        left = self.last.goal - self.last.done
        if left <= 0:
            return 0.0
        approach = self._rate(_approach)
        if approach is None:
            return None
        return left / approach if approach > 0 else inf

    def _rate(self, what: Any) -> float | None:
        first, last = self._samples[0], self._samples[-1]
        elapsed = last.seconds - first.seconds
        return None if elapsed < RATE_SECONDS_MIN else (what(last) - what(first)) / elapsed

    def text(self) -> str:
        """Return all of it as one line."""
        last, rate = self.last, self.records_rate
        share = f"{min(1.0, last.done / last.goal):.1%}" if last.goal else "100.0%"
        parts = [f"{share} of {last.goal:,} bytes"]
        if last.time_goal != MIN_TIME:
            parts.append(f"event time {iso_time(last.time)} of {iso_time(last.time_goal)}")
        parts.append("rate not known yet" if rate is None else f"{rate:,.0f} records/s")
        return ", ".join([*parts, left_text(self.seconds_left)])


def left_text(seconds: float | None) -> str:
    """Return the time left, in words."""
    if seconds is None:
        return "time left not known yet"
    if seconds == inf:
        return "never at this rate: what is followed moves faster"
    return f"{duration_text(round(seconds * 1_000))} left" if seconds else "nothing left"


def _records(sample: Sample) -> int:
    """Return what a rate of records is of."""
    return sample.records


def _approach(sample: Sample) -> int:
    """Return what a rate of approach is of."""
    return sample.done - sample.goal
