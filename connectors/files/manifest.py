"""The manifest of a pattern: which bytes of which file stand at which offset, once and for all.

Files that match a pattern are read as one partition: the pieces of files in the order in which they were found. An
offset is a position in all of them laid end to end. What was found when depends on timing, so it is decided once and
written down here, before a byte of it is read:

    DATA/sources/<hash of the pattern>.files      one line for each look that found something, appended and synced

  (F1) A piece never changes, and later ones stand behind it: the same offset is the same line for ever.
  (F2) A piece ends behind a line. A file that grows gets another piece for what is new.
  (F3) A piece is given to a reader only when its line in the manifest is durable.

The manifest belongs to the pattern in its data folder, not to a job: a job that follows another one's journal must mean
the same lines by the same offsets.

If we crash: the last line of the manifest may be torn. Nobody has read what it names (F3); it is cut, and the next look
finds those files again, maybe others with them. A line that does not check out before the last one is damage.

A piece keeps a checksum of the first bytes of its file and of its own last bytes. It tells another file in the place
of the one that was read from the same file, without reading all of it; a change in the middle is not noticed.
"""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from streamactors.core.errors import Damaged, UsageError
from streamactors.core.ports import Disk

from .lines import unpacked

CHECKED_BYTES = 1_024
"""Bytes at the begin of a file and at the end of a piece whose checksums tell one file from another: enough for
headers and a few lines with times in them, in one read each."""

SETTLED_MS = 1_000
"""A last line without a newline counts when its file has not changed for so long: longer than a writer pauses inside a
line, shorter than anyone waits for the end of a finished file."""


class Piece(msgspec.Struct, frozen=True):
    """Bytes of one file that are read together."""

    path: str  # below the folder of the pattern
    start: int  # byte of the file
    end: int
    head: int  # checksum of the first bytes of the file, as far as ``end``
    tail: int  # checksum of the last bytes before ``end``


