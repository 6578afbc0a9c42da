"""A process dies at every point, and at random times; what is shown is always right in the end.

The full runs are in README.md; these are what is affordable each time: every point with one partition, some with four,
and a storm with each.
"""

import pytest

from tests.crash.hunt import Hunt
from tests.crash.storm import Storm

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("command", ["append", "run"])
def test_at_every_point_a_process_may_die(server, tmp_path, chance, say, command):
    hunt = Hunt(server, tmp_path, 1, chance)
    hunt.list_points()
    hunt.sweep(command)
    say(repr(hunt))
    assert not hunt.unkilled(command), "each point was reached, and a process died there"
    assert hunt.kills.keys() >= {target for target in MUST_BE_REACHED if target[0] == command}, (
        "points went missing: is something no longer behind the ports?"
    )


MUST_BE_REACHED = {
    (command, f"{side} {point}")
    for command, point in [
        ("append", "write log/submissions/#/#.segment"),
        ("append", "sync log/submissions/#/#.segment"),
        ("append", "store log/submissions/#/durable_end"),
        ("append", "rename log/submissions/topic.json"),
        ("append", "truncate log/submissions/#/#.segment"),
        ("append", "write log/submissions/#/#.segment.#.torn"),
        ("run", "Store.commit"),
        ("run", "Store.begin_attempt"),
        ("run", "Store.identity"),
        ("run", "Job._check_plan"),
        ("run", "Job._open_store"),
        ("run", "read log/submissions/#/#.segment"),
        ("run", "write log/late/#/#.segment"),
        ("run", "sync log/late/#/#.segment"),
        ("run", "store log/late/#/durable_end"),
        ("run", "write log/late/#/#.segment.#.torn"),
        ("run", "lock jobs/quiz-counts/v#/job.lock"),
    ]
    for side in ("before", "after")
} | {
    ("run", f"inside Store.commit, behind {rows}")
    for rows in ("state", "rows", "view", "regions", "journal", "pending", "checkpoints")
}


def test_some_points_with_four_partitions(server, tmp_path, chance, say):
    hunt = Hunt(server, tmp_path, 4, chance)
    hunt.list_points()
    hunt.at_random(30)
    say(repr(hunt))


@pytest.mark.parametrize("partitions", [1, 4])
def test_at_random_times_under_load_most_often_with_output_pending(server, tmp_path, chance, say, partitions):
    kills = 15
    storm = Storm(server, tmp_path / "world", partitions, chance)
    storm.run(kills)
    say(repr(storm))
    assert sum(killed.pending for killed in storm.kills) > kills * 2 // 3
    assert sum(killed.mid_epoch for killed in storm.kills) > kills // 2
