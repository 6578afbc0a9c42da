"""The plan: what is fused, where it is parted, what is refused, and with which words."""

import pytest
from msgspec import Struct

import streamactors as sa
from streamactors.graph.plan import plan


class Event(Struct):
    user: str
    at: int
    value: float


def pipeline(parts=1):
    return sa.Pipeline("p", parts=parts)


def events(flow, **more):
    return flow.topic("events", Event).event_time("at", disorder="5s", **more)


def shape(flow):
    """Return {stage: ([operators], parts, fed by)} of the only region."""
    (region,) = plan(flow)
    return {
        stage.id: (
            [node.id for node in stage.nodes],
            stage.parts,
            _fed_by(stage),
        )
        for stage in region.stages
    }


def _fed_by(stage):
    """Return what the only feed of *stage* is; None for the sequencer."""
    (feed,) = stage.feeds
    return None if feed.stage is None else (feed.stage.id, feed.node.id, feed.output)


async def double(value):
    return value


def test_with_one_part_everything_from_source_to_sink_is_one_stage():
    flow = pipeline()
    by_user = events(flow).filter(bool).key_by("user")
    by_user.window(sa.Tumbling(10)).count().to_view("counts")
    by_user.sum("value").to_view("sums")
    assert shape(flow) == {
        "events": (["filter", "key_by", "window", "view.counts", "aggregate", "view.sums"], 1, None),
    }


def test_with_more_parts_what_reads_one_key_by_shares_one_keyed_stage():
    flow = pipeline(parts=4)
    by_user = events(flow).key_by("user")
    by_user.window(sa.Tumbling(10)).count().to_view("counts")
    by_user.sum("value").to_view("sums")
    assert shape(flow) == {
        "events": (["key_by"], 1, None),
        "window": (["window", "aggregate"], 4, ("events", "key_by", "out")),
        "view.counts": (["view.counts"], 1, ("window", "window", "final")),
        "view.sums": (["view.sums"], 1, ("window", "aggregate", "out")),
    }


def test_state_by_the_same_key_stays_in_its_part():
    flow = pipeline(parts=4)
    stream = events(flow).key_by("user").map_with_state(lambda v, s: (v, s)).map_with_state(lambda v, s: (v, s))
    stream.to_view("v")
    assert shape(flow)["map_with_state"][0] == ["map_with_state", "map_with_state-2"]


def test_a_new_key_is_shuffled_from_every_part():
    flow = pipeline(parts=2)
    first = events(flow).key_by("user").map_with_state(lambda v, s: (v, s))
    first.key_by("value").map_with_state(lambda v, s: (v, s)).to_view("v")
    (region,) = plan(flow)
    second = next(stage for stage in region.stages if stage.id == "map_with_state-2")
    assert second.shuffled
    assert second.parts == 2
    assert [node.id for node in region.stages[1].nodes] == ["map_with_state", "key_by-2"]


def test_an_async_function_begins_a_stage():
    flow = pipeline()
    events(flow).map(lambda e: e).map(double).filter(bool).key_by("user").to_view("v")
    assert shape(flow) == {
        "events": (["map"], 1, None),
        "map-2": (["map-2", "filter", "key_by", "view.v"], 1, ("events", "map", "out")),
    }


def test_an_async_function_behind_the_source_leaves_other_readers_of_it_alone():
    flow = pipeline()
    stream = events(flow)
    stream.map(double).to_topic("a")
    stream.filter(bool).to_topic("b")
    stages = shape(flow)
    assert stages["map"] == (["map", "topic.a"], 1, None)
    assert stages["events"] == (["filter", "topic.b"], 1, None)


def test_what_stands_before_event_time_runs_in_the_readers():
    flow = pipeline()
    lines = flow.topic("lines", encoding="raw").map(bytes.decode).filter(bool)
    lines.event_time(int).key_by(len).count().to_view("v")
    (region,) = plan(flow)
    assert [node.id for node in region.sources[0].reader_nodes] == ["map", "filter"]
    assert region.stages[0].nodes[0].id == "key_by"


def test_two_sources_are_two_regions():
    flow = pipeline()
    flow.topic("a").key_by("k").count().to_view("a")
    flow.topic("b").key_by("k").count().to_view("b")
    assert [region.id for region in plan(flow)] == ["a", "b"]


