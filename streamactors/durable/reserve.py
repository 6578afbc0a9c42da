"""Room on the disk: is there any, and some that is set aside for the end.

A job that is to end on a full disk needs room for one more checkpoint. So a file of zeros, ``reserve``, lies in its
folder; the last checkpoint gives it up when there is no other room. It is made anew at the next start, if the disk has
room by then. It stays as an empty file when it was given up: it is only made once the job's identity is durable, so
where it lies, there was state (``was_here``).

If we crash while it is made or given up: it is shorter or longer than meant, and the next start makes it right.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from streamactors.core.errors import NO_ROOM
from streamactors.core.limits import RESERVE_BYTES

SHARE_MAX = 8
"""The reserve takes at most one part in so many of what is free: a small disk is not filled by keeping it free."""

_PROBE_BYTES = 512 * 1024
"""Room that must be there for a disk not to count as full: more than the 64 pages that LMDB writes in one go, which a
disk that is nearly full takes in part."""


class Reserve:
    """The reserve of one job. See the module's header."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "reserve"

    @property
    def was_here(self) -> bool:
        """Whether a job has had its state in this folder."""
        return self._path.exists()

    @property
    def bytes(self) -> int:
        """What is set aside now."""
        return self._path.stat().st_size if self._path.exists() else 0

    def make(self) -> None:
        """Set room aside, as far as there is some; without, the job runs all the same."""
        size = min(RESERVE_BYTES, (_free(self._folder) + self.bytes) // SHARE_MAX)
        with suppress(OSError):
            if size > self.bytes or not self.was_here:
                _fill(self._path, size)

    def give_up(self) -> bool:
        """Give the room back to the disk; return whether there was any."""
        had = self.bytes
        if had:
            os.truncate(self._path, 0)
        return had > 0


def has_room(folder: Path) -> bool:
    """Return whether the disk takes more, for this user: asked by writing, since a quota shows nowhere else."""
    probe = folder / "probe.room"
    try:
        return _fill(probe, _PROBE_BYTES)
    finally:
        probe.unlink(missing_ok=True)


def allocate(path: Path, size: int) -> None:
    """
    Make the file at least *size* bytes long, of real blocks.

    A mapped page without a block gets one when it is first written, and if the disk is full then, that is not an error
    but the end of the process (SIGBUS).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        length = os.fstat(descriptor).st_size
        if length < size:
            os.pwrite(descriptor, bytes(size - length), length)
    finally:
        os.close(descriptor)


def _fill(path: Path, size: int) -> bool:
    """Write a file of *size* zeros; leave an empty one and return False if there is no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            if size:
                os.posix_fallocate(descriptor, 0, size)
        else:  # macOS
            for start in range(0, size, _PROBE_BYTES):
                os.pwrite(descriptor, bytes(min(_PROBE_BYTES, size - start)), start)
        os.ftruncate(descriptor, size)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        if error.errno not in NO_ROOM:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
