from random import Random

import pytest

from streamactors import Bound, Pipeline, Settings, run
from streamactors.testing.source import Crash, End, Pause, Script
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
