"""A backup: a data folder that is consistent, copied while its jobs run in other processes.

First the jobs' state, then the log, so that the log's copy reaches at least as far as what the state has read:

    1. a job's state is copied in one LMDB read transaction: one checkpoint, with the output that was still pending
    2. a job that reads what another one writes is copied before it, and a version that follows before the one that is
       served
    3. of each partition, what is durable by then is copied frame by frame, each checked as it is read
    4. a topic that a copied job writes ends, in the copy, before the first commit that the job's copied state does not
       know

  (K1) The copy is what a crash at the moment of 1 would have left. So a start from it is a recovery like any other: it
       emits again, exactly once, what 4 has left out, because that is a function of log and journal (T1).
  (K2) No position of a copied job lies past the end of the copied topic. For what it reads of another job's output that
       is 2: all commits that it had seen were of epochs that the other one's state, copied later, knows. Jobs that
       write for each other in a circle have no such order, so (K2) is checked in the end.

Without 4 a target would show stamps that lie behind the state's own, and the start would be refused (SinkConflict).

The copy's jobs are new incarnations: the copy and the original may both go on, and a target outside the data folder
that meets the commits of both says so. Such a target (SQLite, folders of parts) is not part of the backup.

If we are killed, there is no backup.json, and the folder is no backup; see staging.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from streamactors.core.connectors import Stamp
from streamactors.core.errors import Damaged, StorageError, UsageError
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import decode_extras
from streamactors.durable.log import Log, Topic
from streamactors.durable.segment import (
    CELL_PREFIX,
    HEAD_BYTES,
    SUFFIX,
    UNFINISHED,
    FrameAt,
    SegmentHead,
    decode_head,
    segment_bases,
    segment_name,
    walk,
)
from streamactors.durable.store import Store
from streamactors.durable.tables import stamps_in
from streamactors.job.needed import Need, needs_of

from .jobs import TOPIC_SINK, JobFacts, all_jobs, facts_of, job_folders, served_version
from .staging import MANIFEST, CopiedFile, Staging, pieces_of

FORMAT = 1

_WRITE_BYTES = 1024 * 1024
"""Frames that are written together: single records make frames of a few hundred bytes."""


class Manifest(msgspec.Struct):
    """What a backup holds: the content of backup.json, which is written last."""

    format: int
    release: str
    created_ms: int
    jobs: dict[str, dict[str, int]]
    """The newest checkpoint of each region, by job and version."""

    topics: dict[str, list[tuple[int, int]]]
    """For each partition, its first offset and the one behind its last."""

    files: list[CopiedFile]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)


@dataclass
class _State:
    """What was copied of the jobs, and what the log's copy must therefore hold."""

    jobs: list[JobFacts] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)

    def beyond(self, stamp: Stamp) -> bool:
        """Whether *stamp* is of a commit that the copied state of its job does not know."""
        for job in self.jobs:
            if (stamp.job, stamp.incarnation) == (job.name, job.incarnation):
                region = job.writes.get(stamp.sink.removeprefix(TOPIC_SINK))
                return region is not None and stamp.epoch > job.epochs.get(region, 0)
        return False


