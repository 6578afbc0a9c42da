"""The two classic word counts, over text files.

    python examples/word_count.py a.txt b.txt
    streamactors run examples/word_count.py --data ./words --finish -- a.txt b.txt

1. `word_windows`: how often each word comes in every five seconds. Text → words → key → window → sum.
2. `word_counts`: how often each word has come so far, a new result for every word, by `map_with_state`; the newest one
   of each word in a view, all of them in the topic `running_counts`.

A window needs a time, and a line of text has none. Flink's example takes the clock of the machine at the moment when
it reads the line, so its windows say how fast the file was read, and differ from run to run. Here the text is taken as
if it was read aloud, a line a second: the n-th line belongs to second n of its file. So a run gives the same windows
whenever, however fast and however often it is repeated, after a crash too.

The files must stay as they are while a job keeps state of them; under another job's name they may be others.
"""

import asyncio
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import streamactors as sa


class Line(NamedTuple):
    """A line of text, and when it was read aloud."""

    number: int
    text: str


class Word(NamedTuple):
    """A word, counted once."""

    word: str
    count: int = 1


def words(text: str) -> Iterator[Word]:
    return map(Word, re.findall(r"\w+", text.lower()))


def count_on(word: Word, count: int | None) -> tuple[Word, int]:
    count = (count or 0) + word.count
    return Word(word.word, count), count


def read_aloud(paths: list[str]) -> list[Line]:
    numbered = [enumerate(Path(path).read_text(encoding="utf-8").splitlines()) for path in paths]
    return sorted(Line(*line) for lines in numbered for line in lines)


def windows_of_words(pipeline: sa.Pipeline, paths: list[str]) -> None:
    (
        pipeline.items(read_aloud(paths), name="lines")
        .event_time(lambda line: line.number * 1_000)
        .flat_map(lambda line: words(line.text))
        .key_by("word")
        .window(sa.Tumbling("5s"))
        .sum("count")
        .to_view("word_windows")
    )


def running_count(pipeline: sa.Pipeline, paths: list[str]) -> None:
    counts = pipeline.text_lines(*paths).flat_map(words).key_by("word").map_with_state(count_on)
    counts.map(lambda word: word.count).to_view("word_counts")
    counts.map(lambda word: {"word": word.word, "count": word.count}).to_topic("running_counts")


def build(paths: list[str]) -> sa.Pipeline:
    if not paths:
        raise sa.UsageError(
            "word_count.py counts words in text files. Name at least one, behind `--` if you use `run`."
        )
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise sa.UsageError(f"word_count.py: there is no file {', '.join(missing)}. Check the path.")
    pipeline = sa.Pipeline("word-count")
    windows_of_words(pipeline, paths)
    running_count(pipeline, paths)
    return pipeline


async def main() -> None:
    """Count in a folder that is gone afterwards, and print what the views hold."""
    with tempfile.TemporaryDirectory() as folder:
        async with sa.run(pipeline, folder, settings=sa.Settings(bound=sa.Bound.FINISH)) as job:
            await job.wait()
            print("most frequent words")
            for word, count in sorted(job.views["word_counts"].items(), key=lambda row: (-row[1], row[0]))[:10]:
                print(f"{count:8,}  {word}")
            print("first windows")
            rows = sorted(job.views["word_windows"].items(), key=lambda row: (row[0][1], -row[1], row[0][0]))[:10]
            for (word, start), count in rows:
                print(f"{count:8,}  {word}  from line {start // 1_000 + 1}")


try:
    pipeline = build(sys.argv[1:])
except sa.UsageError as error:
    sys.exit(str(error))

if __name__ == "__main__":
    asyncio.run(main())
