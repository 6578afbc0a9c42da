"""Recovery, decided: what is kept, cut, written anew, or refused."""

import pytest

from streamactors.core.errors import Damaged
from streamactors.durable.frames import NOTHING, Records, Stamp, encode_frame
from streamactors.durable.segment import (
    HEAD_BYTES,
    SegmentHead,
    decode_head,
    encode_head,
    recover,
    segment_bases,
    segment_name,
    walk,
)
from streamactors.durable.tables import encode_changes

HEAD = SegmentHead(bytes(range(16)), base=10, time=50)


def segment(*appends, head=HEAD):
    """Return a segment's bytes and the positions behind its frames."""
    data = encode_head(head)
    ends = []
    offset = head.base
    for records in (NOTHING, *appends):
        data += encode_frame(records, first=offset, time=60, extras=b"", segment=head.id, position=len(data))
        offset += records.count
        ends.append(len(data))
    return data, ends


def read_of(data):
    return lambda offset, size: bytes(data[offset : offset + size])


def recovered(data, promised=0):
    return recover(read_of(data), len(data), HEAD, promised, "seg")


A, B = Records.of([b"a1", b"a2"]), Records.of([b"b" * 700])


def test_a_tail_torn_at_any_byte_is_cut_where_the_frame_before_it_ends():
    data, (_, a, b) = segment(A, B)
    for size in range(a, b):
        found = recovered(data[:size], promised=12)
        assert (found.position, found.offset, found.torn) == (a, 12, size - a)
        assert found.rewrite == a, "what was promised is synced"


def test_whole_frames_past_the_durable_end_are_kept_and_written_anew():
    data, (tables, a, b) = segment(A, B)

    assert (recovered(data, 10).rewrite, recovered(data, 12).rewrite, recovered(data, 13).rewrite) == (tables, a, b)
    assert all(recovered(data, promised).offset == 13 for promised in (10, 12, 13))


def test_a_frame_without_records_is_written_anew_because_the_end_does_not_tell():
    stamped = encode_changes([], [Stamp("j", "s", "i", 1, 0, 1)])
    data, (_, a) = segment(A)
    data += encode_frame(NOTHING, first=12, time=60, extras=stamped, segment=HEAD.id, position=len(data))
    found = recovered(data, promised=12)

    assert (found.rewrite, found.position) == (a, len(data))
    assert found.tables.last_stamp("j", "s") == Stamp("j", "s", "i", 1, 0, 1)


def test_damage_before_the_durable_end_is_refused_at_any_byte():
    data, (tables, a, _) = segment(A, B)
    for position in range(tables, a):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(Damaged, match=rf"seg at position {tables}: offsets 10 to 11 were durable"):
            recovered(damaged, promised=12)


def test_a_whole_frame_behind_a_bad_one_is_bit_rot_and_refused():
    """L2: the bad one was synced before the other was begun, so it was promised, whatever the durable end says."""
    data, (tables, a, _) = segment(A, B)
    for position in range(tables, a):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(Damaged, match=f"a whole frame follows at {a}"):
            recovered(damaged)


def test_a_frame_inside_a_torn_payload_is_not_taken_for_a_following_one():
    inner = segment(A)[0]
    data, (_, a, b) = segment(A, Records.of([inner, inner[HEAD_BYTES:]]))

    assert recovered(data[: b - 1]).position == a


def test_a_head_or_tables_that_do_not_check_out_are_refused():
    data, (tables, _) = segment(A)
    for position in range(HEAD_BYTES):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(Damaged):
            decode_head(damaged, "seg")
    for position in range(HEAD_BYTES, tables):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(Damaged):
            recovered(damaged)


def test_frames_larger_than_a_read_are_walked_whole():
    large = Records.of([b"x" * 1_500_000])
    data, ends = segment(large, A, large)

    assert [frame.behind for frame in walk(read_of(data), HEAD.id, HEAD_BYTES)] == ends


def test_names_sort_by_offset_and_give_it_back():
    assert segment_bases([segment_name(7), "writer.lock", segment_name(100), "x.segment.9.torn"]) == [7, 100]
