"""Values are not changed in place: what a receiver takes from a channel encodes as it did when the sender put it in.

Two branches of a stream see the same objects, and state holds what was emitted. So a function that changes a value in
place changes what another one has yet to see, or has already counted; how far depends on who was faster. Here each
batch is encoded when it is handed over, and again when it is taken; a difference names the channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.keys import encode_key
from streamactors.engine.mailbox import Channel, Item

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


@contextmanager
def values_stay_unchanged() -> Iterator[None]:
    """Check each batch that goes through a mailbox while the block runs. One block at a time in a process."""
    put, take = Channel.put, Channel.take
    handed_over: dict[tuple[int, int], tuple[Batch, bytes]] = {}

    def checked_put(self: Channel, sequence: int, message: Any, records: int = 0, size: int = 0) -> None:
        if isinstance(message, Batch):
            handed_over[id(self), id(message)] = message, encoded_columns(message)
        put(self, sequence, message, records, size)

    def checked_take(self: Channel) -> Item:
        item = take(self)
        before = handed_over.pop((id(self), id(item[1])), None)
        if before is not None and encoded_columns(before[0]) != before[1]:
            raise AssertionError(
                f"{self.name}: a value was changed in place between the sender and the receiver. Replace it instead: "
                "another branch, or state, may hold the same object."
            )
        return item

    Channel.put, Channel.take = checked_put, checked_take  # type: ignore[method-assign]
    try:
        yield
    finally:
        Channel.put, Channel.take = put, take  # type: ignore[method-assign]


def encoded_columns(batch: Batch) -> bytes:
    """Return a batch's columns as bytes."""
    keys = None if batch.keys is None else [encode_key(key) for key in batch.keys]
    return _encode([batch.values, batch.timestamps, keys, batch.windows, batch.kinds, list(batch.offsets)])
