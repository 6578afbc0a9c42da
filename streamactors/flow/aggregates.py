"""Aggregates: what a window, or a running result, keeps for each key, and how a piece of records changes it.

An aggregate holds nothing. It is given accumulators as a column, one for each distinct key of a piece in the order of
first appearance (the order of ``Piece.counts``), and returns the column that replaces it. The operator takes the
column from its state, with ``zero`` where there is none, and puts the result back.

Rules of the file:

  Rule 1. A fold is a left fold in sequence order, with plain ``+``: float sums must not depend on where a batch was
          cut (T2), and ``sum()`` compensates from Python 3.12 on. Only whole numbers are added up out of turn.
  Rule 2. An accumulator is made of builtins that MessagePack keeps, and is replaced, never changed in place. Tuples
          are allowed where our own code is the only reader: it unpacks a list, as it comes back from disk, just the
          same, and the garbage collector stops tracking tuples of numbers.
  Rule 3. An accumulator is never None: None means that a key has no state.
  Rule 4. min and max keep the first of equals.
  Rule 5. Where windows overlap, an accumulator is kept for each pane, and that of a window is *merged* from those of
          its panes in the order of time, grouped as flow/panes.py says: always the same for the same window. So a merge
          must be associative. A float sum is then a left fold inside each pane and a fixed tree of additions above:
          it depends on no cut, but may differ in its last digits from one left fold over the window. Of equals, min
          and max keep the one in the earliest pane.

User functions (``reduce``, ``aggregate``) hold state in the form of flow/user_state.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import add, gt, length_hint, lt
from typing import Any

from streamactors.core.errors import BadRecord, PipelineError

from .kept import schema_of
from .piece import Piece
from .selectors import Selector, column, describe, name_of, require_plain
from .user_state import ATOMS, StateForm, fit_64_bits

Accs = Sequence[Any]
"""Accumulators, one for each distinct key of a piece, in the order of ``Piece.counts``."""


class Aggregate(ABC):
    """What is kept for a key. See the module's header for the rules."""

    zero: Any = None
    """Accumulator of a key without records; None when the first record makes it."""

    shape: str
    """What it computes, in words that a plan shows and that a stored checkpoint is compared with."""

    unmergeable: str = ""
    """The shape of what can't be merged; empty where all can."""

    @property
    def kept(self) -> Any:
        """The schema of an accumulator: see flow/kept.py."""
        return self.shape

    def held(self, value: Any) -> Any:
        """Return the accumulator that *value*, as ``kept.seen`` shows one, is in state. Raises TypeError."""
        if value is not None:
            return value
        raise TypeError(f"{self.shape} keeps something for each key: return 0, '' or []")

    def filled(self, held: list[Any]) -> list[Any]:
        """Return *held* with ``zero`` where a key has no accumulator."""
        zero = self.zero
        return [zero if acc is None else acc for acc in held] if zero is not None and None in held else held

    @abstractmethod
    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Return the accumulators that *accs* become with all rows of *piece*."""

    @abstractmethod
    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Return, for each pair, the accumulator of the records of both; those of *older* are in earlier panes."""

    @abstractmethod
    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Return, for each row, what the accumulator of its key is after it."""

    def results(self, accs: list[Any], name: str) -> list[Any]:
        """Return what the user sees of each accumulator."""
        del name
        return accs

    def __str__(self) -> str:
        return self.shape


class Count(Aggregate):
    """How many records."""

    zero = 0
    shape = "count()"

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Add each key's number of rows."""
        return list(map(add, accs, piece.counts.values()))

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Count row by row."""
        acc_of, steps = piece.overlay(accs), []
        for key in piece.keys:
            acc_of[key] = acc = acc_of[key] + 1
            steps.append(acc)
        return steps

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Add."""
        del name
        return list(map(add, older, newer))


