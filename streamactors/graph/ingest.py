"""``through_log``: a source of the graph is replaced by one that goes through a topic."""

from __future__ import annotations

from streamactors.flow.selectors import Selector, column

from .nodes import Node, caller, refuse


def read_through_log(node: Node, output: str, topic: str, partitions: int, key: Selector) -> None:
    """Let *node*, which must be a source, read *topic*, and append to it what the source gives."""
    from connectors.log_ingest import ThroughLog  # late: connectors import this package's core
    from connectors.topic import TopicSource

    where, source = caller(), node.source
    if source is None or output != "out":
        remedy = "Call it on what source(...) returns, before all else."
        raise refuse("through_log", where, f"{node!r} is no source.", remedy)
    if isinstance(source, ThroughLog) or source.id == topic:
        raise refuse("through_log", where, f"{source} is in the log already.", "Read it as it is.")
    if partitions < 1:
        raise refuse("through_log", where, f"a topic has no {partitions} partitions.", "Give at least 1.")
    read = TopicSource(topic, source.type, getattr(source, "encoding", None) or "json")
    keys = None if key is None else column(key, source.type)
    node.source = ThroughLog(source, read, partitions=partitions, keys=keys)
    node.detail = str(node.source)
