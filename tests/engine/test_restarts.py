"""Restart intensity: pure, so a minute of failures takes no time."""

from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.errors import UsageError
from streamactors.engine.restarts import RestartIntensity, RestartPolicy


def intensity(**policy):
    return RestartIntensity(RestartPolicy(**policy), Random(1))


def test_failures_within_the_limit_are_answered_with_a_wait():
    restarts = intensity(restarts_max=3, window=60.0)
    assert all(restarts.on_failure(float(second)) is not None for second in range(3))


def test_one_more_failure_in_the_window_gives_up():
    restarts = intensity(restarts_max=3, window=60.0)
    for second in range(3):
        restarts.on_failure(float(second))
    assert restarts.on_failure(3.0) is None


def test_failures_older_than_the_window_are_forgotten():
    restarts = intensity(restarts_max=1, window=60.0)
    assert restarts.on_failure(0.0) is not None
    assert restarts.on_failure(60.0) is not None
    assert restarts.on_failure(61.0) is None


@pytest.mark.parametrize("policy", [{"restarts_max": 0}, {"scope": "none"}, {"scope": "none", "restarts_max": 9}])
def test_no_restarts_means_that_the_first_failure_is_final(policy):
    assert intensity(**policy).on_failure(0.0) is None


def test_a_failure_exactly_a_window_ago_counts_no_longer_and_one_just_inside_does():
    for second, gives_up in ((60.0, False), (59.999, True)):
        restarts = intensity(restarts_max=1, window=60.0)
        restarts.on_failure(0.0)
        assert (restarts.on_failure(second) is None) is gives_up


def test_a_failure_that_gave_up_counts_as_well():
    """A supervisor that asks again is not given another series."""
    restarts = intensity(restarts_max=1, window=60.0)
    assert [restarts.on_failure(second) is None for second in (0.0, 30.0, 59.0, 89.0, 119.1)] == [
        False, True, True, True, True,
    ]  # fmt: skip


def test_without_a_window_a_failure_never_meets_another_one():
    restarts = intensity(restarts_max=1, window=0.0)
    assert all(restarts.on_failure(0.0) is not None for _ in range(3))


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(0, 6), st.floats(0, 60))
def test_it_gives_up_exactly_when_the_window_holds_more_failures_than_restarts(gaps, limit, window):
    restarts, times = intensity(restarts_max=limit, window=window), list(accumulate(gaps))
    for number, now in enumerate(times):
        inside = 1 + sum(time > now - window for time in times[:number])
        assert (restarts.on_failure(now) is None) == (inside > limit)


def test_the_wait_stays_a_number_however_many_restarts_are_allowed():
    restarts = intensity(restarts_max=5_000, backoff_first=0.1, backoff_max=10.0)
    assert all(restarts.on_failure(0.0) <= 10.0 for _ in range(3_000))


def test_no_backoff_is_no_wait():
    assert intensity(backoff_first=0.0).on_failure(0.0) == 0.0
    assert intensity(backoff_max=0.0).on_failure(0.0) == 0.0


@pytest.mark.parametrize(
    "wrong", [{"scope": "some"}, {"restarts_max": -1}, {"window": -0.1}, {"backoff_first": float("nan")}]
)
def test_a_policy_that_can_not_be_followed_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RestartPolicy(**wrong)


def test_the_wait_doubles_up_to_its_limit_and_half_of_it_is_random():
    restarts = intensity(restarts_max=10, backoff_first=1.0, backoff_max=4.0)
    waits = [restarts.on_failure(0.0) for _ in range(5)]
    for wait, ceiling in zip(waits, [1, 2, 4, 4, 4], strict=True):
        assert ceiling / 2 <= wait <= ceiling
    assert len(set(waits)) == 5
