"""Taps: what an explanation listens to while the operators of a region run again.

An operator is built as ever; then some of its ends are tapped: what it takes, what it gives, what it leaves out. A tap
notes and passes on. It changes nothing that the operator does, with two exceptions that no result depends on: rows of
other keys are dropped behind the key_by that decides the key (``restrict``), and a running aggregate shows every result
instead of a batch's last (``latest_only``).

What is noted are *steps*. Each bears the number of the sequence at which it happened and the stage in which it did, so
the steps of all stages have one order, that of the run which is explained (T1).

How a row of the key is led back to records of the source:

    Rows carry the offset of the record that they were made from through every operator but the firing of a window. So
    most rows name their record themselves.
    A window that fires makes one row of many records. Where such a row can still reach the key (``Trace``), what the
    window takes is kept by key and pane as long as the window itself, and what it gives bears a ``Made`` as its origin,
    which knows the records and travels on like any other origin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import msgspec

from streamactors.core.batch import Batch, Kind, Origin, Window
from streamactors.core.errors import BadRecord
from streamactors.core.keys import CanonicalKey, plain_key
from streamactors.core.times import MIN_TIME
from streamactors.flow.operator import Emit, Operator
from streamactors.flow.reader import Reader
from streamactors.flow.running import RunningAggregate
from streamactors.flow.sequencing import Message, PartitionId, Sequencing
from streamactors.flow.stage import Stage
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Lifecycle, Phase
from streamactors.graph.nodes import Node

from .steps import Derived, Kept, Made, Place, Step, record_step


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be explained."""

    key: CanonicalKey
    """Of the view's stream."""

    start: int | None = None
    """Start of the window, where the view is one of windows."""


@dataclass
class Taps:
    """All taps of one run, and what the run is asked."""

    target: Target
    anchors: frozenset[str] = frozenset()
    """Ids of the operators whose input is what made the value."""

    deciding: frozenset[str] = frozenset()
    """Ids of the operators behind which rows of other keys may be dropped."""

    keyed: frozenset[str] = frozenset()
    """Ids of the operators whose rows bear the view's key, and no other."""

    traced: frozenset[str] = frozenset()
    """Ids of the windows upstream of the anchors."""

    span: Window | None = None
    """The time that records of the target have; None: any."""

    original: bool = False
    limit: int | None = None
    final: Step | None = None
    """The last change of the view."""

    missing: dict[PartitionId, int] = field(default_factory=dict)
    """For partitions whose beginning is no longer there: the first offset that is."""

    kept: list[Kept] = field(default_factory=list)
    reached: set[tuple[str, CanonicalKey, int]] = field(default_factory=set)
    """Windows upstream, by operator, key and start, of which a result came to the key."""

    _taps: list[Tap] = field(default_factory=list)
    _traces: list[Trace] = field(default_factory=list)
    _admitted: dict[PartitionId, list[tuple[int, int]]] = field(default_factory=dict)  # (end, its sequence number)
    _serial: int = 0

    def dressed(self, node: Node, operator: Operator) -> Operator:
        """Tap *operator*, which was just built for *node*; return it."""
        tap = Tap(self, node, operator)
        self._taps.append(tap)
        if isinstance(operator, RunningAggregate):
            operator.latest_only = False
        if isinstance(operator, ViewTap):
            operator.tap = tap
        if node.id in self.anchors:
            _around(operator, "taking", tap.taking)
        if node.id in self.traced and isinstance(operator, WindowOperator):
            trace = Trace(tap, operator)
            _around(operator, "taking", trace.taking)
            _around(operator, "connect", trace.connect)
            self._traces.append(trace)
        if self.traced:
            _around(operator, "connect", tap.connect_apart)
        if node.id in self.deciding:
            _around(operator, "connect", tap.connect_restricted)
        tap.listen_to_refusals(operator)
        return operator

    def attach(self, stages: Iterable[Stage], readers: Iterable[Reader], sequencing: Sequencing) -> None:
        """Tell each tap where it is, before anything runs."""
        by_operator = {id(tap.operator): tap for tap in self._taps}
        ranks: dict[str, int] = {}  # the parts of a stage have one
        for stage in stages:
            rank = ranks.setdefault(stage.name.partition("[")[0], len(ranks))
            for operator in stage.operators:
                if (tap := by_operator.get(id(operator))) is not None:
                    tap.stage, tap.rank = stage, rank
        for reader in readers:
            Tap(self, None, reader.refusing[0]).listen_to_refusals(reader.refusing[0])
        admit = sequencing.admit

        def noting(partition: PartitionId, batch: Batch, end: int) -> Iterator[Message]:
            seen = self._admitted.setdefault(partition, [])
            if not seen and len(batch.offsets) and batch.offsets[0] > sequencing.partitions[partition].offset:
                self.missing[partition] = batch.offsets[0]
            for message in admit(partition, batch, end):
                if isinstance(message, Batch) and len(message.offsets):
                    seen.append((message.offsets[-1] + 1, sequencing.position.sequence + 1))
                yield message
            seen.append((end, sequencing.position.sequence))

        setattr(sequencing, "admit", noting)  # noqa: B010 - of this one object

    def stamp(self, step: Step, tap: Tap, offset: int = 0) -> None:
        """Give *step* its place in the order."""
        self._serial += 1
        if tap.stage is not None:
            step.order = (tap.stage.sequence, tap.rank, offset, self._serial)
        else:  # before the sequence: the number is known when all is over
            step.order = (-1, -1, 0, self._serial)

    def steps(self) -> list[Step]:
        """Return what was kept, in order; once, when the run is over."""
        for trace in self._traces:
            trace.note_late()
        found = [step for kept in self.kept for step in kept]
        for step in found:
            if step.order[0] == -1:
                step.order = (self._sequence_of(step), *step.order[1:])
        pieces = groupby(sorted(found, key=lambda step: step.order), key=lambda step: step.order[0])
        return [step for _, piece in pieces for step in _with_left_out_in_place(list(piece))]

    def _sequence_of(self, step: Step) -> int:
        """Return the number that a record was given which a reader left out; 0 where it never got one."""
        if step.place is None:
            return 0
        source, partition, offset = step.place
        admitted = self._admitted.get((source, partition), [])
        at = bisect_right(admitted, offset, key=lambda one: one[0])
        return admitted[at][1] if at < len(admitted) else 0

    def counted(self, what: str) -> int:
        """Return how many steps of a kind there were, kept or not."""
        return sum(kept.counts.get(what, 0) for kept in self.kept)


