"""The plan: what we make of a graph. Regions, stages, how they are connected, and what the sequencer must know.

Fusing, in the order of the rules:

    1. What stands between a source and event_time runs in the source's readers, before the sequencer.
    2. A view or sink has one part: one actor writes a target. Behind a stage of one part it joins that stage, and takes
       results while the caches hold them; behind several it is a stage of its own.
    3. An operator with an async function begins a stage: it is awaited, the rest of a chain never waits.
    4. Keyed state lives in as many parts as the pipeline says. With one part there is nothing to shuffle, and the
       operator joins the stage that feeds it. With more, all that reads one key_by shares one keyed stage behind it.
    5. A union joins the stage that feeds it when all that it reads is there; else it begins a stage with a channel for
       each part of each stage that it reads. So does what writes dead letters, always.
    6. Everything else joins the stage that feeds it.

A region is what hangs together: sources, and all that they feed. Several sources are one region when their streams meet
in a union; one sequencer then gives their batches one order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamactors.core.connectors import Sink, Source
from streamactors.core.times import MAX_TIME
from streamactors.flow.dead_letters import OnError, topic_of
from streamactors.flow.event_time import EventTime

from .nodes import Node, Shape, refuse
from .pipeline import Pipeline

DEAD_LETTERS = "dead letters"
"""The kind of the node that writes them."""

SOURCE = "source"
"""The kind, in a signature, of a region's source."""

STEP_DEFAULT_MS = 1_000
"""The watermark's step where no window fixes it: fine enough to be watched, coarse enough to cut no batch."""


class Feed(NamedTuple):
    """What a stage reads: an output of a node."""

    stage: StagePlan | None
    """Where the node runs; None: before the sequencer, which then feeds the stage."""

    node: Node
    output: str


@dataclass(eq=False)
class StagePlan:
    """One stage: the nodes that are fused, in the order in which they see a signal."""

    id: str
    nodes: list[Node]
    parts: int = 1
    feeds: list[Feed] = field(default_factory=list)
    """What it reads, in the order in which its channels are taken. Only a union reads more than one."""

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
class SourcePlan:
    """A source, and what its readers do before its records get their place in the sequence."""

    node: Node
    reader_nodes: list[Node]
    """What runs in the readers, before event time."""

    timed: Node | None
    """The node that assigns event time."""

    @property
    def id(self) -> str:
        """The source's id."""
        return self.node.id

    @property
    def source(self) -> Source:
        """What is read."""
        assert self.node.source is not None, f"{self.node!r} is no source"
        return self.node.source

    @property
    def event_time(self) -> EventTime | None:
        """How event time is assigned."""
        return None if self.timed is None else self.timed.event_time


@dataclass(eq=False)
class RegionPlan:
    """Sources and all that they feed: the unit of sequence, checkpoint and restart."""

    id: str
    """Of its first source."""

    sources: list[SourcePlan]
    stages: list[StagePlan]
    """Each behind the stages that feed it."""

    step: int | None
    """Step of the watermark, ms; None without event time."""

    clock_period: int | None
    clock_longest: int

    def signature(self) -> dict[str, dict[str, Any]]:
        """
        Return what a stored checkpoint must fit, as builtins: which operators keep something, what, and in how many
        parts.

        For each its schema (flow/kept.py); where it keeps state by key, ``key`` says which one.
        """
        kept = [(node, stage.parts, _kept(node)) for stage in self.stages for node in stage.nodes]
        operators = {node.id: {**schema, "parts": parts} for node, parts, schema in kept if schema is not None}
        # Offsets mean something in the very source that they were read from.
        sources = {
            plan.id: {"kind": SOURCE, "place": str(getattr(plan.source, "place", plan.id))} for plan in self.sources
        }
        return {"operators": {**sources, **operators}}

    def sinks(self) -> list[Sink]:
        """Return the sinks that it writes, that of dead letters among them."""
        return [node.sink for stage in self.stages for node in stage.nodes if node.sink is not None]

    def fed_by(self, feed: Feed) -> list[SourcePlan]:
        """Return the sources whose batches, or dead letters, the sequencer sends to *feed*."""
        return [source for source in self.sources if feed.node in (source.node, *source.reader_nodes, source.timed)]


