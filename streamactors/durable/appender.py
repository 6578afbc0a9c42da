"""The appender: one partition's files as their one writing process sees them.

Synchronous; all of it runs in the partition's lane, so its operations come one at a time and a simulation sees each of
them as a place to crash. What the files mean, (L1) to (L4), and what recovery decides is in segment.py.

What a failure leaves:

    write fails, disk full         cut back to where the frame began; nothing was written, the partition goes on
    any other failure, or a sync   the partition is closed: the kernel may have marked pages clean that are not on
                                   disk, so a second sync that succeeds would be a lie. Opening again recovers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from streamactors.core.errors import NO_ROOM, Damaged, LogClosed, QuotaFull, StorageError
from streamactors.core.ports import Cell, Disk, File, Lock

from .appends import Appends
from .frames import NOTHING, Records, encode_frame
from .removal import MayGo, removable, remove
from .segment import (
    CELL_PREFIX,
    DELETED,
    HEAD_BYTES,
    LOCK_NAME,
    READ_BYTES,
    UNFINISHED,
    Recovered,
    SegmentHead,
    cell_name,
    decode_head,
    encode_head,
    recover,
    segment_bases,
    segment_name,
)
from .tables import Tables

_log = logging.getLogger("streamactors.log")

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""Bytes at which a segment is full. Opening for writing checks the last segment whole (about 50 ms at this size), and
retention removes whole segments: so not more. Fewer would mean thousands of files in a partition of 100 GB."""

SEGMENT_FRAMES_MAX = 32_768
"""Frames at which a segment is full: with frames of one record, opening costs by the frame (about 4 µs)."""


class Appender:
    """The lock, the last segment and the cell of one partition. Made by ``open_appender``."""

    def __init__(self, disk: Disk, folder: Path, lock: Lock, cell: Cell, new_id: Callable[[], str]) -> None:
        self._disk = disk
        self._folder = folder
        self._lock = lock
        self._cell = cell
        self._new_id = new_id
        self._file: File
        self._head: SegmentHead
        self._position = 0  # where the next frame goes
        self._frames = 0  # in this segment
        self.offset = 0  # of the next record
        self.time = 0  # append time of the last record; never goes back
        self.tables = Tables()
        self.segment_bytes_max = SEGMENT_BYTES_MAX
        self.appends = Appends()

    def append(self, records: Records, extras: bytes, now_ms: int) -> int:
        """
        Write one frame, sync it, publish the new end (L4), and return the offset of the first record.

        Raises:
            QuotaFull: the disk is full; nothing was written.
            LogClosed: whether the frame is durable is not known; the partition takes no more.
        """
        if self._cell.load() == DELETED:
            raise LogClosed(
                f"{self._folder} was deleted by another process, by force, while this one wrote there. Nothing was "
                "written. Make the topic again, then append."
            )
        if self._full():
            self._guarded(self._roll, "a new segment", records)
        first, time = self.offset, max(self.time, now_ms)
        frame = encode_frame(
            records, first=first, time=time, extras=extras, segment=self._head.id, position=self._position
        )
        self._guarded(lambda: self._file.write(self._position, frame), "a write", records)
        try:
            self.appends.sync(self._file.sync)
        except OSError as error:
            raise self._closed("a sync", records, error) from error
        self.appends.note(records.count, len(frame))
        self._position += len(frame)
        self._frames += 1
        self.offset, self.time = first + records.count, time
        self._cell.store(self.offset + 1)
        return first

    def remove_segments(self, may_go: MayGo) -> int:
        """
        Remove segments, oldest first, while ``may_go(end offset, last append time, bytes from it to the end)``.

        The last segment stays. Returns how many went; a crash on the way leaves fewer removed, in the same order.
        """
        found = removable(self._disk, self._folder, may_go)
        remove(self._disk, self._folder, found)
        return len(found)

    def close(self) -> None:
        """Release files and lock; harmless when repeated."""
        if hasattr(self, "_file"):
            self._file.close()
        self._cell.close()
        self._lock.release()

    # --- opening -----------------------------------------------------------------------------------------------

    def recover(self, promised: int) -> None:
        """Bring the folder to the state in which appends may begin, and publish its end."""
        names = self._disk.names(self._folder)
        for name in names:
            if name.endswith(UNFINISHED):
                self._disk.remove(self._folder / name)
        bases = segment_bases(names)
        if bases:
            self._recover_last(bases[-1], promised)
        elif promised:
            raise Damaged(
                f"{self._folder} has no segments, but {promised:,} records were durable there. Somebody removed the "
                "files; restore them from a copy, or remove the folder."
            )
        else:
            self._begin_segment()
        self._disk.sync_folder(self._folder)
        self._cell.store(self.offset + 1)

    def _recover_last(self, base: int, promised: int) -> None:
        path = self._folder / segment_name(base)
        self._file = self._disk.open(path, write=True)
        self._head = decode_head(self._file.read(0, HEAD_BYTES), str(path))
        found = recover(self._file.read, self._file.size(), self._head, promised, str(path))
        if found.torn:
            self._save_torn(path, found)
            self._file.truncate(found.position)
        for position in range(found.rewrite, found.position, READ_BYTES):
            size = min(READ_BYTES, found.position - position)
            self._file.write(position, self._file.read(position, size))
        if found.torn or found.rewrite < found.position:
            self._file.sync()
        self._position, self._frames = found.position, found.frames
        self.offset, self.time, self.tables = found.offset, found.time, found.tables

    def _save_torn(self, path: Path, found: Recovered) -> None:
        """Keep what is about to be cut: whoever wonders later can look at it."""
        torn = path.with_name(f"{path.name}.{found.position}.torn")
        if self._disk.exists(torn):
            self._disk.remove(torn)
        file = self._disk.open(torn, write=True, create=True)
        try:
            file.write(0, self._file.read(found.position, found.torn))
            file.sync()
        finally:
            file.close()
        self._disk.sync_folder(self._folder)
        _log.warning(
            "%d bytes behind the last whole frame of %s are moved to %s: an append was interrupted, and its caller was "
            "told of nothing. The file may be removed",
            found.torn,
            path,
            torn.name,
        )

    # --- segments ----------------------------------------------------------------------------------------------

    def _full(self) -> bool:
        # A segment of frames without records can't be followed by another: both would have the same name.
        past = self._position >= self.segment_bytes_max or self._frames >= SEGMENT_FRAMES_MAX
        return past and self.offset > self._head.base

    def _roll(self) -> None:
        before = self._file
        self._begin_segment()
        before.close()

    def _begin_segment(self) -> None:
        head = SegmentHead(bytes.fromhex(self._new_id()), self.offset, self.time)
        extras = self.tables.encode()
        start = encode_head(head) + encode_frame(
            NOTHING, first=self.offset, time=self.time, extras=extras, segment=head.id, position=HEAD_BYTES
        )
        path = self._folder / segment_name(self.offset)
        unfinished = path.with_name(path.name + UNFINISHED)
        if self._disk.exists(unfinished):
            self._disk.remove(unfinished)
        file = self._disk.open(unfinished, write=True, create=True)
        try:
            file.write(0, start)
            file.sync()
            self._disk.rename(unfinished, path)
            self._disk.sync_folder(self._folder)
        except BaseException:
            file.close()
            raise
        self._file, self._head = file, head
        self._position, self._frames = len(start), 1

    # --- failures ----------------------------------------------------------------------------------------------

    def _guarded(self, write: Callable[[], None], what: str, records: Records) -> None:
        try:
            write()
        except OSError as error:
            if error.errno in NO_ROOM and self._cut_back():
                raise QuotaFull(
                    f"the disk is full: {self._folder}, offset {self.offset}. None of {records.count:,} records was "
                    "written, the log stays readable. Make room (retention removes old segments), then append again."
                ) from error
            raise self._closed(what, records, error) from error

    def _cut_back(self) -> bool:
        try:
            self._file.truncate(self._position)
        except OSError:
            return False
        return True

    def _closed(self, what: str, records: Records, error: OSError) -> LogClosed:
        return LogClosed(
            f"{what} failed in {self._folder} ({error}). Whether the {records.count:,} records from {self.offset} on "
            "are durable is not known. The next append opens the files again, which recovers; repeat this one with its "
            "producer and sequence."
        )


