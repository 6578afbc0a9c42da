"""Actors and groups: what happens when one fails, hangs, or is told to stop."""

import asyncio

import pytest

from streamactors.engine import actor as actors
from streamactors.engine.actor import Actor, ActorGroup


class Recorder(Actor):
    """Does nothing until it is told to; notes when it stops."""

    def __init__(self, name, noted):
        super().__init__(name)
        self.noted = noted
        self.fail_with = None

    async def step(self):
        if self.fail_with is not None:
            raise self.fail_with
        return False

    def stop(self):
        self.noted.append(self.name)
        super().stop()


class Hangs(Actor):
    async def step(self):
        await asyncio.Event().wait()
        return True


def group_of(*names):
    noted = []
    members = [Recorder(name, noted) for name in names]
    return ActorGroup(members), members, noted


async def test_a_wake_up_during_a_step_is_not_lost():
    class Counts(Actor):
        steps = 0

        async def step(self):
            self.steps += 1
            if self.steps == 1:
                self.wake()  # something changed while we looked
            self.stopping = self.steps == 2
            return False

    counts = Counts("counts")
    await counts.run()
    assert counts.steps == 2


async def test_when_one_fails_the_others_stop_newest_first_and_its_error_is_raised():
    group, (a, b, c), noted = group_of("a", "b", "c")
    running = asyncio.create_task(group.run())
    await asyncio.sleep(0)
    b.fail_with = ValueError("broken")
    b.wake()
    with pytest.raises(ValueError, match="broken"):
        await running
    assert noted == ["c", "b", "a"]
    assert a.stopping
    assert c.stopping


async def test_the_first_failure_is_the_cause_even_if_stopping_makes_others_fail():
    group, (a, b), _ = group_of("a", "b")
    b.fail_with = ValueError("the cause")

    def fail_when_stopped():
        a.fail_with = RuntimeError("a consequence")
        a.wake()

    a.stop = fail_when_stopped
    with pytest.raises(ValueError, match="the cause"):
        await group.run()


async def test_a_group_whose_actors_all_end_has_ended():
    group, members, _ = group_of("a", "b")
    running = asyncio.create_task(group.run())
    await asyncio.sleep(0)
    for member in members:
        member.stop()
    await running


async def test_stopping_a_group_is_a_message():
    group, _, noted = group_of("a", "b")
    running = asyncio.create_task(group.run())
    await asyncio.sleep(0)
    group.stop()
    await running
    assert noted[:2] == ["b", "a"]


async def test_an_actor_that_hangs_in_foreign_code_is_cancelled_after_the_grace(monkeypatch):
    monkeypatch.setattr(actors, "STOP_GRACE_SECONDS", 0.0)
    noted = []
    fails = Recorder("fails", noted)
    fails.fail_with = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        await ActorGroup([Hangs("hangs"), fails]).run()


async def test_an_actor_that_cancels_itself_has_failed():
    """A function that it awaits may raise CancelledError; the others would wait for it for ever."""

    class Cancels(Actor):
        async def step(self):
            raise asyncio.CancelledError

    group = ActorGroup([Recorder("waits", []), Cancels("cancels")])
    with pytest.raises(RuntimeError, match="cancels was cancelled"):
        await group.run()
