"""Speed against peers: the same work, the same input, outputs checked, in turn.

    python -m benchmarks.peers                        all workloads, all peers; makes their environments first (3 GB)
    python -m benchmarks.peers windowed --peers bytewax,duckdb
    python -m benchmarks.peers --quick                small inputs, one round: shows that all of it runs and agrees

Ours runs first in each round, from the log and from the very file that the peers read; then the peers, then the next
round. A peer that can't be installed, fails, or writes other rows than the oracle has no time in the table but the
reason; with ``--require`` the exit code is 1 then. Ours must be right, or there is no table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.inputs import Input

from .environments import Unavailable, python_of
from .racing import Run, race
from .table import PEERS, Peer
from .workloads import WORKLOADS, Row, Workload, difference

LOG, FILES = "StreamActors", "StreamActors, same file"
PATIENCE_S = 900.0
LINE = "  {:<24} {:>8} {:>11} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7}"


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    cache: Path
    envs: Path
    peers: Sequence[Peer] = PEERS
    quick: bool = False
    rounds: int = 3
    cores: frozenset[int] = frozenset({0})


@dataclass
class Side:
    """One line of a table."""

    name: str
    command: list[str]
    form: str = ""
    to_reach: float = 0.0
    runs: list[Run] = field(default_factory=list)
    why_not: str = ""

    def median(self, figure: str) -> float:
        """Return the median of all rounds."""
        return float(statistics.median(getattr(run, figure) for run in self.runs))


def compare(workload: Workload, options: Options) -> list[Side]:
    """Compare all peers on one workload, those that take as many records together; return their sides."""
    groups: dict[int, list[Peer]] = {}
    found: list[Side] = []
    for peer in options.peers:
        if workload.name in peer.workloads:
            records = workload.quick if options.quick else peer.workloads[workload.name] or workload.records
            groups.setdefault(records, []).append(peer)
        elif peer.why_not:
            found.append(Side(peer.name, [], why_not=peer.why_not))
    for records, peers in sorted(groups.items(), reverse=True):
        sides = [_side(peer, workload, options) for peer in peers]
        ours = [Side(LOG, _own(), "log"), Side(FILES, _own(), "files")]
        _in_turn([*ours, *sides], workload, workload.made(options.cache, records // workload.a_line), options)
        _print(workload, records, [*ours, *sides], options)
        found += sides
    return found


def _own() -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.ours"]


def _side(peer: Peer, workload: Workload, options: Options) -> Side:
    side = Side(peer.name, [], peer.form, peer.to_reach.get(workload.name, 0.0))
    try:
        side.command = [str(python_of(peer, options.envs)), str(peer.program)]
    except Unavailable as reason:
        side.why_not = str(reason)
    return side


def _in_turn(sides: Sequence[Side], workload: Workload, made: Input, options: Options) -> None:
    expected = workload.expected(made.lines)
    for _ in range(options.rounds):
        for side in sides:
            if not side.why_not:
                _one_round(side, workload, made, expected, options)


def _one_round(side: Side, workload: Workload, made: Input, expected: list[Row], options: Options) -> None:
    arguments = {"workload": workload.name, "lines": str(made.lines), "cores": len(options.cores), "form": side.form}
    if side.name in {LOG, FILES}:
        arguments["data"] = str(made.data)
    with tempfile.TemporaryDirectory(dir=options.cache) as name:
        folder = Path(name)
        arguments["folder"] = name
        try:
            run = race(side.command, arguments, folder=folder, cores=set(options.cores), patience=PATIENCE_S)
            if wrong := difference(expected, workload.written(folder / "out")):
                raise Unavailable(wrong)
        except Unavailable as reason:
            if side.name in {LOG, FILES}:
                raise SystemExit(f"{side.name}, {workload.name}: {reason}") from None
            side.why_not = str(reason)
        else:
            side.runs.append(run)


def _print(workload: Workload, records: int, sides: Sequence[Side], options: Options) -> None:
    cores = f"{len(options.cores)} core" + "s" * (len(options.cores) > 1)
    load = os.getloadavg()[0]
    print(
        f"\n{workload.name} ({records:,} {workload.unit}, {cores}, {options.rounds} rounds in turn, load {load:.1f}; "
        "outputs equal the oracle's)"
    )
    heads = (
        "",
        "seconds",
        f"{workload.unit}/s",
        "ours is",
        "same file",
        "to reach",
        "cpu s",
        "ours is",
        "peak",
        "start",
    )
    print(LINE.format(*heads) + "   all rounds")
    log, files = sides[0], sides[1]
    for side in sides:
        if not side.why_not:
            print(_line(side, log, files, records), flush=True)


def _line(side: Side, log: Side, files: Side, records: int) -> str:
    seconds, cpu, start = side.median("seconds"), side.median("cpu"), side.median("start")
    # Net of start-up, a quick run may have taken no time at all.
    cells = (
        f"{seconds:.2f}",
        f"{records / seconds:,.0f}" if seconds > 0 else "",
        f"{seconds / log.median('seconds'):.2f} x",
        f"{seconds / files.median('seconds'):.2f} x",
        f"{side.to_reach:.1f} x" if side.to_reach else "",
        f"{cpu:.2f}",
        f"{cpu / log.median('cpu'):.2f} x",
        f"{max(run.peak_mb for run in side.runs):.0f} MB",
        f"{start:.1f} s" if start else "",
    )
    return LINE.format(side.name, *cells) + "   " + " ".join(f"{run.seconds:.2f}" for run in side.runs)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    workloads, options, require = parse(arguments)
    not_run: dict[str, str] = {}
    for workload in workloads:
        for side in compare(workload, options):
            if side.why_not:
                # What keeps a peer from all workloads is said once.
                not_run.setdefault(f"{side.name}: {side.why_not}", workload.name if side.command else "")
    if not_run:
        print("\nNot compared")
        for why, where in not_run.items():
            print(f"  {why}" + f" ({where})" * bool(where))
    if require and not_run:
        raise SystemExit(1)


def parse(arguments: list[str] | None) -> tuple[list[Workload], Options, bool]:
    """Return the workloads, the options, and whether all peers are required."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="*", help=f"some of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument(
        "--peers", default="", help="some of the peers, by the first letters of their names, with commas"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "streamactors-benchmarks")
    parser.add_argument("--envs", type=Path, help="where the peers' environments are kept; default: below the cache")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="the first of the cores that each side gets")
    parser.add_argument("--cores", type=int, default=1, help="how many cores each side gets")
    parser.add_argument("--require", action="store_true", help="exit with 1 if a peer was not compared")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.workloads) - WORKLOADS.keys():
        parser.error(f"no workload is named {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    here = sorted(os.sched_getaffinity(0))
    cores = here[asked.core : asked.core + asked.cores] if asked.core >= 0 else []
    if asked.cores < 1 or len(cores) < asked.cores:
        parser.error(f"--core {asked.core} --cores {asked.cores}: this process may use {len(here)} cores, from 0 on")
    prefixes = [prefix.strip().lower() for prefix in asked.peers.split(",") if prefix.strip()]
    for prefix in prefixes:
        if not any(peer.name.lower().startswith(prefix) for peer in PEERS):
            parser.error(f"no peer's name begins with {prefix!r}; there are {', '.join(peer.name for peer in PEERS)}")
    peers = [peer for peer in PEERS if not prefixes or peer.name.lower().startswith(tuple(prefixes))]
    cache: Path = asked.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    options = Options(
        cache,
        envs=(asked.envs or cache / "peers").resolve(),
        peers=peers,
        quick=asked.quick,
        rounds=1 if asked.quick else asked.rounds,
        cores=frozenset(cores),
    )
    return [WORKLOADS[name] for name in asked.workloads or WORKLOADS], options, asked.require
