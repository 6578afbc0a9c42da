"""A scripted source: faults are data. A recovery test is a list and two asserts::

    script = Script([{"word": "a"}, Crash(), {"word": "a"}, Pause(), {"word": "b"}])
    pipeline.source(script)...

    Pause    the source has nothing more until ``script.go_on()``
    Crash    the reader fails when it comes here, once; after the restart it goes on behind it
    End      what follows is not there yet for a bounded run: it stops here; ``go_on`` makes it appear

Several lists are several partitions. Offsets count records, not marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, World


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

    @property
    def end(self) -> int:
        return self.stops[0] if self.stops else len(self.values)


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
            del partition.stops[:1]
            for woken in partition.waiting:
                woken.set()

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
        if partition.crashes and partition.crashes[0] <= first:
            raise ScriptedCrash(f"the script says Crash() at offset {partition.crashes.pop(0)}")
        end = min(first + records_max, partition.end, *partition.crashes[:1])
        if first >= end:
            return None
        self._next = end
        return Batch(partition.values[first:end], offsets=range(first, end), origin=self._origin), end

    def end(self) -> int:
        return self._partition.end

    async def wait(self) -> None:
        woken = asyncio.Event()
        self._partition.waiting.append(woken)
        try:
            while self._next >= self._partition.end:
                woken.clear()
                await woken.wait()
        finally:
            self._partition.waiting.remove(woken)

    async def close(self) -> None:
        """Nothing is held."""


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
