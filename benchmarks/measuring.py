"""How measurements are taken: each in a process of its own, both sides in turn, on one core; medians and ratios.

    python -m benchmarks.measuring MODULE:FUNCTION JSON     is that process; it prints what FUNCTION(**JSON) measured

A side is a function that returns a Measurement: the seconds of what it was asked for (the interpreter's start and the
imports are not in it, unless it says so), and an answer. The answers of all sides must be equal before any time is
printed: a fast wrong number is worth nothing.

Peak memory is the process's largest resident set, interpreter and libraries included. The page cache, which holds the
log's and the plain scripts' files for both sides, is not in it.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from streamactors.ops.run_command import tune_garbage_collection

T = TypeVar("T")
ROOT = Path(__file__).parents[1]


@dataclass
class Measurement:
    """What one process measured."""

    seconds: float
    cpu: float = 0.0
    """Seconds of processor time, all threads: what is left of a figure when others use the machine as well."""

    answer: str = ""
    """Digest of the result; equal for all sides of a workload."""

    figures: dict[str, Any] | None = None
    """Whatever else was measured."""

    peak_mb: float = 0.0


@dataclass(frozen=True)
class Side:
    """A function to measure, as ``module:function``, and what it is called with."""

    name: str
    function: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What a run of the benchmarks is asked for."""

    cache: Path
    quick: bool = False
    rounds: int = 3
    core: int = 0


def begin() -> tuple[float, float]:
    """Return when a measurement begins: by the clock, and in processor time of all threads."""
    return time.perf_counter(), time.process_time()


def stop(started: tuple[float, float]) -> Measurement:
    """Return what has been measured since ``begin``: what follows, such as looking at the output, is not in it."""
    return Measurement(time.perf_counter() - started[0], time.process_time() - started[1], peak_mb=peak_mb())


def peak_mb() -> float:
    """Return the largest resident set of this process so far."""
    # Linux lets a process begin with its parent's ru_maxrss; the kernel's own high-water mark begins with the program.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def digest(parts: Iterable[Any]) -> str:
    """Return a short digest of *parts*, in order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode())
        found.update(b"\n")
    return found.hexdigest()[:16]


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* as ``streamactors run`` runs a pipeline: on uvloop, and with its settings of the garbage collector."""
    before = gc.get_threshold()
    tune_garbage_collection()
    try:
        result: T = uvloop.run(main)
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
    return result


def measure(side: Side, options: Options) -> Measurement:
    """Run one side in a fresh process; a quick run, which shows no more than that it works, stays in this one."""
    if options.quick:
        return call(side.function, side.arguments)
    arguments = json.dumps(side.arguments)
    command = [sys.executable, "-m", "benchmarks.measuring", side.function, arguments, str(options.core)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side.name} failed:\n{done.stderr}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def in_turn(sides: Sequence[Side], options: Options) -> dict[str, list[Measurement]]:
    """Measure all sides in turn, ``options.rounds`` times (A B A B ...); refuse unequal answers."""
    found: dict[str, list[Measurement]] = {side.name: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            found[side.name].append(measure(side, options))
    answers = {name: {one.answer for one in measured} for name, measured in found.items()}
    if len(set().union(*answers.values())) != 1:
        raise SystemExit(f"the sides do not agree, so their times mean nothing: {answers}")
    return found


def compare(title: str, sides: Sequence[Side], options: Options, *, records: int, unit: str = "records") -> None:
    """Measure, check, and print a table: the first side is ours."""
    found = in_turn(sides, options)
    ours = found[sides[0].name]
    print(f"\n{title} ({records:,} {unit}, {options.rounds} rounds in turn; outputs equal)")
    heads = ("", "seconds", f"{unit}/s", "ours is", "cpu s", "ours is", "peak")
    print("  {:<28} {:>8} {:>11} {:>8} {:>7} {:>8} {:>7}   all rounds".format(*heads))
    for name, measured in found.items():
        seconds, cpu = _median(measured, "seconds"), _median(measured, "cpu")
        ratios = [f"{seconds / _median(ours, 'seconds'):.2f} x", f"{cpu / _median(ours, 'cpu'):.2f} x"]
        peak = max(one.peak_mb for one in measured)
        rounds = " ".join(f"{one.seconds:.2f}" for one in measured)
        print(
            f"  {name:<28} {seconds:>8.2f} {records / seconds:>11,.0f} {ratios[0]:>8} {cpu:>7.2f} {ratios[1]:>8} "
            f"{peak:>4.0f} MB   {rounds}",
            flush=True,
        )


def _median(measured: Sequence[Measurement], figure: str) -> float:
    return statistics.median([getattr(one, figure) for one in measured])


def call(function: str, arguments: dict[str, Any]) -> Measurement:
    """Call ``module:function``."""
    module, _, name = function.partition(":")
    measured: Measurement = getattr(importlib.import_module(module), name)(**arguments)
    measured.peak_mb = measured.peak_mb or peak_mb()
    return measured


def main() -> None:
    """Be the process of one measurement."""
    function, arguments, core = sys.argv[1:4]
    if int(core) >= 0:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(core)]})
    print(json.dumps(asdict(call(function, json.loads(arguments)))))


if __name__ == "__main__":
    # Not this module, which is __main__ here: the sides import it by its name.
    main()
