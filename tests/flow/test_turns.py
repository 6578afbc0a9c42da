"""What takes long is done in turns: the loop is others' between them, and the result is that of one go."""

from random import Random

import pytest

from streamactors.core.batch import Batch
from streamactors.core.keys import encode_key
from streamactors.core.limits import TURN_ENTRIES
from streamactors.core.ordering import in_order
from streamactors.core.signals import ClockMark, Flush, Watermark
from streamactors.flow.aggregates import count
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Tumbling
from tests.flow.fakes import Driver, StoredPart, rows

KEYS = 3 * TURN_ENTRIES + 17
SIGNALS = [Watermark(50), ClockMark(1_000), Flush(), ClockMark(1_001), Watermark(99), Watermark(150), Watermark(199)]


def keys(random):
    made = [random.choice([f"user-{n}", n, ("t", n)]) for n in range(KEYS)]
    random.shuffle(made)
    return made


@pytest.mark.parametrize("number", [0, 1, TURN_ENTRIES - 1, TURN_ENTRIES, KEYS])
def test_entries_come_in_the_order_of_their_encoded_keys_and_in_turns(number):
    entries = {key: position for position, key in enumerate(keys(Random(1))[:number])}
    pieces = list(in_order(entries.items()))
    found = [entry for piece in pieces for entry in piece]
    assert found == sorted(entries.items(), key=lambda entry: encode_key(entry[0]))
    assert len(pieces) >= number // TURN_ENTRIES


class Turned(Driver):
    """Handles signals as a stage does, and counts the turns."""

    turns = 0

    def signal(self, signal):
        for _ in self.operator.turns(signal):
            self.turns += 1


class AtOnce(Driver):
    def signal(self, signal):
        match signal:
            case Watermark(time):
                self.operator.on_watermark(time)
            case ClockMark(time):
                self.operator.on_clock(time)
            case Flush():
                self.operator.on_flush()


def run(driver, restarts):
    random = Random(2)
    made = keys(random)
    for first in range(0, KEYS, 1_000):
        part = made[first : first + 1_000]
        driver.batch(Batch([1] * len(part), [random.choice([10, 20, 110]) for _ in part], part))
    for signal in SIGNALS:
        if restarts:
            driver.restore()
        driver.signal(signal)
    return rows(driver.out), rows(driver.final)


def window():
    outputs = frozenset({"out", "final", "late"})
    return WindowOperator(Tumbling(100), count(), lateness=50, early_every=500, outputs=outputs)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_large_window_shows_in_turns_what_it_would_show_at_once(tmp_path, restarts):
    turned = Turned(window, StoredPart(tmp_path / "turned"))
    at_once = AtOnce(window, StoredPart(tmp_path / "at once"))
    assert run(turned, restarts) == run(at_once, restarts)
    assert turned.turns > 3 * KEYS // TURN_ENTRIES
    for driver in (turned, at_once):
        driver.part.store.close()


def test_a_small_window_has_no_turns(tmp_path):
    driver = Turned(window, StoredPart(tmp_path / "small"))
    driver.batch(Batch([1, 1], [10, 20], ["a", "b"]))
    for signal in SIGNALS:
        driver.signal(signal)
    assert driver.turns == 0
    assert len(rows(driver.final)) == 2
    driver.part.store.close()