class Sum(Aggregate):
    """The sum of a column of numbers: a left fold (Rule 1)."""

    zero = 0

    def __init__(self, selector: Selector = None) -> None:
        self._selector, self._take = selector, column(selector)
        self.shape = f"sum({describe(selector)})"

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Add row after row."""
        acc_of, rest = piece.overlay(accs), iter(piece.column(self._selector, self._take))
        try:
            for key, value in zip(piece.keys, rest, strict=False):
                acc_of[key] += value
        except Exception as error:
            raise piece.bad(rest, error) from error
        return self._checked(list(acc_of.values()), piece)

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Add row after row, and keep each step."""
        acc_of, rest, steps = piece.overlay(accs), iter(piece.column(self._selector, self._take)), []
        try:
            for key, value in zip(piece.keys, rest, strict=False):
                acc_of[key] = acc = acc_of[key] + value
                steps.append(acc)
        except Exception as error:
            raise piece.bad(rest, error) from error
        return self._checked(steps, piece)

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Add."""
        return self._fitting(list(map(add, older, newer)), name)

    def _checked(self, sums: list[Any], piece: Piece) -> list[Any]:
        """A sum that can't be stored is the fault of a record: name it now, not at the next checkpoint."""
        if {int, float}.issuperset(map(type, sums)):
            return self._fitting(sums, piece.name)
        rest = iter(piece.column(self._selector, self._take))
        value = next(value for value in rest if type(value) not in (int, float, bool))
        reason = f"{self.shape} needs int or float, got {type(value).__name__}; convert it in the selector"
        raise piece.bad(rest, TypeError(reason))

    def _fitting(self, sums: list[Any], name: str) -> list[Any]:
        whole = [acc for acc in sums if type(acc) is int]
        if whole and not fit_64_bits(whole):
            raise PipelineError(
                f"operator {name}: {self.shape} has passed 64 bits ({max(whole, key=abs)}), which can't be stored. "
                "Sum floats, or smaller units."
            )
        return sums


class Mean(Aggregate):
    """The arithmetic mean of a column: (sum, count)."""

    zero = (0, 0)

    def __init__(self, selector: Selector = None) -> None:
        self._sum, self._count = Sum(selector), Count()
        self.shape = f"mean({describe(selector)})"

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Sum, and count."""
        totals, numbers = zip(*accs, strict=True)
        return list(zip(self._sum.fold(totals, piece), self._count.fold(numbers, piece), strict=True))

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Sum and count row by row."""
        totals, numbers = zip(*accs, strict=True)
        return list(zip(self._sum.fold_each(totals, piece), self._count.fold_each(numbers, piece), strict=True))

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Add sums and numbers."""
        pairs = zip(zip(*older, strict=True), zip(*newer, strict=True), strict=True)
        parts = (self._sum, self._count)
        return list(zip(*(part.merge(*own, name) for part, own in zip(parts, pairs, strict=True)), strict=True))

    def results(self, accs: list[Any], name: str) -> list[Any]:
        """Divide."""
        del name
        return [total / number for total, number in accs]


class Extreme(Aggregate):
    """The least or the greatest value of a column; the first of equals."""

    def __init__(self, selector: Selector, name: str, better: Callable[[Any, Any], bool]) -> None:
        self._selector, self._take = selector, column(selector)
        self._better, self._form = better, StateForm()
        self.shape = f"{name}({describe(selector)})"

    def held(self, value: Any) -> Any:
        return self._form.pack_seen(super().held(value))

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Compare row after row."""
        values, acc_of = piece.column(self._selector, self._take), piece.overlay(accs)
        if not ATOMS.issuperset(map(type, values)):
            self._fold_any(acc_of, piece)
            return list(acc_of.values())
        better, rest = self._better, iter(values)
        try:
            for key, value in zip(piece.keys, rest, strict=False):
                acc = acc_of[key]
                if acc is None or better(value, acc):
                    acc_of[key] = value
        except Exception as error:
            raise piece.bad(rest, error) from error
        return list(acc_of.values())

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Compare row after row, and keep each step."""
        return self._fold_any(piece.overlay(accs), piece)

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Compare."""
        better, unpack = self._better, self._form.unpack

        def best(old: Any, new: Any) -> Any:
            return new if better(unpack(new), unpack(old)) else old

        return _merged(self, best, older, newer, name)

    def results(self, accs: list[Any], name: str) -> list[Any]:
        """Return the values."""
        del name
        return accs if ATOMS.issuperset(map(type, accs)) else list(map(self._form.unpack, accs))

    def _fold_any(self, acc_of: dict[Any, Any], piece: Piece) -> list[Any]:
        better, pack, unpack, steps = self._better, self._form.pack, self._form.unpack, []
        rest = iter(piece.column(self._selector, self._take))
        try:
            for key, value in zip(piece.keys, rest, strict=False):
                acc, new = acc_of[key], pack(value)
                if new is None:
                    raise TypeError(f"{self.shape} can't compare None; filter such records out before")
                if acc is None or better(unpack(new), unpack(acc)):
                    acc_of[key] = acc = new
                steps.append(acc)
        except Exception as error:
            raise piece.bad(rest, error) from error
        return steps


