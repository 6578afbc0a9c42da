"""``check_sink``: does a sink keep (E2), whatever happens between a checkpoint and its commits?

    async def test_my_sink(tmp_path):
        await check_sink(lambda folder: MySink(folder / "target"), read, folder=tmp_path)

A *life* is what a process does: it opens the target, recovers what a checkpoint holds and the target does not show,
and takes epochs. It uses the job's own PendingOutput and Committer, and a real store, so the sequence of prepare,
checkpoint, commit and delete is the true one. Each step is a *point*; lives end before, after and, for calls of the
target, in the middle of each (the call is cancelled, and whatever it handed to a thread goes on). The next life goes
on. In the end, and after each death, what is visible is compared with what was written.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from streamactors.core.connectors import Payload, Sink, SinkTarget, Stamp, World
from streamactors.core.errors import SinkConflict
from streamactors.durable.log import Log
from streamactors.durable.realtime import real_ports
from streamactors.durable.state import OperatorRow
from streamactors.durable.store import Checkpoint, Store
from streamactors.job.pending import Committer, PendingOutput, database_of, expect_what_is_there

from .sink_scripts import Appends, Epoch, Script, Upserts, Visible, comparable

T = TypeVar("T")

Read = Callable[[Path], Visible | Awaitable[Visible]]
_JOB = "check-sink"


async def check_sink(
    make_sink: Callable[[Path], Sink],
    read: Read,
    *,
    folder: Path,
    value: Callable[[int, str], Any] = lambda number, text: {"number": number, "text": text},
) -> list[str]:
    """
    Attack a sink, and raise AssertionError with the attack's name when it loses, repeats, or shows too early.

    Returns the names of all attacks.

    Args:
        make_sink:
            Makes the sink of one life; called for each, because a process remembers nothing. Where the target is
            something local, put it into the folder that is given; it is a new one for each attack, and the data folder
            of the World too.

        read:
            Returns what is visible in the target of that folder; plain or async. No life is open meanwhile. For a sink
            that appends, a list for each partition of its values in order; for one with upserts, a dict from (key,
            start of the window) to value, or from (key, None) where rows have no window.

        folder:
            An empty folder for all of it.

        value:
            Makes a value of a number and a text, if the sink can't take a dict of the two. Its text may have 5 MB.

    What it covers:
        Death before, after and in the middle of each step, and again in the life that recovers; several partitions,
        parts and batches in an epoch; epochs without output; commits that are repeated; an expectation that is not met;
        a stamp that nobody can explain; a new incarnation; another job beside it; values of 5 MB; ``write`` without
        stamp; of upserts, corrections, deletes and rows that come again, with windows and without.

    What it does not cover:
        A power cut (is what the target answers for durable?), a process that is killed in the middle of a write of
        its own (its ``close`` is called here), other programs at the target, a target that is slow, full or gone,
        values that it can't take, two processes at once. The simulated disk (testing/disk.py) and real processes show
        those.
    """
    arena = _Arena(make_sink, read, folder)
    upserts = make_sink(folder / "nothing").upserts
    for windowed in (True, False) if upserts else (False,):
        script = Upserts(value, windowed=windowed) if upserts else Appends(value)
        name = "" if not upserts else "windows: " if windowed else "no windows: "
        huge = Upserts(value, windowed=windowed, huge=True) if upserts else Appends(value, huge=True)
        points = await arena.attack(f"{name}no death", _lives, script, [])
        await arena.attack(f"{name}a value of 5 MB", _lives, huge, [])
        for attack in (_repeated, _unexpected, _foreign, _new_incarnation, _beside_another_job, _unstamped):
            await arena.attack(name + attack.__name__.strip("_").replace("_", " "), attack, script)
        await _deaths(arena, name, script, points)
    return arena.attacks


class _Died(Exception):
    """The life ends here."""


@dataclass(frozen=True, slots=True)
class _Death:
    """Where a life ends: at which of its points, and on which side of it."""

    point: int
    side: str  # before, during, after


@dataclass
class _Arena:
    """A sink under attack, and a folder for each attack."""

    make_sink: Callable[[Path], Sink]
    read: Read
    root: Path
    attacks: list[str] = field(default_factory=list)
    folder: Path = field(default_factory=Path)

    async def attack(self, name: str, attack: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Carry out an attack in a new folder; say which it was when something does not hold."""
        self.attacks.append(name)
        self.folder = self.root / f"attack-{len(self.attacks)}"
        self.folder.mkdir(parents=True)
        try:
            return await attack(self, *arguments)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"check_sink, attack '{name}' in {self.folder}: {what}") from error

    async def visible(self) -> Visible:
        """Return what the target shows."""
        found = self.read(self.folder)
        return await found if inspect.isawaitable(found) else found


# Lives. ---------------------------------------------------------------------------------------------------------------


