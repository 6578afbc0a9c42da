"""Reading segments: from an offset to chunks, and from an append time to an offset. Synchronous; runs in lane "read".

A reader holds one file open and goes from frame to frame; it never looks at what stands at or past the durable end
(L1). Each frame's checksums are verified once, when it is read. A frame before the durable end that does not check out
is bit rot: ``Damaged``, with file and position, never a gap.

Finding an offset: the segments' names say which file, then headers are hopped from the nearest known place. Such
places are remembered, one for each INDEX_EVERY_BYTES, by all that passes them; so a segment is hopped through at most
once, and opening a large partition reads a directory and part of one segment.

A segment may be exchanged for one with tombstones (erasure.py), which has another id and other positions. Who stands in
the old file reads it to its end, then goes on in the new one; so places belong to the id, not to the name. Tombstones
are passed over: chunks have gaps there, and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from streamactors.core.errors import Damaged, StorageError, UsageError
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.core.ports import Disk, File

from .chunk import Chunk
from .frames import ERASED, Column, FrameHeader, Records, any_there, decode_records
from .segment import (
    HEAD_BYTES,
    READ_BYTES,
    FrameAt,
    SegmentHead,
    decode_head,
    segment_bases,
    segment_name,
    walk,
    walk_headers,
)

INDEX_EVERY_BYTES = 256 * 1024
"""Bytes between two remembered places: hopping from one to the next is one or a few reads."""

SMALL_FRAME_RECORDS = 256
"""Records below which neighbouring frames become one chunk, up to a batch: single appends read as fast as bulk."""


class Places:
    """Where some offsets stand: for each segment, by its id, ascending (offset, position) of frames."""

    def __init__(self) -> None:
        self._segments: dict[bytes, list[tuple[int, int]]] = {}

    def note(self, segment: SegmentHead, offset: int, position: int) -> None:
        """Remember that a frame starting with *offset* stands at *position*, if that is far from the last place."""
        places = self._segments.setdefault(segment.id, [(segment.base, HEAD_BYTES)])
        if position >= places[-1][1] + INDEX_EVERY_BYTES:
            places.append((offset, position))

    def before(self, segment: SegmentHead, offset: int) -> int:
        """Return the greatest known position that is not behind *offset*."""
        places = self._segments.get(segment.id, [(segment.base, HEAD_BYTES)])
        return places[max(0, bisect_right(places, offset, key=lambda place: place[0]) - 1)][1]


class SegmentReader:
    """Reads one partition's frames in order, over all its segments."""

    def __init__(self, disk: Disk, folder: Path, places: Places) -> None:
        self._disk = disk
        self._folder = folder
        self._places = places
        self._file: File | None = None
        self._head = SegmentHead(b"", 0, 0)
        self._position = 0  # of the next frame
        self._offset = -1  # that it starts with; -1: nowhere

    @property
    def offset(self) -> int:
        """The offset behind what was read last, tombstones among it."""
        return self._offset

    def read(self, offset: int, end: int) -> list[Chunk]:
        """
        Return about READ_BYTES of chunks from *offset* on, and nothing at or past *end*.

        None at all: there are only tombstones up to ``self.offset``.
        """
        try:
            return self._chunks(offset, end)
        except OSError as error:
            raise StorageError(
                f"{self._folder} can't be read from offset {offset}, position {self._position}: {error}. Check who "
                "owns the files, and the disk; what can't be read any more, restore from a copy."
            ) from error

    def _chunks(self, offset: int, end: int) -> list[Chunk]:
        if offset != self._offset:
            self._seek(offset)
        found: list[FrameAt] = []
        size = 0
        while not found and self._offset < end:
            for frame in walk(self._read, self._head.id, self._position):
                if frame.header.first != self._offset:
                    break
                self._pass(frame)
                size += frame.header.length
                if frame.header.count and frame.header.end > offset:
                    found.append(frame)
                if size >= READ_BYTES or self._offset >= end:
                    break
            else:
                if not found:
                    self._next_segment()
                continue
            if not found and size < READ_BYTES and self._offset < end:
                raise self._damaged()
        return [chunk.from_offset(offset) for chunk in _chunks(found) if chunk.end > offset]

    def time_at(self, offset: int) -> int:
        """Return the append time of the record at *offset*, which is durable; of a tombstone too."""
        self._seek(offset)
        return next(self._headers(self._position))[1].time

    def offset_at(self, time: int, end: int) -> int:
        """Return the offset of the first record before *end* with append time >= *time*, or *end*."""
        bases = [base for base in segment_bases(self._disk.names(self._folder)) if base < end]
        # A segment's head has the append time of the last record before it.
        index = bisect_right(range(1, len(bases)), time - 1, key=lambda i: self._open(bases[i]).time)
        if not bases:
            return end
        self._open(bases[index])
        for _, header in self._headers(HEAD_BYTES):
            if header.first >= end:
                break
            if header.count and header.time >= time:
                return header.first
        return min(end, bases[index + 1]) if index + 1 < len(bases) else end

    def first_offset(self) -> int:
        """Return the first offset that retention has left."""
        bases = segment_bases(self._disk.names(self._folder))
        return bases[0] if bases else 0

    def size(self) -> tuple[int, int]:
        """Return how many segments there are, and their bytes."""
        bases = segment_bases(self._disk.names(self._folder))
        total = 0
        for base in bases:
            file = self._disk.open(self._folder / segment_name(base))
            total += file.size()
            file.close()
        return len(bases), total

    def close(self) -> None:
        """Release the open file; harmless when repeated."""
        if self._file is not None:
            self._file.close()
        self._file, self._offset = None, -1

    def _read(self, position: int, size: int) -> bytes:
        assert self._file is not None, "a segment is open while it is read"
        return self._file.read(position, size)

    def _pass(self, frame: FrameAt) -> None:
        self._places.note(self._head, frame.header.first, frame.position)
        self._position, self._offset = frame.behind, frame.header.end

    def _seek(self, offset: int) -> None:
        bases = segment_bases(self._disk.names(self._folder))
        index = bisect_right(bases, offset) - 1
        if index < 0:
            raise UsageError(
                f"{self._folder}: offset {offset} is no longer there, retention has removed what stood before "
                f"{bases[0] if bases else 0}. Read from there, or restore the folder from a copy."
            )
        head = self._open(bases[index])
        for position, header in self._headers(self._places.before(head, offset)):
            self._position, self._offset = position, header.first
            if header.end > offset:
                return
            self._position, self._offset = position + header.length, header.end
        if self._offset < offset:
            raise self._damaged()

    def _headers(self, position: int) -> Iterator[tuple[int, FrameHeader]]:
        for place, header in walk_headers(self._read, self._head.id, position):
            self._places.note(self._head, header.first, place)
            yield place, header

    def _next_segment(self) -> None:
        offset = self._offset
        if offset == self._head.base:
            raise self._damaged()
        if self._disk.exists(self._folder / segment_name(offset)):
            self._open(offset)
        else:
            before = self._head.id
            self._seek(offset)  # says so if retention has removed it
            if self._head.id == before:
                raise self._damaged()

    def _open(self, base: int) -> SegmentHead:
        self.close()
        path = self._folder / segment_name(base)
        self._file = self._disk.open(path)
        self._head = decode_head(self._file.read(0, HEAD_BYTES), str(path))
        self._position, self._offset = HEAD_BYTES, base
        return self._head

    def _damaged(self) -> Damaged:
        assert self._file is not None, "a segment is open while it is read"
        if self._position >= self._file.size():
            return Damaged(
                f"{self._folder / segment_name(self._head.base)} ends at position {self._position}, and no segment "
                f"begins with offset {self._offset}, which was durable. Files were cut or removed; restore the "
                "partition's folder from a copy."
            )
        return Damaged(
            f"{self._folder / segment_name(self._head.base)} at position {self._position}: the frame of offset "
            f"{self._offset}, which was durable, does not check out. The disk returned other bytes than were written; "
            "restore the partition's folder from a copy."
        )


