"""The fluent API: streams, and what can be asked of them.

    Stream            records, maybe with event time
    KeyedStream       records that belong to a key: state, windows and running results are kept for each key
    WindowedStream    a keyed stream cut into windows; says what to compute
    Results           running results, or those of windows: with late records, final results, changes

Results form an *upsert stream*: one replaces the earlier one of the same key and window. A consumer that adds up (a
topic, another aggregate) would count each correction again. So it is refused, when the graph is built, until the
stream says what it means: ``final()``, one result for each window when nothing can change it any more, or
``changes()``, every change as a record that says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import msgspec

from streamactors.core.times import Duration, duration_ms, shown
from streamactors.flow import aggregates as agg
from streamactors.flow import async_transforms, transforms
from streamactors.flow.async_calls import Retry
from streamactors.flow.dead_letters import OnError
from streamactors.flow.event_time import AssignTime, EventTime
from streamactors.flow.running import AsyncMapWithState, MapWithState, RunningAggregate
from streamactors.flow.selectors import Selector, describe, is_async, missing_field
from streamactors.flow.windows import Windows

from .asynchronous import calling_node
from .distinct import add_distinct
from .ends import StreamEnds
from .nodes import Graph, Node, Shape, caller, error_policy, refuse

if TYPE_CHECKING:
    from .windowed import Results, WindowedStream

T = TypeVar("T")
U = TypeVar("U")
S = TypeVar("S")

_REPLACES = (
    "gives results that replace earlier ones; this would take each correction for a new record, and a sum would count "
    "it twice."
)
_REPLACES_REMEDY = (
    "Say .final() first (one result for each window, when nothing can change it any more), or .changes() (every "
    "change, marked as what it is)."
)


class Stream(StreamEnds, Generic[T]):
    """Records of type T. Nothing runs before the pipeline does."""

    def __init__(self, graph: Graph, node: Node, output: str = "out", shape: Shape | None = None) -> None:
        self.graph = graph
        self.node = node
        self.output = output
        self.shape = shape if shape is not None else node.shape

    # What every stream can do. ----------------------------------------------------------------------------------------

    def map(self, function: Callable[[T], U] | Callable[[T], Awaitable[U]], *, name: str | None = None) -> Stream[U]:
        """Replace each value by ``function(value)``; plain or async. Key, window and timestamp stay."""
        stream: Stream[U] = self._transform("map", function, transforms.Map, async_transforms.AsyncMap, name)
        return stream

    def map_async(
        self,
        function: Callable[[T], Awaitable[U]],
        *,
        capacity: int = 100,
        ordered: bool = True,
        timeout: Duration | None = "30s",
        retries: int | Retry = 0,
        name: str | None = None,
    ) -> Stream[U]:
        """
        Replace each value by what awaiting ``function(value)`` gives, for up to *capacity* records at once.

        A checkpoint waits for the calls before it. After a crash, calls that it does not hold are made again.

        Args:
            capacity: Calls in flight. When that many are, nothing more is taken, and in the end the source waits.
            ordered: Results keep the order of the records. False: they go on as they answer, never past a watermark or
                a checkpoint; their order is then a matter of timing.
            timeout: For each try; None: no limit.
            retries: Tries after a failed one, or a ``Retry`` that says how long to wait between them.
            name: The operator's id.

        Cost: about 10 µs a call, and 12 for a task where records come one by one.
        """
        node = calling_node(self, function, capacity, ordered=ordered, timeout=timeout, retries=retries, name=name)
        return cast("Stream[U]", self._stream(node))

    def filter(
        self, function: Callable[[T], object] | Callable[[T], Awaitable[object]], *, name: str | None = None
    ) -> Self:
        """Keep the values for which ``function(value)`` is true; plain or async."""
        stream: Self = self._transform(
            "filter", function, transforms.Filter, async_transforms.AsyncFilter, name, self.shape.type
        )
        return stream

    def flat_map(
        self,
        function: Callable[[T], Iterable[U]] | Callable[[T], Awaitable[Iterable[U]] | AsyncIterable[U]],
        *,
        name: str | None = None,
    ) -> Stream[U]:
        """Replace each value by all that ``function(value)`` gives; each takes key and timestamp of the record."""
        self._require_append("flat_map")
        stream: Stream[U] = self._transform(
            "flat_map", function, transforms.FlatMap, async_transforms.AsyncFlatMap, name
        )
        return stream

    def split(self, *predicates: Callable[[T], object], name: str | None = None) -> tuple[Stream[T], ...]:
        """
        Send each value to the stream of the first predicate that is true for it; the rest to one stream more::

            right, wrong, skipped = answers.split(lambda a: a.points > 0, lambda a: a.points == 0)
        """
        if not predicates:
            raise refuse("split", caller(), "it was given no predicate.", "Give one for each stream but the last.")
        if any(map(is_async, predicates)):
            why = "a predicate is a coroutine function; nobody would await it."
            raise refuse("split", caller(), why, "Await in a map() before it, and split by its result.")
        node = self._add(
            "split",
            name,
            self.shape,
            tolerant=True,
            detail=", ".join(map(describe, predicates)),
            build=partial(transforms.Split, predicates),
        )
        return tuple(self._stream(node, str(output)) for output in range(len(predicates) + 1))

    def union(self, *others: Stream[Any], name: str | None = None) -> Stream[Any]:
        """
        Put the records of several streams into one; it keeps a key that all of them have.

        All have event time, or none. Streams of different sources come in the one order of the region's sequence;
        branches of one stream, within a piece of it, one behind the other.
        """
        streams = [self, *others]
        for stream in streams:
            stream._require_append("union")
        self._refuse_union(streams)
        shapes = [stream.shape for stream in streams]
        keyed = all(shape.keyed_by is not None for shape in shapes)
        windowed = all(shape.windowed for shape in shapes)
        shape = replace(
            self.shape,
            type=self.shape.type if all(shape.type == self.shape.type for shape in shapes) else None,
            keyed_by=self.shape.keyed_by if len({shape.keyed_by for shape in shapes}) == 1 else None,
            windowed=windowed,
            repartitioned=any(shape.repartitioned for shape in shapes),
        )
        node = self.graph.add(
            "union",
            name,
            [(stream.node, stream.output) for stream in streams],
            shape,
            build=partial(transforms.Union, keyed=keyed, windowed=windowed),
        )
        if keyed and shape.keyed_by is None:  # keys that came from several key_by: this is where they meet
            node.shape = replace(shape, keyed_by=node)
        return cast("Stream[Any]", self._stream(node))

    def original(self, *, name: str | None = None) -> Stream[Any]:
        """Replace each value by the record that it came from as it stands in the source: its bytes, all fields."""
        self._require_append("original")
        shape = replace(self.shape, type=bytes)
        return cast("Stream[Any]", self._stream(self._add("original", name, shape, build=transforms.Originals)))

    def through_log(self, topic: str, *, partitions: int = 1, key: Selector = None) -> Self:
        """
        Append what the source gives to *topic*, and read it from there: any source then can replay.

        The guarantee starts at the durable append. What a crash before it does: see the table in docs/sources.md.

        Args:
            topic:
                Made when it is not there; nobody else writes to it.

            partitions:
                Of the topic, fixed for its life.

            key:
                Field or function that gives each record its key: equal keys stay in order, in one partition. None:
                each partition of the source stays in order.
        """
        from .ingest import read_through_log  # late: it is seldom needed, and imports connectors

        self._require_field("through_log", key)
        read_through_log(self.node, self.output, topic, partitions, key)
        return self

    def event_time(
        self,
        selector: Selector,
        *,
        disorder: Duration = 0,
        idle_after: Duration | None = "30s",
        pace_when_idle: bool = True,
    ) -> Stream[T]:
        """
        Say when each record happened: a field or a function that gives int ms since the epoch, UTC.

        Args:
            selector:
                Field name or function of a value.

            disorder:
                A record comes at most this much event time after a later one of its partition; what comes later than
                that may be late. Larger: results wait longer. Smaller: more corrections and late records.

            idle_after:
                A partition that had nothing for so long stops holding back the others. None: never.

            pace_when_idle:
                When all partitions are idle, event time goes on with the clock, so that the last window closes.
        """
        where = caller()
        if self.shape.repartitioned:
            raise refuse(
                "event_time", where, "event time is assigned behind key_by.", "Assign it before the first key_by."
            )
        if self.shape.event_time:
            raise refuse("event_time", where, "this stream has event time already.", "Remove one of the two.")
        self._require_field("event_time", selector)
        if duration_ms(disorder) < 0 or (idle_after is not None and duration_ms(idle_after) < 0):
            raise refuse(
                "event_time",
                where,
                f"disorder={disorder!r}, idle_after={idle_after!r}: a duration is negative.",
                "Give 0 or more.",
            )
        event_time = EventTime(
            selector,
            of=self.shape.type,
            disorder_ms=duration_ms(disorder),
            idle_after_ms=None if idle_after is None else duration_ms(idle_after),
            pace_when_idle=pace_when_idle,
        )
        node = self._add(
            "event_time",
            None,
            replace(self.shape, event_time=True),
            tolerant=True,
            detail=f"{describe(selector)}, disorder {shown(event_time.disorder_ms)}",
            build=partial(AssignTime, event_time),
        )
        node.event_time = event_time
        return Stream(self.graph, node)

    def key_by(self, selector: Selector, *, name: str | None = None) -> KeyedStream[T]:
        """Say which records belong together: by a field, or a function that gives str, int, bytes, a tuple, ...."""
        self._require_append("key_by")
        self._require_field("key_by", selector)
        node = self._add(
            "key_by",
            name,
            replace(self.shape, repartitioned=True),
            tolerant=True,
            detail=describe(selector),
            build=partial(transforms.KeyBy, selector, self.shape.type),
        )
        node.shape = replace(node.shape, keyed_by=node)
        return KeyedStream(self.graph, node)

    def distinct(self, selector: Selector = None, *, ttl: Duration | None = None, name: str | None = None) -> Self:
        """
        Keep the first record of each key and drop those that repeat it.

        Args:
            selector:
                What tells records apart: a field, or a function that gives str, int, bytes, a tuple, .... On a stream
                with keys it does so within each key; None: the key alone, or on a stream without keys the value.

            ttl:
                So long after the record that passed, the next one of its key passes again: in event time if the stream
                has it, before and behind the record (records may come out of order), else in processing time. Make it
                longer than repeats can be apart, and where there are windows a multiple of their slide: the
                watermark's step divides it. None: for ever, and so does what is kept of each key grow for ever.

        What exactly counts as a repeat, late records too: see flow/distinct.py.
        """
        self._require_append("distinct")
        self._require_field("distinct", selector)
        node, shape = add_distinct(self.graph, (self.node, self.output), self.shape, selector, ttl, name)
        kind = Stream if shape.keyed_by is None else KeyedStream
        return cast("Self", kind(self.graph, node, "out", shape))

    def on_error(self, policy: OnError | str) -> Self:
        """
        Say what happens to a record that the operator before this can't handle; behind a source, one it can't decode.

        ``fail`` (the default): the region fails and starts again. ``skip``: the record is left out and counted.
        ``dead_letter``: it is left out and written to the topic ``dead-letters.<job>.<source>``, with the error and
        where it came from; ``streamactors deadletters`` shows it and puts it back in.
        """
        if self.node.on_error is None:
            raise refuse(
                "on_error",
                caller(),
                f"{self.node!r} can't leave out a record.",
                "Let a map or filter before it find what it can't handle, and give that one the policy.",
            )
        self.node.on_error = error_policy(policy)
        return self

    def rows(self, *, name: str | None = None) -> Stream[transforms.Row]:
        """Make each value a ``Row`` of key, value, and window start and end where there is one."""
        self._require_append("rows")
        return self._as_rows("rows", name)

    # How nodes are added. ---------------------------------------------------------------------------------------------

    def _require_append(self, what: str) -> None:
        """Refuse *what* on an upsert stream: it would take each correction for a new record."""
        if self.shape.upsert:
            raise refuse(what, caller(), f"{self.node!r} {_REPLACES}", _REPLACES_REMEDY)

    def _require_field(self, what: str, selector: Selector) -> None:
        """Refuse a field that is known not to be there, and what is no selector, before the first record says so."""
        if selector is not None and not isinstance(selector, str):
            if not callable(selector):
                raise refuse(what, caller(), f"{selector!r} selects nothing.", "Give a field's name or a function.")
            if is_async(selector):
                awaits = f"{describe(selector)} is a coroutine function; nobody would await it."
                raise refuse(what, caller(), awaits, "Await in a map() before it, and select its result.")
        if (why := missing_field(selector, self.shape.type)) is not None:
            raise refuse(what, caller(), why, "Name one of them, or add it to the type.")

    def _refuse_union(self, streams: Sequence[Stream[Any]]) -> None:
        where = caller()
        if len(streams) < 2:
            raise refuse("union", where, "it was given no other stream.", "Name at least one.")
        if any(stream.graph is not self.graph for stream in streams):
            raise refuse("union", where, "a stream of another pipeline was given.", "Build both in one pipeline.")
        if len({(stream.node, stream.output) for stream in streams}) < len(streams):
            raise refuse("union", where, "a stream was named twice.", "Name each once.")
        if len({stream.shape.event_time for stream in streams}) > 1:
            which = ", ".join(repr(stream.node) for stream in streams if not stream.shape.event_time)
            raise refuse(
                "union",
                where,
                f"some of its streams have event time, {which} has none.",
                "Call .event_time(...) on each of them, or once behind the union.",
            )

    def _as_rows(self, kind: str, name: str | None) -> Stream[transforms.Row]:
        shape = replace(self.shape, type=transforms.Row, windowed=False, upsert=False)
        return cast("Stream[transforms.Row]", self._stream(self._add(kind, name, shape, build=transforms.Rows)))

    def _transform(
        self, kind: str, function: Callable[..., Any], plain: Any, awaited: Any, name: str | None, gives: Any = None
    ) -> Any:
        """Add an operator that calls a user's function, plain or async, for each value."""
        if not callable(function):
            raise refuse(kind, caller(), f"{function!r} is no function.", "Give a function of one value.")
        is_awaited = is_async(function)
        node = self._add(
            kind,
            name,
            replace(self.shape, type=gives),
            tolerant=True,
            detail=describe(function),
            build=partial(awaited if is_awaited else plain, function),
        )
        node.awaited = is_awaited
        return self._stream(node)

    def _add(self, kind: str, name: str | None, shape: Shape, **more: Any) -> Node:
        return self.graph.add(kind, name, [(self.node, self.output)], shape, **more)

    def _stream(self, node: Node, output: str = "out") -> Any:
        """Return the stream behind *node*, as what its shape says."""
        from .windowed import Results  # late: results are streams

        if node.shape.upsert:
            return Results(self.graph, node, output)
        kind = KeyedStream if node.shape.keyed_by is not None else Stream
        return kind(self.graph, node, output)