def _kept(node: Node) -> dict[str, Any] | None:
    """Return the schema of what *node* keeps."""
    if node.stateful and node.build is not None:
        return {**(node.build().kept or {"kind": node.kind}), "key": _key_form(node)}
    if node.kind == DEAD_LETTERS:  # an error policy may change while a job has state
        return None
    return {"kind": node.kind} if node.view is not None or node.sink is not None else None


def _key_form(node: Node) -> str:
    """Return what keys are: a field by its name; a function may be renamed."""
    key = node.shape.keyed_by
    assert key is not None, f"{node!r} keeps state by key, and there is none"
    return key.detail if not key.detail or "'" in key.detail else "a function"


def plan(pipeline: Pipeline) -> list[RegionPlan]:
    """Return the regions of *pipeline*, or refuse it."""
    nodes = pipeline.graph.nodes
    sources = [node for node in nodes if node.source is not None]
    if not sources:
        raise refuse(f"pipeline {pipeline.name}", "its end", "it reads nothing.", "Begin with a source: topic(...).")
    return [_region(pipeline, region) for region in _connected(nodes)]


def _with_dead_letters(pipeline: Pipeline, nodes: list[Node]) -> list[Node]:
    """Return the nodes of a region, and the sink of its dead letters where an operator has some."""
    from connectors.topic import TopicSink  # late: connectors import this package's core

    leaving_out = [(node, "dead") for node in nodes if node.on_error is OnError.DEAD_LETTER]
    if not leaving_out:
        return nodes
    sink = TopicSink(topic_of(pipeline.name, nodes[0].id))
    return [*nodes, Node(sink.id, DEAD_LETTERS, leaving_out, Shape(), nodes[0].where, detail=str(sink), sink=sink)]


def _connected(nodes: list[Node]) -> list[list[Node]]:
    """Return the nodes of each region in the order of the graph, the region with the first source first."""
    region_of: dict[Node, list[Node]] = {}
    for node in nodes:
        meeting = list({id(region_of[feeding]): region_of[feeding] for feeding, _ in node.inputs}.values())
        joined = [other for region in meeting for other in region] + [node]
        region_of.update(dict.fromkeys(joined, joined))
    place = {node: index for index, node in enumerate(nodes)}
    regions = {id(region): sorted(region, key=place.__getitem__) for region in region_of.values()}
    return sorted(regions.values(), key=lambda region: place[region[0]])


def _region(pipeline: Pipeline, nodes: list[Node]) -> RegionPlan:
    sources = [_source(node, nodes) for node in nodes if node.source is not None]
    if not any(node.view is not None or node.sink is not None for node in nodes):
        source = sources[0]
        raise refuse(
            f"source {source.id}",
            source.node.where,
            "nothing is done with it.",
            "End its stream in to_view or to_topic.",
        )
    periods = [node.clock_ms for node in nodes if node.clock_ms is not None]
    grid = [ms for node in nodes for ms in node.grid_ms if 0 < ms < MAX_TIME]
    return RegionPlan(
        id=sources[0].id,
        sources=sources,
        stages=_Fusion(pipeline.parts, sources).run(_with_dead_letters(pipeline, nodes)),
        step=None if sources[0].timed is None else math.gcd(*grid) or STEP_DEFAULT_MS,
        clock_period=math.gcd(*periods) or None,
        clock_longest=max([*periods, *(node.clock_waits_ms for node in nodes)], default=0),
    )


