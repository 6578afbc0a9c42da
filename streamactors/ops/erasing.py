"""Deleting one key from a data folder: topics, then jobs, then a look at what is left; and the report of it.

Nobody may write meanwhile what is being deleted: a job that runs would bring the key back out of its memory, a writer
has the last segment open. So all locks are asked for before anything is changed, and what is held by somebody is
refused, with everything else. In this order:

    1. the folder's maintenance lock, the locks of all jobs (kept to the end), the writers' locks (tried)
    2. each partition of each topic: erasure.py. Topics of dead letters come last: a letter goes when the record goes
       that it is about
    3. each job: one transaction (forgetting.py), then its file is written anew without free pages (compaction.py)
    4. each file of the folder is searched for the key's text: what is found is told

Topics come first. If we are killed in between, state still holds what the log no longer does; the other way round, a
job that somebody starts too early would count the records of the key again from the log.

A step that fails is told in the report, and the others go on. Everything can be done again: what is gone is not found.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from streamactors.core.errors import Held, StreamActorsError, UsageError
from streamactors.durable.compaction import compact
from streamactors.durable.erasure import Found, Goes, erase, find
from streamactors.durable.files import RealDisk
from streamactors.durable.forgetting import PENDING, Editor, Forgotten, forget, look_for
from streamactors.durable.log import Log
from streamactors.durable.segment import LOCK_NAME
from streamactors.durable.store import Store
from streamactors.durable.subject import Subject
from streamactors.flow.dead_letters import TOPIC_PREFIX

from .jobs import TOPIC_SINK, existing, job_folders, maintenance

_SEARCH_BYTES = 4 * 1024 * 1024
"""Bytes of a file that are searched in one go."""

OUTSIDE = (
    "copies of the folder, backups, savepoints and snapshots of the file system",
    "blocks that the file system has taken back and not yet used again; on an SSD, its spare blocks",
    "processes that had a segment or a view open before, until they close it",
    "where the records came from, and whoever has read topics and views",
)
"""What no command can reach from here."""


class Partition(msgspec.Struct):
    """What went from a partition."""

    topic: str
    partition: int
    records: int
    offsets: list[tuple[int, int]]
    """Ranges: the first, and the one behind the last."""

    bytes: int
    """Of values and keys."""

    segments: int
    erased_before: int
    """Records that had been erased before, whosever they were."""

    torn_files: int
    torn_bytes: int


class JobPart(msgspec.Struct):
    """What went from a version of a job."""

    job: str
    version: str
    views: dict[str, int]
    state: dict[str, int]
    pending: dict[str, int]
    """Records of output that waits in the checkpoint, by sink."""

    bytes_before: int
    bytes_after: int | None = None
    """Of data.mdb; None: it was not written anew."""


class NotDone(msgspec.Struct):
    """What should have gone and did not, and why."""

    what: str
    why: str


class Place(msgspec.Struct):
    """Where the key's text is found, and how often."""

    where: str
    count: int


class Report(msgspec.Struct):
    """What went, and what did not."""

    dry_run: bool
    at_ms: int
    topics: list[Partition] = []
    jobs: list[JobPart] = []
    not_done: list[NotDone] = []
    mentions: list[Place] = []
    """Rows of state and views that stay, because they stand under other keys."""

    remains: list[Place] = []
    """Files of the folder that contain the key's text; looked for at the end, not in a dry run."""

    left_out: list[str] = []
    """Topics and jobs that were not named."""

    outside: list[str] = []

    @property
    def found(self) -> int:
        """How many records and rows went, or would go."""
        rows = sum(sum(counts.values()) for job in self.jobs for counts in (job.views, job.state, job.pending))
        return rows + sum(partition.records for partition in self.topics)


class InUse(Held):
    """Somebody writes what is to be deleted."""

    def __init__(self, holders: list[tuple[str, int | None]]) -> None:
        told = ", ".join(f"{what} by {'another process' if pid is None else f'process {pid}'}" for what, pid in holders)
        Exception.__init__(
            self,
            f"in use: {told}. Nothing was deleted. Stop them (Ctrl-C and SIGTERM end a job with a last checkpoint), "
            "then do it again; --dry-run works meanwhile.",
        )
        self.pid = holders[0][1]


