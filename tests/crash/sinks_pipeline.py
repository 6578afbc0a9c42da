"""A pipeline into every sink; where to is in the first argument. With a second one: only into JSON lines."""

import sys
from pathlib import Path

import msgspec

import streamactors as sa


class Number(msgspec.Struct):
    """What is written, and counted."""

    n: int
    key: str
    at: int


out = Path(sys.argv[1])
pipeline = sa.Pipeline("sinks")
numbers = pipeline.topic("numbers", Number).event_time("at", disorder="1s")
numbers.to_json_lines(out / "lines", partitions=2)

if not sys.argv[2:]:
    numbers.to_sqlite(out / "x.db", "numbers")
    numbers.to_parquet(out / "columns")
    numbers.to_topic("copy", partitions=2)
    by_key = numbers.key_by("key")
    by_key.aggregate(n=sa.count(), last=sa.max("n")).to_sqlite(out / "x.db", "totals")
    windows = by_key.window(sa.Tumbling("1s")).allowed_lateness("10s").early(every="50ms")
    windows.count().to_sqlite(out / "x.db", "windows")
