"""The window operator against a plain record-by-record script, however it is cut and wherever it is restored."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.core.keys import canonical_key, encode_key
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.core.times import MAX_TIME
from streamactors.flow.aggregates import aggregate, count, max_, mean, min_, reduce_, several, sum_
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Tumbling
from tests.flow.fakes import Driver, StoredPart, rows
from tests.flow.window_script import Script, assert_equal, left_fold, run_operator, run_script

SIZE = 10


AGGREGATES = {
    "count": (count, len),
    "sum": (sum_, left_fold),
    "min": (min_, min),
    "max": (max_, max),
    "mean": (mean, lambda values: left_fold(values) / len(values)),
    "reduce": (lambda: reduce_(lambda a, b: a - b), lambda values: values[0] - left_fold(values[1:])),
    "list": (lambda: aggregate([], lambda acc, value: [*acc, value]), list),
    "several": (
        lambda: several(n=count(), total=sum_(), least=min_(), mean=mean()),
        lambda v: {"n": len(v), "total": left_fold(v), "least": min(v), "mean": left_fold(v) / len(v)},
    ),
}

KEYS = [canonical_key(key) for key in ("a", "b", 1, None, ("a", 1), True)]
whole_or_half = st.integers(-50, 50).map(lambda n: n / 2 if n % 2 else n // 2)
records = st.tuples(st.just("record"), whole_or_half, st.integers(-40, 60), st.sampled_from(KEYS))
listeners = st.sampled_from([frozenset({"out"}), frozenset({"final"}), frozenset({"out", "final", "late"})])
signals = st.one_of(
    st.tuples(st.just("watermark"), st.one_of(st.integers(-50, 90), st.just(MAX_TIME))),
    st.tuples(st.just("clock"), st.integers(0, 40)),
    st.tuples(st.just("flush")),
)
steps = st.lists(st.one_of(records, records, records, signals), max_size=40)
variants = st.sampled_from(
    [
        {"lateness": 0, "early_every": None},
        {"lateness": 15, "early_every": None},
        {"lateness": 0, "early_every": 5},
        {"lateness": 7, "early_every": 5},
    ]
)


@given(steps, variants, listeners, st.sampled_from(sorted(AGGREGATES)), st.data())
def test_any_cut_and_any_restart_equal_the_plain_script(steps, variant, outputs, name, data):
    """(T2) and the operator's half of (T1), order included."""
    make, fold = AGGREGATES[name]
    places = st.sets(st.integers(0, max(0, len(steps) - 1)))
    cut_after, restore_after = data.draw(places), data.draw(places)
    script = Script(fold, size=SIZE, **variant)
    driver = Driver(lambda: WindowOperator(Tumbling(SIZE), make(), outputs=outputs, **variant))

    run_script(script, steps)
    run_operator(driver, steps, cut_after, restore_after)

    assert_equal(driver, script, outputs)


@settings(max_examples=40)
@given(steps, variants, listeners, st.sampled_from(sorted(AGGREGATES)), st.data())
def test_a_crash_goes_back_to_the_checkpoint_in_a_real_store_and_repeats_the_same(steps, variant, outputs, name, data):
    make, fold = AGGREGATES[name]
    checkpoint = data.draw(st.integers(0, len(steps)))
    crash = data.draw(st.integers(checkpoint, len(steps)))
    cut_after = data.draw(st.sets(st.integers(0, max(0, len(steps) - 1))))
    script = Script(fold, size=SIZE, **variant)
    run_script(script, steps)

    with TemporaryDirectory() as folder:
        part = StoredPart(Path(folder))
        driver = Driver(lambda: WindowOperator(Tumbling(SIZE), make(), outputs=outputs, **variant), part)
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


def operator(**settings):
    return Driver(lambda: WindowOperator(Tumbling(SIZE), count(), **settings))


def one(time, key="k", value=0):
    return Batch([value], [time], [key])


