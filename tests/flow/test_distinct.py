"""Distinct against a plain list of what has passed, however it is cut and wherever it is restored."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.keys import canonical_key
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.flow.distinct import (
    Distinct,
    DistinctByClock,
    DistinctByEventTime,
    KeyWithin,
    clock_period,
    distinct,
    no_keys,
    outer_keys,
    same_keys,
)
from tests.flow.fakes import Driver, StoredPart, rows
from tests.flow.window_script import run_operator

KEYS = [canonical_key(key) for key in ("a", "b", 1, ("a", 1), True, None)]
records = st.tuples(st.just("record"), st.integers(0, 9), st.integers(-40, 60), st.sampled_from(KEYS))
watermarks = st.tuples(st.just("watermark"), st.one_of(st.integers(-50, 90), st.just(MAX_TIME)))
clocks = st.tuples(st.just("clock"), st.integers(0, 300))
steps = st.lists(st.one_of(records, records, records, watermarks, clocks), max_size=60)
ttls = st.one_of(st.integers(1, 40), st.just(1000))


def by_event_time(steps, ttl):
    """Return the offsets of what passes: each record is compared with all that passed before."""
    watermark, passed, kept = MIN_TIME, [], []
    for offset, (step, *arguments) in enumerate(steps):
        if step == "watermark":
            watermark = max(watermark, arguments[0])
        elif step == "record":
            _, time, key = arguments
            time = max(time, watermark)
            if not any(other == key and abs(time - at) < ttl for other, at in passed):
                passed.append((key, time))
                kept.append(offset)
    return kept


def by_clock(steps, ttl):
    """The same by the marks: a record's time is that of the next mark in a new tenth of the time to live."""
    period, passed, kept = None, [], []
    for offset, (step, *arguments) in enumerate(steps):
        if step == "clock":
            (now,) = arguments
            if now // clock_period(ttl) != period:
                period = now // clock_period(ttl)
                passed = [(key, now if at is None else at) for key, at in passed]
                passed = [(key, at) for key, at in passed if now - at < ttl]
        elif step == "record" and arguments[2] not in [key for key, _ in passed]:
            passed.append((arguments[2], None))
            kept.append(offset)
    return kept


def for_ever(steps, _ttl):
    seen, kept = set(), []
    for offset, (step, *arguments) in enumerate(steps):
        if step == "record" and arguments[2] not in seen:
            seen.add(arguments[2])
            kept.append(offset)
    return kept


FORMS = {
    "event time": (DistinctByEventTime, by_event_time),
    "clock": (DistinctByClock, by_clock),
    "for ever": (lambda ttl: Distinct(), for_ever),
}


def in_order(steps):
    """Marks of the clock never go back, as the sequencer gives them."""
    times = iter(sorted(step[1] for step in steps if step[0] == "clock"))
    return [("clock", next(times)) if step[0] == "clock" else step for step in steps]


def passed(driver):
    return [row[5] for row in rows(driver.out)]


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMS)), steps, ttls, st.data())
def test_any_cut_and_any_restart_equal_the_plain_list(form, steps, ttl, data):
    """(T2) and the operator's half of (T1)."""
    make, oracle = FORMS[form]
    steps = in_order(steps)
    places = st.sets(st.integers(0, max(0, len(steps) - 1)))
    driver = Driver(lambda: make(ttl))
    run_operator(driver, [("flush",), *steps], data.draw(places), data.draw(places), first=-1)

    assert passed(driver) == oracle(steps, ttl)


@settings(max_examples=40)
@given(st.sampled_from(sorted(FORMS)), steps, ttls, st.data())
def test_a_crash_goes_back_to_the_checkpoint_in_a_real_store(form, steps, ttl, data):
    make, oracle = FORMS[form]
    steps = in_order(steps)
    checkpoint = data.draw(st.integers(0, len(steps)))
    crash = data.draw(st.integers(checkpoint, len(steps)))
    with TemporaryDirectory() as folder:
        driver = Driver(lambda: make(ttl), StoredPart(Path(folder)))
        run_operator(driver, steps[:checkpoint], (), ())
        driver.checkpoint()
        seen, watermark = len(driver.out), driver.watermark
        run_operator(driver, steps[checkpoint:crash], (), (), first=checkpoint)

        del driver.out[seen:]
        driver.watermark = watermark
        driver.crash()
        run_operator(driver, steps[checkpoint:], (), range(0, len(steps), 3), first=checkpoint)
        driver.part.store.close()

    assert passed(driver) == oracle(steps, ttl)


