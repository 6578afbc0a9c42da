"""One consistent view of a store: a short LMDB read transaction whose rows are copied out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, takewhile
from types import TracebackType
from typing import Any, Self

import lmdb

Handles = Mapping[str, Any]
"""Database → its handle in LMDB. Never changed in place: a snapshot keeps those with which it began."""

Row = tuple[bytes, bytes]


class Snapshot:
    """Read rows as of one commit. A database that did not exist then reads as empty."""

    __slots__ = ("_handles", "_transaction")

    def __init__(self, transaction: lmdb.Transaction[bytes], handles: Handles) -> None:
        self._transaction = transaction
        self._handles = handles

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the transaction; harmless when repeated."""
        self._transaction.abort()

    def databases(self) -> list[str]:
        """Return the sorted names of all databases."""
        return sorted(self._handles)

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return one row's value, or None."""
        handle = self._handles.get(database)
        return None if handle is None else self._transaction.get(key, db=handle)

    def get_many(self, database: str, keys: Sequence[bytes]) -> list[Row]:
        """Return those of the rows *keys* that exist. Sorted keys are faster: neighbours share pages."""
        handle = self._handles.get(database)
        if handle is None:
            return []
        return self._transaction.cursor(handle).getmulti(keys)

    def scan(
        self, database: str, prefix: bytes = b"", *, after: bytes | None = None, limit: int | None = None
    ) -> list[Row]:
        """Return the rows whose keys begin with *prefix*, in order: those behind the key *after*, at most *limit*."""
        handle = self._handles.get(database)
        if handle is None:
            return []
        cursor = self._transaction.cursor(handle)
        start = prefix if after is None else after
        if not (cursor.set_range(start) if start else cursor.first()):
            return []
        if after is not None and cursor.key() == after and not cursor.next():
            return []
        rows = cursor.iternext()
        if prefix:
            rows = takewhile(lambda row: row[0].startswith(prefix), rows)
        return list(rows if limit is None else islice(rows, limit))

    def count(self, database: str) -> int:
        """Return how many rows a database has. Cost: none that grows with it."""
        handle = self._handles.get(database)
        return 0 if handle is None else int(self._transaction.stat(handle)["entries"])
