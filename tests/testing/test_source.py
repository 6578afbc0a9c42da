from collections import Counter
from random import Random

import pytest

from streamactors import Bound, Pipeline, Settings, run
from streamactors.core.connectors import Guarantee
from streamactors.testing.source import Crash, Deliveries, End, Pause, Script
from streamactors.testing.world import CrashAtLabel, Crashed, World


def words(script):
    pipeline = Pipeline("words")
    pipeline.source(script).key_by(lambda word: word).count().to_view("counts")
    return pipeline


@pytest.fixture
def world(tmp_path):
    return World(Random(3), tmp_path)


def counting(script, bound=Bound.UNTIL_END):
    async def life(process):
        settings = Settings(bound=bound, sync=False)
        async with run(words(script), process.data_dir, ports=process.ports, settings=settings) as job:
            if bound is Bound.UNTIL_END:
                await job.wait()
            await job.checkpoint() if bound is Bound.LIVE else None
            first = dict(job.views["counts"].items())
            script.go_on()
            await process.ports.clock.sleep(1)
            return first, dict(job.views["counts"].items()), job.status().regions[0].restarts

    return life


def test_a_crash_in_the_script_counts_nothing_twice(world):
    script = Script(["a", "b", Crash(), "a", "a"], ["b", Crash(), "b"])
    _, counts, restarts = world.run(counting(script)).result
    assert counts == {"a": 3, "b": 3}
    assert restarts


def test_nothing_comes_behind_a_pause_before_the_test_says_so(world):
    before, after, _ = world.run(counting(Script(["a", Pause(), "a", "b"]), Bound.LIVE)).result
    assert (before, after) == ({"a": 1}, {"a": 2, "b": 1})


def test_a_bounded_run_stops_at_the_scripts_end_and_the_next_one_goes_on(world):
    script = Script(["a", End(), "b"])
    assert world.run(counting(script)).result[1] == {"a": 1}
    assert world.run(counting(script)).result[1] == {"a": 1, "b": 1}


def test_a_process_that_dies_after_its_commit_has_counted(world):
    script = Script(["a", "b"])
    assert isinstance(world.run(counting(script), CrashAtLabel("after Store.commit")), Crashed)
    assert world.run(counting(script)).result[1] == {"a": 1, "b": 1}


def delivering(script, bound=Bound.UNTIL_END, guarantee=Guarantee.AT_LEAST_ONCE):
    """Return a life that counts deliveries and looks, at each acknowledgement, at what is committed at that moment."""

    async def life(process):
        settings = Settings(bound=bound, guarantee=guarantee, sync=False, checkpoint_every_ms=20)

        def durable(records):
            if guarantee is Guarantee.AT_LEAST_ONCE:
                position = process.store.restore("deliveries").position
                read = sum(part["offset"] for part in position["partitions"])
                assert read >= len(script.acknowledged), "acknowledged before it was durable"

        script.on_acknowledge = durable
        async with run(words(script), process.data_dir, ports=process.ports, settings=settings) as job:
            await job.wait()
            return dict(job.views["counts"].items())

    return life


@pytest.mark.parametrize("seed", range(6))
def test_deliveries_are_acknowledged_when_they_are_durable_and_come_again_otherwise(tmp_path, seed):
    world, random = World(Random(seed), tmp_path), Random(seed)
    words = [random.choice("abc") for _ in range(3_000)]
    script = Deliveries([*words[:1_000], Crash(), *words[1_000:]], words, redelivery=random)
    labels = ["before Store.commit", "after Store.commit"]
    for number in range(1, 4):
        world.run(delivering(script), CrashAtLabel(random.choice(labels), number))
    counts = world.run(delivering(script)).result
    assert script.unacknowledged == []
    assert {(record.partition, record.index) for record in script.acknowledged} == {
        (part, index) for part in (0, 1) for index in range(3_000)
    }
    expected = Counter(words * 2)
    assert counts.keys() == expected.keys()
    assert all(counts[word] >= expected[word] for word in expected), "at-least-once"
    assert len(script.delivered) >= 6_000


def test_at_most_once_acknowledges_what_is_read(world):
    script = Deliveries(["a", "b", "a"])
    assert world.run(delivering(script, guarantee=Guarantee.AT_MOST_ONCE)).result == {"a": 2, "b": 1}
    assert script.unacknowledged == []


def test_the_last_checkpoint_of_a_run_is_acknowledged_too(world):
    script = Deliveries(["a", "b", End(), "c"])
    world.run(delivering(script))
    assert script.unacknowledged == ["c"]
    script.go_on()
    assert world.run(delivering(script)).result == {"a": 1, "b": 1, "c": 1}
    assert script.unacknowledged == []
