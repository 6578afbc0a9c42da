"""Mailboxes: bounded channels between actors, and the one order in which a receiver takes from several.

A channel has one sender and one receiver. What is in it bears sequence numbers that never go down; beside the items
stands the channel's *progress*, a number that says "nothing more up to here". Progress takes no room and is no item.

    sender ── put(sequence, item) ──▶ [ items, bounded ] ── take() ──▶ receiver
           ── advance(sequence) ────▶   progress

Rule 1. No asyncio here. Whoever must wait gives a ``wake`` function; a wake without a reason costs a look, no more.
Rule 2. A sender asks ``has_room`` before it starts a sequence number, never in the middle of one. All that one number
        emits is admitted beyond the bound. That is what keeps a diamond from dead-locking: the receiver takes in
        sequence order, so the channel that holds the smallest number can always be emptied (D1).

Invariants:

  (M1) Sequence numbers in a channel never go down, and no item is put at or below the progress.
  (M2) A receiver takes a sequence number whole, and only when every channel has promised that nothing more comes for
       it. So what it sees is a function of the sequence, not of the speed of anyone.
  (M3) A signal has a sequence number of its own; it is taken once, has come on every channel, and is the same on each.

The bound follows the receiver: ``pace`` keeps a slow receiver's mailbox to what it handles in about one checkpoint
interval, so that a barrier never queues for minutes behind a slow sink. Until its speed is known it gets one batch.

If we crash: nothing here is stored. What was in a mailbox is read again from the source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamactors.core.limits import MAILBOX_BYTES_MAX, MAILBOX_RECORDS_MAX, UNPACED_RECORDS_MAX
from streamactors.core.signals import Signal

Item = tuple[int, Any, int, int]
"""(sequence, message, records, bytes)"""

_RECORDS_MIN = 16
"""The smallest bound that pacing gives: below it the fixed cost of a batch would slow the receiver down further."""


class Channel:
    """The mailbox of one receiver for one sender."""

    __slots__ = (
        "_items",
        "_wake_receiver",
        "_wake_sender",
        "bytes",
        "feed",
        "name",
        "progress",
        "records",
        "records_max",
    )

    def __init__(
        self,
        name: str,
        wake_sender: Callable[[], None],
        wake_receiver: Callable[[], None],
        *,
        progress: int = 0,
        feed: int = 0,
    ) -> None:
        self.name = name
        self.feed = feed  # which of the things that the receiver reads comes here: their parts have one channel each
        self.progress = progress
        self.records = 0
        self.bytes = 0
        self.records_max = UNPACED_RECORDS_MAX  # until the receiver's speed is known, it may be slow
        self._items: deque[Item] = deque()
        self._wake_sender = wake_sender
        self._wake_receiver = wake_receiver

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Channel({self.name}: {len(self._items)} items, {self.records} records, progress {self.progress})"

    @property
    def has_room(self) -> bool:
        """Whether the sender may start another sequence number. An empty mailbox always has."""
        return (self.records < self.records_max and self.bytes < MAILBOX_BYTES_MAX) or not self.records

    @property
    def head(self) -> Item | None:
        """The next item, if there is one."""
        return self._items[0] if self._items else None

    def put(self, sequence: int, message: Any, records: int = 0, size: int = 0) -> None:
        """Add a message; the bound was asked for before the sequence number began (Rule 2)."""
        assert sequence > self.progress, f"M1: {self.name} got {sequence} after it had promised {self.progress}"
        assert not self._items or sequence >= self._items[-1][0], f"M1: {self.name} went back to {sequence}"
        self._items.append((sequence, message, records, size))
        self.records += records
        self.bytes += size
        self._wake_receiver()

    def advance(self, sequence: int) -> None:
        """Promise that nothing more comes up to *sequence*."""
        if sequence > self.progress:
            self.progress = sequence
            self._wake_receiver()

    def take(self) -> Item:
        """Remove and return the next item."""
        full = not self.has_room
        item = self._items.popleft()
        self.records -= item[2]
        self.bytes -= item[3]
        if full and self.has_room:
            self._wake_sender()
        return item

    def take_all(self, sequence: int) -> list[Item]:
        """Remove and return all items of one number, if it is next."""
        taken = []
        while self._items and self._items[0][0] == sequence:
            taken.append(self.take())
        return taken

    def pace(self, records: int) -> None:
        """Set the bound to *records*, within what the limits allow."""
        full = not self.has_room
        self.records_max = max(_RECORDS_MIN, min(records, MAILBOX_RECORDS_MAX))
        if full and self.has_room:
            self._wake_sender()


@dataclass(slots=True)
class Group:
    """All that came for one sequence number."""

    sequence: int
    batches: list[list[Any]]
    """What is no signal: for each feed that brought some, in the order of the channels."""

    signal: Signal | None


class SequenceMerge:
    """Take from several channels, one whole sequence number after the other."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        if not channels:
            raise ValueError("a receiver has at least 1 channel, got none")
        self._channels = list(channels)

    @property
    def progress(self) -> int:
        """The sequence number up to which everything was taken, and nothing more can come."""
        return min(
            channel.progress if channel.head is None else min(channel.progress, channel.head[0] - 1)
            for channel in self._channels
        )

    def next(self) -> Group | None:
        """Return the next number's group, or None while a channel may still bring something for it (M2)."""
        numbers = [channel.head[0] for channel in self._channels if channel.head is not None]
        if not numbers:
            return None
        sequence = min(numbers)
        if any(channel.progress < sequence for channel in self._channels):
            return None
        batches: dict[int, list[Any]] = {}
        signals: list[Signal] = []
        for channel in self._channels:
            for _, message, _, _ in channel.take_all(sequence):
                if isinstance(message, Signal):
                    signals.append(message)
                else:
                    batches.setdefault(channel.feed, []).append(message)
        if not signals:
            return Group(sequence, list(batches.values()), None)
        assert len(signals) == len(self._channels), f"M3: {signals} at {sequence} on {len(self._channels)} channels"
        assert len(set(signals)) == 1, f"M3: {signals} at {sequence} differ"
        return Group(sequence, list(batches.values()), signals[0])