class Manifest:
    """The pieces that are known. Its methods read and write files: call them in a thread."""

    def __init__(self, source: str, pattern: Path, path: Path, disk: Disk) -> None:
        self.folder, self._pattern = _divided(pattern)
        self.path = path
        self._source = source
        self._disk = disk
        self._pieces: list[Piece] = []
        self._bases: list[int] = []  # offset of each
        self._ends: dict[str, int] = {}  # by path: how far the file was found
        self._size = 0  # of the file of the manifest, as far as it was read
        self.end = 0
        """Offset behind the last piece."""

    def at(self, offset: int) -> tuple[Piece, int]:
        """Return the piece that holds *offset*, and its base."""
        assert offset < self.end, f"F1: offset {offset} of {self.path}, which ends at {self.end}"
        index = bisect_right(self._bases, offset) - 1
        return self._pieces[index], self._bases[index]

    def file(self, piece: Piece) -> Path:
        """Return the path of a piece's file."""
        return self.folder / piece.path

    def look(self, now_ms: Callable[[], int]) -> bool:
        """
        Note what is new; return whether something may follow soon: a line that is not finished.

        Raises:
            UsageError: the folder of the pattern is not there.

            Damaged: a file is shorter than it was, or the manifest does not check out.
        """
        if not self.folder.is_dir():
            raise UsageError(f"source {self._source}: there is no folder {self.folder}. Check the pattern.")
        self._disk.make_folder(self.path.parent)
        lock = self._disk.lock(self.path.with_name(self.path.name + ".lock"))
        try:
            self._load()
            found, unfinished = self._found(now_ms)
            if found:
                self._append(found)
        finally:
            lock.release()
        return unfinished

    def load(self) -> None:
        """Take over what is written down."""
        if self._disk.exists(self.path):
            self._load()

    def check(self, pieces: Iterable[Piece] | None = None) -> None:
        """Raise Damaged when a file of *pieces*, by default of all, is not the one that was found."""
        for piece in self._pieces if pieces is None else pieces:
            path = self.file(piece)
            try:
                with path.open("rb") as file:
                    same = (_head(file, piece.end), _tail(file, piece.end)) == (piece.head, piece.tail)
                    size = os.fstat(file.fileno()).st_size
            except FileNotFoundError:
                raise self._damaged(path, "is not there any more") from None
            if size < piece.end:
                raise self._damaged(path, f"has {size} bytes, and {piece.end} were found before")
            if not same:
                raise self._damaged(path, f"is not the file whose bytes {piece.start} to {piece.end} were found before")

    def _damaged(self, path: Path, what: str) -> Damaged:
        return Damaged(
            f"source {self._source}: {path} {what}. What was read of it could not be read again, and the result would "
            "no longer be a function of the input. Put it back as it was; or start the job anew under another name, "
            f"without {self.path}."
        )

    def _found(self, now_ms: Callable[[], int]) -> tuple[list[Piece], bool]:
        """Return the new pieces, sorted by path, and whether a line is being written."""
        pieces, unfinished = [], False
        for name in sorted(glob.glob(self._pattern, root_dir=self.folder, recursive=True)):  # noqa: PTH207 - names, not paths
            path = unpacked(self.folder / name, self._source)
            known = self._ends.get(name, 0)
            try:
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    if status.st_size < known:
                        raise self._damaged(path, f"has {status.st_size} bytes, and {known} were found before")
                    settled = not 0 <= now_ms() - status.st_mtime_ns // 1_000_000 < SETTLED_MS
                    whole = _line_end(file, known, status.st_size)
                    end = status.st_size if settled else whole
                    unfinished |= end < status.st_size
                    if end > known:
                        pieces.append(Piece(_text(name), known, end, _head(file, end), _tail(file, end)))
            except FileNotFoundError:
                continue  # removed while we looked
        return pieces, unfinished

    # --- the manifest's own file --------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Take over what was appended since the last time."""
        if not self._disk.exists(self.path):
            if self._size:
                raise Damaged(f"source {self._source}: {self.path} is not there any more. Restore it from a copy.")
            return
        file = self._disk.open(self.path)
        try:
            text = file.read(self._size, file.size() - self._size)
        finally:
            file.close()
        lines = text.split(b"\n")
        for number, line in enumerate(lines[:-1]):
            pieces = _decoded(line)
            if pieces is None:
                if any(_decoded(later) is not None for later in lines[number + 1 : -1]):
                    raise Damaged(
                        f"source {self._source}: {self.path} does not check out at byte {self._size}. It says which "
                        "bytes stand at which offset; restore it from a copy."
                    )
                return  # torn in a crash: nobody has read what it names (F3)
            self._take(pieces, len(line) + 1)

    def _take(self, pieces: list[Piece], size: int) -> None:
        self._size += size
        for piece in pieces:
            self._pieces.append(piece)
            self._bases.append(self.end)
            self._ends[piece.path] = piece.end
            self.end += piece.end - piece.start

    def _append(self, pieces: list[Piece]) -> None:
        line = _encoded(pieces)
        created = not self._disk.exists(self.path)
        file = self._disk.open(self.path, write=True, create=created)
        try:
            file.truncate(self._size)
            file.write(self._size, line)
            file.sync()
        finally:
            file.close()
        if created:
            self._disk.sync_folder(self.path.parent)
        self._take(pieces, len(line))


def _encoded(pieces: list[Piece]) -> bytes:
    body = msgspec.json.encode(pieces)
    return b"%08x %b\n" % (crc32(body), body)


def _decoded(line: bytes) -> list[Piece] | None:
    check, _, body = line.partition(b" ")
    if check != b"%08x" % crc32(body):
        return None
    return msgspec.json.decode(body, type=list[Piece])


def _divided(pattern: Path) -> tuple[Path, str]:
    """Return the folder before the first part with a wildcard, and the pattern below it."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first]), str(Path(*parts[first:]))


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name of file {name!r} is no UTF-8. Rename it.") from None
    return name


def _line_end(file: Any, start: int, end: int) -> int:
    """Return the position behind the last newline between *start* and *end*, or *start*."""
    while end > start:
        first = max(start, end - 64 * CHECKED_BYTES)
        file.seek(first)
        at = file.read(end - first).rfind(b"\n")
        if at >= 0:
            return int(first + at + 1)
        end = first
    return start


def _head(file: Any, end: int) -> int:
    file.seek(0)
    return crc32(file.read(min(CHECKED_BYTES, end)))


def _tail(file: Any, end: int) -> int:
    file.seek(max(0, end - CHECKED_BYTES))
    return crc32(file.read(min(CHECKED_BYTES, end)))
