"""Chunks: a part of a chunk is what the whole is at that place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.durable.chunk import Chunk, _line_end
from streamactors.durable.frames import Records

VALUES = st.lists(st.binary(max_size=30) | st.sampled_from([b"", b"\n", b"x" * 300]), min_size=1, max_size=60)
LINES = st.lists(st.text("ab", max_size=40).map(str.encode), min_size=1, max_size=200)


@given(VALUES | LINES, st.data())
def test_a_part_has_the_values_keys_and_bytes_of_its_place(values, data):
    keys = [None if i % 3 else b"%d" % i for i in range(len(values))]
    chunk = Chunk.of(100, Records.of(values, keys), ((100 + len(values), 5),))
    start = data.draw(st.integers(0, len(values)))
    count = data.draw(st.integers(0, len(values)))
    part = chunk.from_offset(100 + start).split(count)[0]
    expected = values[start : start + count]

    assert part.values() == expected and part.count == len(expected) == len(part)
    assert part.keys() == keys[start : start + count]
    assert part.blob == b"".join(value + b"\n" for value in expected) and part.size == len(part.blob)
    assert part.first == 100 + start and part.end == part.first + part.count
    assert part.append_times() == [5] * len(expected)
    assert [part.value(offset) for offset in range(part.first, part.end)] == expected


@given(VALUES | LINES, st.integers(1, 2_000))
def test_what_fits_is_the_most_whole_records_within_the_size(values, size):
    chunk = Chunk.of(0, Records.of(values), ((len(values), 5),))
    count = chunk.count_within(size)

    assert count == 1 or chunk.split(count)[0].size <= size
    assert count == chunk.count or chunk.split(count + 1)[0].size > size


@given(LINES, st.data())
def test_the_end_of_a_line_is_found_by_counting(lines, data):
    blob = b"".join(line + b"\n" for line in lines)
    count = data.draw(st.integers(0, len(lines)))
    assert _line_end(blob, 0, len(blob), count, len(lines)) == len(b"".join(line + b"\n" for line in lines[:count]))


def test_append_times_are_those_of_the_frames():
    chunk = Chunk.of(10, Records.of([b"a", b"b", b"c"]), ((11, 1), (13, 2)))

    assert chunk.append_times() == [1, 2, 2]
    assert chunk.from_offset(11).append_times() == [2, 2]


@pytest.mark.parametrize(("values", "lines"), [([b"1", b"2"], True), ([b"1", b""], False), ([b"1\n", b"2"], False)])
def test_lines_says_whether_a_line_decoder_meets_each_value(values, lines):
    assert Chunk.of(0, Records.of(values), ((2, 0),)).lines is lines
