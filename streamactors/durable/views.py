"""Views: tables that a pipeline keeps up to date and anyone reads.

A view is a database ``view:<name>`` in the job's store, so what readers see changes with the checkpoint, at once, for
all keys and all views of a region (E1). Keys are given, and come back, as the user wrote them; a list key comes back as
a tuple. Their order is that of the encoded key: non-negative ints by number, texts by length and then by content,
tuples by their items from the left.

A long scan goes in chunks with a read transaction each, because a long one keeps LMDB from reusing pages. So a later
chunk may be of a later epoch than an earlier one; a row that exists throughout is seen exactly once. Who needs one
epoch throughout reads in ``snapshot()``, and is quick.

``len`` counts rows and ``in`` asks for one; both look at the newest epoch, as ``get`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import compress, islice, repeat
from typing import Any

from streamactors.core.errors import BadRecord, UsageError
from streamactors.core.keys import CanonicalKey, canonical_key, decode_key, encode_key, plain_key
from streamactors.core.limits import DIRTY_ENTRIES_MAX

from .rows import LONG, encode_keys, encode_rows, read_row, read_rows, row_key
from .snapshot import Snapshot
from .store import Store
from .writing import Delta

_DATABASE = "view:"
_CHUNK_ROWS = 1_024
_ARRAY_ITEMS_MAX = 15  # of a MessagePack array whose header is one byte
_LONG_ARRAY = b"\xdc"  # header of one with more
_GONE: Any = object()


def view_database(name: str) -> str:
    """Return the database that holds the view *name*."""
    return _DATABASE + name


class ViewBuffer:
    """What a region changed in a view since the last barrier. A Durable (durable/state.py)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._newest: dict[CanonicalKey, Any] = {}
        self._frozen: Iterator[tuple[CanonicalKey, Any]] = iter(())
        self._delta = Delta(view_database(name))

    def upsert(self, keys: Iterable[CanonicalKey], values: Iterable[Any]) -> None:
        """Replace the values of rows. Values are not changed in place afterwards."""
        self._newest.update(zip(keys, values, strict=True))

    def delete(self, keys: Iterable[CanonicalKey]) -> None:
        """Delete rows; harmless where there is none."""
        self._newest.update(dict.fromkeys(keys, _GONE))

    @property
    def entries_dirty(self) -> int:
        """Rows that changed since the last barrier."""
        return len(self._newest)

    @property
    def full(self) -> bool:
        return len(self._newest) >= DIRTY_ENTRIES_MAX

    def freeze(self, epoch: int) -> None:
        assert not self._delta.entries(), f"view {self.name}: epoch {epoch} froze before the last was handed over"
        self._frozen, self._newest = iter(self._newest.items()), {}

    def encode(self, entries: int) -> bool:
        rows = list(islice(self._frozen, entries))
        try:
            self._encode(rows)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._bad(rows, error) from error
        return len(rows) < entries

    def _encode(self, rows: list[tuple[CanonicalKey, Any]]) -> None:
        keys = encode_keys([key for key, _ in rows])
        gone = [value is _GONE for _, value in rows]
        if any(gone):
            self._delta.deletes += [row_key(b"", key) for key in compress(keys, gone)]
            kept = [value is not _GONE for _, value in rows]
            keys, rows = list(compress(keys, kept)), list(compress(rows, kept))
        self._delta.puts += encode_rows(repeat(b""), keys, [value for _, value in rows])

    def _bad(self, rows: list[tuple[CanonicalKey, Any]], error: Exception) -> BadRecord:
        """Return the error that names the row which can't be encoded."""
        for key, value in rows:
            try:
                encode_rows([b""], encode_keys([key]), [None if value is _GONE else value])
            except (TypeError, ValueError, OverflowError):
                break
        row, reason = (plain_key(key), value), f"it can't be stored ({error}). Map it to plain values first"
        return BadRecord(f"view {self.name}", None, row, reason)

    def hand_over(self) -> list[Delta]:
        delta, self._delta = self._delta, Delta(view_database(self.name))
        return [delta] if delta.entries() else []

    def committed(self, epoch: int) -> None:
        """Nothing is kept for it: readers look into the store."""


class View:
    """Read one view. See the module's header for keys, order, and what a scan sees."""

    def __init__(self, name: str, snapshot: Callable[[], AbstractContextManager[Snapshot]]) -> None:
        self.name = name
        self._database = view_database(name)
        self._snapshot = snapshot

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        stored_key = row_key(b"", encode_key(canonical_key(key)))
        with self._snapshot() as snapshot:
            stored = snapshot.get(self._database, stored_key)
        return default if stored is None else read_row(self._database, 0, stored_key, stored)[1]

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _GONE)
        if value is _GONE:
            raise KeyError(key)
        return value

    def __contains__(self, key: Any) -> bool:
        return self.get(key, _GONE) is not _GONE

    def __len__(self) -> int:
        with self._snapshot() as snapshot:
            return snapshot.count(self._database)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self.items())

    def __repr__(self) -> str:
        return f"View({self.name!r}, {len(self)} rows)"

    def items(self, prefix: list[Any] | tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
        """
        Return (key, value) of all rows in the order of their keys.

        With *prefix*, of those whose key is a list or tuple that begins with these items: for keys such as
        ``[quiz_id, window_start]``, ``items(["algebra"])`` reads the windows of that quiz and nothing else.
        """
        if not isinstance(prefix, list | tuple):
            raise UsageError(f"{prefix!r} is not a list or tuple of the first items of a key, such as ['algebra'].")
        if not prefix:
            yield from self._scan(b"")
            return
        items = _joined(prefix)
        for length in range(len(prefix), _ARRAY_ITEMS_MAX + 1):
            yield from self._scan(bytes([0x90 + length]) + items)
        for other in (_LONG_ARRAY, LONG):  # keys of more items, and keys that are stored by their digest
            for key, value in self._scan(other):
                if isinstance(key, tuple) and _joined(key[: len(prefix)]) == items:
                    yield key, value

    def _scan(self, prefix: bytes) -> Iterator[tuple[Any, Any]]:
        after: bytes | None = None
        while True:
            with self._snapshot() as snapshot:
                rows = snapshot.scan(self._database, prefix, after=after, limit=_CHUNK_ROWS)
            for encoded, value in read_rows(self._database, 0, rows):
                yield plain_key(decode_key(encoded)), value
            if len(rows) < _CHUNK_ROWS:
                return
            after = rows[-1][0]


class ViewReader:
    """All views of a store. ``reader["quiz_counts"]`` is one; a view that was never written reads as empty."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> View:
        return View(name, self._store.snapshot)

    def view(self, name: str) -> View:
        """Return the view *name*."""
        return self[name]

    def names(self) -> list[str]:
        """Return the sorted names of the views that were written at least once."""
        with self._store.snapshot() as snapshot:
            return [name.removeprefix(_DATABASE) for name in snapshot.databases() if name.startswith(_DATABASE)]

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[str], View]]:
        """
        Read several views, or one more than once, as of one epoch::

            with job.views.snapshot() as view:
                view("quiz_counts").get(["algebra", 0]), view("quiz_totals").get("algebra")

        Be quick: as long as it is open LMDB reuses no page, and the file grows with each commit.
        """
        with self._store.snapshot() as snapshot:
            yield lambda name: View(name, lambda: nullcontext(snapshot))


def _joined(items: list[Any] | tuple[Any, ...]) -> bytes:
    """Return what stands behind the header of a key that consists of these items."""
    return b"".join([encode_key(canonical_key(item)) for item in items])
