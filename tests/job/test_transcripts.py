"""Whole protocols, as text: transcripts/*.txt is what the actors say to each other. Read them; review their diffs.

STREAMACTORS_REWRITE=1 writes them anew.
"""

import os
from pathlib import Path
from random import Random

import pytest

from streamactors import Bound, Pipeline, Settings, Tumbling, run
from streamactors.testing.source import Crash, Pause, Script
from streamactors.testing.transcript import Transcript
from streamactors.testing.world import CrashAtLabel, World

FOLDER = Path(__file__).parent / "transcripts"
MINUTE = 60_000


class Play:
    """A small job, run several times in one world, and what is said meanwhile."""

    def __init__(self, folder, script):
        self.world = World(Random(1), folder, shuffled=False)
        self.transcript = Transcript()
        self.script = script

    def pipeline(self):
        pipeline = Pipeline("job", parts=2)  # so that barriers pass from stage to stage and meet again
        events = pipeline.source(self.script).event_time(lambda event: event[1], idle_after=None)
        by_word = events.key_by(lambda event: event[0])
        counts = by_word.window(Tumbling(MINUTE)).early(every="1h").count()
        counts.to_view("counts")
        counts.final().to_topic("results")
        return pipeline

    def life(self, title, scene, plan=None, bound=Bound.LIVE):
        """Run a life in which *scene* happens; note how it ends."""
        self.transcript.chapter(title)

        async def main(process):
            self.transcript.follow(process)
            settings = Settings(bound=bound, sync=False, checkpoint_every_ms=10_000)
            async with run(self.pipeline(), process.data_dir, ports=process.ports, settings=settings) as job:
                await scene(process, job)

        with self.transcript.listening():
            outcome = self.world.run(main, plan, power=False)
        self.transcript.note("the process", None, outcome)


@pytest.fixture
def play(tmp_path):
    return lambda script: Play(tmp_path, script)


def compare(play, name):
    path = FOLDER / f"{name}.txt"
    if os.environ.get("STREAMACTORS_REWRITE"):
        path.write_text(str(play.transcript))
    assert str(play.transcript) == path.read_text(), f"the protocol changed; STREAMACTORS_REWRITE=1 rewrites {path}"


async def checkpoint(process, job):
    await process.ports.clock.sleep(1)
    await job.checkpoint()


async def end(process, job):
    await job.wait()


async def drain(process, job):
    await process.ports.clock.sleep(1)


def test_start_checkpoint_drain(play):
    told = play(Script([("a", 0), ("b", 1_000), Pause(), ("a", MINUTE)]))

    async def scene(process, job):
        await checkpoint(process, job)
        told.script.go_on()
        await process.ports.clock.sleep(1)

    told.life("start, a checkpoint, more input, drain", scene)
    compare(told, "start_checkpoint_drain")


def test_a_process_dies_behind_a_commit_and_the_next_one_commits_the_sink(play):
    told = play(Script([("a", 0), ("a", MINUTE)]))
    told.life(
        "the process dies when the commit is durable, before the sink has it",
        checkpoint,
        CrashAtLabel("after Store.commit"),
    )
    told.life("recovery commits what is pending, then drains", drain)
    compare(told, "crash_recover")


def test_a_reader_fails_and_the_region_starts_again(play):
    told = play(Script([("a", 0), Crash(), ("a", MINUTE)]))
    told.life("an actor fails: all stop, and start again", checkpoint)
    compare(told, "actor_fails")


def test_until_end_and_again_with_more(play):
    told = play(Script([("a", 0), Pause(), ("a", 1_000)]))
    told.life("until-end: a flush mark, the last barrier, the end", end, bound=Bound.UNTIL_END)
    told.script.go_on()
    told.life("more input: from where it stood", end, bound=Bound.UNTIL_END)
    compare(told, "until_end")


def test_finish_is_final(play):
    told = play(Script([("a", 0)]))
    told.life("finish: event time ends", end, bound=Bound.FINISH)
    told.life("run again: there is nothing to do", end, bound=Bound.FINISH)
    compare(told, "finish")
