"""Exchange of tables: what readers know under a name becomes a version's own table, in one transaction. Synchronous.

Both versions write one file, each a table of its own, and their stamps are rows of one table, so a shadow's stamp bears
the label too. Who has the plain name is a row there as well: with it the transaction knows whether it was done before,
whatever tables there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from streamactors.core.errors import StorageError, UsageError

from .cells import folded, quoted

STAMPS = "streamactors_stamps"
BUSY_SECONDS = 5.0
Work = Callable[[sqlite3.Connection], None]
_OWNER = "#owner "  # what a sink's id in the row begins with that names who has the plain name
MAKE_STAMPS = f"""CREATE TABLE IF NOT EXISTS {STAMPS} (
    job TEXT, sink TEXT, incarnation TEXT, epoch INTEGER, part INTEGER, parts INTEGER, PRIMARY KEY (job, sink))"""


def shadow_name(name: str, label: str | None) -> str:
    """Return the table, or the sink in a stamp, of a version that is not served; of one that is: *name* itself."""
    return name if label is None else f"{name}__{label}"


def exchange_table(path: Path, job: str, table: str, sink: str, old: str | None, new: str | None) -> None:
    """
    Let *table* be that of version *new*, and *table*__OLD that of version *old*; with their stamps. None: has none.

    Raises:
        StorageError: SQLite refused. Nothing was changed.
    """
    if not path.exists():
        return
    owner = new or f"not {old}"

    def exchange(connection: sqlite3.Connection) -> None:
        row = connection.execute(
            f"SELECT incarnation FROM {STAMPS} WHERE job = ? AND sink = ?",  # noqa: S608 - a name of ours
            (job, _OWNER + sink),
        ).fetchone()
        if row is not None and row[0] == owner:
            return
        if old is not None:
            _rename(connection, job, (table, shadow_name(table, old)), (sink, shadow_name(sink, old)))
        if new is not None:
            _rename(connection, job, (shadow_name(table, new), table), (shadow_name(sink, new), sink))
        connection.execute(
            f"INSERT OR REPLACE INTO {STAMPS} VALUES (?, ?, ?, 0, 0, 0)",  # noqa: S608 - a name of ours
            (job, _OWNER + sink, owner),
        )

    _in_transaction(path, exchange)


def remove_table(path: Path, job: str, table: str, sink: str, label: str) -> None:
    """Remove the table of a version that is not served, and its stamp; harmless when they are not there."""
    if path.exists():

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute(f"DROP TABLE IF EXISTS {quoted(shadow_name(table, label))}")
            connection.execute(
                f"DELETE FROM {STAMPS} WHERE job = ? AND sink = ?",  # noqa: S608 - a name of ours
                (job, shadow_name(sink, label)),
            )

        _in_transaction(path, remove)


def _in_transaction(path: Path, work: Work) -> None:
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # (Views and triggers of the user's go on meaning the name, not the table that had it.)
            for pragma in ("synchronous = 3", "legacy_alter_table = ON", "fullfsync = 1", "checkpoint_fullfsync = 1"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(MAKE_STAMPS)
            work(connection)
            connection.execute("COMMIT")
        finally:
            connection.close()  # what was not committed is undone
    except sqlite3.Error as error:
        raise StorageError(
            f"{path}: its tables could not be exchanged or removed ({error}); nothing was changed there. End what "
            "holds the file, then repeat."
        ) from error


def _rename(connection: sqlite3.Connection, job: str, tables: Sequence[str], sinks: Sequence[str]) -> None:
    there = {folded(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if folded(tables[0]) in there:
        if folded(tables[1]) in there:
            raise UsageError(f"table {tables[1]} is in the way of {tables[0]}. Rename or drop it, then promote again.")
        connection.execute(f"ALTER TABLE {quoted(tables[0])} RENAME TO {quoted(tables[1])}")
    connection.execute(
        f"UPDATE {STAMPS} SET sink = ? WHERE job = ? AND sink = ?",  # noqa: S608 - a name of ours
        (sinks[1], job, sinks[0]),
    )
