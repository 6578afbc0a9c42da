"""Streams that meet and part: several sources in one order, branches, and what a crash or another cut makes of them."""

from collections import Counter, defaultdict
from random import Random

import pytest
from msgspec import Struct, json

import streamactors as sa
from streamactors.durable.frames import Records
from streamactors.flow.sequencing import joined
from streamactors.testing.source import Crash, Script
from streamactors.testing.world import CrashAtLabel, CrashAtPoint, Crashed, Ended, World

BOUNDED = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=5, batch_records=3)


class Event(Struct):
    key: str
    at: int


async def anything(value):
    return True


def events(random, count):
    return [Event(random.choice("abcd"), 10 * i + random.randint(0, 40)) for i in range(count)]


def timed(flow, script):
    return flow.source(script).event_time("at", disorder=60)


async def rows(pipeline, data_dir, view, settings=BOUNDED):
    async with sa.run(pipeline, data_dir, settings=settings) as job:
        await job.wait()
        return dict(job.views[view].items())


def counted(values, size):
    return dict(Counter((value.key, value.at - value.at % size) for value in values))


@pytest.mark.parametrize("parts", [1, 4])
def test_windows_count_the_records_of_all_sources(tmp_path, parts):
    import asyncio

    random = Random(1)
    left, right, more = events(random, 70), events(random, 50), events(random, 5)

    def pipeline():
        flow = sa.Pipeline("met", parts=parts)
        scripts = [Script(left, id="left"), Script(right, more, id="right")]
        met = timed(flow, scripts[0]).union(timed(flow, scripts[1]))
        met.key_by("key").window(sa.Tumbling(100)).early(every="1s").count().to_view("counts")
        return flow

    assert asyncio.run(rows(pipeline(), tmp_path, "counts")) == counted([*left, *right, *more], 100)


async def test_a_crash_of_one_source_takes_both_back_to_one_epoch(data_dir):
    random = Random(2)
    left, right = events(random, 60), events(random, 60)
    flow = sa.Pipeline("met")
    first = Script([*left[:31], Crash(), *left[31:]], id="left")
    second = Script([*right[:7], Crash(), *right[7:50], Crash(), *right[50:]], id="right")
    met = timed(flow, first).union(timed(flow, second))
    met.key_by("key").count().to_view("counts")
    settings = sa.Settings(
        bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1, batch_records=3, restarts=sa.RestartPolicy(backoff_first=0.001)
    )
    assert await rows(flow, data_dir, "counts", settings) == dict(Counter(e.key for e in [*left, *right]))


async def test_a_source_that_is_behind_holds_the_window_for_all(data_dir):
    """The watermark is the minimum over the partitions of all sources."""
    flow = sa.Pipeline("met")
    fast = Script([Event("a", at) for at in (10, 150, 260)], id="fast")
    slow = Script([Event("a", at) for at in (20, 90)], id="slow")
    results = timed(flow, fast).union(timed(flow, slow)).key_by("key").window(sa.Tumbling(100)).count()
    results.to_view("counts")
    results.late.to_view("late", key="at")
    assert await rows(flow, data_dir, "counts") == {}


async def test_event_time_may_be_assigned_behind_the_union(data_dir):
    random = Random(3)
    left, right = events(random, 40), events(random, 40)
    flow = sa.Pipeline("met")
    raw = flow.source(Script(left, id="left")).filter(lambda e: e.key != "d")
    met = raw.union(flow.source(Script(right, id="right"))).event_time("at", disorder=60)
    met.key_by("key").window(sa.Tumbling(100)).early(every="1s").count().to_view("counts")
    expected = counted([*(e for e in left if e.key != "d"), *right], 100)
    assert await rows(flow, data_dir, "counts") == expected


async def test_branches_of_one_stream_meet_again_without_loss(data_dir):
    values = events(Random(4), 90)
    flow = sa.Pipeline("diamond", parts=3)
    stream = timed(flow, Script(values))
    by_key = stream.filter(lambda e: e.key < "c").key_by("key").map_with_state(lambda e, n: (e, (n or 0) + 1))
    met = by_key.union(stream.filter(lambda e: e.key >= "c"), stream.filter(lambda e: e.key == "a", name="twice"))
    met.key_by("key").count().to_view("counts")
    expected = Counter(e.key for e in values) + Counter(e.key for e in values if e.key == "a")
    assert await rows(flow, data_dir, "counts") == dict(expected)


