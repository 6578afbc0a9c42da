"""Lines of files that are named: one partition a file, offsets are byte positions of lines.

A file is read up to the length that it had when the job started; lines that were appended later are read at the next
start. (What grows while a job runs belongs into a topic, or is read by a pattern: see matching.py.) A last line without
a newline counts.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import add
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os
import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, Undecodable, World
from streamactors.core.errors import BadRecord, Damaged, RecordPlace, UsageError
from streamactors.core.limits import RECORD_BYTES_MAX

_BLOCK_BYTES = 256 * 1024
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip"}


# What a line means. ---------------------------------------------------------------------------------------------------


class Text:
    """Lines are text in UTF-8."""

    type: Any = str
    encoding: str | None = None
    """Of a line, where it is one that a topic knows."""

    decode_one: Callable[[bytes], Any] = staticmethod(bytes.decode)

    def decode(self, block: bytes, lines: list[bytes]) -> list[Any] | None:
        """Return the text of each of the lines of *block*, or None when one has none."""
        del block
        try:
            return list(map(bytes.decode, lines))
        except UnicodeDecodeError:
            return None


class Json:
    """Lines are JSON values of a type."""

    encoding: str | None = "json"

    def __init__(self, type: Any = None) -> None:  # noqa: A002 - the field's name
        self.type = type
        decoder = msgspec.json.Decoder(Any if type is None else type)
        self.decode_one: Callable[[bytes], Any] = decoder.decode
        self._decode_lines = decoder.decode_lines

    def decode(self, block: bytes, lines: list[bytes]) -> list[Any] | None:
        """Return the value of each of the lines of *block*, or None when one has none."""
        try:
            values = self._decode_lines(block)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return list(values) if len(values) == len(lines) else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the lines of a file stand in the partition."""

    source: str
    partition: int
    path: Path
    shift: int
    """Position in the file, minus offset."""

    def bad(self, offset: int, line: bytes, reason: str) -> BadRecord:
        """Return the error of a line that can't be read."""
        where = RecordPlace(self.source, self.partition, offset)
        return BadRecord(self.source, where, line, f"{reason} ({self.path}, byte {offset + self.shift})", 0)


# Reading a stretch of a file. -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Block:
    """Whole lines that were read together."""

    data: bytes
    lines: list[bytes]
    """Without their ends."""

    places: list[int]
    """Where each line begins in the file, and where what follows them does."""

    @classmethod
    def of(cls, data: bytes, start: int) -> _Block:
        """Split *data* at newlines only: a lone carriage return is part of a line."""
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        places = list(accumulate(map(add, map(len, lines), repeat(len(b"\n"))), initial=start))
        places[-1] = start + len(data)  # the last line of a file may have no end
        if b"\r" in data:
            lines = [line.rstrip(b"\r") for line in lines]
        return cls(data, lines, places)

    def split(self, count: int) -> tuple[_Block, _Block]:
        """Return the first *count* lines, fewer than there are, and the others."""
        size = self.places[count] - self.places[0]
        return (
            _Block(self.data[:size], self.lines[:count], self.places[: count + 1]),
            _Block(self.data[size:], self.lines[count:], self.places[count:]),
        )


class Stretch:
    """The lines of a file between two byte positions, read forward."""

    def __init__(self, place: Place, lines: Text | Json, start: int, end: int) -> None:
        """Begin at byte *start*; *end* is behind the last byte that belongs to it, newline or not."""
        self._place = place
        self._format = lines
        self._next = start  # position behind what was read
        self._end = end
        self._begun = b""  # of what was read, a line whose end was not
        self._ready: _Block | None = None  # of what was read, lines that there was no room for
        self._file: Any = None

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        """Return the next lines and the offset behind them; None at the end."""
        block, self._ready = self._ready or await self._read(), None
        if block is None:
            return None
        if len(block.lines) > records_max:
            block, self._ready = block.split(records_max)
        place = self._place
        places = [at - place.shift for at in block.places] if place.shift else block.places
        offsets, end = places[:-1], places[-1]
        origin = _LinesOrigin(place.source, place.partition, offsets, block.lines)
        values = self._format.decode(block.data, block.lines)
        if values is None:
            values = self._one_by_one(origin, end)
        return Batch(values, offsets=offsets, origin=origin, bytes=len(block.data)), end

    def _one_by_one(self, origin: _LinesOrigin, end: int) -> list[Any]:
        """Return the values, or raise Undecodable with those that there are."""
        values: list[Any] = []
        offsets: list[int] = []
        bad: list[tuple[BadRecord, Batch]] = []
        for line, offset in zip(origin.lines, origin.offsets, strict=True):
            try:
                values.append(self._format.decode_one(line))
                offsets.append(offset)
            except (ValueError, RecursionError) as error:  # ValueError: of UTF-8 and of msgspec
                found = self._place.bad(offset, line, f"{type(error).__name__}: {error}")
                found.__cause__ = error
                bad.append((found, Batch([line], offsets=[offset], origin=origin)))
        if bad:
            raise Undecodable(Batch(values, offsets=offsets, origin=origin, bytes=end - origin.offsets[0]), end, bad)
        return values

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            await self._file.close()

    async def _read(self) -> _Block | None:
        """Return the next whole lines; None at the end."""
        while self._next < self._end:
            start = self._next - len(self._begun)
            got = await self._bytes()
            if not got:
                raise Damaged(
                    f"source {self._place.source}: {self._place.path} ends at byte {self._next}; it had {self._end}. "
                    "It was cut while it was read. Put the old one back, then start again."
                )
            data, self._next = self._begun + got, self._next + len(got)
            whole = len(data) if self._next >= self._end else data.rfind(b"\n") + 1
            self._begun = data[whole:]
            if whole:
                return _Block.of(data[:whole], start)
            if len(data) > RECORD_BYTES_MAX:
                reason = f"a line of more than {RECORD_BYTES_MAX:,} bytes (limits.RECORD_BYTES_MAX)"
                raise self._place.bad(start - self._place.shift, data[:100], reason)
        return None

    async def _bytes(self) -> bytes:
        """Return the next bytes: about a block, more of a long line, and no more than one byte beyond the longest."""
        if self._file is None:
            self._file = await aiofiles.open(self._place.path, "rb", buffering=0)
            await self._file.seek(self._next)
        begun = len(self._begun)
        size = min(max(_BLOCK_BYTES, begun), max(1, RECORD_BYTES_MAX + 1 - begun), self._end - self._next)
        return bytes(await self._file.read(size))