class KeyedStream(Stream[T]):
    """Records with a key. ``map``, ``filter`` and ``flat_map`` keep it."""

    if TYPE_CHECKING:  # at run time Stream's own methods see that there is a key

        def map(
            self, function: Callable[[T], U] | Callable[[T], Awaitable[U]], *, name: str | None = None
        ) -> KeyedStream[U]: ...

        def flat_map(
            self,
            function: Callable[[T], Iterable[U]] | Callable[[T], Awaitable[Iterable[U]] | AsyncIterable[U]],
            *,
            name: str | None = None,
        ) -> KeyedStream[U]: ...

    def window(self, windows: Windows, *, name: str | None = None) -> WindowedStream[T]:
        """Cut each key's records into windows of event time: ``Tumbling("10min")``, ``Sliding("1h", slide="1min")``."""
        self._require_append("window")
        if not self.shape.event_time:
            raise refuse(
                "window",
                caller(),
                "this stream has no event time.",
                "Call .event_time(...) on the source, before key_by.",
            )
        from .windowed import WindowedStream  # late: results are streams

        return WindowedStream(self, windows, name)

    def aggregate(self, *, name: str | None = None, **aggregates: agg.Aggregate) -> Results[Any]:
        """Keep running results for each key, all in one pass; each value is a dict of them."""
        return self._running(agg.several(**aggregates), name)

    def count(self, *, name: str | None = None) -> Results[int]:
        """Keep the number of records of each key."""
        return self._running(agg.count(), name)

    def sum(self, selector: Selector = None, *, name: str | None = None) -> Results[Any]:
        """Keep the sum of a field, or of the values themselves, for each key."""
        return self._running(agg.sum_(selector), name)

    def min(self, selector: Selector = None, *, name: str | None = None) -> Results[Any]:
        """Keep the least of a field, or of the values, for each key."""
        return self._running(agg.min_(selector), name)

    def max(self, selector: Selector = None, *, name: str | None = None) -> Results[Any]:
        """Keep the greatest of a field, or of the values, for each key."""
        return self._running(agg.max_(selector), name)

    def mean(self, selector: Selector = None, *, name: str | None = None) -> Results[float]:
        """Keep the mean of a field, or of the values, for each key."""
        return self._running(agg.mean(selector), name)

    def reduce(self, function: Callable[[T, T], T], *, name: str | None = None) -> Results[T]:
        """Keep ``function(so far, value)`` for each key, beginning with its first value."""
        return self._running(agg.reduce_(function, state_type=struct_or_none(self.shape.type)), name)

    def map_with_state(
        self,
        function: Callable[[T, S | None], tuple[U, S | None]] | Callable[[T, S | None], Awaitable[tuple[U, S | None]]],
        *,
        state_type: Any = None,
        name: str | None = None,
    ) -> KeyedStream[U]:
        """
        Replace each value by the first of ``result, state = function(value, state)``; the state is kept for the key.

        The state is None at first, and None deletes it. It is stored as MessagePack: write a list for a tuple, or give
        *state_type* to get a struct back.
        """
        self._require_append("map_with_state")
        awaited = is_async(function)
        operator: Any = AsyncMapWithState if awaited else MapWithState
        node = self._add(
            "map_with_state",
            name,
            replace(self.shape, type=None),
            tolerant=True,
            detail=describe(function),
            build=partial(operator, function, state_type=state_type),
            stateful=True,
        )
        node.awaited = awaited
        return KeyedStream(self.graph, node)

    def _running(self, aggregate: agg.Aggregate, name: str | None) -> Results[Any]:
        from .windowed import Results  # late: results are streams

        self._require_append("aggregate")
        node = self._add("aggregate", name, replace(self.shape, type=None, upsert=True), tolerant=True, stateful=True)
        node.detail = f"running {aggregate}"
        graph = self.graph
        node.build = lambda: RunningAggregate(aggregate, latest_only=graph.feeds_only_views(node))
        return Results(self.graph, node)


def struct_or_none(kind: Any) -> Any:
    """Return *kind* if values of it need to be told how to come back from state: a struct does, builtins don't."""
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None
