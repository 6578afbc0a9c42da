"""Columns out of batches: by name, by function, or the values themselves."""

from functools import partial

import msgspec
import pytest

from streamactors.core.batch import Batch
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.flow.selectors import column, describe, is_async, known_type
from streamactors.flow.transforms import Filter, KeyBy, Map, Split


class Quiz(msgspec.Struct):
    items: int


async def coroutine(value):
    return value


class Callable:
    async def __call__(self, value):
        return value


def test_a_name_is_an_attribute_of_objects_and_an_entry_of_dicts():
    assert column("items")("op", Batch([Quiz(1), Quiz(2)])) == [1, 2]
    assert column("items")("op", Batch([{"items": 1}, {"items": 2}])) == [1, 2]


def test_rows_of_mixed_types_are_looked_up_by_their_own_type():
    """Trying one way after the other would take a dict's method ``items`` for the field."""
    assert column("items")("op", Batch([Quiz(1), {"items": 2}])) == [1, 2]


def test_no_selector_is_the_values_themselves():
    batch = Batch([1, 2])
    assert column(None)("op", batch) is batch.values


@pytest.mark.parametrize("row", [{"b": 1}, Quiz(1), 7])
def test_a_missing_field_names_operator_and_record(row):
    rows = [row, row] if isinstance(row, int) else [{"a": 1}, row]
    with pytest.raises(BadRecord, match=r"operator op .*no field 'a'"):
        column("a")("op", Batch(rows))


def test_the_fields_that_are_there_are_named():
    with pytest.raises(BadRecord, match="its fields are items"):
        column("a")("op", Batch([Quiz(1)]))


@pytest.mark.parametrize("selector", [coroutine, partial(coroutine), Callable()])
def test_a_coroutine_function_is_no_selector(selector):
    assert is_async(selector)
    with pytest.raises(PipelineError, match="coroutine function"):
        column(selector)


def generator(value):
    yield value


@pytest.mark.parametrize("operator", [Map, Filter, lambda function: Split([function]), KeyBy])
@pytest.mark.parametrize("function", [generator, partial(generator)])
def test_a_generator_function_is_refused_where_nobody_takes_what_it_yields(operator, function):
    """A generator is true whatever it would yield: a filter would keep everything."""
    with pytest.raises(PipelineError, match="generator function"):
        operator(function)


def test_a_selector_is_a_name_or_a_function():
    with pytest.raises(PipelineError, match="must be a function, got 3"):
        column(3)


def test_selectors_show_in_plans():
    assert [describe("a"), describe(None), describe(len)] == ["'a'", "", "len"]


class Typed(msgspec.Struct):
    name: str
    number: int
    either: int | str


@pytest.mark.parametrize(
    ("selector", "of", "kind"),
    [("name", Typed, str), ("number", Typed, int), ("either", Typed, None), ("name", None, None), (len, Typed, None)],
)
def test_only_what_a_decoder_has_made_sure_of_is_known_before_there_is_a_row(selector, of, kind):
    assert known_type(selector, of) is kind
