"""Window assignment and the life of a window, at the edges of time too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.errors import PipelineError
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.flow.windows import Lifecycle, Phase, Sliding, Tumbling

times = st.one_of(st.integers(-100, 100), st.integers(MIN_TIME, MIN_TIME + 50), st.integers(MAX_TIME - 50, MAX_TIME))


@given(times, st.integers(1, 30), st.data())
def test_a_window_holds_its_record_and_starts_on_the_grid(time, size, data):
    offset = data.draw(st.integers(1 - size, size - 1))
    windows = Tumbling(size, offset)
    start, end = windows.window(windows.start(time))

    assert MIN_TIME <= start <= time and (time < end or end == MAX_TIME)
    assert start == MIN_TIME or (start - offset) % size == 0
    assert end == MAX_TIME or (end - offset) % size == 0
    assert end - start <= size


@given(st.lists(times, min_size=1), st.integers(1, 30))
def test_split_gives_each_row_once_newest_window_first(timestamps, size):
    windows = Tumbling(size)
    split = windows.split(timestamps)

    assert list(split) == sorted(split, reverse=True)
    assert sorted(row for rows in split.values() for row in rows) == list(range(len(timestamps)))
    for start, rows in split.items():
        assert rows == sorted(rows) and {windows.start(timestamps[row]) for row in rows} == {start}


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (-5, 0), (10, 10), (10, -10)])
def test_windows_without_sense_are_refused(size, offset):
    with pytest.raises(PipelineError):
        Tumbling(size, offset)


def test_a_window_is_open_then_fired_then_gone():
    life = Lifecycle(Tumbling(10), lateness=5)
    assert life.register(0) and not life.register(0)

    assert life.advance(8) == ([], []) and life.phase(0) is Phase.OPEN
    assert life.advance(9) == ([0], []) and life.phase(0) is Phase.FIRED
    assert life.advance(13) == ([], []) and life.phase(0) is Phase.FIRED
    assert life.advance(14) == ([], [0]) and life.phase(0) is Phase.GONE


def test_a_watermark_that_goes_back_is_ignored():
    life = Lifecycle(Tumbling(10), lateness=0)
    life.advance(20)

    assert life.advance(5) == ([], []) and life.watermark == 20


def test_windows_fire_in_order_and_only_once():
    life = Lifecycle(Tumbling(10), lateness=100)
    for start in (20, 0, 10):
        life.register(start)

    assert life.advance(19) == ([0, 10], [])
    assert life.advance(29) == ([20], [])


def test_lateness_beyond_the_end_of_time_means_the_end_of_time():
    life = Lifecycle(Tumbling(10), lateness=MAX_TIME)
    life.register(0)

    assert life.advance(MAX_TIME - 1) == ([0], [])
    assert life.advance(MAX_TIME) == ([], [0])


def test_a_restored_life_goes_on_where_it_was():
    life, again = (Lifecycle(Tumbling(10), lateness=5) for _ in range(2))
    life.register(0)
    life.advance(9)
    again.restore(life.snapshot())

    assert again.held == [0] and again.open == [] and again.advance(14) == ([], [0])


def test_a_window_that_is_gone_is_never_asked_for_again():
    life = Lifecycle(Tumbling(10), lateness=0)
    life.advance(9)

    with pytest.raises(AssertionError, match="W2"):
        life.register(0)


@given(
    size=st.integers(1, 12),
    slide=st.integers(1, 12),
    offset=st.integers(-3, 3),
    lateness=st.integers(0, 9),
    since=st.integers(-20, 40),
    moves=st.lists(st.tuples(st.integers(-30, 60), st.booleans()), max_size=40),
)
def test_windows_that_begin_too_early_are_left_out_and_the_others_live_as_ever(
    size, slide, offset, lateness, since, moves
):
    """The oracle is a life that sees the same, and of which only the windows from *since* on are looked at."""
    windows = Sliding(size, slide, offset if abs(offset) < slide else 0)
    every, some = Lifecycle(windows, lateness), Lifecycle(windows, lateness, since=since)
    for time, is_watermark in moves:
        if is_watermark:
            fired, gone = every.advance(time)
            shown = some.advance(time)
            assert shown == ([s for s in fired if s >= since], [s for s in gone if s >= since])
            every.release()
            some.release()
            continue
        pane = windows.start(time)
        assert some.is_late(time) == (every.is_late(time) and windows.last(time) >= since)
        if windows.last(pane) < since:
            assert some.phase(pane) is Phase.GAP and not some.is_late(time)
            if every.phase(pane) in (Phase.OPEN, Phase.FIRED):
                continue  # of no window that is looked at
        elif windows.holding(pane):
            left = [start for start in every.fired(pane) if start >= since]
            assert list(some.fired(pane)) == left
            assert list(some.unfired(pane)) == [start for start in every.unfired(pane) if start >= since]
            if every.phase(pane) in (Phase.OPEN, Phase.FIRED):
                every.register(pane)
                some.register(pane)
            else:
                assert some.phase(pane) is every.phase(pane)
