"""Nodes: a pipeline as plain data. What the fluent API writes down, and the plan reads.

A node knows what it is, what it reads, where in the user's code it was written, and how to build its operator. Nothing
here runs: no event loop, no file, no thread is touched before a job starts.
"""

from __future__ import annotations

import itertools
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from streamactors.core.connectors import Sink, Source
from streamactors.core.errors import PipelineError
from streamactors.flow.dead_letters import OnError
from streamactors.flow.event_time import EventTime
from streamactors.flow.operator import Operator

_PACKAGE = str(Path(__file__).parents[1])
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_.")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a stream's records when the graph is built."""

    type: Any = None
    """The type of a value, where it is known."""

    keyed_by: Node | None = None
    """The key_by that gave the records their keys."""

    event_time: bool = False
    windowed: bool = False
    """Each row belongs to a window, too."""

    upsert: bool = False
    """A row replaces the earlier row of the same key and window."""

    repartitioned: bool = False
    """Behind the first key_by: too late for event time."""


@dataclass(eq=False)
class Node:
    """One operator, source or sink of the graph."""

    id: str
    kind: str
    inputs: list[tuple[Node, str]]
    """(node, output of that node): "out", "late", "final", "dead", or the number of a split's output."""

    shape: Shape
    where: str
    """``file.py:line`` of the call that made it."""

    detail: str = ""
    """What describe() says about it."""

    build: Callable[[], Operator] | None = None
    stateful: bool = False
    """Keeps state by key: runs where its keys live."""

    on_error: OnError | None = None
    """What happens to a record that it can't handle; None where that can't be chosen."""

    awaited: bool = False
    """Holds an async function: runs at the head of a stage."""

    source: Source | None = None
    sink: Sink | None = None
    view: str | None = None
    event_time: EventTime | None = None
    grid_ms: tuple[int, ...] = ()
    """Times that its results depend on: the step of the watermark divides them."""

    clock_ms: int | None = None
    """Period of processing time that it waits for."""

    clock_waits_ms: int = 0
    """How long after the last record it waits for marks, where that is longer than a period."""

    holds_ms: Callable[[str], int] = field(default=lambda output: 0)
    """How far behind the watermark the timestamps on an output may be."""

    consumed: set[str] = field(default_factory=set)
    """Outputs that somebody reads."""

    def __repr__(self) -> str:
        return f"{self.id} ({self.where})"


class Graph:
    """The nodes of a pipeline in the order in which they were written, which is one in which inputs come first."""

    def __init__(self, on_error: OnError = OnError.FAIL) -> None:
        self.nodes: list[Node] = []
        self._on_error = on_error  # of operators that don't say otherwise

    def add(
        self,
        kind: str,
        name: str | None,
        inputs: Sequence[tuple[Node, str]],
        shape: Shape,
        *,
        tolerant: bool = False,
        **more: Any,
    ) -> Node:
        """Add a node that reads *inputs*, as *name* or one made from its kind. A *tolerant* one can leave out rows."""
        node = Node(self._id(kind, name), kind, list(inputs), shape, caller(), **more)
        node.on_error = self._on_error if tolerant else None
        for source, output in inputs:
            source.consumed.add(output)
        self.nodes.append(node)
        return node

    def add_view(self, name: str, node: Node, output: str, shape: Shape) -> None:
        """Add a view that is written from an output of *node*."""
        check_name("view", name)
        if any(other.view == name for other in self.nodes):
            raise refuse(f"view {name}", caller(), "another stream writes it.", "Give one of them another name.")
        if shape.keyed_by is None:
            raise refuse(f"view {name}", caller(), "this stream has no key.", "Call key_by, or give to_view a key=...")
        detail = "by [key, window start]" if shape.windowed else "by key"
        self.add("view", f"view.{name}", [(node, output)], shape, detail=detail, view=name)

    def add_sink(self, sink: Sink, node: Node, output: str, shape: Shape) -> Node:
        """Add a sink that is written from an output of *node*."""
        if any(other.sink is not None and other.sink.id == sink.id for other in self.nodes):
            raise refuse(f"sink {sink.id}", caller(), "another stream writes it.", "Write each target from one stream.")
        return self.add("sink", sink.id, [(node, output)], shape, tolerant=True, detail=str(sink), sink=sink)

    def feeds_only_views(self, node: Node) -> bool:
        """Whether only the newest result of a key within a batch is ever looked at."""
        return all(other.view is not None for other in self.nodes if any(source is node for source, _ in other.inputs))

    def _id(self, kind: str, name: str | None) -> str:
        taken = {node.id: node for node in self.nodes}
        if name is None:
            numbered = (kind if count == 1 else f"{kind}-{count}" for count in itertools.count(1))
            return next(candidate for candidate in numbered if candidate not in taken)
        check_name(kind, name)
        if name in taken:
            why = f"{taken[name]!r} has this id already, and state is found again by id."
            raise refuse(f"{kind} {name}", caller(), why, "Give another name.")
        return name


def check_name(what: str, name: str) -> None:
    """Refuse a name that can't be a folder, a database and a path in a log line."""
    if not name or len(name) > 200 or not set(name) <= _NAME_CHARACTERS or name.startswith("."):
        raise PipelineError(
            f"{name!r} can't be the name of a {what}: use 1 to 200 letters, digits, '-', '_' and '.', not beginning "
            "with '.'."
        )


def error_policy(policy: OnError | str) -> OnError:
    """Return *policy*, or refuse it."""
    try:
        return OnError(policy)
    except ValueError:
        known = ", ".join(repr(known.value) for known in OnError)
        raise refuse("on_error", caller(), f"{policy!r} is no error policy.", f"Give one of {known}.") from None


def caller() -> str:
    """Return ``file.py:line`` of the innermost frame outside this package."""
    frame = _frame_outside()
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def caller_file() -> str | None:
    """Return the path of the file that has the innermost frame outside this package; None for what is no file."""
    path = Path(_frame_outside().f_code.co_filename)
    return str(path.resolve()) if path.is_file() else None


def _frame_outside() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame


def refuse(what: str, where: str, why: str, remedy: str) -> PipelineError:
    """Return the error of a graph that can't mean what it says."""
    return PipelineError(f"{what} at {where}: {why} {remedy}")
