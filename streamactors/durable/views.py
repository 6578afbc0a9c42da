"""Views: tables that a pipeline keeps up to date and anyone reads.

A view is a database ``view:<name>`` in the job's store, so what readers see changes with the checkpoint, at once, for
all keys and all views of a region (E1). Keys are given, and come back, as the user wrote them; a list key comes back as
a tuple. Their order is that of the encoded key: non-negative ints by number, texts by length and then by content,
tuples by their items from the left.

A long scan goes in chunks with a read transaction each, because a long one keeps LMDB from reusing pages. So a later
chunk may be of a later epoch than an earlier one; a row that exists throughout is seen exactly once. Who needs one
epoch throughout reads in ``snapshot()``, and is quick.

``len`` counts rows and ``in`` asks for one; both look at the newest epoch, as ``get`` does.

**Shown at once.** At-least-once and at-most-once show a change in this process before it is durable. An *overlay* lies
over the store: the changes since the last barrier, and below them those that are frozen and not yet committed.

    get, in      the first layer that knows the key answers; a deleted row is known to be absent; else the store
    scan         the overlay as it was when the scan began, joined to the store's rows in the order of the keys
    len          the store's count, corrected by looking up the keys of the overlay: costs what is not durable yet
    snapshot     one instant of this process: all views as ``get`` would have shown them then. Not one epoch, and two
                 views of a region may be a batch apart. Take it in the loop that runs the job

A value comes back as the store would give it (a tuple as a list, a struct as a dict), be it durable or not. Layers are
looked at before the store and leave the overlay after their commit, so a change is seen in one of them or in both.

If we crash: the overlay is gone, rows are those of the last checkpoint. A region that starts again drops it as well, so
a row may go back once, as after a crash of the process, and all rows do it together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import compress, islice, repeat
from typing import Any, Protocol

from streamactors.core.codec import decode_value, encode_value
from streamactors.core.errors import BadRecord, UsageError
from streamactors.core.keys import CanonicalKey, canonical_key, decode_key, encode_key, plain_key
from streamactors.core.limits import DIRTY_ENTRIES_MAX

from .rows import LONG, Row, encode_keys, encode_rows, read_row, read_rows, row_key
from .snapshot import Snapshot
from .writing import Delta

_DATABASE = "view:"
_CHUNK_ROWS = 1_024
_ARRAY_ITEMS_MAX = 15  # of a MessagePack array whose header is one byte
_LONG_ARRAY = b"\xdc"  # header of one with more
_GONE: Any = object()
_UNKNOWN: Any = object()

Layers = tuple[Mapping[CanonicalKey, Any], ...]
"""What is not durable yet, newest first: key → value, or _GONE."""

_Change = tuple[bytes, bytes, Any]
"""A change of an overlay: (the row's key, the encoded key, the value or _GONE)"""


def view_database(name: str) -> str:
    """Return the database that holds the view *name*."""
    return _DATABASE + name


def view_of(database: str) -> str | None:
    """Return the name of the view that is kept in *database*, or None when it holds something else."""
    return database.removeprefix(_DATABASE) if database.startswith(_DATABASE) else None


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
            raise _bad(self.name, rows, error) from error
        return len(rows) < entries

    def _encode(self, rows: list[tuple[CanonicalKey, Any]]) -> None:
        keys = encode_keys([key for key, _ in rows])
        gone = [value is _GONE for _, value in rows]
        if any(gone):
            self._delta.deletes += [row_key(b"", key) for key in compress(keys, gone)]
            kept = [value is not _GONE for _, value in rows]
            keys, rows = list(compress(keys, kept)), list(compress(rows, kept))
        self._delta.puts += encode_rows(repeat(b""), keys, [value for _, value in rows])

    def hand_over(self) -> list[Delta]:
        delta, self._delta = self._delta, Delta(view_database(self.name))
        return [delta] if delta.entries() else []

    def committed(self, epoch: int) -> None:
        """Nothing is kept for it: readers look into the store."""


class Overlay:
    """What this process shows of one view beyond the store. Lives as long as the job; each attempt begins it anew."""

    def __init__(self) -> None:
        self.layers: Layers = ()
        """Replaced as a whole, never changed in place: a reader in another thread has the old ones or the new."""


class ShownViewBuffer(ViewBuffer):
    """A ViewBuffer whose changes are visible at once, in *overlay*, until the store has them."""

    def __init__(self, name: str, overlay: Overlay) -> None:
        super().__init__(name)
        self._overlay = overlay
        self._uncommitted: list[dict[CanonicalKey, Any]] = []  # newest first
        self._show()

    def freeze(self, epoch: int) -> None:
        frozen = self._newest
        super().freeze(epoch)
        self._uncommitted.insert(0, frozen)
        self._show()

    def committed(self, epoch: int) -> None:
        """The oldest frozen changes are durable: from here on the store shows them."""
        self._uncommitted.pop()
        self._show()

    def _show(self) -> None:
        self._overlay.layers = (self._newest, *self._uncommitted)


class View:
    """Read one view. See the module's header for keys, order, and what a scan sees."""

    def __init__(
        self, name: str, snapshot: Callable[[], AbstractContextManager[Snapshot]], layers: Callable[[], Layers] = tuple
    ) -> None:
        self.name = name
        self._database = view_database(name)
        self._snapshot = snapshot
        self._layers = layers

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        known = canonical_key(key)
        for layer in self._layers():
            value = layer.get(known, _UNKNOWN)
            if value is not _UNKNOWN:
                return default if value is _GONE else self._as_stored(known, value)
        stored_key = row_key(b"", encode_key(known))
        with self._snapshot() as snapshot:
            stored = snapshot.get(self._database, stored_key)
        return default if stored is None else read_row(snapshot.place(self._database), 0, stored_key, stored)[1]

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _GONE)
        if value is _GONE:
            raise KeyError(key)
        return value

    def __contains__(self, key: Any) -> bool:
        return self.get(key, _GONE) is not _GONE

    def __len__(self) -> int:
        changes = self._changes()
        with self._snapshot() as snapshot:
            replaced = snapshot.get_many(self._database, [key for key, _, _ in changes]) if changes else []
            count = snapshot.count(self._database)
        return count - len(replaced) + sum(value is not _GONE for _, _, value in changes)

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
        changes = self._changes()
        if not prefix:
            yield from self._scan(b"", changes)
            return
        items = _joined(prefix)
        for length in range(len(prefix), _ARRAY_ITEMS_MAX + 1):
            yield from self._scan(bytes([0x90 + length]) + items, changes)
        for other in (_LONG_ARRAY, LONG):  # keys of more items, and keys that are stored by their digest
            for key, value in self._scan(other, changes):
                if isinstance(key, tuple) and _joined(key[: len(prefix)]) == items:
                    yield key, value

    def _scan(self, prefix: bytes, changes: list[_Change]) -> Iterator[tuple[Any, Any]]:
        begin = bisect_left(changes, (prefix,))
        after: bytes | None = None
        while True:
            with self._snapshot() as snapshot:
                rows = snapshot.scan(self._database, prefix, after=after, limit=_CHUNK_ROWS)
            full = len(rows) == _CHUNK_ROWS
            if begin < len(changes):
                end = begin
                while end < len(changes) and changes[end][0].startswith(prefix):
                    if full and changes[end][0] > rows[-1][0]:
                        break
                    end += 1
                shown, begin = self._joined(rows, changes[begin:end]), end
            else:
                shown = rows
            for encoded, value in read_rows(snapshot.place(self._database), 0, shown):
                yield plain_key(decode_key(encoded)), value
            if not full:
                return
            after = rows[-1][0]

    def _changes(self) -> list[_Change]:
        """Return what the overlay holds now, in the order of the rows' keys."""
        newest: dict[CanonicalKey, Any] = {}
        for layer in reversed(self._layers()):
            newest.update(dict(layer))  # a copy, which takes no turn of the interpreter: the job may go on meanwhile
        encoded = encode_keys(list(newest))
        return sorted(
            ((row_key(b"", key), key, value) for key, value in zip(encoded, newest.values(), strict=True)), key=_row_key
        )

    def _joined(self, rows: list[Row], changes: list[_Change]) -> list[Row]:
        """Return stored *rows* as *changes* replace, add to and delete them, in order."""
        if not changes:
            return rows
        shown = dict(rows)
        for key, encoded, value in changes:
            shown.pop(key, None)
            if value is not _GONE:
                shown[key] = self._encoded(encoded, value)
        return sorted(shown.items())

    def _encoded(self, key: bytes, value: Any) -> bytes:
        try:
            return encode_rows([b""], [key], [value])[0][1]
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad(self.name, [(decode_key(key), value)], error) from error

    def _as_stored(self, key: CanonicalKey, value: Any) -> Any:
        """Return *value* as it will come back from the store."""
        try:
            return decode_value(encode_value(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad(self.name, [(key, value)], error) from error


class Snapshots(Protocol):
    """What begins snapshots: a store, or what finds the store that is served."""

    def snapshot(self) -> Snapshot:
        """Return one consistent view of all databases."""


class ViewReader:
    """All views of a store. ``reader["quiz_counts"]`` is one; a view that was never written reads as empty."""

    def __init__(self, store: Snapshots, overlays: Mapping[str, Overlay] | None = None) -> None:
        self._store = store
        self._overlays = overlays or {}

    def __getitem__(self, name: str) -> View:
        overlay = self._overlays.get(name)
        return View(name, self._store.snapshot, tuple if overlay is None else lambda: overlay.layers)

    def view(self, name: str) -> View:
        """Return the view *name*."""
        return self[name]

    def names(self) -> list[str]:
        """Return the sorted names of the views that were written at least once."""
        shown = {name for name, overlay in self._overlays.items() if any(overlay.layers)}
        with self._store.snapshot() as snapshot:
            stored = {name.removeprefix(_DATABASE) for name in snapshot.databases() if name.startswith(_DATABASE)}
        return sorted(shown | stored)

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[str], View]]:
        """
        Read several views, or one more than once, as of one epoch; where changes are shown at once, of one instant::

            with job.views.snapshot() as view:
                view("quiz_counts").get(["algebra", 0]), view("quiz_totals").get("algebra")

        Be quick: as long as it is open LMDB reuses no page, and the file grows with each commit.
        """
        # Only the newest layer still changes. The store comes second: what it has by then is in a layer as well.
        layers: dict[str, Layers] = {
            name: tuple(dict(layer) if place == 0 else layer for place, layer in enumerate(overlay.layers))
            for name, overlay in self._overlays.items()
        }
        with self._store.snapshot() as snapshot:
            yield lambda name: View(name, lambda: nullcontext(snapshot), lambda: layers.get(name, ()))


def _joined(items: list[Any] | tuple[Any, ...]) -> bytes:
    """Return what stands behind the header of a key that consists of these items."""
    return b"".join([encode_key(canonical_key(item)) for item in items])


def _row_key(change: _Change) -> bytes:
    return change[0]


def _bad(view: str, rows: list[tuple[CanonicalKey, Any]], error: Exception) -> BadRecord:
    """Return the error that names the row which can't be encoded."""
    for key, value in rows:
        try:
            encode_rows([b""], encode_keys([key]), [None if value is _GONE else value])
        except (TypeError, ValueError, OverflowError):
            break
    row, reason = (plain_key(key), value), f"it can't be stored ({error}). Map it to plain values first"
    return BadRecord(f"view {view}", None, row, reason)
