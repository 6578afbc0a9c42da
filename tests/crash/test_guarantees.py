"""What each guarantee promises about kills, held against real ones."""

import pytest

from tests.crash.guarantees import measure

pytestmark = pytest.mark.crash
KILLS = 10


@pytest.fixture
def killed(server, tmp_path, chance, say):
    def killed(guarantee):
        found = measure(server, tmp_path, chance, guarantee, KILLS)
        say(repr(found))
        assert found.sent > 10 * KILLS, "the job was killed under load"
        assert found.in_order
        return found

    return killed


def test_exactly_once_neither_loses_nor_repeats(killed):
    assert killed("exactly-once").exact


def test_at_least_once_loses_nothing_and_does_repeat(killed):
    found = killed("at-least-once")
    assert found.lost == 0
    assert found.repeated > 0, "a kill between two checkpoints repeats what was written at once"
    assert found.counted_less == found.counted_more == 0, "state goes back with the position: it counts right"


def test_at_most_once_repeats_nothing_and_does_lose(killed):
    found = killed("at-most-once")
    assert found.repeated == found.counted_more == 0
    assert found.lost > 0, "what came while it was down is skipped"
