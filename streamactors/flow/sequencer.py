"""The sequencer: the actor that gives each batch its place. Its decisions are in flow/sequencing.py.

It serves all sources of its region: where their streams meet, one order is what makes the result a function.

It takes from the readers what comes next (by ``choose`` in a live run, by the journal when it follows one), and sends
pieces and signals to the stages that the source feeds. It is also where a barrier enters the stream, where time enters
it (idle partitions, the clock), and where a bounded run ends.

  (D1) A batch is numbered only when all its outputs have room. A barrier needs no room: a paused or idle source still
       passes it on.

How a run ends (``Bound``):

    LIVE        never by itself; drained by a last barrier, event time does not move
    UNTIL_END   all readers have come to the ends as they were at the start: a flush mark, a last barrier
    FINISH      the same, but event time ends: everything fires finally
    the end of a journal that is followed: a last barrier
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.ports import Clock
from streamactors.core.signals import Barrier
from streamactors.core.times import MIN_TIME
from streamactors.engine.actor import Actor
from streamactors.engine.mailbox import Channel

from .event_time import EventTime
from .guide import Guide
from .reader import Reader, parted
from .sequencing import Entry, Message, PartitionId, Sequencing, choose

CHUNK_OFFSETS = 65_536
"""Offsets that a partition of a source without event time gives before it is the next one's turn."""

TICK_SECONDS_MAX = 0.05
"""How late an idle mark or a clock mark may be: a twentieth of a second nobody sees, and 20 looks a second cost 0.1 %
of a core."""

OnCut = Callable[[int, Any, list[Entry]], None]
"""(epoch, position as plain data, journal entries of the epoch)"""


class Bound(Enum):
    """How far a run goes."""

    LIVE = "live"
    UNTIL_END = "until-end"
    FINISH = "finish"


