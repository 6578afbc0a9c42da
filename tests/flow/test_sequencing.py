"""Sequencing against a plain record-by-record watermark, and the rules of its journal.

The oracle knows nothing of batches or steps that are cut: it takes one record after the other and computes the
watermark anew for each. The same sequence, cut into batches of any size, must put every watermark behind the same
record (T2).
"""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.batch import Batch
from streamactors.core.signals import ClockMark, Flush, Watermark
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.flow.sequencing import Head, PartitionPosition, Position, Sequencing, choose, joined

STEP = 10


def sequencing(partitions=1, *, step=STEP, disorder=0, clock_longest=0):
    position = Position([PartitionPosition("s", number, disorder) for number in range(partitions)])
    return Sequencing(position, step=step, clock_longest=clock_longest)


def batch_of(times, first=0):
    return Batch([f"r{first + i}" for i in range(len(times))], list(times), offsets=range(first, first + len(times)))


def admit(sequence, partition, times):
    """Admit *times* as the next records of a partition; return what is sent, records by their times."""
    first = sequence.partitions["s", partition].offset
    messages = sequence.admit(("s", partition), batch_of(times, first), first + len(times))
    return [list(m.timestamps) if isinstance(m, Batch) else m for m in messages]


def flat(messages):
    """Return records and watermarks in order, without the cuts."""
    out = []
    for message in messages:
        out += message if isinstance(message, list) else [message]
    return out


class Plain:
    """The watermark, computed for one record after the other."""

    def __init__(self, partitions, disorder):
        self.greatest = dict.fromkeys(range(partitions), None)
        self.disorder = disorder
        self.idle = set()
        self.horizon = None

    def record(self, partition, time):
        self.idle.discard(partition)
        self.greatest[partition] = max(time, self.greatest[partition] if self.greatest[partition] is not None else time)
        return [time, *self.advance()]

    def advance(self):
        active = [self.greatest[p] for p in self.greatest if p not in self.idle]
        if not active:
            reach = max((g for g in self.greatest.values() if g is not None), default=None)
        else:
            reach = None if None in active else min(active)
        if reach is None:
            return []
        horizon = (reach - self.disorder) // STEP * STEP
        if self.horizon is not None and horizon <= self.horizon:
            return []
        self.horizon = horizon
        return [Watermark(horizon - 1)]


def test_the_watermark_comes_behind_the_record_that_passes_a_step():
    assert admit(sequencing(), 0, [1, 9, 10, 11, 25]) == [
        [1],
        Watermark(-1),
        [9, 10],
        Watermark(9),
        [11, 25],
        Watermark(19),
    ]


def test_a_batch_that_passes_no_step_is_not_cut():
    sequence = sequencing()
    admit(sequence, 0, [10])
    assert admit(sequence, 0, [11, 19, 12]) == [[11, 19, 12]]


def test_disorder_holds_the_watermark_back():
    sequence = sequencing(disorder=60)
    assert flat(admit(sequence, 0, [100, 129, 130])) == [100, Watermark(39), 129, Watermark(59), 130, Watermark(69)]


def test_an_active_partition_without_records_holds_the_watermark_at_the_start_of_time():
    sequence = sequencing(partitions=2)
    assert admit(sequence, 0, [5, 15, 25]) == [[5, 15, 25]]
    assert sequence.watermark == MIN_TIME


def test_the_slowest_active_partition_decides():
    sequence = sequencing(partitions=2)
    admit(sequence, 0, [100])
    assert admit(sequence, 1, [31, 32]) == [[31], Watermark(29), [32]]


def test_an_idle_partition_leaves_the_minimum_until_its_next_record():
    sequence = sequencing(partitions=2)
    admit(sequence, 0, [100])
    admit(sequence, 1, [31])
    assert list(sequence.idle(("s", 1))) == [Watermark(99)]
    assert admit(sequence, 1, [32]) == [[32]]
    assert admit(sequence, 0, [200]) == [[200]]  # partition 1 holds it back again
    assert sequence.watermark == 99


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_when_all_have_fallen_idle_the_latest_decides_in_whatever_order_they_fell(order):
    sequence = sequencing(partitions=2)
    admit(sequence, 0, [25])
    assert [message for number in order for message in sequence.idle(("s", number))] == [Watermark(19)]


def test_a_partition_that_falls_idle_twice_is_noted_once():
    sequence = sequencing(partitions=2)
    list(sequence.idle(("s", 1)))
    list(sequence.idle(("s", 1)))
    assert sequence.take_journal() == [("idle", "s", 1)]


