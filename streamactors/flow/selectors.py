"""Selectors: how a column of keys, times or numbers is taken out of a batch's values.

A selector is a field's name (an attribute of an object, an entry of a mapping), a plain function of one value, or
None for the value itself. A name is looked up by the *type* of the rows, not by trying: ``items`` is a field of a
dict like any other, and a batch of mixed rows gives the same column however it was cut (T2).

Whatever a selector raises becomes a BadRecord that names operator, record and place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from operator import attrgetter, countOf, itemgetter, length_hint
from typing import Any, get_type_hints

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.errors import BadRecord, PipelineError

from .operator import RAISED, bad_record, call_each, place_of

Selector = str | Callable[[Any], Any] | None
Column = Callable[[str, Batch], list[Any]]
"""``column(operator_name, batch)`` returns one item for each row."""


def column(selector: Selector, of: Any = None) -> Column:
    """
    Return the function that takes *selector*'s column out of a batch; the batch's own list when it is None.

    *of* is the type of all values, where a decoder has made sure of it: then no row is asked for its type.
    """
    if selector is None:
        return _values
    if isinstance(selector, str):
        return partial(_attribute, attrgetter(selector)) if _is_struct(of) else partial(_field, selector)
    require_plain("a selector", selector)
    return partial(_called, selector)


def known_type(selector: Selector, of: Any) -> Any:
    """Return the exact type of *selector*'s column if values of type *of* can't hold another, else None."""
    if not isinstance(selector, str) or not _is_struct(of):
        return None
    kind = get_type_hints(of).get(selector)
    return kind if kind in (int, str) else None


def missing_field(selector: Selector, of: Any) -> str | None:
    """Say that values of type *of* have no such field, if that is known before there is a value."""
    if not isinstance(selector, str) or not _is_struct(of) or hasattr(of, selector):
        return None
    return f"{of.__name__} has no field {selector!r}; its fields are {', '.join(of.__struct_fields__)}."


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling *function* gives something to await or to iterate with ``async for``."""
    return _is_any(function, iscoroutinefunction, isasyncgenfunction)


def require_plain(
    what: str, function: Callable[..., Any], *, remedy: str = "Use a plain function here.", may_yield: bool = False
) -> None:
    """Refuse a coroutine function where nobody would await it, and a generator function where nobody would iterate."""
    if not callable(function):
        raise PipelineError(f"{what} must be a function, got {function!r}.")
    if is_async(function):
        raise PipelineError(f"{what} is the coroutine function {name_of(function)}; nobody would await it. {remedy}")
    if not may_yield and _is_any(function, isgeneratorfunction):
        raise PipelineError(
            f"{what} is the generator function {name_of(function)}; nobody would take what it yields. Return a value, "
            "or use flat_map()."
        )


def _is_any(function: Callable[..., Any], *checks: Callable[[Any], bool]) -> bool:
    """Return whether a check holds for what is called in the end: behind ``partial``, or by an object's class."""
    target: Any = function
    while isinstance(target, partial):
        target = target.func
    candidates = (target, type(target).__call__ if callable(target) else None)
    return any(check(candidate) for check in checks for candidate in candidates)


def name_of(function: Callable[..., Any]) -> str:
    """Return how a user would recognise *function*."""
    return getattr(function, "__qualname__", None) or repr(function)


def describe(selector: Selector | Callable[..., Any]) -> str:
    """Return *selector* as it shows in a plan."""
    if selector is None:
        return ""
    return repr(selector) if isinstance(selector, str) else name_of(selector)


def _values(name: str, batch: Batch) -> list[Any]:
    del name
    return batch.values


def _called(function: Callable[[Any], Any], name: str, batch: Batch) -> list[Any]:
    return call_each(name, function, batch)


def _attribute(get: Callable[[Any], Any], name: str, batch: Batch) -> list[Any]:
    return call_each(name, get, batch)


def _field(field: str, name: str, batch: Batch) -> list[Any]:
    if not batch.values:
        return []
    rows = iter(batch.values)
    kind = type(batch.values[0])
    try:
        if countOf(map(type, batch.values), kind) == len(batch.values):
            return list(map(_getter(field, kind), rows))
        getters = {kind: _getter(field, kind) for kind in set(map(type, batch.values))}
        return [getters[type(row)](row) for row in rows]
    except RAISED as error:
        index = len(batch.values) - length_hint(rows) - 1
        row = batch.values[index]
        if not isinstance(error, AttributeError | LookupError | TypeError):  # of a property, say
            raise bad_record(name, batch, index, error) from error
        reason = f"it has no field {field!r}{_fields(row)}."
        raise BadRecord(name, place_of(batch, index), row, reason, index) from error


def _getter(field: str, kind: type) -> Callable[[Any], Any]:
    return itemgetter(field) if issubclass(kind, Mapping) else attrgetter(field)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _fields(row: Any) -> str:
    known = list(row) if isinstance(row, Mapping) else getattr(row, "__struct_fields__", None)
    return f"; its fields are {', '.join(map(str, known))}" if known else ""
