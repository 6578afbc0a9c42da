"""The batch: columns of equal length, the unit that flows.

    values       the records                                               always there
    timestamps   event time of each, ms                                    None before event time is assigned
    keys         canonical keys (core/keys.py)                             None before key_by
    windows      (start, end) of the window that a result belongs to       None outside windowed streams
    kinds        what each row is (Kind)                                   None on append-only streams
    offsets      offset, in its source partition, of the record that each value came from
    origin       which partition that was, and its records' original bytes

The columns of a batch are never changed in place once it was emitted: two branches of a stream see the same lists. An
operator that changes a column makes a new batch that shares the others.

``kinds`` makes a stream an *upsert stream*: a row replaces the earlier row of the same key and window.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import compress
from typing import Any, Protocol

from .keys import CanonicalKey

Window = tuple[int, int]
"""[start, end) in ms."""


class Kind(IntEnum):
    """What a row of an upsert stream says about its key and window."""

    EARLY = 0  # the window is still open; more will follow
    ON_TIME = 1  # the watermark has passed the end of the window
    CORRECTION = 2  # a late record changed a window that had fired
    FINAL = 3  # nothing follows for this key and window
    DELETE = 4  # the row is no longer there
    UPDATE = 5  # a running result; the next record of the key replaces it


class Origin(Protocol):
    """Where the records of a batch were read."""

    @property
    def source(self) -> str:
        """The source's id."""

    @property
    def partition(self) -> int:
        """The source's partition."""

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        """Return the records at *offsets* as they stand in the source: their bytes, or for a list its objects."""


class Batch:
    """Columns of equal length. See the module's header for what each holds."""

    __slots__ = ("_time_bounds", "bytes", "keys", "kinds", "offsets", "origin", "timestamps", "values", "windows")

    def __init__(
        self,
        values: list[Any],
        timestamps: list[int] | None = None,
        keys: list[CanonicalKey] | None = None,
        *,
        offsets: Sequence[int] = (),
        origin: Origin | None = None,
        windows: list[Window] | None = None,
        kinds: list[Kind] | None = None,
        bytes: int = 0,  # noqa: A002 - the column's name; the builtin is not used here
    ) -> None:
        self.values = values
        self.timestamps = timestamps
        self.keys = keys
        self.offsets = offsets
        self.origin = origin
        self.windows = windows
        self.kinds = kinds
        self.bytes = bytes
        self._time_bounds: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        place = f"{self.origin.source}/{self.origin.partition}" if self.origin is not None else "-"
        return f"Batch({len(self.values)} from {place})"

    @property
    def time_bounds(self) -> tuple[int, int]:
        """The least and the greatest timestamp. Cost: two passes in C, once for all who share the column."""
        if self._time_bounds is None:
            assert self.timestamps, f"{self!r} has no timestamps"
            self._time_bounds = min(self.timestamps), max(self.timestamps)
        return self._time_bounds

    def replace(self, **columns: Any) -> Batch:
        """Return a batch with some columns exchanged, sharing the others."""
        new = Batch.__new__(Batch)
        for name in Batch.__slots__:
            setattr(new, name, columns[name] if name in columns else getattr(self, name))
        if "timestamps" in columns:
            new._time_bounds = None  # noqa: SLF001 - a batch of our own
        return new

    def slice(self, start: int, end: int) -> Batch:
        """Return the rows start to end - 1. Cost: a copy of each column."""
        if start == 0 and end == len(self.values):
            return self
        return self._rows(lambda column: column[start:end], (end - start) / max(1, len(self.values)))

    def select(self, mask: Sequence[Any]) -> Batch:
        """Return the rows where *mask* is true, in order. Cost: one C-speed pass for each column."""
        return self._rows(lambda column: list(compress(column, mask)), 1.0)

    def take(self, indices: Sequence[int]) -> Batch:
        """Return the rows at *indices*, in that order."""
        return self._rows(lambda column: [column[i] for i in indices], len(indices) / max(1, len(self.values)))

    def _rows(self, pick: Any, share: float) -> Batch:
        return Batch(
            pick(self.values),
            None if self.timestamps is None else pick(self.timestamps),
            None if self.keys is None else pick(self.keys),
            offsets=pick(self.offsets) if len(self.offsets) else (),
            origin=self.origin,
            windows=None if self.windows is None else pick(self.windows),
            kinds=None if self.kinds is None else pick(self.kinds),
            bytes=int(self.bytes * share),
        )

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Return the rows of all *batches*, which come from one origin, in order."""
        if len(batches) == 1:
            return batches[0]
        columns = {
            name: [item for batch in batches for item in getattr(batch, name)]
            for name in ("values", "timestamps", "keys", "offsets", "windows", "kinds")
            if getattr(batches[0], name) is not None
        }
        return batches[0].replace(**columns, bytes=sum(batch.bytes for batch in batches))

    @classmethod
    def interleave(cls, batches: Sequence[Batch]) -> list[Batch]:
        """
        Return the rows of *batches*, made from one piece by several parts, in the order of their source records.

        Rows that came from no record (a window's firing) have no such order, nor have those that calls answered out of
        order and that come from several partitions: they stay as they are. Rows of one record stay in the order of
        *batches*.
        """
        if len(batches) < 2 or any(not len(b.offsets) or b.origin is not batches[0].origin for b in batches):
            return list(batches)
        joined = cls.join(batches)
        return [joined.take(sorted(range(len(joined)), key=joined.offsets.__getitem__))]

    def originals(self) -> list[Any]:
        """Return each row's source record as it stands in the source."""
        assert self.origin is not None, "a batch without an origin has no originals"
        return self.origin.originals(self.offsets)