class Tap:
    """The taps of one operator and part."""

    def __init__(self, taps: Taps, node: Node | None, operator: Operator) -> None:
        self.operator = operator
        self.stage: Stage | None = None
        self.rank = 0
        self.taps = taps
        self.kept = Kept(taps.limit)
        taps.kept.append(self.kept)
        self.node = node
        self.id = "" if node is None else node.id
        self._refused: list[tuple[Place | None, Any]] = []  # places and values, of the batch that is being handled
        self._noted: dict[int, Step] = {}  # records that were noted as part of a result, by their identity
        self.life: Lifecycle | None = None
        if isinstance(operator, WindowOperator):
            self.life = Lifecycle(operator.assigner, operator.lateness)
            plain = operator.on_watermark

            def on_watermark(time: int) -> None:
                assert self.life is not None
                self.life.advance(time)
                plain(time)

            setattr(operator, "on_watermark", on_watermark)  # noqa: B010 - of this one object

    def stamped(self, step: Step) -> Step:
        """Give *step* its place in the order, and what event time it is; return it."""
        self.taps.stamp(step, self)
        if self.stage is not None and self.stage.watermark != MIN_TIME:
            step.watermark = self.stage.watermark
        return step

    def note(self, step: Step) -> None:
        """Keep *step*, which happens now."""
        self.kept.add(self.stamped(step))

    # What an operator takes. ------------------------------------------------------------------------------------------

    def taking(self, plain: Callable[[], Emit]) -> Emit:
        """Note the rows of the key that the operator is given, but not those that it refuses."""
        take = plain()

        def noted(batch: Batch) -> None:
            steps = list(self._steps(batch))  # stamped now: what the operator makes of them comes behind
            self._refused.clear()
            take(batch)
            for step in steps:
                if not any(place == step.place and value is step.value for place, value in self._refused):
                    self.kept.add(step)

        return noted

    def _steps(self, batch: Batch) -> Iterator[Step]:
        for row in rows_of(batch, self.taps.target.key):
            what, late_by = self._judged(batch, row)
            if what is not None:
                yield from self._steps_of_row(batch, row, what, late_by)

    def _judged(self, batch: Batch, row: int) -> tuple[str | None, int | None]:
        """Say what becomes of a row: ``record`` or ``late``; None: nothing that concerns the target."""
        start = self.taps.target.start
        if self.life is None or batch.timestamps is None:
            same = start is None or batch.windows is None or batch.windows[row][0] == start
            return ("record" if same else None), None
        return judged(self.life, batch.timestamps[row], start)

    def _steps_of_row(self, batch: Batch, row: int, what: str, late_by: int | None) -> Iterator[Step]:
        step = record_step(batch, row, self.id, original=self.taps.original)
        step.what, step.late_by_ms = what, late_by
        if not isinstance(batch.origin, Made) or (derived := batch.origin.rows.get(batch.offsets[row])) is None:
            yield self.stamped(step)
            return
        for one in derived:
            yield from self._records_of(one)
            yield self.stamped(
                Step(
                    "result" if what == "record" else what,
                    one.operator,
                    time=step.time,
                    value=step.value,
                    key=plain_key(one.key),
                    window=one.window,
                    kind=one.kind,
                    late_by_ms=late_by,
                )
            )

    def _records_of(self, derived: Derived) -> Iterator[Step]:
        """Yield the records of a result, each once, however many results it is in."""
        self.taps.reached.add((derived.operator, derived.key, derived.window[0]))
        for record in derived.records:
            if id(record) not in self._noted:
                self._noted[id(record)] = record
                yield record

    # What it gives. ---------------------------------------------------------------------------------------------------

    def connect_restricted(self, plain: Callable[[str, Emit], None], output: str, emit: Emit) -> None:
        """Connect *emit*, and let only rows of the key come to it."""
        key = self.taps.target.key

        def restricted(batch: Batch) -> None:
            rows = rows_of(batch, key)
            if rows:
                emit(batch.take(rows))

        plain(output, restricted if output != "dead" else emit)

    def connect_apart(self, plain: Callable[[str, Emit], None], output: str, emit: Emit) -> None:
        """
        Connect *emit*, and give each batch of results an origin that no other batch has.

        What came from no record has no offsets in the run that is explained, so where several parts meet again it stays
        as it is. Here it has some; batches that share an origin would be put into their order (Batch.interleave).
        """

        def apart(batch: Batch) -> None:
            made = batch.origin
            emit(batch.replace(origin=made.copy()) if isinstance(made, Made) and made.of is None else batch)

        plain(output, apart)

    # What it leaves out. ----------------------------------------------------------------------------------------------

    def listen_to_refusals(self, operator: Operator) -> None:
        """Note what an error policy leaves out."""
        plain = operator.refuse

        def refuse(bad: BadRecord, batch: Batch, row: int) -> None:
            plain(bad, batch, row)
            self._note_refused(operator, bad, batch, row)

        setattr(operator, "refuse", refuse)  # noqa: B010 - of this one object

    def _note_refused(self, operator: Operator, bad: BadRecord, batch: Batch, row: int) -> None:
        if self.id in self.taps.anchors:
            self._refused.append((record_step(batch, row, self.id).place, batch.values[row]))
        certain = self.id in self.taps.keyed
        if certain and (batch.keys is None or batch.keys[row] != self.taps.target.key):
            return
        step = record_step(batch, row, self.id or operator.name, original=self.taps.original)
        step.what, step.error, step.certain = "left_out", bad.reason, certain
        span = self.taps.span
        if span is None or step.time is None or span[0] <= step.time < span[1]:
            self.note(step)