async def test_a_stream_and_a_branch_of_it_in_one_stage(data_dir):
    values = events(Random(5), 30)
    flow = sa.Pipeline("branch")
    stream = timed(flow, Script(values))
    stream.union(stream.filter(lambda e: e.key == "a")).key_by("key").count().to_view("counts")
    expected = Counter(e.key for e in values) + Counter(e.key for e in values if e.key == "a")
    assert await rows(flow, data_dir, "counts") == dict(expected)


async def test_final_results_and_plain_records_leave_a_union_as_plain_records(data_dir):
    values = [Event("a", 10), Event("b", 20), Event("a", 400)]
    flow = sa.Pipeline("mixed")
    by_key = timed(flow, Script(values)).key_by("key")
    finals = by_key.window(sa.Tumbling(100)).count()
    finals.union(by_key.map(lambda e: 100)).sum().to_view("sums")
    assert await rows(flow, data_dir, "sums") == {"a": 201, "b": 101}


async def test_each_value_goes_to_the_first_predicate_that_is_true(data_dir):
    asked = []

    def small(n):
        asked.append(n)
        return n < 3

    flow = sa.Pipeline("parted")
    low, even, rest = flow.items(list(range(10))).split(small, lambda n: n % 2 == 0)
    for name, stream in (("low", low), ("even", even), ("rest", rest)):
        stream.key_by(lambda n: n).count().to_view(name)
    async with sa.run(flow, data_dir, settings=BOUNDED) as job:
        await job.wait()
        found = {name: [key for key, _ in job.views[name].items()] for name in ("low", "even", "rest")}
    assert found == {"low": [0, 1, 2], "even": [4, 6, 8], "rest": [3, 5, 7, 9]}
    assert asked == list(range(10)), "a predicate is asked once for each value"


async def test_a_result_that_moves_to_another_branch_leaves_the_one_it_was_in(data_dir):
    flow = sa.Pipeline("moving")
    few, many = flow.items(list("aabab")).key_by(lambda k: k).count().split(lambda n: n < 3)
    few.to_view("few")
    many.to_view("many")
    async with sa.run(flow, data_dir, settings=BOUNDED) as job:
        await job.wait()
        assert dict(job.views["few"].items()) == {"b": 2}
        assert dict(job.views["many"].items()) == {"a": 3}


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s, other: s.union(), "no other stream"),
        (lambda s, other: s.union(s), "named twice"),
        (lambda s, other: s.union(other), "another pipeline"),
        (lambda s, other: s.event_time(int).union(s), "has none"),
        (lambda s, other: s.union(s.key_by(len).count()), "replace earlier ones"),
        (lambda s, other: s.split(), "no predicate"),
        (lambda s, other: s.split(anything), "Await in a map"),
    ],
)
def test_a_union_or_split_that_makes_no_sense_is_refused_where_it_is_written(build, says):
    stream, other = sa.Pipeline("p").items([]), sa.Pipeline("other").items([])
    with pytest.raises(sa.PipelineError, match=rf"at test_union.py:\d+: .*{says}"):
        build(stream, other)


def test_sources_that_meet_are_one_region_and_those_that_don_t_are_two():
    from streamactors.graph.plan import plan

    flow = sa.Pipeline("p")
    a, b, c = (flow.items([], name=name) for name in "abc")
    a.union(c).key_by(None).count().to_view("ac")
    b.key_by(None).count().to_view("b")
    assert [[source.id for source in region.sources] for region in plan(flow)] == [["a", "c"], ["b"]]


# ---- (T1), (T2)


def quiz(parts):
    flow = sa.Pipeline("two", parts=parts)

    def read(topic):
        return flow.topic(topic, Event).event_time("at", disorder=60, idle_after="300ms")

    mine, yours = read("mine"), read("yours")
    mine.filter(lambda e: e.key == "a").union(yours).to_topic("all")
    met = mine.union(yours)
    counts = met.key_by("key").window(sa.Tumbling(100)).allowed_lateness(100).early(every="500ms").count()
    counts.changes().to_topic("changes")
    counts.late.to_topic("late")
    met.key_by("key").map_with_state(lambda e, n: ([e.key, n or 0], (n or 0) + 1)).to_topic("running")
    return flow