def test_the_step_divides_sizes_offsets_and_lateness():
    flow = pipeline()
    by_user = events(flow).key_by("user")
    by_user.window(sa.Tumbling("10min", offset="4min")).allowed_lateness("6min").count().to_view("a")
    (region,) = plan(flow)
    assert region.step == 120_000


def test_a_region_without_windows_has_the_default_step():
    flow = pipeline()
    events(flow).key_by("user").count().to_view("v")
    (region,) = plan(flow)
    assert region.step == 1_000


def test_the_clock_period_divides_all_early_periods():
    flow = pipeline()
    by_user = events(flow).key_by("user")
    by_user.window(sa.Tumbling(10)).early(every="4s").count().to_view("a")
    by_user.window(sa.Tumbling(10)).early(every="6s").count().to_view("b")
    (region,) = plan(flow)
    assert (region.clock_period, region.clock_longest) == (2_000, 6_000)


def test_behind_final_windows_the_watermark_is_held_back_by_their_lateness():
    flow = pipeline()
    per_user = events(flow).key_by("user").window(sa.Tumbling(10)).allowed_lateness(30).count().final()
    per_user.key_by(lambda n: n % 2).window(sa.Tumbling(20)).count().to_view("v")
    (region,) = plan(flow)
    held = dict(zip([n.id for n in region.stages[0].nodes], region.stages[0].holds, strict=True))
    assert held == {"key_by": 0, "window": 0, "key_by-2": 30, "window-2": 30, "view.v": 30}


def corrected(flow):
    return events(flow).key_by("user").window(sa.Tumbling(10)).allowed_lateness(30).count()


@pytest.mark.parametrize(
    "consumer",
    [
        lambda results: results.to_topic("t"),
        lambda results: results.key_by(lambda n: n),
        lambda results: results.flat_map(lambda n: [n]),
        lambda results: results.map_with_state(lambda v, s: (v, s)),
        lambda results: results.count(),
        lambda results: results.window(sa.Tumbling(10)),
        lambda results: results.map(lambda n: n).to_topic("t"),
        lambda results: results.rows(),
        lambda results: results.to_view("v", key=lambda n: n),
    ],
)
def test_an_append_only_consumer_of_corrections_is_refused_and_told_what_to_say(consumer):
    with pytest.raises(
        sa.PipelineError, match=r"at test_plan\.py:\d+: (window|map) .* replace earlier ones.*\.final\(\)"
    ):
        consumer(corrected(pipeline()))


def test_final_results_and_changes_are_append_only():
    flow = pipeline()
    results = corrected(flow)
    results.final().to_topic("finals")
    results.changes().to_topic("changes")
    plan(flow)


def test_a_running_aggregate_is_refused_by_a_topic_too():
    with pytest.raises(sa.PipelineError, match=r"\.changes\(\)"):
        pipeline().topic("t").key_by("k").count().to_topic("out")


def test_windows_without_event_time_are_refused():
    with pytest.raises(sa.PipelineError, match=r"window at test_plan\.py:\d+: this stream has no event time"):
        pipeline().topic("t").key_by("k").window(sa.Tumbling(10))


def test_event_time_behind_a_key_is_refused():
    with pytest.raises(sa.PipelineError, match="before the first key_by"):
        pipeline().topic("t").key_by("k").event_time("at")


@pytest.mark.parametrize("wrong", [{"disorder": -1}, {"idle_after": -1}])
def test_negative_durations_are_refused(wrong):
    with pytest.raises(sa.PipelineError, match="negative"):
        pipeline().topic("t").event_time("at", **wrong)


def test_event_time_twice_is_refused():
    with pytest.raises(sa.PipelineError, match="has event time already"):
        events(pipeline()).event_time("at")


def test_event_time_on_one_branch_only_is_refused():
    flow = pipeline()
    source = flow.topic("t")
    source.key_by("k").count().to_view("a")
    source.event_time("at").key_by("k").count().to_view("b")
    with pytest.raises(sa.PipelineError, match="before the stream branches"):
        plan(flow)


