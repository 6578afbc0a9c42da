"""``streamactors log read`` and ``log info``: what a topic holds, for people and programs.

Values are printed as JSON lines. What is JSON text is printed as it stands (white space with newlines is taken out);
what is not, MessagePack or raw bytes say, is printed as ``{"$base64": "..."}``, so that nothing is lost or guessed.

A record that was erased has no value to print: ``--meta`` gives its place, without it they are named on standard error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from streamactors.core.errors import UsageError
from streamactors.durable.chunk import Chunk
from streamactors.durable.log import Log, Topic
from streamactors.durable.partition import Partition

from .cli import data_option
from .failures import OK, complain
from .lines import json_lines, refused
from .output import base64_object, flush, iso_time, write, write_json_lines, write_table

READ_RECORDS = 16_384
READ_BYTES = 4 * 1024 * 1024
"""Records and bytes that are printed in one go: large, because each is one call of a decoder and one of write."""


class MetaLine(msgspec.Struct):
    """A line of ``log read --meta``."""

    partition: int
    offset: int
    key: Any
    append_time_ms: int
    value: msgspec.Raw


class ErasedLine(msgspec.Struct):
    """A line of ``log read --meta`` for a record that was erased."""

    partition: int
    offset: int
    erased: bool = True
    value: None = None


_encode_lines = msgspec.json.Encoder().encode_lines


@click.command()
@data_option
@click.argument("topic")
@click.option("--partition", metavar="P", type=click.IntRange(0), help="Only this partition.")
@click.option("--from", "start", metavar="OFFSET", type=click.IntRange(0), help="First offset, in each partition.")
@click.option("--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("--meta", is_flag=True, help="Each line is an object of partition, offset, key, append_time_ms, value.")
def read(data_dir: Path, topic: str, partition: int | None, start: int | None, *, follow: bool, meta: bool) -> int:
    """
    Print the values of TOPIC as JSON lines: one partition after the other, or with --follow as they come.

    What is no JSON text is printed as {"$base64": "..."}.
    """
    try:
        asyncio.run(_read(data_dir, topic, partition, start, follow=follow, meta=meta))
    except KeyboardInterrupt:
        if not follow:
            raise
    return OK


async def _read(data_dir: Path, name: str, number: int | None, start: int | None, *, follow: bool, meta: bool) -> None:
    async with Log(data_dir) as log:
        topic = await _topic(log, data_dir, name)
        if number is not None and number >= topic.partitions:
            raise UsageError(f"topic {name} has partitions 0 to {topic.partitions - 1}, no {number}.")
        numbers = range(topic.partitions) if number is None else [number]
        partitions = [topic.partition(n) for n in numbers]
        starts = [await _start(partition, start) for partition in partitions]
        if follow:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for partition, first in zip(partitions, starts, strict=True):
                        tasks.create_task(_print(partition, first, None, meta=meta))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # what ended one partition has ended the others
        else:
            ends = [partition.durable_end() for partition in partitions]
            for partition, first, end in zip(partitions, starts, ends, strict=True):
                await _print(partition, first, end, meta=meta)
            flush()


async def _topic(log: Log, data_dir: Path, name: str) -> Topic:
    topic = await log.topic(name)
    if topic is None:
        others = ", ".join(await log.topics()) or "none"
        raise UsageError(f"there is no topic {name} in {data_dir}. Topics there: {others}.")
    return topic


async def _start(partition: Partition, wanted: int | None) -> int:
    """Return where to begin; refuse an offset that is not there."""
    first, end = await partition.first_offset(), partition.durable_end()
    if wanted is None:
        return first
    if not first <= wanted <= end:
        raise UsageError(
            f"--from {wanted}: partition {partition.number} of {partition.topic} holds offsets {first} to {end - 1}, "
            f"and the next one will be {end}."
        )
    return wanted


async def _print(partition: Partition, start: int, end: int | None, *, meta: bool) -> None:
    at = start
    async for place, chunk in _chunks(partition, start, end):
        if place > at:
            _tell_erased(partition, at, place, meta=meta)
        at = place + len(chunk)
        if chunk:
            write(_meta_lines(partition.number, chunk) if meta else _value_lines(chunk))
        if end is None:
            flush()


def _tell_erased(partition: Partition, first: int, end: int, *, meta: bool) -> None:
    if meta:
        write(_encode_lines([ErasedLine(partition.number, offset) for offset in range(first, end)]))
    else:
        which = f"offset {first} was" if end == first + 1 else f"offsets {first} to {end - 1} were"
        flush()
        complain(f"{partition.topic}/{partition.number}: {which} erased; nothing is printed for it.")


async def _chunks(partition: Partition, start: int, end: int | None) -> AsyncIterator[tuple[int, Chunk | tuple[()]]]:
    """Yield chunks from *start* to *end*, each with its offset; without an end, for ever. () stands for no record."""
    reader = partition.reader(start)
    try:
        while end is None or reader.position < end:
            records = READ_RECORDS if end is None else min(READ_RECORDS, end - reader.position)
            chunks = await reader.read(records, READ_BYTES)
            for chunk in chunks:
                if end is None or chunk.end <= end:
                    yield chunk.first, chunk
                elif chunk.first < end:
                    yield chunk.first, chunk.split(end - chunk.first)[0]
            if not chunks or (end is not None and chunks[-1].first >= end):
                yield (reader.position if end is None else min(end, reader.position)), ()
            if end is None:
                await reader.wait()
    finally:
        await reader.close()


def _value_lines(chunk: Chunk) -> bytes:
    if chunk.lines:
        blob = chunk.blob
        if json_lines(blob) is not None:
            return blob
    return b"".join([_json(value) + b"\n" for value in chunk.values()])


def _meta_lines(partition: int, chunk: Chunk) -> bytes:
    exact = json_lines(chunk.blob) if chunk.lines else None
    values = exact if exact is not None else map(_json, chunk.values())
    rows = zip(range(chunk.first, chunk.end), chunk.keys(), chunk.append_times(), values, strict=True)
    return _encode_lines(
        [MetaLine(partition, offset, _text(key), time, msgspec.Raw(value)) for offset, key, time, value in rows]
    )


def _json(value: bytes) -> bytes:
    """Return a value as one line of JSON."""
    if refused(value) is not None:
        return msgspec.json.encode(base64_object(value))
    return msgspec.json.format(value, indent=-1) if b"\n" in value or b"\r" in value else value


def _text(key: bytes | None) -> Any:
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return base64_object(key)


# Info. ----------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("topic", required=False)
@click.option("--json", "as_json", is_flag=True, help="One object a topic.")
def info(data_dir: Path, topic: str | None, *, as_json: bool) -> int:
    """Print what TOPIC, or each topic, holds: offsets, records, bytes, segments, the newest append time."""
    if not data_dir.is_dir():
        raise UsageError(f"there is no folder {data_dir}. Check --data.")
    topics = asyncio.run(_info(data_dir, topic))
    if as_json:
        write_json_lines(topics)
    else:
        head = ["topic", "partition", "first", "end", "records", "bytes", "segments", "newest append", "erased"]
        write_table(head, _info_rows(topics))
    return OK


async def _info(data_dir: Path, name: str | None) -> list[dict[str, Any]]:
    async with Log(data_dir) as log:
        names = await log.topics() if name is None else [name]
        return [await _describe(await _topic(log, data_dir, one)) for one in names]


async def _describe(topic: Topic) -> dict[str, Any]:
    partitions = [await _describe_partition(topic.partition(number)) for number in range(topic.partitions)]
    times = [p["newest_append_time_ms"] for p in partitions if p["newest_append_time_ms"] is not None]
    return {
        "topic": topic.name,
        **{total: sum(p[total] for p in partitions) for total in ("records", "bytes", "segments")},
        "newest_append_time_ms": max(times, default=None),
        "partitions": partitions,
    }


async def _describe_partition(partition: Partition) -> dict[str, Any]:
    first, end = await partition.first_offset(), partition.durable_end()
    segments, size = await partition.size()
    newest = None
    if end > first:
        newest = await partition.time_at(end - 1)
    erasures = await partition.erasures()
    return {
        "partition": partition.number,
        "first_offset": first,
        "end_offset": end,
        "records": end - first,
        "bytes": size,
        "segments": segments,
        "newest_append_time_ms": newest,
        "erased": sum(erasure.records for erasure in erasures),
        "erasures": [msgspec.to_builtins(erasure) for erasure in erasures],
    }


def _info_rows(topics: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for topic in topics:
        for p in topic["partitions"]:
            newest = p["newest_append_time_ms"]
            numbers = [
                p[field] for field in ("partition", "first_offset", "end_offset", "records", "bytes", "segments")
            ]
            done = all(erasure["done"] for erasure in p["erasures"])
            erased = p["erased"] if done else f"{p['erased']} (not completed)"
            yield [topic["topic"], *numbers, "" if newest is None else iso_time(newest), erased]
