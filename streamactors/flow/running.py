"""Keyed operators without windows: running aggregates, and a user function with a state for each key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from streamactors.core.batch import Batch, Kind
from streamactors.core.errors import BadRecord, PipelineError, text_of

from .aggregates import Aggregate
from .async_calls import AsyncOperator
from .kept import schema_of
from .operator import RAISED, Operator, OperatorContext, bad_record
from .piece import Piece
from .selectors import is_async, name_of, require_plain
from .user_state import ATOMS, StateForm, fit_64_bits

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState


class RunningAggregate(Operator):
    """
    Aggregate all records of a key; each record's result replaces the one before: an upsert stream.

    With ``latest_only`` a batch gives one result for each of its keys, the last one. A view can't tell the difference:
    it is read between epochs, and keeps the last result of a key. Every other consumer sees each result, or (T2) would
    break: how many there are would depend on the cuts.
    """

    def __init__(self, aggregate: Aggregate, *, latest_only: bool = False) -> None:
        super().__init__()
        self.aggregate = aggregate
        self.latest_only = latest_only
        self._state: KeyedState

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "running", "value": self.aggregate.kept}

    def held(self, value: Any) -> Any:
        return self.aggregate.held(value)

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("running")

    def on_batch(self, batch: Batch) -> None:
        """Emit the result after each record, or after the batch's last record of each key."""
        assert batch.keys is not None, "a running aggregate needs keys"
        if not batch.values:
            return
        piece = Piece(self.name, batch.keys, batch)
        keys = list(piece.counts)
        accs = self.aggregate.filled(self._state.get_many(None, keys))
        if self.latest_only:
            results, shown = self.aggregate.fold(accs, piece), _last_of_each_key(batch)
            self._state.put_many(None, dict(zip(keys, results, strict=True)))
        else:
            results, shown = self.aggregate.fold_each(accs, piece), batch
            self._state.put_many(None, dict(zip(batch.keys, results, strict=True)))
        values = self.aggregate.results(results, self.name)
        self.emit(shown.replace(values=values, windows=None, kinds=[Kind.UPDATE] * len(values)))


def _last_of_each_key(batch: Batch) -> Batch:
    assert batch.keys is not None
    # A dict keeps the place of a key's first row and the number of its last: the order of Piece.counts.
    return batch.take(list(dict(zip(batch.keys, range(len(batch)), strict=True)).values()))


class MapWithState(Operator):
    """
    Call ``function(value, state)``, which returns ``(result, new_state)``: one result for each record, in order.

    State is None for a key at first, and returning None deletes it. Its form is that of flow/user_state.py.
    """

    def __init__(self, function: Callable[[Any, Any], tuple[Any, Any]], *, state_type: Any = None) -> None:
        super().__init__()
        require_plain("the function of map_with_state()", function, remedy="Use AsyncMapWithState.")
        self.function = function
        self._form = StateForm(state_type)
        self._state: KeyedState

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "map_with_state", "value": schema_of(self._form.state_type)}

    def held(self, value: Any) -> Any:
        return self._form.pack_seen(value)

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("map_with_state")

    def on_batch(self, batch: Batch) -> None:
        """Emit the result of each record."""
        if not batch.values:
            return
        states = _fetch(self._state, batch)
        function, pack, decode, results = self.function, self._form.pack, self._form.decode, []
        atoms = ATOMS if self._form.state_type is None else frozenset[type]()
        rest = iter(batch.values)
        try:
            for key, value in zip(batch.keys, rest, strict=False):  # type: ignore[arg-type]  # _fetch asserted keys
                state = states[key]
                if type(state) is bytes:
                    state = decode(state)
                result, state = function(value, state)
                # pack() for all but the common case, which saves its call; whole numbers are checked in _store.
                states[key] = state if type(state) in atoms else pack(state)
                results.append(result)
        except RAISED as error:
            raise _explained(self, batch, len(results), error) from error
        _store(self._state, states, self.name)
        self.emit(batch.replace(values=results, windows=None, kinds=None))


class AsyncMapWithState(AsyncOperator):
    """As MapWithState, with a coroutine function that is awaited for one record after another."""

    def __init__(self, function: Callable[[Any, Any], Awaitable[tuple[Any, Any]]], *, state_type: Any = None) -> None:
        super().__init__()
        if not is_async(function):
            raise PipelineError(f"{name_of(function)} is not a coroutine function. Use MapWithState.")
        self.function = function
        self._form = StateForm(state_type)
        self._state: KeyedState
        self._states: dict[Any, Any] = {}  # of the batch that is under way

    @property
    def kept(self) -> dict[str, Any]:
        return {"kind": "map_with_state", "value": schema_of(self._form.state_type)}

    def held(self, value: Any) -> Any:
        return self._form.pack_seen(value)

    def open(self, context: OperatorContext) -> None:
        """Take state, restored to the last checkpoint."""
        super().open(context)
        self._state = context.keyed_state("map_with_state")

    async def call(self, batch: Batch, row: int) -> Any:
        """Return the result of a record, and keep the state for the next one."""
        if row == 0:
            self._states = _fetch(self._state, batch)
        assert batch.keys is not None, "a function with state needs keys"
        key = batch.keys[row]
        result, state = await self.function(batch.values[row], self._form.unpack(self._states[key]))
        packed = self._form.pack(state)
        _store(self._state, {key: packed}, self.name)
        self._states[key] = packed
        return result

    def made(self, batch: Batch, results: list[Any]) -> Batch:
        """Return the results under the old keys."""
        return batch.replace(values=results, windows=None, kinds=None)

    def explained(self, batch: Batch, row: int, error: BaseException) -> BadRecord:
        """Say what should have been returned, if that is what is wrong."""
        return _explained(self, batch, row, error)


def _fetch(state: KeyedState, batch: Batch) -> dict[Any, Any]:
    """Return the held states of the batch's keys; misses are fetched together."""
    assert batch.keys is not None, "a function with state needs keys"
    distinct = list(dict.fromkeys(batch.keys))
    return dict(zip(distinct, state.get_many(None, distinct), strict=True))


def _store(state: KeyedState, states: dict[Any, Any], name: str) -> None:
    """Put the states back; None means delete."""
    whole = [held for held in states.values() if type(held) is int]
    if whole and not fit_64_bits(whole):
        worst = max(whole, key=abs)
        raise PipelineError(f"operator {name}: the state {worst} does not fit into 64 bits and can't be stored.")
    state.put_many(None, states)


def _explained(operator: Operator, batch: Batch, row: int, error: BaseException) -> BadRecord:
    """Return the BadRecord for *error*; one of unpacking says what should have been returned."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and trace.tb_frame.f_code.co_filename == __file__  # not raised by the function
    if ours and "unpack" in text_of(error):
        error = TypeError(f"the function must return (result, new state), and {error}")
    return bad_record(operator.name, batch, row, error)
