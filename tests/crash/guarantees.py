"""What a kill does under each guarantee: counted, not argued.

    python -m tests.crash.guarantees --kills 100

One process appends submissions all the time; another runs relay.py, live, and is killed again and again at random.
In the end it runs once to the end of its input, and what the view and the topic show is compared with the log itself:

    lost         submissions of the log that the topic does not have; and by how many the view counts too few
    repeated     records of the topic that it has already; and by how many the view counts too many
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from tests.crash.lives import ended_badly
from tests.crash.processes import Server
from tests.crash.storm import AGE_SECONDS_MAX, START_SECONDS_MAX, Storm

GUARANTEES = ("exactly-once", "at-least-once", "at-most-once")
PERIODS = ("20ms", "50ms", "200ms")
RELAY = str(Path(__file__).with_name("relay.py"))


@dataclass
class Outcome:
    """What was found in the end."""

    guarantee: str
    kills: int
    sent: int
    lost: int
    repeated: int
    in_order: bool
    """Whether the topic, without what it repeats, is in the order of the log."""

    counted_less: int
    counted_more: int

    @property
    def exact(self) -> bool:
        return self.in_order and not (self.lost or self.repeated or self.counted_less or self.counted_more)


class Relay(Storm):
    """A storm over relay.py under one guarantee."""

    def __init__(self, server: Server, folder: Path, random: Random, guarantee: str) -> None:
        super().__init__(server, folder, 1, random)
        self._guarantee = guarantee
        self._killed = 0

    def kill(self, kills: int) -> Outcome:
        """Kill the job that often, let it come to its end, and count."""
        self.world.append(50)
        self._run("--until-end")
        try:
            while self._killed < kills:
                self._life()
        finally:
            self._end_appender(kill=False)
        self._run("--until-end")
        return self._outcome()

    def _life(self) -> None:
        job = self._server.start({"command": self._command("--checkpoint-every", self._random.choice(PERIODS))})
        if self._random.random() < 0.8:
            self._feed(job, START_SECONDS_MAX, until=lambda: "started" in job.err)
        self._feed(job, self._random.uniform(0, AGE_SECONDS_MAX))
        job.kill()
        code = job.wait()
        assert code == -signal.SIGKILL, ended_badly(job, code)
        self._killed += 1

    def _command(self, *more: str) -> list[str]:
        data = str(self.world.data)
        return ["run", RELAY, "--data", data, "--no-progress", "--guarantee", self._guarantee, *more]

    def _run(self, *more: str) -> None:
        self._server.start({"command": self._command(*more)}).done()

    def _outcome(self) -> Outcome:
        data = str(self.world.data)
        sent = [json.loads(line) for line in self._lines("log", "read", "--data", data, "submissions")]
        order = [record["arrival"] for record in sent]
        seen = [int(line) for line in self._lines("log", "read", "--data", data, "seen")]
        assert set(seen) <= set(order), "something was seen that nobody sent"
        rows = [json.loads(line) for line in self._lines("view", "show", "--data", data, "counts", "--json")]
        shown: dict[str, int] = dict(tuple(row.values()) for row in rows)
        wanted = Counter(record["quiz_id"] for record in sent)
        kept = list(dict.fromkeys(seen))
        there = set(kept)
        return Outcome(
            guarantee=self._guarantee,
            kills=self._killed,
            sent=len(order),
            lost=len(order) - len(there),
            repeated=len(seen) - len(there),
            in_order=kept == [number for number in order if number in there],
            counted_less=sum(max(0, count - shown.get(quiz, 0)) for quiz, count in wanted.items()),
            counted_more=sum(max(0, count - wanted[quiz]) for quiz, count in shown.items()),
        )

    def _lines(self, *command: str) -> list[bytes]:
        return self._server.command(*command).splitlines()


def measure(server: Server, folder: Path, random: Random, guarantee: str, kills: int) -> Outcome:
    """Kill so often under *guarantee*; return what was found."""
    return Relay(server, folder / guarantee, random, guarantee).kill(kills)


def table(outcomes: list[Outcome]) -> str:
    """Return the table of docs/guarantees.md."""
    lines = [
        "| guarantee | kills | records | topic: lost | topic: repeated | view: too few | view: too many | exact |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in outcomes:
        numbers = (found.kills, found.sent, found.lost, found.repeated, found.counted_less, found.counted_more)
        columns = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {found.guarantee} | {columns} | {'yes' if found.exact else 'no'} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure all three, print the table."""
    parser = argparse.ArgumentParser(description="Kill a job under each guarantee; count what is lost and repeated.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32))
    options: Any = parser.parse_args(arguments)
    sys.stdout.write(f"--seed {options.seed}\n")
    folder = Path(tempfile.mkdtemp(prefix="guarantees-"))
    with Server() as server:
        random = Random(options.seed)
        outcomes = [measure(server, folder, random, guarantee, options.kills) for guarantee in GUARANTEES]
    shutil.rmtree(folder)
    sys.stdout.write(table(outcomes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
