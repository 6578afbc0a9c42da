"""What leads to a view: the part of a plan that has to run for one view, and where one key of it is decided. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from streamactors.flow.distinct import KeyWithin
from streamactors.flow.operator import Operator
from streamactors.graph.nodes import Node
from streamactors.graph.plan import Feed, RegionPlan, SourcePlan, StagePlan


def leading_to(view: Node) -> list[Node]:
    """Return *view* and all that it is made from, upstream first."""
    found: dict[Node, None] = {}

    def add(node: Node) -> None:
        if node not in found:
            for feeding, _ in node.inputs:
                add(feeding)
            found[node] = None

    add(view)
    return list(found)


_WITHOUT_WINDOWS = {"source", "key_by", "aggregate", "map_with_state", "distinct"}


def windowed(node: Node, output: str = "out") -> bool:
    """Return whether each row that *node* gives, or as a view takes, belongs to a window."""
    if node.kind == "window" and output != "late":
        return True
    if node.kind in _WITHOUT_WINDOWS or not node.shape.windowed:
        return False
    return all(windowed(feeding, read) for feeding, read in node.inputs)


def section(view: Node, wanted: list[Node]) -> tuple[set[Node], set[Node]]:
    """Return what stands between the key_by that give the view its key and the view, and those at which to restrict.

    None of them when something that has another key reads what stands between: it needs all rows.
    """
    deciding = set(_key_givers(view.shape.keyed_by))
    between: set[Node] = set()
    todo = [view]
    while todo:
        node = todo.pop()
        if node not in between and node not in deciding:
            between.add(node)
            todo += [feeding for feeding, _ in node.inputs]
    inside = between | deciding
    others = [node for node in wanted if node not in between]
    if any(feeding in inside for node in others for feeding, _ in node.inputs):
        return between, set()
    return between, deciding


def _key_givers(node: Node | None) -> Iterable[Node]:
    """Return the key_by whose keys *node*, a key_by or a union of streams with keys, gives."""
    if node is None:
        return []
    if node.kind != "union":
        return [node]
    return [giver for feeding, _ in node.inputs for giver in _key_givers(_key_of(feeding))]


def _key_of(node: Node) -> Node | None:
    """Return what gave the rows that *node* gives their keys."""
    if node.kind != "distinct":
        return node.shape.keyed_by
    inner = node.inputs[0][0]
    apart = inner.build is not None and isinstance(inner.build(), KeyWithin)
    return inner.inputs[0][0].shape.keyed_by if apart else inner.shape.keyed_by


def anchors_of(view: Node, between: set[Node]) -> set[Node]:
    """Return the operators whose input made the value: the last ones with state, or the view where there is none."""
    anchors: set[Node] = set()

    def look(node: Node) -> None:
        for feeding, output in node.inputs:
            if feeding not in between:
                anchors.add(view)
            elif feeding.stateful and not feeding.awaited and feeding.kind != "distinct" and output != "late":
                anchors.add(feeding)
            else:
                look(feeding)

    look(view)
    return anchors


def pruned(region: RegionPlan, view: Node, wanted: Sequence[Node], build: Callable[[Node], Operator]) -> RegionPlan:
    """Return the plan of what leads to *view*, each operator made by ``build(node)``; the nodes are copies."""
    copies: dict[Node, Node] = {}

    def copied(node: Node) -> Node:
        if node not in copies:
            inputs = [(copied(feeding), output) for feeding, output in node.inputs]
            made = None if node.build is None and node is not view else partial(build, node)
            copies[node] = replace(node, inputs=inputs, build=made, view=None)
        return copies[node]

    sources = [
        SourcePlan(
            copied(source.node),
            [copied(node) for node in source.reader_nodes],
            None if source.timed is None else copied(source.timed),
        )
        for source in region.sources
    ]
    stages: dict[StagePlan, StagePlan] = {}
    for stage in region.stages:
        kept = [node in wanted for node in stage.nodes]
        nodes = [node for node in stage.nodes if node in wanted]
        if not nodes:
            continue
        read = {one for node in nodes for one in node.inputs}
        feeds = [feed for feed in stage.feeds if (feed.node, feed.output) in read]
        stages[stage] = replace(
            stage,
            nodes=list(map(copied, nodes)),
            feeds=[Feed(stages.get(one.stage) if one.stage else None, copied(one.node), one.output) for one in feeds],
            entries=[copied(node) for node in stage.entries if node in wanted],
            holds=[hold for hold, keep in zip(stage.holds, kept, strict=True) if keep],
        )
    return replace(region, sources=sources, stages=list(stages.values()))
