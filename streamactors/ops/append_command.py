"""``streamactors log append``: lines of JSON from standard input into a topic.

A file is checked to its end before anything is appended, then read again; a checksum for each block says that it is
still the same. What can be read only once (a pipe, a terminal) is appended in chunks: as many whole lines as have come
while the chunk before was being written, at most CHUNK_BYTES. So a slow producer's lines are durable within
milliseconds, and a fast one's share few syncs. A chunk with a bad line is refused whole; what came before is kept.

If we are killed, what was acknowledged is in the log; of the chunk that was under way, each partition has all of its
share or nothing. The answer counts chunks that were acknowledged, and is given whatever ends the command.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import click

from streamactors.core.errors import StreamActorsError, UsageError
from streamactors.durable.frames import Records
from streamactors.durable.log import PARTITIONS_MAX, Log, Topic

from .cli import data_option
from .failures import OK, USAGE, complain
from .lines import BadLine, Cutter, LineChecker, Lines
from .output import lines_of, say

CHUNK_BYTES = 2 * 1024 * 1024
"""Bytes of lines that are checked and appended together. More would keep a reader of the topic waiting, fewer would
pay a sync (1 to 4 ms) for less."""

BAD_LINES_SHOWN = 20
"""Bad lines that --skip-bad names one by one; beyond that they are only counted."""

_STDIN = 0


@click.command()
@data_option
@click.argument("topic")
@click.option(
    "--partitions",
    metavar="N",
    type=click.IntRange(1, PARTITIONS_MAX),
    help="Partitions of a new topic (1). For a topic that is there: refused if it has another number.",
)
@click.option(
    "--key",
    metavar="FIELD",
    help="Field whose value is the record's key and decides its partition: text as it is, anything else as JSON. A "
    "line without it is a bad line.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out bad lines and count them, instead of refusing the input.")
def append(data_dir: Path, topic: str, partitions: int | None, key: str | None, *, skip_bad: bool) -> int:
    """
    Append lines of JSON from standard input to TOPIC, which is made if it is not there.

    Each line is one JSON value and is stored as it stands. A file is checked before anything is appended; from a pipe,
    nothing from a bad line's chunk on is kept. The answer says how many lines are durable.
    """
    if sys.stdin is None:  # its number is given to the next file that is opened
        raise UsageError("standard input is closed. Give lines of JSON: `... < lines.jsonl`.")
    return asyncio.run(_append(data_dir, topic, partitions, key, skip_bad=skip_bad))


async def _append(data_dir: Path, name: str, partitions: int | None, key: str | None, *, skip_bad: bool) -> int:
    async with Log(data_dir) as log:
        found = await log.topic(name)  # before anything is read: a wrong number of partitions, a wrong name
        if found is not None and partitions not in (None, found.partitions):
            await log.create_topic(name, partitions or 1)  # says why not
        blocks: list[Block] | None = None
        if _can_be_read_twice() and not skip_bad:
            checked = check_file(LineChecker(key))
            if isinstance(checked, BadLine):
                say(f"appended 0 lines to {name}: the file was checked first")
                complain(f"{checked}. Nothing was appended; correct the line, or leave it out with --skip-bad.")
                return USAGE
            blocks = checked
        topic = found or await log.create_topic(name, partitions or 1)
        appending = Appending(topic, LineChecker(key), skip_bad=skip_bad)
        try:
            if blocks is not None:
                await appending.append_file(blocks)
            else:
                await appending.append_stream()
        finally:
            await appending.answer()
        return appending.code


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the input file that was checked."""

    position: int
    size: int
    checksum: int


def check_file(checker: LineChecker) -> list[Block] | BadLine:
    """Check standard input, a file, from its position to its end; return its blocks, or its first bad line."""
    position = os.lseek(_STDIN, 0, os.SEEK_CUR)
    blocks: list[Block] = []
    cutter = Cutter()
    while True:
        data = _pread(CHUNK_BYTES, position)
        if data:
            blocks.append(Block(position, len(data), crc32(data)))
            cutter.feed(data)
        else:
            cutter.end()
        _, bad = checker.check(cutter.take())
        if bad:
            return bad[0]
        if not data:
            return blocks
        position += len(data)


