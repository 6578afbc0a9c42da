"""The stage: the one shell where operators meet a mailbox.

A stage is the actor that runs a chain of fused operators for one part. It takes messages in sequence order, calls the
chain, and puts what comes out into its output channels. All decisions are elsewhere: the order in engine/mailbox.py,
what happens to records in the operators, what survives in durable/state.py.

The life of a barrier here, in the order of the code:

    1. taken from the merge, when every channel has promised that nothing more comes before it
    2. every store of the chain freezes (O(1): a memtable is set aside)
    3. forwarded to all outputs, before the next message is taken
    4. the frozen entries are encoded in slices, between messages and while there is none
    5. handed over to the coordinator; the stage never waits for the disk
    6. ``committed``: the frozen memtables are known to be durable and become cache

  (D1) The stage begins no number of the sequence unless all its outputs have room; then everything that its messages
       make the chain emit is put, without waiting in between. Only the order of the sequence keeps a channel unread.

A chain whose head awaits a function (flow/async_calls.py) takes messages ahead: calls begin when a message is taken,
and the rest of the chain sees it when it may leave, in the order of the sequence. The stage never waits inside such a
call: a barrier that stands behind calls in flight waits with the messages, and not this actor.

If we crash: state in memory is gone with the messages that made it; both come again from the checkpoint's position.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streamactors.core.batch import Batch
from streamactors.core.keys import CanonicalKey, encode_key, key_group
from streamactors.core.limits import BATCH_RECORDS_MAX, ENCODE_SLICE_ENTRIES, KEY_GROUPS
from streamactors.core.ports import Clock
from streamactors.core.signals import Barrier, ClockMark, End, Flush, Signal, Watermark
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.durable.state import Durable
from streamactors.durable.store import Delta
from streamactors.engine.actor import Actor
from streamactors.engine.mailbox import Channel, SequenceMerge

from .async_calls import AsyncOperator
from .in_flight import Answered
from .operator import Emit, Operator

_MEASURE_SECONDS = 0.05
"""Busy time after which a stage tells its senders anew how much it can handle."""

_PART_CACHE_MAX = 200_000
"""Keys whose part is remembered by a shuffle; then it starts afresh."""

HandOver = Callable[[str, int, list[Delta]], None]
"""(stage, epoch, what changed)"""


class Outlet(Protocol):
    """Takes output out of the region, at the pace of its target."""

    on_room: Callable[[], None]
    """Called when there is room again."""

    records_max: int
    """Records that may wait in it."""

    @property
    def has_room(self) -> bool:
        """Whether the stage may handle another message."""


@dataclass
class Chain:
    """Operators that call each other as plain functions, upstream first."""

    operators: list[Operator]
    entries: list[Emit]
    """Where the stage puts a batch."""

    holds: list[int] = field(default_factory=list)
    """For each operator, how many ms its watermark is held back: what operators before it may still emit."""

    durables: list[Durable] = field(default_factory=list)
    """What the operators keep that must survive."""

    outlets: list[Outlet] = field(default_factory=list)
    """Where the chain's output leaves the region at once."""


