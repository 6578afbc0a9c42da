"""Versions: a replay beside a version that idles, a diff, a promotion, and what a replay does to the other's latency.

    python -m benchmarks versions

replay     the windowed count over the whole log: alone, and as a second version which follows the first one's journal
           while that runs, idle, in a process of its own. Outputs equal
diff       two versions of a view of 1,000,000 keys, of which 1 in 100 differs
promote    from the catalogue's change to the first read of another process that shows the new version, and that
           process's longest read
beside     due to visible at about half of what one core takes, alone and while another process replays all that is
           there, again and again, as `streamactors replay` does (niceness 10)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamactors as sa
from streamactors.durable.rows import encode_keys, encode_rows
from streamactors.durable.store import Checkpoint, Delta, Store
from streamactors.durable.views import view_database
from streamactors.kappa.differing import at_one_place, changes
from streamactors.kappa.promotion import Versioned
from streamactors.ops.replay_command import NICE

from . import latency
from .inputs import SUBMISSIONS, submissions
from .jobs import fresh_folder, values_of
from .measuring import ROOT, Measurement, Options, Side, begin, compare, digest, measure, run_loop, stop
from .windowed import pipeline

KEYS = 1_000_000
PROMOTIONS = 20
BESIDE_RATE = 20_000
"""Events a second in ``beside``: half of a core for job, writer and viewer together, on the machine of the README."""


# Replay. --------------------------------------------------------------------------------------------------------------


def alone(data: str) -> Measurement:
    """Count as the only version."""
    return run_loop(_alone(Path(data)))


async def _alone(data: Path) -> Measurement:
    with fresh_folder(data) as folder:
        return await _counted(folder, "v1", "late")


def beside(data: str) -> Measurement:
    """Count as the second version, beside the first one, which has read all and idles in another process."""
    return run_loop(_beside(Path(data)))


async def _beside(data: Path) -> Measurement:
    with fresh_folder(data) as folder:
        await _counted(folder, "v1", "late")
        with _idling(folder):
            return await _counted(folder, "v2", "late.v2")


@contextmanager
def _idling(folder: Path) -> Iterator[None]:
    """Run the first version in another process meanwhile."""
    command = [sys.executable, "-c", _IDLING, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield
        process.stdin.close()


_IDLING = """
import asyncio, sys
import streamactors as sa
from benchmarks.windowed import pipeline
async def main():
    async with sa.run(pipeline(), sys.argv[1], settings=sa.Settings(version="v1")) as job:
        while job.state != "running":
            await asyncio.sleep(0.01)
        print("runs", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


async def _counted(folder: Path, version: str, late: str) -> Measurement:
    settings = sa.Settings(version=version, bound=sa.Bound.UNTIL_END, checkpoint_every_ms=1_000)
    started = begin()
    async with sa.run(pipeline(), folder, settings=settings) as job:
        await job.wait()
        measured = stop(started)
        counts = sorted(job.views["quiz_counts"].items())
        measured.answer = digest([*counts, *await values_of(job.log, late)])
    return measured


# Diff. ----------------------------------------------------------------------------------------------------------------


def differing(keys: int) -> Measurement:
    """Compare two views, one row in 100 of which differs."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / label for label in ("v1", "v2")]
        for number, folder in enumerate(folders):
            _fill(folder, keys, number)
        found, before, started = 0, _own_mb(), begin()
        most = before
        with at_one_place(folders[0], folders[1], _never) as (old, new):
            for found, _ in enumerate(changes("totals", old, new), 1):
                most = most if found % 500 else max(most, _own_mb())
        measured = stop(started)
        measured.figures = {"differ": found, "grown_mb": most - before}
    return measured


def _own_mb() -> float:
    """Return this process's own memory: the pages of the store's file, which are anybody's, are not in it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _never(first: object, second: object) -> None:
    raise AssertionError(f"they stand at {first} and {second}")


def _fill(folder: Path, keys: int, number: int) -> None:
    folder.mkdir()
    position = {"partitions": [], "entries": 0}
    with Store.open(folder, sync=False) as store:
        attempt = store.begin_attempt("all")
        for epoch, first in enumerate(range(0, keys, 50_000), 1):
            names = [f"quiz-{n:07}" for n in range(first, min(keys, first + 50_000))]
            values = [{"count": n, "points": n / 2 if n % 100 or not number else 0.0} for n in range(len(names))]
            rows = encode_rows([b""] * len(names), encode_keys(names), values)
            delta = Delta(view_database("totals"), puts=rows)
            store.commit(Checkpoint("all", attempt, epoch, position, deltas=[delta]))


# Promote. -------------------------------------------------------------------------------------------------------------


def promoting(promotions: int) -> Measurement:
    """Promote to and fro under the eyes of another process that reads all the while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(_two_versions(folder))
        command = [sys.executable, "-c", _READING, str(folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            changed, versioned = [], Versioned(folder, "named")
            for turn in range(promotions):
                versioned.promote("v1" if turn % 2 else "v2", timeout=10)
                changed.append((folder / "jobs" / "named" / "versions.json").stat().st_mtime)
                time.sleep(0.05)  # so that the reader sees each
            (folder / "stop").touch()
            told = json.loads(reader.stdout.readline())
    seen = told["seen"]
    assert len(seen) == promotions, f"{promotions} promotions, and the reader saw {len(seen)}"
    delays = sorted(at - change for at, change in zip(seen, changed, strict=True))
    figures = {
        "longest": delays[-1],
        "median": delays[len(delays) // 2],
        "read": told["longest"],
        "reads": told["reads"],
    }
    return Measurement(delays[-1], figures=figures)


async def _two_versions(folder: Path) -> None:
    async with sa.Log(folder) as log:
        await (await log.create_topic("events")).append_many([b"1", b"2"])
    for version in ("v1", "v2"):
        flow = sa.Pipeline("named")
        flow.topic("events", int).map(lambda _, version=version: version).key_by(lambda _: "name").reduce(
            lambda _, new: new
        ).to_view("who")
        settings = sa.Settings(version=version, bound=sa.Bound.UNTIL_END)
        async with sa.run(flow, folder, settings=settings) as job:
            await job.wait()


_READING = """
import json, sys, time
from pathlib import Path
import streamactors as sa
seen, longest, reads, last = [], 0.0, 0, "v1"
stop = Path(sys.argv[1]) / "stop"
with sa.open_views(sys.argv[1], "named") as views:
    views["who"]["name"]
    print("reads", flush=True)
    while not stop.exists():
        began = time.time()
        who = views["who"]["name"]
        ended = time.time()
        longest, reads = max(longest, ended - began), reads + 1
        if who != last:
            seen.append(ended)
            last = who
print(json.dumps({"seen": seen, "longest": longest, "reads": reads}))
"""


# Latency beside a replay. ---------------------------------------------------------------------------------------------


def visible(seconds: float, rate: int, data: str) -> Measurement:
    """Measure due to visible; with *data*, while another process replays what is there."""
    latency.RATE = rate
    command = [sys.executable, "-m", "benchmarks.measuring", "benchmarks.versions:replaying"]
    arguments = json.dumps({"data": data, "seconds": seconds + 2})
    started = time.process_time()
    if not data:
        measured = latency.embedded(seconds, "exactly-once", "50ms")
    else:
        with subprocess.Popen([*command, arguments, "-1"], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            measured = latency.embedded(seconds, "exactly-once", "50ms")
            process.terminate()
    measured.figures = {**(measured.figures or {}), "load": (time.process_time() - started) / seconds}
    return measured


def replaying(data: str, seconds: float) -> Measurement:
    """Replay again and again, as the command does: with a lower priority."""
    os.nice(NICE)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        alone(data)
    return Measurement(seconds)


def run(options: Options) -> None:
    """Print all four."""
    given = submissions(options.cache, 20_000 if options.quick else SUBMISSIONS)
    sides = [
        Side("replay beside an idle version", "benchmarks.versions:beside", {"data": str(given.data)}),
        Side("the same pipeline alone", "benchmarks.versions:alone", {"data": str(given.data)}),
    ]
    compare("replay", sides, options, records=given.count)

    keys = 10_000 if options.quick else KEYS
    measured = measure(Side("diff", "benchmarks.versions:differing", {"keys": keys}), options)
    figures = measured.figures or {}
    print(
        f"\ndiff of two views of {keys:,} keys, {figures['differ']:,} of them differ: {measured.seconds:.2f} s, ",
        end="",
    )
    print(f"memory grew by {figures['grown_mb']:.0f} MB")

    promotions = 4 if options.quick else PROMOTIONS
    measured = measure(Side("promote", "benchmarks.versions:promoting", {"promotions": promotions}), options)
    told = {name: f"{value * 1e3:.1f} ms" for name, value in (measured.figures or {}).items() if name != "reads"}
    print(
        f"\n{promotions} promotions, from the catalogue's change to the new version's first row in another process: ",
        end="",
    )
    print(f"median {told['median']}, longest {told['longest']}; longest of its reads {told['read']}")

    seconds, rate = (0.5, 2_000) if options.quick else (15.0, BESIDE_RATE)
    print(f"\ndue to visible, {rate:,} events/s, exactly-once, 50 ms")
    for name, data in (("alone", ""), ("beside a replay", str(given.data))):
        arguments = {"seconds": seconds, "rate": rate, "data": data}
        measured = measure(Side(name, "benchmarks.versions:visible", arguments), options)
        figures = measured.figures or {}
        p50, p99, load = figures["p50"] * 1e3, figures["p99"] * 1e3, figures["load"]
        print(f"  {name:<18} p50 {p50:>6.1f} ms  p99 {p99:>6.1f} ms  load {load:.0%} of a core", flush=True)
