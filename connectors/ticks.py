"""A clock as a source: one record for each multiple of a period. Its value is that time, in ms since the epoch, UTC.

    pipeline.source(Ticks("1s"))                      # begins with the first start
    pipeline.source(Ticks("1h", since=1_700_000_000_000))

Tick n is the n-th multiple of the period from an *anchor* on, so an offset is a time for ever: what was read before a
crash, or is read again from a journal, is the very same ticks. A job that was down gets the ticks that it missed.

The anchor is the first multiple at or after ``since``. Without ``since`` it is the time of the first start; that is
written down (DATA/sources/<id>.<period>.ticks) and synced before the first tick is given, and belongs to the id:
another job that reads ticks of the same id and period in the same folder reads the same ones, from the same anchor on.
Give another ``id`` to begin anew.

If the machine's clock goes back, nothing comes until it has caught up; what was given stays given. If the file of the
anchor is lost, offsets would mean other times: a checkpoint that has read further than the clock can have come is
Damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamactors.core.batch import Batch
from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.connectors import Replay, World
from streamactors.core.errors import Damaged, Held, UsageError
from streamactors.core.ports import Clock, Disk
from streamactors.core.times import Duration, duration_ms, shown

LANE = "sources"
"""Of the thread that writes anchors."""


class Ticks:
    """
    A source with one partition: the time, once a period. See the module's header.

    Args:
        every:
            The period: ``"1s"``, say. Ticks are its multiples since the epoch.

        since:
            Where to begin, ms since the epoch. None: at the first start.

        id:
            Name of the source in the job.
    """

    replay = Replay.BY_OFFSET
    type = int

    def __init__(self, every: Duration, *, since: int | None = None, id: str = "ticks") -> None:  # noqa: A002
        self.id = id
        self.period_ms = duration_ms(every)
        self.since = since
        if self.period_ms < 1:
            raise UsageError(f"ticks every {every!r} would never rest. Give a period of at least 1 ms.")

    def __str__(self) -> str:
        return f"a tick every {shown(self.period_ms)}"

    @property
    def place(self) -> str:
        """What its offsets mean: with another period or begin they are other times."""
        return f"{self} since {'the first start' if self.since is None else self.since}"

    async def ends(self, world: World) -> list[int]:
        """Return how many ticks there were until now."""
        return [_ticks(await self._anchor(world), self.period_ms, world.ports.clock)]

    async def reader(self, world: World, partition: int, start: int) -> _TicksReader:
        """Return a reader from tick *start*."""
        anchor = await self._anchor(world)
        reader = _TicksReader(self, anchor, start, world.ports.clock)
        ahead = start - _ticks(anchor, self.period_ms, world.ports.clock)
        if ahead * self.period_ms > CLOCK_BACK_MAX_MS:
            raise Damaged(
                f"source {self.id}: {start:,} ticks were read before, but from {anchor} on (ms since the epoch) there "
                f"were {start - ahead:,} until now. The file {self._path(world)} was lost, or the machine's clock went "
                "back. Restore it, or set the clock right."
            )
        return reader

    def _path(self, world: World) -> Path:
        return world.data_dir / "sources" / f"{self.id}.{shown(self.period_ms)}.ticks"

    async def _anchor(self, world: World) -> int:
        first = world.ports.clock.now_ms() if self.since is None else self.since
        anchor = -(-first // self.period_ms) * self.period_ms
        if self.since is not None:
            return anchor
        while True:
            try:
                return await world.ports.threads.run(LANE, _stored, world.ports.disk, self._path(world), anchor)
            except Held:  # another process writes it, which takes as long as a sync
                await world.ports.clock.sleep(0.02)


CLOCK_BACK_MAX_MS = 24 * 3_600_000
"""How far a clock may have gone back without being taken for a lost anchor: more than any mended time zone."""


LOOK_SECONDS_MAX = 10.0
"""Between two looks at the wall clock, which may jump or go on while the machine sleeps."""


def _ticks(anchor: int, period: int, clock: Clock) -> int:
    return max(0, (clock.now_ms() - anchor) // period + 1)


def _stored(disk: Disk, path: Path, anchor: int) -> int:
    """Return the anchor that is written at *path*; write *anchor* there if there is none."""
    disk.make_folder(path.parent)
    lock = disk.lock(path.with_name(path.name + ".lock"))
    try:
        if not disk.exists(path):
            unfinished = path.with_name(path.name + ".new")
            if disk.exists(unfinished):
                disk.remove(unfinished)
            file = disk.open(unfinished, write=True, create=True)
            try:
                file.write(0, seal(encode_value(anchor)))
                file.sync()
            finally:
                file.close()
            disk.rename(unfinished, path)
            disk.sync_folder(path.parent)
            return anchor
        file = disk.open(path)
        try:
            return int(decode_value(unseal(file.read(0, file.size()), str(path))))
        finally:
            file.close()
    finally:
        lock.release()


class _TicksReader:
    def __init__(self, ticks: Ticks, anchor: int, start: int, clock: Clock) -> None:
        self._source = ticks.id
        self._anchor = anchor
        self._period = ticks.period_ms
        self._next = start
        self._clock = clock

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        first, end = self._next, min(self._next + records_max, self.end())
        if first >= end:
            return None
        self._next = end
        origin = _TicksOrigin(self._source, self._anchor, self._period)
        return Batch(origin.originals(range(first, end)), offsets=range(first, end), origin=origin), end

    def end(self) -> int:
        return max(self._next, _ticks(self._anchor, self._period, self._clock))

    async def wait(self) -> None:
        while self.end() <= self._next:
            due = self._anchor + self._next * self._period
            await self._clock.sleep(min((due - self._clock.now_ms()) / 1_000, LOOK_SECONDS_MAX))

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _TicksOrigin:
    source: str
    anchor: int
    period: int
    partition: int = 0

    def originals(self, offsets: Sequence[int]) -> list[int]:
        return [self.anchor + offset * self.period for offset in offsets]
