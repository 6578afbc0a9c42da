"""Savepoints as files: written from a store while its job runs or not, and made into a store again.

Writing. One LMDB read transaction is one epoch of each region, whoever writes meanwhile; rows are copied out of it in
chunks of about a megabyte. While it is open LMDB reuses no page, so the job's file grows by what its checkpoints write
meanwhile: therefore the file is synced after the transaction has ended, and each row is looked at once. The file is
written beside its place, synced, and renamed: there is a whole savepoint or none.

What is in it: state and rows of operators, views, pending output of sinks, the journal (neighbouring ranges joined),
and where each region stands. Left out: summaries of past checkpoints, which are for people.

Reading beside a busy event loop. py-lmdb gives the interpreter away at each row, as when it puts one (writing.py), so
turns are short for that long.

Making a store. It is made in a folder of its own inside the version's, and gets its name by one rename, of data.mdb,
when all of the savepoint was read and checked. What a process that died has left there is removed by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from struct import unpack
from typing import Any
from zlib import crc32

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import StorageError, UsageError
from streamactors.core.ports import Disk

from .rows import Row
from .savepoint import (
    Counts,
    JournalBlock,
    RegionHead,
    RowsBlock,
    SavepointDecoder,
    SavepointEncoder,
    SavepointHead,
)
from .snapshot import Snapshot
from .store import Delta, Store
from .writing import big, short_turns

SUFFIX = ".savepoint"

_UNFINISHED = ".unfinished"
_CHUNK_BYTES = 1024 * 1024
_CHUNK_ROWS_MAX = 1_024
"""Rows of a chunk: about half a millisecond of the interpreter."""

_SUM_BYTES = 4  # of the checksum in front of a value: core/codec.py
_WRITE_BYTES = 4 * 1024 * 1024
_JOURNAL_ENTRIES = 1_024
_LOAD_ROWS = 50_000
"""Rows in one transaction of a store that is made: enough that its sync does not matter."""

_CARRIED = ("state:", "view:", "pending:")
_OPERATORS = "rows"
_JOURNAL = "journal:"
_RESTORING = "restoring"

Take = Callable[[RowsBlock], list[Delta]]
"""What becomes of rows that are read: what is to be stored."""


class GivenUp(Exception):
    """Whoever wanted the savepoint wants it no more."""


# Writing. -------------------------------------------------------------------------------------------------------------


def write_savepoint(
    disk: Disk, store: Store, path: Path, *, now_ms: int, stopped: Callable[[], bool] = lambda: False
) -> tuple[SavepointHead, Counts]:
    """
    Write the newest epoch of *store* to *path*; return whose it is and what it holds.

    Synchronous; for a thread. Memory: a few MB, and the largest value twice.

    Args:
        disk: Where *path* is.

        store: Open, to write or to read.

        path: Nothing is there yet.

        now_ms: Wall clock.

        stopped: Asked between chunks; when it says yes, nothing is left behind and GivenUp is raised.

    Raises:
        UsageError: there is something at *path*, or nothing to save.

        Damaged: a row of the store does not check out.
    """
    if disk.exists(path):
        raise UsageError(f"{path} is there already. Give another name, or remove it.")
    disk.make_folder(path.parent)
    unfinished = path.with_name(path.name + _UNFINISHED)
    if disk.exists(unfinished):
        disk.remove(unfinished)
    file = disk.open(unfinished, write=True, create=True)
    try:
        written = _Written(file.write)
        encoder = SavepointEncoder(written.add)
        with store.snapshot() as snapshot, short_turns():
            head = _head_of(store, snapshot, now_ms)
            encoder.head(head)
            _copy(snapshot, encoder, list(head.regions), stopped)
        encoder.end()
        written.flush()
        file.sync()
    except BaseException:
        file.close()
        if disk.exists(unfinished):
            disk.remove(unfinished)
        raise
    file.close()
    disk.rename(unfinished, path)
    disk.sync_folder(path.parent)
    return head, encoder.counts


class _Written:
    """Gathers what is written into pieces of a good size."""

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self._pieces: list[bytes] = []
        self._at = self._size = 0

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        self._write(self._at, b"".join(self._pieces))
        self._at += self._size
        self._pieces, self._size = [], 0


def _head_of(store: Store, snapshot: Snapshot, now_ms: int) -> SavepointHead:
    def value(database: str, key: bytes) -> Any:
        stored = snapshot.get(database, key)
        where = f"database {snapshot.place(database)}, key {key.decode()}"
        return None if stored is None else decode_value(unseal(stored, where))

    regions = {key.decode(): RegionHead(**value("regions", key)) for key, _ in snapshot.scan("regions")}
    identity = value("meta", b"identity")
    if identity is None or not regions:
        raise UsageError(f"{store.folder}: the job has no checkpoint yet, there is nothing to save.")
    return SavepointHead(
        job=identity["job"],
        version=identity["version"],
        incarnation=identity["incarnation"],
        created_ms=now_ms,
        release=version("streamactors"),
        guarantee=value("meta", b"guarantee"),
        plan=value("meta", b"plan"),
        regions=regions,
    )


def _copy(snapshot: Snapshot, encoder: SavepointEncoder, regions: list[str], stopped: Callable[[], bool]) -> None:
    for database in snapshot.databases():
        if database == _OPERATORS or database.startswith(_CARRIED):
            for rows in chunks(snapshot, database):
                _check(snapshot, database, rows)
                encoder.rows(database, rows)
                if stopped():
                    raise GivenUp
    for region in regions:
        for epoch, entries in _journal(snapshot, region):
            encoder.journal(region, epoch, entries)
            if stopped():
                raise GivenUp


def chunks(snapshot: Snapshot, database: str) -> Iterator[list[Row]]:
    """Yield the rows of a database in pieces of about a megabyte, judged by the piece before."""
    after: bytes | None = None
    limit = 16
    while rows := snapshot.scan(database, after=after, limit=limit):
        yield rows
        after = rows[-1][0]
        size = sum(map(len, chain.from_iterable(rows))) // len(rows) + 1
        limit = max(1, min(_CHUNK_ROWS_MAX, _CHUNK_BYTES // size))


def _check(snapshot: Snapshot, database: str, rows: list[Row]) -> None:
    """Refuse rows that are not what was stored: a savepoint of damage is no savepoint."""
    sums = b"".join([value[:_SUM_BYTES] for _, value in rows])
    expected = [crc32(value[_SUM_BYTES:]) for _, value in rows]
    if len(sums) != _SUM_BYTES * len(rows) or unpack(f">{len(rows)}I", sums) != tuple(expected):
        for key, value in rows:
            unseal(value, f"database {snapshot.place(database)}, key {key.hex()}")


def _journal(snapshot: Snapshot, region: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield (epoch, entries up to it), with ranges of one partition joined where one ends and the next begins."""
    database = f"{_JOURNAL}{region}"
    entries: list[Any] = []
    epoch = 0
    for rows in chunks(snapshot, database):
        for key, stored in rows:
            epoch = int.from_bytes(key, "big")
            for entry in decode_value(unseal(stored, f"database {snapshot.place(database)}, key {key.hex()}")):
                _join(entries, entry)
            if len(entries) >= _JOURNAL_ENTRIES:
                yield epoch, entries
                entries = []
    if entries:
        yield epoch, entries


