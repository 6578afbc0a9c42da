"""Rows of an epoch, in the stage: each becomes cells of known columns, or is refused before a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from streamactors.core.batch import Batch, Kind
from streamactors.core.connectors import Payload
from streamactors.core.errors import PipelineError
from streamactors.core.fields import bad_row, fields_of
from streamactors.core.limits import PENDING_CHUNK_BYTES

from .cells import cell, folded, key_cells, quoted, require_distinct

if TYPE_CHECKING:
    from . import SqliteTable

WINDOW_START, WINDOW_END = "window_start", "window_end"

_Row = tuple[tuple[str, ...], bytes]
"""Columns, and a MessagePack array of cells."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Found(msgspec.Struct, frozen=True):
    """A table that is there."""

    columns: tuple[str, ...]
    required: frozenset[str]
    """Columns that every insert has to give."""

    unique: frozenset[frozenset[str]]
    """Sets of columns of which no two rows have the same values."""


class Group(msgspec.Struct, array_like=True):
    """Neighbouring rows with the same columns."""

    columns: list[str]
    rows: list[Any]


class Rows(msgspec.Struct, array_like=True):
    """A payload."""

    columns: list[str]  # of the table, if it has to be made; those of a row's identity first
    identity: int  # how many of them identify a row; 0: rows are appended
    groups: list[Group]
    deletes: list[Any]


decode_rows = msgspec.msgpack.Decoder(Rows).decode


def misfit(found: Found, columns: Sequence[str], identity: Sequence[str]) -> str | None:
    """Return why rows with these columns can't go into the table *found*, or None."""
    there = set(map(folded, found.columns))
    if missing := [name for name in columns if folded(name) not in there]:
        return f"it has no column {', '.join(missing)}; its columns are {', '.join(found.columns)}"
    given = set(map(folded, columns))
    if needed := [name for name in sorted(found.required) if folded(name) not in given]:
        return f"its column {', '.join(needed)} is NOT NULL, has no default, and is not among what is written"
    if identity and frozenset(map(folded, identity)) not in found.unique:
        return f"upserts need a primary key or unique index of exactly ({', '.join(identity)})"
    return None


