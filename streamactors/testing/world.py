"""A simulated machine: processes that run the product's very wiring, and die.

    async def life(process):
        async with run(pipeline, world.data_dir, settings=..., ports=process.ports) as job:
            ...

    world.run(life, CrashAtLabel("after Store.commit", 3))      # the process dies there
    world.run(life)                                             # the next one finds what that left

Only the ports are replaced: disk (testing/disk.py), threads, clock, randomness; and the event loop. LMDB is real, in a
folder of its own without syncs: its commit is atomic whatever happens, and a commit that has returned is durable, so a
crash is on one side of it or on the other, and SimThreads dies on either.

A process dies at a *point*: an operation of the disk, either side of a piece of work of a thread, or an instant. From
then on nothing of it acts: its loop runs no callback, its disk, clock and threads raise ``Crash``, its LMDB is closed
without a commit. (Then its tasks are cancelled, so that Python finds nothing pending. That runs code of the dead
process, which can't reach anything any more.) Either the process alone dies, or the machine: SimDisk decides what that
leaves of files and cells.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

from streamactors.core.ports import Ports
from streamactors.durable.store import Store

from .clock import SimClock
from .disk import READS, Crash, SimDisk
from .loop import SimLoop
from .threads import SimThreads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CrashAtPoint:
    """Die at the n-th point of this life, whatever it is."""

    number: int


@dataclass(frozen=True, slots=True)
class CrashAtLabel:
    """Die at the n-th point with this label."""

    label: str
    number: int = 1


@dataclass(frozen=True, slots=True)
class CrashAtTime:
    """Die when the process is this old, wherever it is."""

    seconds: float


CrashPlan = CrashAtPoint | CrashAtLabel | CrashAtTime


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """The process came to its end."""

    result: T


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process died at the point of this label."""

    label: str


class Process:
    """One life. ``ports`` and ``random`` are what its code may use."""

    def __init__(self, world: World, plan: CrashPlan | None) -> None:
        # One of its own: what is drawn while its remains are cleared away, in no certain order, must not show later.
        self.random = Random(world.random.getrandbits(64))
        self.loop = SimLoop(self.random if world.shuffled else None, start=world.now)
        self.data_dir = world.data_dir
        self.disk = world.disk
        self.dead: str | None = None
        """The label of the point at which it died."""

        self.store: Store | None = None
        """The job's store, as soon as it was opened; for looking at what is committed."""

        self.ended = world.now
        """When it ended, virtual seconds."""

        self.on_point: Callable[[str], None] = lambda label: None
        """Told each point that is passed alive."""

        self.points = 0
        self.seen: Counter[str] = Counter()
        self.errors: list[str] = []
        self._plan = plan
        self._stores: list[Store] = []
        threads = SimThreads(self.random)
        threads.on_work, threads.on_result = self._on_work, self._on_result
        world.disk.on_operation = self._on_operation
        self.ports = Ports(SimClock(self.loop, self._check_alive), world.disk, threads, self.random)
        self.loop.set_exception_handler(self._on_loop_error)
        if isinstance(plan, CrashAtTime):
            self.loop.call_later(plan.seconds, self._die, "an instant")

    def run(self, main: Callable[[Process], Awaitable[T]]) -> Ended[T] | Crashed:
        """Run *main* until it returns, raises, or the process dies; leave nothing behind."""
        task = self.loop.create_task(_awaited(main, self), name="main")
        task.add_done_callback(self._main_ended)
        try:
            self.loop.run_forever()
            if self.dead is None:
                result = task.result()
                left = [name for name in self.loop.waiting() if not name.startswith("main ")]
                assert not left, f"these tasks outlived their job: {left}"
                assert not self.errors, "\n".join(self.errors)
                return Ended(result)
            return Crashed(self.dead)
        finally:
            self._bury()

    def _main_ended(self, task: asyncio.Task[Any]) -> None:
        if self.dead is None:
            self.loop.stop()

    def _bury(self) -> None:
        self.ended = self.loop.now
        self.dead = self.dead or "it ended"
        self.disk.dead = True
        self.loop.resume()
        if asyncio.all_tasks(self.loop):
            self.loop.run_until_complete(_cancel_all())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        for store in self._stores:
            store.close()
        self.loop.close()

    # Points. ----------------------------------------------------------------------------------------------------------

    def _on_operation(self, operation: str, path: Path) -> None:
        if operation not in READS:
            self._reach(f"{operation} {_kind(path)}")

    def _on_work(self, label: str) -> None:
        self._check_alive()
        if label != "hand over":
            self._reach(label)

    def _on_result(self, result: Any) -> None:
        if isinstance(result, Store):
            self._stores.append(result)
            self.store = result

    def _reach(self, label: str) -> None:
        self.points += 1
        self.seen[label] += 1
        match self._plan:
            case CrashAtPoint(number) if number == self.points:
                self._die(label)
            case CrashAtLabel(wanted, number) if wanted == label and number == self.seen[label]:
                self._die(label)
        self._check_alive()
        self.on_point(label)

    def _die(self, label: str) -> None:
        self.dead = label
        self.disk.dead = True
        self.loop.halt()

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise Crash(self.dead)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.dead is None:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")


class World:
    """A machine with a disk, on which one process runs after the other."""

    def __init__(self, random: Random, folder: Path, *, shuffled: bool = True) -> None:
        self.random = random
        self.shuffled = shuffled
        """Whether tasks run in an order drawn from the seed. If not: in that in which they became ready."""

        self.data_dir = folder / "data"
        self.disk = SimDisk(random)
        self.now = 0.0
        """Virtual time at which the next process begins, seconds."""

        self.crashes: Counter[str] = Counter()
        """At which points processes died."""

        self.reached: Counter[str] = Counter()
        """All points that were reached."""

    def run(
        self, main: Callable[[Process], Awaitable[T]], plan: CrashPlan | None = None, *, power: bool | None = None
    ) -> Ended[T] | Crashed:
        """
        Run a process; if it dies, crash the disk.

        Args:
            main: What the process does.

            plan: Where it dies; None: nowhere.

            power: Whether the machine goes down with it; None: either, by the seed.
        """
        process = Process(self, plan)
        try:
            outcome = process.run(main)
        finally:
            self.now = process.ended
            self.reached.update(process.seen)
            crashed = process.dead if process.dead != "it ended" else None
            if crashed is not None:
                self.crashes[crashed] += 1
            # The end of a process is a crash that leaves all there is: locks go, written data stays.
            self.disk = self.disk.crash(power=power if crashed is not None else False)
        return outcome


async def _awaited(main: Callable[[Process], Awaitable[T]], process: Process) -> T:
    return await main(process)


async def _cancel_all() -> None:
    me = asyncio.current_task()
    while others := [task for task in asyncio.all_tasks() if task is not me]:
        for task in others:
            task.cancel()
        await asyncio.sleep(0)


@lru_cache(4_096)
def _kind(path: Path) -> str:
    """Return what a path stands for: numbers and ids don't matter."""
    parts = path.parts[-3:] if "log" in path.parts else path.parts[-2:]
    return re.sub(r"\d+", "#", re.sub(r"\.[0-9a-f]{32}$", "", "/".join(parts)))
