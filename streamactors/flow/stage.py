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

  (D1) The stage takes no message unless all its outputs have room; then everything that the message makes the chain
       emit is put, without waiting in between. Only the order of the sequence keeps a channel unread.

If we crash: state in memory is gone with the messages that made it; both come again from the checkpoint's position.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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

from .operator import AsyncOperator, Emit, Operator

_MEASURE_SECONDS = 0.05
"""Busy time after which a stage tells its senders anew how much it can handle."""

_PART_CACHE_MAX = 200_000
"""Keys whose part is remembered by a shuffle; then it starts afresh."""

HandOver = Callable[[str, int, list[Delta]], None]
"""(stage, epoch, what changed)"""


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

        self._chain = chain
        self._clock = clock
        self._interval = interval  # seconds between checkpoints: what a mailbox may hold
        self._merge: SequenceMerge | None = None
        self._head = chain.operators[0] if chain.operators and isinstance(chain.operators[0], AsyncOperator) else None
        self._messages: deque[Batch | Signal] = deque()  # of the sequence number that is being handled
        self._encoding: tuple[int, list[Durable]] | None = None
        self._committed: list[int] = []
        self._ending = False
        self._unyielded = 0
        self._busy = 0.0
        self._busy_records = 0
        self._pace: int | None = None

    @property
    def operators(self) -> list[Operator]:
        """The operators that are fused here, upstream first."""
        return self._chain.operators

    def committed(self, epoch: int) -> None:
        """Say that *epoch* is durable; noted between two messages."""
        self._committed.append(epoch)
        self.wake()

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
        await self._yield(len(message) if isinstance(message, Batch) else 0)
        return True

    def _next(self) -> Batch | Signal | None:
        """Return the next message; promise what is known when there is none."""
        if self._merge is None:
            self._merge = SequenceMerge(self.inputs)
        if not self._messages and all(channel.has_room for channel in self.outputs):
            self._take_group(self._merge)
        if self._messages:
            return self._messages.popleft()
        self._advance(self._merge.progress)
        return None

    def _take_group(self, merge: SequenceMerge) -> None:
        group = merge.next()
        if group is None:
            return
        self.sequence = group.sequence
        for batches in group.batches:
            # Parts of one piece meet again here. By channel alone, their order would show where it was cut (T2).
            self._messages.extend(batches if len(self.inputs) == 1 else Batch.interleave(batches))
        if group.signal is not None:
            self._messages.append(group.signal)

    async def _handle(self, message: Batch | Signal) -> None:
        if isinstance(message, Batch):
            await self._on_batch(message)
        else:
            self._on_signal(message)
        if not self._messages:
            self._advance(self.sequence)

    async def _on_batch(self, batch: Batch) -> None:
        started = self._clock.monotonic()
        if self._head is not None:
            self._head.records_in += len(batch)
            result = await self._head.on_batch_async(batch)
            if result.values:
                self._head.emit(result)
        else:
            for entry in self._chain.entries:
                entry(batch)
        self._measure(len(batch), self._clock.monotonic() - started)
        if any(durable.full for durable in self._chain.durables):
            self.press()

    def _on_signal(self, signal: Signal) -> None:
        operators = self._chain.operators
        match signal:
            case Watermark(time):
                assert time >= self.watermark, f"{self.name}: the watermark went back to {time}"
                self.watermark = time
                for operator, hold in zip(operators, self._chain.holds, strict=True):
                    operator.on_watermark(time if time == MAX_TIME else time - hold)
            case ClockMark(time):
                for operator in operators:
                    operator.on_clock(time)
            case Flush():
                for operator in operators:
                    operator.on_flush()
            case Barrier(_, epoch):
                self._freeze(epoch)
            case End():
                self._ending = True
        for channel in self.outputs:
            channel.put(self.sequence, signal)

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
        for channel in self.outputs:
            channel.advance(sequence)

    def _measure(self, records: int, seconds: float) -> None:
        """Tell the senders how much this stage, and what is behind it, handles in a checkpoint interval."""
        self._busy += seconds
        self._busy_records += records
        if self._busy >= _MEASURE_SECONDS:
            self._pace = int(self._busy_records / self._busy * self._interval)
            self._busy, self._busy_records = 0.0, 0
        bounds = [channel.records_max for channel in self.outputs]
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
