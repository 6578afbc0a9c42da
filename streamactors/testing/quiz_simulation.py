"""The quiz pipeline under seeded misfortune.

Everything is drawn from the seed: the pipeline's settings, the input, how it is appended while the job runs, in which
order tasks run and how long threads take, functions that fail now and then, times without room on the disk and in the
state's quota, and where processes and machines die. Each life of the job finds what the one before left. Then:

    always           the views that a reader sees are, both together, what the oracle says for the journal of the same
                     commit (E1), and epochs only rise. The late topic never holds more than that (E2).
    at the end       all that was appended is in the log, once where it was said; views and late topic are the oracle's.
    once more        the journal is followed in another folder, with other timing, crashes and batches: views and late
                     topic are equal (T1), with another number of parts as well.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from streamactors.core.errors import JobFailed, QuotaFull
from streamactors.durable.frames import Records
from streamactors.durable.log import Log, Topic
from streamactors.engine.restarts import RestartPolicy
from streamactors.flow.sequencer import Bound
from streamactors.job.region import state_lane
from streamactors.job.room import is_full
from streamactors.job.runner import Job, run
from streamactors.job.settings import Settings

from .quiz import QuizOracle, Submission, Submissions, random_quiz
from .unchanged import values_stay_unchanged
from .world import CrashAtLabel, CrashAtPoint, CrashAtTime, CrashPlan, Ended, Process, World

CRASH_POINTS = (
    "before Store.commit",
    "after Store.commit",
    "before Store.begin_attempt",
    "after Store.begin_attempt",
    "before Job._open_store",
    "after Job._open_store",
    "lock v#/job.lock",
    "rename log/submissions/topic.json",
    "create submissions/#/#.segment.new",
    "sync submissions/#/#.segment.new",
    "rename submissions/#/#.segment",
    "write submissions/#/#.segment",
    "sync submissions/#/#.segment",
    "store submissions/#/durable_end",
    "store late/#/durable_end",
    "rename late/#/#.segment",
    "before GroupCommit._write",
    "after GroupCommit._write",
    "before SegmentReader.read",
)
"""Points that every run of many seeds must die at: the first crash of a seed is at one of them, in turn."""

RECOVERY_POINTS = (
    "remove submissions/#/durable_end",
    "remove late/#/durable_end",
    "truncate submissions/#/#.segment",
    "write submissions/#/#.segment.#.torn",
    "sync submissions/#/#.segment.#.torn",
    "sync_folder log/submissions/#",
    "remove late/#/#.segment.new",
    "create submissions/#/durable_end",
    "write late/#/#.segment",
    "sync late/#/#.segment",
)
"""Points that are rarely reached, most of them when a crash has left something: later crashes are often at one."""

REGION = "submissions"

QUOTA_BYTES = 1 << 30
"""Of the job's state: what there is, while there is room."""


@dataclass
class Report:
    """What a seed met."""

    seed: int
    crashes: Counter[str] = field(default_factory=Counter)
    """Points at which a process died."""

    reached: Counter[str] = field(default_factory=Counter)
    """All points."""

    records: int = 0
    late: int = 0
    epochs: int = 0
    looks: int = 0
    """How often the views were compared while the job ran."""

    restarts: int = 0
    """Failures of a region inside a living process."""

    waits: int = 0
    """Times without room at whose end the job was waiting for it."""


