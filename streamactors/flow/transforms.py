"""Stateless operators: map, filter, flat_map, key_by, split, union, and the ways out of an upsert stream.

On an append stream a row is a value. On an upsert stream it is the newest value of a key and window, and two things
follow: ``map`` keeps the row's identity and leaves a DELETE alone, and a row that ``filter`` drops has
to be taken back, because an earlier result of it may have passed: it becomes a DELETE. A FINAL row is the only one of
its key and window; nothing went before it, so it just goes.

Columns stay right: a row's timestamp, key, offset and origin are those of the record that it was made from, through
``filter`` (a selection) and ``flat_map`` (each repeated as often as its values).

Nothing is emitted for an empty result, and a filter that keeps all rows emits the batch it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, repeat
from operator import length_hint
from types import CoroutineType
from typing import Any

import msgspec

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.core.keys import canonical_key, canonical_keys, plain_keys
from streamactors.core.limits import BATCH_RECORDS_MAX

from .dead_letters import OnError
from .operator import RAISED, Emit, Operator, bad_record, call_each, in_rows, nowhere
from .selectors import Selector, column, known_type, require_plain


class Map(Operator):
    """Replace each value by ``function(value)``."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        require_plain("the function of map()", function, remedy="Use AsyncMap.")
        self.function = function

    def on_batch(self, batch: Batch) -> None:
        """Emit the new values under the old columns."""
        if batch.values:
            self.emit(batch.replace(values=call_live(self.name, self.function, batch)))


class Filter(Operator):
    """Keep the rows for which ``predicate(value)`` is true."""

    def __init__(self, predicate: Callable[[Any], Any]) -> None:
        super().__init__()
        require_plain("the predicate of filter()", predicate, remedy="Use AsyncFilter.")
        self.predicate = predicate

    def on_batch(self, batch: Batch) -> None:
        """Emit what is kept, and on an upsert stream a DELETE for what is not."""
        kept = keep(batch, call_live(self.name, self.predicate, batch))
        if kept.values:
            self.emit(kept)


