"""Opening the LMDB environment of a job: what is looked at before it is mapped, and how it is mapped.

What LMDB would not survive is found here, by reading and writing files as files: a data.mdb that was cut (pages.py), or
that is not there any more although it was; a lock.mdb without blocks on the disk (reserve.py). After that, what LMDB
meets is an error with a name.

A new data.mdb gets its name when it is whole: LMDB writes two pages to begin with, a full disk may take one of them,
and the file would be no LMDB file for ever.

data.mdb may be exchanged for a copy without free pages (compaction.py), but only while nobody has it open: LMDB keeps
in lock.mdb which transaction was last, and a reader of the old file beside a writer of the new one would be the end of
both. LMDB opens the file before it waits for that lock; so whoever opens holds a lock of ours on the folder meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from streamactors.core.errors import NO_ROOM, Damaged, QuotaFull, StorageError, UsageError
from streamactors.core.limits import MAP_SIZE, RESERVE_BYTES

from .pages import first_missing
from .reserve import Reserve, allocate
from .snapshot import BROKEN, damaged

_PAGE_BYTES = 4_096
DATABASES_MAX = 4_096
_READERS_MAX = 512

_LOCK_BYTES = 192 + 64 * (_READERS_MAX - 1)
"""Length of lock.mdb: LMDB's head, and a line of the processor's cache for each reader."""

_QUOTA_SHARE = 8
"""The reserve takes at most one part in so many of a quota."""


def open_environment(folder: Path, *, read_only: bool, sync: bool, quota_bytes: int | None) -> lmdb.Environment:
    """Open the environment in *folder*; see ``Store.open``."""
    new = _is_new(folder)
    if new and read_only:
        raise UsageError(f"there is no state in {folder}: no job has written there. Check --data and the job's name.")
    if not read_only:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        allocate(folder / "lock.mdb", _LOCK_BYTES)
        if new:
            _create(folder, sync=sync)
        with folder_lock(folder, fcntl.LOCK_SH):
            environment = lmdb.open(
                str(folder),
                map_size=map_size(quota_bytes, last=False),
                readonly=read_only,
                create=not read_only,
                sync=sync,
                metasync=sync,
                max_dbs=DATABASES_MAX,
                max_readers=_READERS_MAX,
                max_spare_txns=4,
                readahead=False,
            )
    except BROKEN as error:
        raise damaged(str(folder / "data.mdb"), error) from error
    except lmdb.Error as error:
        if "already open" in str(error):
            raise UsageError(
                f"{folder} is open in this process already. Read through the job that has it (job.views)."
            ) from error
        if isinstance(error, lmdb.DiskError):
            raise no_room(folder, "the state", error) from error
        raise StorageError(f"can't open the state in {folder}: {error}. Check the disk and who owns it.") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(folder, "the state's lock", error) from error
        raise
    if not read_only:
        environment.reader_check()
    return environment


@contextmanager
def folder_lock(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock that keeps opening data.mdb and exchanging it apart: *how* is LOCK_SH or LOCK_EX."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _create(folder: Path, *, sync: bool) -> None:
    unfinished, path = folder / "data.mdb.new", folder / "data.mdb"
    unfinished.unlink(missing_ok=True)
    lmdb.open(str(unfinished), map_size=MAP_SIZE, subdir=False, lock=False, sync=sync, metasync=sync).close()
    if sync:
        sync_path(unfinished)
    unfinished.replace(path)
    if sync:
        sync_path(folder)  # else a power cut could take the file's name, and with it every checkpoint
        sync_path(folder.parent)


def map_size(quota_bytes: int | None, *, last: bool) -> int:
    """Return how large the writer's map is: the quota, without what is kept free for the last checkpoint."""
    if quota_bytes is None:
        return MAP_SIZE
    kept = 0 if last else min(RESERVE_BYTES, quota_bytes // _QUOTA_SHARE)
    return max(_PAGE_BYTES, min(quota_bytes - kept, MAP_SIZE) // _PAGE_BYTES * _PAGE_BYTES)  # 0: as it was, to LMDB


def no_room(folder: Path, what: str, error: Exception) -> QuotaFull:
    """Return the error that says so."""
    return QuotaFull(
        f"{folder}: the disk is full ({error}). Nothing of {what} was written, what was stored before is whole. "
        "Make room; it goes on by itself."
    )


def _is_new(folder: Path) -> bool:
    """Return whether nothing was stored in *folder* yet; refuse files that are not all there."""
    path = folder / "data.mdb"
    if path.exists():
        size, missing = path.stat().st_size, first_missing(path)
        if missing is not None:
            raise Damaged(
                f"{path} ends at {size:,} bytes, a page that is in use stands at {missing:,}: the file was cut. "
                "Restore the folder from a copy, or remove it and start again from the log."
            )
    elif Reserve(folder).was_here:
        raise Damaged(
            f"{path} is not there, but a job has had its state in this folder. Restore the folder from a copy, or "
            "remove it and start again from the log."
        )
    return not path.exists()


def sync_path(path: Path) -> None:
    """Return when a file's content, or a folder's names, are durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
