"""Running word count by map_with_state, a result for every word into a topic; against plain that writes each result.

python -m benchmarks words
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

import streamactors as sa

from .inputs import WORD_LINES, WORDS_A_LINE, words
from .jobs import into_topic
from .measuring import Measurement, Options, Side, begin, compare, digest, run_loop, stop


def count(word: str, seen: int | None) -> tuple[tuple[str, int], int]:
    """Return the word's result, and its new state."""
    number = (seen or 0) + 1
    return (word, number), number


def pipeline() -> sa.Pipeline:
    """The second form of examples/word_count.py."""
    counting = sa.Pipeline("words")
    split = counting.topic("text", str).flat_map(str.split)
    split.key_by(lambda word: word).map_with_state(count).to_topic("counts")
    return counting


def ours(data: str) -> Measurement:
    """Run the pipeline over the log to its end."""
    return run_loop(into_topic(pipeline(), Path(data), "counts"))


def plain(lines: str) -> Measurement:
    """Line by line, word by word."""
    with tempfile.TemporaryDirectory(dir=Path(lines).parent) as folder:
        written = Path(folder) / "counts.jsonl"
        started = begin()
        decode, encode = msgspec.json.Decoder(str).decode, msgspec.json.Encoder().encode
        counts: dict[str, int] = {}
        with Path(lines).open("rb") as file, written.open("wb") as out:
            for line in file:
                for word in decode(line).split():
                    result, counts[word] = count(word, counts.get(word))
                    out.write(encode(result) + b"\n")
        measured = stop(started)
        measured.answer = digest(written.read_bytes().splitlines())
        return measured


def run(options: Options) -> None:
    """Compare the two."""
    made = words(options.cache, 500 if options.quick else WORD_LINES)
    sides = [
        Side("StreamActors, exactly-once", "benchmarks.words:ours", {"data": str(made.data)}),
        Side("plain", "benchmarks.words:plain", {"lines": str(made.lines)}),
    ]
    compare("running word count", sides, options, records=made.count * WORDS_A_LINE, unit="words")
