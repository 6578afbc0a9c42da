"""A histogram: how often something took how much, in buckets. It costs less than a microsecond to observe."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Self

import msgspec


class Histogram(msgspec.Struct):
    """Counts by bucket. One thread observes; another may copy it meanwhile, and then misses no more than one."""

    bounds: tuple[float, ...]
    """The greatest value of each bucket but the last, ascending."""

    counts: list[int]
    """One more than there are bounds: the last bucket holds what is greater than all of them."""

    sum: float = 0.0

    @classmethod
    def of(cls, *bounds: float) -> Self:
        """Return an empty one."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Self:
        """Return one that stays as it is."""
        return type(self)(self.bounds, list(self.counts), self.sum)

    def add(self, other: Histogram) -> None:
        """Count what *other* has counted, in the same buckets."""
        assert self.bounds == other.bounds, "histograms with other buckets don't add up"
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self.counts)

    def up_to(self) -> list[int]:
        """Return, for each bound and for no bound, how many values are not greater."""
        return list(accumulate(self.counts))


DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a sync of a fast disk to a target that hangs, three buckets a decade. More would be more series."""

SIZES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
"""Bytes of a checkpoint, by decades: what matters is whether it is kilobytes or gigabytes."""
