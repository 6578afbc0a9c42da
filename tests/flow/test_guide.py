"""What a journal that is followed says next, however its rows and ours are cut."""

from random import Random

import pytest

from streamactors.core.batch import Batch
from streamactors.flow.guide import Guide
from streamactors.flow.sequencing import PartitionPosition, Position, Sequencing, joined


def position():
    return Position([PartitionPosition("a", 0), PartitionPosition("a", 1)])


def decided(random):
    """Return a journal as its checkpoints have cut it: a list of rows for each epoch."""
    sequencing, clock = Sequencing(position(), step=10), 0
    epochs = []
    for _ in range(12):
        for _ in range(random.randint(0, 6)):
            partition = sequencing.partitions["a", random.choice([0, 0, 0, 1])]
            kind = random.choice(["read", "read", "read", "idle", "clock"])
            if kind == "read":
                read(sequencing, partition.partition, random.randint(1, 5))
            elif kind == "idle":
                list(sequencing.idle(("a", partition.partition)))
            else:
                clock += 1
                list(sequencing.mark(clock))
        epochs.append(sequencing.take_journal())
    return epochs, sequencing.position


def read(sequencing, number, count):
    first = sequencing.partitions["a", number].offset
    offsets = range(first, first + count)
    list(sequencing.admit(("a", number), Batch(list(offsets), list(offsets), offsets=offsets), first + count))


def do(sequencing, guide, random):
    """Do a part of what comes next."""
    kind, *rest = guide.next
    if kind == "read":
        _, number, _, end = rest
        read(sequencing, number, random.randint(1, end - sequencing.partitions["a", number].offset))
    elif kind == "idle":
        list(sequencing.idle(tuple(rest)))
    else:
        list(sequencing.mark(*rest))


@pytest.mark.parametrize("seed", range(30))
def test_who_follows_comes_to_the_same_position_and_writes_the_same_journal(seed):
    """Fed epoch by epoch, done in pieces, stopped and begun again at any point."""
    random = Random(seed)
    epochs, reached = decided(random)
    sequencing, written = Sequencing(position(), step=10), []
    guide, fed = Guide(sequencing.position), 0
    while fed < len(epochs) or guide.next is not None:
        if random.random() < 0.1:  # a restart: all is fed again, as far as it was there
            guide = Guide(sequencing.position)
            for rows in epochs[:fed]:
                guide.feed(rows)
        if random.random() < 0.2:  # a checkpoint of our own
            written += sequencing.take_journal()
        if guide.next is None or (fed < len(epochs) and random.random() < 0.3):
            guide.feed(epochs[fed])
            fed += 1
        else:
            do(sequencing, guide, random)
    assert sequencing.position == reached
    whole = [row for rows in epochs for row in rows]
    assert list(joined(written + sequencing.take_journal())) == list(joined(whole))


def test_a_range_that_has_grown_goes_on_where_it_was_left():
    sequencing = Sequencing(position(), step=10)
    guide = Guide(sequencing.position)
    guide.feed([("read", "a", 0, 0, 5)])
    read(sequencing, 0, 5)
    assert guide.next is None
    guide.feed([("read", "a", 0, 5, 8), ("clock", 1)])
    assert guide.next == ("read", "a", 0, 5, 8)
    read(sequencing, 0, 3)
    assert guide.next == ("clock", 1)


def test_a_position_is_found_again_in_the_journal_of_one_who_followed():
    """Rows are cut elsewhere there; entries are not."""
    sequencing = Sequencing(position(), step=10)
    read(sequencing, 0, 4)
    list(sequencing.mark(1))
    read(sequencing, 0, 2)
    cut_elsewhere = [("read", "a", 0, 0, 1), ("read", "a", 0, 1, 4), ("clock", 1), ("read", "a", 0, 4, 9)]
    guide = Guide(sequencing.position)
    guide.feed(cut_elsewhere)
    assert guide.next == ("read", "a", 0, 4, 9)
