"""What ``distinct`` adds to a graph: where there is no key to tell records apart by, a key_by of its own before it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from streamactors.core.times import Duration, duration_ms, shown
from streamactors.flow.distinct import KeyWithin, clock_period, distinct, no_keys, outer_keys, same_keys
from streamactors.flow.selectors import Selector, describe
from streamactors.flow.transforms import KeyBy

from .nodes import Graph, Node, Shape, caller, refuse


def add_distinct(
    graph: Graph, read: tuple[Node, str], shape: Shape, selector: Selector, ttl: Duration | None, name: str | None
) -> tuple[Node, Shape]:
    """Return the node, and the shape of the stream behind it: that of the stream before it."""
    ttl_ms = None if ttl is None else duration_ms(ttl)
    if ttl_ms is not None and ttl_ms < 1:
        raise refuse("distinct", caller(), f"ttl={ttl!r} is over before it begins.", "Give at least 1 ms.")
    shape = replace(shape, windowed=False)
    give: Any = same_keys
    if shape.keyed_by is None or selector is not None:
        unkeyed = shape.keyed_by is None
        give, key_by = (no_keys, KeyBy) if unkeyed else (outer_keys, KeyWithin)
        key = graph.add(
            "key_by",
            None,
            [read],
            replace(shape, repartitioned=True),
            tolerant=True,
            detail=describe(selector) if unkeyed else f"its key and {describe(selector)}",
            build=partial(key_by, selector, shape.type),
        )
        key.shape = replace(key.shape, keyed_by=key)
        read = key, "out"
        own, shape = key.shape, replace(key.shape, keyed_by=shape.keyed_by)
    else:
        own = shape
    by_clock = ttl_ms is not None and not shape.event_time
    node = graph.add(
        "distinct",
        name,
        [read],
        own,
        detail="for ever" if ttl_ms is None else f"for {shown(ttl_ms)} of {'processing' if by_clock else 'event'} time",
        build=partial(distinct, ttl_ms, event_time=shape.event_time, give=give),
        stateful=True,
        grid_ms=() if ttl_ms is None or by_clock else (ttl_ms,),
        clock_ms=clock_period(ttl_ms) if ttl_ms is not None and by_clock else None,
        clock_waits_ms=ttl_ms + 2 * clock_period(ttl_ms) if ttl_ms is not None and by_clock else 0,
    )
    return node, shape
