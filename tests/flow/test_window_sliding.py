"""Sliding windows by panes against a plain script that keeps a list for each window."""

from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.core.keys import canonical_key
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.flow.aggregates import aggregate, count, max_, mean, min_, reduce_, several, sum_
from streamactors.flow.panes import Panes, blocks_of
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Lifecycle, Phase, Sliding, Tumbling
from tests.flow.fakes import DictState, Driver, StoredPart, rows
from tests.flow.window_script import Script, assert_equal, left_fold, run_operator, run_script

AGGREGATES = {
    "count": (count, len),
    "sum": (sum_, left_fold),
    "min": (min_, min),
    "max": (lambda: max_(lambda value: [value, "x"]), lambda values: [max(values), "x"]),
    "reduce": (lambda: reduce_(lambda a, b: a + b), left_fold),
    "list": (lambda: aggregate([], lambda acc, v: [*acc, v], merge=lambda a, b: [*a, *b]), list),
    "several": (
        lambda: several(n=count(), total=sum_(), most=max_(), mean=mean()),
        lambda v: {"n": len(v), "total": left_fold(v), "most": max(v), "mean": left_fold(v) / len(v)},
    ),
}
KEYS = [canonical_key(key) for key in ("a", "b", 1, ("a", 1), True)]


@st.composite
def windows(draw):
    """Overlapping ones, with gaps, and sizes that no slide divides; offsets and starts before zero."""
    size, slide = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    if draw(st.booleans()):
        size = slide * draw(st.integers(1, 12))
    return {"size": size, "slide": slide, "offset": draw(st.integers(1 - slide, slide - 1))}


