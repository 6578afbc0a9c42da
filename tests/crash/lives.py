"""A data folder in which processes live and die, and what must be true of it in the end.

A *world* is one folder with the quiz example in it. Its lives are ``streamactors log append`` and ``streamactors run``
with points (points.py); each may be killed at one. ``finish`` runs the job to its end without a kill, and then
everything is compared:

    views and late topic     are the oracle's, to the byte and in order
    the log                  every line that an append answered for is there, once; what an append that was killed
                             leaves in a partition is what it was given first, of a single chunk all or nothing
    no garbage               no unfinished file; a .torn file only for a write that was killed halfway; pending output
                             of no epoch but the last; state only of windows that are not gone
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.crash.points import KILLED
from tests.crash.processes import Child, Server
from tests.crash.quiz_input import Submissions
from tests.oracle import quiz_oracle

JOB = "quiz-counts"
SMALL_BATCH = 4
"""Records: a few hundred are then many batches, and at a checkpoint each millisecond several epochs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Die at the n-th time that a point is reached."""

    label: str
    nth: int = 1


@dataclass(slots=True)
class Life:
    """One that has ended."""

    kind: str
    reached: list[str]
    killed: bool


class World:
    """See the module's header."""

    def __init__(self, server: Server, folder: Path, partitions: int, random: Random, *, late: float = 0.1) -> None:
        folder.mkdir(parents=True)
        self.data = folder / "data"
        self.kills: Counter[tuple[str, str]] = Counter()
        """(command, point) at which a process died."""

        self._server = server
        self._partitions = partitions
        self.input = Submissions(random, late=late)
        self._folder = folder
        self._lives = 0
        self.answered: list[bytes] = []
        self.unanswered: list[tuple[list[bytes], bool]] = []
        """What was given to appends that were killed, and whether each is one chunk."""

    # --- lives ---------------------------------------------------------------------------------------------------

    def append(self, records: int, plan: Plan | None = None) -> Life:
        """Append new submissions."""
        lines = self.input.take(records)
        source = self._folder / "lines.jsonl"
        source.write_bytes(b"\n".join([*lines, b""]))
        with source.open("rb") as stdin:
            life = self._live(append_arguments(self.data, self._partitions), plan, stdin=stdin.fileno())
        if life.killed:
            self.unanswered.append((lines, True))
        else:
            self.answered += lines
        return life

    def run(self, plan: Plan | None = None, *, small: bool = True) -> Life:
        """Run the job to the end of its input."""
        return self._live(run_arguments(self.data), plan, batch_records=SMALL_BATCH if small else 1_024)

    def _live(self, command: list[str], plan: Plan | None, *, stdin: int | None = None, **more: Any) -> Life:
        self._lives += 1
        trace = self._folder / f"{self._lives}.trace"
        points = {} if plan is None else {"label": plan.label, "nth": plan.nth}
        child = self._server.start({"command": command, "points": points, "trace": str(trace), **more}, stdin=stdin)
        code = child.wait()
        reached = trace.read_text().splitlines()
        kind = command[1] if command[0] == "log" else command[0]
        death = [line.removeprefix(KILLED) for line in reached if line.startswith(KILLED)]
        if code == 0:
            assert not death, f"{child} ended well and died at {death}"
        else:
            assert code == -9 and plan is not None and death == [plan.label], ended_badly(child, code)
            self.kills[kind, plan.label] += 1
        return Life(kind, [line for line in reached if not line.startswith(KILLED)], bool(death))

    # --- the end -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Run to the end, twice, and compare everything."""
        self.append(20)
        self.run(small=False)
        self.append(20)  # and another epoch, which deletes the pending output of the one before
        self.run(small=False)
        self.check()

    def check(self) -> None:
        """Compare everything; the job was just run to the end."""
        shown = quiz_oracle.read_all(self.data, self._server.command)
        self._check_log(shown.records)
        quiz = quiz_oracle.compute(shown.records, shown.journal)
        found = [*quiz_oracle.differences(shown, quiz), *quiz_oracle.unread(shown, quiz)]
        assert not found, "\n".join(found[:20])
        if self._partitions == 1 and not any(entry["kind"] in {"idle", "pace"} for entry in shown.journal):
            found = quiz_oracle.differences(shown, quiz_oracle.compute(shown.records, None))
            assert not found, "\n".join(["without the journal:", *found[:20]])
        self._check_garbage(quiz)

    def check_epoch(self) -> None:
        """Compare what is shown with what was read, be it all or not; the job does not run."""
        shown = quiz_oracle.read_all(self.data, self._server.command)
        found = quiz_oracle.differences(shown, quiz_oracle.compute(shown.records, shown.journal))
        assert not found, "\n".join(found[:20])

    def _check_log(self, records: list[list[bytes]]) -> None:
        times = Counter(line for partition in records for line in partition)
        for partition in records:
            arrivals = [json.loads(line)["arrival"] for line in partition]
            assert arrivals == sorted(arrivals), "the order of a partition is not the order of the appends"
        twice = [line for line, count in times.items() if count > 1]
        assert not twice, f"appended more than once: {twice[:5]}"
        lost = [line for line in self.answered if line not in times]
        assert not lost, f"{len(lost)} lines were answered for and are not there, such as {lost[0]!r}"
        where = {line: number for number, partition in enumerate(records) for line in partition}
        home = {quiz_of(line): number for line, number in where.items()}  # a quiz is in one partition
        for lines, whole in self.unanswered:
            for number in range(len(records)):
                there = [line in where for line in lines if home.get(quiz_of(line)) == number]
                assert there == sorted(there, reverse=True), (
                    f"partition {number} has a hole in what an append was given"
                )
                assert not whole or len(set(there)) < 2, (
                    f"partition {number} has {sum(there)} of {len(there)} of a chunk"
                )
        known = set(self.answered).union(*(lines for lines, _ in self.unanswered))
        strange = [line for line in times if line not in known]
        assert not strange, f"in the log and never sent: {strange[:5]}"

    def _check_garbage(self, quiz: quiz_oracle.Quiz) -> None:
        stored = rows_of(self._server, self.data, JOB)
        epoch = stored["epochs"]["submissions"]
        assert all(set(epochs) <= {epoch} for epochs in stored["pending"].values()), f"at epoch {epoch}: {stored}"
        assert stored["rows"]["state:window:windows"] == len(quiz.held), f"{len(quiz.held)} are held: {stored}"
        assert stored["rows"]["state:window:changed"] == 0, stored
        files = [path.name for path in self.data.rglob("*")]
        assert not [name for name in files if name.endswith(".new")], files
        halfway = sum(count for (_, label), count in self.kills.items() if label.startswith("halfway"))
        torn = [name for name in files if name.endswith(".torn")]
        assert len(torn) <= halfway, f"{torn} after {halfway} writes that were killed halfway"


def append_arguments(data: Path, partitions: int) -> list[str]:
    """Return the command that appends submissions from standard input."""
    return ["log", "append", "--data", str(data), "submissions", "--key", "quiz_id", "--partitions", str(partitions)]


def run_arguments(data: Path, *, live: bool = False, every: str = "1ms") -> list[str]:
    """Return the command that runs the quiz example, which is told to make no input of its own."""
    bound = [] if live else ["--until-end"]
    how = ["--data", str(data), "--no-progress", "--checkpoint-every", every, *bound]
    return ["run", "examples/quiz_counts.py", *how, "--", "0"]


def rows_of(server: Server, data: Path, job: str) -> dict[str, Any]:
    """Return what the job's store holds; see child.py."""
    folder = data / "jobs" / job / "v1"
    answer: dict[str, Any] = json.loads(server.start({"do": "rows", "folder": str(folder)}).done())
    return answer


def ended_badly(child: Child, code: int) -> str:
    """Say what is known of a process that did not end as it should."""
    return f"{child} ended with {code}; on standard error:\n{child.err}"


def quiz_of(line: bytes) -> str:
    """Return the key of a submission."""
    return str(json.loads(line)["quiz_id"])
