"""A long run: kill a process at every point and then at random, until told to stop; see README.md.

    python -m tests.crash.campaign --kills 3000 --workers 2

Rounds of a hunt or a storm, with 1 or 4 partitions in turn, each from a seed that is printed. Ends at the first that
finds something, whose folder is kept, or when there were so many kills.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from random import Random, SystemRandom

from tests.crash.hunt import TRIES, Hunt
from tests.crash.processes import Server
from tests.crash.storm import Storm

ROUND_KILLS = 60


def sweep_round(server: Server, folder: Path, partitions: int, random: Random) -> Counter[str]:
    """Kill at every point, then at random."""
    hunt = Hunt(server, folder, partitions, random)
    hunt.list_points()
    for command in ("append", "run"):
        hunt.sweep(command)
    hunt.at_random(ROUND_KILLS)
    missed = sorted(hunt.seen.keys() - hunt.kills.keys())
    if missed:
        say(f"{partitions} partition(s): reached once and not again in {TRIES} tries: {missed}")
    return Counter({"kills at points": hunt.kills.total(), "points": len(hunt.kills), "points missed": len(missed)})


def random_round(server: Server, folder: Path, partitions: int, random: Random) -> Counter[str]:
    """Kill at random points."""
    hunt = Hunt(server, folder, partitions, random)
    hunt.list_points()
    hunt.at_random(ROUND_KILLS)
    return Counter({"kills at points": hunt.kills.total()})


def storm_round(server: Server, folder: Path, partitions: int, random: Random) -> Counter[str]:
    """Kill at random times."""
    storm = Storm(server, folder / "world", partitions, random)
    storm.run(ROUND_KILLS // 2)
    return Counter(
        {
            "kills at random times": len(storm.kills),
            "with output pending": sum(kill.pending for kill in storm.kills),
            "in mid-epoch": sum(kill.mid_epoch for kill in storm.kills),
            "kills of appends": storm.appender_kills,
            "drains": storm.drains,
        }
    )


ROUNDS = [(sweep_round, 1), (sweep_round, 4)]
LATER = [(storm_round, 1), (random_round, 4), (storm_round, 4), (random_round, 1)]


def play(number: int, seed: int, folder: Path) -> Counter[str]:
    """Play one round."""
    kind, partitions = ROUNDS[number] if number < len(ROUNDS) else LATER[number % len(LATER)]
    with Server() as server:
        counted = kind(server, folder, partitions, Random(seed))
    shutil.rmtree(folder)
    say(f"round {number}, seed {seed}, {partitions} partition(s): {dict(counted)}")
    return counted


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Play rounds until there were enough kills."""
    parser = argparse.ArgumentParser(description="Kill processes, again and again, and compare with the oracle.")
    parser.add_argument("--kills", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32))
    options = parser.parse_args()
    say(f"--seed {options.seed}")
    seeds, total, started = Random(options.seed), Counter[str](), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    number, running = 0, set()
    with ThreadPoolExecutor(options.workers) as workers:
        while running or kills_of(total) < options.kills:
            while len(running) < options.workers and kills_of(total) < options.kills:
                running.add(workers.submit(play, number, seeds.getrandbits(32), folder / str(number)))
                number += 1
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for round_ in done:
                total += round_.result()
    minutes = (time.monotonic() - started) / 60
    say(f"{dict(total)} in {minutes:.1f} min: {kills_of(total) / minutes:.0f} kills a minute")
    return 0


def kills_of(total: Counter[str]) -> int:
    """Return how many processes were killed."""
    return sum(count for what, count in total.items() if what.startswith("kills"))


if __name__ == "__main__":
    sys.exit(main())
