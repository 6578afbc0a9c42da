"""The ends of a stream: operators that take results out of it, into a view or into a sink's pending output."""

from __future__ import annotations

from collections.abc import Callable

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord
from streamactors.core.keys import canonical_key, plain_key
from streamactors.durable.views import ViewBuffer

from .operator import Emit, Operator, place_of


class ViewOperator(Operator):
    """Keep the newest value of each key (and window) for a view."""

    def __init__(self, buffer: ViewBuffer) -> None:
        super().__init__()
        self._buffer = buffer

    def on_batch(self, batch: Batch) -> None:
        """Take the rows in order: the last one of a key is what the view shows; a DELETE takes the key away."""
        assert batch.keys is not None, "a view needs keys"
        keys = batch.keys
        if batch.windows is not None:
            keys = [canonical_key((plain_key(key), start)) for key, (start, _) in zip(keys, batch.windows, strict=True)]
        if batch.kinds is None or Kind.DELETE not in batch.kinds:
            self._buffer.upsert(keys, batch.values)
            return
        for key, value, kind in zip(keys, batch.values, batch.kinds, strict=True):
            if kind == Kind.DELETE:
                self._buffer.delete([key])
            else:
                self._buffer.upsert([key], [value])


class SinkOperator(Operator):
    """Hand batches to a sink's pending output."""

    def __init__(self, write: Callable[[Batch], None]) -> None:
        super().__init__()
        self._write = write

    def taking(self) -> Emit:
        """Return ``on_batch``: it finds the rows that can't be written itself."""
        return self.on_batch

    def on_batch(self, batch: Batch) -> None:
        """Take the batch; a writer that refuses it has taken nothing of it."""
        try:
            self._write(batch)
        except BadRecord as bad:
            if len(batch) == 1:
                reason = f"{bad.operator}: {bad.reason}"
                self.refuse(BadRecord(self.name, place_of(batch, 0), batch.values[0], reason, 0), batch, 0)
                self._take_back(batch)
                return
            half = len(batch) // 2  # until the row is found: a writer need not know which one it was
            self.on_batch(batch.slice(0, half))
            self.on_batch(batch.slice(half, len(batch)))
