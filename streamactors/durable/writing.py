"""What changed in one database, and how it goes into a write transaction: prefixes, then deletes, then puts.

The interpreter is the bottleneck here, not the disk. py-lmdb gives the interpreter away at *each* put, also inside a
``putmulti``. Beside an event loop that is busy with Python code the put is done in 3 µs, and then the writer waits for
the loop's turn to end, which by default takes 5 ms. Whether it loses that race at hardly any put or at nearly all is
decided by where the kernel placed the two threads: one commit of 10,000 rows took 0.2 s, the next one more than 10 s.
Slices don't matter, larger or smaller.

So while rows are put, and only then, turns are short (``sys.setswitchinterval``): measured 0.5 to 0.8 s in the bad
placement (1.6 s beside a loop of C calls of 0.3 ms each, which nothing interrupts), 0.2 s in the good one; the loop's
longest gap went from 30 ms to 3. The setting is the process's, hence it is put back at once, and counted, because two
jobs may commit at the same time.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lmdb

_PUT_SLICE = 512
"""Rows in one putmulti: a slice of a list is cheap, and an error names a place nearby."""

_TURN_SECONDS = 5e-5
"""How long another thread may keep the interpreter while rows are put. Shorter gains nothing (20 µs measured the same),
longer costs up to this much for each row."""

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


@contextmanager
def short_turns() -> Iterator[None]:
    """Let this thread have the interpreter soon whenever it asks. See the module's header."""
    _turns.begin()
    try:
        yield
    finally:
        _turns.end()


class _Turns:
    """The process's switch interval, shortened while at least one commit needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._users:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(_TURN_SECONDS, self._before))
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                sys.setswitchinterval(self._before)


_turns = _Turns()


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
