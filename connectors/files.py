"""Text and JSON-lines files as sources: one partition a file, offsets are byte positions of lines.

A file is read up to the length that it had when the job started; lines that were appended later are read at the next
start. (What grows while a job runs belongs into a topic.) A last line without a newline counts.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os
import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, World
from streamactors.core.errors import BadRecord, Damaged, RecordPlace, UsageError
from streamactors.core.limits import RECORD_BYTES_MAX

_BLOCK_BYTES = 256 * 1024


class _Files:
    """What both sources share: paths, and readers of lines."""

    paths: Sequence[Path]
    id: str
    type: Any
    replay = Replay.BY_OFFSET

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

    async def reader(self, world: World, partition: int, start: int) -> _LinesReader:
        """Return a reader from byte *start* of a file."""
        path = self.paths[partition]
        size = await aiofiles.os.path.getsize(path)
        if size < start:
            raise Damaged(
                f"source {self.id}: {path} has {size} bytes, but {start} were read before. The file was exchanged or "
                "cut. Put the old one back, or start the job anew under another name."
            )
        return _LinesReader(self, partition, start, size)

    def decode(self, lines: list[bytes], place: RecordPlace, offsets: list[int]) -> list[Any]:
        """Return the value of each line."""
        raise NotImplementedError


class TextLines(_Files):
    """The lines of text files (UTF-8), without their ends."""

    def __init__(self, *paths: Path | str, id: str = "text") -> None:  # noqa: A002 - the field's name
        self.paths = [Path(path) for path in paths]
        self.id = id
        self.type = str
        if not paths:
            raise UsageError("text_lines() was given no file. Name at least one.")

    def __str__(self) -> str:
        return f"lines of {', '.join(path.name for path in self.paths)}"

    def decode(self, lines: list[bytes], place: RecordPlace, offsets: list[int]) -> list[Any]:
        """Return the text of each line."""
        return [_decoded(bytes.decode, line, place, offset) for line, offset in zip(lines, offsets, strict=True)]


class JsonLines(_Files):
    """A file of JSON values, one a line."""

    def __init__(self, path: Path | str, type: Any = None, *, id: str = "json") -> None:  # noqa: A002
        self.paths = [Path(path)]
        self.id = id
        self.type = type
        self._decoder = msgspec.json.Decoder(Any if type is None else type)

    def __str__(self) -> str:
        return f"JSON lines of {self.paths[0].name}"

    def decode(self, lines: list[bytes], place: RecordPlace, offsets: list[int]) -> list[Any]:
        """Return the value of each line; all at once where that gives one for each."""
        try:
            values = self._decoder.decode_lines(b"\n".join(lines))
        except msgspec.DecodeError:
            values = []
        if len(values) == len(lines):
            return list(values)
        return [_decoded(self._decoder.decode, line, place, at) for line, at in zip(lines, offsets, strict=True)]


def _decoded(decode: Any, line: bytes, place: RecordPlace, offset: int) -> Any:
    try:
        return decode(line)
    except ValueError as error:  # of UTF-8 and of msgspec
        where = RecordPlace(place.source, place.partition, offset)
        raise BadRecord(place.source, where, line, f"{type(error).__name__}: {error}") from error


class _LinesReader:
    def __init__(self, files: _Files, partition: int, start: int, size: int) -> None:
        self._files = files
        self._partition = partition
        self._next = start
        self._size = size
        self._file: Any = None

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        lines = (await self._lines())[:records_max]
        if not lines:
            return None
        ends = list(accumulate(map(len, lines), initial=self._next))
        offsets, self._next = ends[:-1], ends[-1]
        bare = [line.rstrip(b"\r\n") for line in lines]
        place = RecordPlace(self._files.id, self._partition, offsets[0])
        values = self._files.decode(bare, place, offsets)
        origin = _LinesOrigin(self._files.id, self._partition, offsets, bare)
        return Batch(values, offsets=offsets, origin=origin, bytes=self._next - offsets[0]), self._next

    async def _lines(self) -> list[bytes]:
        """Return whole lines from the next position on, with their ends; none at the end of the file."""
        wanted = _BLOCK_BYTES
        while True:
            block = await self._block(min(wanted, self._size - self._next))
            whole = block if self._next + len(block) >= self._size else block[: block.rfind(b"\n") + 1]
            if whole or not block:
                return _split(whole)
            if wanted > RECORD_BYTES_MAX:
                raise BadRecord(
                    self._files.id,
                    RecordPlace(self._files.id, self._partition, self._next),
                    block[:100],
                    f"a line of more than {RECORD_BYTES_MAX:,} bytes (limits.RECORD_BYTES_MAX)",
                )
            wanted *= 2

    async def _block(self, size: int) -> bytes:
        if self._file is None:
            self._file = await aiofiles.open(self._files.paths[self._partition], "rb")
        await self._file.seek(self._next)
        return bytes(await self._file.read(size))

    def end(self) -> int:
        return self._size

    async def wait(self) -> None:
        await asyncio.Event().wait()  # a file ends where it ended when the job started

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()


def _split(block: bytes) -> list[bytes]:
    """Split at newlines only: a lone carriage return is part of a line."""
    lines = [line + b"\n" for line in block.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


@dataclass(frozen=True, slots=True)
class _LinesOrigin:
    source: str
    partition: int
    offsets: list[int]
    lines: list[bytes]

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.lines[bisect_left(self.offsets, offset)] for offset in offsets]
