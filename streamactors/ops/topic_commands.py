"""``streamactors log create``, ``log retain`` and ``log delete``: topics as their owner looks after them.

*retain* works beside a process that writes the topic: it takes old segments away, which no writer ever touches again.
It asks every job of the data folder what it still needs.

*delete* takes the writer's locks of all partitions first, so that nobody writes meanwhile. Then, in this order:

    1. the topic's folder gets another name: from here on there is no such topic
    2. whoever has it open is told, by the cell that all its readers look at
    3. the files are removed

If we are killed behind 1, the next ``log delete`` does 2 and 3 for what it finds.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from streamactors.core.errors import Held, UsageError
from streamactors.core.ports import Disk
from streamactors.core.sizes import shown_size, size_bytes
from streamactors.core.times import duration_ms
from streamactors.durable.files import RealDisk
from streamactors.durable.log import PARTITIONS_MAX, Log
from streamactors.durable.removal import may_go, removable, remove
from streamactors.durable.segment import DELETED, LOCK_NAME, cell_name, segment_bases
from streamactors.job.needed import Need, Needed, needed_offsets

from .cli import data_option
from .failures import OK
from .jobs import all_jobs, existing, maintenance
from .output import say, write_json_lines, write_table

_GOING = ".deleted"
"""What the name of a topic's folder ends with while its files are removed; no topic's name begins with a dot."""


# Create. --------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("topic")
@click.option("--partitions", metavar="N", type=click.IntRange(1, PARTITIONS_MAX), help="How many, for good (1).")
def create(data_dir: Path, topic: str, partitions: int | None) -> int:
    """Make TOPIC. One that is there with as many partitions is left as it is."""
    there = asyncio.run(_create(data_dir, topic, partitions))
    number = partitions or there or 1
    count = f"{number} partition" + ("" if number == 1 else "s")
    say(f"{topic} is there already ({count})" if there else f"created {topic} ({count})")
    return OK


async def _create(data_dir: Path, name: str, partitions: int | None) -> int | None:
    """Return how many partitions it had; None: it was not there."""
    async with Log(data_dir) as log:
        found = await log.topic(name)
        if found is None or partitions is not None:
            await log.create_topic(name, partitions or 1)
        return None if found is None else found.partitions


# Retain. --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retained:
    """What retention does to a partition: a line of ``--json``."""

    topic: str
    partition: int
    removed_segments: int
    removed_bytes: int
    first_offset: int
    """That is left."""

    needed_from: int | None
    """From where on a job needs it, if that kept something back."""

    needed_by: str | None


@click.command()
@data_option
@click.argument("topic")
@click.option("--older-than", metavar="TIME", help="Segments whose last record was appended longer ago, such as 7d.")
@click.option("--larger-than", metavar="SIZE", help="The oldest segments of a partition that has more, such as 10GB.")
@click.option("--force", is_flag=True, help="Also what a job still needs: it fails, or begins behind what is gone.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One object a partition.")
def retain(
    data_dir: Path,
    topic: str,
    older_than: str | None,
    larger_than: str | None,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """
    Remove old records of TOPIC, a segment at a time, whoever reads and writes it meanwhile.

    A record that a job of this folder has not counted yet stays, and so does the last segment of each partition.
    """
    age = None if older_than is None else _parsed("--older-than", older_than, duration_ms)
    size = None if larger_than is None else _parsed("--larger-than", larger_than, size_bytes)
    if age is None and size is None:
        raise UsageError("nothing says what is old. Give --older-than, --larger-than, or both: what either says, goes.")
    numbers = range(asyncio.run(_partitions(data_dir, topic)))
    with maintenance(data_dir):
        needed = Needed([]) if force else needed_offsets(data_dir)
        done = [
            _retain_partition(data_dir, topic, number, age, size, needed.first(topic, number), dry_run=dry_run)
            for number in numbers
        ]
    _tell_retained(topic, done, dry_run=dry_run, as_json=as_json)
    return OK


def _parsed(flag: str, text: str, parse: Any) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


async def _partitions(data_dir: Path, name: str) -> int:
    async with Log(existing(data_dir)) as log:
        topic = await log.topic(name)
        if topic is None:
            raise UsageError(no_topic(name, data_dir, await log.topics()))
        return topic.partitions


def no_topic(name: str, data_dir: Path, others: list[str]) -> str:
    """Return what to say of a topic that is not there."""
    return f"there is no topic {name} in {data_dir}. Topics there: {', '.join(others) or 'none'}."


def _retain_partition(
    data_dir: Path, topic: str, number: int, age: int | None, size: int | None, need: Need | None, *, dry_run: bool
) -> Retained:
    disk, folder = RealDisk(), data_dir / "log" / topic / str(number)
    before = None if age is None else time.time_ns() // 1_000_000 - age
    wanted = removable(disk, folder, may_go(before_ms=before, bytes_max=size, needed=None))
    offset = None if need is None else need.offset
    going = removable(disk, folder, may_go(before_ms=before, bytes_max=size, needed=offset))
    if not dry_run:
        remove(disk, folder, going)
    kept = need if len(going) < len(wanted) else None
    return Retained(
        topic,
        number,
        len(going),
        sum(segment.bytes for segment in going),
        going[-1].end if going else _first(disk, folder),
        None if kept is None else kept.offset,
        None if kept is None else kept.job,
    )


def _first(disk: Disk, folder: Path) -> int:
    return next(iter(segment_bases(disk.names(folder))), 0)


def _tell_retained(topic: str, done: list[Retained], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        write_json_lines(asdict(partition) for partition in done)
        return
    rows = [
        [p.partition, p.removed_segments, p.removed_bytes, p.first_offset]
        + (["", ""] if p.needed_by is None else [p.needed_from, p.needed_by])
        for p in done
    ]
    write_table(["partition", "segments removed", "bytes", "first offset", "needed from", "by job"], rows)
    segments, size = sum(p.removed_segments for p in done), sum(p.removed_bytes for p in done)
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {segments:,} segment{'' if segments == 1 else 's'} of {topic}, {shown_size(size)}")


# Delete. --------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("topic")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Although jobs use it, or a process writes it. Doesn't ask either.")
def delete(data_dir: Path, topic: str, *, yes: bool, force: bool) -> int:
    """Delete TOPIC with all its records, for good. Whoever reads it then gets an error that says so."""
    asyncio.run(_partitions(data_dir, topic))
    if not force:
        uses = [use for job in all_jobs(data_dir) for use in job.uses(topic)]
        if uses:
            raise UsageError(
                f"topic {topic} is in use: {'; '.join(uses)}. Nothing was deleted. Remove what is no longer wanted "
                f"from {data_dir / 'jobs'}, or give --force: those jobs then don't start any more."
            )
        if not yes:
            _ask(topic)
    with maintenance(data_dir):
        for leftover in (data_dir / "log").glob(f".*{_GOING}"):
            _remove_topic(leftover)
        _delete(data_dir / "log" / topic, force=force)
    say(f"deleted {topic}")
    return OK


def _ask(topic: str) -> None:
    if not sys.stdin or not sys.stdin.isatty():
        raise UsageError(f"nobody can be asked whether {topic} is to go: there is no terminal. Give --yes.")
    if not click.confirm(f"Delete topic {topic} with all its records?", err=True):
        raise UsageError("nothing was deleted.")


def _delete(folder: Path, *, force: bool) -> None:
    disk = RealDisk()
    with ExitStack() as stack:
        for partition in _partition_folders(folder):
            try:
                stack.callback(disk.lock(partition / LOCK_NAME).release)
            except Held as held:
                if not force:
                    writer = "another process" if held.pid is None else f"process {held.pid}"
                    raise _InUse(
                        f"topic {folder.name} is being written by {writer}. Nothing was deleted. Stop it first, or "
                        "give --force: its next append then fails.",
                        held.pid,
                    ) from held
        going = folder.with_name(f".{folder.name}.{token_hex(4)}{_GOING}")
        disk.rename(folder, going)
        disk.sync_folder(folder.parent)
        _remove_topic(going)


class _InUse(Held):
    """Held, in words that say what can be done about it here."""

    def __init__(self, message: str, pid: int | None) -> None:
        Exception.__init__(self, message)
        self.pid = pid


def _remove_topic(folder: Path) -> None:
    disk = RealDisk()
    for partition in _partition_folders(folder):
        path = partition / cell_name(disk.boot_id())
        if path.exists():
            cell = disk.cell(path, write=True)
            cell.store(DELETED)
            cell.close()
    shutil.rmtree(folder)
    disk.sync_folder(folder.parent)


def _partition_folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.isdigit())
