import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.core.limits import APPEND_RECORDS_MAX, RECORD_BYTES_MAX
from streamactors.ops.lines import Cutter, LineChecker, json_lines, refused


def cut(*blocks: bytes) -> bytes:
    cutter = Cutter()
    whole = []
    for block in blocks:
        cutter.feed(block)
        whole.append(cutter.take())
    cutter.end()
    return b"".join([*whole, cutter.take()])


def checked(text: bytes, key: str | None = None):
    lines, bad = LineChecker(key).check(text)
    return lines, [str(line) for line in bad]


# One at a time: tokens from which JSON, near-JSON and tricks over line ends are made.
pieces = st.sampled_from(
    [b"{}", b"[", b"]", b"1", b" ", b"\t", b"\n", b",", b'"a"', b'{"a":', b"}", b"null", b"\xc3\xa9", b'"\xff"', b"-"]
)


@given(st.lists(pieces, max_size=12).map(b"".join))
def test_lines_are_good_exactly_if_each_by_itself_is_one_value(text):
    text += b"\n"
    alone = [refused(line) is None for line in text[:-1].split(b"\n")]

    lines, bad = LineChecker().check(text)

    assert lines.values() == [line for line, good in zip(text[:-1].split(b"\n"), alone, strict=True) if good]
    assert [line.number for line in bad] == [number for number, good in enumerate(alone, 1) if not good]


@given(st.lists(pieces, max_size=12).map(b"".join))
def test_what_is_taken_for_lines_at_once_is_so_line_by_line(text):
    text += b"\n"
    at_once = json_lines(text)

    assert at_once is None or all(refused(line) is None for line in text[:-1].split(b"\n"))


@given(st.binary(max_size=30))
def test_what_is_not_refused_is_json_for_everyone(value):
    if refused(value) is None:
        json.loads(value)


@pytest.mark.parametrize(
    "text", [b"[1\n]\n{}{}\n", b"{}{}\n\n", b'{"a":\n1} 2\n', b"[1\n,2]\n3 4\n", b"  []\n1\n"], ids=repr
)
def test_a_value_over_two_lines_does_not_make_up_for_two_on_one(text):
    """As many values as lines, and the line decoder is content."""
    assert json_lines(text) is None


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_how_the_input_comes_does_not_matter(blocks):
    whole = b"".join(blocks)
    ended = whole.removeprefix(b"\xef\xbb\xbf")
    if ended and not ended.endswith(b"\n"):
        ended += b"\n"

    assert cut(*blocks) == ended


def test_a_mark_that_comes_byte_by_byte_is_no_part_of_the_first_line():
    assert cut(b"\xef", b"\xbb", b"\xbf", b"1\n") == b"1\n"


def test_a_line_end_of_two_bytes_is_one_line_end():
    lines, bad = checked(b'{"a":1}\r\n2\r\n')
    assert lines.values() == [b'{"a":1}', b"2"] and not bad


def test_white_space_around_a_value_is_kept():
    lines, bad = checked(b"1\n  2 \n")
    assert lines.values() == [b"1", b"  2 "] and not bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "it is blank"),
        (b" \t", "it is blank"),
        (b"{", "not one JSON value: Input data was truncated"),
        (b"1 2", "not one JSON value: JSON is malformed: trailing characters"),
        (b'"\xff"', "not UTF-8: invalid start byte (byte 1)"),
        (b"[" * 100_000, "nested too deeply to be decoded"),
        (b"\x00", "not one JSON value: JSON is malformed: invalid character"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_a_bad_line_is_named_with_its_reason(line, reason):
    lines, bad = checked(b"1\n" + line + b"\n3\n")
    assert lines.values() == [b"1", b"3"]
    assert len(bad) == 1 and bad[0].startswith(f"line 2: {reason}")


def test_a_line_longer_than_a_record_may_be_is_bad_and_never_held_whole():
    cutter = Cutter()
    cutter.feed(b'"')
    for _ in range(40):
        cutter.feed(b"x" * (1024 * 1024))
    assert sum(map(len, cutter._tail)) <= RECORD_BYTES_MAX + 2
    cutter.feed(b'"\n2\n')

    lines, bad = LineChecker().check(cutter.take())

    assert lines.values() == [b"2"]
    assert [line.number for line in bad] == [1] and "16,777,216 bytes" in bad[0].reason


def test_lines_are_numbered_over_all_that_was_checked():
    checker = LineChecker()
    checker.check(b"1\n2\n")
    assert [bad.number for bad in checker.check(b"3\nx\n")[1]] == [4]


def test_more_lines_than_one_append_takes_come_in_pieces():
    text = b"1\n" * (APPEND_RECORDS_MAX + 1)
    pieces = list(LineChecker().check(text)[0].pieces())

    assert [piece.count for piece in pieces] == [APPEND_RECORDS_MAX, 1]
    assert b"".join(piece.blob for piece in pieces) == text


def test_no_lines_are_no_piece():
    assert list(LineChecker().check(b"")[0].pieces()) == []


# Keys. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"algebra"', b"algebra"),
        ("7", b"7"),
        ("1.0", b"1.0"),
        ("null", b"null"),
        ("[1, 2]", b"[1,2]"),
        ('"é"', "é".encode()),
    ],
)
def test_the_key_of_a_line_is_its_text_or_json(value, key):
    lines, bad = checked(f'{{"x": 0, "id": {value}}}\n'.encode(), "id")
    assert lines.keys == [key] and not bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "no key: Object missing required field `id`"),
        (b"1", "no key: Expected `object`, got `int`"),
        (b'{"id":', "not one JSON value: Input data was truncated"),
    ],
)
def test_a_line_without_the_key_is_bad(line, reason):
    lines, bad = checked(b'{"id":1}\n' + line + b"\n", "id")
    assert lines.values() == [b'{"id":1}'] and lines.keys == [b"1"]
    assert bad == [f"line 2: {reason}"]


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5))
def test_good_lines_keep_their_bytes(values):
    text = b"".join(msgspec.json.encode(value) + b"\n" for value in values)
    lines, bad = LineChecker().check(text)
    assert lines.blob == text and not bad