def test_when_all_are_idle_event_time_goes_on_from_where_it_was():
    sequence = sequencing(disorder=5)
    admit(sequence, 0, [42])
    list(sequence.idle(("s", 0)))
    assert sequence.all_idle
    assert sequence.reach_when_idle == 37
    assert list(sequence.pace(39)) == []
    assert list(sequence.pace(41)) == [Watermark(39)]
    assert sequence.take_journal()[-1] == ("pace", 39)


def test_records_that_come_after_the_clock_has_moved_event_time_do_not_move_it_back():
    sequence = sequencing()
    admit(sequence, 0, [42])
    list(sequence.idle(("s", 0)))
    list(sequence.pace(100))
    assert admit(sequence, 0, [50]) == [[50]]
    assert sequence.watermark == 99


def test_negative_times_round_down():
    assert flat(admit(sequencing(), 0, [-15])) == [-15, Watermark(-21)]


def test_finish_ends_event_time():
    sequence = sequencing()
    assert list(sequence.finish()) == [Watermark(MAX_TIME)]
    assert sequence.watermark == MAX_TIME
    assert sequence.position.finished


def test_a_flush_moves_no_time():
    sequence = sequencing()
    admit(sequence, 0, [42])
    before = sequence.watermark
    assert list(sequence.flush()) == [Flush()]
    assert sequence.watermark == before


def test_without_event_time_batches_pass_whole():
    sequence = sequencing(step=None)
    batch = Batch(["a", "b"], offsets=range(2))
    assert list(sequence.admit(("s", 0), batch, 2)) == [batch]


def test_what_a_filter_dropped_still_counts_as_read():
    sequence = sequencing()
    assert list(sequence.admit(("s", 0), Batch([], [], offsets=()), 7)) == []
    assert sequence.partitions["s", 0].offset == 7
    assert sequence.take_journal() == [("read", "s", 0, 0, 7)]


def test_neighbouring_ranges_become_one_entry():
    sequence = sequencing(partitions=2)
    admit(sequence, 0, [1])
    admit(sequence, 0, [2, 3])
    admit(sequence, 1, [4])
    admit(sequence, 0, [5])
    assert sequence.take_journal() == [("read", "s", 0, 0, 3), ("read", "s", 1, 0, 1), ("read", "s", 0, 3, 4)]


def test_joining_ignores_where_checkpoints_cut_the_journal():
    entries = [("read", "s", 0, 0, 3), ("read", "s", 0, 3, 5), ("clock", 9), ["read", "s", 0, 5, 6]]
    whole = [("read", "s", 0, 0, 5), ("clock", 9), ("read", "s", 0, 5, 6)]
    assert list(joined(entries)) == whole


def test_clock_marks_stop_when_nothing_can_wait_for_them_any_more():
    sequence = sequencing(step=None, clock_longest=30)
    assert list(sequence.clock(10)) == []  # no record yet
    list(sequence.admit(("s", 0), Batch(["a"], offsets=range(1)), 1))
    marks = [mark for time in range(20, 100, 10) for mark in sequence.clock(time)]
    assert marks == [ClockMark(20), ClockMark(30), ClockMark(40), ClockMark(50)]


def test_a_record_before_a_restart_still_gets_its_clock_marks_after_it():
    """Else an early result that was due when the job stopped would wait for another record."""
    before = sequencing(step=None, clock_longest=30)
    list(before.admit(("s", 0), Batch(["a"], offsets=range(1)), 1))
    restored = msgspec.convert(msgspec.to_builtins(before.position), Position)
    after = Sequencing(restored, step=None, clock_longest=30)
    assert [mark for time in range(20, 100, 10) for mark in after.clock(time)] == [
        ClockMark(time) for time in (20, 30, 40, 50)
    ]


def test_the_clock_does_not_go_back():
    sequence = sequencing(step=None, clock_longest=30)
    list(sequence.admit(("s", 0), Batch(["a"], offsets=range(1)), 1))
    assert list(sequence.clock(20)) == [ClockMark(20)]
    assert list(sequence.clock(10)) == []
    with pytest.raises(AssertionError, match="S3"):
        list(sequence.mark(10))


