"""One view, kept by a Lambda architecture and by a Kappa architecture over the same log: error and cost over time.

    pip install matplotlib
    python examples/lambda_vs_kappa.py --picture lambda_vs_kappa.svg

The view counts who passed: [quiz_id, hour of submission] → submissions with at least 50 points. Four school days are
simulated, in ticks of half an hour. Phones send late, by seconds mostly, by hours sometimes. What happens:

    day 2    what counts live dies, with the records of 11:00 to 11:30 counted, not committed; it is back from 12:30 on
    day 3    half points are given from the morning on. The rule rounds, so 49.5 passes. It is mended at noon
    day 4    nothing but late phones, as on day 1

Lambda    A batch layer counts the whole log anew each night. A speed layer counts what has come since, at least once.
          Who reads adds the two. It is two programs, and each has the rule.
Kappa     One pipeline, exactly-once. Its second version, with the rule mended, replays the log beside the first, and is
          then served instead.

Both are asked at the end of each tick. Chance is seeded and time simulated, so errors are the same in each run; seconds
of CPU are real. docs/lambda-vs-kappa.md tells what is modelled and what not.
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import lambda_vs_kappa_scene as scene
import msgspec
from lambda_vs_kappa_scene import HOUR, Cost

import streamactors as sa
from streamactors.durable.catalogue import Catalogue
from streamactors.durable.files import RealDisk
from streamactors.durable.log import Topic
from streamactors.job.folders import job_folder

Counts = Counter[tuple[str, int]]


class Submission(msgspec.Struct):
    """What is counted."""

    quiz_id: str
    score: float
    submitted_at: int  # ms since the epoch


DECODER = msgspec.json.Decoder(Submission)
Rule = Callable[[Submission], bool]


def rounding_rule(submission: Submission) -> bool:
    return round(submission.score) >= 50


def mended_rule(submission: Submission) -> bool:
    return submission.score >= 50


def quiz_and_hour(submission: Submission) -> tuple[str, int]:
    return submission.quiz_id, submission.submitted_at // HOUR * HOUR


# Lambda: two programs, and a merge. -----------------------------------------------------------------------------------


class Lambda:
    """In one process here. It would be a nightly job, a service, and what readers call to have both added."""

    LATE_MAX = HOUR  # the speed layer has this much in memory; what comes later is left to the batch

    def __init__(self, topic: Topic) -> None:
        self.topic, self.cost = topic, Cost()
        self.batch_rule = self.speed_rule = rounding_rule
        self.batch, self.speed = Counts(), Counts()  # both in stores that survive a crash of what fills them
        self.position = self.committed = 0  # of the speed layer: the first is lost in a crash, the second is not
        self.newest = self.too_late = self.repeated = 0

    def view(self) -> Counts:
        return self.batch + self.speed

    async def run_batch(self) -> None:
        with self.cost.spending():
            self.batch = Counts(quiz_and_hour(one) for one in await self.read(0) if self.batch_rule(one))
            self.speed = Counts()

    async def run_speed(self) -> None:
        with self.cost.spending():
            submissions = await self.read(self.position)
            for submission in submissions:
                self.newest = max(self.newest, submission.submitted_at)
                if submission.submitted_at < self.newest - self.LATE_MAX:
                    self.too_late += 1
                elif self.speed_rule(submission):
                    self.speed[quiz_and_hour(submission)] += 1
            self.position += len(submissions)

    def commit(self) -> None:
        self.committed = self.position

    def restart(self) -> None:
        """Go on from the last committed offset: nothing is lost, and what was counted since is counted again."""
        self.repeated += self.position - self.committed
        self.position = self.committed

    async def read(self, start: int) -> list[Submission]:
        reader, found = self.topic.partition(0).reader(start), []
        while chunks := await reader.read():
            found += [DECODER.decode(line) for chunk in chunks for line in chunk.values()]
        await reader.close()
        self.cost.records += len(found)
        return found


# Kappa: one pipeline, in versions. ------------------------------------------------------------------------------------


def pipeline(name: str, rule: Rule, cost: Cost) -> sa.Pipeline:
    def passed(submission: Submission) -> bool:
        cost.records += 1
        return rule(submission)

    flow = sa.Pipeline(name)
    flow.topic("submissions", Submission).filter(passed).key_by(quiz_and_hour).count().to_view("passed")
    return flow


def rows(views: Any) -> Counts:
    return Counts({tuple(key): count for key, count in views["passed"].items()})


class Kappa:
    """The versions that run, and what readers see."""

    def __init__(self, data_dir: Path, log: sa.Log) -> None:
        self.data_dir, self.log, self.cost = data_dir, log, Cost()
        self.running: dict[str, tuple[sa.Job, AsyncExitStack]] = {}  # by version

    def view(self) -> Counts:
        """Read what is served, as another process would, whether the job runs or not."""
        with sa.open_views(self.data_dir, "passed") as views:
            return rows(views)

    async def start(self, version: str, rule: Rule) -> None:
        settings = sa.Settings(version=version, checkpoint_every_ms=HOUR)  # one is taken when we catch up
        run = sa.run(pipeline("passed", rule, self.cost), self.data_dir, settings=settings, log=self.log)
        stack = AsyncExitStack()
        with self.cost.spending():
            self.running[version] = await stack.enter_async_context(run), stack

    async def catch_up(self) -> None:
        with self.cost.spending():
            for job, _ in self.running.values():  # the second follows the checkpoints of the first
                await job.catch_up()

    async def crash(self, version: str, handled: int) -> None:
        """Die with *handled* records handled, and no checkpoint behind the last ones."""
        with self.cost.spending():
            await scene.until(lambda: self.cost.records >= handled)
            job, stack = self.running.pop(version)
            await job.stop()
            await stack.aclose()

    async def promote(self, version: str, *, instead_of: str) -> None:
        with self.cost.spending(), sa.open_views(self.data_dir, "passed") as views:
            catalogue, now = Catalogue(RealDisk(), job_folder(self.data_dir, "passed")), int(time.time() * 1_000)
            catalogue.change("passed", instead_of, now, lambda versions: versions.ask(version, now))
            await scene.until(lambda: views.version == version)
            await self.running.pop(instead_of)[1].aclose()


async def compare_bounded(data_dir: Path, log: sa.Log, live: Counts) -> None:
    """Run the same pipeline from nothing to the end of the log, as --until-end does: this is our batch layer."""
    cost, settings = Cost(), sa.Settings(bound=sa.Bound.UNTIL_END)
    with cost.spending():
        async with sa.run(pipeline("passed-bounded", mended_rule, cost), data_dir, settings=settings, log=log) as job:
            await job.wait()
            found = rows(job.views)
    verdict = f"its {len(found)} rows {'equal' if found == live else 'DIFFER FROM'} the live view"
    print(f"Bounded run: {cost.records:,} records, {cost.seconds:.2f} s of CPU; {verdict}.")


# The story. -----------------------------------------------------------------------------------------------------------


async def story(data_dir: Path, records: int) -> list[scene.Sample]:
    """Play the four days, and say what the bounded run finds in the end; return a sample behind each tick and night."""
    samples: list[scene.Sample] = []
    async with sa.Log(data_dir) as log:
        topic = await log.create_topic("submissions")
        lambda_, kappa, truth = Lambda(topic), Kappa(data_dir, log), Counts()

        await kappa.start("v1", rounding_rule)
        for tick, lines in enumerate(scene.arrivals(records)):
            handled = kappa.cost.records + len(lines)
            with kappa.cost.spending():  # its pipeline reads while we append, so that is counted as its work, too
                await topic.append_many(lines)
            truth += scene.true_counts(lines)
            await play(tick, lambda_, kappa, handled)
            samples.append(scene.sample(scene.end_of(tick), truth, lambda_, kappa))
            if scene.ends_day(tick):
                await lambda_.run_batch()
                samples.append(scene.sample(scene.night_after(tick), truth, lambda_, kappa))
        await compare_bounded(data_dir, log, kappa.view())
        await kappa.running["v2"][1].aclose()
    print(f"Speed layer: {lambda_.too_late:,} records came too late for it, {lambda_.repeated:,} it counted twice.")
    return samples


async def play(tick: int, lambda_: Lambda, kappa: Kappa, handled: int) -> None:
    """Do what is due in a tick, when its records have arrived."""
    if scene.CRASH < tick < scene.RESTART:
        return  # nobody has noticed
    if tick == scene.RESTART:
        lambda_.restart()
        await kappa.start("v1", rounding_rule)
    if tick == scene.MENDED:
        lambda_.batch_rule = lambda_.speed_rule = mended_rule  # in two programs
        await kappa.start("v2", mended_rule)
    if tick == scene.CRASH:
        await kappa.crash("v1", handled)
        await lambda_.run_speed()  # and dies, before it has committed
        return
    await kappa.catch_up()
    await lambda_.run_speed()
    lambda_.commit()
    if tick == scene.PROMOTED:
        await kappa.promote("v2", instead_of="v1")


def main() -> None:
    options = argparse.ArgumentParser(description="A Lambda and a Kappa architecture over the same log.")
    options.add_argument("--records", type=int, default=80_000, help="how many submissions arrive in the four days")
    options.add_argument("--picture", type=Path, help="where to draw the picture: a file .svg or .png")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = asyncio.run(story(Path(folder), given.records))
    print(scene.table(samples))
    if given.picture:
        scene.draw(samples, given.picture)


if __name__ == "__main__":
    main()
