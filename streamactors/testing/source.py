"""A scripted source: faults are data. A recovery test is a list and two asserts::

    script = Script([{"word": "a"}, Crash(), {"word": "a"}, Pause(), {"word": "b"}])
    pipeline.source(script)...

    Pause    the source has nothing more until ``script.go_on()``
    Crash    the reader fails when it comes here, once; after the restart it goes on behind it
    End      what follows is not there yet for a bounded run: it stops here; ``go_on`` makes it appear

Several lists are several partitions. Offsets count records, not marks.

``Deliveries`` is the same script as a queue gives it, one that keeps each record until it is acknowledged: a new reader
is given again all that was not, and the list ``acknowledged`` says what was, in which order and when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import EndOfInput, Replay, World


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing more comes until the test says so."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The reader fails here, once."""


@dataclass(frozen=True, slots=True)
class End:
    """The source ends here for who starts now."""


class ScriptedCrash(Exception):
    """What a reader raises at a Crash."""


@dataclass(eq=False)
class _Partition:
    values: list[Any]
    stops: list[int]  # offsets of Pauses and Ends that still hold, ascending
    crashes: list[int]  # offsets of Crashes that are still to come
    waiting: list[asyncio.Event] = field(default_factory=list)  # of this life's readers; a script outlives loops
    safe: set[int] = field(default_factory=set)  # indices of what was acknowledged
    seen: int = 0  # how many were delivered, at least once

    @property
    def end(self) -> int:
        return self.stops[0] if self.stops else len(self.values)

    def crash_if_due(self, index: int) -> None:
        if self.crashes and self.crashes[0] <= index:
            raise ScriptedCrash(f"the script says Crash() at offset {self.crashes.pop(0)}")

    def go_on(self) -> None:
        del self.stops[:1]
        for woken in self.waiting:
            woken.set()

    async def wait(self, may_go_on: Callable[[], bool]) -> None:
        woken = asyncio.Event()
        self.waiting.append(woken)
        try:
            while not may_go_on():
                woken.clear()
                await woken.wait()
        finally:
            self.waiting.remove(woken)


class Script:
    """See the module's header."""

    replay = Replay.BY_OFFSET

    def __init__(self, *partitions: list[Any], id: str = "script", type: Any = None) -> None:  # noqa: A002
        self.id = id
        self.type = type
        self._partitions = [_partition(script) for script in partitions]

    def __str__(self) -> str:
        return f"a script of {sum(len(partition.values) for partition in self._partitions)} records"

    def go_on(self) -> None:
        """Let every partition that is at a Pause or an End come to what is behind it."""
        for partition in self._partitions:
            partition.go_on()

    async def ends(self, world: World) -> list[int]:
        """Return where each partition stops now."""
        return [partition.end for partition in self._partitions]

    async def reader(self, world: World, partition: int, start: int) -> _ScriptReader:
        """Return a reader of one partition."""
        return _ScriptReader(self, partition, self._partitions[partition], start)


class _ScriptReader:
    def __init__(self, script: Script, number: int, partition: _Partition, start: int) -> None:
        self._partition = partition
        self._origin = _ScriptOrigin(script.id, number, partition.values)
        self._next = start

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        partition, first = self._partition, self._next
        partition.crash_if_due(first)
        end = min(first + records_max, partition.end, *partition.crashes[:1])
        if first >= end:
            return None
        self._next = end
        return Batch(partition.values[first:end], offsets=range(first, end), origin=self._origin), end

    def end(self) -> int:
        return self._partition.end

    async def wait(self) -> None:
        await self._partition.wait(lambda: self._next < self._partition.end)

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One record that was said to be safe."""

    partition: int
    index: int
    """In its list, marks not counted."""

    value: Any
    at_ms: int


class Deliveries:
    """A script whose records come again until they are acknowledged. See the module's header."""

    replay = Replay.UNACKNOWLEDGED

    def __init__(
        self,
        *partitions: list[Any],
        id: str = "deliveries",  # noqa: A002 - the contract's name
        type: Any = None,  # noqa: A002 - the contract's name
        redelivery: Random | None = None,
    ) -> None:
        """Describe the source; what comes again does so in an order drawn from *redelivery*, or in the old one."""
        self.id = id
        self.type = type
        self.acknowledged: list[Acknowledged] = []
        self.delivered: list[tuple[int, int]] = []
        """(partition, index) of each delivery, in order."""

        self.on_acknowledge: Callable[[list[Acknowledged]], None] = lambda records: None
        """Called with what is acknowledged, at that moment: for a test to look around."""

        self.redelivery = redelivery
        self._partitions = [_partition(script) for script in partitions]

    def __str__(self) -> str:
        return f"deliveries of {sum(len(partition.values) for partition in self._partitions)} records"

    @property
    def unacknowledged(self) -> list[Any]:
        """The values that would come again, by partition and index."""
        return [
            value
            for partition in self._partitions
            for index, value in enumerate(partition.values)
            if index not in partition.safe
        ]

    def go_on(self) -> None:
        """Let every partition that is at a Pause or an End come to what is behind it."""
        for partition in self._partitions:
            partition.go_on()

    async def ends(self, world: World) -> list[None]:
        """Say that nobody knows: it depends on what comes again."""
        return [None] * len(self._partitions)

    async def reader(self, world: World, partition: int, start: int) -> _DeliveriesReader:
        """Return a reader that is given all that was not acknowledged, and counts from *start*."""
        return _DeliveriesReader(self, world, partition, self._partitions[partition], start)