class Erasing:
    """One run. *topics* and *jobs*: only these; None: all there are."""

    def __init__(
        self, data_dir: Path, whose: Subject, *, topics: Sequence[str] = (), jobs: Sequence[str] = (), dry_run: bool
    ) -> None:
        self._data_dir = existing(data_dir)
        self._whose = whose
        self._dry_run = dry_run
        self._disk = RealDisk()
        self._erased: dict[tuple[str, int], set[int]] = {}
        self.errors: list[Exception] = []
        self.report = Report(dry_run, time.time_ns() // 1_000_000)
        everything = not topics and not jobs
        partitions = asyncio.run(_topics(data_dir))
        folders = job_folders(data_dir)
        _refuse_unknown("topic", topics, list(partitions), data_dir)
        _refuse_unknown("job", jobs, [folder.parent.name for folder in folders], data_dir)
        letters_last = sorted(partitions, key=lambda name: (name.startswith(TOPIC_PREFIX), name))
        self._topics = {name: partitions[name] for name in letters_last if everything or name in topics}
        self._jobs = [folder for folder in folders if everything or folder.parent.name in jobs]
        self.report.left_out = [f"topic {name}" for name in letters_last if name not in self._topics]
        self.report.left_out += [_name(folder) for folder in folders if folder not in self._jobs]

    def run(self) -> Report:
        """Do it; see the module's header."""
        with ExitStack() as stack:
            stack.enter_context(maintenance(self._data_dir))  # 1
            if not self._dry_run:
                self._take_locks(stack)
            for topic, count in self._topics.items():  # 2
                for number in range(count):
                    self._attempt(f"topic {topic}/{number}", partial(self._partition, topic, number))
            for folder in self._jobs:  # 3
                self._attempt(_name(folder), partial(self._job, folder))
            if not self._dry_run:
                self.report.remains = list(_search(self._data_dir, self._whose))  # 4
        self.report.outside += [*_other_targets(self._jobs), *OUTSIDE]
        return self.report

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (StreamActorsError, OSError) as error:
            self.errors.append(error)
            self._not_done(what, str(error))

    def _not_done(self, what: str, why: str) -> None:
        self.report.not_done.append(NotDone(what, why))

    def _take_locks(self, stack: ExitStack) -> None:
        holders: list[tuple[str, int | None]] = []
        for folder in self._jobs:
            try:
                stack.callback(self._disk.lock(folder / "job.lock").release)
            except Held as held:
                holders.append((_name(folder), held.pid))
        for topic, count in self._topics.items():
            for number in range(count):
                try:
                    self._disk.lock(self._folder(topic, number) / LOCK_NAME).release()
                except Held as held:
                    holders.append((f"topic {topic}/{number}", held.pid))
        if holders:
            raise InUse(holders)

    def _folder(self, topic: str, number: int) -> Path:
        return self._data_dir / "log" / topic / str(number)

    # Topics. ----------------------------------------------------------------------------------------------------------

    def _partition(self, topic: str, number: int) -> None:
        folder, goes = self._folder(topic, number), self._goes(topic)
        if self._dry_run:
            found = find(self._disk, folder, goes, _new_id)
        else:
            found = erase(self._disk, folder, goes, _new_id, self.report.at_ms)
        self._erased[topic, number] = found.erased.union(found.offsets)
        self.report.topics.append(_partition_part(topic, number, found))

    def _goes(self, topic: str) -> Goes:
        whose = self._whose
        if topic.startswith(TOPIC_PREFIX):
            return lambda key, value: whose.has_record(key, value) or self._is_about(value)
        return whose.has_record

    def _is_about(self, value: bytes) -> bool:
        """Return whether a dead letter is about a record of the key."""
        try:
            letter = msgspec.json.decode(value)
            place = letter["source"], letter["partition"]
            if letter["offset"] in self._erased.get(place, ()):
                return True
            original = letter["original"]
            return original is not None and self._whose.has_record(None, base64.b64decode(original))
        except (msgspec.DecodeError, KeyError, TypeError, binascii.Error):
            return False  # no letter of ours

    # Jobs. ------------------------------------------------------------------------------------------------------------

    def _job(self, folder: Path) -> None:
        path = folder / "data.mdb"
        with Store.open(folder, read_only=self._dry_run) as store:
            size = path.stat().st_size
            found = look_for(store, self._whose, self._editors(store))
            if not self._dry_run:
                forget(store, found)
        part = JobPart(folder.parent.name, folder.name, found.views, found.state, found.pending, size)
        self.report.jobs.append(part)
        self._tell_what_stays(folder, found)
        if not self._dry_run:
            try:
                part.bytes_after = compact(folder).bytes_after
            except (StreamActorsError, OSError) as error:
                self.errors.append(error)
                self._not_done(
                    f"{_name(folder)}: free pages of {path}",
                    f"the rows are gone, but their bytes stay in pages that are free: {error} Then do it again.",
                )

    def _editors(self, store: Store) -> dict[str, Editor]:
        """Return how to edit the output that waits for topics, by sink."""
        from connectors.topic import without_records  # late: connectors import this package's core

        with store.snapshot() as snapshot:
            sinks = [name.removeprefix(PENDING) for name in snapshot.databases() if name.startswith(PENDING)]
        topics = {sink: self._goes(sink.removeprefix(TOPIC_SINK)) for sink in sinks if sink.startswith(TOPIC_SINK)}
        return {sink: partial(without_records, goes=goes) for sink, goes in topics.items()}

    def _tell_what_stays(self, folder: Path, found: Forgotten) -> None:
        self.report.mentions += [Place(f"{_name(folder)}: {name}", count) for name, count in found.mentions.items()]
        for sink, payloads in found.unread.items():
            if self._whose.needle is None:
                self.report.outside.append(
                    f"output for {sink} in the checkpoint of {_name(folder)}: {payloads} payloads, which are searched "
                    "for text only; two checkpoints later they are gone"
                )
                continue
            self._not_done(
                f"{_name(folder)}: output for {sink}",
                f"{payloads} payloads in its checkpoint mention the key, in a form that only the sink reads. Run the "
                "job until it has taken another checkpoint or two, which removes them; stop it, then do it again.",
            )


def _partition_part(topic: str, number: int, found: Found) -> Partition:
    return Partition(
        topic=topic,
        partition=number,
        records=len(found.offsets),
        offsets=found.ranges,
        bytes=found.bytes,
        segments=len(found.segments),
        erased_before=len(found.erased),
        torn_files=len(found.torn),
        torn_bytes=found.torn_bytes,
    )


async def _topics(data_dir: Path) -> dict[str, int]:
    async with Log(data_dir) as log:
        found = [(name, await log.topic(name)) for name in await log.topics()]
        return {name: topic.partitions for name, topic in found if topic is not None}


def _other_targets(folders: list[Path]) -> Iterator[str]:
    """Yield what jobs write that is no topic and no view: the command does not know how to look into it."""
    for folder in folders:
        with Store.open(folder, read_only=True) as store:
            plan: dict[str, Any] = store.plan or {}
        for region in plan.values():
            for name, what in region.get("operators", {}).items():
                kind = what["kind"] if isinstance(what, dict) else what.split()[0]  # text: of an earlier release
                if kind == "sink" and not name.startswith(TOPIC_SINK):
                    yield f"what {_name(folder)} has written to {name}"


def _search(data_dir: Path, whose: Subject) -> Iterator[Place]:
    """Yield the files under *data_dir* that contain the key's text."""
    needle = whose.needle
    if needle is None:
        return
    for path in sorted(path for path in data_dir.rglob("*") if path.is_file() and not path.is_symlink()):
        if count := _count(path, needle):
            yield Place(str(path.relative_to(data_dir)), count)


def _count(path: Path, needle: bytes) -> int:
    count, rest = 0, b""
    with path.open("rb") as file:
        while piece := file.read(_SEARCH_BYTES):
            piece = rest + piece
            count += piece.count(needle)
            rest = piece[len(piece) - len(needle) + 1 :] if len(needle) > 1 else b""
    return count


def _refuse_unknown(kind: str, names: Sequence[str], known: list[str], data_dir: Path) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {kind} {name} in {data_dir}. There are: {', '.join(known) or 'none'}.")


def _name(folder: Path) -> str:
    return f"job {folder.parent.name} {folder.name}"


def _new_id() -> str:
    return token_hex(16)
