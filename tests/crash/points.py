"""Points: every place where a process may die, with a name, and the one where it does.

A point is a side of a call: ``before`` it, ``after`` it, and ``halfway`` for a write, half of whose bytes are then in
the file. The calls are those through the file port (each method of Disk, File, Cell and Lock; what a cell loads is
memory, which nobody can tell from the point before), and the pieces of work that write LMDB (the lane "state/..."):
each commit, attempt, identity, plan, the opening and closing of the environment. Between the rows of a commit there are
points too: the process dies with a write transaction open.

Each point that is reached is a line in the trace, a file opened to append: it survives its process, counts the points
of a run, and says where a process died (``KILLED at ...``).

What is counted of pending output: see ``OutputCounter``.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED, HANGS = "KILLED at ", "HANGS at "
_NOT_POINTS = {"load", "watch"}


class Points:
    """Counts points, and dies or hangs at one."""

    def __init__(self, trace: Path, data: Path, label: str | None = None, nth: int = 1, *, hang: bool = False) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._data = data
        self._label, self._nth, self._hang = label, nth, hang
        self._seen: Counter[str] = Counter()
        self._guard = threading.Lock()

    def reach(self, label: str, prepare: Callable[[], None] | None = None) -> None:
        """Note the point; if it is the one, do *prepare* and die there, or hang."""
        with self._guard:
            self._seen[label] += 1
            self._say(label)
            chosen = label == self._label and self._seen[label] == self._nth
            if chosen and prepare is not None:
                prepare()
            if chosen and not self._hang:
                self._say(f"{KILLED}{label}")  # the last line: other threads wait for the guard
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # should the signal go to another thread first, this one goes no further
        if chosen:
            self._say(f"{HANGS}{label}")
            threading.Event().wait()

    def _say(self, line: str) -> None:
        os.write(self._trace, f"{line}\n".encode())

    def kind(self, path: Path) -> str:
        """Return what a path stands for: numbers and ids don't matter."""
        place = path.relative_to(self._data.parent) if path.is_relative_to(self._data.parent) else path
        return re.sub(r"\d+", "#", re.sub(r"\.[0-9a-f]{32}$", "", str(Path(*place.parts[1:]))))


class PointedObject:
    """A disk, file, cell or lock whose calls have points."""

    def __init__(self, inner: Any, points: Points, place: str = "") -> None:
        self._inner, self._points, self._place = inner, points, place

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        if name in _NOT_POINTS or not callable(call):
            return call

        def pointed(*arguments: Any, **flags: Any) -> Any:
            place = self._place or (self._points.kind(arguments[-1]) if arguments else "")
            verb = next((flag for flag in ("create", "write") if flags.get(flag)), "")
            what = " ".join(filter(None, [name, verb and f"to {verb}", place]))
            self._points.reach(f"before {what}")
            if name == "write":
                offset, data = arguments
                half = bytes(data[: len(data) // 2])
                self._points.reach(f"halfway {what}", lambda: call(offset, half))
            result = call(*arguments, **flags)
            self._points.reach(f"after {what}")
            return PointedObject(result, self._points, place) if name in {"open", "cell", "lock"} else result

        return pointed


class PointedThreads:
    """The Threads port whose work on LMDB has points."""

    def __init__(self, inner: Any, points: Points) -> None:
        self._inner, self._points = inner, points

    async def run(self, lane: str, work: Callable[..., Any], *arguments: Any) -> Any:
        name = getattr(work, "__qualname__", "")
        if not lane.startswith("state/") or name.startswith("PointedObject"):
            return await self._inner.run(lane, work, *arguments)
        what = name.replace("Job.start.<locals>.<lambda>", "Store.identity")

        def pointed(*arguments: Any) -> Any:
            self._points.reach(f"before {what}")
            result = work(*arguments)
            self._points.reach(f"after {what}")
            return result

        return await self._inner.run(lane, pointed, *arguments)

    async def close(self) -> None:
        await self._inner.close()


def install(points: Points) -> None:
    """Give this process's logs and jobs ports with points."""
    from dataclasses import replace

    from streamactors.durable import log, realtime, store
    from streamactors.job import runner

    def pointed_ports() -> Any:
        ports = realtime.real_ports()
        disk: Any = PointedObject(ports.disk, points)
        threads: Any = PointedThreads(ports.threads, points)
        return replace(ports, disk=disk, threads=threads)

    runner.real_ports = log.real_ports = pointed_ports
    apply = store.apply_delta

    def pointed_apply(transaction: Any, handle: Any, delta: Any) -> None:
        apply(transaction, handle, delta)
        points.reach(f"inside Store.commit, behind {delta.database.split(':')[0]}")

    store.apply_delta = pointed_apply


class OutputCounter:
    """What a job's sinks have been given: three numbers in a mapped file, which survive their process.

    written      records given to sinks
    cut          of these, records of epochs whose barrier has come
    committed    of these, records of epochs that the coordinator knows to be durable
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(24))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 24)
        self.numbers = memoryview(self._map).cast("q")

    @property
    def written(self) -> int:
        return self.numbers[0]

    @property
    def cut(self) -> int:
        return self.numbers[1]

    @property
    def committed(self) -> int:
        return self.numbers[2]

    def close(self) -> None:
        self.numbers.release()
        self._map.close()

    def install(self) -> None:
        """Count what this process's sinks are given."""
        from streamactors.job.pending import PendingOutput

        numbers, cuts = self.numbers, dict[int, int]()
        write, freeze, committed = PendingOutput.write, PendingOutput.freeze, PendingOutput.committed

        def counted_write(output: Any, batch: Any) -> None:
            write(output, batch)
            numbers[0] += len(batch)

        def counted_freeze(output: Any, epoch: int) -> None:
            freeze(output, epoch)
            numbers[1] = cuts[epoch] = numbers[0]

        def counted_committed(output: Any, epoch: int) -> None:
            committed(output, epoch)
            numbers[2] = cuts.pop(epoch)

        PendingOutput.write, PendingOutput.freeze = counted_write, counted_freeze
        PendingOutput.committed = counted_committed
