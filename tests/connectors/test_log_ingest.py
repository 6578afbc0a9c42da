"""``through_log``: everything into the topic once where the source can replay, and acknowledged when it is durable."""

import asyncio
from collections import Counter
from random import Random

import pytest
from msgspec import Struct, json

import streamactors as sa
from connectors.iterators import AsyncItems
from connectors.memory import Items
from connectors.push import Push
from streamactors.core.connectors import Guarantee
from streamactors.testing.idle import settle
from streamactors.testing.source import Crash, Deliveries, End, Script
from streamactors.testing.world import CrashAtPoint, Crashed, World

SETTINGS = {"sync": False, "checkpoint_every_ms": 20}


async def topic_rows(log, name="t"):
    """Return (key, value) of each record, by partition."""
    topic, found = await log.topic(name), []
    for number in range(topic.partitions):
        reader, rows = topic.partition(number).reader(0), []
        while chunks := await reader.read():
            pairs = [pair for chunk in chunks for pair in zip(chunk.keys(), chunk.values(), strict=True)]
            rows += [(None if key is None else bytes(key), json.decode(value)) for key, value in pairs]
        await reader.close()
        found.append(rows)
    return found


def through(source, **how):
    pipeline = sa.Pipeline("p")
    pipeline.source(source).through_log("t", **how).key_by(lambda v: v["k"]).count().to_view("counts")
    return pipeline


def life(source, bound=sa.Bound.UNTIL_END, **how):
    async def lived(process):
        settings = sa.Settings(bound=bound, **SETTINGS)
        async with sa.run(through(source, **how), process.data_dir, ports=process.ports, settings=settings) as job:
            await job.wait()
            return dict(job.views["counts"].items()), await topic_rows(job.log)

    return lived


def records(random, count):
    return [{"k": random.choice("abcde"), "n": n} for n in range(count)]