class _Layout:
    """The columns of a table, decided at the first row of a writer."""

    def __init__(self, sink: SqliteTable, first: Sequence[str], *, windowed: bool) -> None:
        found, declared = sink.found, sink.declared
        keys = list(sink.key_columns) if sink.upserts else []
        self.windowed = windowed
        self.identity = [*keys, WINDOW_START] if windowed and keys else keys
        self.leading = list(self.identity)
        if windowed and keys and (found is None or WINDOW_END in map(folded, found.columns)):
            self.leading.append(WINDOW_END)  # a table that others made may leave it out
        self._place = {folded(name): index for index, name in enumerate(self.leading)}
        if declared is None:
            declared = tuple(first) if found is None else found.columns
        self.columns = [*self.leading, *(name for name in declared if folded(name) not in self._place)]
        require_distinct(self.columns)
        for name in self.columns:
            quoted(name)
        if found is not None:
            # Of columns that nobody declared, a row need not give all: only those of the identity must be there.
            required, written = (found, self.columns) if sink.declared is not None else (optional(found), self.leading)
            if (why := misfit(required, written, self.identity)) is not None:
                raise PipelineError(f"{sink} does not fit: {why}. Change the table, or write to another one.")
        self._allowed = frozenset(map(folded, self.columns))
        self._plans: dict[tuple[str, ...], tuple[tuple[str, ...], list[tuple[str, int]]]] = {}

    def row(self, leading: list[Any], fields: dict[str, Any]) -> _Row:
        """Return a row's columns and its encoded cells."""
        names = tuple(fields)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._plan(names)
        columns, keys = plan
        for name, index in keys:
            if cell(fields[name]) != leading[index]:
                raise ValueError(f"its field {name!r} is {fields[name]!r}, but its key's column {name!r} holds another")
        values = [cell(fields[name]) for name in columns[len(self.leading) :]]
        return columns, _encode([*leading, *values])

    def _plan(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
        """Return the columns of a value with fields *names*, and those fields that stand in the key already."""
        if any(not isinstance(name, str) for name in names):
            raise TypeError("its fields have names that are no text")
        if strange := [name for name in names if folded(name) not in self._allowed]:
            raise ValueError(
                f"its field {strange[0]!r} is none of the table's columns {', '.join(self.columns)}. Name all columns "
                "with columns=[...], or map the value to those"
            )
        keys = [(name, self._place[folded(name)]) for name in names if folded(name) in self._place]
        columns = (*self.leading, *(name for name in names if folded(name) not in self._place))
        require_distinct(columns)
        return columns, keys


def optional(found: Found) -> Found:
    """Return *found* as a table that asks for no column."""
    return Found(found.columns, frozenset(), found.unique)


class TableWriter:
    """Rows of an epoch. Of upserts only the last of each identity: nobody could see the others."""

    def __init__(self, sink: SqliteTable) -> None:
        self._sink = sink
        self._layout: _Layout | None = None
        self._appended: list[_Row] = []  # (columns, encoded cells)
        self._newest: dict[bytes, _Row | None] = {}  # encoded identity -> row; None: deleted
        self._bytes = 0

    def write(self, batch: Batch) -> int:
        """Take all rows of the batch, or none and say which one can't be taken."""
        if self._sink.upserts and batch.keys is None:
            raise PipelineError(f"{self._sink} keeps a row for each key, but the stream has none. Call key_by first.")
        rows = []
        for number in range(len(batch)):
            try:
                rows.append(self._row(batch, number))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise bad_row(str(self._sink), batch, number, f"{error}.") from error
        for identity, row in rows:
            self._bytes += len(identity) + (0 if row is None else len(row[1]))
            if identity:
                self._newest[identity] = row
            elif row is not None:
                self._appended.append(row)
        return self._bytes

    def take(self) -> list[Payload]:
        """Return payloads of about PENDING_CHUNK_BYTES."""
        layout = self._layout
        if layout is None:
            return []
        rows: list[tuple[bytes, _Row | None]]
        rows = list(self._newest.items()) if self._sink.upserts else [(b"", row) for row in self._appended]
        self._newest, self._appended, self._bytes = {}, [], 0
        return [Payload(0, self._payload(layout, chunk)) for chunk in _chunks(rows)]

    def _row(self, batch: Batch, number: int) -> tuple[bytes, _Row | None]:
        """Return the encoded identity of a row, and its columns with its encoded cells; None when it is deleted."""
        sink, layout = self._sink, self._layout
        windows = batch.windows if sink.upserts else None
        deleted = batch.kinds is not None and batch.kinds[number] == Kind.DELETE
        fields = {} if deleted else fields_of(batch.values[number])
        if layout is None:
            if deleted and sink.declared is None and sink.found is None:
                return b"", None  # nothing was ever written that could be deleted
            layout = _Layout(sink, [name for name in fields if isinstance(name, str)], windowed=windows is not None)
        leading: list[Any] = []
        if sink.upserts:
            assert batch.keys is not None, "write() has looked"
            leading = key_cells(batch.keys[number], len(sink.key_columns))
            assert layout.windowed == (windows is not None), f"{sink}: a stream has windows, or it has none"
        if windows is not None:
            leading = [*leading, *windows[number]][: len(layout.leading)]
        identity = _encode(leading[: len(layout.identity)]) if leading else b""
        row = None if deleted else layout.row(leading, fields)
        self._layout = layout  # now that a row fits
        return identity, row

    def _payload(self, layout: _Layout, rows: Sequence[tuple[bytes, _Row | None]]) -> bytes:
        kept = [row for _, row in rows if row is not None]
        groups = [
            Group(list(columns), [msgspec.Raw(cells) for _, cells in group])
            for columns, group in groupby(kept, key=lambda row: row[0])
        ]
        deletes = [msgspec.Raw(identity) for identity, row in rows if row is None]
        return _encode(Rows(layout.columns, len(layout.identity), groups, deletes))


def _chunks(rows: Sequence[tuple[bytes, _Row | None]]) -> Iterator[Sequence[tuple[bytes, _Row | None]]]:
    first = size = 0
    for number, (identity, row) in enumerate(rows):
        more = len(identity) + (0 if row is None else len(row[1]))
        if size + more > PENDING_CHUNK_BYTES and number > first:
            yield rows[first:number]
            first, size = number, 0
        size += more
    if first < len(rows):
        yield rows[first:]