class _Life:
    """What one process does. With ``async with``: however it ends, it is closed."""

    def __init__(self, arena: _Arena, *, job: str = _JOB, incarnation: str = "1", death: _Death | None = None) -> None:
        self.sink = arena.make_sink(arena.folder)
        self.points: list[str] = []
        """What was reached."""

        self.target: _Pointed
        self._job, self._incarnation, self._death = job, incarnation, death
        self._ports = real_ports()
        self._log = Log(arena.folder, self._ports)
        self._world = World(arena.folder, self._ports, self._log)
        state = arena.folder.with_name(f"{arena.folder.name}-state") / f"{job}-{incarnation}"
        state.mkdir(parents=True, exist_ok=True)
        self._store = Store.open(state, sync=False)
        self._attempt = self._store.begin_attempt("region")
        restored = self._store.restore("region")
        self.epoch = 0 if restored is None else restored.epoch
        """The last that is durable."""

    async def __aenter__(self) -> Self:
        try:
            return await self._start()
        except BaseException:
            await self._end()
            raise

    async def __aexit__(self, *error: object) -> None:
        await self._end()

    async def _start(self) -> Self:
        self.partitions = await self.sink.partitions(self._world)
        self.target = _Pointed(await self.sink.target(self._world), self.point)
        self._committer = Committer(self.sink.id, self._job, self.target)
        with self._store.snapshot() as snapshot:
            rows = snapshot.scan(database_of(self.sink.id))
        await self._committer.recover(rows)
        self._row = OperatorRow(self._store, "rows", "sink")
        await expect_what_is_there(self._row, self.target, self.partitions, self._job, self.sink.id, self._incarnation)
        writer = self.sink.writer(self.partitions)
        self.pending = PendingOutput(writer, self._row, job=self._job, sink=self.sink.id, incarnation=self._incarnation)
        return self

    async def _end(self) -> None:
        if hasattr(self, "target"):
            await self.target.close()
        await self._log.close()
        self._store.close()
        await self._ports.threads.close()

    async def point(self, name: str, work: Callable[[], Awaitable[T]], *, during: bool = False) -> T:
        """Do *work*, unless the life ends here."""
        number = len(self.points)
        self.points.append(name)
        side = self._death.side if self._death is not None and self._death.point == number else None
        if side == "before" or (side == "during" and not during):
            raise _Died
        if side == "during":
            task = asyncio.ensure_future(work())
            for _ in range(2):  # as far as the first thing that it hands over
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            raise _Died
        result = await work()
        if side == "after":
            raise _Died
        return result

    async def take(self, batches: Epoch) -> None:
        """Take an epoch."""
        await self._committer.after(await self.checkpoint(batches))

    async def checkpoint(self, batches: Epoch) -> list[Any]:
        """Make an epoch durable; nothing of it is committed yet."""
        epoch = self.epoch + 1
        for batch in batches:
            self.pending.write(batch)

        async def prepare() -> list[Any]:
            self.pending.freeze(epoch)
            while not self.pending.encode(1):
                pass
            return self.pending.hand_over()

        async def commit() -> None:
            self._store.commit(Checkpoint("region", self._attempt, epoch, position={}, deltas=[*settled, *rows]))

        rows = await self.point(f"prepare of epoch {epoch}", prepare)
        settled = await self._committer.before()
        await self.point(f"checkpoint {epoch}, which deletes what was committed before", commit)
        self.pending.committed(epoch)
        self.epoch = epoch
        return rows


class _Pointed:
    """A target whose calls are points."""

    def __init__(self, target: SinkTarget, point: Callable[..., Awaitable[Any]]) -> None:
        self._target, self._point = target, point
        self.last: tuple[Payload, Stamp, Stamp | None] | None = None
        """What was committed last."""

    async def last_stamp(self, partition: int, job: str, sink: str) -> Stamp | None:
        stamp: Stamp | None = await self._point(
            f"last_stamp({partition})", lambda: self._target.last_stamp(partition, job, sink), during=True
        )
        return stamp

    async def commit(self, payload: Payload, stamp: Stamp, expect: Stamp | None) -> None:
        name = f"commit of epoch {stamp.epoch}, partition {payload.partition}, part {stamp.part} of {stamp.parts}"
        await self._point(name, lambda: self._target.commit(payload, stamp, expect), during=True)
        self.last = payload, stamp, expect

    def committed(self) -> tuple[Payload, Stamp, Stamp | None]:
        """Return what was committed last."""
        assert self.last is not None, "nothing was committed: does the writer return what it took?"
        return self.last

    async def write(self, payload: Payload) -> None:
        await self._target.write(payload)

    async def close(self) -> None:
        await self._target.close()


# Attacks. -------------------------------------------------------------------------------------------------------------


