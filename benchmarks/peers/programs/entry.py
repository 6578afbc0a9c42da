"""How a peer's program begins and ends. In the peer's own environment the standard library is all that is sure.

    python on_PEER.py '{"workload": "windowed", "lines": FILE, "folder": FOLDER, "cores": 1, "form": ""}'

A program reads the JSON lines of FILE, writes its results as JSON lines into files below FOLDER/out (a row is a list or
an object: quiz, start, count; or the five fields of a submission; or word, count), keeps what it needs for recovery
anywhere else below FOLDER, and prints as its last line what it measured. A form is a variant of the program.

What is measured is the run: from after the imports until the last result is in its file and, where a peer says so,
durable. Processor time is that of the program and of all processes that it started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

MINUTE_MS = 60_000
SIZE_MS = 10 * MINUTE_MS
WAIT_MS = 41 * MINUTE_MS
"""How far event time may run behind: stragglers are up to 40 minutes late, so all of them count."""

SCORE_MIN = 50
TICKS = os.sysconf("SC_CLK_TCK")


class Task:
    """What a program is asked for."""

    def __init__(self, workload: str, lines: str, folder: str, cores: int = 1, form: str = "", data: str = "") -> None:
        self.workload = workload
        self.lines = Path(lines)
        self.data = Path(data)  # a data folder of StreamActors whose log has the same records
        self.folder = Path(folder)
        self.cores = cores
        self.form = form
        self.out = self.folder / "out"
        self.out.mkdir(parents=True, exist_ok=True)


def main(workloads: Mapping[str, Callable[[Task], Mapping[str, float] | None]]) -> None:
    """Run what the command line asks for; *workloads* maps names to functions of a Task.

    Such a function may return figures of its own, which replace those that are taken around it.
    """
    task = Task(**json.loads(sys.argv[1]))
    before, started = cpu_seconds(), time.perf_counter()
    figures = workloads[task.workload](task) or {}
    measured = {"seconds": time.perf_counter() - started, "cpu": cpu_seconds() - before, **figures}
    print("\n" + json.dumps(measured), flush=True)


def cpu_seconds() -> float:
    """Return the processor time of this process and of those below it that live: exact for itself, else in ticks."""
    return time.process_time() + sum(_ticks(pid) for pid in below(os.getpid())) / TICKS


def below(pid: int) -> list[int]:
    """Return the processes that descend from *pid*."""
    found: list[int] = []
    unseen = [pid]
    while unseen:
        parent = unseen.pop()
        for task in Path("/proc", str(parent), "task").glob("*/children"):
            try:
                unseen += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it has just ended
        if parent != pid:
            found.append(parent)
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