def open_appender(disk: Disk, folder: Path, new_id: Callable[[], str]) -> Appender:
    """
    Take the writer's lock, recover, publish the durable end, and return the appender.

    Raises:
        Held: another process writes this partition.
        QuotaFull: the disk has no room for what opening writes. Nothing durable has changed.
        Damaged: bytes that were durable are not there as they were written.
        StorageError: a file can't be read or written.
    """
    try:
        return _open(disk, folder, new_id)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise QuotaFull(
                f"the disk is full: {folder} can't be opened for appends ({error}). Nothing that was durable has "
                "changed, the log stays readable. Make room (retention removes old segments), then append again."
            ) from error
        raise StorageError(
            f"{folder} can't be opened for appends: {error}. Nothing that was durable has changed. Check who owns the "
            "folder, and the disk."
        ) from error


def _open(disk: Disk, folder: Path, new_id: Callable[[], str]) -> Appender:
    lock = disk.lock(folder / LOCK_NAME)
    try:
        name = cell_name(disk.boot_id())
        promised, earlier = _promised(disk, folder)
        appender = Appender(disk, folder, lock, disk.cell(folder / name, write=True), new_id)
    except BaseException:
        lock.release()
        raise
    try:
        appender.recover(promised)
        for path in earlier:
            if path.name != name:
                disk.remove(path)
    except BaseException:
        appender.close()
        raise
    return appender


def _promised(disk: Disk, folder: Path) -> tuple[int, list[Path]]:
    """Return the offset up to which all is known to have been durable, and the cells that say so."""
    paths = [folder / name for name in disk.names(folder) if name.startswith(CELL_PREFIX)]
    promised = 0
    for path in paths:
        try:
            cell = disk.cell(path)
        except FileNotFoundError:  # made, and not yet of full length
            continue
        promised = max(promised, cell.load() - 1)
        cell.close()
    return promised, paths


def attach_cell(disk: Disk, folder: Path) -> Cell | None:
    """Return the cell of this boot, or None when nothing was published in it yet."""
    path = folder / cell_name(disk.boot_id())
    if not disk.exists(path):
        return None
    try:
        cell = disk.cell(path)
    except FileNotFoundError:
        return None
    if cell.load() > 0:
        return cell
    cell.close()
    return None