class Custom(Aggregate):
    """A user's own fold: ``add(acc, value)`` from *initial*, and ``result(acc)`` of it."""

    def __init__(
        self,
        initial: Any,
        add: Callable[[Any, Any], Any],
        result: Callable[[Any], Any] | None = None,
        state_type: Any = None,
        merge: Callable[[Any, Any], Any] | None = None,
        shape: str = "",
    ) -> None:
        for role, function in (("add", add), ("result", result), ("merge", merge)):
            if function is not None:
                require_plain(f"the {role} function of aggregate()", function)
        self._form, self._add, self._result, self._merge = StateForm(state_type), add, result, merge
        self.shape = shape or f"aggregate({name_of(add)})"
        self.unmergeable = self.shape if merge is None else ""
        try:
            self.zero = self._form.pack(initial)
        except Exception as error:
            raise PipelineError(f"{self.shape}: initial={initial!r} can't be kept: {error}.") from error

    @property
    def kept(self) -> Any:
        return {"fold": self.shape, "state": schema_of(self._form.state_type)}

    def held(self, value: Any) -> Any:
        return self._form.pack_seen(super().held(value))

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Call the function for row after row."""
        acc_of = piece.overlay(accs)
        self._fold(acc_of, piece)
        return list(acc_of.values())

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Call the function for row after row, and keep each step."""
        return self._fold(piece.overlay(accs), piece)

    def _fold(self, acc_of: dict[Any, Any], piece: Piece) -> list[Any]:
        rest, steps = iter(piece.batch.values), []
        try:
            for key, value in zip(piece.keys, rest, strict=False):
                acc_of[key] = acc = self._step(acc_of[key], value)
                steps.append(acc)
        except Exception as error:
            raise piece.bad(rest, error) from error
        return steps

    def _step(self, held: Any, value: Any) -> Any:
        new = self._form.pack(self._add(self._form.unpack(held), value))
        if new is None:
            raise TypeError(f"{self.shape} returned None, which means that there is no state. Return 0, '' or []")
        return new

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Call the merge function."""
        function, pack, unpack = self._merge, self._form.pack, self._form.unpack
        assert function is not None, f"{name}: {self.unmergeable} should have been refused"

        def both(old: Any, new: Any) -> Any:
            merged = pack(function(unpack(old), unpack(new)))
            if merged is None:
                raise TypeError("it returned None, which means that there is no state. Return 0, '' or []")
            return merged

        return _merged(self, both, older, newer, name)

    def results(self, accs: list[Any], name: str) -> list[Any]:
        """Return ``result(acc)`` of each."""
        seen = list(map(self._form.unpack, accs))
        if self._result is None:
            return seen
        rest = iter(seen)
        try:
            return list(map(self._result, rest))
        except Exception as error:
            acc = self._form.unpack(accs[len(accs) - length_hint(rest) - 1])
            reason = f"the result function of {self.shape} raised {type(error).__name__}: {error}"
            raise BadRecord(name, None, acc, reason) from error


class Reduce(Custom):
    """A user's ``function(acc, value)`` where the first value of a key is its first accumulator."""

    def __init__(self, function: Callable[[Any, Any], Any], state_type: Any = None) -> None:
        require_plain("the function of reduce()", function)
        super().__init__(None, function, None, state_type, merge=function, shape=f"reduce({name_of(function)})")

    def _step(self, held: Any, value: Any) -> Any:
        if held is not None:
            return super()._step(held, value)
        if value is None:
            raise TypeError(f"{self.shape} can't start with None; filter such records out before")
        return self._form.pack(value)


