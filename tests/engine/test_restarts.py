"""Restart intensity: pure, so a minute of failures takes no time."""

from random import Random

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


def test_no_restarts_means_that_the_first_failure_is_final():
    assert intensity(restarts_max=0).on_failure(0.0) is None


def test_the_wait_doubles_up_to_its_limit_and_half_of_it_is_random():
    restarts = intensity(restarts_max=10, backoff_first=1.0, backoff_max=4.0)
    waits = [restarts.on_failure(0.0) for _ in range(5)]
    for wait, ceiling in zip(waits, [1, 2, 4, 4, 4], strict=True):
        assert ceiling / 2 <= wait <= ceiling
    assert len(set(waits)) == 5
