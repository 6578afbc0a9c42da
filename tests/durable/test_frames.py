"""Frames: what is written comes back, and nothing else is ever taken for it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.errors import StorageError, UsageError
from streamactors.core.limits import APPEND_RECORDS_MAX, RECORD_BYTES_MAX
from streamactors.durable import frames
from streamactors.durable.frames import (
    HEADER_BYTES,
    Records,
    body_checks_out,
    decode_extras,
    decode_header,
    decode_records,
    encode_frame,
)

SEGMENT = bytes(range(16))
VALUES = st.lists(st.binary(max_size=20) | st.just(b"\n") | st.just(b""), min_size=1, max_size=20)


def encode(records, position=64, segment=SEGMENT, extras=b"", first=5):
    return encode_frame(records, first=first, time=99, extras=extras, segment=segment, position=position)


def decode(data, position=64, segment=SEGMENT):
    """Return the records in *data*, or None if it is no frame there."""
    header = decode_header(data, 0, segment, position)
    if header is None or not body_checks_out(header, data, 0):
        return None
    return decode_records(header, data, 0)


@given(VALUES, st.data())
def test_values_and_keys_come_back_as_they_were(values, data):
    keys = data.draw(
        st.none() | st.lists(st.none() | st.binary(max_size=5), min_size=len(values), max_size=len(values))
    )
    records = decode(encode(Records.of(values, keys)))

    assert records.column.values() == values
    if keys is None or all(key is None for key in keys):
        assert records.key_column is None
    else:
        assert records.key_column.values() == keys


@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=5))
def test_joined_records_are_the_parts_in_order(parts):
    """Group commit and the reader join: parts with keys, without, with newlines and without."""
    made = [Records.of(values, [b"k%d" % i for i in range(len(values))] if keyed else None) for values, keyed in parts]
    joined = decode(encode(Records.join(made)))

    assert joined.column.values() == [value for values, _ in parts for value in values]
    if joined.key_column is not None:
        expected = [b"k%d" % i if keyed else None for values, keyed in parts for i in range(len(values))]
        assert joined.key_column.values() == expected


def test_values_without_newlines_store_no_lengths():
    lines = encode(Records.of([b"ab", b"c"]))
    assert lines.endswith(b"ab\nc\n") and len(lines) == HEADER_BYTES + 5

    assert len(encode(Records.of([b"a\n", b"c"]))) == HEADER_BYTES + 5 + 2 * 4


def test_lines_are_taken_as_they_are():
    assert encode(Records.from_lines(b"ab\nc\n", 2)) == encode(Records.of([b"ab", b"c"]))


def test_what_a_line_encoder_made_is_not_looked_through():
    values = [{"text": "a\nb"}, "", None]
    made = Records.from_json_lines(msgspec.json.Encoder().encode_lines(values), 3)

    assert [msgspec.json.decode(value) for value in decode(encode(made)).column.values()] == values
    with pytest.raises(UsageError, match="don't end with a newline"):
        Records.from_json_lines(b"1", 1)


@pytest.mark.parametrize(("blob", "count"), [(b"a\nb", 2), (b"a\nb\n", 3), (b"a\nb\n", 1), (b"", 1)])
def test_lines_that_are_not_what_they_are_said_to_be_are_refused(blob, count):
    with pytest.raises(UsageError, match="lines"):
        Records.from_lines(blob, count)


def test_an_empty_value_is_marked_because_line_decoders_skip_it():
    assert Records.of([b"1", b"2"]).column.nonempty
    assert not Records.of([b"1", b""]).column.nonempty
    assert not Records.from_lines(b"1\n\n", 2).column.nonempty


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Records.of([]), "0 records"),
        (lambda: Records.of([b"x"] * (APPEND_RECORDS_MAX + 1)), "65,537 records"),
        (lambda: Records.of([bytes(RECORD_BYTES_MAX + 1)]), "16,777,217"),
        (lambda: Records.of([bytes(RECORD_BYTES_MAX)] * 3), "Split it"),
        (lambda: Records.of([b"x"], [b"k", b"l"]), "2 keys for 1 values"),
    ],
)
def test_what_is_too_much_is_refused_with_its_size(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def frame_of_every_section():
    return encode(Records.of([b"a\nb", b"", b"c"], [b"k\n", None, b""]), extras=b"extras")


def test_a_flipped_bit_anywhere_leaves_no_frame():
    """In header or body, each bit: an error or nothing, never a wrong record."""
    frame = frame_of_every_section()
    assert decode(frame) is not None
    for position in range(len(frame)):
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[position] ^= 1 << bit
            assert decode(bytes(damaged)) is None, (position, bit)


def test_a_frame_cut_anywhere_is_no_frame():
    frame = frame_of_every_section()
    for size in range(len(frame)):
        assert decode(frame[:size]) is None


def test_a_frame_at_another_place_or_of_another_segment_is_no_frame():
    """F1: so a frame inside a user's payload is not taken for one, wherever it was copied from."""
    inner = frame_of_every_section()
    assert decode(inner, position=65) is None
    assert decode(inner, segment=bytes(16)) is None

    outer = encode(Records.of([inner]))
    at = outer.index(inner)
    assert decode_header(outer, at, SEGMENT, 64 + at) is None


def test_what_a_frame_changes_in_the_tables_is_checked_with_it():
    frame = frame_of_every_section()
    assert decode_extras(decode_header(frame, 0, SEGMENT, 64), frame, 0) == b"extras"


def test_a_newer_format_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr(frames, "FORMAT_VERSION", 3)
    frame = encode(Records.of([b"x"]))
    monkeypatch.undo()

    with pytest.raises(StorageError, match="version 3, this release reads up to 2"):
        decode(frame)
