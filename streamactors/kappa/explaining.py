"""Explaining: why a key of a view has the value that it has.

Everything that a region emits is a function of its plan, its inputs and its journal (T1). So whoever wants to know how
a value came about runs the region again, from its journal, up to the checkpoint that readers see, and listens
(kappa/taps.py). Nothing is written anywhere but into a folder that is thrown away; the job may run meanwhile, here, in
another process, or not at all.

What runs is the region's own wiring, less what can't make a difference to the view:

    kept         all sources, because event time is made by all partitions; what leads to the view; the watermark's
                 step, the clock's marks, the number of parts
    left out     other views, sinks and branches; checkpoints; state on disk
    restricted   behind the key_by that gives the view its key, rows of other keys are dropped. State is kept by key, so
                 they could not make a difference; records before that are read and decoded for their event time

Which records are listed: those whose rows came to the last operator with state before the view, under the view's key
(and in its window); where there is none, to the view. Rows that were made by a window with another key are listed as
results, with the records of that window before them. The state of a ``map_with_state`` further upstream, or of a
running result, may owe something to records that are not listed: those whose rows an operator behind it has dropped,
or that had another key.

The value that comes out is compared with the one that is stored. They differ only if the code is not what it was, if
records are no longer there, if a function does not depend on its arguments alone, or if a result depends on the order
of branches of one stream that meet again in a union: that is the order of the batches, which nobody noted (T2).
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamactors.core.batch import Window
from streamactors.core.codec import decode_value, encode_value
from streamactors.core.connectors import Guarantee, Replay, World
from streamactors.core.errors import UsageError
from streamactors.core.keys import canonical_key
from streamactors.core.limits import BATCH_RECORDS_MAX
from streamactors.core.ports import Ports
from streamactors.core.times import MIN_TIME
from streamactors.durable.catalogue import Catalogue, Version, digest_of
from streamactors.durable.log import Log
from streamactors.durable.realtime import real_ports
from streamactors.durable.sharing import read_briefly
from streamactors.durable.store import CommitStats, Restored, Store, StoreClosed
from streamactors.durable.views import ViewReader
from streamactors.engine.actor import ActorGroup
from streamactors.flow.operator import Operator
from streamactors.flow.sequencing import Entry
from streamactors.flow.window_operator import WindowOperator
from streamactors.graph.nodes import Node
from streamactors.graph.pipeline import Pipeline
from streamactors.graph.plan import RegionPlan, plan
from streamactors.job.folders import job_folder, version_folder
from streamactors.job.room import Room
from streamactors.job.settings import Settings
from streamactors.job.wiring import RegionWorld, wire

from .leading import anchors_of, leading_to, pruned, section, windowed
from .steps import Step
from .taps import Taps, Target, ViewTap

Dress = Callable[[Node, Operator], Operator]
"""What is done with an operator that was built for a node, before it runs."""

_INTERVAL_MS = 2_000
"""What mailboxes are sized by. There is no checkpoint that would have to pass through them."""

_BATCH_RECORDS = 8_192
"""Records read at a time: several times what a job reads, because nothing waits for a batch here, and each costs a turn
of the reading thread."""


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()
"""What a view shows for a key that it has no row of."""


@dataclass
class Explanation:
    """Why a key has its value."""

    job: str
    version: Version
    view: str
    key: Any
    target: Target
    """The key as the view's stream has it, and the window."""

    region: str
    epoch: int
    """The checkpoint up to which it was explained."""

    stored: Any
    """What readers see at that checkpoint; ABSENT: no row."""

    value: Any
    """What came out by running again."""

    steps: list[Step]
    counts: dict[str, int]
    """How many steps of each kind there were; with a limit, not all of them are in ``steps``."""

    read: int
    """Records that were read again."""

    missing: dict[tuple[str, int], int]
    """By (source, partition), the first offset that is still there, where the beginning is not."""

    operators: list[Node]
    """What leads to the view, upstream first."""

    file: str | None
    """Where the pipeline that explained was built."""

    digest: str
    """Of that file, now."""

    @property
    def agrees(self) -> bool:
        """Whether what came out is what is stored."""
        if self.stored is ABSENT or self.value is ABSENT:
            return self.stored is self.value
        return encode_value(self.stored) == encode_value(self.value)

    @property
    def same_code(self) -> bool | None:
        """Whether the file is the one that the version was last run from; None: nobody noted which that was."""
        return None if not self.version.digest else self.version.digest == self.digest

    @property
    def last(self) -> Step | None:
        """The last record that concerns the key: of those that count, else of those left out, else of the late ones."""
        for what in ("record", "left_out", "late"):
            found = [step for step in self.steps if step.what == what and step.certain and step.place is not None]
            if found:
                return found[-1]
        return None