class Stage(Actor):
    """Run a chain. See the module's header."""

    def __init__(self, name: str, chain: Chain, *, clock: Clock, interval: float) -> None:
        super().__init__(name)
        self.inputs: list[Channel] = []
        self.outputs: list[Channel] = []
        self.watermark = MIN_TIME
        self.sequence = 0
        self.hand_over: HandOver = _nobody
        self.press: Callable[[], None] = lambda: None
        """Called when what is not durable yet has reached a limit."""

        self.handled = 0
        """The sequence number up to which everything was handled."""

        self._chain = chain
        self._clock = clock
        self._interval = interval  # seconds between checkpoints: what a mailbox may hold
        self._merge: SequenceMerge | None = None
        self._head = chain.operators[0] if chain.operators and isinstance(chain.operators[0], AsyncOperator) else None
        if self._head is not None:
            self._head.wake = self.wake
        self._messages: deque[tuple[int, Batch | Signal]] = deque()  # of the sequence number that is being handled
        self._encoding: tuple[int, list[Durable]] | None = None
        self._committed: list[int] = []
        self._ending = False
        self._unyielded = 0
        self._busy = 0.0
        self._busy_records = 0
        self._calling_since = 0.0  # when results left last, or calls began after a rest
        self._pace: int | None = None
        for outlet in chain.outlets:
            outlet.on_room = self.wake

    @property
    def operators(self) -> list[Operator]:
        """The operators that are fused here, upstream first."""
        return self._chain.operators

    @property
    def records_per_second(self) -> float | None:
        """How much it handles while it is busy, when that is known."""
        return None if self._pace is None else self._pace / self._interval

    @property
    def encodes(self) -> bool:
        """Whether it has met the barrier of an epoch that it has not handed over."""
        return self._encoding is not None

    def committed(self, epoch: int) -> None:
        """Say that *epoch* is durable; noted between two messages."""
        self._committed.append(epoch)
        self.wake()

    async def run(self) -> None:
        """Run to the end, or until told to stop; leave no call behind."""
        try:
            await super().run()
        finally:
            if self._head is not None:
                await self._head.close()

    async def step(self) -> bool:
        """Handle one message, or encode one slice; False when there is neither."""
        if self._committed:
            self._note_committed()
        message = self._next()
        if message is not None:
            await self._handle(message)
        encoded = self._encode_slice()
        if self._ending and self._encoding is None:
            self.stopping = True
        if message is None and not encoded:
            return False
        await self._yield(_rows_in(message))
        return True

    def _next(self) -> Batch | Answered | Signal | None:
        """Return the next message; promise what is known when there is none."""
        if self._merge is None:
            self._merge = SequenceMerge(self.inputs)
        if self._head is not None:
            return self._next_answered(self._head, self._merge)
        if not self._messages and self._has_room:
            self._take_group(self._merge)
        if self._messages:
            self.sequence, message = self._messages.popleft()
            return message
        self._advance(self._merge.progress)
        return None

    def _next_answered(self, head: AsyncOperator, merge: SequenceMerge) -> Answered | Signal | None:
        """Begin the calls that there is room for; return what may go on."""
        if not head.in_flight.rows:
            self._calling_since = self._clock.monotonic()
        while head.in_flight.has_room and self._take_group(merge):
            while self._messages:
                head.take(*self._messages.popleft())
        left = head.leave(self.sequence, room=self._has_room)
        if left is None:
            passed = head.in_flight.passed
            self._advance(merge.progress if passed is None else passed)
            return None
        self.sequence, message = left
        return message

    @property
    def _has_room(self) -> bool:
        return all(to.has_room for to in self.outputs) and all(to.has_room for to in self._chain.outlets)

    def _take_group(self, merge: SequenceMerge) -> bool:
        group = merge.next()
        if group is None:
            return False
        for batches in group.batches:
            # Parts of one piece meet again here. By channel alone, their order would show where it was cut (T2).
            messages = batches if len(self.inputs) == 1 else Batch.interleave(batches)
            self._messages.extend((group.sequence, message) for message in messages)
        if group.signal is not None:
            self._messages.append((group.sequence, group.signal))
        return True

    async def _handle(self, message: Batch | Answered | Signal) -> None:
        if isinstance(message, Batch | Answered):
            self._on_rows(message)
        else:
            await self._on_signal(message)
        passed = None if self._head is None else self._head.in_flight.passed
        if passed is not None:  # more may leave with this number
            self._advance(passed)
        elif not self._messages:
            self._advance(self.sequence)

    def _on_rows(self, rows: Batch | Answered) -> None:
        if isinstance(rows, Batch):
            started = self._clock.monotonic()
            for entry in self._chain.entries:
                entry(rows)
            self._measure(len(rows), self._clock.monotonic() - started)
        else:
            assert self._head is not None, f"{self.name}: nobody was called, and {len(rows.batch)} rows have answered"
            self._head.pass_on(rows)
            since, self._calling_since = self._calling_since, self._clock.monotonic()
            self._measure(len(rows.batch), self._calling_since - since)
        if any(durable.full for durable in self._chain.durables):
            self.press()

    async def _on_signal(self, signal: Signal) -> None:
        match signal:
            case Watermark(time):
                assert time >= self.watermark, f"{self.name}: the watermark went back to {time}"
                self.watermark = time
                for operator, hold in zip(self._chain.operators, self._chain.holds, strict=True):
                    await self._take_turns(operator.turns(Watermark(time if time == MAX_TIME else time - hold)))
            case ClockMark() | Flush():
                for operator in self._chain.operators:
                    await self._take_turns(operator.turns(signal))
            case Barrier(_, epoch):
                self._freeze(epoch)
            case End():
                self._ending = True
        for channel in self.outputs:
            channel.put(self.sequence, signal)

    async def _take_turns(self, turns: Iterable[None]) -> None:
        """Give the loop to others between turns: a window of a million keys takes seconds."""
        for _ in turns:
            await asyncio.sleep(0)

    def _freeze(self, epoch: int) -> None:
        assert self._encoding is None, f"B1: {self.name} met epoch {epoch} before it handed over {self._encoding}"
        for durable in self._chain.durables:
            durable.freeze(epoch)
        self._encoding = (epoch, list(self._chain.durables))

    def _encode_slice(self) -> bool:
        """Encode some frozen entries; hand over when none is left. Return whether there was anything to do."""
        if self._encoding is None:
            return False
        epoch, remaining = self._encoding
        while remaining:
            if not remaining[0].encode(ENCODE_SLICE_ENTRIES):
                return True
            remaining.pop(0)
        self._encoding = None
        self.hand_over(self.name, epoch, [d for durable in self._chain.durables for d in durable.hand_over()])
        return True

    def _note_committed(self) -> None:
        epochs, self._committed = self._committed, []
        for epoch in epochs:
            for durable in self._chain.durables:
                durable.committed(epoch)

    def _advance(self, sequence: int) -> None:
        self.handled = sequence
        for channel in self.outputs:
            channel.advance(sequence)

    def _measure(self, records: int, seconds: float) -> None:
        """Tell the senders how much this stage, and what is behind it, handles in a checkpoint interval."""
        self._busy += seconds
        self._busy_records += records
        if self._busy >= _MEASURE_SECONDS:
            self._pace = int(self._busy_records / self._busy * self._interval)
            self._busy, self._busy_records = 0.0, 0
        bounds = [to.records_max for to in self.outputs] + [to.records_max for to in self._chain.outlets]
        if self._pace is not None:
            bounds.append(self._pace)
        if bounds:
            for channel in self.inputs:
                channel.pace(min(bounds))

    async def _yield(self, records: int) -> None:
        """Let others use the loop after about a batch of work."""
        self._unyielded += records + 1
        if self._unyielded >= BATCH_RECORDS_MAX:
            self._unyielded = 0
            await asyncio.sleep(0)


