"""Positions that are kept for good: sparse, thinned out by age, in the transaction of their checkpoint."""

from itertools import pairwise
from random import Random

import pytest

from streamactors.core.limits import POSITION_GAP_MS, POSITIONS_DENSE
from streamactors.durable.positions import gone_with, is_due
from streamactors.durable.store import Checkpoint, Store


def test_the_gap_between_neighbours_is_a_small_share_of_their_age_and_their_number_grows_slowly():
    kept, newest = {}, 200_000
    for number in range(newest + 1):
        kept[number] = True
        gone = gone_with(number)
        if gone is not None:
            del kept[gone]
        if number in (1_000, 20_000, newest):
            held = list(kept)
            assert held[0] == 0
            for before, after in pairwise(held[1:]):
                assert after - before <= max(1, 2 * (number - before) / POSITIONS_DENSE)
    assert len(kept) < 2_000
    assert held[-POSITIONS_DENSE:] == list(range(newest + 1 - POSITIONS_DENSE, newest + 1))


def test_a_short_stream_has_positions_inside_it_and_a_long_one_no_more_than_one_a_minute():
    kept = [0]
    for horizon in range(1_000, 24 * 3_600_000, 1_000):
        if is_due(kept[0], kept[-1], horizon):
            kept.append(horizon)
    assert sum(horizon < 60_000 for horizon in kept) > 50
    assert len(kept) < 24 * 60 + 500
    assert all(b - a <= POSITION_GAP_MS for a, b in pairwise(kept))


@pytest.mark.parametrize("seed", range(5))
def test_each_that_is_kept_is_that_of_its_checkpoint_and_only_event_time_makes_one(tmp_path, seed):
    random, horizon, made = Random(seed), None, {}
    with Store.open(tmp_path, sync=False) as store:
        attempt = store.begin_attempt("r")
        for epoch in range(1, 400):
            if epoch > 20 and random.random() < 0.7:
                horizon = (horizon or 0) + random.choice((0, 1_000, 30_000, 90_000))
            made[epoch] = (horizon, [epoch])
            store.commit(Checkpoint("r", attempt, epoch, position=[epoch], horizon=horizon))
        kept = store.positions("r")
        assert store.positions("none") == []
    assert [(one.horizon, one.position) for one in kept] == [made[one.epoch] for one in kept]
    assert kept[0].horizon == min(h for h, _ in made.values() if h is not None)
    last = [one.horizon for one in kept]
    assert last == sorted(set(last)) and horizon - last[-1] < POSITION_GAP_MS
