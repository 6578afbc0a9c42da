"""Files that become visible together: how a backup, and a restored data folder, come into being.

    FOLDER/.unfinished/...        all files, while they are written; a copy that was interrupted is only this
    FOLDER/.unfinished/complete   they are whole and durable; what is left to do is to rename them
    FOLDER/jobs, ..., log         their names in the end; a backup gets its backup.json as the last

A process that is killed leaves one of these states. Without ``complete`` the next one begins anew. With it, a restore
does the renames that are missing, and a backup begins anew as well. Nothing else in FOLDER is ever touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec

from streamactors.core.errors import UsageError
from streamactors.durable.files import RealDisk

PARTS = ("jobs", "sources", "savepoints", "log")
"""The folders of a data folder, in the order in which they get their names. A job without its log is refused; a log
without its job would be counted from the beginning."""

MANIFEST = "backup.json"

NO_CONTENT = frozenset({"lost+found", "maintenance.lock"})
"""Names that an empty folder may have: of the file system, and of our own lock."""

_STAGING = ".unfinished"
_COMPLETE = "complete"
_NAMES = (*PARTS, MANIFEST)


class CopiedFile(msgspec.Struct, frozen=True):
    """A file of a backup."""

    path: str
    """Below the folder, with slashes."""

    bytes: int
    sha256: str


class Staging:
    """The files of one copy while they are written. See the module's header."""

    def __init__(self, folder: Path, told: Callable[[str, int], None]) -> None:
        self._disk = RealDisk()
        self._folder = folder
        self._told = told
        self.root = folder / _STAGING
        self.files: list[CopiedFile] = []

    @classmethod
    def begin(cls, folder: Path, told: Callable[[str, int], None]) -> Self:
        """Begin anew in *folder*; *told* is called with what was written: a path, and how many bytes more."""
        staging = cls(folder, told)
        if completed_content(folder) is not None:
            for name in PARTS:
                shutil.rmtree(folder / name, ignore_errors=True)
        if staging.root.exists():
            shutil.rmtree(staging.root)
        staging.root.mkdir(parents=True)
        return staging

    def path(self, relative: str) -> Path:
        """Return where *relative* is to be written; its folder is there."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def copy(self, relative: str, pieces: Iterable[bytes]) -> CopiedFile:
        """Write a file, durably, one piece after the other, and note it."""
        copied = self.write(relative, pieces)
        self.files.append(copied)
        return copied

    def write(self, relative: str, pieces: Iterable[bytes]) -> CopiedFile:
        """Write a file, durably."""
        path, digest, size = self.path(relative), sha256(), 0
        file = self._disk.open(path, write=True, create=True)
        try:
            for piece in pieces:
                file.write(size, piece)
                digest.update(piece)
                size += len(piece)
                self._told(relative, len(piece))
            file.sync()
        finally:
            file.close()
        return CopiedFile(relative, size, digest.hexdigest())

    def take(self, relative: str) -> None:
        """Sync and note a file that somebody else has written to ``path(relative)``."""
        file = self._disk.open(self.root / relative, write=True)
        try:
            file.sync()
        finally:
            file.close()
        digest, size = sha256(), 0
        for piece in pieces_of(self.root / relative):
            digest.update(piece)
            size += len(piece)
        self._told(relative, size)
        self.files.append(CopiedFile(relative, size, digest.hexdigest()))

    def complete(self, content: str) -> None:
        """Give all files their names; *content* says what they are, for who may have to go on with it."""
        for folder, _, _ in os.walk(self.root, topdown=False):
            self._disk.sync_folder(Path(folder))
        self.write(f"{_COMPLETE}.new", [content.encode()])
        self._disk.rename(self.root / f"{_COMPLETE}.new", self.root / _COMPLETE)
        self._disk.sync_folder(self.root)
        finish(self._folder)

    def give_up(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.root, ignore_errors=True)


def interrupted(folder: Path) -> bool:
    """Return whether a copy into *folder* was interrupted."""
    return (folder / _STAGING).exists()


def completed_content(folder: Path) -> str | None:
    """Return what is whole in *folder* and waits for its names; None: nothing."""
    path = folder / _STAGING / _COMPLETE
    return path.read_text("utf-8") if path.exists() else None


def finish(folder: Path) -> None:
    """Give what is whole in *folder* its names, as far as it lacks them."""
    disk, staging = RealDisk(), folder / _STAGING
    for name in _NAMES:
        if (staging / name).exists():
            disk.rename(staging / name, folder / name)
    disk.sync_folder(folder)
    shutil.rmtree(staging)
    disk.sync_folder(folder)


def refuse_content(folder: Path, what: str) -> None:
    """Refuse a folder that holds anything but an interrupted copy."""
    allowed = set(NO_CONTENT)
    if interrupted(folder):
        allowed |= {_STAGING} | (set(PARTS) if completed_content(folder) is not None else set())
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Give a new one for the {what}.")
    content = [path.name for path in folder.iterdir()] if folder.exists() else []
    names = sorted(name for name in content if name not in allowed)
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UsageError(f"{folder} is not empty: {shown}. Give a new folder for the {what}.")


def pieces_of(path: Path) -> Iterable[bytes]:
    """Yield the content of a file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            yield piece
