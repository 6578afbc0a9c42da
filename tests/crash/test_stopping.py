"""Stopping a job by signals: once drains, twice kills; either way the next run makes it right."""

import signal
import time

import pytest

from tests.crash.lives import World, ended_badly, run_arguments
from tests.crash.points import HANGS

pytestmark = pytest.mark.crash

HELD = "before sync log/late/#/#.segment"
"""A drain that is here has stored its checkpoint, and its output is not visible yet."""


class Running:
    """A live run of the quiz example, with a trace."""

    def __init__(self, server, folder, world, **points):
        self.trace = folder / f"{len(list(folder.glob('*.trace')))}.trace"
        command = run_arguments(world.data, live=True, every="20ms")
        self.child = server.start({"command": command, "trace": str(self.trace), "points": points, "batch_records": 4})

    def wait_line(self, line, times=1):
        while not self.trace.exists() or self.trace.read_text().splitlines().count(line) < times:
            self._check()

    def wait_said(self, text):
        while text not in self.child.err:
            self._check()

    def _check(self):
        assert self.child.code is None, ended_badly(self.child, self.child.code)
        time.sleep(0.001)


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drained_run_shows_all_that_it_read_and_the_next_one_goes_on(server, tmp_path, chance, partitions, number):
    world = World(server, tmp_path / "world", partitions, chance)
    world.append(400)
    for _ in range(2):
        running = Running(server, tmp_path, world)
        running.wait_line("after Store.commit", 2)
        running.child.kill(number)
        assert b"drained" in running.child.done()
        world.check_epoch()
        world.append(300)
    world.finish()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_kills_a_drain_that_hangs_and_the_next_run_makes_it_right(
    server, tmp_path, chance, number, code
):
    world = World(server, tmp_path / "world", 1, chance)
    world.append(400)
    running = Running(server, tmp_path, world, label=HELD, nth=1, hang=True)
    running.wait_line(HANGS + HELD)
    running.child.kill(number)
    running.wait_said("draining")
    assert running.child.code is None, "it can't end while its output is held"
    running.child.kill(number)
    assert running.child.wait() == code
    assert "killed; the next run goes on from the last checkpoint" in running.child.err
    world.run()
    world.finish()
