"""The fluent API behind ``window``: what to compute for each window, and what its results may be used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from streamactors.core.times import Duration, duration_ms, shown
from streamactors.flow import aggregates as agg
from streamactors.flow import transforms
from streamactors.flow.selectors import Selector
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Windows

from .nodes import caller, refuse
from .streams import KeyedStream, Stream, struct_or_none

T = TypeVar("T")


class WindowedStream(Generic[T]):
    """A keyed stream cut into windows: say how late and how early, then what to compute."""

    def __init__(self, stream: KeyedStream[T], windows: Windows, name: str | None) -> None:
        self._stream = stream
        self._windows = windows
        self._name = name
        self._lateness = 0
        self._early: int | None = None
        self._only_final = False

    def allowed_lateness(self, lateness: Duration) -> WindowedStream[T]:
        """Keep a window's state for so long after it fired; a record that comes meanwhile corrects its result."""
        self._lateness = duration_ms(lateness)
        return self

    def early(self, *, every: Duration) -> WindowedStream[T]:
        """Emit what open windows hold, each *every* of processing time, for keys that changed."""
        self._early = duration_ms(every)
        if self._early <= 0:
            raise refuse("early", caller(), f"every={every!r} is no period.", "Give a positive duration, such as '1s'.")
        return self

    def final(self) -> WindowedStream[T]:
        """Emit each result once, when nothing can change it any more."""
        self._only_final = True
        return self

    def aggregate(self, **aggregates: agg.Aggregate) -> Results[Any]:
        """Compute several aggregates for each key and window in one pass; each value is a dict of them."""
        return self._compute(agg.several(**aggregates))

    def count(self) -> Results[int]:
        """Count the records of each key and window."""
        return self._compute(agg.count())

    def sum(self, selector: Selector = None) -> Results[Any]:
        """Add up a field, or the values themselves, for each key and window."""
        return self._compute(agg.sum_(selector))

    def min(self, selector: Selector = None) -> Results[Any]:
        """Find the least of a field, or of the values, for each key and window."""
        return self._compute(agg.min_(selector))

    def max(self, selector: Selector = None) -> Results[Any]:
        """Find the greatest of a field, or of the values, for each key and window."""
        return self._compute(agg.max_(selector))

    def mean(self, selector: Selector = None) -> Results[float]:
        """Compute the mean of a field, or of the values, for each key and window."""
        return self._compute(agg.mean(selector))

    def reduce(self, function: Callable[[T, T], T]) -> Results[T]:
        """
        Combine the values of each key and window: ``function(so far, value)``, beginning with the first.

        Where windows overlap, ``value`` may be the result of a later stretch of time: the function must be associative.
        """
        return self._compute(agg.reduce_(function, state_type=struct_or_none(self._stream.shape.type)))

    def _compute(self, aggregate: agg.Aggregate) -> Results[Any]:
        if self._windows.panes > 1 and aggregate.unmergeable:
            raise refuse(
                "window",
                caller(),
                f"{self._windows} puts windows together from panes, and {aggregate.unmergeable} can't be merged.",
                "Give aggregate(..., merge=function), which makes one accumulator of two.",
            )
        stream, early, lateness = self._stream, None if self._only_final else self._early, self._lateness
        build = partial(WindowOperator, self._windows, aggregate, lateness=lateness, early_every=early)
        detail = f"{self._windows}, {aggregate}, lateness {shown(lateness)}"
        if early is not None:
            detail += f", early every {shown(early)}"
        node = stream.graph.add(
            "window",
            self._name,
            [(stream.node, stream.output)],
            replace(stream.shape, type=None, windowed=True, upsert=True),
            detail=detail,
            tolerant=True,
            stateful=True,
            clock_ms=early,
            grid_ms=(*self._windows.grid, lateness),
        )
        node.holds_ms = lambda output: lateness if output == "final" else 0
        node.build = lambda: build(outputs=frozenset(node.consumed))
        results: Results[Any] = Results(stream.graph, node)
        # With nothing early before it and no lateness behind it, the first firing is the last.
        return results.final() if early is None and (self._only_final or lateness == 0) else results


class Results(KeyedStream[T]):
    """Results of windows, or running ones: for views, or behind ``final()`` or ``changes()`` for everything."""

    @property
    def late(self) -> Stream[Any]:
        """The records that came when their window was gone, as they reached it; ``original()`` gives them whole."""
        self._require_window("late")
        return KeyedStream(self.graph, self.node, "late", self.node.inputs[0][0].shape)

    def final(self) -> Results[T]:
        """Only the final result of each window, once, when its state goes: an append-only stream."""
        self._require_window("final")
        return Results(self.graph, self.node, "final", replace(self.shape, upsert=False))

    def changes(self, *, name: str | None = None) -> Stream[transforms.Row]:
        """Every result as a ``Row`` that says what it is (early, on_time, correction, ...): an append-only stream."""
        return self._as_rows("changes", name)

    def _require_window(self, what: str) -> None:
        if self.node.kind != "window":
            raise refuse(
                what, caller(), f"{self.node.id} has no windows of its own.", "Call it on the result of a window."
            )
