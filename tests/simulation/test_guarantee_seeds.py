"""Fresh seeds of the relay under each guarantee. What must hold: streamactors/testing/relay_simulation.py."""

import os
import sys

import pytest

from streamactors.core.connectors import Guarantee
from streamactors.testing.simulate import fresh_seed, simulate_relay

COUNT = -(-int(os.environ.get("STREAMACTORS_SEEDS", "40")) // 5)
FIRST = int(os.environ.get("STREAMACTORS_SEED", fresh_seed()))


@pytest.mark.parametrize("guarantee", list(Guarantee))
def test_a_relay_keeps_its_guarantee_wherever_it_dies(guarantee):
    reports = [simulate_relay(seed, guarantee) for seed in range(FIRST, FIRST + COUNT)]
    total = {name: sum(getattr(report, name) for report in reports) for name in vars(reports[0])}
    sys.stdout.write(f"\n{guarantee.value}, seeds {FIRST} to {FIRST + COUNT - 1}: {total}\n")
    if COUNT >= 40:  # without this, a simulation that never crashes anything would pass
        assert total["crashes"] > COUNT and total["restarts"] and total["records"] > 10 * COUNT
        assert bool(total["repeated"]) == (guarantee is Guarantee.AT_LEAST_ONCE)
        assert bool(total["lost"]) == (guarantee is Guarantee.AT_MOST_ONCE)


def test_a_seed_is_always_the_same_story():
    first, second = (simulate_relay(FIRST, Guarantee.AT_LEAST_ONCE) for _ in range(2))
    assert first == second