whole_or_half = st.integers(-50, 50).map(lambda n: n / 2 if n % 2 else n // 2)
records = st.tuples(st.just("record"), whole_or_half, st.integers(-40, 60), st.sampled_from(KEYS))
listeners = st.sampled_from([frozenset({"out"}), frozenset({"final"}), frozenset({"out", "final", "late"})])
signals = st.one_of(
    st.tuples(st.just("watermark"), st.one_of(st.integers(-50, 90), st.just(MAX_TIME))),
    st.tuples(st.just("clock"), st.integers(0, 40)),
    st.tuples(st.just("flush")),
)
steps = st.lists(st.one_of(records, records, records, signals), max_size=40)
variants = st.fixed_dictionaries(
    {
        "lateness": st.one_of(st.just(0), st.integers(1, 40)),
        "early_every": st.sampled_from([None, 5]),
    }
)


def sliding(windows, make, **more):
    return Driver(lambda: WindowOperator(Sliding(**windows), make(), **more))


@settings(max_examples=300)
@given(windows(), steps, variants, listeners, st.sampled_from(sorted(AGGREGATES)), st.data())
def test_any_cut_and_any_restart_equal_the_plain_script(windows, steps, variant, outputs, name, data):
    """(T2) and the operator's half of (T1), order included."""
    make, fold = AGGREGATES[name]
    places = st.sets(st.integers(0, max(0, len(steps) - 1)))
    cut_after, restore_after = data.draw(places), data.draw(places)
    script = Script(fold, **windows, **variant)
    driver = sliding(windows, make, outputs=outputs, **variant)

    run_script(script, steps)
    run_operator(driver, steps, cut_after, restore_after)

    assert_equal(driver, script, outputs)


@settings(max_examples=40)
@given(windows(), steps, variants, listeners, st.sampled_from(sorted(AGGREGATES)), st.data())
def test_a_crash_goes_back_to_the_checkpoint_in_a_real_store(windows, steps, variant, outputs, name, data):
    make, fold = AGGREGATES[name]
    checkpoint = data.draw(st.integers(0, len(steps)))
    crash = data.draw(st.integers(checkpoint, len(steps)))
    cut_after = data.draw(st.sets(st.integers(0, max(0, len(steps) - 1))))
    script = Script(fold, **windows, **variant)
    run_script(script, steps)

    with TemporaryDirectory() as folder:
        operator = lambda: WindowOperator(Sliding(**windows), make(), outputs=outputs, **variant)  # noqa: E731
        driver = Driver(operator, StoredPart(Path(folder)))
        run_operator(driver, steps[:checkpoint], cut_after, ())
        driver.checkpoint()
        seen, watermark = (len(driver.out), len(driver.late), len(driver.final)), driver.watermark
        run_operator(driver, steps[checkpoint:crash], cut_after, (), first=checkpoint)

        del driver.out[seen[0] :], driver.late[seen[1] :], driver.final[seen[2] :]
        driver.watermark = watermark
        driver.crash()
        run_operator(driver, steps[checkpoint:], (), cut_after, first=checkpoint)
        driver.part.store.close()

    assert_equal(driver, script, outputs)


tenths = st.one_of(st.integers(-50, 50).map(lambda n: n / 10), st.sampled_from([1e100, -1e100, 1e-9]))
floats = st.lists(
    st.one_of(
        st.tuples(st.just("record"), tenths, st.integers(0, 60), st.just("k")),
        st.tuples(st.just("watermark"), st.integers(0, 90)),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(1, 5), floats, st.integers(0, 60), st.data())
def test_float_sums_are_left_folds_of_panes_in_a_tree_that_never_moves(panes, pane, steps, lateness, data):
    """(P1): to the last bit, whatever was looked at before, and after any restart."""
    places = st.sets(st.integers(0, max(0, len(steps) - 1)))
    kinds = {"lateness": lateness, "early_every": 5, "outputs": frozenset({"out", "final"})}
    windows = {"size": panes * pane, "slide": pane}
    driver = sliding(windows, sum_, **kinds)
    seen = [("flush",) if step[0] == "watermark" and step[1] % 3 == 0 else step for step in steps]
    run_operator(driver, [*seen, ("watermark", MAX_TIME)], data.draw(places), data.draw(places))

    script = Script(list, **windows, lateness=lateness)
    run_script(script, [step for step in seen if step[0] != "flush"])
    held, late = {}, {row[5] for row in rows(driver.late)}
    watermark = MIN_TIME
    for offset, (step, *arguments) in enumerate(seen):
        if step == "record" and offset not in late:
            value, time, _ = arguments
            held[time // pane] = held.get(time // pane, 0) + value
        elif step == "watermark":
            watermark = max(watermark, arguments[0])

    def block(level, number):
        halves = [block(level - 1, 2 * number + half) for half in (0, 1)] if level else [held.get(number)]
        return left_fold_of_some(halves)

    for _, value, _, (start, _), kind, _ in rows(driver.final):
        # A window that went before the last records of its panes came shows what they were then: not computed here.
        if start + panes * pane - 1 + lateness > watermark:
            assert kind == Kind.FINAL
            blocks = blocks_of(start // pane, start // pane + panes)
            assert repr(value) == repr(left_fold_of_some([block(*each) for each in blocks]))


def left_fold_of_some(values):
    total = None
    for value in values:
        if value is not None:
            total = value if total is None else total + value
    return total


@settings(max_examples=200)
@given(floats, st.integers(0, 60), st.sampled_from([(40, 5), (36, 1), (7, 5), (21, 14)]), st.data())
def test_float_results_do_not_depend_on_cuts_and_restarts(steps, lateness, windows, data):
    places = st.sets(st.integers(0, max(0, len(steps) - 1)))
    size, slide = windows
    kinds = {"lateness": lateness, "early_every": 5, "outputs": frozenset({"out", "final", "late"})}
    whole, cut = (sliding({"size": size, "slide": slide}, mean, **kinds) for _ in range(2))
    run_operator(whole, steps, (), ())
    run_operator(cut, steps, data.draw(places), data.draw(places))

    assert repr(rows(cut.out)) == repr(rows(whole.out))
    assert repr(rows(cut.final)) == repr(rows(whole.final))


changes = st.tuples(st.integers(-20, 20), st.sampled_from("abc"), st.integers(1, 9))
looks = st.tuples(st.just("look"), st.integers(-30, 25))
care = st.one_of(st.just(("trim",)), st.tuples(st.just("forget"), st.integers(-20, 20)))


@given(st.integers(2, 24), st.integers(0, 30), st.lists(st.one_of(changes, changes, looks, looks, care), max_size=60))
def test_blocks_may_be_kept_changed_and_forgotten_in_any_order(number, entries_max, acts):
    """(P1), (P2): whatever was done before, a window shows what its panes hold."""
    state, held = DictState(), {}
    panes = Panes(sum_(), Sliding(number, 1), state, "op", entries_max=entries_max)
    for act in acts:
        if act[0] == "look":
            expected = {}
            for pane in range(act[1], act[1] + number):
                for key, value in held.get(pane, {}).items():
                    expected[key] = expected.get(key, 0) + value
            assert panes.window(act[1]) == expected
            assert [panes.one(act[1], key) for key in "abc"] == [expected.get(key) for key in "abc"]
        elif act[0] == "trim":
            panes.trim()
            assert sum(map(len, panes._blocks.values())) <= entries_max
        elif act[0] == "forget":
            panes.forget(act[1])
        else:
            pane, key, value = act
            held.setdefault(pane, {})[key] = held.get(pane, {}).get(key, 0) + value
            state.put(pane, key, held[pane][key])
            panes.change(pane, [key])


@given(st.integers(-100, 100), st.integers(0, 200))
def test_blocks_are_few_and_make_up_the_panes_in_order(first, number):
    blocks = list(blocks_of(first, first + number))

    panes = [pane for level, n in blocks for pane in range(n << level, (n + 1) << level)]
    assert panes == list(range(first, first + number))
    assert len(blocks) <= 2 * number.bit_length()


@given(windows(), st.integers(-100, 100))
def test_a_pane_lies_whole_in_the_windows_that_hold_its_records(windows, time):
    made = Sliding(**windows)
    pane = made.start(time)
    expected = [start for start in range(-600, 200) if (start - made.offset) % made.slide == 0]

    assert made.pane == gcd(made.size, made.slide)
    for inside in range(pane, pane + made.pane):
        assert list(made.holding(inside)) == [start for start in expected if start <= inside < start + made.size]


def test_with_one_pane_it_is_a_tumbling_window_and_shares_its_state():
    fold = aggregate(0, lambda acc, value: acc + value)  # needs no merge
    assert WindowOperator(Sliding(10, 10), fold).kept == WindowOperator(Tumbling(10), fold).kept
    assert WindowOperator(Sliding(10, 5), count()).kept != WindowOperator(Tumbling(10), count()).kept


def test_a_record_changes_one_pane_however_many_windows_it_is_in():
    driver = sliding({"size": 1440, "slide": 1}, count)
    driver.batch(Batch([0, 0], [5, 5], ["k", "k"]))

    assert driver.part.states["windows"].spaces == {5: {"k": 2}}


def test_a_pane_goes_with_the_last_window_that_needs_it():
    driver = sliding({"size": 30, "slide": 10}, count, lateness=5)
    driver.batch(Batch([0], [5], ["k"]))
    driver.watermark_to(33)
    assert driver.part.states["windows"].spaces == {0: {"k": 1}}

    driver.watermark_to(34)
    assert driver.part.states["windows"].spaces == {}
    assert [row[3] for row in rows(driver.out)] == [(-20, 10), (-10, 20), (0, 30)]


def test_a_record_in_a_gap_is_late_only_by_its_own_time():
    driver = sliding({"size": 5, "slide": 20}, count, lateness=3)
    driver.batch(Batch(["gap", "in"], [10, 20], ["k", "k"]))
    driver.watermark_to(12)
    driver.batch(Batch(["gap"], [10], ["k"]))
    assert driver.late == [] and driver.operator.late_records == 0

    driver.watermark_to(13)
    driver.batch(Batch(["gap"], [10], ["k"]))
    assert [row[1] for row in rows(driver.late)] == ["gap"]


def test_at_the_edges_of_time_windows_are_cut():
    driver = sliding({"size": 20, "slide": 10, "offset": 3}, count)
    driver.batch(Batch([0, 0], [MIN_TIME, MAX_TIME], ["k", "k"]))
    driver.watermark_to(MAX_TIME)

    # One that ends 1 ms behind the start of time is over before anything began.
    shown = [(row[2], row[3]) for row in rows(driver.out)]
    assert all(MIN_TIME <= start < end <= MAX_TIME and time == end - 1 for time, (start, end) in shown)
    assert len(shown) == 3 and driver.part.states["windows"].spaces == {}


def test_stretches_of_time_without_records_are_skipped():
    life = Lifecycle(Sliding(30, 10), lateness=0)
    life.advance(0)
    life.register(10**15)

    fire, go = life.advance(MAX_TIME)
    assert fire == go == [10**15 - 20, 10**15 - 10, 10**15]
    assert life.release() == [10**15]


def test_a_pane_is_open_fired_or_gone_by_its_windows():
    life = Lifecycle(Sliding(20, 10), lateness=2)
    phases = []
    for watermark in (8, 9, 10, 11, 18, 19, 20, 21):
        life.advance(watermark)
        phases.append(life.phase(0).value)

    assert phases == ["open", "fired", "fired", "open", "open", "fired", "fired", "gone"]
    assert Lifecycle(Sliding(5, 20), lateness=0).phase(10) is Phase.GAP


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": -2000, "slide": 1000}, "size of at least 1 ms"),
        ({"size": 10, "slide": 0}, "slide of 0 ms"),
        ({"size": 10, "slide": 5, "offset": 5}, "not inside the slide"),
        ({"size": 10, "slide": 5, "offset": -5}, "not inside the slide"),
    ],
)
def test_windows_without_sense_are_refused(settings, message):
    with pytest.raises(PipelineError, match=message):
        Sliding(**settings)


def test_durations_are_written_as_anywhere():
    assert str(Sliding("1h", slide="1min", offset="5s")) == "sliding 1h every 1min from 5s"
    assert Sliding("1h", "1min") == Sliding(3_600_000, 60_000)


def test_an_error_in_a_merge_names_the_operator_and_both_accumulators():
    driver = sliding({"size": 10, "slide": 5}, max_)
    driver.batch(Batch([1, "a"], [1, 6], ["k", "k"]))
    with pytest.raises(BadRecord, match=r"operator job/op\[0\].*\(1, 'a'\).*merging two panes of max\(\)"):
        driver.watermark_to(20)
