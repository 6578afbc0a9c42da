"""A disk in memory that forgets like a real one.

What a crash leaves is decided by a seeded random, from all that the contract of the Disk port allows:

    the process is killed     written data stays, synced or not; a write that was under way is there up to some byte;
                              locks are gone
    the power goes            as well: of each write that was not synced all, none, or some sectors, in any order;
                              of the names in a folder that was not synced, the changes up to some point;
                              a cell has a value that it had at some time; the boot id is another

A sync that fails (a hook that raises) leaves the data readable and yet not on disk, and a later sync does not mend
that: the kernel has marked the pages clean. Only writing it again does.

``quota_bytes`` is how much all files together may hold: a write that does not fit leaves what fits and raises ENOSPC,
as a real one does, and no file is made on a full disk. It may be changed at any time; the next process finds room.

Each operation calls ``on_operation(label, path)`` first; it may raise, for a disk that says no, or note what happens.
Operations that change something are also counted, and ``fail_at(n)`` ends the process at the n-th from now: it and all
later ones raise ``Crash``. Then ``crash()`` returns the disk as the next process finds it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from streamactors.core.errors import Held

SECTOR_BYTES = 512

READS = {"open", "read", "size", "exists", "names"}
"""Labels of operations that change nothing: a crash there is a crash before the next one that does."""


class Crash(BaseException):
    """The simulated process has ended. No code of the product may catch it and go on."""


@dataclass(slots=True)
class _Content:
    """A file's bytes: as they are read, and as they are on disk."""

    current: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)  # (offset, data) written, or size cut to
    cell: int = 0  # of a cell's file: its value,
    written_back: int = 0  # and one that it had at some time

    def write(self, offset: int, data: bytes) -> None:
        _write(self.current, offset, data)
        self.pending.append((offset, data))

    def truncate(self, size: int) -> None:
        _truncate(self.current, size)
        self.pending.append(size)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.synced, change)
        self.pending.clear()

    def after_kill(self) -> _Content:
        return _Content(
            bytearray(self.current), bytearray(self.synced), list(self.pending), self.cell, self.written_back
        )

    def after_power_loss(self, random: Random) -> _Content:
        kept = bytearray(self.synced)
        for change in self.pending:
            fate = random.random()
            if fate < 0.4:
                _apply(kept, change)
            elif fate < 0.8 and not isinstance(change, int):
                _write_some_sectors(kept, *change, random)
        return _Content(kept, bytearray(kept), [], self.written_back, self.written_back)


NameChange = tuple[Path, _Content | None]
"""A name and what it stands for from now on; None: nothing."""


