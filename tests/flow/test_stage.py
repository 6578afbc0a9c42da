"""The stage: the life of a barrier, room, and shuffles, with operators and stores that a test can watch."""

import asyncio
from itertools import pairwise

import pytest

from streamactors.core.batch import Batch
from streamactors.core.keys import encode_key, key_group
from streamactors.core.limits import BATCH_RECORDS_MAX, KEY_GROUPS
from streamactors.core.signals import Barrier, ClockMark, End, Flush, Watermark
from streamactors.core.times import MAX_TIME
from streamactors.durable.realtime import RealClock
from streamactors.durable.store import Delta
from streamactors.engine.mailbox import Channel
from streamactors.flow.operator import Operator
from streamactors.flow.stage import Chain, Forward, Shuffle, Stage, groups_of_part, part_of_group


class Watched(Operator):
    """Passes everything on and notes what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_batch(self, batch):
        self.calls.append(list(batch.values))
        self.emit(batch)

    def on_watermark(self, time):
        self.calls.append(("watermark", time))
        self.emit(Batch([f"fired at {time}"]))

    def on_clock(self, time):
        self.calls.append(("clock", time))

    def on_flush(self):
        self.calls.append("flush")


class Store:
    """A Durable that takes *slices* calls to encode."""

    full = False

    def __init__(self, slices=1):
        self.slices = slices
        self.left = 0
        self.noted = []

    def freeze(self, epoch):
        self.left = self.slices
        self.noted.append(("freeze", epoch))

    def encode(self, entries):
        self.left -= 1
        return self.left <= 0

    def hand_over(self):
        return [Delta("d")]

    def committed(self, epoch):
        self.noted.append(("committed", epoch))


def stage_of(*operators, holds=None, durables=()):
    for operator, following in pairwise(operators):
        operator.emit = following.on_batch
    chain = Chain(list(operators), [operators[0].on_batch], holds or [0] * len(operators), list(durables))
    stage = Stage("s", chain, clock=RealClock(), interval=1.0)
    source = Channel("in", lambda: None, stage.wake)
    sink = Channel("out", stage.wake, lambda: None)
    stage.inputs, stage.outputs = [source], [sink]
    operators[-1].emit = Forward(stage, sink)
    handed = []
    stage.hand_over = lambda name, epoch, deltas: handed.append((name, epoch, len(deltas)))
    return stage, source, sink, handed


async def run(stage):
    """Let the stage do all that it can do now with what was put."""
    for channel in stage.inputs:
        if channel._items:
            channel.advance(channel._items[-1][0])
    while await stage.step():
        pass


def contents(channel):
    taken = []
    while channel.head is not None:
        sequence, message, _, _ = channel.take()
        taken.append((sequence, message.values if isinstance(message, Batch) else message))
    return taken


async def test_what_an_operator_emits_at_a_signal_reaches_the_next_before_the_signal_does():
    first, second = Watched(), Watched()
    stage, source, sink, _ = stage_of(first, second)
    source.put(1, Watermark(9))
    await run(stage)
    assert second.calls == [["fired at 9"], ("watermark", 9)]
    assert contents(sink) == [(1, ["fired at 9"]), (1, ["fired at 9"]), (1, Watermark(9))]


async def test_an_operator_behind_final_windows_sees_a_watermark_that_is_held_back():
    first, second = Watched(), Watched()
    stage, source, _, _ = stage_of(first, second, holds=[0, 30])
    source.put(1, Watermark(99))
    source.put(2, Watermark(MAX_TIME))
    await run(stage)
    assert [call for call in second.calls if call[0] == "watermark"] == [("watermark", 69), ("watermark", MAX_TIME)]


async def test_clock_marks_and_flushes_reach_every_operator_and_go_on():
    watched = Watched()
    stage, source, sink, _ = stage_of(watched)
    source.put(1, ClockMark(5))
    source.put(2, Flush())
    await run(stage)
    assert watched.calls == [("clock", 5), "flush"]
    assert contents(sink) == [(1, ClockMark(5)), (2, Flush())]


async def test_a_barrier_is_forwarded_before_anything_is_encoded_and_handed_over_when_all_is():
    store = Store(slices=3)
    stage, source, sink, handed = stage_of(Watched(), durables=[store])
    source.put(1, Barrier(1, 7))
    source.put(2, Batch(["a"]))
    source.advance(2)
    await stage.step()
    assert contents(sink) == [(1, Barrier(1, 7))]
    assert handed == []
    await run(stage)
    assert contents(sink) == [(2, ["a"])]
    assert handed == [("s", 7, 1)]


async def test_stores_are_told_of_a_commit_between_two_messages():
    store = Store()
    stage, source, _, _ = stage_of(Watched(), durables=[store])
    source.put(1, Barrier(1, 7))
    await run(stage)
    stage.committed(7)
    await run(stage)
    assert store.noted == [("freeze", 7), ("committed", 7)]


async def test_a_second_barrier_before_the_first_was_handed_over_breaks_b1():
    stage, source, _, _ = stage_of(Watched(), durables=[Store(slices=100)])
    source.put(1, Barrier(1, 7))
    source.put(2, Barrier(1, 8))
    with pytest.raises(AssertionError, match="B1"):
        await run(stage)


async def test_a_stage_takes_nothing_while_an_output_is_full_and_goes_on_when_there_is_room():
    watched = Watched()
    stage, source, sink, _ = stage_of(watched)
    sink.pace(16)
    for sequence in range(1, 4):
        source.put(sequence, Batch(["x"] * 16), 16)
    await run(stage)
    assert len(watched.calls) == 1
    sink.take()
    await run(stage)
    assert len(watched.calls) == 2


async def test_a_full_output_does_not_keep_frozen_entries_from_being_encoded():
    store = Store(slices=5)
    stage, source, sink, handed = stage_of(Watched(), durables=[store])
    source.put(1, Barrier(1, 7))
    source.advance(1)
    await stage.step()
    sink.pace(16)
    sink.put(2, "full", 16)
    await run(stage)
    assert handed == [("s", 7, 1)]


async def test_a_stage_passes_on_that_nothing_comes():
    stage, source, sink, _ = stage_of(Watched())
    source.advance(5)
    await run(stage)
    assert sink.progress == 5


async def test_the_end_comes_after_the_last_hand_over():
    stage, source, sink, handed = stage_of(Watched(), durables=[Store(slices=4)])
    source.put(1, Barrier(1, 7))
    source.put(2, End())
    source.advance(2)
    await stage.run()
    assert handed == [("s", 7, 1)]
    assert contents(sink) == [(1, Barrier(1, 7)), (2, End())]


async def test_a_store_that_is_full_calls_for_an_epoch():
    store, pressed = Store(), []
    store.full = True
    stage, source, _, _ = stage_of(Watched(), durables=[store])
    stage.press = lambda: pressed.append(1)
    source.put(1, Batch(["a"]), 1)
    await run(stage)
    assert pressed == [1]


async def test_a_slow_stage_asks_for_smaller_mailboxes():
    class Slow(Operator):
        def on_batch(self, batch):
            clock.now += 1.0  # a second for each batch

    class Clock(RealClock):
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    stage, source, _, _ = stage_of(Slow())
    stage._clock = clock
    source.put(1, Batch(["x"] * 100), 100)
    await run(stage)
    assert source.records_max == 100  # what it handles in the second between two checkpoints


async def test_a_stage_whose_reader_is_slow_is_slow_itself():
    stage, source, sink, _ = stage_of(Watched())
    sink.pace(50)
    source.put(1, Batch(["x"]), 1)
    await run(stage)
    assert source.records_max == 50


def test_key_groups_are_shared_out_whole_and_evenly():
    for parts in (1, 2, 3, 4, 7, 128):
        owned = [list(groups_of_part(part, parts)) for part in range(parts)]
        assert [group for groups in owned for group in groups] == list(range(KEY_GROUPS))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


async def test_a_shuffle_sends_each_key_to_the_part_that_owns_its_group_in_order():
    stage, _, _, _ = stage_of(Watched())
    channels = [Channel(str(part), stage.wake, lambda: None) for part in range(4)]
    shuffle = Shuffle(stage, channels)
    keys = [f"k{i % 9}" for i in range(50)]
    stage.sequence = 1
    shuffle(Batch(list(range(50)), keys=keys))
    seen = []
    for part, channel in enumerate(channels):
        for _, values in contents(channel):
            assert values == sorted(values)
            assert {part_of_group(key_group(encode_key(keys[v])), 4) for v in values} == {part}
            seen += values
    assert sorted(seen) == list(range(50))


async def test_a_stage_lets_others_have_the_loop():
    stage, source, sink, _ = stage_of(Watched())
    sink.records_max = 10**9
    for sequence in range(1, 20):
        source.put(sequence, Batch(["x"] * BATCH_RECORDS_MAX), BATCH_RECORDS_MAX)
    turns = []

    async def other():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await run(stage)
    task.cancel()
    assert len(turns) >= 10


async def test_rows_of_one_piece_that_come_from_several_parts_are_in_the_order_of_their_records_again():
    """Else where a piece was cut, which is a matter of timing, would show in a topic (T2)."""
    watched = Watched()
    stage, first, _, _ = stage_of(watched)
    second = Channel("second", lambda: None, stage.wake)
    stage.inputs = [first, second]
    first.put(1, Batch(["a", "d", "d2"], offsets=[0, 3, 3]), 3)
    second.put(1, Batch(["b", "c", "e"], offsets=[1, 2, 4]), 3)
    await run(stage)
    assert watched.calls == [["a", "b", "c", "d", "d2", "e"]]


async def test_rows_that_came_from_no_record_stay_in_the_order_of_the_parts():
    watched = Watched()
    stage, first, _, _ = stage_of(watched)
    second = Channel("second", lambda: None, stage.wake)
    stage.inputs = [first, second]
    second.put(1, Batch(["fired there"]), 1)
    first.put(1, Batch(["fired here"]), 1)
    await run(stage)
    assert watched.calls == [["fired here"], ["fired there"]]
