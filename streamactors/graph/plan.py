"""The plan: what we make of a graph. Regions, stages, how they are connected, and what the sequencer must know.

Fusing, in the order of the rules:

    1. What stands between a source and event_time runs in the source's readers, before the sequencer.
    2. A view or sink has one part: one actor writes a target. Behind a stage of one part it joins that stage, and takes
       results while the caches hold them; behind several it is a stage of its own.
    3. An operator with an async function begins a stage: it is awaited, the rest of a chain never waits.
    4. Keyed state lives in as many parts as the pipeline says. With one part there is nothing to shuffle, and the
       operator joins the stage that feeds it. With more, all that reads one key_by shares one keyed stage behind it.
    5. Everything else joins the stage that feeds it.

A region is what hangs together: a source and all that it feeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from streamactors.core.times import MAX_TIME
from streamactors.flow.reader import EventTime

from .nodes import Node, refuse
from .pipeline import Pipeline

STEP_DEFAULT_MS = 1_000
"""The watermark's step where no window fixes it: fine enough to be watched, coarse enough to cut no batch."""


@dataclass(eq=False)
class StagePlan:
    """One stage: the nodes that are fused, in the order in which they see a signal."""

    id: str
    nodes: list[Node]
    parts: int = 1
    feed: tuple[StagePlan, Node, str] | None = None
    """(stage, node, output) that it reads; None: the sequencer."""

    key: Node | None = None
    """The key_by whose keys decide which part a record is in."""

    shuffled: bool = False
    """Whether records come from other parts, or stay in their part."""

    entries: list[Node] = field(default_factory=list)
    """Nodes that take what comes in from outside the stage."""

    holds: list[int] = field(default_factory=list)
    """For each node, ms by which its watermark is held back."""

    def __repr__(self) -> str:
        return f"StagePlan({self.id}: {', '.join(node.id for node in self.nodes)} x {self.parts})"


@dataclass(eq=False)
class RegionPlan:
    """A source and all that it feeds: the unit of sequence, checkpoint and restart."""

    id: str
    source: Node
    reader_nodes: list[Node]
    """What runs in the readers, before event time."""

    event_time: EventTime | None
    stages: list[StagePlan]
    """Each behind the stage that feeds it."""

    step: int | None
    """Step of the watermark, ms; None without event time."""

    clock_period: int | None
    clock_longest: int

    def signature(self) -> dict[str, dict[str, str]]:
        """Return what a stored checkpoint must fit: which operators keep something, what, and in how many parts."""
        kept = [(node, stage.parts) for stage in self.stages for node in stage.nodes]
        operators = {node.id: f"{_kept(node)} in {parts} parts" for node, parts in kept if _kept(node) is not None}
        # Offsets mean something in the very source that they were read from.
        return {"operators": {self.source.id: f"source {getattr(self.source.source, 'place', self.id)}", **operators}}


def _kept(node: Node) -> str | None:
    """Return what *node* keeps, in words that change when its state would no longer fit."""
    if node.stateful and node.build is not None:
        return str(getattr(node.build(), "shape", node.kind))
    return node.kind if node.view is not None or node.sink is not None else None


def plan(pipeline: Pipeline) -> list[RegionPlan]:
    """Return the regions of *pipeline*, or refuse it."""
    nodes = pipeline.graph.nodes
    sources = [node for node in nodes if node.source is not None]
    if not sources:
        raise refuse(f"pipeline {pipeline.name}", "its end", "it reads nothing.", "Begin with a source: topic(...).")
    return [_region(pipeline, source, _fed_by(source, nodes)) for source in sources]


def _fed_by(source: Node, nodes: list[Node]) -> list[Node]:
    """Return *source* and all that it feeds, in the order of the graph."""
    fed = [source]
    for node in nodes:
        if any(feeding in fed for feeding, _ in node.inputs):
            fed.append(node)
    return fed


