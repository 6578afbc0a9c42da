"""Erasing records: their places stay, their bytes go. Synchronous; for who holds the writer's lock of the partition.

The log never changes, and a person may ask for what is theirs to be removed. So a segment that holds such records is
written anew, beside the old one, and takes its name:

    1. find           which records, over all segments; nothing is changed
    2. register       an entry that names their offsets, as not done (register.py)
    3. each segment   a new file with a new id: head, tables, stamps, append times and all other records as they were;
                      the records that go are tombstones (frames.py). Synced, renamed over the old one, folder synced
    4. register       the entry is done
    5. torn files     what crashes have cut off is removed: it may hold anything

If we crash: each segment is the old one or the new one, and the next erasure of the same records finds what is left of
them, and completes the entry. A file ``.new`` without a name of its own is removed when the partition is next opened.

  (Z1) Offsets, counts, append times, producers and stamps are what they were. So positions, journals and checkpoints
       stay valid, and a retried append is still found.
  (Z2) A segment's id changes with its content, and with it every checksum: bytes of the old file are never taken for
       bytes of the new one (F1), and remembered places of the old one are not used in the new one.

A reader in another process that has the old file open reads it to its end, erased records among it: it began before.

What can't be promised here: the old file's blocks are given back to the file system, which overwrites them when it
needs them. Snapshots of it, backups, and a disk's own spare blocks are outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from streamactors.core.errors import NO_ROOM, Damaged, QuotaFull, StorageError
from streamactors.core.ports import Disk, File

from .appender import attach_cell, open_appender
from .frames import decode_extras, decode_records, encode_frame, move_frame
from .register import Erasure, Range, ranges_of, read_register, write_register
from .segment import (
    HEAD_BYTES,
    UNFINISHED,
    FrameAt,
    SegmentHead,
    decode_head,
    encode_head,
    segment_bases,
    segment_name,
    walk,
)

Goes = Callable[[bytes | None, bytes], bool]
"""Whether the record with this key and value is to go."""

_TORN = ".torn"


@dataclass(slots=True)
class Found:
    """What is to go from a partition, or has gone."""

    segments: dict[int, list[int]] = field(default_factory=dict)
    """Base of each segment that holds some → their offsets."""

    erased: set[int] = field(default_factory=set)
    """Offsets whose records had gone before."""

    bytes: int = 0
    """Of their values and keys."""

    torn: list[str] = field(default_factory=list)
    """Names of files that go because nobody knows what they hold."""

    torn_bytes: int = 0

    @property
    def offsets(self) -> list[int]:
        """Of all that goes, ascending."""
        return [offset for base in sorted(self.segments) for offset in self.segments[base]]

    @property
    def ranges(self) -> list[Range]:
        """The same, as ranges."""
        return ranges_of(self.offsets)


def find(disk: Disk, folder: Path, goes: Goes, new_id: Callable[[], str]) -> Found:
    """
    Return what ``erase`` would do now, and change nothing.

    A partition that nobody has opened since the machine started is recovered first, as any reader does it.
    """
    cell = attach_cell(disk, folder)
    if cell is None:
        open_appender(disk, folder, new_id).close()
        cell = attach_cell(disk, folder)
    assert cell is not None, f"{folder} was just opened"
    try:
        return _find(disk, folder, cell.load() - 1, goes)
    finally:
        cell.close()


def erase(disk: Disk, folder: Path, goes: Goes, new_id: Callable[[], str], now_ms: int) -> Found:
    """
    Erase the records of the partition in *folder* for which *goes* is true.

    Raises:
        Held: another process writes this partition; nothing was changed.

        QuotaFull: a segment and its successor have no room beside each other. Some may be done; do it again.

        Damaged, StorageError: a segment can't be read or written; those before it may be done.
    """
    appender = open_appender(disk, folder, new_id)
    try:
        found = _find(disk, folder, appender.offset, goes)
        _apply(disk, folder, found, new_id, now_ms)
    except OSError as error:
        _remove_unfinished(disk, folder)
        if error.errno in NO_ROOM:
            raise QuotaFull(
                f"the disk is full: a segment of {folder} could not be written anew ({error}). What was to be erased "
                "there is there still. Make room for one more segment, then do it again."
            ) from error
        raise StorageError(
            f"{folder}: a segment can't be written anew: {error}. What was to be erased there may be there still. "
            "Check who owns the folder, and the disk; then do it again."
        ) from error
    finally:
        appender.close()
    return found


def _apply(disk: Disk, folder: Path, found: Found, new_id: Callable[[], str], now_ms: int) -> None:
    register = read_register(disk, folder)
    offsets = set(found.offsets)
    if offsets:
        if not any(not entry.done and offsets <= _named(entry) for entry in register):
            register.append(Erasure(new_id(), now_ms, found.ranges))
            write_register(disk, folder, register)
        for base in sorted(found.segments):
            _rewrite(disk, folder, base, set(found.segments[base]), new_id)
    gone = offsets | found.erased
    open_entries = [entry for entry in register if not entry.done and _is_gone(entry, gone, _first(disk, folder))]
    if open_entries:
        for entry in open_entries:
            entry.done = True
        write_register(disk, folder, register)
    for name in found.torn:
        disk.remove(folder / name)
    if found.torn:
        disk.sync_folder(folder)


def _named(entry: Erasure) -> set[int]:
    return {offset for first, end in entry.offsets for offset in range(first, end)}


def _is_gone(entry: Erasure, gone: Collection[int], first_left: int) -> bool:
    return all(offset in gone or offset < first_left for first, end in entry.offsets for offset in range(first, end))


def _first(disk: Disk, folder: Path) -> int:
    return min(segment_bases(disk.names(folder)), default=0)


# Finding. -------------------------------------------------------------------------------------------------------------


def _find(disk: Disk, folder: Path, end: int, goes: Goes) -> Found:
    found = Found()
    names = disk.names(folder)
    bases = [base for base in segment_bases(names) if base < end]
    for base, behind in pairwise([*bases, end]):
        for frame in _frames(disk, folder / segment_name(base), behind):
            _look(frame, goes, base, found)
    found.torn = [name for name in names if name.endswith(_TORN)]
    found.torn_bytes = sum(_size(disk, folder / name) for name in found.torn)
    return found


def _look(frame: FrameAt, goes: Goes, base: int, found: Found) -> None:
    records = decode_records(frame.header, frame.data, frame.at)
    values = records.column.values()
    keys = [None] * len(values) if records.key_column is None else records.key_column.values()
    for offset, (key, value) in enumerate(zip(keys, values, strict=True), frame.header.first):
        if value is None:
            found.erased.add(offset)
        elif goes(key, value):
            found.segments.setdefault(base, []).append(offset)
            found.bytes += len(value) + len(key or b"")


def _frames(disk: Disk, path: Path, behind: int) -> Iterator[FrameAt]:
    """Yield a segment's frames up to offset *behind*; refuse one that can't be read so far."""
    file = disk.open(path)
    try:
        head = decode_head(file.read(0, HEAD_BYTES), str(path))
        reached, position = head.base, HEAD_BYTES
        for frame in walk(file.read, head.id, HEAD_BYTES):
            if frame.header.first != reached or reached >= behind:
                break
            yield frame
            reached, position = frame.header.end, frame.behind
        if reached < behind:
            raise Damaged(
                f"{path} at position {position}: the frame of offset {reached}, which was durable, does not check out. "
                "Nothing of this segment was changed; restore it from a copy, then do it again."
            )
    finally:
        file.close()


def _size(disk: Disk, path: Path) -> int:
    file = disk.open(path)
    try:
        return file.size()
    finally:
        file.close()


# Writing anew. --------------------------------------------------------------------------------------------------------


def _rewrite(disk: Disk, folder: Path, base: int, offsets: set[int], new_id: Callable[[], str]) -> None:
    path = folder / segment_name(base)
    unfinished = path.with_name(path.name + UNFINISHED)
    if disk.exists(unfinished):
        disk.remove(unfinished)
    source = disk.open(path)
    try:
        target = disk.open(unfinished, write=True, create=True)
        try:
            _copy(source, target, path, offsets, new_id)
            target.sync()
        finally:
            target.close()
    finally:
        source.close()
    disk.rename(unfinished, path)
    disk.sync_folder(folder)


def _copy(source: File, target: File, path: Path, offsets: set[int], new_id: Callable[[], str]) -> None:
    old = decode_head(source.read(0, HEAD_BYTES), str(path))
    head = SegmentHead(bytes.fromhex(new_id()), old.base, old.time)
    target.write(0, encode_head(head))
    position, reached = HEAD_BYTES, HEAD_BYTES
    for frame in walk(source.read, old.id, HEAD_BYTES):
        data = _without(frame, offsets, head.id, position)
        target.write(position, data)
        position += len(data)
        reached = frame.behind
    if reached != source.size():
        raise Damaged(
            f"{path} at position {reached}: what follows does not check out. Nothing of this segment was changed; "
            "restore it from a copy, then do it again."
        )


def _without(frame: FrameAt, offsets: set[int], segment: bytes, position: int) -> bytes:
    """Return a frame as it stands in the new segment."""
    header = frame.header
    rows = [offset - header.first for offset in range(header.first, header.end) if offset in offsets]
    if not rows:
        return move_frame(header, frame.data, frame.at, segment=segment, position=position)
    return encode_frame(
        decode_records(header, frame.data, frame.at).without(rows),
        first=header.first,
        time=header.time,
        extras=decode_extras(header, frame.data, frame.at),
        segment=segment,
        position=position,
    )


def _remove_unfinished(disk: Disk, folder: Path) -> None:
    with suppress(OSError):
        for name in disk.names(folder):
            if name.endswith(UNFINISHED):
                disk.remove(folder / name)