class ViewTap(Operator):
    """Stands where the view's own operator stood, and notes how its row changes."""

    def __init__(self, taps: Taps, view: str) -> None:
        super().__init__()
        self._taps = taps
        self._view = view
        self.tap: Tap

    def on_batch(self, batch: Batch) -> None:
        """Note the rows of the target."""
        start = self._taps.target.start
        for row in rows_of(batch, self._taps.target.key):
            if start is not None and (batch.windows is None or batch.windows[row][0] != start):
                continue
            step = record_step(batch, row, self._view)
            if isinstance(batch.origin, Made) and batch.origin.of is None:
                step.source = step.partition = step.offset = None
            kind = Kind.UPDATE if batch.kinds is None else batch.kinds[row]
            step.what, step.kind = "shown", kind.name.lower()
            self.tap.note(step)
            self._taps.final = step


class Trace:
    """What a window upstream holds, record by record, for as long as it holds it."""

    def __init__(self, tap: Tap, operator: WindowOperator) -> None:
        assert tap.life is not None, f"{operator.name} has no windows"
        self._tap = tap
        self._life = tap.life
        self._assigner = operator.assigner
        self._held: dict[int, dict[CanonicalKey, list[Step]]] = {}  # by pane
        self._late: list[tuple[CanonicalKey, range, Step]] = []
        self._wrapped: tuple[Origin | None, Made | None] = (None, None)

    def taking(self, plain: Callable[[], Emit]) -> Emit:
        """Keep the rows that the window is about to take."""
        take = plain()

        def kept(batch: Batch) -> None:
            if batch.values:
                self._keep(batch)
            take(batch)

        return kept

    def _keep(self, batch: Batch) -> None:
        assert batch.keys is not None, "windows need keys"
        assert batch.timestamps is not None, "windows need event time"
        self._forget()
        for row, (key, time) in enumerate(zip(batch.keys, batch.timestamps, strict=True)):
            what, late_by = judged(self._life, time, None)
            if what is None:
                continue
            steps = self._steps(batch, row)
            if what == "record":
                self._held.setdefault(self._assigner.start(time), {}).setdefault(key, []).extend(steps)
                continue
            for step in steps:
                late = msgspec.structs.replace(step, what=what, late_by_ms=late_by, watermark=self._life.watermark)
                self._late.append((key, self._assigner.holding(time), late))

    def note_late(self) -> None:
        """Note what came too late for a window of which a result came to the key."""
        reached = {(key, start) for operator, key, start in self._tap.taps.reached if operator == self._tap.id}
        for key, starts, step in self._late:
            if any((key, start) in reached for start in starts):
                self._tap.kept.add(step)

    def _steps(self, batch: Batch, row: int) -> list[Step]:
        if isinstance(batch.origin, Made) and (derived := batch.origin.rows.get(batch.offsets[row])) is not None:
            return [record for one in derived for record in one.records]
        step = record_step(batch, row, self._tap.id, original=self._tap.taps.original)
        self._tap.taps.stamp(step, self._tap, batch.offsets[row] if len(batch.offsets) else 0)
        return [step]

    def _forget(self) -> None:
        """Forget panes whose windows are all gone: what those gave was given."""
        for pane in [pane for pane in self._held if self._life.phase(pane) is Phase.GONE]:
            del self._held[pane]

    def connect(self, plain: Callable[[str, Emit], None], output: str, emit: Emit) -> None:
        """Connect *emit*, and let results bear what they were made of."""

        def bearing(batch: Batch) -> None:
            emit(batch.replace(**self._bearing(batch)))

        plain(output, bearing if output in ("out", "final") else emit)

    def _bearing(self, batch: Batch) -> dict[str, Any]:
        assert batch.keys is not None, "results of windows have keys"
        assert batch.windows is not None, "results of windows have windows"
        if len(batch.offsets):  # corrections: parts of one piece share its origin, and must go on sharing one
            made, offsets = self._wrap(batch.origin), batch.offsets
        else:
            made, offsets = Made(None, self._tap.id), range(len(batch))
        kinds = batch.kinds or [Kind.FINAL] * len(batch)
        for offset, key, window, kind in zip(offsets, batch.keys, batch.windows, kinds, strict=True):
            panes = range(self._assigner.start(window[0]), window[1], self._assigner.pane)
            records = [step for pane in panes for step in self._held.get(pane, {}).get(key, ())]
            derived = Derived(self._tap.id, key, window, kind.name.lower(), records)
            made.rows.setdefault(offset, []).append(derived)
        return {"origin": made, "offsets": offsets}

    def _wrap(self, origin: Origin | None) -> Made:
        wrapped, made = self._wrapped
        if made is None or wrapped is not origin:
            made = Made(origin, self._tap.id)
            self._wrapped = origin, made
        return made


