"""Ports: all that the product asks of the world outside, so that a simulation can stand in for it.

Clock, disk, randomness and threads are reached through these four and through nothing else; task scheduling is the
event loop's, which the simulation brings as well. The real ones are in durable/files.py and durable/realtime.py, the
simulated ones in testing/.

The disk is synchronous on purpose: a method of it is called only inside ``Threads.run``, so one hand-over to a thread
covers a whole write-and-sync, and a simulation sees each single operation, in order, as a place to crash.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Time. ``now_ms`` may jump with the machine's clock; ``monotonic`` never goes back."""

    def now_ms(self) -> int:
        """Return wall-clock time in ms since the epoch, UTC."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start."""

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds* of this clock."""


class File(Protocol):
    """One open file. Offsets are absolute; there is no position."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset*; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at *offset*. Durable only after ``sync``."""

    def sync(self) -> None:
        """Return when all that was written is durable (fdatasync). After a failure nothing is known."""

    def size(self) -> int:
        """Return the file's length in bytes."""

    def truncate(self, size: int) -> None:
        """Cut or extend the file to *size* bytes."""

    def close(self) -> None:
        """Release the file; harmless when repeated."""


class Cell(Protocol):
    """Eight bytes shared by all processes that map the same file; read and written whole."""

    def load(self) -> int:
        """Return the value that was stored last, by whichever process."""

    def store(self, value: int) -> None:
        """Publish *value* to all processes at once. Not durable by itself."""

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call *wake*, from any thread, after each store by this process; what is returned ends that."""

    def close(self) -> None:
        """Unmap, and end all watches."""


class Lock(Protocol):
    """A lock held by this process."""

    def release(self) -> None:
        """Give it up; harmless when repeated."""


class Disk(Protocol):
    """Folders and files. Synchronous: called only inside ``Threads.run``."""

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> File:
        """Open a file; *create* makes it (and fails if it is there). Its name is durable after ``sync_folder``."""

    def exists(self, path: Path) -> bool:
        """Return whether a file or folder is there."""

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names in *folder*; empty when there is no such folder."""

    def make_folder(self, folder: Path) -> None:
        """Make *folder* and its parents, durably; harmless when it is there."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in *folder* are durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Give *old* the name *new*, replacing what had it."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def cell(self, path: Path, *, write: bool = False) -> Cell:
        """Map the shared cell at *path*; *write* makes the file when it is not there."""

    def lock(self, path: Path) -> Lock:
        """Take the lock at *path* for this process, naming it as the holder, or raise Held with the holder's pid."""

    def boot_id(self) -> bytes:
        """Return 16 bytes that change with each boot of the machine."""


class Threads(Protocol):
    """Where blocking work goes, so that the event loop never waits."""

    async def run(self, lane: str, work: Callable[..., T], *args: object) -> T:
        """
        Run ``work(*args)`` in the thread of *lane* and return what it returns.

        Work in one lane runs one at a time, in the order of the calls, always in the same thread. Cancelling the
        caller does not stop work that has begun; later work in the lane still waits for it.
        """

    async def close(self) -> None:
        """Return when all lanes have finished their work and their threads are gone."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The four ports, handed from the outermost shell to whoever needs one."""

    clock: Clock
    disk: Disk
    threads: Threads
    random: random.Random

    def new_id(self) -> str:
        """Return a new random 128-bit id in hex."""
        return f"{self.random.getrandbits(128):032x}"