TOPICS = ("all", "changes", "late", "running")


async def topic_values(log, name):
    partition = (await log.topic(name)).partition(0)
    reader, values = partition.reader(), []
    while chunks := await reader.read():
        values += [bytes(value) for chunk in chunks for value in chunk.values()]
    await reader.close()
    return values


def life_of(world, shares, plan=None, parts=1, **how):
    settings = sa.Settings(checkpoint_every_ms=50, sync=False, restarts=sa.RestartPolicy(restarts_max=0))

    async def life(process):
        async with sa.Log(process.data_dir, process.ports) as log:
            for name in ("mine", "yours"):
                await log.create_topic(name, 2)
        how_settings = {"bound": sa.Bound.LIVE, **how}
        job_settings = sa.Settings(
            checkpoint_every_ms=how_settings.pop("checkpoint_every_ms", 50),
            sync=False,
            restarts=settings.restarts,
            **how_settings,
        )
        async with sa.run(quiz(parts), process.data_dir, ports=process.ports, settings=job_settings) as job:
            if shares is not None:
                await feed(job.log, process.ports, shares)
                await job.drain()
            else:
                await job.wait()
            journal = list(joined(process.store.journal("mine")))
            return journal, {name: await topic_values(job.log, name) for name in TOPICS}

    return world.run(life, plan)


async def feed(log, ports, shares):
    random, at = Random(7), 0
    for _ in range(40):
        name, number = random.choice(["mine", "yours"]), random.randint(0, 1)
        piece = []
        for _ in range(random.randint(1, 8)):
            at += random.randint(0, 15)
            piece.append(json.encode({"key": random.choice("abc"), "at": max(0, at - random.choice([0, 0, 30, 250]))}))
        await (await log.topic(name)).partition(number).append(Records.of(piece))
        shares[name, number] += piece
        await ports.clock.sleep(random.random() ** 3)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    shares = defaultdict(list)
    ended = life_of(World(Random(1), tmp_path_factory.mktemp("live")), shares)
    assert isinstance(ended, Ended)
    return *ended.result, shares


@pytest.fixture
def again(live, tmp_path):
    journal, _, shares = live

    def again(seed, *plans, **how):
        world = World(Random(seed), tmp_path / str(seed))

        async def fill(process):
            async with sa.Log(process.data_dir, process.ports) as log:
                for (name, number), share in shares.items():
                    await (await log.create_topic(name, 2)).partition(number).append(Records.of(share))

        world.run(fill)
        how = {"bound": sa.Bound.UNTIL_END, "follow": {"mine": journal}, **how}
        for plan in plans:
            assert isinstance(life_of(world, None, plan, **how), Crashed)
        return life_of(world, None, **how).result

    return again


def test_the_run_over_two_topics_has_everything_in_it(live):
    journal, topics, shares = live
    assert {entry[1] for entry in journal if entry[0] == "read"} == {"mine", "yours"}
    assert all(len(values) > 5 for values in topics.values())
    assert len(topics["running"]) == sum(map(len, shares.values()))


@pytest.mark.parametrize("records", [1, 5, 4096])
def test_the_journal_of_two_sources_cut_anew_gives_the_same_bytes(live, again, records):
    """(T2); but ``all``, where branches of a source meet: there is one branch for each source here, so it holds too."""
    assert again(10, batch_records=records) == (live[0], live[1])


def test_crashes_change_no_byte_of_what_two_sources_give(live, again):
    """(T1)"""
    plans = CrashAtLabel("after Store.commit"), CrashAtPoint(90), CrashAtLabel("before Store.commit")
    assert again(11, *plans, batch_records=3, checkpoint_every_ms=1) == (live[0], live[1])


def test_parts_change_no_table_of_what_two_sources_give(live, again):
    _, topics = again(12, parts=4)
    assert {name: sorted(values) for name, values in topics.items()} == {
        name: sorted(values) for name, values in live[1].items()
    }
