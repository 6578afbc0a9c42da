"""Durations, batches and sealed values."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.core.batch import Batch
from streamactors.core.codec import bytes_head, seal, unseal
from streamactors.core.times import MAX_TIME, MIN_TIME, clamp_time, duration_ms, shown


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        ("200ms", 200),
        ("1s", 1_000),
        ("1.5s", 1_500),
        ("10min", 600_000),
        ("2 h", 7_200_000),
        ("1d", 86_400_000),
        (250, 250),
        (timedelta(minutes=1), 60_000),
    ],
)
def test_durations_are_read_as_people_write_them(written, ms):
    assert duration_ms(written) == ms


@pytest.mark.parametrize("written", ["10", "ten minutes", "10 fortnights", "", "-1s", 1.5, True])
def test_what_is_no_duration_is_refused_with_an_example(written):
    with pytest.raises(ValueError, match="duration"):
        duration_ms(written)


@given(st.integers(0, 10**12))
def test_a_shown_duration_reads_back(ms):
    assert duration_ms(shown(ms)) == ms


def test_times_beyond_64_bits_are_the_ends_of_time():
    assert clamp_time(MAX_TIME + 1) == MAX_TIME
    assert clamp_time(MIN_TIME - 1) == MIN_TIME
    assert clamp_time(5) == 5


def batch():
    return Batch(["a", "b", "c"], [1, 2, 3], ["k", "l", "m"], offsets=range(7, 10), bytes=30)


def columns(rows):
    return rows.values, rows.timestamps, rows.keys, list(rows.offsets)


def test_rows_are_picked_from_every_column():
    picked = (["b", "c"], [2, 3], ["l", "m"], [8, 9])
    assert columns(batch().slice(1, 3)) == picked
    assert columns(batch().select([0, 1, 1])) == picked
    assert columns(batch().take([1, 2])) == picked


def test_joined_pieces_are_the_batch_again():
    whole = batch()
    assert columns(Batch.join([whole.slice(0, 1), whole.slice(1, 2), whole.slice(2, 3)])) == columns(whole)


def test_replacing_a_column_leaves_the_batch_that_others_see():
    whole = batch()
    other = whole.replace(values=[1, 2, 3])
    assert whole.values == ["a", "b", "c"]
    assert other.keys is whole.keys


@given(st.binary(max_size=40), st.integers(0, 10**6))
def test_a_flipped_bit_is_damage_with_a_name(payload, position):
    sealed = bytearray(seal(payload))
    assert unseal(bytes(sealed), "row") == payload
    sealed[position % len(sealed)] ^= 1 << position % 8
    with pytest.raises(sa.Damaged, match="row"):
        unseal(bytes(sealed), "row")


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_parts_are_sealed_as_one(head, rest):
    assert seal(head, rest) == seal(head + rest)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 100_000])
def test_the_head_of_bytes_is_that_of_messagepack(size):
    assert bytes_head(size) + bytes(size) == msgspec.msgpack.encode(bytes(size))