class SimDisk:
    """The Disk port in memory. See the module's header."""

    def __init__(self, random: Random, *, pid: int = 1, boot: int = 1) -> None:
        self._random = random
        self._pid = pid
        self._boot = boot
        self._folders: set[Path] = set()
        self._names: dict[Path, _Content] = {}
        self._synced_names: dict[Path, _Content] = {}
        self._pending_names: list[list[NameChange]] = []  # each entry's changes go together: a rename is two
        self._locks: set[Path] = set()
        self._watchers: dict[Path, list[Callable[[], None]]] = {}
        self._fail_at: int | None = None
        self.dead = False
        self.quota_bytes: int | None = None
        """What all files together may hold; None: whatever is written."""

        self.operations = 0
        """Operations so far that change something."""
        self.on_operation: Callable[[str, Path], None] | None = None

    # --- faults ------------------------------------------------------------------------------------------------

    def fail_at(self, operations: int) -> None:
        """End the process at that many changing operations from now: 1 is the next one."""
        self._fail_at = self.operations + operations

    def crash(self, *, power: bool | None = None) -> SimDisk:
        """Return the disk as the next process finds it; *power* says whether the machine went down (None: either)."""
        self.dead = True
        if power is None:
            power = self._random.random() < 0.5
        after = SimDisk(self._random, pid=self._pid + 1, boot=self._boot + power)
        after._folders = set(self._folders)
        copies: dict[int, _Content] = {}

        def copy(content: _Content) -> _Content:
            if id(content) not in copies:
                copies[id(content)] = content.after_power_loss(self._random) if power else content.after_kill()
            return copies[id(content)]

        after._synced_names = {path: copy(content) for path, content in self._synced_names.items()}
        if power:
            for changes in self._names_kept():
                for path, content in changes:
                    _rename(after._synced_names, path, None if content is None else copy(content))
            after._names = dict(after._synced_names)
        else:
            after._names = {path: copy(content) for path, content in self._names.items()}
            after._pending_names = [
                [(path, None if content is None else copy(content)) for path, content in changes]
                for changes in self._pending_names
            ]
        return after

    def _names_kept(self) -> list[list[NameChange]]:
        kept: list[list[NameChange]] = []
        ended: set[Path] = set()  # folders whose later changes are lost: a journal keeps each folder's order
        for changes in self._pending_names:
            folder = changes[0][0].parent
            if folder in ended or self._random.random() < 0.3:
                ended.add(folder)
            else:
                kept.append(changes)
        return kept

    def operate(self, label: str, path: Path) -> None:
        """Announce an operation; every method does this first."""
        if self.dead:
            raise Crash(f"{label} {path} after the crash")
        if self.on_operation is not None:
            self.on_operation(label, path)
        if label in READS:
            return
        self.operations += 1
        if self.operations == self._fail_at:
            self.dead = True
            raise Crash(f"operation {self.operations}: {label} {path}")

    # --- the port ----------------------------------------------------------------------------------------------

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> SimFile:
        """Open a file; *create* makes it and fails if it is there."""
        self.operate("create" if create else "open", path)
        if create:
            if path in self._names:
                raise FileExistsError(path)
            self._need_folder(path.parent)
            self._need_room(path, 1)
            self._change_names((path, _Content()))
        elif path not in self._names:
            raise FileNotFoundError(path)
        return SimFile(self, path, self._names[path], writable=write or create)

    def exists(self, path: Path) -> bool:
        """Return whether a file or folder is there."""
        self.operate("exists", path)
        return path in self._names or path in self._folders

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names in *folder*."""
        self.operate("names", folder)
        return sorted({path.name for path in (*self._names, *self._folders, *self._locks) if path.parent == folder})

    def make_folder(self, folder: Path) -> None:
        """Make *folder* and its parents, durably."""
        if folder in self._folders:
            return
        self.operate("make_folder", folder)
        self._folders.update([folder, *folder.parents])

    def sync_folder(self, folder: Path) -> None:
        """Make the names in *folder* durable."""
        self.operate("sync_folder", folder)
        self._need_folder(folder)
        for changes in self._pending_names:
            if changes[0][0].parent == folder:
                for path, content in changes:
                    _rename(self._synced_names, path, content)
        self._pending_names = [changes for changes in self._pending_names if changes[0][0].parent != folder]

    def rename(self, old: Path, new: Path) -> None:
        """Give *old* the name *new*."""
        self.operate("rename", new)
        assert old.parent == new.parent, "a rename stays in its folder"
        self._change_names((old, None), (new, self._names[old]))

    def remove(self, path: Path) -> None:
        """Remove a file."""
        self.operate("remove", path)
        if path not in self._names:
            raise FileNotFoundError(path)
        self._change_names((path, None))

    def cell(self, path: Path, *, write: bool = False) -> SimCell:
        """Map the shared cell at *path*."""
        if path not in self._names:
            if not write:
                raise FileNotFoundError(path)
            self.operate("create", path)
            self._need_folder(path.parent)
            self._need_room(path, 1)
            self._change_names((path, _Content()))
        return SimCell(self, path, self._names[path])

    def lock(self, path: Path) -> SimLock:
        """Take the lock at *path*, or raise Held."""
        self.operate("lock", path)
        self._need_folder(path.parent)
        if path in self._locks:
            raise Held(str(path), self._pid)
        self._locks.add(path)
        return SimLock(self._locks, path)

    def boot_id(self) -> bytes:
        """Return 16 bytes that change with each boot of the machine."""
        return self._boot.to_bytes(16, "big")

    # --- for tests ---------------------------------------------------------------------------------------------

    def peek(self, path: Path) -> bytes:
        """Return a file's bytes; no operation."""
        return bytes(self._names[path].current)

    def damage(self, path: Path, offset: int, data: bytes) -> None:
        """Change bytes behind the product's back, on disk and in memory."""
        for content in (self._names[path].current, self._names[path].synced):
            _write(content, offset, data)

    @property
    def used(self) -> int:
        """What all files together hold; no operation."""
        return sum(len(content.current) for content in self._names.values())

    def files(self) -> list[Path]:
        """Return all files, sorted; no operation."""
        return sorted(self._names)

    def _need_folder(self, folder: Path) -> None:
        if folder not in self._folders:
            raise FileNotFoundError(folder)

    def _room(self) -> int | None:
        return None if self.quota_bytes is None else max(0, self.quota_bytes - self.used)

    def _need_room(self, path: Path, size: int) -> None:
        room = self._room()
        if room is not None and size > room:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def _change_names(self, *changes: NameChange) -> None:
        for path, content in changes:
            _rename(self._names, path, content)
        self._pending_names.append(list(changes))


