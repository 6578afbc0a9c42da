import io

import pytest
from rich.console import Console

from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.job.status import (
    CheckpointStatus,
    JobStatus,
    OperatorStatus,
    PartitionStatus,
    RegionStatus,
    StageStatus,
)
from streamactors.ops.display import TopRows, ViewSpec, draw, top_rows
from streamactors.ops.output import iso_time
from streamactors.ops.progress import Rate, duration_text, progress_line, reasons_shown, summary_line, watermark_text


def region(**changes) -> RegionStatus:
    known = {
        "id": "submissions",
        "state": "running",
        "attempt": 1,
        "restarts": 2,
        "records": 1_500,
        "watermark": 59_999,
        "checkpoint": CheckpointStatus(epoch=7, ms=8.25, bytes=12_345, at_ms=1),
        "waiting_for": [],
        "partitions": [
            PartitionStatus("submissions", 0, 500, 2_000, idle=False),
            PartitionStatus("submissions", 1, 1_000, 1_000, idle=True),
        ],
        "stages": [StageStatus("quiz/window", [OperatorStatus("quiz/window", 9, 9, late=3)], 0, 9, 0)],
    }
    return RegionStatus(**(known | changes))


def shown(frame) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(frame)
    return console.file.getvalue()


def test_a_rate_is_that_of_the_last_seconds():
    rate = Rate()
    assert rate.add(0.0, 0) == 0.0
    assert rate.add(1.0, 100) == 100.0
    assert [round(rate.add(second, 100)) for second in (2.0, 3.0, 4.0, 5.0)] == [50, 33, 0, 0]


def test_a_rate_never_goes_below_zero():
    """A region that starts again may have less to show than before."""
    rate = Rate()
    rate.add(0.0, 100)
    assert rate.add(1.0, 50) == 0.0


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_500, "1.5 s"),
        (61_200, "61 s"),
        (900_000, "15 min"),
        (10_800_000, "3.0 h"),
        (3 * 86_400_000, "3.0 days"),
        (1_000 * 86_400_000, "2.7 years"),
        (-5, "-5 ms"),
    ],
)
def test_durations_are_written_as_people_say_them(ms, text):
    assert duration_text(ms) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (MIN_TIME, "none"), (MAX_TIME, "the end"), (10**17, "100000000000000000")],
)
def test_instants_are_iso_where_a_calendar_knows_them(ms, text):
    assert iso_time(ms) == text


def test_event_time_has_a_beginning_and_an_end():
    assert watermark_text(MIN_TIME, 0) == "no event time yet"
    assert watermark_text(MAX_TIME, 0) == "event time has ended"
    assert watermark_text(59_999, 61_999) == "watermark 1970-01-01T00:00:59.999Z, 2.0 s behind"


def test_a_log_line_says_all_there_is():
    assert progress_line(region(), 1_234.4, 61_999) == (
        "1,234 records/s, offset 1,500 of 3,000 (50%), watermark 1970-01-01T00:00:59.999Z, 2.0 s behind, "
        "epoch 7 in 8.2 ms with 12,345 bytes, 3 late, 2 restarts"
    )
    nothing = region(state="restarting", partitions=[], checkpoint=CheckpointStatus(0, 0.0, 0, 0), watermark=MIN_TIME)
    assert progress_line(nothing, 0.0, 0) == (
        "restarting, 0 records/s, offset 0 of 0, no event time yet, no checkpoint yet, 3 late, 2 restarts"
    )


def test_reasons_are_shown_when_nothing_moves_or_a_region_does_not_run():
    why = ["one", "two", "three", "four"]
    assert reasons_shown(region(reasons=why), 5.0) == []
    assert reasons_shown(region(reasons=why), 0.0) == ["one", "two", "three"]
    assert reasons_shown(region(reasons=why, state="restarting"), 5.0) == ["one", "two", "three"]


def test_a_frame_shows_them_as_they_are():
    status = JobStatus("quiz", "running", [region(reasons=["sink [counts] has taken no record for 12 s"])])
    assert "why        sink [counts] has taken no record for 12 s" in shown(draw(status, 0.0, 0, []))
    assert "why" not in shown(draw(status, 9.0, 0, []))


def test_the_last_line_counts_over_all_regions():
    status = JobStatus("quiz", "ended", [region(), region(records=500)])
    assert summary_line(status, "drained", 2.0, rated=False) == (
        "quiz: drained; 2,000 records in 2.00 s; checkpoint 7, 7, 4 restarts"
    )
    one = JobStatus("quiz", "ended", [region(records=1, restarts=1)])
    assert summary_line(one, "drained", 2.0, rated=False).startswith("quiz: drained; 1 record in 2.00 s; ")
    assert summary_line(one, "drained", 2.0, rated=False).endswith(", 1 restart")
    assert ", 1,000 records/s; " in summary_line(status, "finished", 2.0, rated=True)


def test_a_frame_shows_rate_time_checkpoint_restarts_progress_and_rows():
    status = JobStatus("quiz", "running", [region()])
    views = [
        TopRows(ViewSpec("counts", windowed=True), [(("algebra", 600_000), 12)], 40),
        TopRows(ViewSpec("totals", windowed=False), [("algebra", {"count": 1_200, "mean": 50.25})], 1),
    ]

    text = shown(draw(status, 1_234.0, 61_999, views))

    for part in (
        "quiz  running  1,234 records/s",
        "1,500 read in this run",
        "2.0 s behind",
        "epoch 7 in 8.2 ms with 12,345 bytes",
        "late       3",
        "submissions/0",
        "500/2,000",
        "1,000/1,000 idle",
        "view counts: 40 rows, the newest windows first",
        "algebra  1970-01-01 00:10  12",
        "view totals: 1 rows",
        "algebra  count 1,200  mean 50.25",
    ):
        assert part in text, text


def test_many_partitions_are_a_few_bars():
    partitions = [PartitionStatus("t", n, 1, 2, idle=False) for n in range(20)]
    text = shown(draw(JobStatus("j", "running", [region(partitions=partitions)]), 0.0, 0, []))
    assert "t/7" in text and "t/8" not in text and "12 more" in text and "12/24" in text


class Rows(dict):
    """A view, as far as the display asks."""

    def items(self, prefix=()):
        return iter(super().items())


def test_the_top_rows_are_those_of_the_newest_windows_and_then_the_greatest():
    views = {
        "w": Rows({("a", 0): 9, ("a", 10): 1, ("b", 10): 5, ("c", 10): 2}),
        "t": Rows({"a": {"name": "x", "n": 1}, "b": {"name": "y", "n": 3}, "c": "text", "d": {}}),
    }
    windows, totals = top_rows(views, [ViewSpec("w", windowed=True), ViewSpec("t", windowed=False)])
    assert [key for key, _ in windows.rows] == [("b", 10), ("c", 10), ("a", 10)] and windows.total == 4
    assert [key for key, _ in totals.rows][:2] == ["b", "a"]