async def explain(
    pipeline: Pipeline,
    data_dir: Path | str,
    view: str,
    key: Any,
    *,
    version: str | None = None,
    original: bool = False,
    limit: int | None = None,
    dress: Dress | None = None,
    ports: Ports | None = None,
) -> Explanation:
    """
    Run *pipeline* again, as far as a key of a view is concerned, and return what made its value.

    Args:
        pipeline: The code. Its name is the job's.

        data_dir: Folder of log and state.

        view, key: What is asked for; the key as ``view show`` takes it: ``[key, window start]`` for results of windows.

        version: Label. None: the one that is served.

        original: Whether to keep each record as it stands in the source.

        limit: Keep about the first and the last so many steps of each operator, and count the others.

        dress: Called with each operator that runs, before its taps are set: a debugger's place.

        ports: The outside world; a simulation brings its own.

    Raises:
        UsageError: there is no such job, version or view, or it can't be run again; it says why.
    """
    own_ports = ports is None
    ports = ports if ports is not None else real_ports()
    try:
        question = _asked(pipeline, Path(data_dir), view, key, version, ports)
        question.taps.original, question.taps.limit = original, limit
        async with Log(Path(data_dir), ports) as log:
            read = await question.run(log, ports, dress)
    finally:
        if own_ports:
            await ports.threads.close()
    return question.answer(read)


@dataclass
class _Question:
    """A key of a view, with all that has to be known to run again what made it."""

    pipeline: Pipeline
    data_dir: Path
    version: Version
    view: Node
    key: Any
    region: RegionPlan
    restored: Restored
    journal: list[Entry]
    stored: Any
    taps: Taps
    wanted: list[Node]

    async def run(self, log: Log, ports: Ports, dress: Dress | None) -> int:
        """Run the region again; return how many records were read."""
        folder = Path(tempfile.mkdtemp(prefix="streamactors-explain-"))
        try:
            with Store.open(folder / "state", sync=False) as store:
                store.begin_attempt(self.region.id)
                world = await self._world(log, ports, store, dress)
                running = await wire(world, 1, None)
                self.taps.attach(running.stages, running.readers, running.sequencer.sequencing)
                await ActorGroup(running.actors).run()
                return running.sequencer.records
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _world(self, log: Log, ports: Ports, store: Store, dress: Dress | None) -> RegionWorld:
        world = World(self.data_dir, ports, log, bounded=True, follows=True)
        for source in self.region.sources:
            self._refuse_short(source.id, await source.source.ends(world))  # as a job asks, before it reads
        # At-most-once keeps state in memory and takes no checkpoints. What it makes no promise for is a crash.
        settings = Settings(
            guarantee=Guarantee.AT_MOST_ONCE,
            checkpoint_every_ms=_INTERVAL_MS,
            batch_records=BATCH_RECORDS_MAX if self.meets_again else _BATCH_RECORDS,
            follow={self.region.id: self.journal},
            sync=False,
        )
        return RegionWorld(
            job=self.pipeline.name,
            incarnation="",
            plan=pruned(self.region, self.view, self.wanted, partial(self._dressed, dress)),
            world=world,
            store=store,
            commit=_nowhere,
            room=Room(ports.clock, _no_reserve, name=f"{self.pipeline.name}.{self.region.id}"),
            settings=settings,
            partitions=_partitions(self.restored),
            ends=None,
            targets={},
            overlays={},
            since=self.restored.position.get("since", MIN_TIME),
        )

    def _refuse_short(self, source: str, ends: Sequence[int | None]) -> None:
        """Refuse a log that ends before what was read of it: what is not there would be waited for."""
        for part in self.restored.position["partitions"]:
            number, read = part["partition"], part["offset"]
            end = ends[number] if number < len(ends) else 0  # None: not known
            if part["source"] == source and end is not None and end < read:
                raise UsageError(
                    f"job {self.pipeline.name}, version {self.version.label}, has read {source}/{number} up to offset "
                    f"{read:,}, and it ends at {end:,} in {self.data_dir}: it is another log, or was made anew, so "
                    "the records that made the value are not there. Ask where the log is that was read."
                )

    def _dressed(self, dress: Dress | None, node: Node) -> Operator:
        if node is self.view:
            operator: Operator = ViewTap(self.taps, node.id)
        else:
            assert node.build is not None, f"{node!r} has no operator"
            operator = node.build()
        if dress is not None:
            operator = dress(node, operator)
        return self.taps.dressed(node, operator)

    @property
    def meets_again(self) -> bool:
        """Whether streams meet in a union: where they are branches of one, their order is that of the batches (T2)."""
        return any(node.kind == "union" for node in self.wanted)

    def answer(self, read: int) -> Explanation:
        """Put together what was heard."""
        final = self.taps.final
        gone = final is None or final.kind == "delete"
        return Explanation(
            job=self.pipeline.name,
            version=self.version,
            view=str(self.view.view),
            key=self.key,
            target=self.taps.target,
            region=self.region.id,
            epoch=self.restored.epoch,
            stored=self.stored,
            value=ABSENT if final is None or gone else decode_value(encode_value(final.value)),
            steps=_joined(self.taps.steps(), limited=self.taps.limit is not None),
            counts={what: self.taps.counted(what) for what in ("record", "late", "left_out", "result", "shown")},
            read=read,
            missing=self.taps.missing,
            operators=[node for node in self.wanted if node.view is None],
            file=self.pipeline.file,
            digest=digest_of(self.pipeline.file),
        )


