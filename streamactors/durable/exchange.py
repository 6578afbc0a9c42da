"""Exchange of topics: what readers know under a name becomes another topic, by renaming folders. Synchronous.

    before    results             results.v2
    then      results.v1                          results.v2
    after     results.v1          results

Each step looks at which names are there, so whoever finds it half done does the rest. Nobody writes meanwhile: all
partitions' locks are held.

Whoever reads one of them while that happens must not go on by name in the other: before the first rename each
partition gets a new cell, and the one that he has mapped says that the topic under this name is gone. He is told so at
his next look, as when a topic is deleted; who opens the name anew finds what is there now.

If we crash between the new cell and the word in the old one: the partition shows no durable end until the exchange is
completed, which is what its job does first when it starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from streamactors.core.errors import Held, UsageError
from streamactors.core.ports import Disk

from .segment import DELETED, LOCK_NAME, UNFINISHED, cell_name

_GOING = ".deleted"


def shadow_name(name: str, label: str) -> str:
    """Return the topic that a version which is not served writes instead of *name*."""
    return f"{name}.{label}"


def refuse_exchange(disk: Disk, log: Path, name: str, old: str | None, new: str | None) -> None:
    """Refuse, before it begins, an exchange that would meet a topic of somebody else; *old*, *new*: labels or None."""
    taken = None
    if old is not None and disk.exists(log / shadow_name(name, old)):
        taken = shadow_name(name, old)
    elif old is None and new is not None and disk.exists(log / name):
        taken = name
    if taken is not None:
        raise UsageError(
            f"topic {taken} is in the way: version {new} is to be served, and its output would get a name that is "
            f"taken. Nothing was changed. Delete the topic (`streamactors log delete {taken}`), then promote again."
        )


def exchange_topic(disk: Disk, log: Path, name: str, old: str | None, new: str | None) -> None:
    """
    Let *name* be the topic of version *new*, and *name*.OLD that of version *old*. None: the version has none.

    Raises:
        Held: somebody writes one of them. Nothing was changed.
    """
    known, shadow = log / name, None if new is None else log / shadow_name(name, new)
    aside = None if old is None else log / shadow_name(name, old)
    if shadow is not None and not disk.exists(shadow):
        return  # all done: the shadow goes last
    with ExitStack() as stack:
        folders = [folder for folder in (known, shadow) if folder is not None and disk.exists(folder)]
        for partition in (partition for folder in folders for partition in _partitions(disk, folder)):
            stack.callback(disk.lock(partition / LOCK_NAME).release)
        if aside is not None and disk.exists(known) and not disk.exists(aside):
            _rename(disk, known, aside)
        if shadow is not None:
            _rename(disk, shadow, known)


def remove_topic(disk: Disk, log: Path, name: str) -> None:
    """Remove a topic, for good; harmless when it is not there, or half gone."""
    going = log / f".{name}{_GOING}"
    if disk.exists(log / name):
        for partition in _partitions(disk, log / name):
            try:
                disk.lock(partition / LOCK_NAME).release()
            except Held as held:
                raise UsageError(f"topic {name} is being written. Stop its writer, then repeat. ({held})") from held
        remove_folder(disk, going)
        disk.rename(log / name, going)
        disk.sync_folder(log)
        for partition in _partitions(disk, going):
            if disk.exists(partition / cell_name(disk.boot_id())):
                _say_gone(disk, partition / cell_name(disk.boot_id()))
    remove_folder(disk, going)


def remove_folder(disk: Disk, folder: Path) -> None:
    """Remove a folder with all that is in it; harmless when it is not there."""
    if disk.exists(folder):
        shutil.rmtree(folder)
        disk.sync_folder(folder.parent)


def _rename(disk: Disk, old: Path, new: Path) -> None:
    for partition in _partitions(disk, old):
        _renew_cell(disk, partition / cell_name(disk.boot_id()))
    disk.rename(old, new)
    disk.sync_folder(old.parent)


def _renew_cell(disk: Disk, path: Path) -> None:
    """Put a new cell into the place of the one at *path*, and let the old one say that the topic is gone."""
    fresh = path.with_name(path.name + UNFINISHED)
    if not disk.exists(path):
        return  # nobody has opened it since this machine was started
    cell = disk.cell(path, write=True)
    try:
        end = cell.load()
        if end != DELETED:
            new = disk.cell(fresh, write=True)
            new.store(end)
            new.close()
            cell.store(DELETED)
    finally:
        cell.close()
    if disk.exists(fresh):
        disk.rename(fresh, path)


def _say_gone(disk: Disk, path: Path) -> None:
    cell = disk.cell(path, write=True)
    cell.store(DELETED)
    cell.close()


def _partitions(disk: Disk, folder: Path) -> Iterator[Path]:
    return (folder / name for name in disk.names(folder) if name.isdigit())
