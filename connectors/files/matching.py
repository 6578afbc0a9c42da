"""All files that match a pattern, and those that appear later, as one partition: ``json_lines("data/*.jsonl")``.

The number of partitions is fixed for the life of a job, and files come and go; so they are one partition, whose offsets
are positions in all of them laid end to end, in the order in which they were found (manifest.py). A first look takes
them sorted by path. While a job runs it looks again every LOOK_SECONDS; a bounded run reads what its start has found.

What a file may do:

    appear         it is read behind all that was found before; write it elsewhere and rename it into its place
    grow           what is new is read behind all that was found before, in whole lines
    end in a line  without a newline: it counts when the file has rested for a second
    shrink, be exchanged, vanish: Damaged, with its path, at the next start (a file that is being read: at once).
                   What was read must stay, because recovery and replay read it again. To throw old input away, pipe
                   the files into a topic, which has retention.

Compressed files are refused: there is no way to a byte position in one without unpacking all before it.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any
from zlib import crc32

from streamactors.core.batch import Batch
from streamactors.core.connectors import World
from streamactors.core.errors import Damaged, Held
from streamactors.core.ports import Ports

from .lines import Json, LineSource, Place, Stretch, Text
from .manifest import SETTLED_MS, Manifest

LANE = "sources"
"""Of the thread that looks for files: a folder with many takes a while."""

LOOK_SECONDS = 1.0
"""Between two looks while nothing is left to read: soon enough for files, and 10,000 of them cost 2 % of a core."""

HELD_SECONDS = 0.02
"""Before the next try while another process writes the manifest, which takes as long as a sync."""


def is_pattern(path: Path | str) -> bool:
    """Return whether *path* has wildcards and is not itself a file's name."""
    return glob.has_magic(str(path)) and not Path(path).exists()


class _Matching(LineSource):
    """What both sources share: the pattern, its manifest, and a reader of its pieces."""

    pattern: Path

    @property
    def place(self) -> str:
        """Which files: a checkpoint's offsets are positions in these and no others."""
        return str(self.pattern)

    async def ends(self, world: World) -> list[int]:
        """Look for files; return the offset behind all that was found."""
        manifest = self._manifest(world)
        if await look(manifest, world.ports):  # a line is being written: it is over soon, or it is none
            await world.ports.clock.sleep(SETTLED_MS / 1_000)
            await look(manifest, world.ports)
        await world.ports.threads.run(LANE, manifest.check)
        return [manifest.end]

    async def reader(self, world: World, partition: int, start: int) -> _MatchingReader:
        """Return a reader from offset *start*."""
        manifest = self._manifest(world)
        await world.ports.threads.run(LANE, manifest.load)
        if start > manifest.end:
            raise Damaged(
                f"source {self.id}: {manifest.path} knows {manifest.end} bytes of files, but {start} were read before. "
                "It was lost or exchanged; restore it from a copy, or start the job anew under another name."
            )
        return _MatchingReader(self, manifest, world.ports, start)

    def _manifest(self, world: World) -> Manifest:
        name = f"{crc32(str(self.pattern).encode()):08x}.files"
        return Manifest(self.id, self.pattern, world.data_dir / "sources" / name, world.ports.disk)


class MatchingTextLines(_Matching):
    """The lines of all text files (UTF-8) that match a pattern, without their ends."""

    def __init__(self, pattern: Path | str, *, id: str = "text") -> None:  # noqa: A002 - the field's name
        self.pattern = Path(pattern).absolute()
        self.id = id
        self.format = Text()

    def __str__(self) -> str:
        return f"lines of {self.pattern.name}"


class MatchingJsonLines(_Matching):
    """The JSON values in all files that match a pattern, one a line."""

    def __init__(self, pattern: Path | str, type: Any = None, *, id: str = "json") -> None:  # noqa: A002
        self.pattern = Path(pattern).absolute()
        self.id = id
        self.format = Json(type)

    def __str__(self) -> str:
        return f"JSON lines of {self.pattern.name}"


async def look(manifest: Manifest, ports: Ports) -> bool:
    """Let *manifest* look for files; see there."""
    while True:
        try:
            return await ports.threads.run(LANE, manifest.look, ports.clock.now_ms)
        except Held:
            await ports.clock.sleep(HELD_SECONDS)


class _MatchingReader:
    def __init__(self, source: _Matching, manifest: Manifest, ports: Ports, start: int) -> None:
        self._source = source
        self._manifest = manifest
        self._ports = ports
        self._next = start
        self._lines: Stretch | None = None

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        while self._lines is not None or self._next < self._manifest.end:
            if self._lines is None:
                self._lines = await self._open()
            got = await self._lines.read(records_max)
            if got is not None:
                self._next = got[1]
                return got
            await self._lines.close()
            self._lines = None
        return None

    async def _open(self) -> Stretch:
        piece, base = self._manifest.at(self._next)
        await self._ports.threads.run(LANE, self._manifest.check, [piece])
        place = Place(self._source.id, 0, self._manifest.file(piece), piece.start - base)
        return Stretch(place, self._source.format, self._next + place.shift, piece.end)

    def end(self) -> int:
        return self._manifest.end

    async def wait(self) -> None:
        while self._next >= self._manifest.end:
            await self._ports.clock.sleep(LOOK_SECONDS)
            await look(self._manifest, self._ports)

    async def close(self) -> None:
        if self._lines is not None:
            await self._lines.close()
