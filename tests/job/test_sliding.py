"""Sliding windows and distinct in whole jobs: (T1), (T2), parts, and against plain Python over the same records."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from random import Random

import msgspec
import pytest

from streamactors import Bound, Log, Pipeline, Sliding, Tumbling, mean, run
from streamactors.durable.frames import Records
from streamactors.flow.sequencing import joined
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, Crashed, Ended, World
from tests.job.test_replay import append, read_topic, settings

SIZE, SLIDE, LATENESS, DISORDER = 60_000, 10_000, 20_000, 5_000
TOPICS = {"late": 2, "finals": 2, "changes": 1, "means": 1, "first": 2, "fresh": 1, "recent": 1, "users": 1}


class Attempt(msgspec.Struct):
    """A submission that may come twice."""

    id: int
    quiz_id: str
    user: str
    score: float
    at: int


@dataclass
class Outcome:
    journal: list
    views: dict
    topics: dict


def made(records, seed=3):
    """Return lines over about six minutes, out of order, some of them late, one in ten a repeat."""
    random, lines = Random(seed), []
    for number in range(records):
        if lines and random.random() < 0.1:
            lines.append(random.choice(lines[-60:]))
            continue
        behind = random.randrange(200_000) if random.random() < 0.15 else random.randrange(DISORDER)
        at = number * 1_200 - behind
        quiz, user = f"quiz-{random.randrange(3)}", f"user-{random.randrange(4)}"
        lines.append(msgspec.json.encode(Attempt(number, quiz, user, random.randrange(100) / 10, at)))
    return lines


def everything(partitions, parts=1):
    pipeline = Pipeline("attempts", parts=parts)
    attempts = pipeline.topic("submissions", Attempt).event_time("at", disorder=DISORDER, idle_after="300ms")
    by_quiz = attempts.key_by("quiz_id")
    windows = by_quiz.window(Sliding(SIZE, SLIDE)).allowed_lateness(LATENESS)
    counts = windows.early(every="500ms").count()
    counts.to_view("counts")
    counts.late.original().to_topic("late", partitions=TOPICS["late"])
    counts.final().to_topic("finals", partitions=TOPICS["finals"])
    counts.changes().to_topic("changes")
    by_quiz.window(Sliding("25s", "10s", "3s")).aggregate(mean=mean("score")).rows().to_topic("means")
    first = attempts.distinct("id")
    first.to_topic("first", partitions=TOPICS["first"])
    attempts.distinct("id", ttl="30s").map(lambda attempt: attempt.id).to_topic("fresh")
    by_quiz.distinct("user", ttl="40s").rows().to_topic("users")
    recent = pipeline.topic("clicks", Attempt).distinct("id", ttl="1s")
    recent.map(lambda attempt: attempt.id).to_topic("recent")
    first.key_by("quiz_id").window(Tumbling(SIZE)).count().to_view("attempts")

    @pipeline.before_start
    async def prepare(log):
        await log.create_topic("submissions", partitions)
        await log.create_topic("clicks", 1)

    return pipeline


async def look(process, job):
    views = {name: dict(job.views[name].items()) for name in ("counts", "attempts")}
    topics = {name: await read_topic(job.log, name) for name in TOPICS}
    journal = {name: list(joined(process.store.journal(name))) for name in ("submissions", "clicks")}
    return Outcome(journal, views, topics)


def bounded(world, partitions, plan=None, *, parts=1, bound=Bound.UNTIL_END, **how):
    async def life(process):
        job_settings = settings(bound=bound, **how)
        async with run(
            everything(partitions, parts), process.data_dir, ports=process.ports, settings=job_settings
        ) as job:
            await job.wait()
            return await look(process, job)

    return world.run(life, plan)


def append_clicks(world, lines):
    async def life(process):
        async with Log(process.data_dir, process.ports) as log:
            await (await log.create_topic("clicks", 1)).partition(0).append(Records.of(lines))

    assert isinstance(world.run(life), Ended)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A live run over three partitions that were appended to meanwhile, and what each of them holds."""
    world, random = World(Random(1), tmp_path_factory.mktemp("live")), Random(2)
    shares, clicks, lines = [[], [], []], [], made(300)

    async def life(process):
        async with run(everything(3), process.data_dir, ports=process.ports, settings=settings()) as job:
            topics = [await job.log.topic(name) for name in ("submissions", "clicks")]
            while lines:
                count = random.randint(1, 12)
                piece, lines[:count] = lines[:count], []
                number = random.randrange(3)
                await topics[0].partition(number).append(Records.of(piece))
                shares[number] += piece
                clicked = [random.choice(piece) for _ in range(3)]
                await topics[1].partition(0).append(Records.of(clicked))
                clicks.extend(clicked)
                await process.ports.clock.sleep(random.random() ** 3)
            await job.drain()
            return await look(process, job)

    ended = world.run(life)
    assert isinstance(ended, Ended), ended
    return ended.result, shares, clicks


