"""An event loop whose time is a number and whose order is drawn from a seed.

    time         ``select`` is asked to wait when nothing can run. It does not wait: it moves the clock to the next
                 timer. So an hour of timeouts takes no time, and the same seed meets the same instants.
    order        Steps of tasks that are ready run in an order drawn from the seed. asyncio promises none between tasks.
                 Other callbacks (what a future calls when it is done) keep the order in which they were scheduled,
                 which asyncio does promise.
    deadlock     Nothing is ready and no timer is set: nothing can ever happen again. That is an error here, with the
                 names of the tasks that wait, instead of a test that hangs.

A loop belongs to one simulated process. ``halt`` makes it stop between two callbacks, as a killed process does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from random import Random
from typing import Any

TURN_SECONDS = 1e-6
"""Virtual time that one turn of the loop takes. Were it nothing, a wait for the rest that rounding leaves of a duration
would never end; on a real machine it ends because looking at the clock takes time."""


class Deadlock(AssertionError):
    """Every task waits for something that nobody will do."""


class SimLoop(asyncio.BaseEventLoop):
    """See the module's header."""

    def __init__(self, random: Random | None, *, start: float = 0.0) -> None:
        """Make a loop; without *random*, tasks run in the order in which they became ready."""
        super().__init__()
        self.now = start
        """Virtual time, seconds; moved by the selector alone."""

        self._ready = self._order = _SeededOrder(random)
        self._selector = _VirtualTime(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return virtual time in seconds."""
        return self.now

    def halt(self) -> None:
        """Stop behind the callback that runs now, whatever is ready."""
        self._order.halted = True
        self.stop()

    def resume(self) -> None:
        """Let what was ready at ``halt`` run after all: for cleaning up."""
        self._order.halted = False

    def waiting(self) -> list[str]:
        """Return the names of the tasks that have not ended, with where each of them is."""
        return sorted(f"{task.get_name()} {_place(task)}" for task in asyncio.all_tasks(self))

    def _process_events(self, event_list: list[object]) -> None:
        """There are no file descriptors here."""

    def _write_to_self(self) -> None:
        """There is no other thread, so nobody has to be woken."""


class _SeededOrder:
    """What stands in for the loop's deque of ready handles: as much of a deque as the loop uses."""

    def __init__(self, random: Random | None) -> None:
        self._random = random
        self._steps: list[asyncio.Handle] = []
        self._others: deque[asyncio.Handle] = deque()
        self.halted = False
        self._nothing = _nothing()

    def __len__(self) -> int:
        return len(self._steps) + len(self._others)

    def append(self, handle: asyncio.Handle) -> None:
        callback: Any = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way to ask
        if self._random is not None and isinstance(getattr(callback, "__self__", None), asyncio.Task):
            self._steps.append(handle)
        else:
            self._others.append(handle)

    def popleft(self) -> asyncio.Handle:
        if self.halted:
            return self._nothing
        steps, others = self._steps, self._others
        drawn = 0 if self._random is None else int(self._random.random() * (len(steps) + bool(others)))
        if drawn == len(steps):
            return others.popleft()
        steps[drawn], steps[-1] = steps[-1], steps[drawn]
        return steps.pop()

    def clear(self) -> None:
        self._steps.clear()
        self._others.clear()


class _VirtualTime:
    """The selector: waiting for events is moving the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Deadlock("nothing can happen any more; these wait:\n  " + "\n  ".join(self._loop.waiting()))
        self._loop.now += max(timeout, TURN_SECONDS)
        return []


class _Never:
    """A loop for a handle that is cancelled already."""

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: object) -> None:
        """It has no timers."""


def _nothing() -> asyncio.Handle:
    """Return a handle that the loop skips."""
    handle = asyncio.Handle(int, (), _Never(), Context())  # type: ignore[arg-type]
    handle.cancel()
    return handle


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    return f"at {frames[-1].f_code.co_filename.rsplit('/', 1)[-1]}:{frames[-1].f_lineno}" if frames else ""
