"""The awaited forms of map, filter and flat_map, and map_async: the function is awaited for each record.

``map``, ``filter`` and ``flat_map`` await one record after another. ``map_async`` is the same operator as the awaited
``map`` with a capacity: so many calls are in flight at once, each with a timeout, and tried again if it fails
(flow/async_calls.py). What the function reads outside is its own affair: (T1) holds as far as its answers repeat.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from inspect import isasyncgenfunction
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.errors import PipelineError

from .async_calls import ONCE, AsyncOperator, Retry
from .selectors import is_async, name_of
from .transforms import flatten, keep, listed


class AsyncMap(AsyncOperator):
    """Replace each value by what awaiting ``function(value)`` gives."""

    def __init__(
        self,
        function: Callable[[Any], Awaitable[Any]],
        *,
        capacity: int = 1,
        ordered: bool = True,
        timeout_ms: int | None = None,
        retry: Retry = ONCE,
    ) -> None:
        super().__init__(capacity=capacity, ordered=ordered, timeout_ms=timeout_ms, retry=retry)
        _require_async(function, "Map")
        self.function = function

    def call(self, batch: Batch, row: int) -> Awaitable[Any]:
        """Call the function with the value."""
        return self.function(batch.values[row])

    def made(self, batch: Batch, results: list[Any]) -> Batch:
        """Return the new values under the old columns."""
        return batch.replace(values=results)


class AsyncFilter(AsyncOperator):
    """Keep the rows for which awaiting ``predicate(value)`` gives a true value."""

    def __init__(self, predicate: Callable[[Any], Awaitable[Any]]) -> None:
        super().__init__()
        _require_async(predicate, "Filter")
        self.predicate = predicate

    def call(self, batch: Batch, row: int) -> Awaitable[Any]:
        """Call the predicate with the value."""
        return self.predicate(batch.values[row])

    def made(self, batch: Batch, results: list[Any]) -> Batch:
        """Return what is kept, and on an upsert stream a DELETE for what is not."""
        return keep(batch, results)


class AsyncFlatMap(AsyncOperator):
    """Replace each value by the values that awaiting ``function(value)`` gives, or that it yields."""

    def __init__(self, function: Callable[[Any], Awaitable[Iterable[Any]] | AsyncIterable[Any]]) -> None:
        super().__init__()
        _require_async(function, "FlatMap")
        self._call: Callable[[Any], Any] = _collector(function) if isasyncgenfunction(function) else function

    async def call(self, batch: Batch, row: int) -> list[Any]:
        """Call the function with the value."""
        return listed(await self._call(batch.values[row]))

    def made(self, batch: Batch, results: list[Any]) -> Batch:
        """Return the values in order, with the other columns of their rows."""
        return flatten(batch, results)


def awaiting(function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    """Return *function* as a coroutine function: a lambda that hands out a coroutine is none by itself."""
    if is_async(function):
        return function

    async def call(value: Any) -> Any:
        return await function(value)

    return call


def _collector(function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[list[Any]]]:
    async def collect(value: Any) -> list[Any]:
        return [made async for made in function(value)]

    return collect


def _require_async(function: Callable[..., Any], plain: str) -> None:
    if not is_async(function):
        raise PipelineError(f"{name_of(function)} is not a coroutine function. Use {plain}.")