def _region(pipeline: Pipeline, source: Node, nodes: list[Node]) -> RegionPlan:
    if not any(node.view is not None or node.sink is not None for node in nodes):
        raise refuse(
            f"source {source.id}", source.where, "nothing is done with it.", "End its stream in to_view or to_topic."
        )
    event_time, reader_nodes = _before_event_time(source, nodes)
    stages = _Fusion(pipeline.parts, source, reader_nodes).run(nodes)
    periods = [node.clock_ms for node in nodes if node.clock_ms is not None]
    grid = [ms for node in nodes for ms in node.grid_ms if 0 < ms < MAX_TIME]
    return RegionPlan(
        id=source.id,
        source=source,
        reader_nodes=reader_nodes,
        event_time=event_time,
        stages=stages,
        step=None if event_time is None else math.gcd(*grid) or STEP_DEFAULT_MS,
        clock_period=math.gcd(*periods) or None,
        clock_longest=max(periods, default=0),
    )


def _before_event_time(source: Node, nodes: list[Node]) -> tuple[EventTime | None, list[Node]]:
    """Return the event time of *source* and the nodes that run before it is assigned."""
    assigning = [node for node in nodes if node.event_time is not None]
    if not assigning:
        return None, []
    if len(assigning) > 1:
        raise refuse(
            "event_time",
            assigning[1].where,
            f"{source!r} has event time from {assigning[0]!r} already.",
            "Assign it once, before the stream branches.",
        )
    node = assigning[0]
    before: list[Node] = []
    while node.inputs:
        feeding, _ = node.inputs[0]
        readers = [other for other in nodes if any(feed is feeding for feed, _ in other.inputs)]
        if len(readers) > 1:
            raise refuse(
                "event_time",
                assigning[0].where,
                f"{feeding!r} is also read by {next(r for r in readers if r is not node)!r}, which would have none.",
                "Assign event time before the stream branches.",
            )
        if feeding is not source:
            before.insert(0, feeding)
        node = feeding
    return assigning[0].event_time, before


class _Fusion:
    """Decide which stage each node joins. See the module's header for the rules."""

    def __init__(self, parts: int, source: Node, reader_nodes: list[Node]) -> None:
        self._parts = parts
        self._first = StagePlan(f"{source.id}", [])
        self._stage_of: dict[Node, StagePlan] = dict.fromkeys([source, *reader_nodes], self._first)
        self._keyed: dict[tuple[Node, str], StagePlan] = {}  # by the output that is shuffled
        self._hold_of: dict[Node, int] = {}
        self._outside = {source, *reader_nodes}  # nodes that run before the first stage
        self._stages: list[StagePlan] = []

    def run(self, nodes: list[Node]) -> list[StagePlan]:
        for node in nodes:
            if node in self._outside:
                continue
            if node.event_time is not None:  # assigned by the reader: its place in the graph is the reader's output
                self._stage_of[node] = self._first
                self._outside.add(node)
                continue
            self._place(node)
        return self._stages

    def _place(self, node: Node) -> None:
        feeding, output = node.inputs[0]
        stage = self._stage_for(node, self._stage_of[feeding])
        if stage not in self._stages:
            self._stages.append(stage)
        if self._stage_of[feeding] is not stage or feeding in self._outside:
            stage.entries.append(node)
        hold = self._hold_of.get(feeding, 0) + feeding.holds_ms(output)
        self._hold_of[node] = hold
        self._stage_of[node] = stage
        stage.nodes.append(node)
        stage.holds.append(hold)

    def _stage_for(self, node: Node, feeding: StagePlan) -> StagePlan:
        if node.view is not None or node.sink is not None:
            return feeding if feeding.parts == 1 else self._begin(node, feeding, parts=1)
        moves = node.stateful and self._parts > 1 and feeding.key is not node.shape.keyed_by
        if node.awaited:
            parts = self._parts if node.stateful else feeding.parts
            return self._begin(node, feeding, parts, node.shape.keyed_by if moves else feeding.key, shuffled=moves)
        if not moves:
            return feeding
        if node.inputs[0] not in self._keyed:
            begun = self._begin(node, feeding, self._parts, node.shape.keyed_by, shuffled=True)
            self._keyed[node.inputs[0]] = begun
        return self._keyed[node.inputs[0]]

    def _begin(
        self, node: Node, feeding: StagePlan, parts: int, key: Node | None = None, *, shuffled: bool = False
    ) -> StagePlan:
        source, output = node.inputs[0]
        feed = None if source in self._outside else (feeding, source, output)
        stage = StagePlan(node.id, [], parts, feed, key, shuffled)
        self._stages.append(stage)
        return stage