@pytest.mark.parametrize("how", [{}, {"partitions": 2}, {"partitions": 3, "key": "k"}], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_source_that_replays_is_in_the_topic_once_whatever_dies_when(tmp_path, seed, how):
    random, world = Random(seed), World(Random(seed), tmp_path)
    parts = [records(random, 1_500), [{**record, "k": record["k"] + "2"} for record in records(random, 700)]]
    script = Script([*parts[0][:500], Crash(), *parts[0][500:]], parts[1])
    crashes = [world.run(life(script, **how), CrashAtPoint(random.randint(10, 120))) for _ in range(4)]
    counts, topic = world.run(life(script, **how)).result
    assert any(isinstance(crash, Crashed) for crash in crashes), "nothing was tried"
    assert counts == Counter(record["k"] for part in parts for record in part)
    found = [str(value) for rows in topic for _, value in rows]
    assert sorted(found) == sorted(str(record) for part in parts for record in part)
    for rows in topic:
        for part in parts:  # what came from one partition is in its order; with keys, that of each key
            order = {str(record): n for n, record in enumerate(part)}
            here = [order[str(value)] for _, value in rows if str(value) in order]
            assert here == sorted(here)
    homes = {(key, number) for number, rows in enumerate(topic) for key, _ in rows}
    assert len(homes) == len({key for key, _ in homes}) or "key" not in how, "a key lives in one partition"


@pytest.mark.parametrize("seed", range(4))
def test_deliveries_are_acknowledged_behind_the_append_and_none_is_lost(tmp_path, seed):
    random, world = Random(seed), World(Random(seed), tmp_path)
    parts = [records(random, 900), [{"k": "z", "n": n} for n in range(300)]]
    script = Deliveries(*parts, redelivery=random)
    for _ in range(4):
        world.run(life(script, partitions=2, key="k"), CrashAtPoint(random.randint(10, 200)))
        disk = []

        async def look(process, disk=disk):
            async with sa.Log(process.data_dir, process.ports) as log:
                if await log.topic("t") is not None:
                    disk += [value for rows in await topic_rows(log) for _, value in rows]

        world.run(look)
        assert all(record.value in disk for record in script.acknowledged), "acknowledged before it was durable"
    counts, topic = world.run(life(script, partitions=2, key="k")).result
    assert script.unacknowledged == []
    found = Counter(str(value) for rows in topic for _, value in rows)
    assert found.keys() == {str(record) for part in parts for record in part}
    assert sum(counts.values()) == found.total(), "exactly once from the topic"


def test_bounded_runs_end_where_the_inner_source_ended_at_their_start(tmp_path):
    world = World(Random(1), tmp_path)
    script = Script([{"k": "a"}, {"k": "b"}, End(), {"k": "c"}])
    assert world.run(life(script)).result[0] == {"a": 1, "b": 1}
    script.go_on()
    counts, [rows] = world.run(life(script)).result
    assert counts == {"a": 1, "b": 1, "c": 1} and len(rows) == 3
    assert world.run(life(script)).result[0] == counts, "a run with nothing new ends too"


async def run_bounded(pipeline, data_dir, **more):
    settings = sa.Settings(bound=sa.Bound.UNTIL_END, checkpoint_every_ms=20, **more)
    async with asyncio.timeout(20), sa.run(pipeline, data_dir, settings=settings) as job:
        await job.wait()
        return dict(job.views["counts"].items()), await topic_rows(job.log)


async def test_an_iterator_through_the_log_may_be_exactly_once(data_dir):
    async def items():
        for n in range(3_000):
            yield {"k": n % 3}

    counts, _ = await run_bounded(through(AsyncItems(items)), data_dir)
    assert counts == {0: 1_000, 1: 1_000, 2: 1_000}


async def test_a_failure_of_the_ingest_is_a_failure_of_the_job_with_its_words(data_dir):
    async def items():
        yield {"k": 1}
        raise OSError("connection lost")

    quick = sa.RestartPolicy(restarts_max=1, backoff_first=0.0, backoff_max=0.0)
    with pytest.raises(sa.JobFailed, match="connection lost"):
        await run_bounded(through(AsyncItems(items)), data_dir, restarts=quick)


async def test_a_value_that_json_can_not_hold_is_named(data_dir):
    with pytest.raises(sa.JobFailed, match="can't be encoded for topic t"):
        await run_bounded(through(Items([{"k": object()}])), data_dir, restarts=sa.RestartPolicy(restarts_max=0))


class Narrow(Struct):
    k: str


async def test_fields_that_nobody_decodes_are_in_the_topic(tmp_path, data_dir):
    (tmp_path / "f.jsonl").write_text('{"k":"a","more":[1]}\n{"k":"b"}\n')
    pipeline = sa.Pipeline("p")
    pipeline.json_lines(tmp_path / "f.jsonl", Narrow).through_log("t", key="k").key_by("k").count().to_view("counts")
    counts, [rows] = await run_bounded(pipeline, data_dir)
    assert counts == {"a": 1, "b": 1}
    assert rows == [(b"a", {"k": "a", "more": [1]}), (b"b", {"k": "b"})]


async def test_a_topic_that_others_have_filled_is_refused(data_dir):
    async with sa.Log(data_dir) as log:
        await (await log.create_topic("t")).append(b"{}")
    with pytest.raises((sa.UsageError, sa.JobFailed), match="1 records in partition 0 that source items did not write"):
        await run_bounded(through(Items([{"k": 1}])), data_dir)


async def test_two_jobs_that_fill_one_topic_from_the_same_source_id_are_told(data_dir):
    first, second = Push(), Push()
    other = sa.Pipeline("q")
    other.source(second).through_log("t").key_by(lambda v: v["k"]).count().to_view("other")
    async with asyncio.timeout(20), sa.Log(data_dir) as log:
        with pytest.raises((sa.UsageError, sa.JobFailed), match="written by another job"):  # noqa: PT012 - at its end
            async with sa.run(through(first), data_dir, log=log):
                await first.send({"k": 1})
                async with sa.run(other, data_dir, log=log):
                    await second.send({"k": 2})
                    with pytest.raises(sa.Unacknowledged):
                        await first.send({"k": 3})
                    await second.send({"k": 4})
        assert await topic_rows(log) == [[(None, {"k": n}) for n in (1, 2, 4)]]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda p: p.items([1]).map(str).through_log("t"), "is no source"),
        (lambda p: p.items([1]).through_log("t").through_log("u"), "in the log already"),
        (lambda p: p.topic("t").through_log("t"), "in the log already"),
        (lambda p: p.items([1]).through_log("t", partitions=0), "no 0 partitions"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused_when_the_graph_is_built(build, words):
    with pytest.raises(sa.PipelineError, match=words):
        build(sa.Pipeline("p"))


async def test_putting_the_log_behind_a_source_that_was_read_directly_is_refused(data_dir):
    pipeline = sa.Pipeline("p")
    pipeline.items([{"k": 1}]).key_by(lambda v: v["k"]).count().to_view("counts")
    async with sa.run(pipeline, data_dir, settings=sa.Settings(bound=sa.Bound.UNTIL_END)) as job:
        await job.wait()
    with pytest.raises(sa.PipelineError, match="place items became topic t"):
        await run_bounded(through(Items([{"k": 1}])), data_dir)


async def test_a_live_job_goes_on_reading_the_inner_source(data_dir):
    script = Script([{"k": "a"}, End(), {"k": "b"}])
    async with asyncio.timeout(20), sa.run(through(script), data_dir) as job:
        while job.views["counts"].get("a") is None:
            await asyncio.sleep(0.001)
        script.go_on()
        while job.views["counts"].get("b") is None:
            await asyncio.sleep(0.001)


async def test_no_ingest_outlives_its_reader(data_dir):
    async with sa.run(through(Push()), data_dir):
        await settle()
    assert not [task for task in asyncio.all_tasks() if "ingest" in task.get_name()]


def test_the_guarantee_is_that_of_a_topic():
    pipeline = sa.Pipeline("p")
    pipeline.source(Push()).through_log("t")
    assert pipeline.graph.nodes[0].source.replay.value == "by offset"
    assert Guarantee.EXACTLY_ONCE is sa.Settings().guarantee


def test_a_run_that_follows_a_journal_takes_nothing_in_and_repeats_it(tmp_path):
    world = World(Random(1), tmp_path)
    script = Script([{"k": "a"}, {"k": "b"}, End(), {"k": "c"}])
    world.run(life(script))

    async def again(process):
        live = sa.Settings(bound=sa.Bound.LIVE, **SETTINGS)
        async with sa.run(through(script), process.data_dir, ports=process.ports, settings=live) as job:
            entries = list(process.store.journal("script"))
            other = sa.Pipeline("again")
            other.source(script).through_log("t").key_by(lambda v: v["k"]).count().to_view("counts")
            follow = sa.Settings(follow={"script": entries}, **SETTINGS)
            async with sa.run(other, process.data_dir, ports=process.ports, settings=follow, log=job.log) as repeated:
                script.go_on()  # the first job takes it in, beside the one that follows
                await repeated.wait()
                counts = dict(repeated.views["counts"].items())
            await job.catch_up()
            return counts, await topic_rows(job.log)

    counts, [rows] = world.run(again).result
    assert counts == {"a": 1, "b": 1}
    assert [value for _, value in rows][:2] == [{"k": "a"}, {"k": "b"}]
