"""Channels and the merge of several: pure, so the whole of (M1) to (M3) and (D1) is tested without a loop."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.limits import MAILBOX_BYTES_MAX
from streamactors.core.signals import Watermark
from streamactors.engine.mailbox import Channel, SequenceMerge


def channel(name="a", wakes=None):
    wakes = wakes if wakes is not None else []
    return Channel(name, lambda: wakes.append("sender"), lambda: wakes.append("receiver"))


def drain(merge):
    """Return (sequence, message) of all that can be taken now."""
    taken = []
    while (group := merge.next()) is not None:
        taken += [(group.sequence, batch) for batches in group.batches for batch in batches]
        if group.signal is not None:
            taken.append((group.sequence, group.signal))
    return taken


def test_a_mailbox_is_full_by_records():
    box = channel()
    box.pace(16)
    box.put(1, "batch", records=15)
    assert box.has_room
    box.put(2, "batch", records=1)
    assert not box.has_room


def test_a_mailbox_is_full_by_bytes():
    box = channel()
    box.put(1, "batch", records=1, size=MAILBOX_BYTES_MAX)
    assert not box.has_room


def test_an_empty_mailbox_has_room_however_large_what_it_held():
    box = channel()
    box.put(1, "huge", records=10**9, size=10**12)
    box.take()
    assert box.has_room


def test_what_one_sequence_number_emits_is_admitted_beyond_the_bound():
    """(D1) A sender asks for room before a number and never in the middle of it."""
    box = channel()
    box.pace(16)
    for _ in range(4):
        box.put(1, "batch", records=16)
    assert len(box) == 4
    assert not box.has_room


def test_the_sender_is_woken_when_room_comes_and_only_then():
    wakes = []
    box = channel(wakes=wakes)
    box.pace(16)
    box.put(1, "a", records=16)
    box.put(2, "b", records=1)
    wakes.clear()
    box.take()
    assert wakes == ["sender"]
    box.take()
    assert wakes == ["sender"]


def test_a_faster_receiver_gets_a_larger_mailbox_and_its_sender_hears_of_it():
    wakes = []
    box = channel(wakes=wakes)
    box.pace(16)
    box.put(1, "a", records=16)
    wakes.clear()
    box.pace(100)
    assert wakes == ["sender"]
    assert box.has_room


def test_progress_wakes_the_receiver_once_for_each_step_forward():
    wakes = []
    box = channel(wakes=wakes)
    box.advance(3)
    box.advance(3)
    box.advance(2)
    assert wakes == ["receiver"]
    assert box.progress == 3


@pytest.mark.parametrize(
    "misuse",
    [
        lambda box: box.put(5, "at the progress"),
        lambda box: (box.put(8, "ahead"), box.put(7, "back")),
    ],
)
def test_a_sequence_that_goes_back_names_the_invariant(misuse):
    box = channel()
    box.advance(5)
    with pytest.raises(AssertionError, match="M1"):
        misuse(box)


def test_a_receiver_has_at_least_one_channel():
    with pytest.raises(ValueError, match="at least 1"):
        SequenceMerge([])


def test_of_two_channels_the_lower_sequence_comes_first():
    a, b = channel("a"), channel("b")
    merge = SequenceMerge([a, b])
    b.put(1, "b1")
    b.advance(1)
    a.put(2, "a2")
    a.advance(2)
    assert drain(merge) == [(1, "b1")]  # b may still bring something for 2
    b.advance(2)
    assert drain(merge) == [(2, "a2")]


def test_a_sequence_number_is_taken_whole_in_the_order_of_the_channels():
    a, b = channel("a"), channel("b")
    merge = SequenceMerge([a, b])
    b.put(1, "b1")
    b.advance(1)
    assert merge.next() is None  # a may still bring 1
    a.put(1, "a1")
    assert merge.next() is None  # and more than this
    a.put(1, "more")
    a.advance(1)
    group = merge.next()
    assert group.batches == [["a1", "more", "b1"]]


def test_a_signal_comes_once_when_every_channel_has_brought_it_behind_what_it_made_them_emit():
    a, b = channel("a"), channel("b")
    merge = SequenceMerge([a, b])
    a.put(1, Watermark(9))
    a.advance(1)
    assert merge.next() is None
    b.put(1, "emitted at the signal")
    b.put(1, Watermark(9))
    b.advance(1)
    assert drain(merge) == [(1, "emitted at the signal"), (1, Watermark(9))]


@pytest.mark.parametrize("other", [None, Watermark(8)])
def test_a_signal_that_is_missing_or_another_on_a_channel_breaks_m3(other):
    a, b = channel("a"), channel("b")
    merge = SequenceMerge([a, b])
    a.put(1, Watermark(9))
    if other is not None:
        b.put(1, other)
    a.advance(1)
    b.advance(1)
    with pytest.raises(AssertionError, match="M3"):
        merge.next()


def test_the_progress_of_a_receiver_is_what_it_took_and_what_can_no_longer_come():
    a, b = channel("a"), channel("b")
    merge = SequenceMerge([a, b])
    a.advance(7)
    b.advance(5)
    assert merge.progress == 5
    b.put(6, "b6")
    b.advance(6)
    assert merge.progress == 5
    merge.next()
    assert merge.progress == 6


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 40))
def test_the_order_does_not_depend_on_the_speed_of_the_senders(seed, channels, numbers):
    """(M2) Any interleaving of the same puts gives the same groups."""
    random = Random(seed)
    script = [[] for _ in range(channels)]
    expected = []
    for sequence in range(1, numbers + 1):
        signal = random.random() < 0.2
        for index in range(channels):
            for copy in range(random.choice([0, 0, 1, 2])):
                script[index].append(("put", sequence, f"{index}.{copy}"))
                expected.append((sequence, f"{index}.{copy}"))
            if signal:
                script[index].append(("put", sequence, Watermark(sequence)))
            script[index].append(("advance", sequence))
        if signal:
            expected.append((sequence, Watermark(sequence)))
    boxes = [channel(str(index)) for index in range(channels)]
    merge = SequenceMerge(boxes)
    taken = []
    while any(script):
        index = random.choice([i for i in range(channels) if script[i]])
        step = script[index].pop(0)
        if step[0] == "put":
            boxes[index].put(*step[1:])
        else:
            boxes[index].advance(step[1])
        if random.random() < 0.5:
            taken += drain(merge)
    assert taken + drain(merge) == expected
    assert merge.progress == numbers
