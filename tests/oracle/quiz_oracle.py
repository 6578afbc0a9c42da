"""What the quiz example must show, computed a second time in the plainest way.

    python tests/oracle/quiz_oracle.py DIR          compares, says what differs, exits 1 if anything does

It imports nothing of the product. It reads through the command line only, and computes with dicts, one record at a
time:

    log info, log read --meta         the records, and the late topic as it is
    journal                           in which order they were read, and what drove event time
    view show                         the views as they are

The order of several partitions, who was idle and what the clock said depends on timing; the journal says how it was
decided, and everything else follows from it. With one partition and nobody idle it follows from the log alone
(``--without-journal``: then the job must have been run with --until-end last).

The rules, as the example states them: up to 60 s of disorder, 10-minute windows, 10 minutes of allowed lateness.

    reach        the least of (greatest event time - disorder) over partitions that are not idle
    horizon      reach, rounded down to the step; never goes back. The step is the greatest common divisor of window
                 size, offset and lateness. The watermark is the horizon - 1.
    a record     counts in its window, unless end + lateness <= horizon: then it is late. It moves the horizon after
                 that. In the totals every record counts.
    a window     shows when end <= horizon, again with each record after that, and while it is open at a mark of the
                 clock (early results) and at the flush that ends a bounded run

Sums are left folds in the order of reading.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = LATENESS = 600_000
DISORDER = 60_000
STEP = math.gcd(SIZE, 0, LATENESS)

Command = Callable[..., bytes]
"""Takes the arguments of ``streamactors``, returns what it writes on standard output."""


def command_line(*arguments: str) -> bytes:
    """Run ``streamactors`` in a process of its own."""
    run = subprocess.run([sys.executable, "-m", "streamactors", *arguments], check=True, stdout=subprocess.PIPE)
    return run.stdout


# Reading. -------------------------------------------------------------------------------------------------------------


def read_topic(command: Command, data: Path, topic: str) -> list[list[bytes]]:
    """Return the values of each partition, as they stand in the log."""
    info = json.loads(command("log", "info", "--data", str(data), topic, "--json"))
    partitions: list[list[bytes]] = [[] for _ in info["partitions"]]
    for line in command("log", "read", "--data", str(data), topic, "--meta").splitlines():
        meta = json.loads(line)
        values = partitions[meta["partition"]]
        assert meta["offset"] == len(values), f"{topic}: offset {meta['offset']} follows {len(values) - 1}"
        start = line.index(b',"value":') + len(b',"value":')  # the first: in a key the quotes would be escaped
        values.append(line[start:-1])
    return partitions


def read_view(command: Command, data: Path, name: str) -> dict[Any, Any]:
    """Return a view's rows; a list key as a tuple."""
    rows: dict[Any, Any] = {}
    for line in command("view", "show", "--data", str(data), name, "--json").splitlines():
        row = json.loads(line)
        key = tuple(row["key"]) if isinstance(row["key"], list) else row["key"]
        assert key not in rows, f"view {name} shows {key} twice"
        rows[key] = row["value"]
    return rows


def read_journal(command: Command, data: Path) -> list[dict[str, Any]]:
    """Return the journal's entries."""
    return [json.loads(line) for line in command("journal", "--data", str(data), "--json").splitlines()]


@dataclass
class Shown:
    """All that was read."""

    records: list[list[bytes]]
    late: list[list[bytes]]
    counts: dict[Any, Any]
    totals: dict[Any, Any]
    journal: list[dict[str, Any]]


def read_all(data: Path, command: Command = command_line) -> Shown:
    """Read all that is compared."""
    return Shown(
        records=read_topic(command, data, "submissions"),
        late=read_topic(command, data, "late"),
        counts=read_view(command, data, "quiz_counts"),
        totals=read_view(command, data, "quiz_totals"),
        journal=read_journal(command, data),
    )


# Computing. -----------------------------------------------------------------------------------------------------------


