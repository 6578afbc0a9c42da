"""What the log must keep: for each partition, the least offset that a live job still needs.

A job needs the records from its checkpoint on: that is where its next start reads. What it has counted is in its state.
So retention asks every job of the data folder, running or not, before it removes a segment.

    a job that keeps its position     its checkpoint's offsets
    the same, without a checkpoint    everything of its sources: it has begun, and would begin again
    a job that is finished            nothing: it will read no more
    an at-most-once job               nothing: it begins at the ends

A job that nobody wants any more holds its topics back for ever; remove its folder, or force. A store that can't be read
is an error: who does not know what a job needs must not remove it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from streamactors.core.connectors import Guarantee
from streamactors.durable.store import Store
from streamactors.flow.sequencing import Position
from streamactors.graph.plan import SOURCE

from .guarantees import PROMISES


@dataclass(frozen=True, slots=True)
class Need:
    """That a job needs a source's records from an offset on."""

    job: str
    source: str
    partition: int | None
    """None: each partition."""

    offset: int


class Needed:
    """What some jobs need. Pure."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self._needs = sorted(needs, key=lambda need: (need.offset, need.job))

    def first(self, topic: str, partition: int) -> Need | None:
        """Return the need that reaches back farthest; None: no job needs anything of this partition."""
        matching = (n for n in self._needs if n.source == topic and n.partition in (None, partition))
        return next(matching, None)

    def keep_from(self, topic: str, partitions: int) -> dict[int, int]:
        """Return what ``Topic.retain`` takes as *keep_from*."""
        found = {number: self.first(topic, number) for number in range(partitions)}
        return {number: need.offset for number, need in found.items() if need is not None}


def needed_offsets(data_dir: Path) -> Needed:
    """
    Return what the jobs under *data_dir* need of the log, as of their last checkpoints.

    For another process than those that run them: LMDB opens a store once in a process. Where a job runs in this one,
    ``needs_of(store)`` tells the same of its store.

    Raises:
        Damaged, StorageError: a job's store can't be read, so what it needs is not known.
    """
    needs: list[Need] = []
    for folder in sorted((data_dir / "jobs").glob("*/*")):
        if not (folder / "data.mdb").exists() and not (folder / "reserve").exists():
            continue  # a start that ended before anything was stored
        with Store.open(folder, read_only=True) as store:
            needs += needs_of(store)
    return Needed(needs)


def needs_of(store: Store) -> list[Need]:
    """Return what the job of *store* needs."""
    if not PROMISES[Guarantee(store.guarantee or Guarantee.EXACTLY_ONCE)].keeps:
        return []
    name = f"{store.folder.parent.name}/{store.folder.name}"
    plan = store.plan or {}
    return [need for region in store.regions() for need in _of_region(store, name, region, plan.get(region, {}))]


def _of_region(store: Store, job: str, region: str, signature: Mapping[str, Any]) -> list[Need]:
    restored = store.restore(region)
    if restored is None:
        operators = signature.get("operators", {})
        sources = [name for name, what in operators.items() if what["kind"] == SOURCE]
        return [Need(job, source, None, 0) for source in sources or [region]]
    position = msgspec.convert(restored.position, Position)
    if position.finished:
        return []
    return [Need(job, part.source, part.partition, part.offset) for part in position.partitions]
