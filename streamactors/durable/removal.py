"""Removal of old segments: which of them may go, and taking them away. Synchronous.

What goes is always the oldest of a partition, and never its last segment, which the writer appends to and which holds
the tables (tables.py). So nobody has to hold the writer's lock for it: the writer never looks at an older segment
again, and a reader that stands in one is told, by the name that is missing, that retention has removed it. Two that
remove at once only find some of the work done.

If we crash on the way, fewer are removed, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from streamactors.core.ports import Disk

from .segment import HEAD_BYTES, decode_head, segment_bases, segment_name

MayGo = Callable[[int, int, int], bool]
"""Of a segment: the offset behind it, its last append time in ms, bytes from it to the partition's end."""


@dataclass(frozen=True, slots=True)
class OldSegment:
    """A segment that is not the last of its partition."""

    base: int
    end: int
    """Offset behind its last record."""

    time: int
    """Append time of its last record, ms."""

    bytes: int
    bytes_to_end: int
    """Its own, and those of all that follow it in the partition."""


def may_go(*, before_ms: int | None, bytes_max: int | None, needed: int | None) -> MayGo:
    """
    Return the rule of a retention.

    Args:
        before_ms: what was appended before this time may go.
        bytes_max: what lies more than this before the end may go.
        needed: nothing from this offset on may go, whatever the other two say.
    """

    def rule(end: int, time: int, size: int) -> bool:
        if needed is not None and end > needed:
            return False
        return (before_ms is not None and time < before_ms) or (bytes_max is not None and size > bytes_max)

    return rule


def removable(disk: Disk, folder: Path, rule: MayGo) -> list[OldSegment]:
    """Return the oldest segments of the partition in *folder*, as far as each of them may go."""
    found = []
    for segment in _old_segments(disk, folder):
        if not rule(segment.end, segment.time, segment.bytes_to_end):
            break
        found.append(segment)
    return found


def remove(disk: Disk, folder: Path, segments: list[OldSegment]) -> None:
    """Remove *segments*, oldest first."""
    for segment in segments:
        with suppress(FileNotFoundError):
            disk.remove(folder / segment_name(segment.base))
    if segments:
        disk.sync_folder(folder)


def _old_segments(disk: Disk, folder: Path) -> Iterator[OldSegment]:
    bases = segment_bases(disk.names(folder))
    sizes = [_size(disk, folder / segment_name(base)) for base in bases]
    behind = sum(sizes)
    for (base, following), size in zip(pairwise(bases), sizes, strict=False):
        # A segment's head has the append time of the last record before it.
        yield OldSegment(base, following, _time_before(disk, folder / segment_name(following)), size, behind)
        behind -= size


def _size(disk: Disk, path: Path) -> int:
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return 0
    try:
        return file.size()
    finally:
        file.close()


def _time_before(disk: Disk, path: Path) -> int:
    file = disk.open(path)
    try:
        return decode_head(file.read(0, HEAD_BYTES), str(path)).time
    finally:
        file.close()
