"""The pipeline of test_versions.py: windows with early results and lateness, running sums, a topic, a table."""

import os
from pathlib import Path

import streamactors as sa

MARK = os.environ.get("VERSIONED_MARK", "")
DATABASE = Path(os.environ.get("VERSIONED_DATABASE", "out.db"))
pipeline = sa.Pipeline("versioned", parts=int(os.environ.get("VERSIONED_PARTS", "1")))
events = pipeline.topic("events").event_time("at", disorder=30, idle_after="50ms")
keyed = events.key_by("key")
keyed.window(sa.Tumbling(100)).allowed_lateness(200).early(every="20ms").count().to_view("windows")
keyed.aggregate(count=sa.count(), total=sa.sum("n")).to_view("totals")
written = events.map(lambda e: {"n": e["n"], "by": MARK}, name="written")
written.to_topic("written")
written.to_sqlite(DATABASE, "written")
