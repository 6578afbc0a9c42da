"""The states of a region, as a table of legal transitions; the state of a job is a function of those of its regions.

    state        what it means                                     goes on to
    ──────────   ───────────────────────────────────────────────   ────────────────────────────────────────────────────
    starting     its first attempt is being built                  running draining restarting waiting stopping finished
                                                                   failed
    running      an attempt runs                                   draining restarting waiting stopping ended failed
    draining     reads nothing more, takes its last checkpoint     restarting waiting stopping ended failed
    restarting   an attempt failed; the next is not there yet      running draining restarting waiting stopping finished
                                                                   failed
    waiting      the disk has no room; goes on by itself           running draining restarting waiting stopping finished
                                                                   failed
    stopping     ends where it stands; recovery does the rest      ended failed
    ended        the run is over                                   nothing
    finished     its input is complete, by an earlier run          nothing
    failed       it gave up                                        nothing

What is not in the table can't happen, and is an AssertionError if it does. ``restarting`` and ``waiting`` may be
entered again: the next attempt failed as well, perhaps for another reason.

A job whose region gave up is stopping until the others have stopped, and then failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from streamactors.core.errors import text_of


class State(StrEnum):
    """See the table in the module's header. A member equals its name: ``job.state == "running"``."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    RESTARTING = "restarting"
    WAITING = "waiting"
    STOPPING = "stopping"
    ENDED = "ended"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return not TRANSITIONS[self]


_ON_THE_WAY = frozenset({State.RESTARTING, State.WAITING, State.STOPPING, State.FAILED})
_UNTIL_IT_RUNS = _ON_THE_WAY | {State.RUNNING, State.DRAINING, State.FINISHED}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: _UNTIL_IT_RUNS,
    State.RUNNING: _ON_THE_WAY | {State.DRAINING, State.ENDED},
    State.DRAINING: _ON_THE_WAY | {State.ENDED},
    State.RESTARTING: _UNTIL_IT_RUNS,
    State.WAITING: _UNTIL_IT_RUNS,
    State.STOPPING: frozenset({State.ENDED, State.FAILED}),
    State.ENDED: frozenset(),
    State.FINISHED: frozenset(),
    State.FAILED: frozenset(),
}
"""What may follow what."""


@dataclass(slots=True)
class Life:
    """A region's state, since when it has it, and the last error that it met. Pure: time comes in."""

    name: str
    since_ms: int
    """Wall clock, ms since the epoch, UTC."""

    state: State = State.STARTING
    error: str | None = None
    """The last failure, one line; stays when the region runs again."""

    error_ms: int = 0

    def to(self, state: State, now_ms: int, error: BaseException | None = None) -> None:
        """Enter *state*; assert that the table allows it."""
        assert state in TRANSITIONS[self.state], f"region {self.name} can't go from {self.state} to {state}"
        self.state, self.since_ms = state, now_ms
        if error is not None:
            self.error, self.error_ms = said(error), now_ms


def said(error: BaseException) -> str:
    """Return an error as one line: its type and what it says."""
    text = " ".join(text_of(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def job_state(regions: Iterable[State]) -> State:
    """Return the state of a job whose regions are in these states; ``starting`` when it has none yet."""
    states = set(regions)
    going = {state for state in states if not state.is_final}
    if not states:
        return State.STARTING
    if not going:
        return next(state for state in (State.FAILED, State.ENDED, State.FINISHED) if state in states)
    if State.FAILED in states:
        return State.STOPPING
    order = (State.STOPPING, State.DRAINING, State.WAITING, State.RESTARTING)
    # A region that starts is the affair of a job that runs: its supervisors are at work, views can be read.
    return next((state for state in order if state in going), State.RUNNING)
