"""The window operator: aggregates for each key and window, shown when event time says so.

The life of a window is decided in flow/windows.py (invariants W1 to W3), what a key holds in flow/aggregates.py. This
module brings them together with state, and emits on three outputs, of which it computes those that are listened to.
Records change panes; where windows overlap, flow/panes.py puts what a window shows together from them.

    out      an upsert stream: EARLY at the clock's marks and at a flush, for the keys that changed since; ON_TIME for
             every key when the window fires; a CORRECTION for each record that comes after that, at once, while the
             window is held
    final    an append stream: FINAL, once for every key, when the window goes; with no lateness at the firing itself
    late     the records whose windows are all gone, as they came; they are counted in any case

A result bears the window, and end - 1 as its timestamp.

Why batching stays invisible (T2): inside a piece the watermark is constant, so each record's windows are open, fired or
gone for all of the piece. Open windows change silently, each group of records in its order. Corrections are one for
each record and fired window, in the order of the records, as if they had come one by one; so are late records.

Speed: most pieces fall into one pane, and most of the rest is a handful of stragglers. The newest pane's columns are
then a copy with the stragglers deleted, and only these are looked at row by row.

State: one namespace a pane, named by its start; what has changed since the last early result is a second keyed state,
so that a checkpoint costs what changed and not what is open. The row holds the registry of panes, the watermark as
this operator has seen it (behind a final window it lags the region's), the clock's last period, and the number of late
records.

If we crash: all of it goes back to one epoch together. A result that was emitted after that is emitted again, the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch, Kind, Window
from streamactors.core.errors import BadRecord, PipelineError
from streamactors.core.keys import CanonicalKey, encode_key
from streamactors.core.limits import BATCH_RECORDS_MAX, TURN_ENTRIES
from streamactors.core.ordering import in_order
from streamactors.core.signals import ClockMark, Flush, Watermark
from streamactors.core.times import MAX_TIME, MIN_TIME

from .aggregates import Aggregate
from .operator import Emit, Operator, OperatorContext, in_rows
from .panes import Panes
from .piece import Piece
from .windows import Lifecycle, Phase, Windows

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState, OperatorRow

_NONE: frozenset[CanonicalKey] = frozenset()

_STRAGGLERS_SHARE = 8
"""Up to one row in this many may be deleted from a copy of the columns; with more of them a full split is cheaper."""


class WindowOperator(Operator):
    """Aggregate each key's records by event-time window."""

    def __init__(
        self,
        assigner: Windows,
        aggregate: Aggregate,
        *,
        lateness: int = 0,
        early_every: int | None = None,
        outputs: frozenset[str] = frozenset({"out"}),
    ) -> None:
        """
        Describe the operator; ``open`` brings it to life.

        Args:
            assigner: Which windows a record belongs to.

            aggregate: What is kept for a key and window.

            lateness: How long a window is held after its firing, ms.

            early_every: Show open windows that changed on ``out`` at each multiple of this on the clock, ms.

            outputs: Those that somebody listens to, of "out", "final" and "late".
        """
        super().__init__()
        assert outputs <= {"out", "final", "late"}, outputs
        if early_every is not None and early_every < 1:
            raise PipelineError(f"early results every {early_every} ms: give a period of at least 1 ms.")
        assert assigner.panes == 1 or not aggregate.unmergeable, aggregate.unmergeable
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
        self._folded: list[tuple[int, dict[CanonicalKey, Any]]] = []
        """Panes of the batch in hand, with what they will hold: nothing is stored before all of it went well."""

        self._panes: Panes | None = None
        """Puts windows together; None where each is its own only pane."""

    @property
    def kept(self) -> dict[str, Any]:
        windows = self.assigner
        grid = {"size": windows.size, "slide": windows.slide, "offset": windows.offset}
        return {"kind": "window", **grid, "value": self.aggregate.kept}

    def held(self, value: Any) -> Any:
        return self.aggregate.held(value)

    def resplit(self, rows: list[Any], spaces: list[set[int | None]]) -> list[Any]:
        """Late records are counted in the first part, which all results add up; signals reach all parts alike."""
        known = [row for row in rows if row is not None]
        if not known:
            return [None] * len(spaces)
        late = sum(late for late, _, _ in known)
        period = max((period for _, period, _ in known if period is not None), default=None)
        watermark = max(watermark for _, _, (watermark, _) in known)
        held = {pane for _, _, (_, panes) in known for pane in panes}
        return [
            [0 if part else late, period, [watermark, sorted(held.intersection(own))]]
            for part, own in enumerate(spaces)
        ]

    @property
    def next_window(self) -> Window | None:
        """The window that fires next, of those that hold something."""
        panes = self._life.open
        return self.assigner.window(self._life.unfired(panes[0])[0]) if panes else None

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("windows")
        self._row = context.row("windows")
        if self.assigner.panes > 1:
            self._panes = Panes(self.aggregate, self.assigner, self._state, self.name)
        self._life = Lifecycle(self.assigner, self.lateness, context.watermark, since=context.since)
        if self.early_every is not None and context.mark != MIN_TIME:
            self._period = context.mark // self.early_every
        if self._row.value is not None:
            self.late_records, self._period, life = self._row.value
            self.late_before = self.late_records
            self._life.restore(life)
        if self.early_every is not None:
            self._changed_state = changed = context.keyed_state("changed")
            keys = {pane: set(changed.entries(pane)) for pane in self._life.open}
            self._changed = {pane: found for pane, found in keys.items() if found}

    # ---- records

    def on_batch(self, batch: Batch) -> None:
        """Fold the records into their windows; show corrections and late records."""
        assert batch.keys is not None, "windows need keys"
        assert batch.timestamps is not None, "windows need event time"
        if not batch.values:
            return
        self._folded.clear()
        timestamps = batch.timestamps
        oldest_time, newest_time = batch.time_bounds
        newest = self.assigner.start(newest_time)
        if not self._silent(newest):
            self._route(batch, self.assigner.split(timestamps))
        elif oldest_time >= newest:
            self._fold(newest, Piece(self.name, batch.keys, batch))
            self._store()
        else:
            self._fold_around(batch, newest, [row for row, time in enumerate(timestamps) if time < newest])

    def _silent(self, pane: int) -> bool:
        """Return whether a record of this pane shows only at a signal."""
        phase = self._life.phase(pane)
        return phase is Phase.OPEN or (phase is Phase.FIRED and "out" not in self.outputs)

    def _fold_around(self, batch: Batch, newest: int, stragglers: list[int]) -> None:
        """Fold the newest pane's rows, which are all but *stragglers*; route these."""
        assert batch.keys is not None
        assert batch.timestamps is not None
        if len(stragglers) * _STRAGGLERS_SHARE > len(batch):
            self._route(batch, self.assigner.split(batch.timestamps))
            return
        piece = Piece(self.name, _without(batch.keys, stragglers), lambda: _rest(batch, stragglers))
        with _naming(range(len(batch)), stragglers):
            self._fold(newest, piece)
        times = [batch.timestamps[row] for row in stragglers]
        older = self.assigner.split(times)
        self._route(batch, {pane: [stragglers[row] for row in rows] for pane, rows in older.items()})

    def _route(self, batch: Batch, rows_of: dict[int, list[int]]) -> None:
        """Treat each pane's rows as its phase demands."""
        assert batch.keys is not None
        assert batch.timestamps is not None
        late: list[int] = []
        fired: dict[int, int] = {}
        for pane, rows in rows_of.items():
            if self._silent(pane):
                with _naming(rows):
                    self._fold(pane, Piece(self.name, [batch.keys[row] for row in rows], _taker(batch, rows)))
                continue
            match self._life.phase(pane):
                case Phase.FIRED:
                    fired.update(dict.fromkeys(rows, pane))
                case Phase.GAP:
                    late += [row for row in rows if self._life.is_late(batch.timestamps[row])]
                case _:
                    late += rows
        if fired:
            rows = sorted(fired)
            with _naming(rows):
                self._correct(batch.take(rows), [fired[row] for row in rows])
        else:
            self._store()
        if late:
            self.late_records += len(late)
            self._note()
            self.emit_late(batch.take(sorted(late)))

    def _fold(self, pane: int, piece: Piece) -> None:
        self._await(pane)
        aggregate, keys = self.aggregate, list(piece.counts)
        accs = aggregate.fold(aggregate.filled(self._state.get_many(pane, keys)), piece)
        self._folded.append((pane, dict(zip(keys, accs, strict=True))))

    def _store(self) -> None:
        """Store what was folded."""
        for pane, accs in self._folded:
            self._register(pane)
            self._keep(pane, accs)

    def _keep(self, pane: int, accs: dict[CanonicalKey, Any]) -> None:
        """Store what a pane has now for some keys, and tell all who look at it."""
        self._state.put_many(pane, accs)
        if self._panes is not None:
            self._panes.change(pane, accs)
        if self._changed_state is not None and not self._changed.get(pane, _NONE).issuperset(accs):
            self._note_changed(pane, accs, self._changed_state)

    def _note_changed(self, pane: int, keys: Iterable[CanonicalKey], state: KeyedState) -> None:
        """Note that the open windows of a pane, if any, have something new to show for *keys*."""
        if self._life.unfired(pane):
            changed = self._changed.setdefault(pane, set())
            fresh = set(keys) - changed
            changed |= fresh
            state.put_many(pane, dict.fromkeys(fresh, True))

    def _correct(self, batch: Batch, panes: list[int]) -> None:
        """Re-fire each row's fired windows for its key, row by row: one piece over all panes, keyed by (pane, key)."""
        assert batch.keys is not None
        piece = Piece(self.name, list(zip(panes, batch.keys, strict=True)), batch)
        keys_of: dict[int, list[CanonicalKey]] = {}
        for pane, key in piece.counts:
            keys_of.setdefault(pane, []).append(key)
        held: dict[tuple[int, CanonicalKey], Any] = {}
        for pane, keys in keys_of.items():
            self._await(pane)
            held.update(zip(((pane, key) for key in keys), self._state.get_many(pane, keys), strict=True))
        steps = self.aggregate.fold_each(self.aggregate.filled([held[pair] for pair in piece.counts]), piece)
        self._store()
        for pane in keys_of:
            self._register(pane)
        if self._panes is not None:
            self._correct_overlapping(batch, piece, steps, self._panes)
            return
        accs = dict(zip(piece.keys, steps, strict=True))
        for pane, keys in keys_of.items():
            self._keep(pane, {key: accs[pane, key] for key in keys})
        self._show_corrections(batch, panes, steps)

    def _correct_overlapping(self, batch: Batch, piece: Piece, steps: list[Any], panes: Panes) -> None:
        """Store the pane's accumulator after each row, *steps*, and show what each fired window has then."""
        rows: list[int] = []
        starts: list[int] = []
        accs: list[Any] = []
        for row, ((pane, key), step) in enumerate(zip(piece.keys, steps, strict=True)):
            self._keep(pane, {key: step})
            windows = self._life.fired(pane)
            rows += [row] * len(windows)
            starts += windows
            accs += [panes.one(start, key) for start in windows]
        panes.trim()
        for first in range(0, len(rows), BATCH_RECORDS_MAX):
            part = slice(first, first + BATCH_RECORDS_MAX)
            self._show_corrections(batch.take(rows[part]), starts[part], accs[part])

    def _show_corrections(self, batch: Batch, starts: list[int], accs: list[Any]) -> None:
        windows = [self.assigner.window(start) for start in starts]
        self.emit(
            batch.replace(
                values=self.aggregate.results(accs, self.name),
                timestamps=[end - 1 for _, end in windows],
                windows=windows,
                kinds=[Kind.CORRECTION] * len(windows),
            )
        )

    def _await(self, pane: int) -> None:
        """Say that a pane which is not registered has nothing in the store, before it is looked for there."""
        if not self._life.holds(pane):
            self._state.born(pane)
            if self._changed_state is not None:
                self._changed_state.born(pane)

    def _register(self, pane: int) -> None:
        if self._life.register(pane):
            self._note()

    # ---- signals

    def on_watermark(self, time: int) -> None:
        """Fire the windows that *time* ends, and let the state go that no record may change any more."""
        if time <= self._life.watermark:  # (W1)
            return
        fire, go = self._life.advance(time)
        for start in fire:
            self._show_all(start, Kind.ON_TIME, "out")
        for start in go:
            self._show_all(start, Kind.FINAL, "final")
        self._let_go()

    def _let_go(self) -> None:
        """Let the state go of what has fired, and of what nothing may change any more."""
        for pane in [pane for pane in self._changed if not self._life.unfired(pane)]:
            self._forget_changed(pane)
        for pane in self._life.release():
            self._state.drop(pane)
        if self._panes is not None:
            self._panes.forget(next(iter(self._life.held), MAX_TIME))
            self._panes.trim()
        self._note()

    def turns(self, signal: Watermark | ClockMark | Flush) -> Iterable[None]:
        """Fire large windows in turns; what holds little is handled at once."""
        if isinstance(signal, Watermark) and self._panes is None and any(map(self._state.is_large, self._life.held)):
            return self._fire_in_turns(signal.time)
        changed = sum(map(len, self._changed.values()))
        if not isinstance(signal, Watermark) and self._panes is None and changed > TURN_ENTRIES:
            return self._show_changed_in_turns(signal)
        return super().turns(signal)

    def _fire_in_turns(self, time: int) -> Iterator[None]:
        if time <= self._life.watermark:  # (W1)
            return
        fire, go = self._life.advance(time)
        shown = [(start, Kind.ON_TIME, "out") for start in fire] + [(start, Kind.FINAL, "final") for start in go]
        for start, kind, output in shown:
            if output in self.outputs:
                entries = yield from self._state.entries_in_turns(self.assigner.start(start))
                for rows in in_order(entries.items()):
                    keys, accs = [key for key, _ in rows], [acc for _, acc in rows]
                    self._show(start, keys, accs, kind, self.emit if output == "out" else self.emit_final)
                    yield
        self._let_go()

    def _show_changed_in_turns(self, signal: ClockMark | Flush) -> Iterator[None]:
        if isinstance(signal, ClockMark) and not self._begins_period(signal.time):
            return
        for pane in sorted(self._changed):
            for rows in in_order(dict.fromkeys(self._changed[pane]).items()):
                keys = [key for key, _ in rows]
                self._show(pane, keys, self._state.get_many(pane, keys), Kind.EARLY, self.emit)
                yield
            self._forget_changed(pane)

    def on_clock(self, time: int) -> None:
        """Show what changed in open windows, if *time* lies in a new period."""
        if self._begins_period(time):
            self._show_changed()

    def _begins_period(self, time: int) -> bool:
        """Return whether early results are due, and note that they were shown."""
        # Marks are journaled, on the grid of the region's smallest period, and may jump over several of ours.
        if self.early_every is None or time // self.early_every == self._period:
            return False
        self._period = time // self.early_every
        self._note()
        return True

    def on_flush(self) -> None:
        """Show what changed in open windows, if they have early results at all."""
        self._show_changed()

    def _show_changed(self) -> None:
        if self._panes is not None:
            self._show_changed_overlapping()
            return
        for pane in sorted(self._changed):
            keys = sorted(self._changed[pane], key=encode_key)
            accs = self._state.get_many(pane, keys)
            self._forget_changed(pane)
            self._show(pane, keys, accs, Kind.EARLY, self.emit)

    def _show_changed_overlapping(self) -> None:
        """Show each open window for the keys that changed in its panes: once, however many of them did."""
        panes_of: dict[CanonicalKey, list[int]] = {}
        for pane in sorted(self._changed):
            for key in self._changed[pane]:
                panes_of.setdefault(key, []).append(pane)
            self._forget_changed(pane)
        shown: dict[int, list[CanonicalKey]] = {}
        for key in sorted(panes_of, key=encode_key):
            beyond = MIN_TIME - self.assigner.size  # the first window that has not been noted for the key
            for pane in panes_of[key]:
                windows = self._life.unfired(pane)
                for start in range(max(beyond, windows.start), windows.stop, windows.step):
                    shown.setdefault(start, []).append(key)
                beyond = windows[-1] + windows.step
        panes = Panes(self.aggregate, self.assigner, self._state, self.name, keys=list(panes_of))
        for start in sorted(shown):
            entries, keys = panes.window(start), shown[start]
            self._show(start, keys, [entries[key] for key in keys], Kind.EARLY, self.emit)

    def _forget_changed(self, pane: int) -> None:
        if self._changed.pop(pane, None) and self._changed_state is not None:
            self._changed_state.drop(pane)

    def _show_all(self, start: int, kind: Kind, output: str) -> None:
        if output not in self.outputs:
            return
        if self._panes is None:
            rows = self._state.items(self.assigner.start(start))
            keys, accs = [key for key, _ in rows], [acc for _, acc in rows]
        else:
            entries = self._panes.window(start)
            keys = sorted(entries, key=encode_key)
            accs = [entries[key] for key in keys]
        assert keys, f"W2: window {start} has a pane that is registered, and holds nothing"
        self._show(start, keys, accs, kind, self.emit if output == "out" else self.emit_final)

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


@contextmanager
def _naming(rows: Sequence[int], but: Sequence[int] = ()) -> Iterator[None]:
    """Let an error over some *rows* of a batch, all of them *but* a few, name the batch's row."""
    try:
        yield
    except BadRecord as bad:
        in_rows(bad, _without(rows, list(but)))
        raise


def _taker(batch: Batch, rows: list[int]) -> Callable[[], Batch]:
    return lambda: batch.take(rows)
