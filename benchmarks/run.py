"""One command for all benchmarks.

    python -m benchmarks                      all of them
    python -m benchmarks windowed words       some of them
    python -m benchmarks --quick              small inputs: shows that they run and agree, not how fast they are
    python -m benchmarks batches              the windowed count with batches of 256 to 4,096 records

``--cache FOLDER`` keeps the inputs (about 1 GB) elsewhere than in the temporary folder, ``--rounds N`` sets how often
each side is measured, ``--core N`` which core all of a measurement's threads share (-1: all cores).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import (
    async_calls,
    epochs,
    explain,
    guarantees,
    latency,
    metrics,
    order,
    savepoints,
    sliding,
    start,
    stateless,
    versions,
    windowed,
    words,
)
from .measuring import ROOT, Options


def log(options: Options) -> None:
    """The log's own benchmark, against the bare file."""
    if options.quick:
        return  # it has no small form, and its parts are the log's tests
    print(flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.log", str(options.cache)], cwd=ROOT, check=True)


WORKLOADS: dict[str, Callable[[Options], None]] = {
    "windowed": windowed.run,
    "order": order.run,
    "sliding": sliding.run,
    "stateless": stateless.run,
    "words": words.run,
    "async_calls": async_calls.run,
    "epochs": epochs.run,
    "savepoints": savepoints.run,
    "guarantees": guarantees.run,
    "metrics": metrics.run,
    "start": start.run,
    "explain": explain.run,
    "latency": latency.run,
    "versions": versions.run,
    "log": log,
}
EXTRAS: dict[str, Callable[[Options], None]] = {"batches": windowed.batches}


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", help=f"some of {', '.join([*WORKLOADS, *EXTRAS])}; default: all")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "streamactors-benchmarks")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    asked = parser.parse_args(arguments)
    known = WORKLOADS | EXTRAS
    if unknown := set(asked.workloads) - known.keys():
        parser.error(f"no workload is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    asked.cache.mkdir(parents=True, exist_ok=True)
    options = Options(asked.cache, quick=asked.quick, rounds=1 if asked.quick else asked.rounds, core=asked.core)
    for name in asked.workloads or WORKLOADS:
        known[name](options)


if __name__ == "__main__":
    main()
