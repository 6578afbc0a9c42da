"""A drawing of graph and plan as text: what is fused, where it is partitioned, what each stage keeps."""

from __future__ import annotations

from streamactors.core.times import shown

from .nodes import Node
from .pipeline import Pipeline
from .plan import Feed, RegionPlan, StagePlan, plan


def describe(pipeline: Pipeline) -> str:
    """Return the plan of *pipeline* as text."""
    lines = [f"pipeline {pipeline.name}"]
    for region in plan(pipeline):
        lines += _region(region)
    return "\n".join(lines)


def _region(region: RegionPlan) -> list[str]:
    lines = [f"  region {region.id}"]
    for source in region.sources:
        lines.append(f"    readers: one for each partition of {source.node.detail}")
        lines += [f"      {_node(node)}" for node in source.reader_nodes]
    if region.step is not None:
        lines.append(f"    sequencer: watermark in steps of {shown(region.step)}")
    else:
        lines.append("    sequencer: no event time")
    if region.clock_period is not None:
        lines.append(f"      clock marks every {shown(region.clock_period)}")
    for stage in region.stages:
        lines += _stage(stage)
    return lines


def _stage(stage: StagePlan) -> list[str]:
    parts = f" in {stage.parts} parts" if stage.parts > 1 else ""
    fed = " and ".join(map(_fed, stage.feeds))
    if stage.shuffled:
        fed += ", shuffled by key"
    lines = [f"    stage {stage.id}{parts}  <- {fed}"]
    for node in stage.nodes:
        outside = [f"{source.id}" + ("" if output == "out" else f" ({output})") for source, output in node.inputs]
        lines.append(f"      {_node(node)}  <- {', '.join(outside)}")
    return lines


def _fed(feed: Feed) -> str:
    if feed.stage is None:
        return "sequencer"
    return f"{feed.stage.id}, {feed.node.id}" + ("" if feed.output == "out" else f" ({feed.output})")


def _node(node: Node) -> str:
    what = node.id if node.id == node.kind or node.view or node.sink else f"{node.id}: {node.kind}"
    kept = "  [keeps state by key]" if node.stateful else ""
    return f"{what} {node.detail}".rstrip() + f"  ({node.where}){kept}"
