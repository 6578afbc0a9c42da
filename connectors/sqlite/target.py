"""The database, in the thread of its lane: look at a table, make it, commit rows with their stamp."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamactors.core.connectors import Payload, Stamp, World
from streamactors.core.errors import Damaged, PipelineError, SinkConflict, StorageError, StreamActorsError, UsageError

from .cells import folded, quoted
from .exchange import MAKE_STAMPS, STAMPS, shadow_name
from .writer import WINDOW_START, Found, Rows, decode_rows, misfit, optional

if TYPE_CHECKING:
    from . import SqliteTable

_EXTRA = 3  # of PRAGMA synchronous

_READ_STAMP = f"SELECT incarnation, epoch, part, parts FROM {STAMPS} WHERE job = ? AND sink = ?"  # noqa: S608
_SET_STAMP = f"INSERT OR REPLACE INTO {STAMPS} VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - a name of ours


class TableTarget:
    """The database, used in one lane. Methods that begin with an underscore run there."""

    def __init__(self, sink: SqliteTable, world: World) -> None:
        self._sink = sink
        self._ports = world.ports
        self._path = Path(sink.path)
        self._shadow = world.shadow
        self._table = shadow_name(sink.table, world.shadow)
        self._made = False  # that the table is there has been seen
        self._lane = f"sqlite/{self._path}/{self._table}"
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def prepare(self) -> None:
        """Look at the table; make it when its columns are known."""
        await self._run(self._prepare)

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        await self._run(self._disconnect)  # a region starts anew, and so does the connection
        shown: Stamp | None = await self._run(self._last_stamp, job, sink)
        return shown

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        await self._run(self._commit, payload.data, stamp, expect)

    async def write(self, payload: Payload) -> None:
        await self._run(self._commit, payload.data, None, None)

    async def close(self) -> None:
        await self._run(self._disconnect)

    async def _run(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await self._ports.threads.run(self._lane, self._named, work, *arguments)

    def _named(self, work: Callable[..., Any], *arguments: object) -> Any:
        """Do *work*; what SQLite says against it gets a name and a remedy."""
        try:
            return work(*arguments)
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._disconnect()
            raise _explained(self._sink, error) from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file == _identity(self._path):
            return self._connection
        self._disconnect()
        self._ports.disk.make_folder(self._path.parent)
        made = not self._path.exists()
        connection = sqlite3.connect(self._path, timeout=self._sink.busy_seconds, isolation_level=None)
        self._connection = connection
        for pragma in (f"synchronous = {_EXTRA}", "fullfsync = 1", "checkpoint_fullfsync = 1"):
            connection.execute(f"PRAGMA {pragma}")
        if made:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # refuses what is no database
        self._file = _identity(self._path)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _prepare(self) -> None:
        sink = self._sink
        found = look(self._connected(), sink, self._table)
        known, identity = sink.declared, sink.key_columns if sink.upserts else ()
        if found is None and known is not None and not sink.upserts:
            with self._transaction() as connection:
                connection.execute(_make_table(self._table, known, 0))
            found = look(self._connected(), sink, self._table)
        elif found is not None:
            windowed = [WINDOW_START] if sink.upserts and set(map(folded, found.columns)) >= {WINDOW_START} else []
            why = misfit(found if known is not None else optional(found), [*identity, *(known or ())], ())
            if why is None and identity:
                either = [misfit(optional(found), identity, [*identity, *more]) for more in ([], windowed)]
                why = either[0] if None not in either else None
            if why is not None:
                raise PipelineError(f"{sink} does not fit: {why}. Change the table, or write to another one.")
        sink.found = found

    def _last_stamp(self, job: str, sink: str) -> Stamp | None:
        with self._transaction() as connection:
            connection.execute(MAKE_STAMPS)
            shown = self._shown(connection, job, sink)
            if shown is not None:
                connection.execute(
                    _SET_STAMP, self._stamp_row(shown)
                )  # a commit of our own, and so a sync: see the header
        return shown

    def _commit(self, data: bytes, stamp: Stamp | None, expect: Stamp | None) -> None:
        rows = decode_rows(data)
        with self._transaction() as connection:
            if stamp is not None:
                connection.execute(MAKE_STAMPS)
                shown = self._shown(connection, stamp.job, stamp.sink)
                if shown not in {expect, stamp}:
                    raise SinkConflict(
                        f"{self._sink} shows {shown}, but {expect} was left there before {stamp}. Another writer was "
                        "there, or the file was exchanged. Put back the right one, or start the job anew."
                    )
                connection.execute(_SET_STAMP, self._stamp_row(stamp))
                if shown == stamp:
                    return
            if not self._made:
                connection.execute(_make_table(self._table, rows.columns, rows.identity))
            _apply(connection, self._table, rows)
        self._made = True
        if self._sink.found is None:
            self._sink.found = look(self._connected(), self._sink, self._table)

    def _stamp_row(self, stamp: Stamp) -> tuple[Any, ...]:
        sink = shadow_name(stamp.sink, self._shadow)
        return stamp.job, sink, stamp.incarnation, stamp.epoch, stamp.part, stamp.parts

    def _shown(self, connection: sqlite3.Connection, job: str, sink: str) -> Stamp | None:
        row = connection.execute(_READ_STAMP, (job, shadow_name(sink, self._shadow))).fetchone()
        return None if row is None else Stamp(job, sink, *row)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def look(connection: sqlite3.Connection, sink: SqliteTable, name: str) -> Found | None:
    """Return what there is of the sink's table, which is called *name*."""
    kinds = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    kind = next((kind for kind, other in kinds if kind in {"table", "view"} and folded(other) == folded(name)), None)
    if kind is None:
        return None
    if kind == "view":
        raise PipelineError(f"{sink} is a view, which takes no rows. Name a table.")
    columns = connection.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (name,))
    rows = columns.fetchall()
    key = [column for column, _, _, _, place in rows if place]
    rowid = key if len(key) == 1 and next(kind for c, kind, *_ in rows if c == key[0]).upper() == "INTEGER" else []
    unique = {frozenset(map(folded, key))} if key else set()
    indexes = connection.execute('SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial', (name,))
    for (index,) in indexes.fetchall():
        members = connection.execute("SELECT name FROM pragma_index_info(?)", (index,)).fetchall()
        if all(member is not None for (member,) in members):  # None: an expression
            unique.add(frozenset(folded(member) for (member,) in members))
    required = {c for c, _, notnull, default, _ in rows if notnull and default is None and c not in rowid}
    return Found(tuple(row[0] for row in rows), frozenset(required), frozenset(unique))