async def _nowhere(checkpoint: Any) -> CommitStats:
    del checkpoint
    return CommitStats(0, 0)


async def _no_reserve() -> bool:
    return False


# What is asked. -------------------------------------------------------------------------------------------------------


def _asked(pipeline: Pipeline, data_dir: Path, view: str, key: Any, label: str | None, ports: Ports) -> _Question:
    """Find all that has to be known, or refuse."""
    catalogue = Catalogue(ports.disk, job_folder(data_dir, pipeline.name))
    versions = catalogue.read()
    if versions is None:
        raise UsageError(f"there is no job {pipeline.name} in {data_dir}. Run it first, or check --data and the file.")
    version = versions.version(label or versions.serving)
    region, node = _view_node(pipeline, view)
    _refuse_sources(region)
    target = _target(node, key)
    folder = version_folder(data_dir, pipeline.name, version.label)
    restored, stored, journal = _at_one_checkpoint(folder, region.id, view, key)
    _refuse_other_sources(region, restored, pipeline.name)
    wanted = leading_to(node)
    between, deciding = section(node, wanted)
    anchors = anchors_of(node, between)
    taps = Taps(
        target,
        anchors=frozenset(one.id for one in anchors),
        deciding=frozenset(one.id for one in deciding),
        keyed=frozenset(one.id for one in between),
        span=_span(target, anchors, wanted),
        traced=frozenset(one.id for one in wanted if one.kind == "window" and one not in anchors),
    )
    return _Question(pipeline, data_dir, version, node, key, region, restored, journal, stored, taps, wanted)


def _view_node(pipeline: Pipeline, view: str) -> tuple[RegionPlan, Node]:
    regions = plan(pipeline)
    views = {str(node.view): (region, node) for region in regions for node in _nodes(region) if node.view is not None}
    if view not in views:
        raise UsageError(
            f"pipeline {pipeline.name} has no view {view}. Its views: {', '.join(sorted(views)) or 'none'}."
        )
    return views[view]


def _nodes(region: RegionPlan) -> list[Node]:
    return [node for stage in region.stages for node in stage.nodes]


