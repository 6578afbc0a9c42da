"""A piece: rows that an aggregate folds together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

from streamactors.core.batch import Batch
from streamactors.core.errors import BadRecord

from .operator import bad_record
from .selectors import Selector


class Piece:
    """Rows that are folded together: their keys, how many rows each key has, and the columns that were asked for."""

    __slots__ = ("_batch", "_columns", "counts", "keys", "name")

    def __init__(self, name: str, keys: list[Any], batch: Batch | Callable[[], Batch]) -> None:
        self.name = name
        self.keys = keys
        self.counts: dict[Any, int] = Counter(keys)
        self._batch = batch
        self._columns: dict[int, list[Any]] = {}

    @property
    def batch(self) -> Batch:
        """The rows. Made on demand: a count needs no more than the keys."""
        if not isinstance(self._batch, Batch):
            self._batch = self._batch()
        return self._batch

    def column(self, selector: Selector, take: Callable[[str, Batch], list[Any]]) -> list[Any]:
        """Return *selector*'s column; several aggregates of one selector share it."""
        found = self._columns.get(id(selector))
        if found is None:
            found = self._columns[id(selector)] = take(self.name, self.batch)
        return found

    def overlay(self, accs: Sequence[Any]) -> dict[Any, Any]:
        """Return the accumulators by key, for folds that go row by row."""
        return dict(zip(self.counts, accs, strict=True))

    def bad(self, rest: Iterator[Any], error: BaseException) -> BadRecord:
        """Return the error for the row before *rest*, the iterator over a column that stopped."""
        return bad_record(self.name, self.batch, len(self.keys) - length_hint(rest) - 1, error)