def test_two_operators_with_one_id_are_refused():
    flow = pipeline()
    stream = events(flow).key_by("user", name="mine")
    stream.count(name="total").to_view("v")
    with pytest.raises(sa.PipelineError, match=r"total at test_plan\.py:\d+: total \(test_plan\.py:\d+\) has this id"):
        stream.count(name="total")


def test_two_streams_into_one_view_are_refused():
    flow = pipeline()
    by_user = events(flow).key_by("user")
    by_user.count().to_view("v")
    with pytest.raises(sa.PipelineError, match="another stream writes it"):
        by_user.sum("value").to_view("v")


def test_two_streams_into_one_topic_are_refused():
    flow = pipeline()
    stream = events(flow)
    stream.to_topic("out")
    with pytest.raises(sa.PipelineError, match="another stream writes it"):
        stream.filter(bool).to_topic("out")


def test_a_view_needs_a_key():
    with pytest.raises(sa.PipelineError, match="no key"):
        events(pipeline()).to_view("v")


def test_a_view_may_choose_its_own_key():
    flow = pipeline()
    events(flow).to_view("v", key="user")
    plan(flow)


def test_a_source_that_goes_nowhere_is_refused():
    flow = pipeline()
    events(flow).key_by("user").count()
    with pytest.raises(sa.PipelineError, match="nothing is done with it"):
        plan(flow)


def test_a_pipeline_without_a_source_is_refused():
    with pytest.raises(sa.PipelineError, match="reads nothing"):
        plan(pipeline())


def test_late_records_exist_only_behind_a_window():
    with pytest.raises(sa.PipelineError, match="no windows of its own"):
        _ = pipeline().topic("t").key_by("k").count().late


@pytest.mark.parametrize("name", ["", "a b", "../x", ".hidden", "x" * 201])
def test_names_that_can_be_no_folder_are_refused(name):
    with pytest.raises(sa.PipelineError, match="can't be the name"):
        sa.Pipeline(name)


@pytest.mark.parametrize("parts", [0, 129])
def test_parts_beyond_the_key_groups_are_refused(parts):
    with pytest.raises(sa.PipelineError, match="128"):
        sa.Pipeline("p", parts=parts)


def test_a_topic_is_read_once_and_its_stream_used_twice():
    flow = pipeline()
    flow.topic("t").key_by("k").count().to_view("a")
    with pytest.raises(sa.PipelineError, match="use the stream twice"):
        flow.topic("t")


def test_describe_shows_fusing_parts_and_state():
    flow = pipeline(parts=4)
    by_user = events(flow).key_by("user")
    counts = by_user.window(sa.Tumbling("10min")).allowed_lateness("10min").early(every="1s").count()
    counts.to_view("counts")
    counts.late.original().to_topic("late")
    text = flow.describe()
    for part in [
        "pipeline p",
        "region events",
        "watermark in steps of 10min",
        "clock marks every 1s",
        "stage window in 4 parts  <- events, key_by, shuffled by key",
        "lateness 10min, early every 1s",
        "[keeps state by key]",
        "original",
        "<- window (late)",
        "view.counts by [key, window start]",
    ]:
        assert part in text, text


@pytest.mark.parametrize("use", [lambda stream: stream.key_by("usr"), lambda stream: stream.filter(bool).key_by("usr")])
def test_a_field_that_a_typed_stream_does_not_have_is_refused_before_any_record_is_read(use):
    with pytest.raises(sa.PipelineError, match=r"Event has no field 'usr'; its fields are user, at, value"):
        use(events(pipeline()))


def test_an_event_time_field_that_is_not_there_is_refused():
    with pytest.raises(sa.PipelineError, match="no field 'when'"):
        pipeline().topic("t", Event).event_time("when")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s: s.map(3), "3 is no function"),
        (lambda s: s.filter(None), "None is no function"),
        (lambda s: s.key_by(3), "3 selects nothing"),
        (lambda s: s.key_by(double), "nobody would await it"),
        (lambda s: s.event_time(double), "nobody would await it"),
        (lambda s: s.to_view("v", key=double), "nobody would await it"),
    ],
)
def test_what_is_no_function_is_refused_where_it_is_written(build, says):
    with pytest.raises(sa.PipelineError, match=rf"at test_plan.py:\d+: .*{says}"):
        build(pipeline().items([]))
