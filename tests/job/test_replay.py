"""Everything is a function of the journal: (T1) at any speed and after any crash, (T2) however its ranges are cut.

Runs are simulated (streamactors/testing/world.py). The first one decides: four partitions, appended to while it runs.
"""

from dataclasses import dataclass
from random import Random

import pytest

from streamactors import Bound, Log, Pipeline, RestartPolicy, Settings, Tumbling, count, mean, run
from streamactors.durable.frames import Records
from streamactors.flow.sequencing import joined
from streamactors.testing.quiz import Quiz, Submission, Submissions
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, Crashed, Ended, World

QUIZ = Quiz(window=60_000, lateness=60_000, disorder=5_000)
VIEWS = ("quiz_counts", "quiz_totals")
TOPICS = {"late": 2, "finals": 2, "changes": 1, "running": 1}


@dataclass
class Outcome:
    """What a run has made: its journal, rows, and for each topic and partition the bytes in their order."""

    journal: list
    views: dict
    topics: dict


def everything(partitions, parts=1):
    """Return the quiz with each kind of output: views, late records whole, final results, and every change."""
    pipeline = Pipeline("quiz", parts=parts)
    submissions = pipeline.topic("submissions", Submission)
    by_quiz = submissions.event_time("submitted_at", disorder=QUIZ.disorder, idle_after="300ms").key_by("quiz_id")
    counts = by_quiz.window(Tumbling(QUIZ.window)).allowed_lateness(QUIZ.lateness).early(every="500ms").count()
    counts.to_view("quiz_counts")
    counts.late.original().to_topic("late", partitions=TOPICS["late"])
    counts.final().to_topic("finals", partitions=TOPICS["finals"])
    counts.changes().to_topic("changes")
    totals = by_quiz.aggregate(count=count(), mean_score=mean("score"))
    totals.to_view("quiz_totals")
    by_quiz.map_with_state(lambda value, n: ([value.quiz_id, n or 0], (n or 0) + 1)).to_topic("running")

    @pipeline.before_start
    async def prepare(log):
        await log.create_topic("submissions", partitions)

    return pipeline


def lines(records, seed=5):
    return Submissions(Random(seed), QUIZ).take(records)


def settings(**changed):
    return Settings(**{"checkpoint_every_ms": 100, "restarts": RestartPolicy(restarts_max=0), "sync": False, **changed})


async def read_topic(log, name):
    topic = await log.topic(name)
    partitions = []
    for number in range(topic.partitions):
        reader, values = topic.partition(number).reader(), []
        while chunks := await reader.read():
            values += [bytes(value) for chunk in chunks for value in chunk.values()]
        await reader.close()
        partitions.append(values)
    return partitions


async def look(process, job):
    views = {name: dict(job.views[name].items()) for name in VIEWS}
    topics = {name: await read_topic(job.log, name) for name in TOPICS}
    return Outcome(list(joined(process.store.journal("submissions"))), views, topics)


def bounded(world, partitions, plan=None, **how):
    """Run to the end of the input, or of the journal that is followed."""
    parts = how.pop("parts", 1)

    async def life(process):
        job_settings = settings(bound=Bound.UNTIL_END, **how)
        pipeline = everything(partitions, parts)
        async with run(pipeline, process.data_dir, ports=process.ports, settings=job_settings) as job:
            await job.wait()
            return await look(process, job)

    return world.run(life, plan)


