"""The command that runs seeds of the simulated quiz pipeline, or one of them again:

    python -m streamactors.testing.simulate --seed 4711 --talk          one seed, told as it goes
    python -m streamactors.testing.simulate --seed 4711 --count 200     that one and those that follow
    python -m streamactors.testing.simulate --count 200                 fresh ones; the first is printed
    python -m streamactors.testing.simulate --guarantee at-least-once --count 200    the relay of relay_simulation.py

What a seed decides and what must hold: quiz_simulation.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom

from streamactors.core.connectors import Guarantee

from .quiz_simulation import QuizSimulation, Report
from .relay_simulation import RelayReport, RelaySimulation

_MEMORY = Path("/dev/shm")  # noqa: S108 - LMDB's files of a simulation are gone with it; in memory they cost a third


class SeedFailed(AssertionError):
    """A seed found something; the message says how to see it again."""


def simulate(seed: int, *, talk: bool = False) -> Report:
    """Run one seed; raise SeedFailed, with the command that replays it, when something does not hold."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder, _quiet():
        try:
            return QuizSimulation(seed, Path(folder), talk=talk).run()
        except Exception as error:
            command = f"{Path(sys.executable).name} -m streamactors.testing.simulate --seed {seed} --talk"
            raise SeedFailed(f"seed {seed}: {error}\nTo see it again: {command}") from error


def simulate_relay(seed: int, guarantee: Guarantee) -> RelayReport:
    """Run one seed of the relay; raise SeedFailed, with the command that replays it, when something does not hold."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder, _quiet():
        try:
            return RelaySimulation(seed, Path(folder), guarantee).run()
        except Exception as error:
            command = f"-m streamactors.testing.simulate --guarantee {guarantee.value} --seed {seed}"
            raise SeedFailed(f"seed {seed}: {error}\nTo see it again: {Path(sys.executable).name} {command}") from error


def fresh_seed() -> int:
    """Return a seed that nobody has tried."""
    return SystemRandom().randrange(10**9)


def crash_table(reports: Iterable[Report]) -> str:
    """Return how often processes died at which point, of how often it was reached."""
    crashes: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    for report in reports:
        crashes += report.crashes
        reached += report.reached
    return "\n".join(f"{crashes[label]:6} of {reached[label]:8}  {label}" for label in sorted({**reached, **crashes}))


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Simulate the quiz pipeline under seeded misfortune.")
    parser.add_argument("--seed", type=int, help="the first seed; none: a fresh one")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--guarantee", type=Guarantee, help="exactly-once, at-least-once or at-most-once: the relay")
    parser.add_argument("--talk", action="store_true", help="tell what happens")
    options = parser.parse_args(arguments)
    first = fresh_seed() if options.seed is None else options.seed
    _tell(f"seeds {first} to {first + options.count - 1}")
    started = time.perf_counter()
    if options.guarantee is not None:
        relays = [simulate_relay(seed, options.guarantee) for seed in range(first, first + options.count)]
        for number in vars(relays[0]):
            _tell(f"{sum(getattr(relay, number) for relay in relays):6}  {number}")
        _tell(f"all held; {time.perf_counter() - started:.1f} s")
        return
    reports = [simulate(seed, talk=options.talk) for seed in range(first, first + options.count)]
    _tell(crash_table(reports))
    for number in ("records", "late", "epochs", "looks", "restarts", "waits"):
        _tell(f"{sum(getattr(report, number) for report in reports):6}  {number}")
    _tell(f"all held; {time.perf_counter() - started:.1f} s")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is logged about failures that a simulation causes on purpose to itself, unless somebody listens."""
    logger = logging.getLogger("streamactors")
    before = logger.level
    if before == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tell(what: str) -> None:
    print(what)  # noqa: T201 - a command's output


if __name__ == "__main__":
    main()
