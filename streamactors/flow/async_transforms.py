"""The awaited forms of map, filter and flat_map: the function is awaited for one record after another, in order.

Nothing is in flight between two batches, so a barrier finds nothing to wait for, and the order is that of the
sequence. What the function reads outside is its own affair: (T1) holds as far as its answers repeat.

A result may be an empty batch: the stage that awaited it passes nothing on.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from inspect import isasyncgenfunction
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.errors import PipelineError

from .operator import AsyncOperator, bad_record
from .selectors import is_async, name_of
from .transforms import flatten, keep, lists_of, live_rows


class AsyncMap(AsyncOperator):
    """Replace each value by what awaiting ``function(value)`` gives."""

    def __init__(self, function: Callable[[Any], Awaitable[Any]]) -> None:
        super().__init__()
        _require_async(function, "Map")
        self.function = function

    async def on_batch_async(self, batch: Batch) -> Batch:
        """Return the new values under the old columns."""
        return batch.replace(values=await _await_each(self.name, self.function, batch))


class AsyncFilter(AsyncOperator):
    """Keep the rows for which awaiting ``predicate(value)`` gives a true value."""

    def __init__(self, predicate: Callable[[Any], Awaitable[Any]]) -> None:
        super().__init__()
        _require_async(predicate, "Filter")
        self.predicate = predicate

    async def on_batch_async(self, batch: Batch) -> Batch:
        """Return what is kept, and on an upsert stream a DELETE for what is not."""
        return keep(batch, await _await_each(self.name, self.predicate, batch))


class AsyncFlatMap(AsyncOperator):
    """Replace each value by the values that awaiting ``function(value)`` gives, or that it yields."""

    def __init__(self, function: Callable[[Any], Awaitable[Iterable[Any]] | AsyncIterable[Any]]) -> None:
        super().__init__()
        _require_async(function, "FlatMap")
        self._call = _collector(function) if isasyncgenfunction(function) else function

    async def on_batch_async(self, batch: Batch) -> Batch:
        """Return the values in order, with the other columns of their rows."""
        return flatten(batch, lists_of(self.name, batch, await _await_each(self.name, self._call, batch)))


async def _await_each(name: str, function: Callable[[Any], Any], batch: Batch) -> list[Any]:
    live = live_rows(batch)
    results: list[Any] = []
    for index, value in enumerate(batch.values):
        if live is not None and not live[index]:
            results.append(None)
            continue
        try:
            results.append(await function(value))
        except Exception as error:
            raise bad_record(name, batch, index, error) from error
    return results


def _collector(function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[list[Any]]]:
    async def collect(value: Any) -> list[Any]:
        return [made async for made in function(value)]

    return collect


def _require_async(function: Callable[..., Any], plain: str) -> None:
    if not is_async(function):
        raise PipelineError(f"{name_of(function)} is not a coroutine function. Use {plain}.")
