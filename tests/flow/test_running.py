"""Keyed operators without windows, cut and restored anywhere."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.flow.aggregates import count, max_, mean, min_, reduce_, several, sum_
from streamactors.flow.running import AsyncMapWithState, MapWithState, RunningAggregate
from tests.flow.fakes import Driver, Part, rows

keyed = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9)), max_size=30)
places = st.sets(st.integers(0, 30))


def run(make, records, cuts, restores):
    driver = Driver(make)
    ends = sorted({place for place in cuts | restores if 0 < place < len(records)} | {len(records)})
    start = 0
    for end in ends:
        keys, values = [key for key, _ in records[start:end]], [value for _, value in records[start:end]]
        driver.batch(Batch(values, list(range(start, end)), keys, offsets=list(range(start, end))))
        if end in restores:
            driver.restore()
        start = end
    return driver


@given(keyed, places, places)
def test_each_record_shows_the_running_result_however_cut_and_restored(records, cuts, restores):
    driver = run(
        lambda: RunningAggregate(several(n=count(), total=sum_(), least=min_(), most=max_(), mean=mean())),
        records,
        cuts,
        restores,
    )

    seen, expected = {}, []
    for place, (key, value) in enumerate(records):
        values = seen.setdefault(key, [])
        values.append(value)
        total = sum(values)
        result = {
            "n": len(values),
            "total": total,
            "least": min(values),
            "most": max(values),
            "mean": total / len(values),
        }
        expected.append((key, result, place, None, Kind.UPDATE, place or None))
    assert [(*row[:5], row[5] or None) for row in rows(driver.out)] == expected


@given(keyed, places, places)
def test_latest_only_leaves_a_view_the_same(records, cuts, restores):
    each = run(lambda: RunningAggregate(sum_()), records, cuts, restores)
    last = run(lambda: RunningAggregate(sum_(), latest_only=True), records, cuts, restores)

    def view(driver):
        return {row[0]: row[1:] for row in rows(driver.out)}

    assert view(each) == view(last)
    for batch in last.out:
        assert len(set(batch.keys)) == len(batch)


@given(keyed, places, places)
def test_a_function_with_state_sees_the_same_however_cut_and_restored(records, cuts, restores):
    """Its state is a tuple in a dict: it comes back as a list, at once and not only after a restart."""

    def function(value, state):
        seen = repr(state)
        last = state["last"] if state else []
        if value == 0:
            return seen, None
        return seen, {"last": (value, *last[:2])}

    whole = run(lambda: MapWithState(function), records, set(), set())
    cut = run(lambda: MapWithState(function), records, cuts, restores)

    assert rows(whole.out) == rows(cut.out)
    assert len(rows(whole.out)) == len(records)


def test_a_running_count_by_map_with_state():
    def number(word, seen):
        n = (seen or 0) + 1
        return (word, n), n

    driver = Driver(lambda: MapWithState(number))
    driver.batch(Batch(["a", "b", "a"], keys=["a", "b", "a"]))
    driver.restore()
    driver.batch(Batch(["a"], keys=["a"]))

    assert [row[1] for row in rows(driver.out)] == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]
    assert driver.out[0].kinds is None


def test_returning_none_deletes_the_state():
    driver = Driver(lambda: MapWithState(lambda value, state: (state, value)))
    driver.batch(Batch([1, None, 2], keys=["k"] * 3))
    assert driver.out[0].values == [None, 1, None]

    driver.batch(Batch([None], keys=["k"]))
    assert driver.part.states["map_with_state"].spaces == {None: {}}


def test_state_may_be_changed_in_place_because_it_is_a_copy():
    def collect(value, state):
        state = state or []
        state.append(value)
        return state, state

    driver = Driver(lambda: MapWithState(collect))
    driver.batch(Batch([1, 2], keys=["k", "k"]))
    driver.out[0].values[0].append("changed by the consumer")
    driver.batch(Batch([3], keys=["k"]))

    assert driver.out[1].values == [[1, 2, 3]]


class Session(msgspec.Struct):
    clicks: int
    last: str


def test_state_type_gives_the_state_back_as_an_object():
    def function(value, state):
        assert state is None or type(state) is Session
        state = Session(state.clicks + 1 if state else 1, value)
        return state.clicks, state

    driver = Driver(lambda: MapWithState(function, state_type=Session))
    driver.batch(Batch(["a", "b"], keys=["k", "k"]))
    driver.restore()
    driver.batch(Batch(["c"], keys=["k"]))

    assert [row[1] for row in rows(driver.out)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda value, state: (value, Session(1, "")), "pass state_type"),
        (lambda value, state: (value, {1, 2}), "pass state_type"),
        (lambda value, state: (value, [object()]), "TypeError"),
        (lambda value, state: value, r"must return \(result, new state\)"),
        (lambda value, state: (1, 2, 3), r"must return \(result, new state\)"),
        (lambda value, state: 1 // 0, "ZeroDivisionError.*test_running.py"),
    ],
)
def test_what_can_not_be_kept_names_its_record(function, message):
    driver = Driver(lambda: MapWithState(function))
    with pytest.raises(BadRecord, match=f"record 5.*{message}"):
        driver.batch(Batch([5], keys=["k"]))


def test_state_of_another_type_than_promised_is_refused_at_once():
    driver = Driver(lambda: MapWithState(lambda value, state: (value, {"clicks": "x"}), state_type=Session))
    with pytest.raises(BadRecord, match="ValidationError"):
        driver.batch(Batch([5], keys=["k"]))


def test_whole_numbers_beyond_64_bits_are_refused_before_the_checkpoint():
    driver = Driver(lambda: MapWithState(lambda value, state: (value, 2**70)))
    with pytest.raises(PipelineError, match="64 bits"):
        driver.batch(Batch([5], keys=["k"]))

    driver = Driver(lambda: RunningAggregate(sum_()))
    with pytest.raises(PipelineError, match="has passed 64 bits"):
        driver.batch(Batch([2**64 - 1, 1], keys=["k", "k"]))


async def test_the_awaited_form_does_the_same():
    async def number(word, seen):
        n = (seen or 0) + 1
        return n, None if n == 2 else n

    operator = AsyncMapWithState(number)
    operator.open(Part().context())
    out = await operator.on_batch_async(Batch(list("aabaa"), keys=list("aabaa")))
    assert out.values == [1, 2, 1, 1, 2]


def test_coroutine_functions_and_plain_ones_have_each_their_place():
    async def number(word, seen):
        return 1, 1

    with pytest.raises(PipelineError, match="Use AsyncMapWithState"):
        MapWithState(number)
    with pytest.raises(PipelineError, match="Use MapWithState"):
        AsyncMapWithState(len)
    with pytest.raises(PipelineError, match="coroutine function"):
        reduce_(number)
