"""Fresh seeds of the simulated quiz pipeline. What must hold: streamactors/testing/quiz_simulation.py.

A seed that fails is printed with the command that replays it. STREAMACTORS_SEEDS says how many: 40 here,
200 in .ci/run, thousands by hand. STREAMACTORS_SEED says where they begin.
"""

import os
import sys

import pytest

from streamactors.testing.quiz_simulation import CRASH_POINTS
from streamactors.testing.simulate import crash_table, fresh_seed, simulate

COUNT = int(os.environ.get("STREAMACTORS_SEEDS", "40"))
FIRST = int(os.environ.get("STREAMACTORS_SEED", fresh_seed()))


@pytest.fixture(scope="module")
def reports():
    return [simulate(seed) for seed in range(FIRST, FIRST + COUNT)]


def test_views_and_late_topic_equal_the_oracle_whatever_happens(reports):
    """Each seed compares them all along, at the end, and once more when its journal is followed."""
    sys.stdout.write(f"\nseeds {FIRST} to {FIRST + COUNT - 1}; processes died at:\n{crash_table(reports)}\n")
    assert all(report.records for report in reports)


def test_the_seeds_went_where_it_hurts(reports):
    """Without this, a simulation that never crashes anything would pass."""
    died = {label for report in reports for label in report.crashes}
    if 4 * len(CRASH_POINTS) <= COUNT:  # fewer may not come to every point
        assert not set(CRASH_POINTS) - died

    assert len(died) > min(COUNT, len(CRASH_POINTS)) / 4
    assert sum(bool(report.crashes) for report in reports) > COUNT / 2
    assert sum(report.late for report in reports) > COUNT
    assert sum(report.looks for report in reports) > COUNT
    assert any(report.restarts for report in reports)


def test_a_seed_is_always_the_same_story():
    assert simulate(FIRST) == simulate(FIRST)
