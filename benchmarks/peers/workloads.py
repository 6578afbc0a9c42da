"""The three workloads as all sides do them, and the oracle that says what each must give.

windowed    submissions for each quiz and 10 minutes of event time. All of them count, also those that come 40 minutes
            late: what is too late, and when a window is gone, differs from system to system, so every side waits 41
            minutes and none of them has anything late. Rows: quiz, start, count
stateless   submissions with a score of 50 or more, without their comment. Rows: the other five fields
words       for each word, how often it has been seen so far: a result for each of them. Rows: word, count

The oracle is a few lines of plain Python that are obviously right. Rows are compared as sorted lists: parallel parts
may write them in any order, and some systems write objects where others write lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import windowed
from benchmarks.inputs import SUBMISSIONS, WORD_LINES, WORDS_A_LINE, Input, submissions, words

from .programs.entry import SCORE_MIN, SIZE_MS

assert SIZE_MS == windowed.SIZE_MS, "peers count the windows of the first comparison"

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Workload:
    """One of the three."""

    name: str
    unit: str
    records: int
    """At full size."""

    quick: int
    """In a quick run."""

    a_line: int
    """Records in each line of the input."""

    made: Callable[[Path, int], Input]
    """Makes the input of so many lines, in a cache folder."""

    oracle: Callable[[Iterable[Any]], Iterable[Row]]
    """From the decoded lines to the rows."""

    row: Callable[[Row], Row]
    """Undo what a system's way to write a row may change."""

    def expected(self, lines: Path) -> list[Row]:
        """Return the oracle's rows, sorted."""
        return sorted(self.oracle(map(msgspec.json.decode, lines.read_bytes().splitlines())))

    def written(self, out: Path) -> list[Row]:
        """Return the rows in the files below *out*, sorted. Files whose names begin with a dot are not finished."""
        files = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
        decoded = (msgspec.json.decode(line) for path in files for line in path.read_bytes().splitlines())
        return sorted(self.row(tuple(row.values() if isinstance(row, dict) else row)) for row in decoded)


def difference(expected: list[Row], written: list[Row]) -> str:
    """Say in one line how *written* differs from *expected*; nothing when it does not."""
    if expected == written:
        return ""
    missing, unexpected = Counter(expected), Counter(written)
    missing.subtract(written)
    unexpected.subtract(expected)
    lacks, has = sorted((+missing).elements()), sorted((+unexpected).elements())
    examples = " and ".join(f"{what} {rows[0]}" for what, rows in (("lacks", lacks), ("has", has)) if rows)
    return (
        f"wrong output: {len(lacks):,} of {len(expected):,} rows are missing, {len(has):,} are too many; it {examples}"
    )


def _counts(lines: Iterable[Any]) -> Iterable[Row]:
    counts = Counter((s["quiz_id"], s["submitted_at"] // SIZE_MS * SIZE_MS) for s in lines)
    return [(quiz, start, n) for (quiz, start), n in counts.items()]


def _passing(lines: Iterable[Any]) -> Iterable[Row]:
    fields = ("submission_id", "quiz_id", "user_id", "score", "submitted_at")
    return [tuple(s[field] for field in fields) for s in lines if s["score"] >= SCORE_MIN]


def _numbered(lines: Iterable[str]) -> Iterable[Row]:
    seen: Counter[str] = Counter()
    for line in lines:
        for word in line.split():
            seen[word] += 1
            yield word, seen[word]


WORKLOADS = {
    one.name: one
    for one in (
        Workload("windowed", "records", SUBMISSIONS, 5_000, 1, submissions, _counts, lambda row: row[:3]),
        Workload("stateless", "records", SUBMISSIONS, 5_000, 1, submissions, _passing, lambda row: row[:5]),
        Workload(
            "words", "words", WORD_LINES * WORDS_A_LINE, 5_000, WORDS_A_LINE, words, _numbered, lambda row: row[:2]
        ),
    )
}