def _rows_in(message: Batch | Answered | Signal | None) -> int:
    if isinstance(message, Answered):
        return len(message.batch)
    return len(message) if isinstance(message, Batch) else 0


def _nobody(stage: str, epoch: int, _deltas: list[Delta]) -> None:
    raise AssertionError(f"{stage} handed over epoch {epoch} before anyone listened")


@dataclass
class Forward:
    """An outlet: the chain's output goes to one channel."""

    stage: Stage
    channel: Channel

    def __call__(self, batch: Batch) -> None:
        """Put *batch* at the stage's place in the sequence."""
        self.channel.put(self.stage.sequence, batch, len(batch), batch.bytes)


class Shuffle:
    """An outlet: each record goes to the part that owns its key's group."""

    def __init__(self, stage: Stage, channels: Sequence[Channel]) -> None:
        self._stage = stage
        self._channels = list(channels)
        self._part_of: dict[CanonicalKey, int] = {}

    def __call__(self, batch: Batch) -> None:
        """Split *batch* by part, keeping the order within each, and put the pieces."""
        assert batch.keys is not None, f"{self._stage.name}: a shuffle needs keys"
        parts = self._parts(batch.keys)
        for part in sorted(set(parts)):
            piece = batch.select([p == part for p in parts])
            self._channels[part].put(self._stage.sequence, piece, len(piece), piece.bytes)

    def _parts(self, keys: list[CanonicalKey]) -> list[int]:
        known = self._part_of
        if len(known) > _PART_CACHE_MAX:
            known.clear()
        for key in set(keys).difference(known):
            known[key] = part_of_group(key_group(encode_key(key)), len(self._channels))
        return [known[key] for key in keys]


def part_of_group(group: int, parts: int) -> int:
    """Return the part that owns a key group: contiguous ranges of nearly equal size."""
    return group * parts // KEY_GROUPS


def groups_of_part(part: int, parts: int) -> range:
    """Return the key groups that a part owns."""
    owned = [group for group in range(KEY_GROUPS) if part_of_group(group, parts) == part]
    return range(owned[0], owned[-1] + 1)
