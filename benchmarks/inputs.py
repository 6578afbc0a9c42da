"""The input of the benchmarks: a seeded class day, and lines of text; made once and kept in a cache folder.

Both sides read the same records: the embedded log (one partition) holds what the JSON-lines file holds, line by line.

The class day: quizzes are open for 40 minutes and begin all the time, about 300 at once; 2,000,000 submissions in
8 hours. They arrive up to 60 s late (most of them at once, as devices do); 1 in 100 is a straggler of 1 to 40 minutes,
and about half of those come when their window is gone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from streamactors import Log
from streamactors.durable.frames import Records

SUBMISSIONS = 2_000_000
WORD_LINES = 200_000
WORDS_A_LINE = 10
FRAME_LINES = 1_000

DAY_MS = 8 * 3_600_000
DAY_START = 1_700_035_200_000
QUIZ_MS = 40 * 60_000
QUIZZES_OPEN = 300
DISORDER_MS = 60_000


@dataclass(frozen=True)
class Input:
    """One input in both forms."""

    lines: Path
    """JSON lines."""

    data: Path
    """A data folder whose log has them in ``topic``."""

    topic: str
    count: int


def submissions(cache: Path, count: int = SUBMISSIONS) -> Input:
    """Return the class day, made if need be."""
    return _made(cache / f"submissions-{count}", "submissions", count, _submission_lines(count))


def words(cache: Path, count: int = WORD_LINES) -> Input:
    """Return *count* lines of WORDS_A_LINE words, frequent and rare ones as in a language."""
    return _made(cache / f"words-{count}", "text", count, _word_lines(count))


def _made(folder: Path, topic: str, count: int, lines: Iterator[str]) -> Input:
    made = Input(folder / "lines.jsonl", folder / "data", topic, count)
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        asyncio.run(_write(made, lines))
        (folder / "done").touch()
    return made


async def _write(made: Input, lines: Iterator[str]) -> None:
    with made.lines.open("wb") as file:
        async with Log(made.data) as log:
            partition = (await log.create_topic(made.topic)).partition(0)
            for start in range(0, made.count, FRAME_LINES):
                size = min(FRAME_LINES, made.count - start)
                blob = "".join([next(lines) for _ in range(size)]).encode()
                file.write(blob)
                await partition.append(Records.from_lines(blob, size))


def _submission_lines(count: int) -> Iterator[str]:
    rng = random.Random(2024)
    comments = [_comment(rng) for _ in range(2_000)]
    users = [f"u{number:05d}" for number in range(20_000)]
    for number in range(count):
        happened = DAY_START + number * DAY_MS // count - _delay(rng)
        # The quizzes that are open now began in the last 40 minutes, one after the other.
        newest = (happened - DAY_START + QUIZ_MS) * QUIZZES_OPEN // QUIZ_MS
        quiz = newest - rng.randrange(QUIZZES_OPEN)
        yield (
            f'{{"submission_id":{number},"quiz_id":"quiz-{quiz:05d}","user_id":"{rng.choice(users)}",'
            f'"score":{rng.randrange(201) / 2},"comment":"{rng.choice(comments)}","submitted_at":{happened}}}\n'
        )


def _delay(rng: random.Random) -> int:
    if rng.random() < 0.01:
        return rng.randrange(DISORDER_MS, 40 * 60_000)
    return min(DISORDER_MS, int(rng.expovariate(1 / 5_000)))


_COMMENT_WORDS = [
    "the",
    "second",
    "question",
    "was",
    "harder",
    "than",
    "i",
    "thought",
    "but",
    "with",
    "the",
    "hint",
    "from",
    "last",
    "week",
    "it",
    "went",
    "well",
    "this",
    "time",
    "please",
    "look",
    "at",
    "my",
    "answer",
    "to",
    "part",
    "b",
    "again",
    "because",
    "there",
    "is",
    "one",
    "step",
    "that",
    "nobody",
    "could",
    "explain",
    "thank",
    "you",
]


def _comment(rng: random.Random) -> str:
    text, length = "", rng.randrange(60, 101)
    while len(text) < length:
        text += rng.choice(_COMMENT_WORDS) + " "
    return text[:length]


def _word_lines(count: int) -> Iterator[str]:
    rng = random.Random(2024)
    vocabulary = [f"{rng.choice(_COMMENT_WORDS)}{number}" for number in range(20_000)]
    weights = list(accumulate(1 / (rank + 2) for rank in range(len(vocabulary))))
    for _ in range(count):
        yield '"' + " ".join(rng.choices(vocabulary, cum_weights=weights, k=WORDS_A_LINE)) + '"\n'
