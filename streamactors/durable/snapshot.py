"""One consistent view of a store: a short LMDB read transaction whose rows are copied out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile
from types import TracebackType
from typing import Any, Self

import lmdb

from streamactors.core.errors import Damaged

Handles = Mapping[str, Any]
"""Database → its handle in LMDB. Never changed in place: a snapshot keeps those with which it began."""

Row = tuple[bytes, bytes]


BROKEN = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.CursorFullError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)
"""What LMDB says of pages that are not as it wrote them."""


def damaged(where: str, error: lmdb.Error) -> Damaged:
    """Return what we say then."""
    return Damaged(
        f"{where}: LMDB can't read its pages ({error}). The disk returned other bytes than were written. Restore the "
        "folder from a copy, or remove it and start again from the log."
    )


class Snapshot:
    """Read rows as of one commit. A database that did not exist then reads as empty. Damage has a name."""

    __slots__ = ("_ended", "_handles", "_transaction", "_where")

    def __init__(
        self, transaction: lmdb.Transaction[bytes], handles: Handles, where: str, ended: Callable[[], None] | None
    ) -> None:
        self._transaction = transaction
        self._handles = handles
        self._where = where
        self._ended = ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the transaction; harmless when repeated."""
        self._transaction.abort()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def place(self, database: str) -> str:
        """Return what a message calls *database*: its name, and the file that it is in."""
        return f"{database} in {self._where}"

    def databases(self) -> list[str]:
        """Return the sorted names of all databases."""
        return sorted(self._handles)

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return one row's value, or None."""
        handle = self._handles.get(database)
        with self._named():
            return None if handle is None else self._transaction.get(key, db=handle)

    def get_many(self, database: str, keys: Sequence[bytes]) -> list[Row]:
        """Return those of the rows *keys* that exist. Sorted keys are faster: neighbours share pages."""
        handle = self._handles.get(database)
        if handle is None:
            return []
        with self._named():
            return self._transaction.cursor(handle).getmulti(keys)

    def scan(
        self, database: str, prefix: bytes = b"", *, after: bytes | None = None, limit: int | None = None
    ) -> list[Row]:
        """Return the rows whose keys begin with *prefix*, in order: those behind the key *after*, at most *limit*."""
        handle = self._handles.get(database)
        if handle is None:
            return []
        with self._named():
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
        with self._named():
            return 0 if handle is None else int(self._transaction.stat(handle)["entries"])

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise damaged(self._where, error) from error
