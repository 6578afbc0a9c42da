import asyncio

from streamactors.engine.actor import Actor
from streamactors.testing.clock import ManualClock
from streamactors.testing.idle import settle


async def test_an_actor_that_was_woken_before_its_alarm_rests_again():
    """Its cancelled alarm woke it, which cancelled the next one, and so on: one wake-up kept a core busy for good."""
    actor, clock, looks = Actor("a"), ManualClock(), []

    async def look_on():
        while not actor.stopping:
            await actor.wait_woken_or(clock, 60)
            looks.append(clock.monotonic())

    task = asyncio.create_task(look_on())
    await settle()
    actor.wake()
    await asyncio.wait_for(settle(), 1)
    assert looks == [0]

    await clock.advance(60)
    assert looks == [0, 60]
    actor.stop()
    await task
