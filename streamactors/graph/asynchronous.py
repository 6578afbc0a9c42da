"""map_async as a node: what is refused when the graph is built, and the operator that is built when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streamactors.core.errors import UsageError
from streamactors.core.times import Duration, duration_ms, shown
from streamactors.flow.async_calls import Retry
from streamactors.flow.async_transforms import AsyncMap, awaiting
from streamactors.flow.selectors import describe

from .nodes import Node, caller, refuse

if TYPE_CHECKING:
    from .streams import Stream


def calling_node(
    stream: Stream[Any],
    function: Callable[[Any], Any],
    capacity: int,
    *,
    ordered: bool,
    timeout: Duration | None,
    retries: int | Retry,
    name: str | None,
) -> Node:
    """Add the node of ``stream.map_async(...)``, or refuse it."""
    where = caller()
    if not callable(function):
        raise refuse("map_async", where, f"{function!r} is no function.", "Give it an async function of one value.")
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise refuse("map_async", where, f"capacity={capacity!r} calls at once is none.", "Give a whole number from 1.")
    if stream.shape.upsert and not ordered:
        raise refuse(
            "map_async",
            where,
            f"behind {stream.node!r} a result replaces an earlier one; as they answer, an old one could come last.",
            "Leave out ordered=False, or say .final() first.",
        )
    try:
        timeout_ms = None if timeout is None else duration_ms(timeout)
        retry = retries if isinstance(retries, Retry) else Retry(retries)
    except (TypeError, ValueError, UsageError) as error:
        raise refuse("map_async", where, f"timeout={timeout!r}, retries={retries!r}: {error}", "") from error
    if timeout_ms is not None and timeout_ms < 1:
        raise refuse(
            "map_async", where, f"timeout={timeout!r} lets nothing answer.", "Give more, or None for no limit."
        )
    limit = "" if timeout_ms is None else f", {shown(timeout_ms)} each"
    node = stream.graph.add(
        "map_async",
        name,
        [(stream.node, stream.output)],
        replace(stream.shape, type=None),
        tolerant=True,
        detail=f"{describe(function)}, {capacity} at once{limit}{'' if ordered else ', as they answer'}",
        build=partial(
            AsyncMap, awaiting(function), capacity=capacity, ordered=ordered, timeout_ms=timeout_ms, retry=retry
        ),
    )
    node.awaited = True
    return node
