"""The machine's disk behind the Disk port: pread and pwrite, fdatasync, flock, and cells in shared memory.

A cell is a mapped file of eight bytes, read and written through a ``memoryview`` cast to "q": one aligned load or
store of the processor, so a reader in another process sees the old value or the new one. (``struct.pack_into`` copies
byte by byte, and lets readers see a mixture.)

What is mapped gets its blocks first, by a write: a mapped page that finds no block on a full disk ends the process
(SIGBUS), a write fails with an error.

A lock is ``flock`` on a file that stays: the kernel gives it up when its holder dies, however it dies, so a stale lock
takes itself over. The file is never removed, or two processes could hold locks on two files of one name.

Which processes of this machine look at a cell is unknown; they poll. Within this process, whoever watches a cell is
called when it is stored. The table of watchers belongs to the process, as the disk does: two RealDisk objects mean the
same files.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamactors.core.errors import Held

_CELL_BYTES = 8
_PID_DIGITS = 20
_watchers: defaultdict[str, dict[object, Callable[[], None]]] = defaultdict(dict)
_watchers_guard = threading.Lock()


class RealFile:
    """One open file descriptor."""

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = -1
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._path = path

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset*; fewer only at the end of the file."""
        with _named(self._path):
            return self._read(offset, size)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and (data := os.pread(self._fd, missing, offset + size - missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at *offset*."""
        with _named(self._path):
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def sync(self) -> None:
        """Return when all that was written is durable."""
        with _named(self._path):
            if sys.platform == "darwin":
                fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)  # there, fsync leaves the data in the drive's cache
            else:
                os.fdatasync(self._fd)

    def size(self) -> int:
        """Return the file's length in bytes."""
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        """Cut or extend the file to *size* bytes."""
        with _named(self._path):
            os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Release the descriptor; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"{self._path} was not closed", ResourceWarning, stacklevel=1)
            self.close()


class RealCell:
    """Eight bytes of a file, mapped into this process."""

    def __init__(self, path: Path, *, write: bool) -> None:
        fd = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(fd).st_size < _CELL_BYTES:
                if not write:
                    raise FileNotFoundError(f"{path} is being made")
                with _named(path):
                    os.pwrite(fd, bytes(_CELL_BYTES), 0)
            self._map = mmap.mmap(fd, _CELL_BYTES, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._view = memoryview(self._map).cast("q")
        self._name = os.path.realpath(path)
        self._watches: list[object] = []

    def load(self) -> int:
        """Return the value that was stored last, by whichever process."""
        return self._view[0]

    def store(self, value: int) -> None:
        """Publish *value* to all processes, and call this process's watchers."""
        self._view[0] = value
        with _watchers_guard:
            wakes = list(_watchers[self._name].values()) if self._name in _watchers else []
        for wake in wakes:
            wake()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call *wake*, in the storing thread, after each store by this process; returns what ends that."""
        token = object()
        with _watchers_guard:
            _watchers[self._name][token] = wake
        self._watches.append(token)
        return lambda: self._unwatch(token)

    def _unwatch(self, token: object) -> None:
        with _watchers_guard:
            watchers = _watchers.get(self._name, {})
            watchers.pop(token, None)
            if not watchers:
                _watchers.pop(self._name, None)

    def close(self) -> None:
        """Unmap; harmless when repeated."""
        while self._watches:
            self._unwatch(self._watches.pop())
        self._view.release()
        self._map.close()


class RealLock:
    """A file lock that is held."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, _PID_DIGITS, 0).strip()
            self.release()
            raise Held(str(path), int(holder) if holder.isdigit() else None) from None
        except BaseException:
            self.release()
            raise
        # One write of constant width: who is refused meanwhile reads a whole pid, at worst the one before. On a full
        # disk none may be written: then the message that somebody holds it lacks the pid, and the lock is as good.
        with suppress(OSError):
            os.pwrite(self._fd, f"{os.getpid():<{_PID_DIGITS - 1}}\n".encode(), 0)

    def release(self) -> None:
        """Give it up; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealDisk:
    """The Disk port over the operating system."""

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> RealFile:
        """Open a file; *create* makes it and fails if it is there."""
        flags = os.O_RDWR if write or create else os.O_RDONLY
        return RealFile(path, flags | os.O_CREAT | os.O_EXCL if create else flags)

    def exists(self, path: Path) -> bool:
        """Return whether a file or folder is there."""
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        """Return the sorted names in *folder*; empty when there is no such folder."""
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []

    def make_folder(self, folder: Path) -> None:
        """Make *folder* and its parents, durably."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self.sync_folder(path.parent)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in *folder* are durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give *old* the name *new*, replacing what had it."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def cell(self, path: Path, *, write: bool = False) -> RealCell:
        """Map the shared cell at *path*."""
        return RealCell(path, write=write)

    def lock(self, path: Path) -> RealLock:
        """Take the lock at *path*, or raise Held with the holder's pid."""
        return RealLock(path)

    def boot_id(self) -> bytes:
        """Return 16 bytes that change with each boot of the machine."""
        try:
            text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        except FileNotFoundError:
            text = subprocess.run(
                ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], check=True, capture_output=True, text=True
            ).stdout
        return bytes.fromhex(text.strip().replace("-", ""))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give the operating system's error the name of the file, which calls on a descriptor don't know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