async def back_up(data_dir: Path, staging: Staging, new_id: Callable[[], str]) -> Manifest:
    """Copy all of *data_dir* into *staging*; see the module's header."""
    state, catalogues = _State(), _catalogues(data_dir)
    for folder in _consumers_first(data_dir):
        _copy_job(folder, staging, state, new_id)
    topics: dict[str, list[tuple[int, int]]] = {}
    async with Log(data_dir) as log:
        for name in await log.topics():
            topic = await log.topic(name)
            if topic is not None:
                topics[name] = _copy_topic(data_dir / "log" / name, topic, staging, state)
    _copy_plain(data_dir, staging)
    for relative, content in catalogues.items():
        staging.copy(relative, [content])
    if _catalogues(data_dir) != catalogues:
        raise StorageError("another version of a job was promoted while the backup was made. Make it again.")
    _check(data_dir, state, topics)
    jobs = {job.label: job.epochs for job in state.jobs}
    return Manifest(FORMAT, version("streamactors"), time.time_ns() // 1_000_000, jobs, topics, staging.files)


# Jobs. ----------------------------------------------------------------------------------------------------------------


def _consumers_first(data_dir: Path) -> list[Path]:
    """Return the folders of all jobs, those that read a topic, or a journal, before those that write it (K2)."""
    jobs = dict(zip(job_folders(data_dir), all_jobs(data_dir), strict=True))
    before: dict[Path, set[Path]] = {folder: set() for folder in jobs}
    for folder, job in jobs.items():
        for other, reader in jobs.items():
            follows = reader.name == job.name and other != folder and served_version(folder.parent) == job.version
            if follows or (reader.name != job.name and reader.reads & job.writes.keys()):
                before[folder].add(other)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        return list(jobs)


def _catalogues(data_dir: Path) -> dict[str, bytes]:
    """Return what the catalogues of jobs hold, by path."""
    paths = sorted((data_dir / "jobs").glob("*/versions.json"))
    return {path.relative_to(data_dir).as_posix(): path.read_bytes() for path in paths}


def _copy_job(folder: Path, staging: Staging, state: _State, new_id: Callable[[], str]) -> None:
    relative = f"jobs/{folder.parent.name}/{folder.name}"
    target = staging.path(f"{relative}/data.mdb").parent
    with Store.open(folder, read_only=True) as store:
        store.copy_to(target)
    with Store.open(target) as copy:
        state.jobs.append(facts_of(copy))
        state.needs += needs_of(copy)
        copy.renew_incarnation(new_id())
    (target / "lock.mdb").unlink()
    staging.take(f"{relative}/data.mdb")


# The log. -------------------------------------------------------------------------------------------------------------


def _copy_topic(folder: Path, topic: Topic, staging: Staging, state: _State) -> list[tuple[int, int]]:
    relative = f"log/{topic.name}"
    ranges = []
    for number in range(topic.partitions):
        source = folder / str(number)
        ranges.append(
            _copy_partition(source, topic.partition(number).durable_end, f"{relative}/{number}", staging, state)
        )
    staging.copy(f"{relative}/topic.json", pieces_of(folder / "topic.json"))
    return ranges


def _copy_partition(
    folder: Path, durable_end: Callable[[], int], relative: str, staging: Staging, state: _State
) -> tuple[int, int]:
    """Copy a partition's segments; return its first offset, and the one behind its last."""
    end = durable_end()
    bases = [base for base in segment_bases(RealDisk().names(folder)) if base <= end]
    reached, cut = bases[0], False
    for base in bases:
        if cut:
            break
        segment = _Segment(folder / segment_name(base), end, state)
        staging.copy(f"{relative}/{segment_name(base)}", segment.pieces())
        reached, cut = segment.reached, segment.cut
        if not cut and base != bases[-1] and reached != bases[bases.index(base) + 1]:
            raise segment.damaged()
    if not cut and reached != end:
        raise segment.damaged()
    _copy_notes(folder, relative, staging)
    return bases[0], reached


def _copy_notes(folder: Path, relative: str, staging: Staging) -> None:
    """Copy what a partition's folder holds beside its segments, and is not of this machine or of a crash."""
    for path in sorted(folder.iterdir()):
        passing = path.name.startswith(CELL_PREFIX) or path.suffix in {SUFFIX, UNFINISHED, ".lock", ".torn"}
        if path.is_file() and not passing:
            staging.copy(f"{relative}/{path.name}", pieces_of(path))


class _Segment:
    """One segment while it is copied: up to the durable end, or to a commit that the state does not know."""

    def __init__(self, path: Path, end: int, state: _State) -> None:
        self._path = path
        self._end = end
        self._state = state
        self._position = HEAD_BYTES
        self.reached = -1
        """Offset behind the last record that was copied."""

        self.cut = False
        """Whether a commit was left out, and all that follows it."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes to be written."""
        file = RealDisk().open(self._path)
        try:
            data = file.read(0, HEAD_BYTES)
            head = decode_head(data, str(self._path))
            pending, size = [data], len(data)
            for frame in self._frames(file.read, head):
                pending.append(frame.data[frame.at : frame.at + frame.header.length])
                size += frame.header.length
                if size >= _WRITE_BYTES:
                    yield b"".join(pending)
                    pending, size = [], 0
            yield b"".join(pending)
        finally:
            file.close()

    def _frames(self, read: Callable[[int, int], bytes], head: SegmentHead) -> Iterator[FrameAt]:
        self.reached = head.base
        for frame in walk(read, head.id, HEAD_BYTES):
            header = frame.header
            if header.first != self.reached or header.end > self._end:
                return
            if any(map(self._state.beyond, stamps_in(decode_extras(header, frame.data, frame.at)))):
                self.cut = True
                if self._position == HEAD_BYTES:
                    raise _moved_on(self._path)
                return
            self.reached, self._position = header.end, frame.behind
            yield frame

    def damaged(self) -> Damaged:
        """Return the error that says where the copy can't go on."""
        return Damaged(
            f"{self._path} at position {self._position}: the frame of offset {self.reached}, which is durable, does "
            "not check out. There is no backup of what is damaged: restore the partition's folder from an earlier one, "
            "or delete the topic."
        )


def _moved_on(what: object) -> StorageError:
    return StorageError(f"{what}: retention has removed records since the state was copied. Make the backup again.")


# The rest. ------------------------------------------------------------------------------------------------------------


def _copy_plain(data_dir: Path, staging: Staging) -> None:
    """Copy savepoints, and what sources note about what they read: they only add to it, so it fits an earlier state."""
    for path in [*sorted((data_dir / "sources").rglob("*")), *sorted((data_dir / "savepoints").rglob("*"))]:
        if path.is_file() and path.suffix not in {".lock", ".new", ".unfinished"}:
            staging.copy(path.relative_to(data_dir).as_posix(), pieces_of(path))


def _check(data_dir: Path, state: _State, topics: dict[str, list[tuple[int, int]]]) -> None:
    """Refuse a copy that no job could start from: (K2), and what came or went meanwhile."""
    for need in state.needs:
        if need.source not in topics or need.partition is None or need.partition >= len(topics[need.source]):
            continue
        first, end = topics[need.source][need.partition]
        if need.offset and need.offset < first:
            raise _moved_on(f"{need.source}/{need.partition} begins with offset {first}")
        if need.offset > end:
            raise UsageError(
                f"job {need.job} has read {need.source}/{need.partition} up to offset {need.offset}, and the job that "
                f"writes there stood at {end} when its state was copied: they write for each other. Stop one of them "
                "while the backup is made."
            )
    began = {f"{folder.parent.name}/{folder.name}" for folder in job_folders(data_dir)}
    began -= {job.label for job in state.jobs}
    if began:
        raise StorageError(f"job {', '.join(sorted(began))} began while the backup was made. Make it again.")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of backup.json."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """Return what the backup in *folder* holds, and the bytes that say so."""
    path = folder / MANIFEST
    if not path.exists():
        raise UsageError(f"{folder} is no backup: there is no {MANIFEST}, which a backup gets when all else is there.")
    data = path.read_bytes()
    try:
        found: dict[str, Any] = msgspec.json.decode(data)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise UsageError(
                f"{path} has format {found.get('format')}, this release reads {FORMAT}. Use the release that made it."
            )
        return msgspec.convert(found, Manifest), data
    except msgspec.MsgspecError as error:
        raise Damaged(f"{path} is not what was written ({error}). Take another backup.") from error