def _refuse_sources(region: RegionPlan) -> None:
    for source in region.sources:
        if source.source.replay is not Replay.BY_OFFSET:
            raise UsageError(
                f"source {source.node!r} can't give again what it gave, so nothing that came from it can be explained. "
                "Read it with through_log(topic): what comes from then on can."
            )


def _refuse_other_sources(region: RegionPlan, restored: Restored, job: str) -> None:
    known, wanted = {part["source"] for part in restored.position["partitions"]}, {one.id for one in region.sources}
    if known != wanted:
        raise UsageError(
            f"job {job}: this code reads {', '.join(sorted(wanted))}, what is stored was made of "
            f"{', '.join(sorted(known))}. Explain it with the code that made it: --file."
        )


def _target(view: Node, key: Any) -> Target:
    if not windowed(view):
        return Target(canonical_key(key))
    if not isinstance(key, list | tuple) or len(key) != 2 or type(key[1]) is not int:
        raise UsageError(
            f"view {view.view} has results of windows: its keys are [key, start of the window in ms], and {key!r} is "
            "none. `streamactors view show` prints them."
        )
    return Target(canonical_key(key[0]), key[1])


def _span(target: Target, anchors: set[Node], wanted: list[Node]) -> Window | None:
    """Return the time that all records of *target* have, where they go straight into windows."""
    windows = [node for node in wanted if node.kind == "window"]
    if target.start is None or set(windows) != anchors:
        return None
    built = [node.build() for node in windows if node.build is not None]
    spans = {one.assigner.window(target.start) for one in built if isinstance(one, WindowOperator)}
    return spans.pop() if len(spans) == 1 else None


def _at_one_checkpoint(folder: Path, region: str, view: str, key: Any) -> tuple[Restored, Any, list[Entry]]:
    """Return a checkpoint, the value that is stored at it, and the journal up to it."""
    while True:
        try:
            with read_briefly(folder) as store:
                found = _at_newest(store, region, view, key)
        except StoreClosed:
            continue  # a job of this process has opened it meanwhile, or let it go
        if found is not None:
            return found


def _at_newest(store: Store, region: str, view: str, key: Any) -> tuple[Restored, Any, list[Entry]] | None:
    """Return what belongs to the newest checkpoint; None when there was another one meanwhile."""
    which = f"job {store.folder.parent.name}, version {store.folder.name}"
    if store.guarantee == Guarantee.AT_MOST_ONCE.value:
        raise UsageError(
            f"{which}: at-most-once keeps no journal, so nobody knows in which order records were read. Only "
            "exactly-once and at-least-once can be explained."
        )
    restored = store.restore(region)
    if restored is None:
        raise UsageError(f"{which}: region {region} has no checkpoint yet, so there is nothing to explain.")
    stored = ViewReader(store)[view].get(key, ABSENT)
    again = store.restore(region)
    if again is None or again.epoch != restored.epoch:
        return None
    rows = [entries for epoch, entries in store.journal_by_epoch(region) if epoch <= restored.epoch]
    return restored, stored, [entry for entries in rows for entry in entries]


def _partitions(restored: Restored) -> dict[str, int]:
    """Return how many partitions of each source were read."""
    found: dict[str, int] = {}
    for part in restored.position["partitions"]:
        found[part["source"]] = max(found.get(part["source"], 0), part["partition"] + 1)
    return found


# What comes out. ------------------------------------------------------------------------------------------------------


def _joined(steps: list[Step], *, limited: bool) -> list[Step]:
    """Return *steps* with each change of the view that a record made at once as part of that record."""
    joined: list[Step] = []
    records: dict[Any, Step] = {}
    sequence: float = -math.inf
    for step in steps:
        if step.order[0] != sequence:
            sequence = step.order[0]
            records.clear()
        place = step.place
        if step.what == "record" and place is not None:
            if place in records and records[place].operator != step.operator:  # of two branches that met again
                continue
            records[place] = step
        elif step.what == "shown" and place is not None:
            if place in records:
                records[place].then = step
                continue
            if limited:  # its record was not kept
                continue
        joined.append(step)
    return joined