def _make_table(table: str, columns: Sequence[str], identity: int) -> str:
    parts = [quoted(name) + (" NOT NULL" if place < identity else "") for place, name in enumerate(columns)]
    if identity:
        parts.append(f"PRIMARY KEY ({_list(columns[:identity])})")
    return f"CREATE TABLE IF NOT EXISTS {quoted(table)} ({', '.join(parts)})"


def _apply(connection: sqlite3.Connection, table: str, rows: Rows) -> None:
    identity = rows.columns[: rows.identity]
    if rows.deletes:
        where = " AND ".join(f"{quoted(name)} = ?" for name in identity)
        connection.executemany(f"DELETE FROM {quoted(table)} WHERE {where}", rows.deletes)  # noqa: S608 - quoted
    # What a row leaves out gets the column's default, in a row that is replaced too.
    sets = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in rows.columns[rows.identity :])
    then = f"DO UPDATE SET {sets}" if sets else "DO NOTHING"
    conflict = f" ON CONFLICT ({_list(identity)}) {then}" if identity else ""
    for group in rows.groups:
        places = ", ".join("?" * len(group.columns))
        into = f"INSERT INTO {quoted(table)} ({_list(group.columns)}) VALUES ({places})"  # noqa: S608 - quoted
        if not group.columns:
            into = f"INSERT INTO {quoted(table)} DEFAULT VALUES"
        connection.executemany(into + conflict, group.rows)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def _explained(sink: SqliteTable, error: sqlite3.Error) -> StreamActorsError:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StorageError(
                f"{sink}: another process held the lock of the file for more than {sink.busy_seconds:g} s ({error}); "
                "nothing was written. It is tried again; end the transaction that is open there."
            )
        case sqlite3.SQLITE_FULL:
            return StorageError(
                f"{sink}: the disk is full ({error}); nothing was written. It is tried again; make room."
            )
        case sqlite3.SQLITE_CORRUPT:
            return Damaged(f"{sink}: the file is damaged ({error}). Restore it from a copy.")
        case sqlite3.SQLITE_NOTADB:
            return UsageError(f"{sink}: the file is no SQLite database ({error}). Give another path.")
        case sqlite3.SQLITE_CONSTRAINT:
            return StorageError(
                f"{sink}: a row breaks a constraint of the table ({error}); nothing of its epoch was written. Change "
                "the table: the row is in a checkpoint, and comes again."
            )
    return StorageError(f"{sink}: SQLite said {error}; nothing was written. It is tried again.")
