"""What a region has done in this run, over all its attempts: figures that never go back.

An attempt's operators, and with them their counts, go with it. When it ends, its counts are added here; what is seen of
the region is that sum and the counts of the attempt that runs. So records that a restart reads again count again, in
the counts of operators as in those of the region.

Everything here is counted once an epoch or once an attempt, nothing by record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import msgspec

from streamactors.core.histogram import DURATIONS, SIZES, Histogram
from streamactors.durable.store import Delta
from streamactors.durable.views import view_of

if TYPE_CHECKING:
    from streamactors.flow.operator import Operator


class OperatorCounts(msgspec.Struct):
    """What an operator has done in this run, in all its parts."""

    records_in: int = 0
    records_out: int = 0
    late: int = 0


class RunFigures(msgspec.Struct):
    """See the module's header."""

    operators: dict[str, OperatorCounts] = {}
    """By their paths."""

    refused: dict[str, int] = {}
    """Records that error policies left out, by the operator's path; a source's decoder is one as well."""

    checkpoint_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram.of(*DURATIONS))
    """From the barrier's request to the sinks' answers."""

    checkpoint_bytes: Histogram = msgspec.field(default_factory=lambda: Histogram.of(*SIZES))
    view_rows: dict[str, int] = {}
    """By view: rows that checkpoints changed or deleted."""

    hung_calls: int = 0
    """Calls of async functions that the watchdog has named."""

    def note_checkpoint(self, seconds: float, size: int, deltas: Iterable[Delta]) -> None:
        """Count a checkpoint that is durable, and shown."""
        self.checkpoint_seconds.observe(seconds)
        self.checkpoint_bytes.observe(size)
        for delta in deltas:
            view = view_of(delta.database)
            if view is not None:
                self.view_rows[view] = self.view_rows.get(view, 0) + delta.entries()

    def add_attempt(self, before: Iterable[Operator], operators: Iterable[Operator]) -> None:
        """Add the counts of an attempt's operators; those *before* the sequencer count only what they refuse."""
        for operator in before:
            self._refused(operator)
        for operator in operators:
            self._refused(operator)
            counts = self.operators.setdefault(operator.name, OperatorCounts())
            counts.records_in += operator.records_in
            counts.records_out += operator.records_out
            counts.late += operator.late_records - operator.late_before

    def _refused(self, operator: Operator) -> None:
        self.refused[operator.name] = self.refused.get(operator.name, 0) + operator.refused_records

    def with_attempt(self, before: Iterable[Operator], operators: Iterable[Operator]) -> Self:
        """Return what is seen while an attempt with these operators runs."""
        seen = type(self)(
            {name: msgspec.structs.replace(counts) for name, counts in self.operators.items()},
            dict(self.refused),
            self.checkpoint_seconds.copy(),
            self.checkpoint_bytes.copy(),
            dict(self.view_rows),
            self.hung_calls,
        )
        seen.add_attempt(before, operators)
        return seen
