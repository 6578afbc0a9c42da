"""Segments: what a folder of files means, and what to do with a tail that does not check out. Pure.

A partition is a folder:

    00000000000000000000.segment       frames, from the offset in its name on; the last one grows, the others are final
    00000000000000081920.segment
    durable_end.<boot id>              the shared cell: 1 + the offset up to which all is durable; 0: not published yet
    writer.lock                        held by the one writing process, its pid inside
    <segment>.<position>.torn          what a crash left of a write that nobody was told of

A segment gets its name only when its head and its first frame (the tables) are durable, so a name stands for a whole
beginning. A cell belongs to one boot of the machine: within it, published means synced. The cell of an earlier boot is
only a lower bound, since the machine may have stopped before it was written back.

  (L1) Nobody reads at or past the durable end.
  (L2) Before a write begins, all that stands before it is synced: one write is in flight.
  (L3) A write is one frame.
  (L4) An append returns only after the sync.

Recovery. A process that was killed leaves at most one frame past the durable end, whole or not, and not known to be on
disk. A power cut leaves of it all, nothing, or some sectors (L2, L3). So a whole frame past the end is written anew and
synced: somebody may have been about to be told of it, and a failed sync may have marked its pages clean. The first
place that does not check out ends the log; the rest goes to a .torn file. No caller was told of it (L4).

Two findings are not a torn write but bit rot, and cutting would drop records that were promised: a bad frame before the
durable end, and a whole frame *behind* a bad one (by L2 the bad one was synced before the other was begun). Then
recovery refuses and names file and position.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

from streamactors.core.errors import Damaged, StorageError
from streamactors.core.formats import newer

from .frames import MAGIC, FrameHeader, body_checks_out, decode_extras, decode_header
from .tables import Tables

READ_BYTES = 256 * 1024
"""Bytes read in one go. Fewer: the hand-over to a thread (about 60 µs) is more than a few percent of decoding them.
More: a buffer of 1 MiB goes back to the system each time, and comes back as 256 page faults (0.3 s for 400 MB)."""

DELETED = 1 << 62
"""What a cell shows when its topic was deleted: greater than any end, so that whoever waits for more wakes up and is
told. The file is without a name by then; only those who have mapped it see this."""

HEADERS_READ_BYTES = 64 * 1024
"""Bytes read in one go where only headers are wanted: many small frames, or the head of a large one."""

_HEAD = struct.Struct("<8sI16sqqI")
_HEAD_MAGIC = b"\xf5SAlog\r\n"
_HEAD_VERSION = 1
HEAD_BYTES = _HEAD.size

SUFFIX = ".segment"
CELL_PREFIX = "durable_end."
UNFINISHED = ".new"
LOCK_NAME = "writer.lock"

Read = Callable[[int, int], bytes]
"""Up to *size* bytes at an offset of the file: ``File.read``."""


def segment_name(base: int) -> str:
    """Return the file name of the segment that starts at offset *base*."""
    return f"{base:020d}{SUFFIX}"


def segment_bases(names: list[str]) -> list[int]:
    """Return the first offsets of the segments among *names*, ascending."""
    return sorted(int(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX))


def cell_name(boot: bytes) -> str:
    """Return the file name of the cell that is valid in this boot of the machine."""
    return CELL_PREFIX + boot.hex()


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """A segment's first bytes."""

    id: bytes  # 16 random bytes; seed of all its checksums (F1)
    base: int  # offset of its first record
    time: int  # append time of the last record before it, ms: no record in it is older


def encode_head(head: SegmentHead) -> bytes:
    """Return the bytes that a segment starts with."""
    checked = _HEAD.pack(_HEAD_MAGIC, _HEAD_VERSION, head.id, head.base, head.time, 0)[:-4]
    return checked + crc32(checked).to_bytes(4, "little")


def decode_head(data: bytes, where: str) -> SegmentHead:
    """Return the head at the start of *data*."""
    data = data[:HEAD_BYTES]
    if len(data) < HEAD_BYTES or crc32(data[:-4]).to_bytes(4, "little") != data[-4:] or data[:8] != _HEAD_MAGIC:
        raise _damaged(where, 0, "its head is not what was written")
    _, version, segment, base, time, _ = _HEAD.unpack(data)
    if version > _HEAD_VERSION:
        raise StorageError(newer(where, version, _HEAD_VERSION))
    return SegmentHead(segment, base, time)


