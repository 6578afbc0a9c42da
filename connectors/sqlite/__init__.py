"""A table of an SQLite database as a sink, exactly once.

    append     a row for each value; its fields are the columns
    upserts    a row for each key (and window) of the stream: a later result replaces it, a DELETE deletes it

**The stamp** is a row of ``streamactors_stamps``, by (job, sink), in the same file. A commit is one transaction:

    BEGIN IMMEDIATE · compare the stamp · make the table if need be · rows · set the stamp · COMMIT

so rows and stamp are there together or not at all (E2). ``BEGIN IMMEDIATE`` takes the file's write lock before the
stamp is read: no other writer comes in between. No transaction is open between two calls; several sinks, several jobs
and other programs may read and write the same file.

**Durable** means ``synchronous = EXTRA``. FULL is not enough in the rollback-journal modes: the removal of the journal
*is* the commit there, FULL does not sync the folder behind it, and a power cut could bring the journal back and undo
what we have confirmed. In WAL mode both sync the log at each commit. A process that is killed between writing its
commit and syncing it leaves a stamp that is shown and not durable; so whoever asks for the last stamp writes it anew,
in a commit of its own, before it is believed.

**Journal mode.** A file that we make is in WAL mode: its readers never hold up our commit, and we don't hold up them.
A file that is there keeps the mode that its owner chose. A writer that holds the lock longer than ``busy_seconds``
makes the commit fail with a StorageError: nothing was written, and the region's restart tries again.

**Values.** None, text, bytes, ints of 64 bits and floats are stored as they are, bools as 0 and 1, times and enums as
their JSON; what has items of its own is JSON text. NaN (SQLite would store NULL), larger ints and text that is no
Unicode are refused. Columns that we make have no declared type, so SQLite converts nothing.

**Columns.** ``columns``, or the fields of the stream's type, or the columns of the table that is there, or the fields
of the first value. A value may leave out some of them; another field is refused in the stage, before a checkpoint holds
it: a row that the table can't take would be in the way of all that follow.

**Keys** of upserts are str, int or bytes, as they are; a tuple is JSON text, or with as many names in ``key`` a column
for each item. Other keys are refused, and so is a text that reads like a tuple: SQLite would take 1, 1.0 and true for
one key, and the text ``["a",1]`` for the tuple.

**Versions.** A version of the job that is not served writes the table TABLE__LABEL of the same file, with a stamp of
its own; a promotion exchanges tables and stamps in one transaction (exchange.py).

If the file was removed or exchanged while it is open, SQLite would go on writing into the old one, which has no name.
So the file's identity is compared at each commit; a new file does not show the stamp that is expected (SinkConflict).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamactors.core.connectors import World
from streamactors.core.errors import UsageError
from streamactors.core.fields import field_names, target_name

from .cells import quoted, require_distinct
from .exchange import STAMPS
from .target import TableTarget
from .writer import Found, TableWriter

BUSY_SECONDS = 5.0
"""How long a commit waits for another writer. Longer than one holds a lock that means well, shorter than a job may
stand still unnoticed; then the region starts again and tries anew."""


@dataclass(eq=False)
class SqliteTable:
    """
    A table of the database file *path*. See the module's header for columns, keys and values.

    Args:
        columns: The fields that are stored. None: see the header.

        upserts: Keep a row for each key (and window), instead of a row for each value.

        key: The column of the stream's key in a table of upserts; for tuple keys maybe a column for each item.

        type: The type of a value, where it is known: its fields are the columns.

        name: The sink's id; stamps are found again by it. None: made of the file's and the table's name.
    """

    path: Path | str
    table: str
    columns: Sequence[str] | None = None
    upserts: bool = False
    key: str | Sequence[str] = "key"
    type: Any = None
    name: str | None = None
    busy_seconds: float = BUSY_SECONDS
    found: Found | None = field(default=None, init=False, repr=False)
    """The table as it was when the job looked last; None: there is none yet."""

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if isinstance(self.columns, str) or (self.columns is not None and not self.columns):
            raise UsageError(f"{self}: columns={self.columns!r} are no names of columns. Give a list, or None.")
        if self.table.lower().startswith(("sqlite_", STAMPS)):
            raise UsageError(f"{self}: this table is SQLite's or ours. Choose another name.")
        try:
            names = [*self.key_columns, *(self.columns or ())]
            for name in [self.table, *names]:
                quoted(name)
            require_distinct(names if self.upserts else self.columns or ())
        except ValueError as error:
            raise UsageError(f"{self}: {error}") from error

    def __str__(self) -> str:
        return f"table {self.table} of {self.path}"

    @property
    def id(self) -> str:
        """Of the file and the table; the folder may be moved."""
        return self.name if self.name is not None else target_name("sqlite", Path(self.path).stem, self.table)

    @property
    def address(self) -> tuple[str, ...]:
        """File, table, and the id by which stamps are found."""
        return "sqlite", str(Path(self.path).resolve()), self.table, self.id

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that hold a row's key."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def declared(self) -> tuple[str, ...] | None:
        """The fields of each value, as far as they are known before the first one."""
        return tuple(self.columns) if self.columns is not None else field_names(self.type)

    async def partitions(self, world: World) -> int:
        """Look at the table, and refuse one that does not fit; make one whose columns are known."""
        target = await self.target(world)
        try:
            await target.prepare()
        finally:
            await target.close()
        return 1

    def writer(self, partitions: int) -> TableWriter:
        """Return a writer."""
        return TableWriter(self)

    async def target(self, world: World) -> TableTarget:
        """Open the database; its file is made when it is not there."""
        return TableTarget(self, world)
