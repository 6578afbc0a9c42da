"""The epoch's table: each transition, and each broken invariant by its name."""

import pytest

from streamactors.job.epochs import EpochLedger, EpochState


def ledger(last=0):
    return EpochLedger(["sequencer", "stage"], last=last)


def gathered(book):
    epoch = book.start()
    for member in book.members:
        book.hand_over(member, epoch)
    return epoch


def test_the_whole_life_of_an_epoch():
    book = ledger()
    epoch = book.start()
    assert book.state(epoch) is EpochState.ALIGNING
    assert not book.hand_over("stage", epoch)
    assert book.waiting_for == {"sequencer"}
    assert book.hand_over("sequencer", epoch)
    book.commit(epoch)
    assert book.state(epoch) is EpochState.COMMITTING
    book.committed(epoch)
    assert book.state(epoch) is EpochState.COMMITTED
    book.settle(epoch)
    assert book.state(epoch) is EpochState.SETTLED
    assert book.settled == epoch


def test_the_next_epoch_may_align_while_one_commits():
    book = ledger()
    book.commit(gathered(book))
    assert book.may_start
    assert gathered(book) == 2


def test_numbers_go_on_above_what_was_committed_before():
    assert ledger(last=41).start() == 42


def hand_over_twice(book):
    epoch = book.start()
    book.hand_over("stage", epoch)
    book.hand_over("stage", epoch)


def commit_early(book):
    epoch = book.start()
    book.hand_over("stage", epoch)
    book.commit(epoch)


def commit_two(book):
    book.commit(gathered(book))
    book.commit(gathered(book))


@pytest.mark.parametrize(
    ("misuse", "invariant"),
    [
        (lambda book: (book.start(), book.start()), "B1"),
        (commit_two, "B1"),
        (lambda book: (book.start(), book.hand_over("stage", 7)), "B3"),
        (hand_over_twice, "E1"),
        (lambda book: (book.start(), book.hand_over("stranger", 1)), "E1"),
        (commit_early, "E1"),
    ],
)
def test_a_broken_invariant_names_itself(misuse, invariant):
    with pytest.raises(AssertionError, match=invariant):
        misuse(ledger())
