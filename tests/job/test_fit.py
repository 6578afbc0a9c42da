"""Fits: a verdict for each operator, and what becomes of its rows."""

import pytest
from msgspec import Struct

import streamactors as sa
from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.errors import PipelineError
from streamactors.core.keys import key_group
from streamactors.durable.rows import GROUP_BYTES, encode_keys, encode_rows, namespace_bytes
from streamactors.flow.aggregates import count
from streamactors.flow.distinct import DistinctByClock, DistinctByEventTime
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Tumbling
from streamactors.graph.plan import plan
from streamactors.job.fit import Verdict
from streamactors.job.savepoints import Code


class State(Struct):
    n: int


def note(event, state):
    return 1, State(1)


def pipeline(build=lambda flow, keyed: None, *, parts=1, key="k", topic="events"):
    flow = sa.Pipeline("job", parts=parts)
    keyed = flow.topic(topic).event_time("at").key_by(key)
    keyed.window(sa.Tumbling("1min"), name="windows").count().to_view("counts")
    keyed.map_with_state(note, state_type=State, name="noted").to_topic("out")
    build(flow, keyed)
    return flow


def stored(flow):
    return {region.id: region.signature() for region in plan(flow)}


def verdicts(flow, was=None, fresh=(), dropped=()):
    fit = Code(flow, plan(flow), frozenset(fresh), frozenset(dropped)).fit(was or stored(pipeline()))
    return {line.operator: line.verdict for line in fit.changed}, fit


def test_the_same_code_fits_and_changes_nothing():
    found, fit = verdicts(pipeline())
    assert found == {} and not fit.rewrites and not fit.refused


def test_another_number_of_parts_splits():
    found, fit = verdicts(pipeline(parts=4))
    assert found == {"windows": Verdict.SPLITS, "noted": Verdict.SPLITS}
    assert fit.rewrites