class _DeliveriesReader:
    def __init__(self, source: Deliveries, world: World, number: int, partition: _Partition, start: int) -> None:
        self._source = source
        self._world = world
        self._number = number
        self._partition = partition
        self._start = start
        self._given: list[int] = []  # index of each that was given, in order
        self._again = [index for index in range(partition.seen) if index not in partition.safe]
        if source.redelivery is not None:
            source.redelivery.shuffle(self._again)
        self._safe = start

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        partition = self._partition
        if self._again:
            indices, self._again = self._again[:records_max], self._again[records_max:]
        else:
            partition.crash_if_due(partition.seen)
            until = min(partition.seen + records_max, partition.end, *partition.crashes[:1])
            indices = list(range(partition.seen, until))
            partition.seen = max(partition.seen, until)
        if not indices:
            return None
        first = self._start + len(self._given)
        self._given += indices
        self._source.delivered += [(self._number, index) for index in indices]
        end = first + len(indices)
        values = [partition.values[index] for index in indices]
        origin = _DeliveriesOrigin(self._source.id, self._number, first, values)
        return Batch(values, offsets=range(first, end), origin=origin), end

    def end(self) -> int:
        return self._start + len(self._given) + len(self._again) + max(0, self._partition.end - self._partition.seen)

    async def wait(self) -> None:
        partition = self._partition
        over = partition.seen >= len(partition.values) and not partition.stops
        if not self._again and partition.seen >= partition.end and (over or self._world.bounded):
            raise EndOfInput
        await partition.wait(lambda: bool(self._again) or partition.seen < partition.end)

    async def acknowledge(self, end: int) -> None:
        indices = self._given[self._safe - self._start : end - self._start]
        assert end > self._safe, f"acknowledged up to {end} after {self._safe}: the end rises"
        assert end <= self._start + len(self._given), f"{end} was acknowledged, {len(self._given)} were given"
        self._safe = end
        now = self._world.ports.clock.now_ms()
        records = [Acknowledged(self._number, index, self._partition.values[index], now) for index in indices]
        self._partition.safe.update(indices)
        self._source.acknowledged += records
        self._source.on_acknowledge(records)

    async def close(self) -> None:
        """What was given and not acknowledged comes again."""


@dataclass(frozen=True, slots=True)
class _DeliveriesOrigin:
    source: str
    partition: int
    first: int
    values: list[Any]

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.values[offset - self.first] for offset in offsets]


@dataclass(frozen=True, slots=True)
class _ScriptOrigin:
    source: str
    partition: int
    values: list[Any]

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        return [self.values[offset] for offset in offsets]


def _partition(script: list[Any]) -> _Partition:
    values: list[Any] = []
    stops: list[int] = []
    crashes: list[int] = []
    for item in script:
        if isinstance(item, Crash):
            crashes.append(len(values))
        elif isinstance(item, Pause | End):
            stops.append(len(values))
        else:
            values.append(item)
    return _Partition(values, stops, crashes)
