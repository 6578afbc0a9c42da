"""The watchdog: names the function that blocks the event loop, and the awaited one that never returns.

A function that blocks stops everything that lives in its loop: all regions, their checkpoints, the web service around
them. Nothing in the loop can say so, hence a thread: one for each loop in which jobs run, as long as they do.

    thread    looks once in a bound: has the loop answered? ──▶ asks it again
    loop      answers: one callback that stores the time, and once a second looks at what is awaited

When the answer is not there after the bound, the thread looks at the stack of the loop's thread: the innermost frame
that is neither ours nor Python's is the user's function; the operator is the ``self`` of a frame of ours below it. So
nothing at all is noted on the way of a record. It is logged when the bound is reached, when twice that time has passed,
four times, ..., and when it is over. (C code that keeps the GIL keeps this thread from looking as well. It is named
when it returns, if that took twice the bound: the look is late then, and is the first thing that runs.)

An awaited function blocks nothing, its record only does not come back. Its operator knows since when a call is in
flight; ``awaited_by`` finds the place by following the chain of coroutines from the task of the call.

A loop that is blocked for less than the bound is never named, one that is for twice the bound always is. More looks
would narrow that, but they are what this costs: two a second, at 500 ms, take 0.03 to 0.05 % of a core.

If the thread dies or hangs, nobody is named, and nothing else happens: nothing waits for it.
"""

from __future__ import annotations

import asyncio
import linecache
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from streamactors.flow.async_calls import AsyncOperator
from streamactors.flow.operator import Operator

AWAITS_LOOK_SECONDS = 1.0
"""Between two looks at what is awaited: how exact "since" is."""

_OURS = str(Path(__file__).parents[1])
_PYTHON = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})

_log = logging.getLogger("streamactors.watchdog")


# What is running. -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where in somebody's code: for people."""

    function: str
    file: str
    line: int
    code: str
    """The text of the line; empty when the file is not there."""

    def __str__(self) -> str:
        code = f": {self.code}" if self.code else ""
        return f"{self.function} ({Path(self.file).name}:{self.line}{code})"


def _kind(code: CodeType) -> str:
    """Return whose *code* is: ``own``, the user's; ``installed``, some library's; ``ours``; ``python``."""
    file = code.co_filename
    if file.startswith(_OURS):
        return "ours"
    if file.startswith(_INSTALLED):  # it may lie inside Python's own folder
        return "installed"
    return "python" if file.startswith(("<frozen", *_PYTHON)) else "own"


def running_in(frame: FrameType | None, outside: frozenset[CodeType]) -> tuple[str | None, Place | None]:
    """
    Return which operator runs in a stack, and the function to blame: the innermost frame of the user's own code.

    A library that he calls is not what he can mend; an installed one is named if nothing of his own is there, and code
    of ours if there is not even that. Python's own is no answer: an idle loop stands there.
    *outside* is the code of the frames that the event loop itself runs in; the look ends there.
    """
    operator: str | None = None
    found: dict[str, FrameType] = {}  # the innermost frame of each kind
    while frame is not None and frame.f_code not in outside:
        found.setdefault(_kind(frame.f_code), frame)
        if operator is None and isinstance(owner := _owner(frame), Operator):
            operator = owner.name
        frame = frame.f_back
    blamed = found.get("own") or found.get("installed") or found.get("ours")
    return operator, None if blamed is None else place_of(blamed)


def place_of(frame: FrameType) -> Place:
    """Return where *frame* is."""
    code, line = frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno
    return Place(code.co_qualname, code.co_filename, line, linecache.getline(code.co_filename, line).strip())


def frames_of_loop() -> frozenset[CodeType]:
    """Return the code of all that the running loop itself runs in; called in a task of it."""
    task = asyncio.current_task()
    frame = getattr(task.get_coro() if task is not None else None, "cr_frame", None)
    frame = frame.f_back if frame is not None else None
    codes = set()
    while frame is not None:
        codes.add(frame.f_code)
        frame = frame.f_back
    return frozenset(codes)


# What is awaited. -----------------------------------------------------------------------------------------------------


def awaited_by(operator: AsyncOperator) -> str:
    """Return the user's function of the oldest call in flight, and where in it the await is.

    Cost: a look at all tasks of the loop; only for a call that has been in flight for a while.
    """
    oldest, name = operator.in_flight.oldest_row, f"{operator.name}: call"
    for task in asyncio.all_tasks():
        if task.get_name() == name:
            frames = [frame for frame in _chain(task.get_coro()) if frame is not None]
            if any(_kind(frame.f_code) == "ours" and frame.f_locals.get("row") == oldest for frame in frames):
                users = [frame for frame in frames if _kind(frame.f_code) == "own"]
                if users:
                    return str(place_of(users[-1]))
    function = getattr(operator, "function", None) or getattr(operator, "predicate", None) or operator
    return str(getattr(function, "__qualname__", type(operator).__name__))


def _chain(awaiting: Any) -> Iterator[FrameType | None]:
    """Yield the frame of each coroutine, generator and async generator that the one before awaits."""
    while awaiting is not None:
        prefix = next((prefix for prefix in ("cr", "gi", "ag") if hasattr(awaiting, f"{prefix}_frame")), None)
        if prefix is None:
            return
        yield getattr(awaiting, f"{prefix}_frame")
        awaiting = getattr(awaiting, "gi_yieldfrom" if prefix == "gi" else f"{prefix}_await")


def _owner(frame: FrameType) -> object:
    return frame.f_locals.get("self") if _kind(frame.f_code) == "ours" else None


