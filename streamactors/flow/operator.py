"""The operator contract: what a fused chain is made of.

An operator is a plain object: batches and signals go in by method calls, batches come out through ``emit``. It has no
event loop, no mailbox and no lock, because one stage, which is one actor, calls it; the operators of a chain call each
other as plain functions.

When is it called?       ``open`` once, before anything else; then ``on_*`` in the order of the sequence.
How often?               Once for each batch and signal; after a restart a new object gets what followed the checkpoint.
In what order?           Sequence order. All operators of a stage see a signal in the plan's order, upstream first, and
                         what one emits at a signal reaches the next before the signal does.
May it block?            No. What awaits a function for each row is an AsyncOperator (flow/async_calls.py); the plan
                         puts it at the head of a stage, which goes on meanwhile.
What follows an error?   The region goes back to its last checkpoint and runs again, unless the operator's error policy
                         says to leave the record out (flow/dead_letters.py). It is never swallowed.

What must survive is held in the ``stores`` that ``open`` creates from its context (durable/state.py): they freeze at
the barrier, encode between batches and hand over. An operator has nothing to do for it but to keep its state there.

Results at a signal come out in the order of (time, encoded key): never in the order of a dict (T1).
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch, Kind, Window
from streamactors.core.errors import BadRecord, PipelineError, RecordPlace, text_of
from streamactors.core.ports import Clock
from streamactors.core.signals import ClockMark, Flush, Watermark
from streamactors.core.times import MIN_TIME

from .dead_letters import OnError, dead_letter

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState, OperatorRow

Emit = Callable[[Batch], None]

_HERE = Path(__file__).parent

RAISED = (Exception, CancelledError)
"""What a plain function may raise as an error of its record. Nothing awaits there: a CancelledError is its own too, and
would pass for a cancellation of the stage."""


def nowhere(batch: Batch) -> None:
    """Take a batch that nobody listens to."""


@dataclass(slots=True)
class OperatorContext:
    """What a stage hands to an operator when it opens it."""

    name: str
    """Path of the operator in the tree, such as ``quiz-counts/window[0]``: for errors and logs."""

    keyed_state: Callable[[str], KeyedState]
    """Open the keyed state of this name that belongs to the operator and its part; restored to the last checkpoint."""

    row: Callable[[str], OperatorRow]
    """Open the small row of this name for what belongs to the operator's part and not to a key; restored as well."""

    watermark: int = MIN_TIME
    """The region's watermark at the checkpoint from which we start."""

    clock: Clock | None = None
    """The port: for what awaits."""

    random: Random | None = None
    """The port: for jitter, never for a result."""

    since: int = MIN_TIME
    """Windows that begin before it are left out: the region began when some of their records were past."""

    mark: int = MIN_TIME
    """The last mark of the clock before the checkpoint from which we start."""


