"""The ends of a stream: operators that take results out of it, into a view or into a sink's pending output."""

from __future__ import annotations

from collections.abc import Callable

from streamactors.core.batch import Batch, Kind
from streamactors.core.keys import canonical_key, plain_key
from streamactors.durable.views import ViewBuffer

from .operator import Operator


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

    def on_batch(self, batch: Batch) -> None:
        """Take the batch."""
        self._write(batch)
