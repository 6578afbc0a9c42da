"""Keys: told apart by encoding, the same before and after a store, and at home in one group for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from streamactors.core.keys import (
    canonical_key,
    canonical_keys,
    decode_key,
    encode_key,
    key_group,
    plain_key,
    plain_keys,
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@given(keys)
def test_a_key_comes_back_from_a_store_as_it_was(key):
    canonical = canonical_key(key)
    back = decode_key(encode_key(canonical))
    assert back == canonical
    assert hash(back) == hash(canonical)
    assert plain_key(back) == plain_key(canonical)


@given(keys, keys)
def test_canonical_keys_are_equal_exactly_when_their_encodings_are(one, other):
    a, b = canonical_key(one), canonical_key(other)
    assert (a == b) == (encode_key(a) == encode_key(b))


def test_what_python_takes_for_equal_stays_apart():
    distinct = [1, 1.0, True, "1", b"1", 0, 0.0, -0.0, False, None, ""]
    assert len(set(canonical_keys(distinct))) == len(distinct)


def test_a_list_and_a_tuple_are_one_key_that_shows_as_a_tuple():
    assert canonical_key(["a", 1]) == canonical_key(("a", 1))
    assert plain_keys(canonical_keys([["a", 1]])) == [("a", 1)]


def test_plain_columns_are_passed_on_untouched():
    texts, numbers = ["a", "b"], [1, 2]
    assert canonical_keys(texts) is texts
    assert canonical_keys(numbers) is numbers


@pytest.mark.parametrize("key", [{"a": 1}, {1}, object(), ("a", {}), 1j])
def test_what_can_not_be_a_key_is_refused(key):
    with pytest.raises(sa.PipelineError, match="can't be a key"):
        canonical_key(key)


@pytest.mark.parametrize("key", ["\ud800", "é\udfff", ("a", "\ud800"), 2**64, (-(2**63) - 1,)])
def test_a_key_that_can_t_be_encoded_is_refused_before_a_store_or_a_shuffle_meets_it(key):
    with pytest.raises(sa.PipelineError, match=r"surrogate|64 bits"):
        canonical_key(key)
    for column in ([key], ["a", key], [key, 1]):
        with pytest.raises(sa.PipelineError, match=r"surrogate|64 bits"):
            canonical_keys(column)


def test_text_beyond_ascii_is_a_key_as_it_is():
    texts = ["é", "\U0001f600", ""]
    assert canonical_keys(texts) is texts


def test_a_key_of_endless_tuples_is_refused():
    key = ()
    for _ in range(100_000):
        key = (key,)
    with pytest.raises(sa.PipelineError, match="nests too many"):
        canonical_key(key)
    while key:  # else freeing it goes as deep
        (key,) = key


def test_key_groups_never_change():
    """Golden: state on disk stands under these groups."""
    golden = {"a": 25, "algebra": 20, 1: 27, -7: 53}
    assert {key: key_group(encode_key(canonical_key(key))) for key in golden} == golden
