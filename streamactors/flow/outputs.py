"""The ends of a stream: operators that take results out of it, into a view or into a sink's pending output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamactors.core.batch import Batch, Kind
from streamactors.core.keys import CanonicalKey, canonical_key, plain_key

from .operator import Operator


class ViewOperator(Operator):
    """Keep the newest value of each key (and window) for a view."""

    def __init__(self, upsert: Callable[[list[CanonicalKey], list[Any]], None]) -> None:
        super().__init__()
        self._upsert = upsert

    def on_batch(self, batch: Batch) -> None:
        """Take the rows in order: the last one of a key is what the view shows; None takes the key away."""
        assert batch.keys is not None, "a view needs keys"
        keys = batch.keys
        if batch.windows is not None:
            keys = [canonical_key((plain_key(key), start)) for key, (start, _) in zip(keys, batch.windows, strict=True)]
        values = batch.values
        if batch.kinds is not None and Kind.DELETE in batch.kinds:
            values = [None if kind == Kind.DELETE else v for v, kind in zip(values, batch.kinds, strict=True)]
        self._upsert(keys, values)


class SinkOperator(Operator):
    """Hand batches to a sink's pending output."""

    def __init__(self, write: Callable[[Batch], None]) -> None:
        super().__init__()
        self._write = write

    def on_batch(self, batch: Batch) -> None:
        """Take the batch."""
        self._write(batch)
