"""Stores that a process shares: LMDB allows one open environment for a folder, whoever wants to read it.

Whoever only reads asks for the folder's store each time (``reading``): it is the one of the job that runs in this very
process, or one that is opened to read and kept. When a job of this process opens the folder to write, the one that was
opened to read is closed first, as soon as nobody looks into it; the next reader finds the writer's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .store import Store

_lock = threading.Lock()  # held while a store is opened or closed; never while one is read
_open: dict[Path, Store] = {}


def reading(folder: Path) -> Store:
    """Return the store of *folder*, to be read now and not kept. Raises as ``Store.open``. Cost: a look-up."""
    folder = folder.resolve()
    store = _open.get(folder)
    if store is not None and not store.closed:
        return store
    with _lock:
        if folder not in _open or _open[folder].closed:  # by whoever opened it to write, past ``close`` below
            _open[folder] = Store.open(folder, read_only=True)
        return _open[folder]


def open_to_write(folder: Path, *, sync: bool, quota_bytes: int | None) -> Store:
    """Open the store of *folder* to write, and let readers of this process share it."""
    resolved = folder.resolve()
    with _lock:
        found = _open.get(resolved)
        if found is not None and found.read_only:
            del _open[resolved]
            found.close()
        store = Store.open(folder, sync=sync, quota_bytes=quota_bytes)
        if (shared := _open.get(resolved)) is None or shared.closed:
            _open[resolved] = store
        return store


def close(store: Store) -> None:
    """Close what ``open_to_write`` has opened."""
    with _lock:
        resolved = store.folder.resolve()
        if _open.get(resolved) is store:
            del _open[resolved]
        store.close()


def settle(folder: Path) -> None:
    """
    Let everybody see all that is durable in *folder*. Whoever calls it sees to it that nobody writes there.

    A writer that is killed in the middle of a commit may leave it whole on the disk, and not shown: those who have the
    store open are given the one before, until somebody writes again. Who notes where a dead writer ended has to know.
    """
    store = open_to_write(folder, sync=True, quota_bytes=None)
    try:
        store.settle()
    finally:
        close(store)


def written() -> int:
    """Return how many stores this process has open to write: how many versions run in it."""
    return sum(not store.read_only for store in list(_open.values()))


def forget(folder: Path) -> None:
    """Close the store of *folder* if it was opened to read: nobody here will read it again, or it is to be removed."""
    with _lock:
        resolved = folder.resolve()
        if (store := _open.get(resolved)) is not None and store.read_only:
            del _open[resolved]
            store.close()


@contextmanager
def read_briefly(folder: Path) -> Iterator[Store]:
    """Read the store of *folder*, and leave nothing open behind that was not open before."""
    was_open = folder.resolve() in _open
    try:
        yield reading(folder)
    finally:
        if not was_open:
            forget(folder)
