"""Distinct: the first record of each key passes, what repeats it is dropped, until the key's time to live is over.

Time to live is counted from the record that passed, not from the last repeat: a key that comes again and again passes
once in each such time, and what is kept for it does not live for ever. So do Flink's state with its default (on create
and write) and its SQL deduplication; Kafka Streams' tutorial counts from the last repeat, which suits retries only.

When is a record a repeat?

    without time to live   when its key has been seen before. What is kept grows with the number of keys, for ever.

    by event time          when a record of its key that passed is less than the time to live away from it, before or
                           behind. So records out of order are judged by their own times. A late record, one that is
                           not behind the watermark, counts as if it had happened at the watermark: what it repeats may
                           have been forgotten, and then it passes; with its true time it would be forgotten at once,
                           and each of its repeats would pass too.

    by processing time     when its key has passed since the last clock mark, or before a mark that is less than the
                           time to live ago. So a record's time is that of the next mark: nothing passes twice within
                           its time to live, and nothing is dropped for more than two tenths longer (marks come each
                           tenth).

All three are functions of the sequence, its watermarks and its journaled clock marks: (T1), and (T2) because watermark
and clock stand still inside a piece.

State expires without an index and without a look at its keys: in namespaces that go as a whole. By processing time
there is one for what passed between two marks. By event time there is one, a *bucket*, for each stretch of one time to
live, numbered by time // ttl. Two records of a key that have passed are at least that far apart, so a bucket holds one
time for each key, and what matters to a record is in its own bucket or the two beside it; a key is kept for up to twice
the time to live, and the disorder.

If we crash: state and row go back to one epoch together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import compress
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch
from streamactors.core.keys import CanonicalKey, canonical_key, plain_keys
from streamactors.core.times import MIN_TIME

from .operator import Operator, OperatorContext
from .selectors import Selector, column
from .transforms import KeyBy

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState, OperatorRow

MARKS = 10
"""Clock marks in a time to live: how precisely it is kept, against look-ups for each record and rows of the journal."""

Times = dict[CanonicalKey, int]
Give = Callable[[list[CanonicalKey]], list[CanonicalKey] | None]
"""Returns the keys that records bear behind the operator."""


def same_keys(keys: list[CanonicalKey]) -> list[CanonicalKey]:
    """Records keep the keys by which they were told apart."""
    return keys


def no_keys(keys: list[CanonicalKey]) -> None:
    """The stream has no keys: those were for telling apart alone."""


def outer_keys(keys: list[CanonicalKey]) -> list[CanonicalKey]:
    """Records get back the keys that they had before KeyWithin."""
    return [canonical_key(pair[0]) for pair in plain_keys(keys)]


class KeyWithin(KeyBy):
    """Key each row by (its key, what *selector* gives): what is told apart on a stream that has keys."""

    def __init__(self, selector: Selector, of: Any = None) -> None:
        super().__init__(None)
        selected = column(selector, of)

        def pairs(name: str, batch: Batch) -> list[Any]:
            assert batch.keys is not None, "a key within needs a key"
            return list(zip(plain_keys(batch.keys), selected(name, batch), strict=True))

        self._take = pairs


def distinct(ttl: int | None, *, event_time: bool, give: Give) -> Distinct:
    """Return the operator for a time to live, in ms, of event time or of processing time; None: for ever."""
    if ttl is None:
        return Distinct(give)
    return DistinctByEventTime(ttl, give) if event_time else DistinctByClock(ttl, give)


class Distinct(Operator):
    """Pass the first record of each key, for ever; the forms with a time to live are below."""

    def __init__(self, give: Give = same_keys) -> None:
        super().__init__()
        self._give = give
        self._state: KeyedState

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "distinct"}

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("distinct")

    def on_batch(self, batch: Batch) -> None:
        """Emit the records that repeat none."""
        assert batch.keys is not None, "distinct needs keys"
        if not batch.values:
            return
        passing = self._passing(batch.keys, batch)
        if any(passing):
            kept = batch if all(passing) else batch.select(passing)
            assert kept.keys is not None
            self.emit(kept.replace(keys=self._give(kept.keys), windows=None, kinds=None))

    def _passing(self, keys: list[CanonicalKey], batch: Batch) -> bytearray:
        """Return which rows pass, and remember them."""
        del batch
        return self._first(keys, [None], None)

    def _first(self, keys: list[CanonicalKey], spaces: Iterable[int | None], own: int | None) -> bytearray:
        """Return which rows are the first of a key that is in none of *spaces*, and put these into *own*."""
        distinct = list(dict.fromkeys(keys))
        known: set[CanonicalKey] = set()
        for space in spaces:
            known.update(compress(distinct, self._state.get_many(space, distinct)))
        passing = bytearray(len(keys))
        fresh: dict[CanonicalKey, bool] = {}
        for row, key in enumerate(keys):
            if key not in known:
                known.add(key)
                passing[row] = fresh[key] = True
        if fresh:
            self._state.put_many(own, fresh)
        return passing


class DistinctByEventTime(Distinct):
    """Pass a record unless one of its key that passed is less than *ttl* ms of event time away."""

    def __init__(self, ttl: int, give: Give = same_keys) -> None:
        super().__init__(give)
        self.ttl = ttl
        self._watermark = MIN_TIME
        self._buckets: set[int] = set()
        self._row: OperatorRow

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "distinct", "ttl": self.ttl, "by": "event time"}

    def resplit(self, rows: list[Any], spaces: list[set[int | None]]) -> list[Any]:
        """Each part gets the buckets in which it has something."""
        known = [row for row in rows if row is not None]
        if not known:
            return [None] * len(spaces)
        buckets = {bucket for _, own in known for bucket in own}
        watermark = max(watermark for watermark, _ in known)
        return [[watermark, sorted(buckets.intersection(own))] for own in spaces]

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._row = context.row("distinct")
        self._watermark = context.watermark
        if self._row.value is not None:
            self._watermark, buckets = self._row.value
            self._buckets = set(buckets)

    def on_watermark(self, time: int) -> None:
        """Forget the buckets whose keys may pass again."""
        if time <= self._watermark:
            return
        self._watermark = time
        for bucket in sorted(self._buckets):
            if (bucket + 2) * self.ttl - 1 <= time:
                self._state.drop(bucket)
                self._buckets.remove(bucket)
        self._note()

    def _note(self) -> None:
        self._row.set([self._watermark, sorted(self._buckets)])

    def _passing(self, keys: list[CanonicalKey], batch: Batch) -> bytearray:
        assert batch.timestamps is not None, "this form of distinct needs event time"
        ttl, passing = self.ttl, bytearray(len(keys))
        times = [max(time, self._watermark) for time in batch.timestamps]
        near = self._near(keys, {time // ttl for time in times})
        fresh: defaultdict[int, Times] = defaultdict(dict)
        for row, (key, time) in enumerate(zip(keys, times, strict=True)):
            bucket = time // ttl
            own = near[bucket]
            if key in own:
                continue
            before, behind = near[bucket - 1].get(key), near[bucket + 1].get(key)
            if (before is None or time - before >= ttl) and (behind is None or behind - time >= ttl):
                passing[row] = True
                own[key] = fresh[bucket][key] = time
        for bucket in sorted(fresh):
            if bucket not in self._buckets:
                self._state.born(bucket)
                self._buckets.add(bucket)
                self._note()
            self._state.put_many(bucket, fresh[bucket])
        return passing

    def _near(self, keys: list[CanonicalKey], buckets: set[int]) -> defaultdict[int, Times]:
        """Return what is held for some keys in some buckets and those beside them."""
        distinct = list(dict.fromkeys(keys))
        near: defaultdict[int, Times] = defaultdict(dict)
        for bucket in {bucket + beside for bucket in buckets for beside in (-1, 0, 1)} & self._buckets:
            times = zip(distinct, self._state.get_many(bucket, distinct), strict=True)
            near[bucket] = {key: time for key, time in times if time is not None}
        return near


class DistinctByClock(Distinct):
    """Pass a record unless one of its key passed less than *ttl* ms of processing time ago."""

    def __init__(self, ttl: int, give: Give = same_keys) -> None:
        super().__init__(give)
        self.ttl = ttl
        self._period: int | None = None  # in which the last mark was that counted
        self._number = 0  # of the next mark that counts: the namespace of what passes before it
        self._marks: dict[int, int | None] = {}  # of each namespace that is held, oldest first; None: yet to come
        self._row: OperatorRow

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "distinct", "ttl": self.ttl, "by": "processing time"}

    def resplit(self, rows: list[Any], spaces: list[set[int | None]]) -> list[Any]:
        """All parts have seen the same marks, and number them alike; each gets those under which it has something."""
        known = [row for row in rows if row is not None]
        if not known:
            return [None] * len(spaces)
        period = max((period for period, _, _ in known if period is not None), default=None)
        number = max(number for _, number, _ in known)
        marks = dict(sorted(pair for _, _, own in known for pair in map(tuple, own)))
        return [[period, number, [[mark, marks[mark]] for mark in marks if mark in own]] for own in spaces]

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._row = context.row("distinct")
        if self._row.value is not None:
            self._period, self._number, marks = self._row.value
            self._marks = dict(marks)

    def on_clock(self, time: int) -> None:
        """Date what passed since the last mark by this one, and forget what has had its time."""
        period = time // clock_period(self.ttl)
        if period == self._period:
            return
        self._period = period
        if self._number in self._marks:
            self._marks[self._number] = time
        self._number += 1
        for number in [number for number, mark in self._marks.items() if mark is not None and time - mark >= self.ttl]:
            self._state.drop(number)
            del self._marks[number]
        self._note()

    def _passing(self, keys: list[CanonicalKey], batch: Batch) -> bytearray:
        del batch
        if self._number not in self._marks:
            self._state.born(self._number)
            self._marks[self._number] = None
            self._note()
        return self._first(keys, self._marks, self._number)

    def _note(self) -> None:
        self._row.set([self._period, self._number, list(self._marks.items())])


def clock_period(ttl: int) -> int:
    """Return how often a time to live of processing time needs a clock mark, ms."""
    return max(1, ttl // MARKS)
