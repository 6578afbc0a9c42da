"""The register: which records of a partition were erased, and when; never whose they were.

A tombstone says that a record is gone, not since when. Who compares two results, one of them from before, must know: so
each erasure leaves an entry here, with a random id, its time and its offsets. Nothing in it tells the key, not even a
digest: ids are few enough to be tried out one by one.

The file, ``erasures.json`` in the partition's folder, is replaced whole: written beside, synced, renamed. An entry is
written before the first record goes, as not done, and as done behind the last one. So no tombstone is without an entry;
if we crash between the two, the entry names records that are still there, says so, and the next erasure that removes
them completes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from streamactors.core.errors import Damaged
from streamactors.core.ports import Disk

from .segment import UNFINISHED
from .whole import replace_whole

FILE = "erasures.json"

_FORMAT = 1

Range = tuple[int, int]
"""(first offset, offset behind the last)"""


class Erasure(msgspec.Struct):
    """Some records of a partition that were erased together."""

    id: str
    at_ms: int
    offsets: list[Range]
    done: bool = False
    """False: it was not completed; some of the records may be there still."""

    @property
    def records(self) -> int:
        """How many records it names."""
        return sum(end - first for first, end in self.offsets)


class _Register(msgspec.Struct):
    erasures: list[Erasure]
    format: int = _FORMAT


def read_register(disk: Disk, folder: Path) -> list[Erasure]:
    """Return what was erased from the partition in *folder*, oldest first."""
    path = folder / FILE
    if not disk.exists(path):
        return []
    file = disk.open(path)
    try:
        found = msgspec.json.decode(file.read(0, file.size()), type=_Register)
    except msgspec.DecodeError as error:
        raise Damaged(
            f"{path} can't be read: {error}. Restore it from a copy; or remove it, then nobody knows any more when "
            "records were erased here."
        ) from error
    finally:
        file.close()
    return found.erasures


def write_register(disk: Disk, folder: Path, erasures: list[Erasure]) -> None:
    """Replace the register of the partition in *folder*, durably; for who holds the writer's lock."""
    data = msgspec.json.encode(_Register(erasures)) + b"\n"
    replace_whole(disk, folder / (FILE + UNFINISHED), folder / FILE, data)


def ranges_of(offsets: Iterable[int]) -> list[Range]:
    """Return ascending *offsets* as ranges."""
    ranges: list[Range] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
    return ranges
