"""Compaction: a job's data.mdb without its free pages, and so without what was deleted. Synchronous.

LMDB gives pages back and forgets nothing: the bytes of a deleted row stay in free pages, and in the gaps of used ones,
until something else is written there. A copy that LMDB makes page by page has only what is in use. In this order:

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

from streamactors.core.errors import Held

from .environment import folder_lock, sync_path
from .store import Store

_COPY = "compacted"
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
            store.copy_to(copy)
        sync_path(copy / path.name)
        with _nobody_has_it_open(folder):
            before = path.stat().st_size
            (copy / path.name).replace(path)
            sync_path(folder)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return Compacted(before, path.stat().st_size)


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