@pytest.mark.parametrize(
    ("flow", "operator", "why"),
    [
        (pipeline(key="other"), "noted", "key 'k' became 'other'"),
        (pipeline(topic="others"), "others", "region"),
        (pipeline(lambda flow, keyed: keyed.count(name="more").to_view("more")), "more", "--fresh more"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(flow, operator, why):
    found, fit = verdicts(flow)
    if operator == "others":  # all of the old region is gone, and the new one is new
        assert set(found.values()) == {Verdict.REFUSED} and fit.regions_gone == {"events"}
        return
    assert found[operator] is Verdict.REFUSED
    assert why in fit.table()
    with pytest.raises(PipelineError, match="nothing of it was changed"):
        fit.require("here")


def test_windows_of_another_size_start_empty_only_with_consent():
    def other():
        flow = sa.Pipeline("job")
        keyed = flow.topic("events").event_time("at").key_by("k")
        keyed.window(sa.Tumbling("5min"), name="windows").count().to_view("counts")
        keyed.map_with_state(note, state_type=State, name="noted").to_topic("out")
        return flow

    assert verdicts(other())[0] == {"windows": Verdict.REFUSED}
    assert verdicts(other(), fresh=["windows"])[0] == {"windows": Verdict.FRESH}


def test_consent_empties_nothing_that_fits():
    assert verdicts(pipeline(), fresh=["windows", "noted"], dropped=["windows"])[0] == {}


def test_a_source_is_never_dropped_from_a_region():
    def two():
        flow = sa.Pipeline("job")
        both = flow.topic("events").union(flow.topic("more"))
        both.key_by("k").count(name="n").to_view("n")
        return flow

    def one():
        flow = sa.Pipeline("job")
        flow.topic("events").key_by("k").count(name="n").to_view("n")
        return flow

    found, _ = verdicts(one(), stored(two()), dropped=["more"])
    assert found["more"] is Verdict.REFUSED
    found, _ = verdicts(two(), stored(one()), fresh=["more"])
    assert found["more"] is Verdict.REFUSED


def test_a_migration_for_an_operator_that_is_not_there_is_refused():
    flow = pipeline()
    flow.migrate("nobody")(lambda key, namespace, value: value)
    with pytest.raises(PipelineError, match=r"names no operator with state of users.*noted, windows"):
        verdicts(flow)


def test_migrations_are_numbered_upwards():
    flow = pipeline()
    flow.migrate("noted")(lambda key, namespace, value: value)
    flow.migrate("noted", version=5)(lambda key, namespace, value: value)
    assert [migration.version for migration in flow.migrations["noted"]] == [2, 5]
    with pytest.raises(PipelineError, match="version 4 is not above 5"):
        flow.migrate("noted", version=4)(lambda key, namespace, value: value)


# Rows. ----------------------------------------------------------------------------------------------------------------


def state_rows(entries):
    """Rows of a keyed state: {(key, namespace): value}."""
    rows = []
    for (key, namespace), value in entries.items():
        (encoded,) = encode_keys([key])
        head = GROUP_BYTES[key_group(encoded)] + namespace_bytes(namespace)
        rows += encode_rows([head], [encoded], [value])
    return sorted(rows)


def test_windows_are_migrated_entry_by_entry_and_keep_their_panes():
    flow = pipeline()

    @flow.migrate("windows")
    def double(key, namespace, value):
        assert namespace % 60_000 == 0
        return 2 * value

    code = Code(flow, plan(flow))
    fit = code.fit(stored(pipeline()))
    refit = code.refit(fit)
    before = {("a", 0): 1, ("b" * 600, 60_000): 2, ((1, "x"), -60_000): 3}
    before = {(key if isinstance(key, str) else sa_key(key), ns): v for (key, ns), v in before.items()}
    rows = state_rows(before)
    after = refit.rows("state:windows:windows", rows)
    assert sorted(after) == state_rows({pair: 2 * value for pair, value in before.items()})
    changed = state_rows(dict.fromkeys(before, True))
    assert refit.rows("state:windows:changed", changed) == changed
    assert refit.reports["windows"].seen == refit.reports["windows"].changed == 3


def sa_key(key):
    from streamactors.core.keys import canonical_key

    return canonical_key(key)


def test_an_entry_of_a_window_can_t_be_deleted():
    flow = pipeline()
    flow.migrate("windows")(lambda key, namespace, value: None)
    code = Code(flow, plan(flow))
    refit = code.refit(code.fit(stored(pipeline())))
    with pytest.raises(PipelineError, match="an entry of a window can't be deleted"):
        refit.rows("state:windows:windows", state_rows({("a", 0): 1}))


def test_an_entry_of_a_function_s_state_can_be_deleted():
    flow = pipeline()
    flow.migrate("noted")(lambda key, namespace, value: None if key == "a" else {"n": 7})
    code = Code(flow, plan(flow))
    refit = code.refit(code.fit(stored(pipeline())))
    held = encode_value({"n": 1})
    rows = refit.rows("state:noted:map_with_state", state_rows({("a", None): held, ("b", None): held}))
    assert rows == state_rows({("b", None): encode_value({"n": 7})})


@pytest.mark.parametrize("parts", [1, 3, 4, 128])
def test_the_rows_of_parts_are_split_by_what_each_part_has(parts):
    keys = [f"k{n}" for n in range(40)]
    entries = {(key, 60_000 * (n % 3)): n + 1 for n, key in enumerate(keys)}

    def rows_of(count_of_parts):
        found = {}
        for part in range(count_of_parts):
            from streamactors.flow.stage import groups_of_part

            own = {
                ns for key, ns in entries if key_group(encode_keys([key])[0]) in groups_of_part(part, count_of_parts)
            }
            found[f"windows:windows:{part}".encode()] = [5 if part == 0 else 0, 77, [59_999, sorted(own)]]
        return found

    def sealed(found):
        return sorted((key, seal(encode_value(value))) for key, value in found.items())

    def resplit(before, after, rows):
        code = Code(pipeline(parts=after), plan(pipeline(parts=after)))
        refit = code.refit(code.fit(stored(pipeline(parts=before))))
        assert refit.rows("state:windows:windows", state_rows(entries)) == state_rows(entries)
        return refit.operator_rows(rows)

    others = [(b"topic.out:stamps", seal(encode_value({})))]
    there = resplit(1, parts, sorted(sealed(rows_of(1)) + others)) if parts > 1 else sealed(rows_of(1)) + others
    assert sorted(there) == sorted(sealed(rows_of(parts)) + others)
    back = resplit(parts, 1, there) if parts > 1 else there
    assert sorted(back) == sorted(sealed(rows_of(1)) + others)


def test_parts_that_have_seen_nothing_are_split_to_nothing():
    for operator in (WindowOperator(Tumbling(10), count()), DistinctByEventTime(5), DistinctByClock(5)):
        assert operator.resplit([None, None], [set(), set(), set()]) == [None, None, None]


def test_marks_of_a_clock_are_one_for_all_parts():
    rows = [[7, 3, [[1, 100], [3, None]]], [7, 3, [[2, 110]]], None]
    assert DistinctByClock(50).resplit(rows, [{1, 2}, {3}]) == [[7, 3, [[1, 100], [2, 110]]], [7, 3, [[3, None]]]]
    (whole,) = DistinctByClock(50).resplit(rows, [{1, 2, 3}])
    assert whole == [7, 3, [[1, 100], [2, 110], [3, None]]]


def test_values_of_dropped_operators_go_with_all_their_rows():
    flow = sa.Pipeline("job")
    flow.topic("events").event_time("at").key_by("k").window(sa.Tumbling("1min"), name="windows").count().to_view(
        "counts"
    )
    code = Code(flow, plan(flow), dropped=frozenset({"noted", "topic.out"}))
    refit = code.refit(code.fit(stored(pipeline())))
    assert not refit.rows("state:noted:map_with_state", state_rows({("a", None): 1}))
    assert not refit.rows("pending:topic.out", [(b"k", b"v")])
    kept = [(b"windows:windows:0", seal(encode_value([0, None, [0, []]])))]
    assert refit.operator_rows([(b"noted:x:0", b""), *kept, (b"topic.out:stamps", b"")]) == kept
    assert decode_value(unseal(kept[0][1], "")) == [0, None, [0, []]]