def _source(source: Node, nodes: list[Node]) -> SourcePlan:
    """Return what the readers of *source* do: all that stands between it and event time."""
    assigning = [node for node in _fed_by(source, nodes) if node.event_time is not None]
    if not assigning:
        return SourcePlan(source, [], None)
    timed = assigning[0]
    if len(assigning) > 1:
        raise refuse(
            "event_time",
            assigning[1].where,
            f"{source!r} has event time from {timed!r} already.",
            "Assign it once, before the stream branches.",
        )
    path = [source]
    while path[-1] is not timed:
        readers = [node for node in nodes if any(feeding is path[-1] for feeding, _ in node.inputs)]
        if len(readers) > 1:
            other = next((reader for reader in readers if timed not in _fed_by(reader, nodes)), readers[-1])
            raise refuse(
                "event_time",
                timed.where,
                f"{path[-1]!r} is also read by {other!r}, which would have none.",
                "Assign event time before the stream branches.",
            )
        path += readers
    return SourcePlan(source, path[1:-1], timed)


def _fed_by(node: Node, nodes: list[Node]) -> list[Node]:
    """Return *node* and all that it feeds, in the order of the graph."""
    fed = [node]
    for other in nodes:
        if any(feeding in fed for feeding, _ in other.inputs):
            fed.append(other)
    return fed


class _Fusion:
    """Decide which stage each node joins. See the module's header for the rules."""

    def __init__(self, parts: int, sources: list[SourcePlan]) -> None:
        self._parts = parts
        self._stage_of: dict[Node, StagePlan] = {}
        self._keyed: dict[tuple[Node, str], StagePlan] = {}  # by the output that is shuffled
        self._hold_of: dict[Node, int] = {}
        self._outside: set[Node] = set()  # nodes that run before the sequencer
        self._stages: list[StagePlan] = []
        for source in sources:
            before = [source.node, *source.reader_nodes, *([] if source.timed is None else [source.timed])]
            known = [self._stage_of[node] for node in before if node in self._stage_of]  # sources that met in a union
            self._stage_of.update(dict.fromkeys(before, known[0] if known else StagePlan(source.id, [])))
            self._outside.update(before)

    def run(self, nodes: list[Node]) -> list[StagePlan]:
        for node in nodes:
            if node not in self._outside:
                self._place(node)
        return self._stages

    def _place(self, node: Node) -> None:
        stage = self._stage_for(node)
        if stage not in self._stages:
            self._stages.append(stage)
        entering = [feed for feed in map(self._feed, node.inputs) if feed.stage is not stage]
        if entering:
            stage.entries.append(node)
            stage.feeds += [feed for feed in entering if feed not in stage.feeds]
        hold = max(self._hold_of.get(feeding, 0) + feeding.holds_ms(output) for feeding, output in node.inputs)
        self._hold_of[node] = hold
        self._stage_of[node] = stage
        stage.nodes.append(node)
        stage.holds.append(hold)

    def _feed(self, read: tuple[Node, str]) -> Feed:
        node, output = read
        return Feed(None if node in self._outside else self._stage_of[node], node, output)

    def _stage_for(self, node: Node) -> StagePlan:
        feeding = self._stage_of[node.inputs[0][0]]
        if node.kind == DEAD_LETTERS or any(self._stage_of[other] is not feeding for other, _ in node.inputs):
            return StagePlan(node.id, [])
        if node.view is not None or node.sink is not None:
            return feeding if feeding.parts == 1 else StagePlan(node.id, [])
        moves = node.stateful and self._parts > 1 and feeding.key is not node.shape.keyed_by
        if node.awaited:
            parts = self._parts if node.stateful else feeding.parts
            return StagePlan(node.id, [], parts, key=node.shape.keyed_by if moves else feeding.key, shuffled=moves)
        if not moves:
            return feeding
        if node.inputs[0] not in self._keyed:
            begun = StagePlan(node.id, [], self._parts, key=node.shape.keyed_by, shuffled=True)
            self._keyed[node.inputs[0]] = begun
        return self._keyed[node.inputs[0]]
