"""The operator contract: what a fused chain is made of.

An operator is a plain object: batches and signals go in by method calls, batches come out through ``emit``. It has no
event loop, no mailbox and no lock, because one stage, which is one actor, calls it; the operators of a chain call each
other as plain functions.

When is it called?       ``open`` once, before anything else; then ``on_*`` in the order of the sequence.
How often?               Once for each batch and signal; after a restart a new object gets what followed the checkpoint.
In what order?           Sequence order. All operators of a stage see a signal in the plan's order, upstream first, and
                         what one emits at a signal reaches the next before the signal does.
May it block?            No. An operator with ``on_batch_async`` instead of ``on_batch`` is awaited; the plan puts it
                         at the head of a stage.
What follows an error?   The region goes back to its last checkpoint and runs again; an error is never swallowed.

What must survive is held in the ``stores`` that ``open`` creates from its context (durable/state.py): they freeze at
the barrier, encode between batches and hand over. An operator has nothing to do for it but to keep its state there.

Results at a signal come out in the order of (time, encoded key): never in the order of a dict (T1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch
from streamactors.core.errors import BadRecord, RecordPlace
from streamactors.core.times import MIN_TIME

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState, OperatorRow

Emit = Callable[[Batch], None]

_HERE = Path(__file__).parent


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


class Operator:
    """A step of a chain. See the module's header for the contract; this one passes everything on."""

    def __init__(self) -> None:
        self.name = ""
        self.emit: Emit = nowhere
        self.emit_late: Emit = nowhere
        self.emit_final: Emit = nowhere
        self.records_in = 0
        self.records_out = 0
        self.late_records = 0

    def open(self, context: OperatorContext) -> None:
        """Take the context: called once, before anything else."""
        self.name = context.name

    def connect(self, output: str, emit: Emit) -> None:
        """Let *emit* take what is given on *output*."""
        setattr(self, {"out": "emit", "late": "emit_late", "final": "emit_final"}[output], emit)

    def on_batch(self, batch: Batch) -> None:
        """Handle the records of one piece; the watermark is constant inside it."""
        self.emit(batch)

    def on_watermark(self, time: int) -> None:
        """Event time has reached *time*: no record with a timestamp <= *time* will come, or it is late."""

    def on_clock(self, time: int) -> None:
        """Processing time has reached *time*."""

    def on_flush(self) -> None:
        """A bounded run ends: show early what is held, purge nothing."""


class AsyncOperator(Operator):
    """An operator whose work is awaited, one batch at a time: at the head of its stage."""

    async def on_batch_async(self, batch: Batch) -> Batch:
        """Return what the chain behind this operator shall see of *batch*."""
        raise NotImplementedError


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


def bad_record(name: str, batch: Batch, index: int, error: Exception) -> BadRecord:
    """Return the error that names operator, record and place, and the line of the user's code that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = ""
    # An error inside C code (``int``, ``+``) has our own loop as its last frame; that line would tell the user nothing.
    if trace is not None and (file := Path(trace.tb_frame.f_code.co_filename)).parent != _HERE:
        code = f" (in {file.name}:{trace.tb_lineno})"
    return BadRecord(name, place_of(batch, index), batch.values[index], f"{type(error).__name__}: {error}{code}")


def call_each(name: str, function: Callable[..., Any], batch: Batch, *columns: Iterable[Any]) -> list[Any]:
    """
    Return ``[function(value, ...) for each row]``, at the speed of ``map``.

    An exception becomes a BadRecord that names the row: how far the iterator got tells which, without a counter.
    """
    rows = iter(batch.values)
    try:
        results = list(map(function, rows, *columns))
    except Exception as error:
        raise bad_record(name, batch, len(batch.values) - length_hint(rows) - 1, error) from error
    if len(results) != len(batch.values):  # map takes a StopIteration for its own end and would drop the rest
        raise bad_record(name, batch, len(results), StopIteration("the function raised it; it must return a value"))
    return results
