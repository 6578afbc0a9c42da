"""A chunk: some records of one partition, in order, as a reader returns them.

It keeps the frame's bytes as they are and splits them only when asked, once; a part of a chunk shares them. So a
source that decodes a whole chunk by lines never makes an object for each record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .frames import Records, line_count

Times = tuple[tuple[int, int], ...]
"""(offset behind the last record with it, append time in ms), ascending."""

_SOUGHT_SHARE = 16
"""One value in this many is looked for by itself; to look for more costs more than splitting."""

_GUESSES = 6
"""Guesses at a line's place: with lines of similar lengths the second is right, and those of wild are walked."""

_NEAR = 8
"""Lines that are found one by one: as long as another count takes to start."""


@dataclass(slots=True)
class _Content:
    """What the parts of one chunk share: the records from *first* on, and what was made of them on demand."""

    first: int
    records: Records
    times: Times
    sought: int = 0
    """Single values that were looked for."""

    known: tuple[int, int] = (0, 0)
    """The record that was looked for last, and where it begins."""

    values: list[bytes] | None = field(default=None, repr=False)
    keys: list[bytes | None] | None = field(default=None, repr=False)

    def all_values(self) -> list[bytes]:
        if self.values is None:
            self.values = self.records.column.values()  # type: ignore[assignment]  # no value is None, only keys are
        return self.values  # type: ignore[return-value]

    def value(self, index: int) -> bytes:
        column = self.records.column
        if self.values is not None or column.lengths is not None or self.sought * _SOUGHT_SHARE > column.count:
            return self.all_values()[index]
        self.sought += 1
        before, start = self.known if self.known[0] <= index else (0, 0)
        start = _line_end(column.blob, start, len(column.blob), index - before, column.count - before)
        self.known = index, start
        return column.blob[start : column.blob.index(b"\n", start)]

    def all_keys(self) -> list[bytes | None]:
        if self.keys is None:
            column = self.records.key_column
            self.keys = [None] * self.records.count if column is None else column.values()
        return self.keys


class Chunk:
    """The records *first* to *first + count - 1* of a partition."""

    __slots__ = ("_byte_end", "_byte_start", "_content", "count", "first")

    def __init__(self, content: _Content, first: int, count: int, byte_start: int, byte_end: int) -> None:
        self._content = content
        self._byte_start = byte_start
        self._byte_end = byte_end
        self.first = first
        self.count = count

    @classmethod
    def of(cls, first: int, records: Records, times: Times) -> Chunk:
        """Return a chunk of all *records*."""
        return cls(_Content(first, records, times), first, records.count, 0, len(records.column.blob))

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Chunk({self.first} to {self.end - 1}, {self.size} bytes)"

    @property
    def end(self) -> int:
        """The offset behind the last record."""
        return self.first + self.count

    @property
    def size(self) -> int:
        """Bytes of the values, with a newline behind each."""
        return self._byte_end - self._byte_start

    @property
    def lines(self) -> bool:
        """
        Whether ``blob`` is *count* lines, none of them empty: a line decoder may take it whole.

        What a value holds is its producer's business: one that is blank, or two documents on a line, makes a decoder
        that skips blanks and line ends return another number of values. Compare it with ``count``.
        """
        column = self._content.records.column
        return column.lengths is None and column.nonempty

    @property
    def blob(self) -> bytes:
        """The values, with a newline behind each. Cost: a copy, unless it is the whole chunk."""
        return self._content.records.column.blob[self._byte_start : self._byte_end]

    def values(self) -> list[bytes]:
        """Return the values."""
        start = self.first - self._content.first
        return self._content.all_values()[start : start + self.count]

    def value(self, offset: int) -> bytes:
        """Return the value at *offset*. The first few are looked for, from the one before; then the chunk is split."""
        assert self.first <= offset < self.end, f"offset {offset} is not in {self!r}"
        return self._content.value(offset - self._content.first)

    def keys(self) -> list[bytes | None]:
        """Return the keys, None for a record without one."""
        start = self.first - self._content.first
        return self._content.all_keys()[start : start + self.count]

    @property
    def has_keys(self) -> bool:
        """Whether some record of the frame has a key; if not, ``keys()`` is all None."""
        return self._content.records.key_column is not None

    def append_times(self) -> list[int]:
        """Return each record's append time, ms. They never go back."""
        times: list[int] = []
        for end, time in self._content.times:
            times.extend([time] * (min(end, self.end) - self.first - len(times)))
        return times

    def from_offset(self, offset: int) -> Chunk:
        """Return the records from *offset* on."""
        return self.split(offset - self.first)[1] if offset > self.first else self

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """Return the first *count* records, and the others. Cost: finding one place; nothing is copied."""
        count = max(0, min(count, self.count))
        middle = self._place(count)
        head = Chunk(self._content, self.first, count, self._byte_start, middle)
        return head, Chunk(self._content, self.first + count, self.count - count, middle, self._byte_end)

    def count_within(self, size: int) -> int:
        """Return how many of the first records have at most *size* bytes together; at least 1."""
        if self.size <= size:
            return self.count
        column = self._content.records.column
        if column.lengths is None:
            return max(1, line_count(column.blob[self._byte_start : self._byte_start + size]))
        fitting = total = 0
        start = self.first - self._content.first
        for length in column.lengths[start : start + self.count]:
            total += length + 1
            if total > size:
                break
            fitting += 1
        return max(1, fitting)

    def _place(self, count: int) -> int:
        """Return the byte position behind the first *count* records."""
        column = self._content.records.column
        if count == self.count:
            return self._byte_end
        if column.lengths is not None:
            start = self.first - self._content.first
            return self._byte_start + sum(column.lengths[start : start + count]) + count
        return _line_end(column.blob, self._byte_start, self._byte_end, count, self.count)


def _line_end(blob: bytes, start: int, end: int, count: int, lines: int) -> int:
    """Return the position behind the first *count* of the *lines* lines in ``blob[start:end]``."""
    place, passed = start, 0  # so many lines end in blob[start:place]
    # Counting is several times as fast as finding, so guess by the average length, and walk the rest.
    for _ in range(_GUESSES):
        missing = count - passed
        if -_NEAR <= missing <= _NEAR:
            break
        guess = max(start, min(end, place + (end - start) * missing // lines))
        if guess > place:
            passed += line_count(blob[place:guess])
        else:
            passed -= line_count(blob[guess:place])
        place = guess
    while passed < count:
        place = blob.index(b"\n", place) + 1
        passed += 1
    while passed >= count > 0:
        place = blob.rindex(b"\n", start, place)
        passed -= 1
        if passed < count:
            return place + 1
    return place if count else start