times = st.lists(st.integers(-50, 400), min_size=1, max_size=60)


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(0, 25))
def test_any_cutting_gives_the_watermarks_of_the_plain_computation(seed, partitions, disorder):
    random = Random(seed)
    plain, expected, script = Plain(partitions, disorder), [], []
    clock = dict.fromkeys(range(partitions), 0)
    for _ in range(random.randrange(1, 80)):
        partition = random.randrange(partitions)
        if random.random() < 0.1:
            script.append(("idle", partition))
            plain.idle.add(partition)
            expected += plain.advance()
            continue
        clock[partition] += random.choice([0, 1, 1, 2, 15])
        time = clock[partition] - random.randrange(0, 30)
        script.append((partition, time))
        expected += plain.record(partition, time)

    sequence, got, pending = sequencing(partitions, disorder=disorder), [], []
    for step in [*script, ("end", None)]:
        if pending and (step[0] != pending[0][0] or random.random() < 0.3):
            got += flat(admit(sequence, pending[0][0], [time for _, time in pending]))
            pending = []
        if step[0] == "idle":
            got += list(sequence.idle(("s", step[1])))
        elif step[0] != "end":
            pending.append(step)
    assert got == expected


@given(times, st.data())
def test_a_position_restores_to_the_same_decisions(values, data):
    cut = data.draw(st.integers(0, len(values)))
    whole, half = sequencing(disorder=7), sequencing(disorder=7)
    expected = flat(admit(whole, 0, values))
    got = flat(admit(half, 0, values[:cut])) if cut else []
    position = msgspec.convert(msgspec.to_builtins(half.position), Position)
    resumed = Sequencing(position, step=STEP)
    got += flat(admit(resumed, 0, values[cut:])) if cut < len(values) else []
    assert got == expected


# What comes next. -----------------------------------------------------------------------------------------------------


def read_in_step(partitions, chunks, step=STEP):
    """Read all *partitions* to their ends through ``choose``, their batches cut as *chunks* says; return the order."""
    sequence = sequencing(len(partitions), step=step)
    waiting, order = {}, []
    cursor = dict.fromkeys(range(len(partitions)), 0)
    while True:
        heads = {}
        for number, values in enumerate(partitions):
            left = waiting.get(number)
            if left is None and cursor[number] < len(values):
                size = chunks(number)
                if size == 0:  # still being read
                    heads["s", number] = Head(None)
                    continue
                left = waiting[number] = (cursor[number], values[cursor[number] : cursor[number] + size])
                cursor[number] += len(left[1])
            if left is not None:
                heads["s", number] = Head(batch_of(left[1], left[0]), left[0] + len(left[1]))
        if not heads:
            return order
        choice = choose(sequence, heads, 4)
        if choice is None:
            continue
        (_, number), count = choice
        first, values = waiting.pop(number)
        assert 1 <= count <= len(values)
        order += [(number, first + i) for i in range(count)]
        list(sequence.admit(("s", number), batch_of(values[:count], first), first + count))
        if count < len(values):
            waiting[number] = (first + count, values[count:])


@given(st.lists(st.lists(st.integers(0, 200), max_size=30), min_size=1, max_size=3), st.integers(0, 2**32))
def test_the_order_of_a_backlog_is_a_function_of_its_content(partitions, seed):
    random = Random(seed)
    once = read_in_step(partitions, lambda _: 1_000)
    again = read_in_step(partitions, lambda _: random.choice([0, 1, 1, 2, 5]))
    assert once == again
    steps = []
    for number, offset in once:
        steps.append(max(partitions[number][: offset + 1]) // STEP)
    assert steps == sorted(steps)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(0, 2**32))
def test_without_event_time_partitions_take_turns_by_offset(lengths, seed):
    random = Random(seed)
    partitions = [[0] * length for length in lengths]
    once = read_in_step(partitions, lambda _: 1_000, step=None)
    assert once == read_in_step(partitions, lambda _: random.choice([0, 1, 3]), step=None)
    assert [offset // 4 for _, offset in once] == sorted(offset // 4 for _, offset in once)


def test_a_partition_that_is_still_read_is_waited_for_only_if_it_may_come_first():
    sequence = sequencing(partitions=2)
    admit(sequence, 0, [100])
    admit(sequence, 1, [5])
    ahead = Head(batch_of([101], 1), 2)
    assert choose(sequence, {("s", 0): ahead, ("s", 1): Head(None)}, 4) is None
    assert choose(sequence, {("s", 0): ahead}, 4) == (("s", 0), 1)
    behind = Head(batch_of([6], 1), 2)
    assert choose(sequence, {("s", 0): Head(None), ("s", 1): behind}, 4) == (("s", 1), 1)