def record(time, key="k"):
    return Batch([key], [time], [key], offsets=[time])


def test_time_to_live_counts_from_the_record_that_passed_and_ends_exactly():
    driver = Driver(lambda: DistinctByEventTime(100))
    for time in (50, 60, 149, 150, 160):
        driver.batch(record(time))

    assert passed(driver) == [50, 150]


def test_a_record_out_of_order_is_judged_by_its_own_time():
    driver = Driver(lambda: DistinctByEventTime(100))
    for time in (500, 450, 401, 400, 350):
        driver.batch(record(time))

    assert passed(driver) == [500, 400]


def test_late_repeats_of_a_forgotten_record_pass_once():
    driver = Driver(lambda: DistinctByEventTime(10))
    driver.batch(record(0))
    driver.watermark_to(100)
    for _ in range(3):
        driver.batch(record(1))

    assert passed(driver) == [0, 1]


def test_what_can_not_matter_any_more_is_forgotten():
    driver = Driver(lambda: DistinctByEventTime(10))
    driver.batch(Batch([0] * 3, [0, 9, 25], ["a", "b", "c"]))
    driver.watermark_to(18)
    assert sorted(driver.part.states["distinct"].spaces) == [0, 2]

    driver.watermark_to(19)
    assert sorted(driver.part.states["distinct"].spaces) == [2]
    driver.watermark_to(MAX_TIME)
    assert driver.part.states["distinct"].spaces == {}


def test_after_a_silent_night_a_record_is_dated_by_the_mark_that_follows_it():
    """By the mark before, it would be forgotten at once, and its repeat would pass."""
    driver = Driver(lambda: DistinctByClock(100))
    driver.clock(10)
    driver.batch(record(1))
    for mark in (20, 120):
        driver.clock(mark)
    assert driver.part.states["distinct"].spaces == {}

    driver.batch(record(2))
    driver.clock(10_000)
    driver.batch(record(3))
    driver.clock(10_099)
    driver.batch(record(4))
    driver.clock(10_100)
    driver.batch(record(5))
    assert passed(driver) == [1, 2, 5]


def test_columns_stay_and_windows_end():
    driver = Driver(lambda: Distinct(no_keys))
    batch = Batch(list("aba"), [1, 2, 3], list("aba"), windows=[(0, 9)] * 3, kinds=[Kind.FINAL] * 3, offsets=[4, 5, 6])
    driver.batch(batch)

    (out,) = driver.out
    assert (out.values, out.timestamps, out.keys, out.windows, out.kinds, list(out.offsets)) == (
        ["a", "b"],
        [1, 2],
        None,
        None,
        None,
        [4, 5],
    )


def test_within_a_key_records_are_told_apart_by_what_is_selected():
    outer = [canonical_key(key) for key in ("u", "u", ("u", 1), "v", ("u", 1))]
    keyed, driver = Driver(lambda: KeyWithin("id")), Driver(lambda: Distinct(outer_keys))
    keyed.batch(Batch([{"id": n} for n in (1, 1, 1, 1, 1)], keys=outer))
    driver.batch(keyed.out[0])

    assert driver.out[0].keys == [outer[0], outer[2], outer[3]]


def test_nothing_is_emitted_where_nothing_passes():
    driver = Driver(Distinct)
    driver.batch(record(1))
    driver.batch(record(2))
    driver.batch(Batch([], [], []))

    assert len(driver.out) == 1


@pytest.mark.parametrize("event_time", [True, False])
def test_forms_of_distinct_don_t_share_state(event_time):
    shapes = {str(distinct(ttl, event_time=event_time, give=same_keys).kept) for ttl in (None, 5, 6)}
    shapes.add(str(distinct(5, event_time=not event_time, give=same_keys).kept))

    assert len(shapes) == 4