class Appending:
    """One append under way while the next chunk is read and checked."""

    def __init__(self, topic: Topic, checker: LineChecker, *, skip_bad: bool) -> None:
        self._topic = topic
        self._checker = checker
        self._skip_bad = skip_bad
        self._cutter = Cutter()
        self._under_way: asyncio.Task[int] | None = None
        self._refused = False
        self._skipped = 0
        self.durable = 0
        """Lines that were acknowledged."""

    @property
    def code(self) -> int:
        """The exit code."""
        return USAGE if self._refused else OK

    async def append_file(self, blocks: list[Block]) -> None:
        """Append what was checked."""
        for block in blocks:
            data = _pread(block.size, block.position)
            if crc32(data) != block.checksum:
                raise UsageError(
                    f"the input file changed while it was read, at byte {block.position:,}. Lines before it are "
                    "appended; give the rest again, from a file that stays as it is."
                )
            self._cutter.feed(data)
            await self._hand_over(self._checker.trust(self._cutter.take()))
        self._cutter.end()
        await self._hand_over(self._checker.trust(self._cutter.take()))
        if blocks:
            os.lseek(_STDIN, blocks[-1].position + blocks[-1].size, os.SEEK_SET)

    async def append_stream(self) -> None:
        """Append chunks as they come, up to the end of the input or the first bad line."""
        reading = asyncio.create_task(_read_block())
        try:
            while not self._refused:
                await asyncio.wait(
                    {reading} if self._under_way is None else {reading, self._under_way},
                    return_when=asyncio.FIRST_COMPLETED,
                )
                ended = reading.done() and not reading.result()
                if ended:
                    self._cutter.end()
                elif reading.done():
                    self._cutter.feed(reading.result())
                    reading = asyncio.create_task(_read_block())
                if ended or self._cutter.bytes >= CHUNK_BYTES or self._under_way is None or self._under_way.done():
                    await self._check_and_hand_over()
                if ended:
                    return
        finally:
            reading.cancel()

    async def answer(self) -> None:
        """Wait for what is under way, and say how many lines are durable."""
        try:
            await self._settle()
        finally:
            partitions = f"{self._topic.partitions} partition" + ("" if self._topic.partitions == 1 else "s")
            skipped = f"; skipped {self._skipped:,} bad" if self._skip_bad else ""
            say(f"appended {lines_of(self.durable)} to {self._topic.name} ({partitions}), durable{skipped}")

    async def _check_and_hand_over(self) -> None:
        lines, bad = self._checker.check(self._cutter.take())
        if bad and not self._skip_bad:
            self._refused = True
            complain(
                f"{bad[0]}. Nothing from its chunk on was appended; correct the line and give the rest again, or leave "
                "it out with --skip-bad."
            )
            return
        for line in bad[: max(0, BAD_LINES_SHOWN - self._skipped)]:
            complain(f"skipped {line}")
        self._skipped += len(bad)
        await self._hand_over(lines)

    async def _hand_over(self, lines: Lines) -> None:
        await self._settle()
        if lines.count:
            self._under_way = asyncio.create_task(self._append(lines))

    async def _settle(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            self.durable += await under_way
        except StreamActorsError:
            complain(f"failed behind {lines_of(self.durable)}; of the chunk that followed, some may be durable")
            raise

    async def _append(self, lines: Lines) -> int:
        for piece in lines.pieces():
            if self._topic.partitions == 1:
                # Checked: no line is empty or contains a newline.
                records = Records.from_json_lines(piece.blob, piece.count, piece.keys)
                await self._topic.partition(0).append(records)
            else:
                await self._topic.append_many(piece.values(), keys=piece.keys)
        return lines.count


def _can_be_read_twice() -> bool:
    mode = os.fstat(_STDIN).st_mode
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(_STDIN))


def _pread(size: int, position: int) -> bytes:
    try:
        return os.pread(_STDIN, size, position)
    except OSError as error:
        raise UsageError(f"standard input can't be read: {error.strerror}.") from error


async def _read_block() -> bytes:
    """Return what standard input has, once it has something; nothing at its end."""
    if not _can_be_read_twice():
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(_STDIN, readable.set_result, None)
        try:
            await readable
        finally:
            loop.remove_reader(_STDIN)
    try:
        return os.read(_STDIN, CHUNK_BYTES)
    except OSError as error:
        raise UsageError(f"standard input can't be read: {error.strerror}.") from error
