"""Coverage: what can be right in a version that began in the middle of its input. Pure.

The region began behind records of which none has event time ``since`` or later. So a window that starts at ``since`` or
later has all its records behind that place, and is what it would be in a version that has read everything. What else
there is:

    windows that start before    some of their records are past: they are left out, nobody is shown them
    windows of windows           a result bears its window's last instant. Those of windows that were left out are
                                 missing, so the second window has to start behind the last of them
    running results, state       hold what came before, which is missing: never right
    rows without a window        only those that came since: a view of them lacks the others

It is assumed that records have the event time that they had when the served version read them: a program that changes
how event time is made, or what is dropped before that, moves records across the boundary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streamactors.core.times import MAX_TIME

from .nodes import Node
from .plan import RegionPlan


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of a region's results is right."""

    windows: dict[str, int] = field(default_factory=dict)
    """By window operator: windows that start before are left out."""

    views: dict[str, int | None] = field(default_factory=dict)
    """By view: rows of windows that start at this time or later are right; None: no row needs to be."""


def coverage(region: RegionPlan, since: int) -> Coverage:
    """Return what is right in *region* if it began behind records of which none has event time *since* or later."""
    found, nodes = Coverage(), [node for stage in region.stages for node in stage.nodes]
    reach = _Reach(frozenset(nodes), since)
    for node in nodes:
        if node.kind == "window":
            right = reach.times(*node.inputs[0])
            found.windows[node.id] = since if right is None else right
        if node.view is not None:
            found.views[node.view] = reach.starts(*node.inputs[0]) if node.shape.windowed else None
    return found


@dataclass(frozen=True, slots=True)
class _Reach:
    inside: frozenset[Node]
    """Nodes behind the sequencer; before it nothing is kept."""

    since: int

    def times(self, node: Node, output: str) -> int | None:
        """Return from which timestamp on all rows of an output are there and right; None: never."""
        if node not in self.inside:
            return self.since
        right = _latest([self.times(*read) for read in node.inputs])
        if right is not None and node.kind == "window":
            size = node.grid_ms[0]
            return min(right + size - 1, MAX_TIME)
        return None if node.stateful else right

    def starts(self, node: Node, output: str) -> int | None:
        """Return from which start of a window on all rows of an output are there and right; None: never."""
        if node not in self.inside or (node.stateful and node.kind != "window") or output == "late":
            return None
        if node.kind == "window":
            return self.times(*node.inputs[0])
        return _latest([self.starts(*read) for read in node.inputs])


def _latest(times: list[int | None]) -> int | None:
    known = [time for time in times if time is not None]
    return max(known) if len(known) == len(times) else None