def append(world, shares):
    """Append each partition's share, in another process than the job's."""

    async def life(process):
        async with Log(process.data_dir, process.ports) as log:
            topic = await log.create_topic("submissions", len(shares))
            for number, share in enumerate(shares):
                if share:
                    await topic.partition(number).append(Records.of(share))

    assert isinstance(world.run(life), Ended)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Return a live run over four partitions that were appended to meanwhile, and what each of them holds."""
    world, random = World(Random(1), tmp_path_factory.mktemp("live")), Random(2)
    shares = [[], [], [], []]

    async def life(process):
        async with run(everything(4), process.data_dir, ports=process.ports, settings=settings()) as job:
            topic = await job.log.topic("submissions")
            source = Submissions(Random(5), QUIZ)
            for _ in range(60):
                number, piece = int(4 * random.random() ** 2), source.take(random.randint(1, 12))
                await topic.partition(number).append(Records.of(piece))
                shares[number] += piece
                await process.ports.clock.sleep(random.random() ** 3)
            await job.drain()
            return await look(process, job)

    ended = world.run(life)
    assert isinstance(ended, Ended)
    return ended.result, shares


@pytest.fixture
def again(tmp_path, live):
    """Follow the live run's journal in a world of its own; what that gives."""
    result, shares = live

    def again(seed, *plans, **how):
        world = World(Random(seed), tmp_path / str(seed))
        append(world, shares)
        how["follow"] = {"submissions": result.journal}
        died = [outcome for plan in plans if isinstance(outcome := bounded(world, 4, plan, **how), Crashed)]
        assert len(died) == len(plans), "a crash was never reached"
        return bounded(world, 4, **how).result

    return again


def test_the_run_to_be_repeated_has_everything_in_it(live):
    """Else the comparisons below would compare little."""
    journal, topics = live[0].journal, live[0].topics
    assert {entry[0] for entry in journal} >= {"read", "idle", "clock"}
    assert sum(map(len, topics["late"])) > 5 and sum(map(len, topics["finals"])) > 5
    assert len(journal) > 50


@pytest.mark.parametrize("records", [1, 7, 4096])
def test_a_journal_cut_anew_gives_the_same_bytes_in_the_same_order(live, again, records):
    """(T2)"""
    repeated = again(10, batch_records=records)
    assert repeated.views == live[0].views
    assert repeated.topics == live[0].topics


def test_a_journal_that_is_followed_writes_the_same_journal(live, again):
    assert again(11, batch_records=5).journal == live[0].journal


@pytest.mark.parametrize("seed", [20, 21, 22])
def test_other_timing_and_crashes_give_the_same_bytes(live, again, seed):
    """(T1)"""
    plans = CrashAtLabel("after Store.commit"), CrashAtPoint(80 + seed), CrashAtLabel("before Store.commit")
    repeated = again(seed, *plans, batch_records=3, checkpoint_every_ms=1)
    assert repeated == live[0]


def test_four_parts_give_the_same_tables_and_records_in_the_order_of_their_source(live, again):
    """What a signal makes them emit comes part by part; what a record makes them emit, where the record stood."""
    repeated = again(30, parts=4)
    assert repeated.views == live[0].views
    assert repeated.topics["late"] == live[0].topics["late"]
    for name, partitions in live[0].topics.items():
        assert [sorted(values) for values in repeated.topics[name]] == [sorted(values) for values in partitions]


@pytest.mark.parametrize("records", [1, 7, 4096])
def test_with_four_parts_too_cutting_changes_no_byte(again, records):
    """(T2) Parts of one piece meet again in a sink; its order must not show where the piece was cut."""
    assert again(31, parts=4, batch_records=records).topics == again(32, parts=4).topics


def test_stopping_at_the_end_and_going_on_later_equals_one_run_over_the_same_journal(tmp_path):
    world = World(Random(40), tmp_path / "pieces")
    made = lines(300)
    for start in (0, 100, 200):
        append(world, [made[start : start + 50], made[start + 50 : start + 100]])
        in_pieces = bounded(world, 2).result

    whole = World(Random(41), tmp_path / "whole")
    append(whole, [made[0:50] + made[100:150] + made[200:250], made[50:100] + made[150:200] + made[250:300]])
    assert bounded(whole, 2, follow={"submissions": in_pieces.journal}).result == in_pieces


def test_with_one_partition_any_bounded_runs_give_the_same(tmp_path):
    """But for the places where the flush of each run's end, and the clock, showed open windows early."""
    made = lines(300)
    pieces = World(Random(50), tmp_path / "pieces")
    for start in range(0, 300, 100):
        append(pieces, [made[start : start + 100]])
        in_pieces = bounded(pieces, 1, batch_records=9).result

    whole = World(Random(51), tmp_path / "whole")
    append(whole, [made])
    at_once = bounded(whole, 1).result
    assert at_once.views == in_pieces.views
    for name in ("late", "finals", "running"):
        assert at_once.topics[name] == in_pieces.topics[name]