def _join(entries: list[Any], entry: Any) -> None:
    last = entries[-1] if entries else None
    if last is not None and last[0] == entry[0] == "read" and last[1:3] == entry[1:3] and last[4] == entry[3]:
        entries[-1] = [*last[:4], entry[4]]
    else:
        entries.append(entry)


# Reading. -------------------------------------------------------------------------------------------------------------


@contextmanager
def open_savepoint(disk: Disk, path: Path) -> Iterator[SavepointDecoder]:
    """Open the savepoint at *path*; its head is read and checked."""
    if not disk.exists(path):
        raise UsageError(f"there is no savepoint {path}. `streamactors savepoint list` names those of a data folder.")
    file = disk.open(path)
    try:
        yield SavepointDecoder(file.read, file.size(), str(path))
    finally:
        file.close()


# Making a store. ------------------------------------------------------------------------------------------------------


@contextmanager
def making_store(folder: Path, *, sync: bool) -> Iterator[Store]:
    """
    Give a new store; when the block ends well it is the one in *folder*, durably, at one instant.

    Who calls it holds the version's lock. Raises UsageError when *folder* has a store.
    """
    if (folder / "data.mdb").exists():
        raise UsageError(f"{folder} has state already.")
    beside = folder / _RESTORING
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with Store.open(beside, sync=False) as store:
            yield store
        if sync:
            _sync(beside / "data.mdb")
        (beside / "data.mdb").replace(folder / "data.mdb")
        if sync:
            _sync(folder)
    except OSError as error:
        raise StorageError(f"{folder}: the state could not be written ({error}). Nothing was made.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load(store: Store, decoder: SavepointDecoder, take: Take) -> None:
    """Put all of a savepoint into a new store, rows as *take* gives them, of the regions that its head names."""
    head = decoder.head
    store.amend([Delta("attempts", _sealed({name: region.attempt for name, region in head.regions.items()}))])
    store.amend([Delta("regions", _sealed({name: _stored(region) for name, region in head.regions.items()}))])
    pending: list[Delta] = []
    held = 0
    for block in decoder.blocks():
        if isinstance(block, JournalBlock):
            made = [_journal_row(block)] if block.region in head.regions else []
        else:
            made = take(block)
        pending += made
        held += sum(map(Delta.entries, made))
        if held >= _LOAD_ROWS:
            store.amend(pending)
            pending, held = [], 0
    store.amend(pending)


def _stored(region: RegionHead) -> dict[str, Any]:
    return {name: getattr(region, name) for name in ("attempt", "epoch", "position", "created_ms")}


def _sealed(values: dict[str, Any]) -> list[Row]:
    return [(name.encode(), seal(encode_value(value))) for name, value in values.items()]


def _journal_row(block: JournalBlock) -> Delta:
    return Delta(f"{_JOURNAL}{block.region}", puts=[(big(block.epoch), seal(encode_value(block.entries)))])


def check_all(decoder: SavepointDecoder) -> Counts:
    """Read all of a savepoint; return what it holds. Raises Damaged."""
    for _ in decoder.blocks():
        pass
    return decoder.counts


def entries_and_bytes(counts: Counts, prefixes: Iterable[str]) -> tuple[int, int]:
    """Return rows and bytes of all databases that begin with one of *prefixes*."""
    found = [size for name, size in counts.items() if name.startswith(tuple(prefixes))]
    return sum(rows for rows, _ in found), sum(size for _, size in found)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
