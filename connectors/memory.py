"""A list in memory as a source: for examples and tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, World


@dataclass(frozen=True, eq=False)
class Items:
    """A source with one partition: the objects of a list, in order. It must be the same at each start of the job."""

    values: list[Any]
    id: str = "items"
    type: Any = None
    replay = Replay.BY_OFFSET

    def __str__(self) -> str:
        return f"{len(self.values)} items in memory"

    async def ends(self, world: World) -> list[int]:
        """Return the length of the list."""
        return [len(self.values)]

    async def reader(self, world: World, partition: int, start: int) -> _ItemsReader:
        """Return a reader from index *start*."""
        return _ItemsReader(self, start)


class _ItemsReader:
    def __init__(self, items: Items, start: int) -> None:
        self._items = items
        self._origin = _ItemsOrigin(items)
        self._next = start

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        first, end = self._next, min(self._next + records_max, len(self._items.values))
        if first >= end:
            return None
        self._next = end
        return Batch(self._items.values[first:end], offsets=range(first, end), origin=self._origin), end

    def end(self) -> int:
        return len(self._items.values)

    async def wait(self) -> None:
        await asyncio.Event().wait()  # a list does not grow

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _ItemsOrigin:
    items: Items
    partition: int = 0

    @property
    def source(self) -> str:
        return self.items.id

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.items.values[offset] for offset in offsets]
