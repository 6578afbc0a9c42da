"""What changed in one database, and how it goes into a write transaction: prefixes, then deletes, then puts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lmdb

_PUT_SLICE = 512
"""Rows in one putmulti. See the header of store.py."""

_SORT_MAX = 8_192
"""Rows sorted in one go: about 3 ms during which no other thread runs."""


@dataclass(slots=True)
class Delta:
    """What an epoch changed in one database. Keys and values are as LMDB keeps them."""

    database: str
    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
    deletes: list[bytes] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)
    """All rows whose keys begin so are deleted, before anything else."""

    def bytes(self) -> int:
        """Return the bytes of keys and values that are put, and of the keys that are deleted."""
        return sum([len(key) + len(value) for key, value in self.puts]) + sum(map(len, self.deletes))

    def entries(self) -> int:
        """Return how many rows are put or deleted; what a prefix deletes is not counted."""
        return len(self.puts) + len(self.deletes)


def big(number: int) -> bytes:
    """Return a non-negative number as 8 bytes that order as numbers do."""
    return number.to_bytes(8, "big")


def apply_delta(transaction: lmdb.Transaction[bytes], handle: Any, delta: Delta) -> None:
    """Make the changes of *delta* in its database."""
    cursor = transaction.cursor(handle)
    for prefix in delta.prefixes:
        assert prefix, "an empty prefix would delete the whole database"
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            cursor.delete()
            found = bool(cursor.key())  # the cursor stands on the next row, or on none
    for key in sorted(delta.deletes):
        transaction.delete(key, db=handle)
    for rows in sorted_ranges(delta.puts):
        for start in range(0, len(rows), _PUT_SLICE):
            cursor.putmulti(rows[start : start + _PUT_SLICE])


def sorted_ranges(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Return *rows* in the order of their keys, as lists short enough to be sorted in one go."""
    if len(rows) <= _SORT_MAX:
        yield sorted(rows)
        return
    ranges = len(rows) * 4 // _SORT_MAX
    sample = sorted(rows[:: max(1, len(rows) // (ranges * 8))])
    bounds = sample[8::8]
    spread: list[list[tuple[bytes, bytes]]] = [[] for _ in range(len(bounds) + 1)]
    for row in rows:
        spread[bisect_right(bounds, row)].append(row)
    for part in spread:
        part.sort()
        yield part
