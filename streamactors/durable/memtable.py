"""Memtables: what epochs changed, from the first write to the rows of a commit. See state.py for why they are sound."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress, islice
from typing import Any
from zlib import crc32

from streamactors.core.keys import CanonicalKey
from streamactors.core.limits import KEY_GROUPS

from .rows import GROUP_BYTES, Namespace, encode_keys, encode_rows, namespace_bytes, row_key
from .writing import Delta


class MemTable:
    """What one epoch changed in one namespace."""

    __slots__ = ("dropped", "entries")

    def __init__(self, *, dropped: bool = False) -> None:
        self.entries: dict[CanonicalKey, Any] = {}
        self.dropped = dropped  # all that was there before these entries is gone


class FrozenEpoch:
    """A frozen epoch: its memtables, and as far as it is encoded its rows."""

    def __init__(self, epoch: int, tables: dict[Namespace, MemTable], groups: range, database: str) -> None:
        self.epoch = epoch
        self.tables = tables
        self.delta = Delta(database)
        self.gone: list[tuple[Namespace, CanonicalKey]] = []
        self.encoded = not tables
        self._groups = groups
        self._owned = frozenset(groups)
        self._tables_left = iter(tables.items())
        self._entries: Iterator[tuple[CanonicalKey, Any]] = iter(())
        self._namespace: Namespace = None
        self._tail = b""

    def encode(self, entries: int) -> bool:
        """Encode up to *entries* entries; return whether none is left."""
        while entries > 0 and not self.encoded:
            rows = list(islice(self._entries, entries))
            if rows:
                self._encode(rows)
                entries -= len(rows)
            else:
                self._next_table()
        return self.encoded

    def _next_table(self) -> None:
        following = next(self._tables_left, None)
        if following is None:
            self.encoded = True
            return
        self._namespace, table = following
        self._tail = namespace_bytes(self._namespace)
        self._entries = iter(table.entries.items())
        if table.dropped:
            self.delta.prefixes += [GROUP_BYTES[group] + self._tail for group in self._groups]

    def _encode(self, rows: list[tuple[CanonicalKey, Any]]) -> None:
        keys = encode_keys([key for key, _ in rows])
        groups = [crc32(key) % KEY_GROUPS for key in keys]
        assert set(groups) <= self._owned, "a key of another part was written here"
        tail = self._tail
        values = [value for _, value in rows]
        heads = [GROUP_BYTES[group] + tail for group in groups]
        if None in values:
            gone = [value is None for value in values]
            self.gone += [(self._namespace, key) for key, _ in compress(rows, gone)]
            self.delta.deletes += map(row_key, compress(heads, gone), compress(keys, gone))
            kept = [value is not None for value in values]
            heads, keys, values = (list(compress(column, kept)) for column in (heads, keys, values))
        self.delta.puts += encode_rows(heads, keys, values)
