"""What may be called next and what may leave, without a call: any order of answers, any room downstream."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.batch import Batch, Kind
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.core.signals import Barrier, Watermark
from streamactors.flow.in_flight import Answered, InFlight

DELETED = "deleted"


class Line:
    """A stage and its workers in one: takes, calls and answers as a seed says, and checks what leaves."""

    def __init__(self, messages, capacity, *, ordered, seed):
        self.flight = InFlight(capacity, ordered=ordered)
        self.random = Random(seed)
        self.messages = messages  # (sequence, Batch or signal)
        self.called, self.left = [], []
        self.begun = self.passed = 0
        self.calling = []

    def run(self):
        while self.messages or self.flight.rows or self.step_leave(room=True):
            self.random.choice([self.step_take, self.step_call, self.step_answer, self.step_leave])()
        return self.left

    def step_take(self):
        if self.messages and self.flight.has_room:
            assert self.flight.rows < self.flight.capacity + BATCH_RECORDS_MAX, "A2"
            self.flight.take(*self.messages.pop(0))

    def step_call(self):
        row = self.flight.begin(0.0)
        if row is not None:
            self.calling.append(row)
            self.called.append(row[0].batch.values[row[1]])
        assert self.flight.calling == len(self.calling) <= self.flight.capacity, "A1"

    def step_answer(self):
        if self.calling:
            row = self.calling.pop(self.random.randrange(len(self.calling)))
            self.flight.answer(row, row[0].batch.values[row[1]])

    def step_leave(self, room=None):
        left = self.flight.leave(self.begun, room=self.random.random() < 0.7 if room is None else room)
        if left is not None:
            assert left.sequence >= self.begun and left.sequence > self.passed, "A3"
            self.begun = left.sequence
            self.left.append(left)
        passed = self.flight.passed
        self.passed = max(self.passed, self.passed if passed is None else passed)
        return left is not None


def messages_of(pieces):
    """Number the pieces: a list of rows is a batch, an int is a signal."""
    messages, row = [], 0
    for sequence, piece in enumerate(pieces, 1):
        if isinstance(piece, int):
            messages.append((3 * sequence, Watermark(piece)))
            continue
        values = list(range(row, row + len(piece)))
        row += len(piece)
        kinds = [Kind.DELETE if deleted else Kind.UPDATE for deleted in piece]
        messages.append((3 * sequence, Batch(values, offsets=values, kinds=kinds)))
    return messages


pieces = st.lists(st.one_of(st.integers(0, 9), st.lists(st.booleans(), max_size=6)), max_size=14)
capacities = st.integers(1, 5)
seeds = st.integers(0, 2**32)


@given(pieces, capacities, seeds)
def test_in_sequence_all_leaves_as_it_came_in_whatever_order_it_answers(pieces, capacity, seed):
    messages = messages_of(pieces)
    line = Line(list(messages), capacity, ordered=True, seed=seed)
    left = [(at, what.batch if isinstance(what, Answered) else what) for at, what in line.run()]
    assert left == [(at, what) for at, what in messages if not isinstance(what, Batch) or what.values]
    for _, message in line.left:
        if isinstance(message, Answered):
            kinds = message.batch.kinds
            assert message.results == [
                None if kind == Kind.DELETE else value for kind, value in zip(kinds, message.batch.values, strict=True)
            ]


@given(pieces, capacities, seeds)
def test_as_answered_no_row_passes_a_signal_and_none_is_lost(pieces, capacity, seed):
    def sections(messages):
        found = [[]]
        for _, message in messages:
            if isinstance(message, Watermark):
                found += [message, []]
            else:
                batch = message.batch if isinstance(message, Answered) else message
                found[-1] += zip(batch.values, batch.offsets, strict=True)
        return [sorted(section) if isinstance(section, list) else section for section in found]

    messages = messages_of(pieces)
    expected = sections(messages)
    assert sections(Line(list(messages), capacity, ordered=False, seed=seed).run()) == expected


@given(pieces, capacities, seeds)
def test_rows_are_called_in_their_order_once_each_and_never_a_delete(pieces, capacity, seed):
    line = Line(messages_of(pieces), capacity, ordered=seed % 2 == 0, seed=seed)
    line.run()
    deleted = [flag for piece in pieces if isinstance(piece, list) for flag in piece]
    assert line.called == [row for row, flag in enumerate(deleted) if not flag]


def begun(flight, *rows):
    """Begin calls for all rows; return them by their value."""
    found = {}
    while (row := flight.begin(0.0)) is not None:
        found[row[0].batch.values[row[1]]] = row
    return [found[value] for value in rows]


def test_calls_begin_across_signals_and_results_do_not_pass_them():
    flight = InFlight(9)
    for sequence, message in enumerate([Batch(["a"]), Barrier(1, 1), Batch(["b"])], 1):
        flight.take(sequence, message)
    a, b = begun(flight, "a", "b")
    flight.answer(b, "B")
    assert flight.leave(0, room=True) is None and flight.passed == 0
    flight.answer(a, "A")
    assert [flight.leave(0, room=True).sequence for _ in range(3)] == [1, 2, 3]
    assert flight.passed is None


def test_as_answered_a_fast_row_does_not_wait_for_the_number_of_a_slow_one():
    """Its receiver may take it: the number of what is still called is a later one."""
    flight = InFlight(9, ordered=False)
    flight.take(5, Batch(["slow"]))
    flight.take(6, Batch(["fast"]))
    slow, fast = begun(flight, "slow", "fast")
    flight.answer(fast, "F")
    left = flight.leave(0, room=True)
    assert (left.sequence, left.message.batch.values, left.message.results) == (5, ["fast"], ["F"])
    assert flight.leave(5, room=True) is None and flight.passed == 5
    flight.answer(slow, "S")
    assert flight.leave(5, room=True).sequence == 6


def test_a_number_is_not_begun_without_room_and_not_left_in_the_middle():
    flight = InFlight(9)
    flight.take(4, Batch(["a"]))
    flight.take(4, Batch(["b"]))
    for row in begun(flight, "a", "b"):
        flight.answer(row, None)
    assert flight.leave(3, room=False) is None
    assert flight.leave(3, room=True).sequence == 4
    assert flight.leave(4, room=False).sequence == 4


def test_a_slow_call_does_not_let_answers_pile_up_behind_it():
    flight = InFlight(2)
    taken = 0
    while flight.has_room:
        taken += 1
        flight.take(taken, Batch([taken]))
        if (row := flight.begin(float(taken))) is not None and taken > 1:
            flight.answer(row, None)
    assert taken == 2 + BATCH_RECORDS_MAX
    assert flight.oldest == 1.0
