"""A small file that is only ever replaced whole: written beside, synced, renamed. A crash leaves the old or the new."""

from __future__ import annotations

from pathlib import Path

from streamactors.core.ports import Disk


def replace_whole(disk: Disk, unfinished: Path, path: Path, data: bytes) -> None:
    """Let *path* hold *data*, durably; *unfinished*, in the same folder, is what a crash may leave of it."""
    if disk.exists(unfinished):
        disk.remove(unfinished)
    file = disk.open(unfinished, write=True, create=True)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    disk.rename(unfinished, path)
    disk.sync_folder(path.parent)