class Several(Aggregate):
    """Several aggregates in one pass; the result is a dict of theirs."""

    def __init__(self, **parts: Aggregate) -> None:
        if not parts:
            raise PipelineError("aggregate() needs at least one result: aggregate(n=count(), top=max('score')).")
        for name, part in parts.items():
            if not isinstance(part, Aggregate):
                raise PipelineError(f"aggregate({name}=...) must be an aggregate such as count(), got {part!r}.")
        self._names, self._parts = tuple(parts), tuple(parts.values())
        self.zero = tuple(part.zero for part in self._parts)
        self.unmergeable = ", ".join(part.unmergeable for part in self._parts if part.unmergeable)
        self.shape = f"aggregate({', '.join(f'{name}={part.shape}' for name, part in parts.items())})"

    @property
    def kept(self) -> Any:
        return {"parts": {name: part.kept for name, part in zip(self._names, self._parts, strict=True)}}

    def held(self, value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != set(self._names):
            raise TypeError(f"{self.shape} keeps a dict of {', '.join(self._names)}, got {value!r:.60}")
        return tuple(part.held(value[name]) for name, part in zip(self._names, self._parts, strict=True))

    def fold(self, accs: Accs, piece: Piece) -> list[Any]:
        """Let each part fold its own column of the accumulators."""
        parts = zip(self._parts, zip(*accs, strict=True), strict=True)
        return list(zip(*(part.fold(own, piece) for part, own in parts), strict=True))

    def fold_each(self, accs: Accs, piece: Piece) -> list[Any]:
        """Let each part fold its own column, row by row."""
        parts = zip(self._parts, zip(*accs, strict=True), strict=True)
        return list(zip(*(part.fold_each(own, piece) for part, own in parts), strict=True))

    def merge(self, older: Accs, newer: Accs, name: str) -> list[Any]:
        """Let each part merge its own columns."""
        parts = zip(self._parts, zip(*older, strict=True), zip(*newer, strict=True), strict=True)
        return list(zip(*(part.merge(old, new, name) for part, old, new in parts), strict=True))

    def results(self, accs: list[Any], name: str) -> list[Any]:
        """Return a dict for each."""
        if not accs:
            return []
        parts = zip(self._parts, zip(*accs, strict=True), strict=True)
        columns = [part.results(list(own), name) for part, own in parts]
        # A dict of pairs, made in C: a third of the time of dict(zip(names, row)) for each row.
        pairs = [zip(repeat(name), own) for name, own in zip(self._names, columns, strict=True)]
        return list(map(dict, zip(*pairs, strict=True)))


def _merged(
    aggregate: Aggregate, function: Callable[[Any, Any], Any], older: Accs, newer: Accs, name: str
) -> list[Any]:
    """Return ``function(old, new)`` of each pair; an error names the accumulators, for there is no one record."""
    rest = iter(newer)
    try:
        return list(map(function, older, rest))
    except Exception as error:
        place = len(newer) - length_hint(rest) - 1
        reason = f"merging two panes of {aggregate.shape} raised {type(error).__name__}: {error}"
        raise BadRecord(name, None, (older[place], newer[place]), reason) from error


def count() -> Count:
    """Count records."""
    return Count()


def sum_(selector: Selector = None) -> Sum:
    """
    Add up a field, what a function returns, or the values themselves.

    Floats are added in sequence order; where windows overlap, pane by pane (flow/panes.py). Either way the sum depends
    on the records alone, not on how they came in batches.
    """
    return Sum(selector)


def mean(selector: Selector = None) -> Mean:
    """Return the arithmetic mean of a field, of what a function returns, or of the values themselves."""
    return Mean(selector)


def min_(selector: Selector = None) -> Extreme:
    """Keep the least; of equals the first."""
    return Extreme(selector, "min", lt)


def max_(selector: Selector = None) -> Extreme:
    """Keep the greatest; of equals the first."""
    return Extreme(selector, "max", gt)


def reduce_(function: Callable[[Any, Any], Any], *, state_type: Any = None) -> Reduce:
    """
    Combine the values of a key: ``function(so_far, value)``, the first value being the first ``so_far``.

    Args:
        function:
            Plain and deterministic. What it is given as ``so_far`` has been through MessagePack (flow/user_state.py).
            Where windows overlap, both arguments may be such results, those of an earlier and of a later stretch of
            time: it must be associative, and for records that come out of order commutative too.

        state_type:
            Needed when the values are objects: the struct or dataclass to decode ``so_far`` into.
    """
    return Reduce(function, state_type)


def aggregate(
    initial: Any,
    add: Callable[[Any, Any], Any],
    result: Callable[[Any], Any] | None = None,
    *,
    merge: Callable[[Any, Any], Any] | None = None,
    state_type: Any = None,
) -> Custom:
    """
    Fold with functions of your own: ``add(acc, value)`` from *initial*, then ``result(acc)`` when it is shown.

    Args:
        initial:
            The accumulator before the first record; each key gets a copy of its own. None is allowed here, and is
            what ``add`` then sees first; ``add`` itself never returns None.

        add, result:
            Plain and deterministic. The accumulator goes through MessagePack for each record (flow/user_state.py):
            keep it small.

        merge:
            ``merge(older, newer)`` gives the accumulator of the records of two stretches of time. Needed where windows
            overlap. Associative: how stretches are grouped is not promised.

        state_type:
            The struct or dataclass of the accumulator, if it is one.
    """
    return Custom(initial, add, result, state_type, merge)


def several(**parts: Aggregate) -> Several:
    """Compute several aggregates in one pass: ``several(n=count(), mean_score=mean("score"))``."""
    return Several(**parts)
