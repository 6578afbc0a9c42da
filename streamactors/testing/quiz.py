"""The quiz pipeline, its input with everything that real input does, and what must come out of it.

``QuizOracle`` is a second implementation that shares nothing with the product: plain dicts, one record at a time. It
follows a journal, because what depends on timing (which partition was read when, who was idle, what the clock said) is
decided there and nowhere else (T1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from streamactors.core.connectors import Source
from streamactors.flow.aggregates import count, mean
from streamactors.flow.windows import Tumbling
from streamactors.graph.pipeline import Pipeline

START_MS = 1_700_000_000_000


class Submission(msgspec.Struct):
    """What the pipeline needs of a submission."""

    quiz_id: str
    score: float
    submitted_at: int


@dataclass(frozen=True, slots=True)
class Quiz:
    """What may differ from run to run. Times in ms."""

    parts: int = 1
    partitions: int = 1
    late_partitions: int = 1
    window: int = 60_000
    lateness: int = 60_000
    disorder: int = 10_000
    early_every: int | None = 1_000
    idle_after: int | None = None

    def pipeline(
        self, touch: Callable[[Submission], Submission] | None = None, source: Source | None = None
    ) -> Pipeline:
        """Return the pipeline; *touch* is called for each record in a stage, *source* stands in for the topic."""
        pipeline = Pipeline("quiz", parts=self.parts)
        stream = pipeline.topic("submissions", Submission) if source is None else pipeline.source(source)
        submissions = stream.event_time("submitted_at", disorder=self.disorder, idle_after=self.idle_after)
        if touch is not None:
            submissions = submissions.map(touch)
        by_quiz = submissions.key_by("quiz_id")
        windows = by_quiz.window(Tumbling(self.window)).allowed_lateness(self.lateness)
        if self.early_every is not None:
            windows = windows.early(every=self.early_every)
        counts = windows.count()
        counts.to_view("quiz_counts")
        counts.late.original().to_topic("late", partitions=self.late_partitions)
        by_quiz.aggregate(count=count(), mean_score=mean("score")).to_view("quiz_totals")
        return pipeline


def random_quiz(random: Random) -> Quiz:
    """Draw a quiz."""
    return Quiz(
        parts=random.randint(1, 4),
        partitions=random.randint(1, 4),
        late_partitions=random.randint(1, 3),
        window=random.choice([30_000, 60_000, 600_000]),
        lateness=random.choice([0, 20_000, 60_000, 600_000]),
        disorder=random.choice([0, 1_000, 10_000, 60_000]),
        early_every=random.choice([None, 200, 1_000, 1_500]),
        idle_after=random.choice([None, 200, 1_000]),
    )


class Submissions:
    """A class day: roughly in order, with stragglers, repeated submissions, and fields that the pipeline ignores."""

    def __init__(self, random: Random, quiz: Quiz) -> None:
        self._random = random
        self._now = START_MS
        self._spacing = random.choice([quiz.window // 200, quiz.window // 50, quiz.window // 5])
        self._jitter = random.choice([0, quiz.disorder, 2 * quiz.disorder]) + 1
        self._straggling = random.choice([0.0, 0.05, 0.3])
        self._reach = 3 * (quiz.window + quiz.lateness) + quiz.disorder
        self._quizzes = random.choice([1, 3, 8])
        self._made: list[bytes] = []

    def take(self, records: int) -> list[bytes]:
        """Return the next submissions as lines of JSON."""
        return [self._one() for _ in range(records)]

    def _one(self) -> bytes:
        random = self._random
        if self._made and random.random() < 0.02:
            return random.choice(self._made)
        self._now += random.randint(0, 2 * self._spacing)
        at = self._now + random.randrange(self._jitter)
        if random.random() < self._straggling:
            at -= random.randrange(self._reach)
        number = len(self._made)
        line = json.dumps(
            {
                "submission_id": number,
                "quiz_id": f"quiz-{random.randrange(self._quizzes)}",
                "user_id": f"user-{random.randrange(20)}",
                "score": random.randrange(1_000) / 10,
                "comment": "ünïcode " * random.randrange(3),
                "submitted_at": at,
            }
        ).encode()
        self._made.append(line)
        return line


class QuizOracle:
    """What the views and the late topic show behind a journal; see the module's header."""

    def __init__(self, quiz: Quiz, read: Callable[[int, int, int], list[bytes]]) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self.late: list[list[bytes]] = [[] for _ in range(quiz.late_partitions)]
        self._quiz = quiz
        self._read = read  # (partition, first, end) -> the records' bytes
        self._step = math.gcd(quiz.window, quiz.lateness)
        self._horizon: float = -math.inf  # watermark + 1
        self._newest: list[int | None] = [None] * quiz.partitions
        self._idle = [False] * quiz.partitions
        self._held: dict[int, dict[str, int]] = {}  # window -> quiz -> count
        self._changed: set[tuple[int, str]] = set()
        self._totals: dict[str, tuple[int, float]] = {}

    @property
    def totals(self) -> dict[str, dict[str, Any]]:
        """Return count and mean score for each quiz."""
        return {quiz: {"count": n, "mean_score": total / n} for quiz, (n, total) in self._totals.items()}

    def follow(self, entries: Iterable[Any]) -> None:
        """Go on by the journal's *entries*."""
        for kind, *rest in entries:
            match kind:
                case "read":
                    _, partition, first, end = rest
                    self._idle[partition] = False
                    for line in self._read(partition, first, end):
                        self._record(partition, line)
                case "idle":
                    self._idle[rest[1]] = True
                    self._advance(self._reach())
                case "pace":
                    self._advance(rest[0] + 1)
                case "clock" | "flush":
                    self._show(self._changed)
                case "finish":
                    self._advance(math.inf)

    def _record(self, partition: int, line: bytes) -> None:
        record = json.loads(line)
        quiz, at = record["quiz_id"], record["submitted_at"]
        n, total = self._totals.get(quiz, (0, 0))
        self._totals[quiz] = n + 1, total + record["score"]
        start = at // self._quiz.window * self._quiz.window
        end = start + self._quiz.window
        if end + self._quiz.lateness <= self._horizon:
            self.late[crc32(quiz.encode()) % self._quiz.late_partitions].append(line)
        else:
            counts = self._held.setdefault(start, {})
            counts[quiz] = counts.get(quiz, 0) + 1
            if end <= self._horizon:
                self.counts[quiz, start] = counts[quiz]
            elif self._quiz.early_every is not None:
                self._changed.add((start, quiz))
        newest = self._newest[partition]
        self._newest[partition] = at if newest is None else max(at, newest)
        self._advance(self._reach())

    def _reach(self) -> float:
        known = [-math.inf if at is None else at - self._quiz.disorder for at in self._newest]
        active = [at for at, idle in zip(known, self._idle, strict=True) if not idle]
        return min(active) if active else max(known)  # when all are silent, the latest decides

    def _advance(self, reach: float) -> None:
        horizon = reach if math.isinf(reach) else reach // self._step * self._step
        if horizon <= self._horizon:
            return
        for start in sorted(self._held):
            end = start + self._quiz.window
            if self._horizon < end <= horizon:
                self._show({(start, quiz) for quiz in self._held[start]})
            if end + self._quiz.lateness <= horizon:
                del self._held[start]
        self._horizon = horizon

    def _show(self, results: set[tuple[int, str]]) -> None:
        for start, quiz in results:
            self.counts[quiz, start] = self._held[start][quiz]
        self._changed -= set(results)