# When to speak. Pure. -------------------------------------------------------------------------------------------------


class Patience:
    """Says when something that lasts is worth a word: at the bound, then at *growth* times the time before."""

    def __init__(self, bound: float, growth: float = 2.0) -> None:
        self._next = bound
        self._growth = growth
        self.told = False

    def is_up(self, seconds: float) -> bool:
        """Return whether to speak now, *seconds* after it began."""
        if seconds < self._next:
            return False
        self._next = seconds * self._growth
        self.told = True
        return True


@dataclass(frozen=True, slots=True)
class Look:
    """What the thread does now."""

    ask: bool = False
    blocked: float | None = None
    """Seconds for which the loop has not answered, when it is time to say so."""

    ended: float | None = None
    """Seconds after which it answered, when its silence was told."""


class Heartbeat:
    """Questions and answers. Seconds come in from one clock; decisions come out."""

    def __init__(self, bound: float, started: float | None = None) -> None:
        self.bound = bound
        self._looked = started
        self._asked: float | None = None
        self._patience = Patience(bound)

    def look(self, now: float, answered: float) -> Look:
        """Return what to do at *now*; *answered* is when the loop answered last.

        A look comes a bound after the one before. If it comes much later, something kept this thread from running too.
        """
        late = 0.0 if self._looked is None else now - self._looked - self.bound
        self._looked = now
        if self._asked is None or answered >= self._asked:
            ended = answered - self._asked if self._asked is not None and self._patience.told else None
            self._asked, self._patience = now, Patience(self.bound)
            return Look(ask=True, ended=ended, blocked=late if late >= self.bound else None)
        silent = now - self._asked
        return Look(blocked=silent) if self._patience.is_up(silent) else Look()


# The thread. ----------------------------------------------------------------------------------------------------------


class Watchdog:
    """One for each event loop that jobs run in. Made by ``watch``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outside: frozenset[CodeType]) -> None:
        self._loop = loop
        self._outside = outside
        self._thread_id = threading.get_ident()
        self._bounds: dict[object, tuple[float, Callable[[], None]]] = {}
        self._answered = time.monotonic()
        self._looked = 0.0
        self._named: str | None = None
        self.incidents = 0
        """How often the loop was blocked for longer than a bound, and by whom was known."""

        self._until_over = threading.Lock()  # held until then: a wait for it costs half of one for an Event
        self._until_over.acquire()
        self._thread = threading.Thread(target=self._run, name="streamactors/watchdog", daemon=True)

    def join(self, job: object, bound: float, look: Callable[[], None]) -> None:
        """Watch for one job more."""
        self._bounds[job] = (bound, look)
        if not self._thread.is_alive():
            self._thread.start()

    def leave(self, job: object) -> bool:
        """Watch for one job less; return whether it was the last one. Then the thread is gone."""
        self._bounds.pop(job, None)
        if self._bounds:
            return False
        self._until_over.release()
        self._thread.join()  # it waits for nothing of this loop
        return True

    # In the loop. -----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        self._answered = now = time.monotonic()
        if now - self._looked >= AWAITS_LOOK_SECONDS:
            self._looked = now
            for _, look in list(self._bounds.values()):
                look()

    # In the thread. ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        bound = self._bound()
        heartbeat = Heartbeat(bound, time.monotonic())
        while not self._until_over.acquire(timeout=bound):
            if self._bound() != bound:
                bound = self._bound()
                heartbeat = Heartbeat(bound)
            look = heartbeat.look(time.monotonic(), self._answered)
            if look.ended is not None and self._named is not None:
                _log.warning("the event loop runs again: it was blocked for %.1f s by %s", look.ended, self._named)
            if look.ended is not None:
                self._named = None
            if look.blocked is not None:
                self._name(look.blocked)
            if look.ask:
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop is closed: its jobs have died without a word
                    _watchdogs.pop(self._loop, None)
                    return

    def _bound(self) -> float:
        return min([bound for bound, _ in list(self._bounds.values())], default=1.0)

    def _name(self, seconds: float) -> None:
        operator, place = running_in(sys._current_frames().get(self._thread_id), self._outside)  # noqa: SLF001
        if place is None:
            return  # nothing runs in the loop: the whole process stood still, or the loop was left
        self.incidents += self._named is None
        self._named = f"{place}, called by {operator or 'no operator'}"
        _log.warning(
            "the event loop has been blocked for %.1f s by %s. All that lives in this loop waits for it. Make the "
            "function shorter, or async with the slow part in asyncio.to_thread; watchdog_ms sets the bound, 0 none.",
            seconds,
            self._named,
        )


_watchdogs: dict[asyncio.AbstractEventLoop, Watchdog] = {}


@dataclass(frozen=True, slots=True)
class Watch:
    """What a job has of the watchdog of its loop."""

    end: Callable[[], None]
    """Ends it; called in a task of the loop."""

    incidents: Callable[[], int]
    """How often the loop was blocked since some job of it began to watch; of all jobs in it together."""


def watch(bound_ms: int, look: Callable[[], None]) -> Watch:
    """Watch the running loop, and call *look* in it about once a second. Called in a task of the loop."""
    loop = asyncio.get_running_loop()
    if loop not in _watchdogs:
        _watchdogs[loop] = Watchdog(loop, frames_of_loop())
    watchdog, job = _watchdogs[loop], object()
    watchdog.join(job, bound_ms / 1_000, look)

    def end() -> None:
        if _watchdogs.get(loop) is watchdog and watchdog.leave(job):
            del _watchdogs[loop]

    return Watch(end, lambda: watchdog.incidents)
