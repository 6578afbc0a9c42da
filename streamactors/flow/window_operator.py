"""The window operator: aggregates for each key and window, shown when event time says so.

The life of a window is decided in flow/windows.py (invariants W1 to W3), what a key holds in flow/aggregates.py. This
module brings them together with state, and emits on three outputs, of which it computes those that are listened to:

    out      an upsert stream: EARLY at the clock's marks and at a flush, for the keys that changed since; ON_TIME for
             every key when the window fires; a CORRECTION for each record that comes after that, at once, while the
             state is held
    final    an append stream: FINAL, once for every key, when the state goes; with no lateness at the firing itself
    late     the records whose window is gone, as they came; they are counted in any case

A result bears the window, and end - 1 as its timestamp.

Why batching stays invisible (T2): inside a piece the watermark is constant, so each record's window is open, fired or
gone for all of the piece. Open windows change silently, each group of records in its order. Corrections are one for
each record in the order of the records, over all windows, as if they had come one by one; so are late records.

Speed: most pieces fall into one window, and most of the rest is a handful of stragglers. The newest window's columns
are then a copy with the stragglers deleted, and only these are looked at row by row.

State: one namespace a window, named by its start; what has changed since the last early result is a second keyed
state, so that a checkpoint costs what changed and not what is open. The row holds the registry of windows, the
watermark as this operator has seen it (behind a final window it lags the region's), the clock's last period, and the
number of late records.

If we crash: all of it goes back to one epoch together. A result that was emitted after that is emitted again, the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import PipelineError
from streamactors.core.keys import CanonicalKey, encode_key
from streamactors.core.limits import BATCH_RECORDS_MAX

from .aggregates import Aggregate, Piece
from .operator import Emit, Operator, OperatorContext
from .windows import Lifecycle, Phase, Tumbling

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState, OperatorRow

_STRAGGLERS_SHARE = 8
"""Up to one row in this many may be deleted from a copy of the columns; with more of them a full split is cheaper."""


class WindowOperator(Operator):
    """Aggregate each key's records by event-time window."""

    def __init__(
        self,
        assigner: Tumbling,
        aggregate: Aggregate,
        *,
        lateness: int = 0,
        early_every: int | None = None,
        outputs: frozenset[str] = frozenset({"out"}),
    ) -> None:
        """
        Describe the operator; ``open`` brings it to life.

        Args:
            assigner: Which window a record belongs to.

            aggregate: What is kept for a key and window.

            lateness: How long state is held after the firing, ms.

            early_every: Show open windows that changed on ``out`` at each multiple of this on the clock, ms.

            outputs: Those that somebody listens to, of "out", "final" and "late".
        """
        super().__init__()
        assert outputs <= {"out", "final", "late"}, outputs
        if early_every is not None and early_every < 1:
            raise PipelineError(f"early results every {early_every} ms: give a period of at least 1 ms.")
        self.assigner = assigner
        self.aggregate = aggregate
        self.lateness = lateness
        self.early_every = early_every if "out" in outputs else None
        self.outputs = outputs
        self._life = Lifecycle(assigner, lateness)
        self._changed: dict[int, set[CanonicalKey]] = {}
        self._period: int | None = None
        self._state: KeyedState
        self._changed_state: KeyedState | None = None
        self._row: OperatorRow

    @property
    def shape(self) -> str:
        """What a stored checkpoint must have been made by."""
        return f"window({self.assigner.size}, {self.assigner.offset}) {self.aggregate.shape}"

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("windows")
        self._row = context.row("windows")
        self._life = Lifecycle(self.assigner, self.lateness, context.watermark)
        if self._row.value is not None:
            self.late_records, self._period, life = self._row.value
            self._life.restore(life)
        if self.early_every is not None:
            self._changed_state = changed = context.keyed_state("changed")
            keys = {start: {key for key, _ in changed.items(start)} for start in self._life.open}
            self._changed = {start: found for start, found in keys.items() if found}

    # ---- records

    def on_batch(self, batch: Batch) -> None:
        """Fold the records into their windows; show corrections and late records."""
        assert batch.keys is not None, "windows need keys"
        assert batch.timestamps is not None, "windows need event time"
        if not batch.values:
            return
        timestamps = batch.timestamps
        oldest_time, newest_time = batch.time_bounds
        newest = self.assigner.start(newest_time)
        if not self._silent(newest):
            self._route(batch, self.assigner.split(timestamps))
        elif oldest_time >= newest:
            self._fold(newest, Piece(self.name, batch.keys, batch))
        else:
            self._fold_around(batch, newest, [row for row, time in enumerate(timestamps) if time < newest])

    def _silent(self, start: int) -> bool:
        """Return whether a record of this window shows only at a signal."""
        phase = self._life.phase(start)
        return phase is Phase.OPEN or (phase is Phase.FIRED and "out" not in self.outputs)

    def _fold_around(self, batch: Batch, newest: int, stragglers: list[int]) -> None:
        """Fold the newest window's rows, which are all but *stragglers*; route these."""
        assert batch.keys is not None
        assert batch.timestamps is not None
        if len(stragglers) * _STRAGGLERS_SHARE > len(batch):
            self._route(batch, self.assigner.split(batch.timestamps))
            return
        self._fold(newest, Piece(self.name, _without(batch.keys, stragglers), lambda: _rest(batch, stragglers)))
        times = [batch.timestamps[row] for row in stragglers]
        older = self.assigner.split(times)
        self._route(batch, {start: [stragglers[row] for row in rows] for start, rows in older.items()})

    def _route(self, batch: Batch, rows_of: dict[int, list[int]]) -> None:
        """Treat each window's rows as its phase demands."""
        assert batch.keys is not None
        late: list[int] = []
        fired: dict[int, int] = {}
        for start, rows in rows_of.items():
            if self._silent(start):
                self._fold(start, Piece(self.name, [batch.keys[row] for row in rows], _taker(batch, rows)))
            elif self._life.phase(start) is Phase.FIRED:
                fired.update(dict.fromkeys(rows, start))
            else:
                late += rows
        if fired:
            rows = sorted(fired)
            self._correct(batch.take(rows), [fired[row] for row in rows])
        if late:
            self.late_records += len(late)
            self._note()
            self.emit_late(batch.take(sorted(late)))

    def _fold(self, start: int, piece: Piece) -> None:
        self._register(start)
        aggregate, keys = self.aggregate, list(piece.counts)
        accs = aggregate.fold(aggregate.filled(self._state.get_many(start, keys)), piece)
        self._state.put_many(start, dict(zip(keys, accs, strict=True)))
        if self._changed_state is not None:
            changed = self._changed.setdefault(start, set())
            if not changed.issuperset(piece.counts):
                fresh = piece.counts.keys() - changed
                changed |= fresh
                self._changed_state.put_many(start, dict.fromkeys(fresh, True))

    def _correct(self, batch: Batch, starts: list[int]) -> None:
        """Re-fire each row's window for its key, row by row: one piece over all windows, keyed by (start, key)."""
        assert batch.keys is not None
        piece = Piece(self.name, list(zip(starts, batch.keys, strict=True)), batch)
        keys_of: dict[int, list[CanonicalKey]] = {}
        for start, key in piece.counts:
            keys_of.setdefault(start, []).append(key)
        held: dict[tuple[int, CanonicalKey], Any] = {}
        for start, keys in keys_of.items():
            self._register(start)
            held.update(zip(((start, key) for key in keys), self._state.get_many(start, keys), strict=True))
        steps = self.aggregate.fold_each(self.aggregate.filled([held[pair] for pair in piece.counts]), piece)
        accs = dict(zip(piece.keys, steps, strict=True))
        for start, keys in keys_of.items():
            self._state.put_many(start, {key: accs[start, key] for key in keys})
        windows = [self.assigner.window(start) for start in starts]
        self.emit(
            batch.replace(
                values=self.aggregate.results(steps, self.name),
                timestamps=[end - 1 for _, end in windows],
                windows=windows,
                kinds=[Kind.CORRECTION] * len(windows),
            )
        )

    def _register(self, start: int) -> None:
        if self._life.register(start):
            self._state.born(start)
            if self._changed_state is not None:
                self._changed_state.born(start)
            self._note()

    # ---- signals

    def on_watermark(self, time: int) -> None:
        """Fire the windows that *time* ends, and let the state go that no record may change any more."""
        if time <= self._life.watermark:  # (W1)
            return
        fire, go = self._life.advance(time)
        for start in fire:
            self._show_all(start, Kind.ON_TIME, "out")
            self._forget_changed(start)
        for start in go:
            self._show_all(start, Kind.FINAL, "final")
            self._state.drop(start)
        self._note()

    def on_clock(self, time: int) -> None:
        """Show what changed in open windows, if *time* lies in a new period."""
        # Marks are journaled, on the grid of the region's smallest period, and may jump over several of ours.
        if self.early_every is not None and time // self.early_every != self._period:
            self._period = time // self.early_every
            self._show_changed()
            self._note()

    def on_flush(self) -> None:
        """Show what changed in open windows, if they have early results at all."""
        self._show_changed()

    def _show_changed(self) -> None:
        for start in sorted(self._changed):
            keys = sorted(self._changed[start], key=encode_key)
            accs = self._state.get_many(start, keys)
            self._forget_changed(start)
            self._show(start, keys, accs, Kind.EARLY, self.emit)

    def _forget_changed(self, start: int) -> None:
        if self._changed.pop(start, None) and self._changed_state is not None:
            self._changed_state.drop(start)

    def _show_all(self, start: int, kind: Kind, output: str) -> None:
        if output not in self.outputs:
            return
        rows = self._state.items(start)
        assert rows, f"W2: window {start} is registered and holds nothing"
        emit = self.emit if output == "out" else self.emit_final
        self._show(start, [key for key, _ in rows], [acc for _, acc in rows], kind, emit)

    def _show(self, start: int, keys: list[CanonicalKey], accs: list[Any], kind: Kind, emit: Emit) -> None:
        """Emit a window's result for each key, in batches of the usual size."""
        window = self.assigner.window(start)
        for first in range(0, len(keys), BATCH_RECORDS_MAX):
            part = slice(first, first + BATCH_RECORDS_MAX)
            values = self.aggregate.results(accs[part], self.name)
            rows = len(values)
            emit(Batch(values, [window[1] - 1] * rows, keys[part], windows=[window] * rows, kinds=[kind] * rows))

    def _note(self) -> None:
        self._row.set([self.late_records, self._period, self._life.snapshot()])


def _without(column: Sequence[Any], rows: list[int]) -> list[Any]:
    """Return a copy of *column* without some rows, given in ascending order."""
    rest = list(column)
    for row in reversed(rows):
        del rest[row]
    return rest


def _rest(batch: Batch, rows: list[int]) -> Batch:
    """Return *batch* without some rows. An aggregate reads values; offsets serve only its errors."""
    keep = bytearray(b"\x01") * len(batch)
    for row in rows:
        keep[row] = 0
    return batch.select(keep)


def _taker(batch: Batch, rows: list[int]) -> Callable[[], Batch]:
    return lambda: batch.take(rows)