def test_float_sums_do_not_depend_on_cuts():
    values = [0.1, 1e100, 0.2, -1e100, 0.3]
    whole, cut = (Driver(lambda: WindowOperator(Tumbling(SIZE), sum_())) for _ in range(2))
    whole.batch(Batch(values, [1] * 5, ["k"] * 5))
    for value in values:
        cut.batch(one(1, value=value))
    whole.watermark_to(9)
    cut.watermark_to(9)

    assert rows(whole.out) == rows(cut.out) == [("k", left_fold(values), 9, (0, 10), Kind.ON_TIME, None)]


def test_a_final_result_comes_when_the_state_goes():
    driver = operator(lateness=5, outputs=frozenset({"final"}))
    driver.batch(one(3))
    driver.watermark_to(13)
    driver.batch(one(4))
    assert driver.out == driver.final == []

    driver.watermark_to(14)
    assert rows(driver.final) == [("k", 2, 9, (0, 10), Kind.FINAL, None)]


def test_what_nobody_listens_to_keeps_no_state():
    driver = operator(lateness=5, early_every=10, outputs=frozenset({"final"}))
    driver.batch(one(3))

    assert driver.operator.early_every is None and set(driver.part.states) == {"windows"}


def test_state_of_a_window_that_is_gone_is_dropped():
    driver = operator(lateness=5, early_every=10)
    driver.batch(one(3))
    driver.watermark_to(14)

    assert driver.part.states["windows"].spaces == {} and driver.part.states["changed"].spaces == {}


def test_a_late_record_keeps_all_its_columns():
    driver = operator()
    driver.watermark_to(9)
    origin = object()
    driver.batch(Batch(["x", "y"], [3, 30], ["a", "b"], offsets=range(7, 9), origin=origin))

    (late,) = driver.late
    assert (late.values, late.timestamps, late.keys, list(late.offsets), late.origin) == (
        ["x"],
        [3],
        ["a"],
        [7],
        origin,
    )


def test_a_key_that_comes_first_after_the_firing_is_a_correction():
    driver = operator(lateness=100)
    driver.watermark_to(9)
    driver.batch(one(3))
    driver.watermark_to(50)

    assert rows(driver.out) == [("k", 1, 9, (0, 10), Kind.CORRECTION, None)]


def test_clock_marks_inside_one_period_show_nothing_new():
    driver = operator(lateness=1, early_every=100)
    driver.clock(100)
    driver.batch(one(3))
    driver.clock(150)
    assert driver.out == []

    driver.clock(450)  # marks may jump over periods
    assert [row[4] for row in rows(driver.out)] == [Kind.EARLY]


def test_large_firings_come_in_batches_of_the_usual_size():
    driver = operator()
    driver.batch(Batch(list(range(3000)), [1] * 3000, list(range(3000))))
    driver.watermark_to(9)

    assert [len(batch) for batch in driver.out] == [BATCH_RECORDS_MAX, 3_000 - BATCH_RECORDS_MAX]
    assert [row[0] for row in rows(driver.out)] == sorted(range(3000), key=encode_key)


def test_an_empty_batch_changes_nothing():
    driver = operator()
    driver.batch(Batch([], [], []))
    assert driver.part.states["windows"].spaces == {}


def test_a_bad_value_names_operator_and_place():
    class Origin:
        source, partition = "clicks", 2

    driver = Driver(lambda: WindowOperator(Tumbling(SIZE), sum_("n")))
    values = [{"n": 1}, {"n": 1}, {"n": "2"}, {"n": 1}]
    batch = Batch(values, [11, 1, 12, 13], ["k"] * 4, offsets=[5, 6, 7, 8], origin=Origin())

    with pytest.raises(BadRecord, match=r"operator job/op\[0\].*'2'.*clicks/2 at offset 7.*TypeError"):
        driver.batch(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_every": 0}, "at least 1 ms"),
        ({"lateness": -1}, "negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(PipelineError, match=message):
        WindowOperator(Tumbling(SIZE), count(), **settings)