async def _deaths(arena: _Arena, name: str, script: Script, points: Sequence[str]) -> None:
    for number, point in enumerate(points):
        for side in ("before", "during", "after"):
            if side == "during" and not point.startswith(("commit", "last_stamp")):
                continue
            first = _Death(number, side)
            await arena.attack(f"{name}death {side} {point}", _lives, script, [first])
            if point.startswith(("commit", "checkpoint")):  # then the next life has something to recover
                # Of its points, the first are last_stamp and commit for each partition with pending output.
                again = _Death(number % 3, ("after", "during", "before")[number // 3 % 3])
                what = f"{name}death {side} {point}, then {again.side} the recovering life's point {again.point}"
                await arena.attack(what, _lives, script, [first, again])


async def _lives(arena: _Arena, script: Script, deaths: Sequence[_Death]) -> list[str]:
    """Let lives die, one after the other, and another one finish; return the points of the last."""
    for death in [*deaths, None]:
        life = _Life(arena, death=death)
        try:
            async with life:
                for batches in script.epochs[life.epoch :]:
                    await life.take(batches)
        except _Died:
            script.require(await arena.visible(), life.epoch - 1 if life.epoch else 0, life.epoch)
        if death is None:
            break
    assert life.epoch == len(script.epochs)
    script.require(await arena.visible(), life.epoch, life.epoch)
    return life.points


async def _repeated(arena: _Arena, script: Script) -> None:
    for epoch, batches in enumerate(script.epochs, 1):
        async with _Life(arena) as life:
            await life.take(batches)
            if (last := life.target.last) is not None:
                for _ in range(2):
                    await life.target.commit(*last)
        script.require(await arena.visible(), epoch, epoch)


async def _unexpected(arena: _Arena, script: Script) -> None:
    async with _Life(arena) as life:
        await life.take(script.epochs[0])
        payload, stamp, expect = life.target.committed()
        other = Stamp(stamp.job, stamp.sink, "another", 1, 1, 1)
        following = Stamp(stamp.job, stamp.sink, stamp.incarnation, 2, 1, 1)
        for wrong in (other, expect):
            await _refused(life.target.commit(payload, following, wrong), f"a commit that expects {wrong}")
    script.require(await arena.visible(), 1, 1)
    await _lives(arena, script, [])  # and what is expected goes on


async def _foreign(arena: _Arena, script: Script) -> None:
    async with _Life(arena) as life:
        await life.take(script.epochs[0])
        payload, stamp, _ = life.target.committed()
    async with _Life(arena) as life:
        await life.checkpoint(script.epochs[1])
        foreign = Stamp(stamp.job, stamp.sink, "foreign", 9, 1, 1)
        for partition in range(life.partitions):
            shown = await life.target.last_stamp(partition, stamp.job, stamp.sink)
            await life.target.commit(Payload(partition, payload.data), foreign, shown)
    before = await arena.visible()

    async def recover() -> None:
        async with _Life(arena):
            pass

    await _refused(recover(), "recovery where the target shows a stamp that nobody can explain")
    assert comparable(_plain(await arena.visible())) == comparable(_plain(before)), "a refused commit is visible"


async def _new_incarnation(arena: _Arena, script: Script) -> None:
    half = len(script.epochs) // 2
    async with _Life(arena) as life:
        for batches in script.epochs[:half]:
            await life.take(batches)
    async with _Life(arena, incarnation="2") as life:
        for batches in script.epochs[half:]:
            await life.take(batches)
    script.require(await arena.visible(), len(script.epochs), len(script.epochs))


async def _beside_another_job(arena: _Arena, script: Script) -> None:
    """Epochs alternate between two jobs; neither sees the other's stamps."""
    for epoch, batches in enumerate(script.epochs):
        async with _Life(arena, job=f"{_JOB}-{epoch % 2}") as life:
            await life.take(batches)
    # Jobs have an order each, not one together: only what is there is compared.
    if isinstance(script, Upserts):
        script.require(await arena.visible(), len(script.epochs), len(script.epochs))
    else:
        found = sorted(comparable(value) for partition in await arena.visible() for value in partition)
        wanted = sorted(comparable(v) for epoch in script.epochs for batch in epoch for v in batch.values)
        assert found == wanted, f"{len(found)} values of two jobs are visible, should be {len(wanted)}"


async def _unstamped(arena: _Arena, script: Script) -> None:
    """``write`` shows at once and leaves the stamps alone; what follows exactly-once goes on from them."""
    async with _Life(arena) as life:
        await life.take(script.epochs[0])
        stamps = [await life.target.last_stamp(n, _JOB, life.sink.id) for n in range(life.partitions)]
        writer = life.sink.writer(life.partitions)
        for batches in script.epochs[1:]:
            for batch in batches:
                writer.write(batch)
                for payload in writer.take():
                    await life.target.write(payload)
        after = [await life.target.last_stamp(n, _JOB, life.sink.id) for n in range(life.partitions)]
        assert stamps == after, f"write() changed the stamps from {stamps} to {after}"
    found = await arena.visible()
    if isinstance(script, Upserts):
        script.require(found, len(script.epochs), len(script.epochs))
    else:
        shown = sorted(comparable(value) for partition in found for value in partition)
        assert shown == sorted(comparable(v) for epoch in script.epochs for batch in epoch for v in batch.values)


async def _refused(work: Awaitable[None], what: str) -> None:
    try:
        await work
    except SinkConflict:
        return
    raise AssertionError(f"{what} was not refused with SinkConflict")


def _plain(visible: Visible) -> Any:
    return sorted(map(repr, visible.items())) if isinstance(visible, dict) else visible
