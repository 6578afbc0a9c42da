"""Distinct and overlapping windows in the graph and the plan."""

import msgspec
import pytest

from streamactors import Pipeline, PipelineError, Sliding, Tumbling, aggregate, count
from streamactors.graph.plan import plan


class Click(msgspec.Struct):
    id: int
    user: str
    at: int


@pytest.fixture
def pipeline():
    return Pipeline("clicks", parts=4)


def test_a_stream_is_behind_distinct_what_it_was_before(pipeline):
    clicks = pipeline.topic("clicks", Click).event_time("at")
    by_user = clicks.key_by("user")

    assert clicks.distinct("id").shape.keyed_by is None
    assert by_user.distinct().shape.keyed_by is by_user.distinct("id").shape.keyed_by is by_user.node
    assert by_user.distinct("id").shape.type is Click
    by_user.distinct("id").window(Tumbling("1min")).count().to_view("counts")


def test_it_runs_where_the_keys_live_that_tell_records_apart(pipeline):
    by_user = pipeline.topic("clicks", Click).key_by("user")
    by_user.distinct(name="users").to_topic("users")
    by_user.distinct("id", name="ids").count(name="counts").to_view("counts")

    (region,) = plan(pipeline)
    stages = {node.id: stage for stage in region.stages for node in stage.nodes}
    assert len({id(stages[name]) for name in ("users", "ids", "counts")}) == 3
    assert all(stages[name].parts == 4 and stages[name].shuffled for name in ("users", "ids", "counts"))


def test_time_to_live_takes_event_time_where_there_is_one(pipeline):
    pipeline.topic("clicks", Click).event_time("at").distinct("id", ttl="7s").to_topic("first")
    pipeline.topic("others", Click).distinct("id", ttl="7s").to_topic("other")

    timed, untimed = plan(pipeline)
    assert (timed.step, timed.clock_period) == (7_000, None)
    assert (untimed.step, untimed.clock_period, untimed.clock_longest) == (None, 700, 8_400)


def test_the_step_divides_size_slide_offset_and_lateness(pipeline):
    by_user = pipeline.topic("clicks", Click).event_time("at").key_by("user")
    by_user.window(Sliding("60s", "24s", "8s")).allowed_lateness("36s").count().to_view("counts")

    assert plan(pipeline)[0].step == 4_000


def test_what_makes_no_sense_is_refused_where_it_is_written(pipeline):
    by_user = pipeline.topic("clicks", Click).event_time("at").key_by("user")
    with pytest.raises(PipelineError, match=r"distinct at test_distinct.py:\d+: ttl=0"):
        by_user.distinct(ttl=0)
    with pytest.raises(PipelineError, match=r"distinct at .*no field 'identity'"):
        by_user.distinct("identity")
    with pytest.raises(PipelineError, match=r"distinct at .*replace earlier ones"):
        by_user.count().distinct()


def test_a_fold_that_can_not_be_merged_is_refused_where_windows_overlap(pipeline):
    def total(acc, click):
        return acc + click.id

    by_user = pipeline.topic("clicks", Click).event_time("at").key_by("user")
    with pytest.raises(PipelineError, match=r"window at test_distinct.py:\d+: .*aggregate\(.*total\) can't be merged"):
        by_user.window(Sliding("1h", "1min")).aggregate(n=count(), ids=aggregate(0, total))
    by_user.window(Sliding("1min", "1h")).aggregate(ids=aggregate(0, total)).to_view("alone")
    summed = aggregate(0, total, merge=lambda older, newer: older + newer)
    by_user.window(Sliding("1h", "1min")).aggregate(ids=summed).to_view("merged")
