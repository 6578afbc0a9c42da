"""An async iterator as a source: a subscription, a client's stream, a generator of your own.

    pipeline.source(AsyncItems(subscribe))            # subscribe() gives an async iterator; called for each attempt
    pipeline.source(AsyncItems(subscribe()))          # one iterator: it can be begun once

What it gave once is gone: at-most-once, unless ``through_log`` stands behind it (then what was appended is safe, and
what was given and not yet appended is lost with the process).

One task pulls the iterator from its first item to its end, and no other code of ours ever touches it: a generator may
hold a connection, a timeout or a task group around its ``yield``. It pulls at most AHEAD_ITEMS ahead of the job, so a
slow job stops the iterator. A batch is what is there when the job has room; nobody waits to fill one.

How it ends:

    by itself      the partition has ended: a bounded run ends with it, a live one reads no more from here
    an exception   the reader fails with it, after what came before was given: the restart policy decides
    we stop        CancelledError is raised where the iterator waits, then ``aclose`` is awaited, in the same task
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import EndOfInput, Replay, World
from streamactors.core.errors import UsageError

AHEAD_ITEMS = 1_024
"""Items that are pulled ahead of the job: one batch while the one before is decoded; more would only be lost in a
crash."""

Items = AsyncIterable[Any]


class AsyncItems:
    """
    A source with one partition: what an async iterator gives. See the module's header.

    Args:
        items:
            A function without arguments that returns an async iterator, or one iterator.

        id:
            Name of the source in the job; two of one pipeline need two names.

        type:
            Of all items, if they have one. The job relies on it: nothing is checked.
    """

    replay = Replay.NOTHING

    def __init__(self, items: Callable[[], Items] | Items, *, id: str = "iterator", type: Any = None) -> None:  # noqa: A002
        if not callable(items) and not isinstance(items, AsyncIterable):
            raise UsageError(
                f"source {id}: {items!r} is no async iterator and no function that gives one. Write `async def ...: "
                "yield ...`, or use pipeline.items(...) for a list."
            )
        self.id = id
        self.type = type
        self._items = items
        self._begun = False

    def __str__(self) -> str:
        return f"items of {getattr(self._items, '__qualname__', type(self._items).__name__)}"

    async def ends(self, world: World) -> list[None]:
        """Where it ends is not known before it does."""
        return [None]

    async def reader(self, world: World, partition: int, start: int) -> _ItemsReader:
        """Return a reader that counts from *start*; the iterator begins anew, if it can."""
        return _ItemsReader(self.id, self._iterate(), start)

    def _iterate(self) -> AsyncIterator[Any]:
        if isinstance(self._items, AsyncIterable):
            if self._begun:
                raise UsageError(
                    f"source {self.id}: the iterator was read by an earlier attempt or job, and what it gave is gone. "
                    "Give AsyncItems a function that makes one, so that it can begin again."
                )
            self._begun = True
            return aiter(self._items)
        made = self._items()
        if not isinstance(made, AsyncIterable):
            raise UsageError(
                f"source {self.id}: {self._items!r} gave {made!r}, which is no async iterator. Write it as `async def "
                "...: yield ...`, or let it return one."
            )
        return aiter(made)


class _ItemsReader:
    def __init__(self, source: str, iterator: AsyncIterator[Any], start: int) -> None:
        self._source = source
        self._next = start
        self._pulled: deque[Any] = deque()
        self._more = asyncio.Event()  # something was pulled, or the iterator has ended
        self._room = asyncio.Event()
        self._pulling = asyncio.create_task(self._pull(iterator), name=f"{source}: pull")
        self._pulling.add_done_callback(lambda _: self._more.set())

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        count = min(records_max, len(self._pulled))
        if not count:
            if self._pulling.done():
                self._pulling.result()  # raises what the iterator raised
            return None
        first, self._next = self._next, self._next + count
        values = [self._pulled.popleft() for _ in range(count)]
        self._room.set()
        return Batch(
            values, offsets=range(first, self._next), origin=_ItemsOrigin(self._source, first, values)
        ), self._next

    def end(self) -> int:
        return self._next + len(self._pulled)

    async def wait(self) -> None:
        while not self._pulled:
            if self._pulling.done():
                self._pulling.result()
                raise EndOfInput
            self._more.clear()
            await self._more.wait()

    async def close(self) -> None:
        self._pulling.cancel()
        await asyncio.wait([self._pulling])
        if not self._pulling.cancelled():
            self._pulling.exception()  # it was given to the job by ``read``, or nobody wants it any more

    async def _pull(self, iterator: AsyncIterator[Any]) -> None:
        closing: Any = aclosing(iterator) if hasattr(iterator, "aclose") else nullcontext()
        async with closing:
            async for item in iterator:
                self._pulled.append(item)
                self._more.set()
                while len(self._pulled) >= AHEAD_ITEMS:
                    self._room.clear()
                    await self._room.wait()


@dataclass(frozen=True, slots=True)
class _ItemsOrigin:
    source: str
    first: int
    values: list[Any]
    partition: int = 0

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.values[offset - self.first] for offset in offsets]
