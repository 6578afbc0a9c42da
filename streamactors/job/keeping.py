"""The keeper: what the coordinator and the publisher have in common. It stores what a region has come to.

Which of the two a region has is its guarantee's affair: the coordinator takes checkpoints, the publisher stores views
without any. Both are asked to store now, both wait for room on a full disk, both have the same things at hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from streamactors.core.ports import Clock
from streamactors.durable.store import Checkpoint, CommitStats
from streamactors.engine.actor import Actor
from streamactors.flow.sequencer import Sequencer
from streamactors.flow.stage import Stage

from .figures import RunFigures
from .immediate import SinkOutput
from .room import Room

Commit = Callable[[Checkpoint], Awaitable[CommitStats]]


@dataclass
class EpochReport:
    """What is known of the last checkpoint, for ``job.status()``."""

    epoch: int = 0
    ms: float = 0.0
    bytes: int = 0
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a keeper has at hand in one attempt."""

    region: str
    attempt: int
    last_epoch: int
    """The last number that may have been used."""

    sequencer: Sequencer
    stages: Sequence[Stage]
    outputs: Sequence[SinkOutput]
    commit: Commit
    room: Room
    figures: RunFigures
    clock: Clock
    interval: float
    """Seconds between two times that it stores."""


class Keeper(Actor):
    """Store what a region has come to. See the module's header."""

    def __init__(self, name: str, keeping: Keeping) -> None:
        super().__init__(name)
        self.report = EpochReport(epoch=keeping.last_epoch)
        self.shown_until = keeping.clock.monotonic()
        """All that was handled before this monotonic time is visible to all."""

        self._region, self._attempt = keeping.region, keeping.attempt
        self._sequencer, self._stages = keeping.sequencer, list(keeping.stages)
        self._outputs, self._store_commit = list(keeping.outputs), keeping.commit
        self._room, self._figures = keeping.room, keeping.figures
        self._clock, self._interval = keeping.clock, keeping.interval
        self._due_at = keeping.clock.monotonic() + keeping.interval
        self._requests: list[asyncio.Future[int | None]] = []
        self._closed = False
        keeping.sequencer.on_exhausted = self.wake

    @property
    def waiting_for(self) -> frozenset[str]:
        """Who has not handed over what is to be stored next."""
        return frozenset()

    @property
    def unseen(self) -> bool:
        """Whether something was handled that is not visible to all yet."""
        raise NotImplementedError

    @property
    def waiting_for_room(self) -> str | None:
        """Why what is to be stored or written waits for room on a disk, or in a quota; None: it does not."""
        return self._room.waiting

    def stop(self) -> None:
        """Ask to leave; what waits for room gives up."""
        super().stop()
        self._room.close()

    async def request(self) -> int | None:
        """
        Store now; return the epoch when it is durable, and holds all that was numbered before the call.

        None: the region failed or ended first.
        """
        if self._closed:  # its actors may still be ending
            return None
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._requests.append(answer)
        self.wake()
        return await answer


def answer_all(answers: list[asyncio.Future[int | None]], epoch: int | None) -> None:
    """Tell who waits for a checkpoint which one it was."""
    for answer in answers:
        if not answer.done():
            answer.set_result(epoch)