def _with_left_out_in_place(piece: list[Step]) -> Iterator[Step]:
    """Yield the steps of one number of the sequence, each record that was left out where its offset puts it.

    An operator takes a piece whole, so it has left out the last of it before the next one sees the first.
    """
    left = deque(sorted((step for step in piece if step.what == "left_out"), key=_offset))
    for step in piece:
        if step.what != "left_out":
            while left and step.place is not None and _offset(left[0]) < _offset(step):
                yield left.popleft()
            yield step
    yield from left


def _offset(step: Step) -> int:
    return -1 if step.offset is None else step.offset


# Plain functions. -----------------------------------------------------------------------------------------------------


def rows_of(batch: Batch, key: CanonicalKey) -> list[int]:
    """Return the rows of *key*. Cost: 20 ns a row where there is none."""
    keys = batch.keys
    if keys is None or key not in keys:
        return []
    return [row for row, one in enumerate(keys) if one == key]


def judged(life: Lifecycle, time: int, start: int | None) -> tuple[str | None, int | None]:
    """
    Say what becomes of a record with event time *time* in the window at *start*, or in its windows: and how late it is.

    ``record``: it counts. ``late``: the window, or the last of them, is gone. None: it is in no such window.
    """
    windows, watermark = life.assigner, life.watermark
    if start is None:
        pane = windows.start(time)
        phase = life.phase(pane)
        if phase is Phase.GAP:
            return ("late", watermark - time - life.lateness) if life.is_late(time) else (None, None)
        if phase is not Phase.GONE:
            return "record", None
        start = windows.last(pane)
    elif time not in range(start, windows.window(start)[1]):
        return None, None
    due = windows.due(start, life.lateness)
    return ("late", watermark - due) if due <= watermark else ("record", None)


def _around(operator: Operator, name: str, function: Callable[..., Any]) -> None:
    """Replace a method of one operator by ``function(the method, ...)``."""
    setattr(operator, name, partial(function, getattr(operator, name)))
