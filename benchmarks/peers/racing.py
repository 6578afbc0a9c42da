"""One run of one side: a process group on its cores, watched from outside, its output held against the oracle.

The process and all that it starts (a worker, a JVM) share the cores that they are given. Peak memory is the largest
sum of their resident sets, looked at ten times a second: pages that they share count once for each. A program that
goes on after what is measured tells its own figure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT

from .environments import Unavailable
from .programs.entry import below

LOOK_EVERY_S = 0.1
SAID_CHARACTERS = 200
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """What one run took."""

    seconds: float
    cpu: float
    peak_mb: float
    start: float
    """Seconds before the first record could flow, where the peer tells them apart."""


def race(
    command: Sequence[str], arguments: Mapping[str, Any], *, folder: Path, cores: set[int], patience: float
) -> Run:
    """Run a side's program in *folder*; raise Unavailable if it fails, or takes longer than *patience* seconds."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr, on_cores(cores):
        # A session of its own, so that whatever it leaves can be ended with it.
        process = subprocess.Popen(
            [*command, json.dumps(arguments)], cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True
        )
    try:
        peak_mb = _watch(process, patience)
    finally:
        _end_group(process)
    if process.returncode:
        raise Unavailable(f"failed: {_last_line(err) or _last_line(out) or f'exit code {process.returncode}'}")
    try:
        measured = json.loads(out.read_bytes().splitlines()[-1])
        return Run(measured["seconds"], measured["cpu"], measured.get("peak_mb", peak_mb), measured.get("start", 0.0))
    except (IndexError, KeyError, TypeError, ValueError):
        raise Unavailable(f"told no time, but: {_last_line(out)!r}") from None


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Let what is started in the block have these cores, and this process its own again."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _watch(process: subprocess.Popen[bytes], patience: float) -> float:
    peak, until = 0.0, time.monotonic() + patience
    while process.poll() is None:
        peak = max(peak, sum(_resident_mb(pid) for pid in [process.pid, *below(process.pid)]))
        if time.monotonic() > until:
            raise Unavailable(f"took more than {patience:.0f} s")
        try:
            process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            continue
    return peak


def _resident_mb(pid: int) -> float:
    try:
        return int(Path("/proc", str(pid), "statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES / 2**20
    except (OSError, IndexError):
        return 0.0  # it has just ended


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:SAID_CHARACTERS] if lines else ""