def _chunks(frames: list[FrameAt]) -> Iterator[Chunk]:
    """Yield the frames' records; small neighbouring frames as one chunk."""
    group: list[FrameAt] = []
    count = 0
    for frame in frames:
        erased = frame.header.flags & ERASED
        small = frame.header.count < SMALL_FRAME_RECORDS
        if group and (erased or not small or count + frame.header.count > BATCH_RECORDS_MAX):
            yield _chunk(group)
            group, count = [], 0
        if erased:
            yield from _live(frame)
            continue
        group.append(frame)
        count = count + frame.header.count if small else BATCH_RECORDS_MAX
    if group:
        yield _chunk(group)


def _chunk(frames: list[FrameAt]) -> Chunk:
    records = Records.join([decode_records(frame.header, frame.data, frame.at) for frame in frames])
    return Chunk.of(frames[0].header.first, records, tuple((frame.header.end, frame.header.time) for frame in frames))


def _live(frame: FrameAt) -> Iterator[Chunk]:
    """Yield what tombstones have left of a frame: a chunk for each run of records."""
    header = frame.header
    records = decode_records(header, frame.data, frame.at)
    values = records.column.values()
    keys = None if records.key_column is None else records.key_column.values()
    for live, run in groupby(range(header.count), key=lambda row: values[row] is not None):
        if live:
            rows = list(run)
            start, end = rows[0], rows[-1] + 1
            own = None if keys is None else keys[start:end]
            column = None if own is None or not any_there(own) else Column.of(own)
            left = Records(Column.of(values[start:end]), column)
            yield Chunk.of(header.first + start, left, ((header.first + end, header.time),))