class Operator:
    """A step of a chain. See the module's header for the contract; this one passes everything on."""

    def __init__(self) -> None:
        self.name = ""
        self.emit: Emit = nowhere
        self.emit_late: Emit = nowhere
        self.emit_final: Emit = nowhere
        self.emit_dead: Emit = nowhere
        self.on_error = OnError.FAIL
        self.records_in = 0
        self.records_out = 0
        self.late_records = 0
        self.late_before = 0  # those that the restored state had counted already
        self.refused_records = 0  # left out, because they could not be handled

    def open(self, context: OperatorContext) -> None:
        """Take the context: called once, before anything else."""
        self.name = context.name

    def connect(self, output: str, emit: Emit) -> None:
        """Let *emit* take what is given on *output*."""
        outputs = {"out": "emit", "late": "emit_late", "final": "emit_final", "dead": "emit_dead"}
        setattr(self, outputs[output], emit)

    def taking(self) -> Emit:
        """Return what takes a batch: ``on_batch``, with an error policy around the rows that it can't handle."""
        return self.on_batch if self.on_error is OnError.FAIL else self._take_tolerantly

    def _take_tolerantly(self, batch: Batch) -> None:
        """
        Let ``on_batch`` take the rows that it can handle.

        It must do nothing before it raises: the rows before the bad one are given again, then those behind it.
        Cost: nothing while all goes well; a second call of the function for up to a batch of rows before each bad one.
        """
        rest = batch
        while rest.values and (bad := self._refusal(rest)) is not None:
            assert bad.row is not None, f"{self.name}: {bad} names no row"
            self._take_tolerantly(rest.slice(0, bad.row))
            self.refuse(bad, rest, bad.row)
            self._take_back(rest.slice(bad.row, bad.row + 1))
            rest = rest.slice(bad.row + 1, len(rest))

    def _refusal(self, batch: Batch) -> BadRecord | None:
        """Let ``on_batch`` take *batch*, or return the error that names a row; nothing is done while it is handled.

        Else it would be the context of what other rows raise, and stand in their dead letters, or not, as batches fall.
        """
        try:
            self.on_batch(batch)
        except BadRecord as bad:
            if bad.row is None or bad.operator != self.name:  # of an operator behind this one
                raise
            return bad
        return None

    def _take_back(self, row: Batch) -> None:
        """Delete what went before a row of an upsert stream that is left out; before a FINAL one nothing did."""
        if row.kinds is not None and row.kinds[0] not in (Kind.DELETE, Kind.FINAL):
            self.on_batch(row.replace(values=[None], kinds=[Kind.DELETE]))

    @property
    def kept(self) -> dict[str, Any] | None:
        """The schema of what it keeps: builtins, with its ``kind``; see flow/kept.py. None: it keeps nothing."""
        return None

    def held(self, value: Any) -> Any:
        """
        Return the form in which a keyed value is held: the way back from ``kept.seen``. For migrations.

        Raises TypeError, or what a decoder raises, when the operator could not go on with *value*.
        """
        raise TypeError(f"{self.name or type(self).__name__} keeps nothing that a migration could change")

    def resplit(self, rows: list[Any], spaces: list[set[int | None]]) -> list[Any]:
        """
        Return the operator's row (``OperatorContext.row``) for each part of another number of parts.

        Pure. *rows* are those of the old parts at one barrier, None where nothing was set; *spaces* has, for each new
        part, the namespaces of ``keyed_state`` in which a key of its own has something.
        """
        raise PipelineError(f"operator {self.name} can't change its number of parts. Run it in as many as it had.")

    @property
    def next_window(self) -> Window | None:
        """The window that it fires next, of those that hold something; None where there is none. For status."""
        return None

    def refuse(self, bad: BadRecord, batch: Batch, row: int) -> None:
        """Treat a row that can't be handled as the error policy says: raise, or leave it out."""
        if self.on_error is OnError.FAIL:
            raise bad
        self.refused_records += 1
        if self.on_error is OnError.DEAD_LETTER:
            self.emit_dead(dead_letter(bad, batch, row))

    def on_batch(self, batch: Batch) -> None:
        """Handle the records of one piece; the watermark is constant inside it."""
        self.emit(batch)

    def on_watermark(self, time: int) -> None:
        """Event time has reached *time*: no record with a timestamp <= *time* will come, or it is late."""

    def on_clock(self, time: int) -> None:
        """Processing time has reached *time*."""

    def on_flush(self) -> None:
        """A bounded run ends: show early what is held, purge nothing."""

    def turns(self, signal: Watermark | ClockMark | Flush) -> Iterable[None]:
        """
        Handle *signal* in turns of a few ms each: the loop belongs to others between two of them.

        The stage takes nothing else meanwhile, so state and the place in the sequence stay as they are. What handles a
        signal at once, as most do, has no turns.
        """
        match signal:
            case Watermark(time):
                self.on_watermark(time)
            case ClockMark(time):
                self.on_clock(time)
            case Flush():
                self.on_flush()
        return ()


def counted_in(operator: Operator, take: Emit) -> Emit:
    """Return *take*, counting what *operator* is given; once a batch."""

    def counting(batch: Batch) -> None:
        operator.records_in += len(batch.values)
        take(batch)

    return counting


def counted_out(operator: Operator, emit: Emit) -> Emit:
    """Return *emit*, counting what *operator* gives; once a batch."""

    def counting(batch: Batch) -> None:
        operator.records_out += len(batch.values)
        emit(batch)

    return counting


def place_of(batch: Batch, index: int) -> RecordPlace | None:
    """Return where row *index* of *batch* was read, if that is known."""
    if batch.origin is None or not len(batch.offsets):
        return None
    return RecordPlace(batch.origin.source, batch.origin.partition, batch.offsets[index])


def bad_record(name: str, batch: Batch, index: int, error: BaseException) -> BadRecord:
    """Return the error that names operator, record and place, and the line of the user's code that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = ""
    # An error inside C code (``int``, ``+``) has our own loop as its last frame; that line would tell the user nothing.
    if trace is not None and (file := Path(trace.tb_frame.f_code.co_filename)).parent != _HERE:
        code = f" (in {file.name}:{trace.tb_lineno})"
    reason = f"{type(error).__name__}: {text_of(error)}{code}"
    return BadRecord(name, place_of(batch, index), batch.values[index], reason, index)


def in_rows(bad: BadRecord, rows: Sequence[int]) -> None:
    """Let *bad*, which was raised over some *rows* of a batch, name the batch's row."""
    bad.row = None if bad.row is None else rows[bad.row]


def call_each(name: str, function: Callable[..., Any], batch: Batch, *columns: Iterable[Any]) -> list[Any]:
    """
    Return ``[function(value, ...) for each row]``, at the speed of ``map``.

    An exception becomes a BadRecord that names the row: how far the iterator got tells which, without a counter.
    """
    rows = iter(batch.values)
    try:
        results = list(map(function, rows, *columns))
    except RAISED as error:
        raise bad_record(name, batch, len(batch.values) - length_hint(rows) - 1, error) from error
    if len(results) != len(batch.values):  # map takes a StopIteration for its own end and would drop the rest
        raise bad_record(name, batch, len(results), StopIteration("the function raised it; it must return a value"))
    return results