@dataclass(frozen=True, slots=True)
class _LinesOrigin:
    source: str
    partition: int
    offsets: list[int]
    lines: list[bytes]

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.lines[bisect_left(self.offsets, offset)] for offset in offsets]


# The sources. ---------------------------------------------------------------------------------------------------------


class LineSource:
    """What all sources of lines share."""

    id: str
    format: Text | Json
    replay = Replay.BY_OFFSET

    @property
    def type(self) -> Any:
        """Of a value."""
        return self.format.type

    @property
    def encoding(self) -> str | None:
        """Of the original records."""
        return self.format.encoding


class _Files(LineSource):
    """What both sources share: paths, and readers of lines."""

    paths: Sequence[Path]

    @property
    def place(self) -> str:
        """Where the files are: a checkpoint's offsets are positions in these and no others."""
        return ", ".join(str(path.resolve()) for path in self.paths)

    async def ends(self, world: World) -> list[int]:
        """Return the lengths of the files, or refuse a path without a file."""
        for path in self.paths:
            if not await aiofiles.os.path.isfile(path):
                raise UsageError(f"source {self.id}: there is no file {path}. Check the path.")
        return [await aiofiles.os.path.getsize(path) for path in self.paths]

    async def reader(self, world: World, partition: int, start: int) -> _FileReader:
        """Return a reader from byte *start* of a file."""
        path = self.paths[partition]
        size = await aiofiles.os.path.getsize(path)
        if size < start:
            raise Damaged(
                f"source {self.id}: {path} has {size} bytes, but {start} were read before. The file was exchanged or "
                "cut. Put the old one back, or start the job anew under another name."
            )
        return _FileReader(Stretch(Place(self.id, partition, path, 0), self.format, start, size), size)


class TextLines(_Files):
    """The lines of text files (UTF-8), without their ends."""

    def __init__(self, *paths: Path | str, id: str = "text") -> None:  # noqa: A002 - the field's name
        self.paths = [unpacked(path, id) for path in paths]
        self.id = id
        self.format = Text()
        if not paths:
            raise UsageError("text_lines() was given no file. Name at least one.")

    def __str__(self) -> str:
        return f"lines of {', '.join(path.name for path in self.paths)}"


class JsonLines(_Files):
    """A file of JSON values, one a line."""

    def __init__(self, path: Path | str, type: Any = None, *, id: str = "json") -> None:  # noqa: A002
        self.paths = [unpacked(path, id)]
        self.id = id
        self.format = Json(type)

    def __str__(self) -> str:
        return f"JSON lines of {self.paths[0].name}"


def unpacked(path: Path | str, source: str) -> Path:
    """Return the path, or refuse a file that is packed: there is no way into its middle without reading all before."""
    if Path(path).suffix in PACKED:
        raise UsageError(
            f"source {source}: {path} is compressed. Files are read from byte positions, and a compressed one has "
            f"none: unpack it, or pipe it into a topic (`zcat {Path(path).name} | streamactors log append ...`)."
        )
    return Path(path)


class _FileReader:
    def __init__(self, lines: Stretch, size: int) -> None:
        self.read = lines.read
        self.close = lines.close
        self._size = size

    def end(self) -> int:
        return self._size

    async def wait(self) -> None:
        await asyncio.Event().wait()  # a file ends where it ended when the job started