class Quiz:
    """What must be shown behind the entries that were followed so far."""

    def __init__(self, records: list[list[bytes]]) -> None:
        self.records = records
        self.counts: dict[tuple[str, int], int] = {}
        self.late: list[bytes] = []
        self.held: dict[tuple[str, int], int] = {}  # (quiz, start of window) -> count, of windows that are not gone
        self.read = [0] * len(records)
        self._sums: dict[str, tuple[int, float]] = {}
        self._changed: set[tuple[str, int]] = set()
        self._horizon: float = -math.inf
        self._newest: dict[int, int] = {}
        self._active = set(range(len(records)))

    @property
    def totals(self) -> dict[str, dict[str, Any]]:
        """Return what quiz_totals must show."""
        return {quiz: {"count": count, "mean_score": total / count} for quiz, (count, total) in self._sums.items()}

    def follow(self, entry: dict[str, Any]) -> None:
        """Do what one entry of the journal says."""
        kind = entry["kind"]
        if kind == "read":
            partition = entry["partition"]
            assert entry["first"] == self.read[partition], f"{entry} follows {self.read[partition]}"
            self._active.add(partition)
            for offset in range(entry["first"], entry["end"]):
                self._record(partition, self.records[partition][offset])
            self.read[partition] = entry["end"]
        elif kind == "idle":
            last = self._active == {entry["partition"]}
            if not last:  # if nobody is left, event time stands where it is
                self._active.discard(entry["partition"])
            self._advance(self._reach())
            self._active.discard(entry["partition"])
        elif kind == "pace":
            self._advance(entry["watermark"] + 1)
        elif kind in {"clock", "flush"}:
            self._show(self._changed)
        elif kind == "finish":
            self._advance(math.inf)
        else:
            raise ValueError(f"a journal's entry of an unknown kind: {entry}")

    def _record(self, partition: int, line: bytes) -> None:
        record = json.loads(line)
        quiz, at = record["quiz_id"], record["submitted_at"]
        count, total = self._sums.get(quiz, (0, 0.0))
        self._sums[quiz] = count + 1, total + record["score"]
        start = at - at % SIZE
        if start + SIZE + LATENESS <= self._horizon:
            self.late.append(line)
        else:
            self.held[quiz, start] = self.held.get((quiz, start), 0) + 1
            if start + SIZE <= self._horizon:
                self.counts[quiz, start] = self.held[quiz, start]
            else:
                self._changed.add((quiz, start))
        self._newest[partition] = max(at, self._newest.get(partition, at))
        self._advance(self._reach())

    def _reach(self) -> float:
        reaches = [self._newest[p] - DISORDER if p in self._newest else -math.inf for p in self._active]
        return min(reaches, default=-math.inf)

    def _advance(self, reach: float) -> None:
        horizon = reach if math.isinf(reach) else reach - reach % STEP
        if horizon <= self._horizon:
            return
        ended = {row for row in self.held if self._horizon < row[1] + SIZE <= horizon}
        self._show(ended)
        for row in [row for row in self.held if row[1] + SIZE + LATENESS <= horizon]:
            del self.held[row]
        self._horizon = horizon

    def _show(self, rows: set[tuple[str, int]]) -> None:
        self.counts.update({row: self.held[row] for row in rows})
        self._changed = self._changed - rows


# Comparing. -----------------------------------------------------------------------------------------------------------


def compute(records: list[list[bytes]], journal: list[dict[str, Any]] | None) -> Quiz:
    """Return what must be shown, behind *journal*; without one, behind all of the one partition that there is."""
    if journal is None:
        assert len(records) == 1, "the order of several partitions is in the journal"
        journal = [{"kind": "read", "partition": 0, "first": 0, "end": len(records[0])}, {"kind": "flush"}]
    quiz = Quiz(records)
    for entry in journal:
        quiz.follow(entry)
    return quiz


def differences(shown: Shown, quiz: Quiz) -> list[str]:
    """Return what differs between what is shown and what must be."""
    assert len(shown.late) <= 1, f"the late topic has {len(shown.late)} partitions"
    late = shown.late[0] if shown.late else []
    return [
        *_differing("quiz_counts", shown.counts, quiz.counts),
        *_differing("quiz_totals", shown.totals, quiz.totals),
        *_differing("late", dict(enumerate(late)), dict(enumerate(quiz.late))),
    ]


def unread(shown: Shown, quiz: Quiz) -> list[str]:
    """Return what is in the log and was not read."""
    return _differing("offsets read", dict(enumerate(quiz.read)), dict(enumerate(map(len, shown.records))))


def _differing(what: str, shown: dict[Any, Any], wanted: dict[Any, Any]) -> list[str]:
    keys = [*wanted, *(key for key in shown if key not in wanted)]
    return [
        f"{what} {key}: shows {shown.get(key, 'nothing')}, must be {wanted.get(key, 'nothing')}"
        for key in keys
        if key not in shown or key not in wanted or shown[key] != wanted[key]
    ]


def main() -> int:
    """Compare, and say what differs."""
    parser = argparse.ArgumentParser(description="Compare the quiz example's views and late topic with the oracle.")
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("--without-journal", action="store_true", help="follow the log; for one partition")
    options = parser.parse_args()
    shown = read_all(options.data)
    quiz = compute(shown.records, None if options.without_journal else shown.journal)
    found = [*differences(shown, quiz), *unread(shown, quiz)]
    for difference in found[:20]:
        print(difference)  # noqa: T201 - it is a program
    print(f"{len(found)} differences")  # noqa: T201 - see above
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