class Sequencer(Actor):
    """Number what the readers read. See the module's header."""

    def __init__(
        self,
        name: str,
        sequencing: Sequencing,
        readers: Sequence[Reader],
        outputs: Mapping[str, Sequence[Channel]],
        dead: Mapping[str, Sequence[Channel]],
        *,
        clock: Clock,
        event_times: Mapping[str, EventTime | None],
        clock_period: int | None,
        bound: Bound,
        batch_records: int,
        guide: Guide | None = None,
    ) -> None:
        super().__init__(name)
        self.sequencing = sequencing
        self.exhausted = False
        """Whether nothing more will be numbered: a bounded run came to its end, or the job drains."""

        self.held = False
        """Whether numbering waits for a checkpoint, because too much is not durable yet. Barriers pass."""

        self.records = 0
        """Numbered so far."""

        self.on_cut: OnCut = _nobody
        self.on_exhausted: Callable[[], None] = _nothing
        self.on_caught_up: Callable[[], None] = _nothing
        """Called when all that is known of a followed journal is done, and not all of it is in a checkpoint."""

        self._readers: dict[PartitionId, Reader] = {reader.partition: reader for reader in readers}
        self._outputs = {source: list(channels) for source, channels in outputs.items()}
        self._dead = {source: list(channels) for source, channels in dead.items()}
        channels = [*outputs.values(), *dead.values()]
        self._channels = list(dict.fromkeys(channel for group in channels for channel in group))
        self._clock = clock
        self._event_times = event_times
        self._clock_period = clock_period
        self._bound = bound
        self._batch_records = batch_records
        self.guide = guide
        """The journal that is followed; None: this sequencer decides."""

        self._barrier: tuple[Barrier, bool] | None = None
        self._cut_at = sequencing.position.sequence
        self._paced_from: tuple[int, float] | None = None
        for reader in readers:
            reader.notify = self.wake

    @property
    def sequence(self) -> int:
        """The number that was given last."""
        return self.sequencing.position.sequence

    @property
    def wanted(self) -> PartitionId | None:
        """The partition that the journal which is followed reads from next; None where none is followed."""
        row = None if self.guide is None else self.guide.next
        return (row[1], row[2]) if row is not None and row[0] == "read" else None

    @property
    def taken(self) -> bool:
        """Whether the stages have taken all that was numbered."""
        return not any(len(channel) for channel in self._channels)

    @property
    def changed(self) -> bool:
        """Whether anything happened since the last barrier."""
        return bool(self.sequencing.journal) or self.sequence != self._cut_at

    def request_barrier(self, barrier: Barrier, *, last: bool) -> None:
        """Ask for a barrier at the next free place; with *last*, the stream ends behind it."""
        assert self._barrier is None, f"B1: {barrier} was asked for before {self._barrier} was sent"
        self._barrier = (barrier, last)
        self.wake()

    def drain(self) -> None:
        """Number nothing more; event time does not move."""
        self._exhaust(())

    def end(self) -> None:
        """Say that nothing follows, and leave."""
        self._send_all(self.sequencing.end())
        self.stop()
        for reader in self._readers.values():
            reader.leave()

    async def step(self) -> bool:
        """Send one batch or what is due; False when nothing can be sent."""
        if self._barrier is not None:
            self._send_barrier(*self._barrier)
            return True
        if self.exhausted or self.held:
            return False
        if self.guide is not None:
            return self._follow(self.guide)
        if all(channel.has_room for channel in self._channels):  # else marks would pile up before a stage that stands
            self._mark_time()
        return self._admit_next()

    def _has_room(self, source: str) -> bool:
        """Whether a batch of *source* may be numbered (D1)."""
        return all(channel.has_room for channel in [*self._outputs[source], *self._dead[source]])

    def _admit_next(self) -> bool:
        heads = {key: head for key, reader in self._readers.items() if (head := reader.head()) is not None}
        if self._bound is Bound.LIVE:  # a source whose outputs are full does not hold up the others
            free = {key: head for key, head in heads.items() if self._has_room(key[0])}
            if heads and not free:
                return False
            heads = free
        if not heads:
            if self._bound is not Bound.LIVE and all(reader.exhausted for reader in self._readers.values()):
                mark = self.sequencing.flush if self._bound is Bound.UNTIL_END else self.sequencing.finish
                self._exhaust(mark())
            return False
        choice = choose(self.sequencing, heads, CHUNK_OFFSETS)
        if choice is None:
            return False
        key, records = choice
        if not self._has_room(key[0]):
            return False
        limit = min((channel.records_max for channel in self._outputs[key[0]]), default=records)
        self._admit(key, min(records, limit, self._batch_records))
        return True

    def _admit(self, key: PartitionId, records: int, until: int | None = None) -> None:
        outputs = self._outputs[key[0]]
        assert all(channel.has_room for channel in outputs), f"D1: {key} is numbered while an output of it is full"
        batch, end, dead = self._readers[key].take(records, until)
        self.records += len(batch)
        for message in self.sequencing.admit(key, batch, end):
            due, dead = parted(dead, message.offsets[-1] + 1) if isinstance(message, Batch) else (None, dead)
            self._send(message, outputs, due, self._dead[key[0]])
        if dead is not None:
            self._send(Batch([]), (), dead, self._dead[key[0]])
        self._paced_from = None

    def _follow(self, guide: Guide) -> bool:
        """Do what the journal says next."""
        row = guide.next
        if row is None:
            if guide.closed:
                self._exhaust(())
            elif self.changed:
                self.on_caught_up()
            return False
        kind, *rest = row
        if kind == "read":
            return self._follow_range(*rest)
        marks: dict[str, Callable[..., Iterator[Message]]] = {
            "idle": lambda source, partition: self.sequencing.idle((source, partition)),
            "pace": lambda watermark: self.sequencing.pace(watermark + 1),
            "clock": self.sequencing.mark,
            "flush": self.sequencing.flush,
            "finish": self.sequencing.finish,
        }
        for message in marks[kind](*rest):
            self._send(message)
        if kind == "finish":  # nothing follows, for whoever decided it neither
            self._exhaust(())
        return True

    def _follow_range(self, source: str, partition: int, first: int, end: int) -> bool:
        key = (source, partition)
        offset = self.sequencing.partitions[key].offset
        assert first <= offset < end, f"S1: the journal wants {first} to {end} of {key}, which stands at {offset}"
        reader = self._readers[key]
        head = reader.head()
        if not self._has_room(source):
            return False
        if reader.has_nothing_before(end):  # its records were erased, or all of them were dropped before their turn
            self._send_all(self.sequencing.admit(key, Batch([]), end))
            return True
        if head is None or head.batch is None:
            return False
        inside = sum(1 for at in head.batch.offsets if at < end) if head.end > end else len(head.batch)
        self._admit(key, min(inside, self._batch_records), end)
        return True

    def _mark_time(self) -> None:
        """Send the marks of time that are due: idle partitions, event time at the pace of the clock, the clock."""
        if self._bound is Bound.LIVE:
            now = self._clock.monotonic()
            for key, reader in self._readers.items():
                if self._is_idle(key[0], reader, now):
                    self._send_all(self.sequencing.idle(key))
            self._send_all(self._pace(now))
        if self._clock_period is not None:
            now_ms = self._clock.now_ms()
            self._send_all(self.sequencing.clock(now_ms - now_ms % self._clock_period))

    def _is_idle(self, source: str, reader: Reader, now: float) -> bool:
        event_time = self._event_times.get(source)
        if event_time is None or event_time.idle_after_ms is None or reader.quiet_since is None:
            return False
        return reader.head() is None and (now - reader.quiet_since) * 1_000 >= event_time.idle_after_ms

    def _pace(self, now: float) -> Iterator[Message]:
        paced = any(event_time is not None and event_time.pace_when_idle for event_time in self._event_times.values())
        if not paced or not self.sequencing.all_idle:
            self._paced_from = None
            return iter(())
        if self._paced_from is None:
            self._paced_from = (self.sequencing.reach_when_idle, now)
        reach, since = self._paced_from
        return self.sequencing.pace(reach + int((now - since) * 1_000)) if reach != MIN_TIME else iter(())

    def _exhaust(self, marks: Iterable[Message]) -> None:
        if not self.exhausted:
            self._send_all(marks)
            self.exhausted = True
            self.on_exhausted()

    def _send_barrier(self, barrier: Barrier, last: bool) -> None:  # noqa: FBT001 - one caller, which has a pair
        self._barrier = None
        self._send(barrier)
        self._cut_at = self.sequence
        self.on_cut(barrier.epoch, msgspec.to_builtins(self.sequencing.position), self.sequencing.take_journal())
        if last:
            self.end()

    def _send_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._send(message)

    def _send(
        self,
        message: Message,
        channels: Sequence[Channel] = (),
        dead: Batch | None = None,
        dead_channels: Sequence[Channel] = (),
    ) -> None:
        """Give *message* the next number: a batch goes to its source's outputs, a signal to all.

        Dead letters of records before a piece's end have the piece's number. Those of the stages have it as well, and
        where they meet they are put in the order of their records: it must not show how they fell into batches (T2).
        """
        position = self.sequencing.position
        position.sequence += 1
        if isinstance(message, Batch):
            pairs = [(channel, message) for channel in channels if message.values]
            pairs += [] if dead is None else [(channel, dead) for channel in dead_channels]
            for channel, batch in pairs:
                channel.put(position.sequence, batch, len(batch), batch.bytes)
        else:
            for channel in self._channels:
                channel.put(position.sequence, message)
        for channel in self._channels:
            channel.advance(position.sequence)


class Ticker(Actor):
    """Wake the sequencer often enough for marks of time. A region without such marks has none."""

    def __init__(self, name: str, sequencer: Sequencer, clock: Clock, seconds: float) -> None:
        super().__init__(name)
        self._sequencer = sequencer
        self._clock = clock
        self._seconds = min(seconds, TICK_SECONDS_MAX)

    async def run(self) -> None:
        """Tick until told to stop, or until the sequencer has ended."""
        while not self.stopping and not self._sequencer.stopping:
            await self.wait_woken_or(self._clock, self._seconds)
            self._sequencer.wake()


def _nobody(epoch: int, _position: Any, _entries: list[Entry]) -> None:
    raise AssertionError(f"epoch {epoch} was cut before anyone listened")


def _nothing() -> None:
    """Stand in until the coordinator listens."""