class SimFile:
    """One open file."""

    def __init__(self, disk: SimDisk, path: Path, content: _Content, *, writable: bool) -> None:
        self._disk, self._path, self._content, self._writable = disk, path, content, writable

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset*."""
        self._disk.operate("read", self._path)
        return bytes(self._content.current[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*; a crash here leaves some of it."""
        assert self._writable, f"{self._path} is open for reading"
        alive = not self._disk.dead
        try:
            self._disk.operate("write", self._path)
        except Crash:
            if alive:  # this is the write that the process died in
                self._content.write(offset, data[: self._disk._random.randint(0, len(data))])  # noqa: SLF001 - one unit
            raise
        growth = offset + len(data) - len(self._content.current)
        room = self._disk._room()  # noqa: SLF001 - one unit
        if room is not None and growth > room:
            self._content.write(offset, data[: max(0, len(data) - growth + room)])
            self._disk._need_room(self._path, growth)  # noqa: SLF001 - one unit
        self._content.write(offset, data)

    def sync(self) -> None:
        """Make what was written durable, unless the hook refuses: then it never is."""
        try:
            self._disk.operate("sync", self._path)
        except OSError:
            self._content.pending.clear()
            raise
        self._content.sync()

    def size(self) -> int:
        """Return the file's length in bytes."""
        self._disk.operate("size", self._path)
        return len(self._content.current)

    def truncate(self, size: int) -> None:
        """Cut or extend the file."""
        self._disk.operate("truncate", self._path)
        self._content.truncate(size)

    def close(self) -> None:
        """Nothing is left open in memory."""


class SimCell:
    """Eight bytes."""

    def __init__(self, disk: SimDisk, path: Path, content: _Content) -> None:
        self._disk, self._path, self._content = disk, path, content
        self._watches: list[Callable[[], None]] = []

    def load(self) -> int:
        """Return the value that was stored last."""
        return self._content.cell

    def store(self, value: int) -> None:
        """Publish *value*, and call the watchers."""
        self._disk.operate("store", self._path)
        self._content.cell = value
        if self._disk._random.random() < 0.5:  # noqa: SLF001 - one unit
            self._content.written_back = value
        for wake in list(self._disk._watchers.get(self._path, ())):  # noqa: SLF001 - one unit
            wake()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call *wake* after each store; returns what ends that."""
        watchers = self._disk._watchers.setdefault(self._path, [])  # noqa: SLF001 - one unit

        def end() -> None:
            if wake in watchers:
                watchers.remove(wake)

        watchers.append(wake)
        self._watches.append(end)
        return end

    def close(self) -> None:
        """End all watches."""
        while self._watches:
            self._watches.pop()()


class SimLock:
    """A lock that is held."""

    def __init__(self, locks: set[Path], path: Path) -> None:
        self._locks, self._path, self._held = locks, path, True

    def release(self) -> None:
        """Give it up; harmless when repeated."""
        if self._held:
            self._locks.discard(self._path)
        self._held = False


def _rename(names: dict[Path, _Content], path: Path, content: _Content | None) -> None:
    if content is None:
        names.pop(path, None)
    else:
        names[path] = content


def _apply(data: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        _truncate(data, change)
    else:
        _write(data, *change)


def _write(data: bytearray, offset: int, new: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def _truncate(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def _write_some_sectors(data: bytearray, offset: int, new: bytes, random: Random) -> None:
    start = 0
    while start < len(new):
        end = min(len(new), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
        if random.random() < 0.5:
            _write(data, offset + start, new[start:end])
        start = end
