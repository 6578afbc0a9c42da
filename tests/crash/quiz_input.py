"""Submissions with all that the oracle must get right: disorder, stragglers, repeated ids, fields nobody decodes.

Each line is unique (``arrival``), so that a line that was lost, or appended twice, is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

START_MS = 1_700_000_000_000
MS_BETWEEN = 7_000
QUIZZES = ("algebra", "biology", "chimie", "日本語", "english", "french", "geometry", "history")


class Submissions:
    """A class day without end. Iterate, or take so many."""

    def __init__(self, random: Random, *, late: float = 0.1) -> None:
        self._random = random
        self._late = late
        self.made = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self._one()

    def take(self, records: int) -> list[bytes]:
        return [self._one() for _ in range(records)]

    def _one(self) -> bytes:
        random, arrival = self._random, self.made
        self.made += 1
        at = START_MS + arrival * MS_BETWEEN - random.randrange(50_000)
        if random.random() < self._late:
            at -= random.randrange(0, 4 * 3_600_000)
        number = arrival if random.random() > 0.05 else random.randrange(arrival + 1)
        record = {
            "submission_id": number,
            "quiz_id": random.choice(QUIZZES),
            "user_id": f"user-{random.randrange(50)}",
            "score": random.randrange(1_001) / 10,
            "comment": random.choice(("", "ünïcode", '"quoted", \\ and ,"value": too')),
            "submitted_at": at,
            "arrival": arrival,
            "extra": {"device": random.choice(("phone", "laptop")), "list": [1, 2.5, None]},
        }
        return json.dumps(record, ensure_ascii=random.random() < 0.5).encode()
