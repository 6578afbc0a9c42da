"""An actor: one task, private state, one wake-up; and the group of them that lives and dies together.

An actor's life is a loop of *steps*: do what can be done now, and when nothing can, wait to be woken. Whoever changes
something that it may wait for (an item, room, a request, a commit, the word to stop) sets its wake-up. A wake-up says
"look again", not what for; so none can be lost and none needs to be counted.

    run:   while not stopping:  wake.clear();  if not step():  wait for wake

Because nothing is awaited between ``clear`` and the end of ``step``, no change can fall between the look and the wait.

Stopping is a message, not a cancellation: ``stop()`` sets a flag, and the actor leaves at the end of its step. Only an
actor that hangs in somebody else's coroutine for longer than STOP_GRACE_SECONDS is cancelled: the region then goes
back to its last checkpoint, so nothing that the cancelled coroutine left undone is ever built upon.

The tree, with the reason for each value:

    job supervisor                 a region that gave up takes the job down: half a pipeline is not an answer
    └── region supervisor          all of a region restarts when one dies: its actors share an epoch (rest-for-one
        │                          would leave half of them at another place in the sequence)
        ├── stages, sinks first    started from the end of the stream to its source, so that a receiver exists
        ├── sequencer              before its sender; stopped in the opposite order
        ├── readers
        └── coordinator            last: it may begin an epoch only when all who must answer are there
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streamactors.core.ports import Clock

STOP_GRACE_SECONDS = 5.0
"""How long an actor may take to end its step: longer than any step of ours, shorter than an operator's patience."""


class Actor:
    """One task with private state. Subclasses give ``step``, or their own ``run``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = False
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Say that something changed. Harmless at any time, from the actor's own loop."""

    async def run(self) -> None:
        """Step until there is no more to do or somebody says stop."""
        while not self.stopping:
            self._wake.clear()
            if not await self.step() and not self.stopping:
                await self._wake.wait()

    async def step(self) -> bool:
        """Do what can be done now; return False when there was nothing. Set ``stopping`` when all is done."""
        raise NotImplementedError

    async def wait_woken(self) -> None:
        """Return at the next wake-up; for actors with a loop of their own."""
        await self._wake.wait()
        self._wake.clear()

    async def wait_woken_or(self, clock: Clock, seconds: float) -> None:
        """Return at the next wake-up, or after *seconds*."""
        alarm = asyncio.create_task(clock.sleep(seconds), name=f"{self.name}: alarm")
        # A cancelled alarm must not wake: its owner would look, set the next alarm, cancel that, and never rest.
        alarm.add_done_callback(lambda alarm: None if alarm.cancelled() else self.wake())
        try:
            await self.wait_woken()
        finally:
            alarm.cancel()

    def stop(self) -> None:
        """Ask the actor to leave at the end of its step."""
        self.stopping = True
        self.wake()


class ActorGroup:
    """Actors that start, fail and stop as one."""

    def __init__(self, actors: Sequence[Actor]) -> None:
        self._actors = list(actors)
        self._tasks: dict[asyncio.Task[None], Actor] = {}
        self.failed: str | None = None
        """The name of the actor that failed first."""

        self._cause: BaseException | None = None
        self._stopped = False

    async def run(self) -> None:
        """Start all, oldest first; return when all have ended; when one fails, stop the others and raise its error."""
        self._tasks = {asyncio.create_task(actor.run(), name=actor.name): actor for actor in self._actors}
        try:
            await self._until_one_fails()
        finally:
            await self._stop()
        if self._cause is not None:
            # The first is the cause. What the others raised while they were being stopped is its consequence.
            raise self._cause

    def stop(self) -> None:
        """Ask all to stop, newest first; ``run`` then returns. Who hangs is cancelled after the grace."""
        self._stopped = True
        for actor in reversed(self._actors):
            actor.stop()
        asyncio.get_running_loop().call_later(STOP_GRACE_SECONDS, self._cancel_late)

    def _cancel_late(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _until_one_fails(self) -> None:
        pending = set(self._tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failures = [(error, task.get_name()) for task in done if (error := self._failure(task)) is not None]
            if failures:
                self._cause, self.failed = failures[0]
                return

    async def _stop(self) -> None:
        for actor in reversed(self._actors):
            actor.stop()
        running = [task for task in self._tasks if not task.done()]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=STOP_GRACE_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for task in running:
            if not task.cancelled():
                task.exception()  # a consequence of the cause, which is raised; asyncio need not report it

    def _failure(self, task: asyncio.Task[None]) -> BaseException | None:
        if not task.cancelled():
            return task.exception()
        if self._stopped:  # we cancelled it, because it hung
            return None
        # Without this, an actor would be gone and nobody would know: the others would wait for it for ever.
        return RuntimeError(
            f"{task.get_name()} was cancelled, and not by its supervisor: a function that it awaited raised "
            "CancelledError, or somebody cancelled its task. Let functions raise TimeoutError or an error of their own."
        )