class FlatMap(Operator):
    """Replace each value by the values that ``function(value)`` returns or yields."""

    def __init__(self, function: Callable[[Any], Iterable[Any]]) -> None:
        super().__init__()
        require_plain("the function of flat_map()", function, remedy="Use AsyncFlatMap.", may_yield=True)
        self.function = function
        self._rows = BATCH_RECORDS_MAX  # that make about a batch of values

    def on_batch(self, batch: Batch) -> None:
        """Emit the values in order, in batches of the usual size."""
        if self.on_error is not OnError.FAIL:  # all or nothing, so that it can go on without a row
            made = flatten(batch, lists_of(self.name, batch, call_each(self.name, self.function, batch)))
            emit_in_parts(self.emit, made)
            return
        first = 0
        while first < len(batch):
            # So many rows as made a batch of values last time: what they make is used while the caches hold it.
            part = batch.slice(first, min(first + self._rows, len(batch)))
            first += len(part)
            made = flatten(part, lists_of(self.name, part, call_each(self.name, self.function, part)))
            self._rows = max(1, min(BATCH_RECORDS_MAX, BATCH_RECORDS_MAX * len(part) // max(1, len(made))))
            emit_in_parts(self.emit, made)


class KeyBy(Operator):
    """Give each row a key: a field, or what a function returns. The window that a row came from ends here."""

    def __init__(self, selector: Selector, of: Any = None) -> None:
        super().__init__()
        self._take = column(selector, of)
        self._canonical = known_type(selector, of) is str  # as they were decoded; an int may have more than 64 bits

    def on_batch(self, batch: Batch) -> None:
        """Emit the rows under their new keys."""
        if not batch.values:
            return
        assert_appends(batch, "a new key")
        raw = self._take(self.name, batch)
        try:
            keys = raw if self._canonical else canonical_keys(raw)
        except PipelineError:
            raise self._bad_key(batch, raw) from None
        self.emit(batch.replace(keys=keys, windows=None, kinds=None))

    def _bad_key(self, batch: Batch, raw: list[Any]) -> Exception:
        for index, key in enumerate(raw):
            try:
                canonical_key(key)
            except PipelineError as error:
                return bad_record(self.name, batch, index, error)
        raise AssertionError("canonical_keys refused a key that canonical_key takes")


class Split(Operator):
    """Send each row to the output of the first predicate that is true for its value, or to the last output."""

    def __init__(self, predicates: Sequence[Callable[[Any], Any]]) -> None:
        super().__init__()
        for predicate in predicates:
            require_plain(
                "a predicate of split()", predicate, remedy="Await in a map() before it, and split by its result."
            )
        self._predicates = predicates
        self._emits: list[Emit] = [nowhere] * (len(predicates) + 1)

    def connect(self, output: str, emit: Emit) -> None:
        """Let *emit* take what is given on *output*; those of the predicates are numbers."""
        if output.isdigit():
            self._emits[int(output)] = emit
        else:
            super().connect(output, emit)

    def on_batch(self, batch: Batch) -> None:
        """Emit to each output its rows; on an upsert stream, a DELETE of the others."""
        if not batch.values:
            return
        outputs = [len(self._predicates)] * len(batch)
        undecided: list[int] | None = None  # rows for which no predicate was true yet; None: all
        for number, predicate in enumerate(self._predicates):
            asked = batch if undecided is None else batch.take(undecided)
            rows = range(len(batch)) if undecided is None else undecided
            try:
                verdicts = call_live(self.name, predicate, asked)
            except BadRecord as bad:
                in_rows(bad, rows)
                raise
            for row in compress(rows, verdicts):
                outputs[row] = number
            undecided = [row for row, verdict in zip(rows, verdicts, strict=True) if not verdict]
        for number, emit in enumerate(self._emits):
            kept = keep(batch, [output == number for output in outputs])
            if kept.values and emit is not nowhere:
                emit(kept)


class Union(Operator):
    """Pass on what several streams bring, with the columns that they have in common."""

    def __init__(self, *, keyed: bool, windowed: bool) -> None:
        super().__init__()
        self._dropped: dict[str, None] = {} if keyed else {"keys": None}
        if not windowed:
            self._dropped |= {"windows": None, "kinds": None}

    def on_batch(self, batch: Batch) -> None:
        """Emit the rows without the columns that other rows of the union lack."""
        if batch.values:
            assert_appends(batch, "union")
            self.emit(batch.replace(**self._dropped) if self._dropped else batch)


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of an upsert stream as a plain value."""

    key: Any
    """The key as the user wrote it; None on a stream without keys."""

    value: Any
    """The result; None when the row is deleted."""

    window_start: int | None = None
    """Start of the window, ms; None outside windows."""

    window_end: int | None = None
    """End of the window, ms, the first instant after it."""

    kind: str | None = None
    """``early``, ``on_time``, ``correction``, ``final``, ``delete`` or ``update``; None on an append stream."""


_KIND_NAMES = {kind: kind.name.lower() for kind in Kind}


class Rows(Operator):
    """Make each row a Row: key, value, window and kind become one value, and the stream an append stream."""

    def on_batch(self, batch: Batch) -> None:
        """Emit the Rows, under the same keys and timestamps."""
        if not batch.values:
            return
        keys: Iterable[Any] = repeat(None) if batch.keys is None else plain_keys(batch.keys)
        starts: Iterable[Any] = repeat(None)
        ends: Iterable[Any] = repeat(None)
        if batch.windows is not None:
            starts, ends = zip(*batch.windows, strict=True)
        kinds = repeat(None) if batch.kinds is None else map(_KIND_NAMES.__getitem__, batch.kinds)
        rows = list(map(Row, keys, batch.values, starts, ends, kinds))
        self.emit(batch.replace(values=rows, windows=None, kinds=None))


class Originals(Operator):
    """Replace each value by the source's record that it came from, as it stands there."""

    def on_batch(self, batch: Batch) -> None:
        """Emit the source's records under the same columns."""
        if batch.values:
            self.emit(batch.replace(values=batch.originals()))


# ---- shared with the awaited forms (flow/async_transforms.py)


def call_live(name: str, function: Callable[[Any], Any], batch: Batch) -> list[Any]:
    """Return ``function(value)`` for each row, and None for the rows that are a DELETE."""
    live = live_rows(batch)
    called = batch if live is None else batch.select(live)
    try:
        results = call_each(name, function, called)
    except BadRecord as bad:
        in_rows(bad, range(len(batch)) if live is None else list(compress(range(len(batch)), live)))
        raise
    if results and type(results[0]) is CoroutineType:
        for coroutine in results:
            coroutine.close()
        raise PipelineError(
            f"operator {name}: the function returned a coroutine, which nobody would await. Define it with `async def` "
            "itself, or return the value."
        )
    return results if live is None else spread(results, live)


def live_rows(batch: Batch) -> list[bool] | None:
    """Return which rows have a value, or None when all have."""
    if batch.kinds is None or Kind.DELETE not in batch.kinds:
        return None
    return [kind != Kind.DELETE for kind in batch.kinds]


def spread(results: list[Any], live: Sequence[Any]) -> list[Any]:
    """Return *results* at the places where *live* is true, None at the others."""
    rest = iter(results)
    return [next(rest) if alive else None for alive in live]


def keep(batch: Batch, verdicts: list[Any]) -> Batch:
    """Return the rows with a true verdict; on an upsert stream the others become a DELETE, unless they were FINAL."""
    if all(verdicts):
        return batch
    if batch.kinds is None:
        return batch.select(verdicts)
    rows = zip(verdicts, batch.kinds, strict=True)
    batch = batch.replace(
        values=[value if verdict else None for value, verdict in zip(batch.values, verdicts, strict=True)],
        kinds=[kind if verdict or kind == Kind.FINAL else Kind.DELETE for verdict, kind in rows],
    )
    return batch.select(
        [verdict or kind != Kind.FINAL for verdict, kind in zip(verdicts, batch.kinds or [], strict=True)]
    )


def lists_of(name: str, batch: Batch, made: list[Any]) -> list[list[Any]]:
    """Return each row's values as a list. A generator runs here, and what it raises names its record here."""
    rest: Iterator[Any] = iter(made)
    text = {str, bytes}.intersection(map(type, made))
    try:
        if text:
            index = next(i for i, values in enumerate(made) if type(values) in text)
            rest = iter(made[index + 1 :])
            listed(made[index])
        return list(map(list, rest))
    except RAISED as error:
        raise bad_record(name, batch, len(made) - length_hint(rest) - 1, error) from error


def listed(values: Iterable[Any]) -> list[Any]:
    """Return a row's values as a list."""
    if type(values) in {str, bytes}:
        raise TypeError(f"flat_map() would take {values!r:.60} apart into characters; return [text] or a list")
    return list(values)


def flatten(batch: Batch, lists: list[list[Any]]) -> Batch:
    """Return a row for each value of *lists*, with the other columns of the row that it came from."""
    assert_appends(batch, "flat_map")
    numbers = list(map(len, lists))

    def repeated(column: Iterable[Any]) -> list[Any]:
        return list(chain.from_iterable(map(repeat, column, numbers)))

    return batch.replace(
        values=list(chain.from_iterable(lists)),
        timestamps=None if batch.timestamps is None else repeated(batch.timestamps),
        keys=None if batch.keys is None else repeated(batch.keys),
        offsets=repeated(batch.offsets) if len(batch.offsets) else (),
        windows=None if batch.windows is None else repeated(batch.windows),
        kinds=None if batch.kinds is None else repeated(batch.kinds),
    )


def emit_in_parts(emit: Emit, batch: Batch) -> None:
    """Emit *batch* in batches of at most BATCH_RECORDS_MAX rows."""
    for first in range(0, len(batch), BATCH_RECORDS_MAX):
        emit(batch.slice(first, min(first + BATCH_RECORDS_MAX, len(batch))))


def assert_appends(batch: Batch, what: str) -> None:
    """Nothing that loses a row's identity may stand behind a stream of corrections; the graph refuses it."""
    if batch.kinds is not None:
        assert set(batch.kinds) <= {Kind.FINAL}, f"{what} behind an upsert stream: {set(batch.kinds)}"