class QuizSimulation:
    """One seed. See the module's header."""

    def __init__(self, seed: int, folder: Path, *, talk: bool = False) -> None:
        self.report = Report(seed)
        self._random = Random(seed)
        self._folder = folder
        self._talk = talk
        self._quiz = random_quiz(self._random)
        self._input = Submissions(self._random, self._quiz)
        self._log: list[list[bytes]] = [[] for _ in range(self._quiz.partitions)]
        self._oracle = QuizOracle(self._quiz, self._read)
        self._promised: list[tuple[int, int, list[bytes]]] = []
        self._epoch = 0
        self._calls_to_fault = math.inf

    def run(self) -> Report:
        """Live through it all; an AssertionError says what did not hold."""
        self._say(self._quiz)
        world = World(Random(self._random.getrandbits(64)), self._folder / "first")
        with values_stay_unchanged():
            for plan in _plans(self.report.seed, self._random):
                self._outcome(plan, world.run(self._life, plan))
            journal, late = _result(world.run(self._last_life))
            self._follow_once_more(journal, late)
        self._count(world)
        return self.report

    # The first run. ---------------------------------------------------------------------------------------------------

    async def _life(self, process: Process) -> None:
        """Append and run for a while; end by draining, stopping, or at the end of the input."""
        bound = self._random.choice([Bound.LIVE, Bound.LIVE, Bound.UNTIL_END])
        pieces = self._random.randint(0, 12)
        self._plan_fault()
        async with (
            _until_no_room(),
            run(self._pipeline(), process.data_dir, ports=process.ports, settings=self._settings(bound)) as job,
        ):
            watcher = asyncio.create_task(self._watch(process, job), name="watcher")
            scarcity = asyncio.create_task(self._run_out_of_room(process, job), name="scarcity")
            try:
                await self._append(process, job, pieces)
                await self._linger(process, job, bound)
            finally:
                for task in (watcher, scarcity):
                    task.cancel()
                await asyncio.wait([watcher, scarcity])
            for task in (watcher, scarcity):
                if not task.cancelled():
                    task.result()
            await self._look(process, job)

    async def _run_out_of_room(self, process: Process, job: Job) -> None:
        """Now and then, leave the disk and the state's quota hardly any room, for a while."""
        while self._random.random() < 0.5:
            await process.ports.clock.sleep(self._random.random() ** 2 * 2)
            disk = process.disk
            try:
                disk.quota_bytes = disk.used + self._random.randint(0, 2_000)
                await self._set_quota(process, job, self._random.randint(1, 50_000))
                await process.ports.clock.sleep(self._random.random() ** 2 * 10)
                self.report.waits += job.state == "waiting"
            finally:
                disk.quota_bytes = None
            await self._set_quota(process, job, QUOTA_BYTES)

    async def _set_quota(self, process: Process, job: Job, quota_bytes: int) -> None:
        assert process.store is not None
        await process.ports.threads.run(state_lane(job.name), process.store.set_quota, quota_bytes)

    async def _linger(self, process: Process, job: Job, bound: Bound) -> None:
        if bound is not Bound.LIVE:
            await job.wait()
            return
        await process.ports.clock.sleep(self._random.random() ** 2 * 4)
        fate = self._random.random()
        if fate < 0.2:
            await job.stop()
        elif fate < 0.4:
            await job.checkpoint()
        elif fate < 0.6:
            await job.drain()

    async def _last_life(self, process: Process) -> tuple[list[Any], list[list[bytes]]]:
        """Run to the end of the input; look at everything."""
        if not any(self._log):
            await self._fill(process)
        self._plan_fault()
        settings = self._settings(Bound.UNTIL_END)
        async with run(self._pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
            await job.wait()
            await self._look(process, job)
            topic = await _topic(job.log, REGION)
            image = [await _read_all(topic, p) for p in range(topic.partitions)]
            for before, now in zip(self._log, image, strict=True):
                assert now[: len(before)] == before, "what was durable has changed"
            for partition, offset, lines in self._promised:
                assert image[partition][offset : offset + len(lines)] == lines, f"lost: {partition} from {offset}"
            assert process.store is not None
            journal = list(process.store.journal(REGION))
            _check_ranges(journal, image)
            late = await self._late(job)
            assert late == self._oracle.late, _difference("late", late, self._oracle.late)
            assert process.store.restore(REGION) is not None
        self.report.records = sum(map(len, image))
        self.report.late = sum(map(len, late))
        self.report.epochs = self._epoch
        return journal, late

    async def _append(self, process: Process, job: Job, pieces: int) -> None:
        topic = await _topic(job.log, REGION)
        for _ in range(pieces):
            lines = self._input.take(self._random.randint(1, 25))
            with suppress(QuotaFull):  # what was not promised may be in other partitions, or nowhere
                await self._append_piece(topic, lines)
            await process.ports.clock.sleep(self._random.random() ** 3)

    async def _append_piece(self, topic: Topic, lines: list[bytes]) -> None:
        if self._random.random() < 0.5:
            await topic.append_many(lines, keys=[line[20:30] for line in lines])
            return
        partition = int(self._random.random() ** 3 * topic.partitions)  # some partitions get nothing for long
        offset = await topic.partition(partition).append(Records.of(lines))
        self._promised.append((partition, offset, lines))

    async def _fill(self, process: Process) -> None:
        """Append something, so that there is an input at all."""
        async with Log(process.data_dir, process.ports) as log:
            topic = await log.create_topic(REGION, self._quiz.partitions)
            await topic.append_many(self._input.take(self._random.randint(1, 60)))

    # Looking. ---------------------------------------------------------------------------------------------------------

    async def _watch(self, process: Process, job: Job) -> None:
        while True:
            await process.ports.clock.sleep(self._random.random() * 0.8)
            await self._look(process, job)

    async def _look(self, process: Process, job: Job) -> None:
        """Compare what a reader sees now with what the oracle says for the journal of the same commit (E1)."""
        store = process.store
        assert store is not None
        late = await _topic(job.log, "late")
        # From here to the next await nothing can be committed: all of it is of one moment.
        ends = [late.partition(p).durable_end() for p in range(late.partitions)]
        restored = store.restore(REGION)
        if restored is None:
            assert not any(ends), f"E2: {ends} late records are visible before the first checkpoint"
            return
        with job.views.snapshot() as view:
            counts, totals = dict(view("quiz_counts").items()), dict(view("quiz_totals").items())
        entries = list(store.journal(REGION, after_epoch=self._epoch))
        await self._read_log(job)
        assert restored.epoch >= self._epoch, f"E1: epoch {restored.epoch} was seen after {self._epoch}"
        self._epoch = restored.epoch
        self._oracle.follow(entries)
        where = f"at epoch {restored.epoch}"
        assert counts == self._oracle.counts, _difference(f"quiz_counts {where}", counts, self._oracle.counts)
        assert totals == self._oracle.totals, _difference(f"quiz_totals {where}", totals, self._oracle.totals)
        for partition, end in enumerate(ends):
            known = len(self._oracle.late[partition])
            assert end <= known, f"E2: {end} late records in partition {partition}, {known} {where}"
        self.report.looks += 1

    async def _read_log(self, job: Job) -> None:
        topic = await _topic(job.log, REGION)
        for partition, known in enumerate(self._log):
            known.extend(await _read_all(topic, partition, len(known)))

    async def _late(self, job: Job) -> list[list[bytes]]:
        topic = await _topic(job.log, "late")
        return [await _read_all(topic, p) for p in range(topic.partitions)]

    def _read(self, partition: int, first: int, end: int) -> list[bytes]:
        lines = self._log[partition][first:end]
        assert len(lines) == end - first, f"E2: the journal has read {partition} to {end}, past what is durable"
        return lines

    # Once more, from the journal. -------------------------------------------------------------------------------------

    def _follow_once_more(self, journal: list[Any], late: list[list[bytes]]) -> None:
        world = World(Random(self._random.getrandbits(64)), self._folder / "again")
        _result(world.run(self._copy_log))
        parts = self._random.choice([self._quiz.parts, self._quiz.parts, 1, 4])
        settings = self._settings(Bound.LIVE, {REGION: journal})

        async def follow(process: Process) -> None:
            self._plan_fault()
            pipeline = self._pipeline(parts)
            async with run(pipeline, process.data_dir, ports=process.ports, settings=settings) as job:
                await job.wait()
                counts, totals = (dict(job.views[name].items()) for name in ("quiz_counts", "quiz_totals"))
                assert counts == self._oracle.counts, _difference("T1: quiz_counts", counts, self._oracle.counts)
                assert totals == self._oracle.totals, _difference("T1: quiz_totals", totals, self._oracle.totals)
                again = await self._late(job)
                assert again == late, _difference("T1: late", again, late)

        for _ in range(self._random.choice([0, 0, 1, 2])):
            plan = _random_plan(self._random)
            self._outcome(plan, world.run(follow, plan))
        _result(world.run(follow))
        self._count(world)

    async def _copy_log(self, process: Process) -> None:
        async with Log(process.data_dir, process.ports) as log:
            topic = await log.create_topic(REGION, self._quiz.partitions)
            for partition, lines in enumerate(self._log):
                if lines:
                    await topic.partition(partition).append(Records.of(lines))

    # What both have in common. ----------------------------------------------------------------------------------------

    def _pipeline(self, parts: int | None = None) -> Any:
        pipeline = replace(self._quiz, parts=parts or self._quiz.parts).pipeline(self._touch)

        @pipeline.before_start
        async def prepare(log: Log) -> None:
            await log.create_topic(REGION, self._quiz.partitions)

        return pipeline

    def _settings(self, bound: Bound, follow: dict[str, Iterable[tuple[Any, ...]]] | None = None) -> Settings:
        return Settings(
            checkpoint_every_ms=self._random.choice([20, 100, 300, 1_000]),
            bound=bound,
            restarts=RestartPolicy(restarts_max=1_000),
            batch_records=self._random.choice([1, 2, 7, 64, 1_024]),
            follow=follow,
            quota_bytes=QUOTA_BYTES,
            sync=False,
        )

    def _plan_fault(self) -> None:
        """Let a function of the pipeline fail at one of its next calls, now and then."""
        self._calls_to_fault = self._random.choice([math.inf, self._random.randint(1, 400)])

    def _touch(self, value: Submission) -> Submission:
        self._calls_to_fault -= 1
        if not self._calls_to_fault:
            self.report.restarts += 1
            raise RuntimeError("a service that the pipeline asks was away for a moment")
        return value

    def _outcome(self, plan: CrashPlan, outcome: Any) -> None:
        self._say(f"{plan}: {outcome}")

    def _count(self, world: World) -> None:
        self.report.crashes += world.crashes
        self.report.reached += world.reached

    def _say(self, what: object) -> None:
        if self._talk:
            print(what)  # noqa: T201 - the command's output


def _result(outcome: Any) -> Any:
    assert isinstance(outcome, Ended), f"died where it should not: {outcome}"
    return outcome.result


def _plans(seed: int, random: Random) -> list[CrashPlan]:
    """Draw where the lives of a seed end. Of neighbouring seeds, one of two aims at a point in turn, for certain."""
    turn, point = divmod(seed, len(CRASH_POINTS))
    others = [_random_plan(random) for _ in range(random.randint(0, 4))]
    aimed = CrashAtLabel(CRASH_POINTS[point], random.randint(1, 4) if turn % 2 else 1)
    return others if turn % 2 and random.random() < 0.5 else [aimed, *others]


def _random_plan(random: Random) -> CrashPlan:
    """Draw where a process dies: early or late, at something rare, or at any time."""
    fate = random.random()
    if fate < 0.5:
        return CrashAtPoint(int(math.exp(random.random() * math.log(400))))
    if fate < 0.65:
        return CrashAtLabel(random.choice(RECOVERY_POINTS), random.randint(1, 2))
    if fate < 0.85:
        return CrashAtLabel(random.choice(CRASH_POINTS), random.randint(1, 6))
    return CrashAtTime(random.random() ** 2 * 4)


@asynccontextmanager
async def _until_no_room() -> AsyncIterator[None]:
    """End quietly when a job that drains has no room for its last checkpoint: the next life goes on from there."""
    try:
        yield
    except JobFailed as failed:
        if not all(is_full(cause) for cause in failed.exceptions):
            raise


async def _topic(log: Log, name: str) -> Topic:
    topic = await log.topic(name)
    assert topic is not None, f"there is no topic {name}"
    return topic


async def _read_all(topic: Topic, partition: int, start: int = 0) -> list[bytes]:
    """Return the values of a partition from *start* to its durable end."""
    reader = topic.partition(partition).reader(start)
    values: list[bytes] = []
    while chunks := await reader.read():
        values += [bytes(value) for chunk in chunks for value in chunk.values()]
    await reader.close()
    return values


def _check_ranges(journal: list[Any], image: list[list[bytes]]) -> None:
    """(S1): each record was read once, in order, up to the end."""
    ends = [0] * len(image)
    for kind, *rest in journal:
        if kind == "read":
            _, partition, first, end = rest
            assert first == ends[partition], f"S1: partition {partition} goes on at {first}, it stood at {ends}"
            ends[partition] = end
    assert ends == list(map(len, image)), f"read to {ends}, the log ends at {list(map(len, image))}"


def _difference(what: str, found: Any, expected: Any) -> str:
    """Say where two tables, or lists of lists, begin to differ."""
    if isinstance(found, dict):
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        shown = ", ".join(f"{key}: {found.get(key)} instead of {expected.get(key)}" for key in keys[:5])
        return f"{what} differs in {len(keys)} rows: {shown}"
    for number, (lines, wanted) in enumerate(zip(found, expected, strict=True)):
        place = next((i for i, (a, b) in enumerate(zip(lines, wanted, strict=False)) if a != b), None)
        if lines != wanted:
            return f"{what}, partition {number}: {len(lines)} instead of {len(wanted)}, first difference at {place}"
    return what
