"""Compaction: a job's data.mdb without its free pages, and so without what was deleted. Synchronous.

LMDB gives pages back and forgets nothing: the bytes of a deleted row stay in free pages, and in the gaps of used ones,
until something else is written there. Its own copy (``Store.copy_to``) leaves free pages out, but takes pages with
large values as they are, and the gap behind such a value is whatever the page held before: measured, 18,000 traces of
2,000 deleted rows. So every row is put anew into a new file, which never held anything else. In this order:

    1. the copy is made in a folder beside, and synced; the job's lock, which the caller holds, keeps writers out
    2. the lock that every open environment shares (byte 0 of lock.mdb) is taken: whoever else has it open is a reader,
       and then nothing is exchanged (environment.py tells why)
    3. the copy takes the name, the folder is synced

If we crash: data.mdb is the old one or the new one, both whole. A copy that got no name is removed at the next try.

The old file's blocks go back to the file system, as for a segment (erasure.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb

from streamactors.core.errors import Held, StorageError
from streamactors.core.limits import MAP_SIZE

from .environment import DATABASES_MAX, folder_lock, no_room, sync_path
from .reserve import has_room
from .snapshot import Snapshot
from .store import Store

_COPY = "compacted"
_ROWS = 4_096
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of Linux on 64 bits: type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class Compacted:
    """How long the file was, and is."""

    bytes_before: int
    bytes_after: int


def compact(folder: Path) -> Compacted:
    """
    Exchange the data.mdb in *folder* for one without free pages.

    For a job that does not run, whose lock the caller holds.

    Raises:
        Held: another process reads the state; nothing was exchanged.

        UsageError: this process has it open.

        QuotaFull, StorageError: there is no room for the copy, or the disk refuses.
    """
    path, copy = folder / "data.mdb", folder / _COPY
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    try:
        with Store.open(folder) as store:
            copy_rows(store, copy)
        sync_path(copy / path.name)
        with _nobody_has_it_open(folder):
            before = path.stat().st_size
            (copy / path.name).replace(path)
            sync_path(folder)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return Compacted(before, path.stat().st_size)


def copy_rows(store: Store, folder: Path) -> None:
    """Write data.mdb with all rows of *store*, one by one, into *folder*, which is there and empty. Not synced."""
    try:
        target = lmdb.open(str(folder), map_size=MAP_SIZE, max_dbs=DATABASES_MAX, lock=False, sync=False)
        try:
            with store.snapshot() as snapshot:
                for database in snapshot.databases():
                    _copy_database(snapshot, target, database)
        finally:
            target.close()
    except lmdb.Error as error:
        if not has_room(folder):
            raise no_room(folder, "the copy", error) from error
        raise StorageError(f"{store.folder} can't be copied to {folder}: {error}. Check the disk.") from error


def _copy_database(snapshot: Snapshot, target: lmdb.Environment, database: str) -> None:
    handle = target.open_db(database.encode())
    after: bytes | None = None
    while rows := snapshot.scan(database, after=after, limit=_ROWS):
        with target.begin(write=True) as transaction:
            transaction.cursor(handle).putmulti(rows, append=True)
        after = rows[-1][0]


@contextmanager
def _nobody_has_it_open(folder: Path) -> Iterator[None]:
    """Keep everybody from opening the environment; raise Held when somebody has it open."""
    with folder_lock(folder, fcntl.LOCK_EX):
        descriptor = os.open(folder / "lock.mdb", os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            except OSError as error:
                raise Held(str(folder / "data.mdb"), _holder(descriptor)) from error
            yield
        finally:
            os.close(descriptor)


def _holder(descriptor: int) -> int | None:
    """Return the process that has byte 0 locked, where the system tells it."""
    if sys.platform != "linux":
        return None
    asked = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    kind, _, _, _, pid = _FLOCK.unpack(asked)
    return None if kind == fcntl.F_UNLCK else pid
