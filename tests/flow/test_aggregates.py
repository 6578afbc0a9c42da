"""Aggregates by themselves: what the window and running tests don't reach."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.batch import Batch
from streamactors.core.codec import decode_value, encode_value
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.flow.aggregates import aggregate, count, max_, mean, min_, reduce_, several, sum_
from streamactors.flow.piece import Piece


def results(made, values, keys=None):
    keys = keys or ["k"] * len(values)
    piece = Piece("op", keys, Batch(values, keys=keys))
    accs = made.fold(made.filled([None] * len(piece.counts)), piece)
    steps = made.fold_each(made.filled([None] * len(piece.counts)), piece)
    assert repr(accs) == repr(list(dict(zip(keys, steps, strict=True)).values())), "fold and fold_each differ"
    return made.results(accs, "op")


class Score(msgspec.Struct):
    user: str
    points: float


def test_min_and_max_keep_the_first_of_equals():
    assert repr(results(min_(), [2, 1, 1.0, True])) == "[1]"
    assert repr(results(max_(), [1.0, 1])) == "[1.0]"


def test_min_and_max_compare_text_bytes_and_pairs():
    assert results(max_(), ["b", "c", "a"]) == ["c"]
    assert results(min_(), [b"b", b"a"]) == [b"a"]
    assert results(max_(lambda s: (s.points, s.user)), [Score("a", 1.0), Score("b", 2.0)]) == [[2.0, "b"]]


@pytest.mark.parametrize(
    ("made", "values", "message"),
    [
        (min_(), [1, None], "record None.*can't compare None"),
        (min_(), [1, "a"], "record 'a'.*not supported between"),
        (sum_(), [1, None], "record None.*unsupported operand"),
        (sum_(lambda v: v), [1, 2j], r"record 2j.*needs int or float, got complex"),
        (reduce_(lambda a, b: None), [1, 2], "record 2.*returned None"),
        (reduce_(lambda a, b: a), [None], "can't start with None"),
        (reduce_(lambda a, b: a), [Score("a", 1.0)], "pass state_type"),
        (aggregate(0, lambda acc, v: 1 // v), [1, 0], "record 0.*ZeroDivisionError.*test_aggregates.py"),
    ],
)
def test_a_value_that_can_not_be_aggregated_names_its_record(made, values, message):
    with pytest.raises(BadRecord, match=f"operator op .*{message}"):
        results(made, values)


def test_selectors_by_name_and_by_function():
    scores = [Score("a", 1.5), Score("b", 2.5)]
    assert results(sum_("points"), scores) == [4.0]
    assert results(mean(lambda s: s.points), scores) == [2.0]


def test_several_share_one_pass_and_keep_their_names():
    made = several(n=count(), mean_score=mean("points"), first=reduce_(lambda a, b: a, state_type=Score))
    values = [Score("a", 1.0), Score("b", 2.0), Score("a", 4.0)]
    assert results(made, values, ["x", "y", "x"]) == [
        {"n": 2, "mean_score": 2.5, "first": Score("a", 1.0)},
        {"n": 1, "mean_score": 2.0, "first": Score("b", 2.0)},
    ]


def test_a_fold_of_ones_own_starts_from_a_copy_and_ends_with_a_result():
    def append(acc, value):
        acc.append(value)
        return acc

    made = aggregate([], append, lambda acc: len(set(acc)))
    assert results(made, [1, 1, 2, 5], ["x", "x", "x", "y"]) == [2, 1]


def test_a_fold_may_start_from_none():
    assert results(aggregate(None, lambda acc, v: v if acc is None else max(acc, v)), [1, 3, 2]) == [3]


def test_an_accumulator_looks_the_same_to_a_function_before_and_after_a_checkpoint():
    seen = []

    def pair(acc, value):
        seen.append(type(acc))
        return (value, value)

    results(aggregate((0, 0), pair), [1, 2])
    assert set(seen) == {list}


def test_a_failing_result_function_shows_the_accumulator():
    made = aggregate(0, lambda acc, v: acc + v, lambda acc: 1 // acc)
    with pytest.raises(BadRecord, match=r"record 0: the result function .*ZeroDivisionError"):
        results(made, [1, -1])


def test_not_a_number_is_a_left_fold_too():
    assert math.isnan(results(sum_(), [1.0, math.nan])[0])
    assert results(max_(), [1.0, math.nan, 2.0]) == [2.0]


def test_shapes_tell_aggregates_apart():
    def total(acc, value):
        return acc + value

    assert str(several(n=count(), m=mean("x"))) == "aggregate(n=count(), m=mean('x'))"
    assert [str(min_()), str(max_("x"))] == ["min()", "max('x')"]
    assert "total" in str(reduce_(total))


@pytest.mark.parametrize("wrong", [{}, {"n": len}])
def test_several_needs_aggregates(wrong):
    with pytest.raises(PipelineError):
        several(**wrong)


def test_an_initial_value_that_can_not_be_kept_is_refused_when_the_graph_is_built():
    with pytest.raises(PipelineError, match=r"initial=.*state_type"):
        aggregate(set(), lambda acc, value: acc)


whole_or_half = st.integers(-50, 50).map(lambda n: n / 2 if n % 2 else n // 2)
MERGEABLE = {
    "count": count,
    "sum": sum_,
    "mean": mean,
    "min": min_,
    "max of pairs": lambda: max_(lambda value: [abs(value), value]),
    "reduce": lambda: reduce_(lambda a, b: a + b),
    "list": lambda: aggregate([], lambda acc, v: [*acc, v], tuple, merge=lambda a, b: [*a, *b]),
    "several": lambda: several(n=count(), most=max_(), own=aggregate(0, lambda a, v: a + v, merge=lambda a, b: a + b)),
}


@given(
    st.sampled_from(sorted(MERGEABLE)), st.lists(st.tuples(st.sampled_from("xy"), whole_or_half)), st.integers(0, 20)
)
def test_what_is_merged_from_two_stretches_is_what_folding_both_gives(name, records, cut):
    """Through MessagePack as well: what comes back from disk is merged with what never was there."""
    made = MERGEABLE[name]()

    def folded(records):
        if not records:
            return {}
        piece = Piece("op", [key for key, _ in records], Batch([value for _, value in records]))
        return dict(zip(piece.counts, made.fold(made.filled([None] * len(piece.counts)), piece), strict=True))

    whole, older, newer = folded(records), folded(records[:cut]), folded(records[cut:])
    older = {key: decode_value(encode_value(acc)) for key, acc in older.items()}
    both = [key for key in older if key in newer]
    merged = made.merge([older[key] for key in both], [newer[key] for key in both], "op") if both else []

    assert repr(made.results(merged, "op")) == repr(made.results([whole[key] for key in both], "op"))


def test_a_merge_that_can_not_be_stored_is_refused_at_once():
    with pytest.raises(PipelineError, match=r"sum\(\) has passed 64 bits"):
        sum_().merge([2**63], [2**63], "op")
    with pytest.raises(BadRecord, match=r"\(1, 2\).*merging two panes of reduce.*returned None"):
        reduce_(lambda a, b: None).merge([1], [2], "op")
