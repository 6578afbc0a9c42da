"""A relay of numbers under seeded misfortune, under any guarantee: is a number lost, repeated, counted wrong?

Each number is unique, so each can be found again in the topic that the relay writes; a view counts them. Drawn from the
seed: partitions, parts, appends while the job runs, functions and syncs that fail, where processes die. What must hold:

    exactly-once     after catching up, and at the end: the view counts each number of the log once, the topic has each
                     once, in the order of its partition
    at-least-once    the same of the view; the topic has each at least once, and without repeats in that order
    at-most-once     the topic has none twice, in that order; the view never counts more than there are
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from streamactors.core.connectors import Guarantee
from streamactors.durable.log import Log, Topic
from streamactors.engine.restarts import RestartPolicy
from streamactors.flow.sequencer import Bound
from streamactors.graph.pipeline import Pipeline
from streamactors.job.runner import Job, run
from streamactors.job.settings import Settings

from .unchanged import values_stay_unchanged
from .world import CrashAtPoint, CrashAtTime, CrashPlan, Ended, Process, World

TOPIC, SEEN, VIEW = "numbers", "seen", "counts"
KINDS = 5
"""Keys of the view."""


@dataclass
class RelayReport:
    """What a seed met."""

    records: int = 0
    crashes: int = 0
    restarts: int = 0
    failed_syncs: int = 0
    looks: int = 0
    lost: int = 0
    repeated: int = 0


class RelaySimulation:
    """One seed. See the module's header."""

    def __init__(self, seed: int, folder: Path, guarantee: Guarantee) -> None:
        self.report = RelayReport()
        self._random = Random(seed)
        self._world = World(Random(self._random.getrandbits(64)), folder)
        self._guarantee = guarantee
        self._partitions = self._random.randint(1, 3)
        self._parts = self._random.randint(1, 3)
        self._made = 0
        self._calls_to_fault = math.inf

    def run(self) -> RelayReport:
        """Live through it all; an AssertionError says what did not hold."""
        with values_stay_unchanged():
            for _ in range(self._random.randint(2, 6)):
                self._world.run(self._life, self._plan())
            assert isinstance(self._world.run(self._last_life), Ended), "died where it should not"
        self.report.crashes = self._world.crashes.total()
        return self.report

    def _plan(self) -> CrashPlan:
        if self._random.random() < 0.5:
            return CrashAtPoint(int(math.exp(self._random.random() * math.log(600))))
        return CrashAtTime(self._random.random() * 3)

    async def _life(self, process: Process) -> None:
        self._calls_to_fault = self._random.choice([math.inf, self._random.randint(1, 60)])
        settings = self._settings(Bound.LIVE)
        async with run(self._pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
            if self._random.random() < 0.3:  # not before: a start that meets it is refused
                self._let_a_sync_fail(process, self._random.randint(1, 6))
            topic = await _topic(job.log, TOPIC)
            for _ in range(self._random.randint(1, 12)):
                numbers = range(self._made, self._made + self._random.randint(1, 20))
                self._made = numbers.stop
                await topic.append_many([b"%d" % number for number in numbers], keys=[b"%d" % n for n in numbers])
                await process.ports.clock.sleep(self._random.random() ** 3)
                await self._look(job, caught_up=self._random.random() < 0.3)
            if self._random.random() < 0.3:
                await job.stop()

    def _let_a_sync_fail(self, process: Process, nth: int) -> None:
        """Let the disk say no, once, when the sink's topic is synced: the partition is closed, and opened anew."""
        passed, syncs = process.disk.on_operation, 0

        def on_operation(operation: str, path: Path) -> None:
            nonlocal syncs
            if passed is not None:
                passed(operation, path)
            syncs += operation == "sync" and SEEN in path.parts and path.suffix == ".segment"
            if syncs == nth:
                syncs += 1
                self.report.failed_syncs += 1
                raise OSError(errno.EIO, "the disk did not answer", str(path))

        process.disk.on_operation = on_operation

    async def _last_life(self, process: Process) -> None:
        self._calls_to_fault = math.inf
        settings = self._settings(Bound.UNTIL_END)
        async with run(self._pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
            await job.wait()
            sent, seen = await _read(job.log, TOPIC), await _read(job.log, SEEN)
            self._check_view(job, sent, exact=True)
            self._check_topic(sent, seen)

    async def _look(self, job: Job, *, caught_up: bool) -> None:
        """Compare the view with the log. What is appended meanwhile is appended by nobody else."""
        if caught_up:
            await job.catch_up()
        at_rest = caught_up and self._guarantee is not Guarantee.AT_MOST_ONCE
        self._check_view(job, await _read(job.log, TOPIC), exact=at_rest)
        self.report.looks += 1

    def _check_view(self, job: Job, sent: list[list[int]], *, exact: bool) -> None:
        shown = dict(job.views[VIEW].items())
        there = Counter(number % KINDS for numbers in sent for number in numbers)
        more = {kind: count for kind, count in shown.items() if count > there[kind]}
        assert not more, f"{self._guarantee.value}: counted {more} of {there}"
        if exact and self._guarantee is not Guarantee.AT_MOST_ONCE:
            assert shown == there, f"{self._guarantee.value}: {shown} instead of {there}"

    def _check_topic(self, sent: list[list[int]], seen: list[list[int]]) -> None:
        order = [number for numbers in seen for number in numbers]
        once = list(dict.fromkeys(order))
        everything = {number for numbers in sent for number in numbers}
        assert set(once) <= everything, "something was seen that is not in the log"
        for numbers in sent:
            kept, wanted = [n for n in once if n in set(numbers)], [n for n in numbers if n in set(once)]
            assert kept == wanted, f"out of order: {kept} instead of {wanted}"
        self.report.records = len(everything)
        self.report.lost, self.report.repeated = len(everything) - len(once), len(order) - len(once)
        promised = {
            Guarantee.EXACTLY_ONCE: not self.report.lost and not self.report.repeated,
            Guarantee.AT_LEAST_ONCE: not self.report.lost,
            Guarantee.AT_MOST_ONCE: not self.report.repeated,
        }
        assert promised[self._guarantee], f"{self._guarantee.value}: {self.report}"

    def _pipeline(self) -> Pipeline:
        pipeline = Pipeline("relay", parts=self._parts)
        numbers = pipeline.topic(TOPIC, int).map(self._touch)
        numbers.key_by(lambda number: number % KINDS).count().to_view(VIEW)
        numbers.to_topic(SEEN)

        @pipeline.before_start
        async def prepare(log: Log) -> None:
            await log.create_topic(TOPIC, self._partitions)

        return pipeline

    def _settings(self, bound: Bound) -> Settings:
        return Settings(
            checkpoint_every_ms=self._random.choice([20, 100, 1_000]),
            guarantee=self._guarantee,
            bound=bound,
            restarts=RestartPolicy(restarts_max=1_000),
            batch_records=self._random.choice([1, 7, 1_024]),
            sync=False,
        )

    def _touch(self, value: int) -> int:
        self._calls_to_fault -= 1
        if not self._calls_to_fault:
            self.report.restarts += 1
            raise RuntimeError("a service that the pipeline asks was away for a moment")
        return value


async def _topic(log: Log, name: str) -> Topic:
    topic = await log.topic(name)
    assert topic is not None, f"there is no topic {name}"
    return topic


async def _read(log: Log, name: str) -> list[list[int]]:
    """Return the numbers of each partition, as far as they are durable."""
    topic, found = await _topic(log, name), []
    for partition in range(topic.partitions):
        reader = topic.partition(partition).reader()
        numbers: list[int] = []
        while chunks := await reader.read():
            numbers += [int(value) for chunk in chunks for value in chunk.values()]
        await reader.close()
        found.append(numbers)
    await asyncio.sleep(0)
    return found