@pytest.fixture
def again(tmp_path, live):
    """Follow the live run's journal in a world of its own; what that gives."""
    result, shares, clicks = live

    def again(seed, *plans, **how):
        world = World(Random(seed), tmp_path / str(seed))
        append(world, shares)
        append_clicks(world, clicks)
        how["follow"] = result.journal
        died = [outcome for plan in plans if isinstance(outcome := bounded(world, 3, plan, **how), Crashed)]
        assert len(died) == len(plans), "a crash was never reached"
        return bounded(world, 3, **how).result

    return again


def test_the_run_to_be_repeated_has_everything_in_it(live):
    """Else the comparisons below would compare little."""
    topics = live[0].topics
    sizes = {name: sum(map(len, values)) for name, values in topics.items()}
    kinds = Counter(msgspec.json.decode(value)["kind"] for value in topics["changes"][0])
    assert min(sizes.values()) > 5, sizes
    assert min(kinds[kind] for kind in ("early", "on_time", "correction")) > 5, kinds
    assert sizes["first"] < 300 and sizes["first"] < sizes["fresh"] and sizes["recent"] < len(live[2])


@pytest.mark.parametrize("records", [1, 7, 4096])
def test_a_journal_cut_anew_gives_the_same_bytes_in_the_same_order(live, again, records):
    """(T2)"""
    repeated = again(10, batch_records=records)
    assert repeated == live[0]


@pytest.mark.parametrize("seed", [20, 21, 22])
def test_other_timing_and_crashes_give_the_same_bytes(live, again, seed):
    """(T1)"""
    plans = CrashAtLabel("after Store.commit"), CrashAtPoint(80 + seed), CrashAtLabel("before Store.commit")
    repeated = again(seed, *plans, batch_records=3, checkpoint_every_ms=1)
    assert repeated == live[0]


@pytest.mark.parametrize("records", [3, 4096])
def test_four_parts_give_the_same_tables_and_records(live, again, records):
    repeated = again(30, parts=4, batch_records=records)
    assert repeated.views == live[0].views
    for name in ("late", "first", "fresh", "recent", "users"):
        assert repeated.topics[name] == live[0].topics[name], name
    for name, partitions in live[0].topics.items():
        assert [sorted(values) for values in repeated.topics[name]] == [sorted(values) for values in partitions]


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("seed", [5, 6])
def test_one_partition_to_its_end_equals_plain_python(tmp_path, parts, seed):
    """The watermark as the sequencer computes it, windows as lists of scores, repeats as a set."""
    lines = made(250, seed)
    world = World(Random(seed), tmp_path)
    append(world, [lines])
    append_clicks(world, lines[:1])
    result = bounded(world, 1, parts=parts, bound=Bound.FINISH).result
    attempts = [msgspec.json.decode(line, type=Attempt) for line in lines]

    step, horizon, greatest = 1_000, None, None
    counts, late, scores, seen = Counter(), [], defaultdict(list), {}
    for line, each in zip(lines, attempts, strict=True):
        gone = lambda end, allowed: horizon is not None and end - 1 + allowed <= horizon - 1  # noqa: B023, E731
        held = [s for s in starts(each.at, SIZE, SLIDE, 0) if not gone(s + SIZE, LATENESS)]
        counts.update((each.quiz_id, s) for s in held)
        if not held:
            late.append(line)
        for s in starts(each.at, 25_000, 10_000, 3_000):
            if not gone(s + 25_000, 0):
                scores[each.quiz_id, s].append(each)
        seen.setdefault(each.id, each)
        greatest = each.at if greatest is None else max(greatest, each.at)
        horizon = max((greatest - DISORDER) // step * step, horizon if horizon is not None else greatest - 10**9)

    assert result.views["counts"] == dict(counts)
    assert sorted(value for values in result.topics["late"] for value in values) == sorted(late)
    rows = [msgspec.json.decode(value) for value in result.topics["means"][0]]
    assert {(row["key"], row["window_start"]): row["value"]["mean"] for row in rows} == {
        key: pytest.approx(sum(each.score for each in held) / len(held)) for key, held in scores.items()
    }
    firsts = sorted(value for values in result.topics["first"] for value in values)
    assert firsts == sorted(msgspec.json.encode(each) for each in seen.values())


def starts(at, size, slide, offset):
    newest = (at - offset) // slide * slide + offset
    return [start for start in range(newest, at - size, -slide) if start + size > at]