@dataclass(slots=True)
class FrameAt:
    """A frame where it stands: ``data[at:]``, at *position* of the segment."""

    position: int
    header: FrameHeader
    data: bytes
    at: int

    @property
    def behind(self) -> int:
        """The position behind it."""
        return self.position + self.header.length


def walk(read: Read, segment: bytes, position: int) -> Iterator[FrameAt]:
    """Yield the frames from *position* on, checked whole; stop at the first place that holds none."""
    window, start = b"", position
    while True:
        at = position - start
        header = decode_header(window, at, segment, position)
        if header is None or at + header.length > len(window):
            window, start, at = read(position, max(READ_BYTES, header.length if header else 0)), position, 0
            header = decode_header(window, at, segment, position)
            if header is not None and header.length > len(window):
                window = read(position, header.length)
        if header is None or not body_checks_out(header, window, at):
            return
        yield FrameAt(position, header, window, at)
        position += header.length


def walk_headers(read: Read, segment: bytes, position: int) -> Iterator[tuple[int, FrameHeader]]:
    """Yield (position, header) from *position* on; bodies are neither read nor checked."""
    window, start = b"", position
    while True:
        header = decode_header(window, position - start, segment, position)
        if header is None:
            window, start = read(position, HEADERS_READ_BYTES), position
            header = decode_header(window, 0, segment, position)
        if header is None:
            return
        yield position, header
        position += header.length


@dataclass(slots=True)
class Recovered:
    """What recovery found in the last segment, and what is to be done before anything is appended."""

    tables: Tables
    position: int  # the end of what checks out: cut here
    offset: int  # the offset behind its last record
    time: int  # append time of its last record, ms
    frames: int
    rewrite: int  # write anew and sync from this position to *position*
    torn: int  # bytes behind *position*, to be moved to a .torn file


def recover(read: Read, size: int, head: SegmentHead, promised: int, where: str) -> Recovered:
    """
    Decide what is to be done with the last segment.

    Args:
        promised: an offset up to which all is known to have been durable.

    Raises:
        Damaged: bytes that were promised are not there as they were written.
    """
    state = Recovered(Tables(), HEAD_BYTES, head.base, head.time, 0, HEAD_BYTES, 0)
    for frame in walk(read, head.id, HEAD_BYTES):
        header = frame.header
        if header.first != state.offset:
            break
        state.tables.apply(decode_extras(header, frame.data, frame.at))
        state.position, state.offset, state.time = frame.behind, header.end, header.time
        state.frames += 1
        # A frame without records does not move the durable end, so the end can't say that it is synced. The first
        # one, the tables, was synced before the segment got its name.
        if state.frames == 1 or (header.count and header.end <= promised):
            state.rewrite = state.position
    state.torn = size - state.position
    if not state.frames:
        raise _damaged(where, HEAD_BYTES, "its first frame does not check out")
    if state.offset < promised:
        raise _damaged(where, state.position, f"offsets {state.offset} to {promised - 1} were durable")
    if state.torn > 0 and (intact := _intact_behind(read, size, head.id, state.position)):
        raise _damaged(where, state.position, f"a whole frame follows at {intact}, so what stands before it was synced")
    return state


def _intact_behind(read: Read, size: int, segment: bytes, position: int) -> int | None:
    """Return the position of a whole frame behind the bad one at *position*, if there is one."""
    position += 1
    while position < size:
        window = read(position, READ_BYTES)
        at = window.find(MAGIC)
        while at >= 0:
            if next(walk(read, segment, position + at), None) is not None:
                return position + at
            at = window.find(MAGIC, at + 1)
        if position + len(window) >= size or not window:
            return None
        position += len(window) - len(MAGIC) + 1
    return None


def _damaged(where: str, position: int, why: str) -> Damaged:
    return Damaged(
        f"{where} at position {position}: {why}. The disk returned other bytes than were written. Nothing was changed; "
        "restore the partition's folder from a copy, or remove it and take the loss."
    )
