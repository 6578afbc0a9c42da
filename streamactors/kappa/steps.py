"""Steps: what an explanation is made of. Values, and how one is made from a row of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from streamactors.core.batch import Batch, Origin, Window
from streamactors.core.keys import CanonicalKey

Place = tuple[str, int, int]
"""(source, partition, offset)"""


class Step(msgspec.Struct, omit_defaults=True):
    """One thing that happened to the key."""

    what: str
    """``record``: it counts. ``late``: it came when the window was gone. ``left_out``: by an error policy.
    ``result``: of a window upstream, which counts as a record does. ``shown``: the view's row changed."""

    operator: str
    """Id of the operator at which it was noted."""

    source: str | None = None
    partition: int | None = None
    offset: int | None = None
    """Where the record stands; None for what was made of several, or of none."""

    time: int | None = None
    """Event time, ms."""

    value: Any = None
    """As the operator saw it; of a change of the view, what it shows from then on."""

    original: bytes | None = None
    """The record as it stands in the source, where that was asked for."""

    late_by_ms: int | None = None
    """How far the watermark had passed the moment at which the window went."""

    error: str | None = None
    certain: bool = True
    """False: it was left out before its key was known, so it may belong to another one."""

    key: Any = None
    window: Window | None = None
    """Of a result: its own key and window."""

    kind: str | None = None
    """Of a result, or a change of the view:
    ``early``, ``on_time``, ``correction``, ``final``, ``update``, ``delete``."""

    watermark: int | None = None
    """Event time as the operator knew it, ms; None while there was none."""

    then: Step | None = None
    """The change of the view that this record made at once."""

    order: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(sequence number, stage, offset where several parts of a stage note records of one piece, serial)"""

    @property
    def place(self) -> Place | None:
        """Where the record stands, if it is one."""
        if self.source is None or self.partition is None or self.offset is None:
            return None
        return self.source, self.partition, self.offset


@dataclass(slots=True)
class Derived:
    """A row that was made of several records."""

    operator: str
    key: CanonicalKey
    window: Window
    kind: str
    records: list[Step]


class Made:
    """The origin of rows that a window made; ``of`` is that of the record which made it show a correction."""

    def __init__(self, of: Origin | None, operator: str) -> None:
        self.of = of
        self.rows: dict[int, list[Derived]] = {}
        self.source = operator if of is None else of.source
        self.partition = 0 if of is None else of.partition

    def copy(self) -> Made:
        """Return another origin of the same rows."""
        other = Made(self.of, self.source)
        other.rows = self.rows
        return other

    def originals(self, offsets: Sequence[int]) -> list[Any]:
        """Return what there is: a window's result has no record of its own."""
        return [None] * len(offsets) if self.of is None else self.of.originals(offsets)


class Kept:
    """Steps in the order in which they came; with a limit, only the first and the last of them."""

    def __init__(self, limit: int | None) -> None:
        self.counts: dict[str, int] = {}
        self._first: list[Step] = []
        self._last: deque[Step] = deque(maxlen=limit)
        self._limit = limit

    def add(self, step: Step) -> None:
        """Keep *step*, or count it at least."""
        self.counts[step.what] = self.counts.get(step.what, 0) + 1
        if self._limit is None or len(self._first) < self._limit:
            self._first.append(step)
        else:
            self._last.append(step)

    def __iter__(self) -> Iterator[Step]:
        yield from self._first
        yield from self._last


def record_step(batch: Batch, row: int, operator: str, *, original: bool = False) -> Step:
    """Return a step for a row, with the place of the record that it came from."""
    time = None if batch.timestamps is None else batch.timestamps[row]
    step = Step("record", operator, time=time, value=batch.values[row])
    origin = batch.origin
    if origin is not None and len(batch.offsets):
        step.source, step.partition, step.offset = origin.source, origin.partition, batch.offsets[row]
        if original:
            (found,) = origin.originals([batch.offsets[row]])
            step.original = as_bytes(found)
    return step


def as_bytes(record: Any) -> bytes | None:
    """Return a source's record as bytes; an object of a list as JSON, where it has one."""
    if record is None or isinstance(record, bytes):
        return record
    if isinstance(record, bytearray | memoryview):
        return bytes(record)
    try:
        return msgspec.json.encode(record)
    except (TypeError, ValueError, OverflowError):
        return repr(record).encode()
