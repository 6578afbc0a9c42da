"""Wiring: from a region's plan and its last checkpoint to actors that are ready to start.

Everything here is built anew for each attempt; what lives longer (the store, the sinks' targets, the log) is handed
in. Nothing decides anything: which node is in which stage is the plan's, what they keep is the operators'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import Replay, Sink, SinkTarget, SourceReader, World
from streamactors.core.errors import PipelineError
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.durable.state import Durable, KeyedState, OperatorRow
from streamactors.durable.store import Restored, Store
from streamactors.durable.views import Overlay, ShownViewBuffer, ViewBuffer
from streamactors.durable.volatile import VolatileState
from streamactors.engine.actor import Actor
from streamactors.engine.mailbox import Channel
from streamactors.flow.dead_letters import OnError
from streamactors.flow.guide import Guide
from streamactors.flow.operator import Emit, Operator, OperatorContext, counted_in, counted_out, nowhere
from streamactors.flow.outputs import SinkOperator, ViewOperator
from streamactors.flow.reader import Reader
from streamactors.flow.sequencer import Sequencer, Ticker
from streamactors.flow.sequencing import PartitionId, PartitionPosition, Position, Sequencing
from streamactors.flow.stage import Chain, Forward, Shuffle, Stage, groups_of_part
from streamactors.graph.coverage import Coverage, coverage
from streamactors.graph.nodes import Node
from streamactors.graph.plan import DEAD_LETTERS, Feed, RegionPlan, SourcePlan, StagePlan

from .coordinator import Coordinator
from .figures import RunFigures
from .following import JournalTail, Lead
from .guarantees import PROMISES, Promise
from .immediate import ImmediateOutput, SinkOutput
from .keeping import Commit, Keeping
from .pending import Committer, PendingOutput, expect_what_is_there
from .publisher import Publisher
from .room import PatientTarget, Room
from .settings import Settings

_BURNT_EPOCHS = 2
"""Epochs that an attempt may have begun and not committed: one committing, one aligning. Their numbers are burnt."""


@dataclass(slots=True)
class Target:
    """A sink's other side; lives as long as the job."""

    target: SinkTarget
    partitions: int
    committer: Committer


@dataclass(slots=True)
class RegionWorld:
    """What a region's attempts have in common."""

    job: str
    incarnation: str
    plan: RegionPlan
    world: World
    store: Store
    commit: Commit
    room: Room
    settings: Settings
    partitions: dict[str, int]
    """How many each source has, by its id."""

    ends: dict[PartitionId, int | None] | None
    """Where a bounded run stops."""

    targets: dict[str, Target]
    """Of the region's sinks, by id."""

    overlays: dict[str, Overlay]
    """Of the job's views, by name, where changes are shown at once."""

    figures: RunFigures = field(default_factory=RunFigures)
    """Of attempts that have ended, and of all checkpoints."""

    lead: Lead | None = None
    """What the next attempt follows; None: it decides."""

    resets: bool = False
    """Whether sinks take targets as they are: said when the job started from a savepoint."""

    since: int = MIN_TIME
    """Of a region that begins at its first record all the same, to show what one would that began later."""

    trial: str | None = None
    """Label that targets bear whatever the catalogue says; None: none."""

    def follow(self, lead: Lead | None, shadow: str | None) -> None:
        """Let the next attempt follow *lead*, or decide; its targets are those that *shadow* names."""
        self.lead = lead
        follows = lead is not None or self.settings.follow is not None
        label = self.world.label or self.trial
        self.world = replace(self.world, follows=follows, shadow=shadow or self.trial, label=label)

    async def open_targets(self) -> None:
        """Open the targets of the region's sinks, or open them anew."""
        for sink in self.plan.sinks():
            partitions = await sink.partitions(self.world)
            target = PatientTarget(await sink.target(self.world), self.room)
            self.targets[sink.id] = Target(target, partitions, Committer(sink.id, self.job, target, resets=self.resets))

    async def close_targets(self) -> None:
        """Let the targets go: what was committed is there, and nobody of ours writes."""
        for target in self.targets.values():
            await target.committer.close()

    @property
    def promise(self) -> Promise:
        """What the job promises about crashes."""
        return PROMISES[self.settings.guarantee]


@dataclass(slots=True)
class RunningRegion:
    """The actors of one attempt, in the order in which they start."""

    actors: list[Actor]
    sequencer: Sequencer
    coordinator: Coordinator | Publisher
    stages: list[Stage]
    readers: list[Reader]
    outputs: list[SinkOutput]


async def wire(region: RegionWorld, attempt: int, restored: Restored | None) -> RunningRegion:
    """Build the actors of one attempt from the last checkpoint."""
    position = position_of(region, restored) if region.promise.keeps else await _without_memory(region, attempt)
    sources = {plan.id: plan for plan in region.plan.sources}
    readers = [await _reader(region, sources[part.source], part) for part in position.partitions]
    builder = _Builder(region, position)
    for stage in region.plan.stages:
        await builder.add_stage(stage)
    sequencer = builder.sequencer(readers)
    keeping = Keeping(
        region=region.plan.id,
        attempt=attempt,
        last_epoch=last_epoch(attempt, restored),
        sequencer=sequencer,
        stages=builder.stages,
        outputs=builder.outputs,
        commit=region.commit,
        room=region.room,
        figures=region.figures,
        clock=region.world.ports.clock,
        interval=region.settings.checkpoint_every_ms / 1_000,
    )
    path = f"{region.job}/{region.plan.id}"
    coordinator: Coordinator | Publisher
    if region.promise.keeps:
        coordinator = Coordinator(f"{path}/coordinator", keeping, readers)
    else:
        coordinator = Publisher(f"{path}/publisher", keeping, builder.views)
    aside = [*_ticker(region, sequencer), *_tail(region, sequencer)]
    actors: list[Actor] = [*builder.writing, *reversed(builder.stages), sequencer, *readers, *aside, coordinator]
    return RunningRegion(actors, sequencer, coordinator, builder.stages, readers, builder.outputs)


def last_epoch(attempt: int, restored: Restored | None) -> int:
    """Return the last epoch number that may have been used: those of attempts that committed nothing are burnt."""
    committed, at = (0, 1) if restored is None else (restored.epoch, restored.attempt)
    return committed + _BURNT_EPOCHS * (attempt - at)


def position_of(region: RegionWorld, restored: Restored | None) -> Position:
    """Return where the region's input stands: at its checkpoint, or before everything."""
    disorders = {plan.id: plan.event_time.disorder_ms if plan.event_time else 0 for plan in region.plan.sources}
    if restored is None:
        wanted = [(plan.id, part) for plan in region.plan.sources for part in range(region.partitions[plan.id])]
        partitions = [PartitionPosition(source, part, disorders[source]) for source, part in wanted]
        return Position(partitions, since=region.since)
    position = msgspec.convert(restored.position, Position)
    for plan in region.plan.sources:
        read = sum(part.source == plan.id for part in position.partitions)
        if read != region.partitions[plan.id]:
            raise PipelineError(
                f"source {plan.node!r} has {region.partitions[plan.id]} partitions, its checkpoint has read "
                f"{read}; their number is fixed for the life of a job (each text file is one). "
                "Give it the partitions that it had, or give the pipeline another name and let it start anew."
            )
    for part in position.partitions:
        part.disorder = disorders[part.source]  # the plan's: it may have been changed since
    return position


async def _without_memory(region: RegionWorld, attempt: int) -> Position:
    """Return where a region begins that keeps nothing: the first time before everything, then at the sources' ends."""
    position = position_of(region, None)
    if attempt > 1:
        for plan in region.plan.sources:
            if plan.source.replay is Replay.BY_OFFSET:
                ends = await plan.source.ends(region.world)
                for part in position.partitions:
                    if part.source == plan.id:
                        part.offset = ends[part.partition] or 0
    return position


async def _reader(region: RegionWorld, plan: SourcePlan, part: PartitionPosition) -> Reader:
    ports = region.world.ports
    name = f"{region.job}/{plan.id}/reader[{part.partition}]"
    opened: SourceReader = await plan.source.reader(region.world, part.partition, part.offset)
    decoding = Operator()
    nodes = [*plan.reader_nodes, *([] if plan.timed is None else [plan.timed])]
    chain = [_operator(node) for node in nodes]
    for node, operator in zip([plan.node, *nodes], [decoding, *chain], strict=True):
        path = f"{region.job}/{node.id}"
        operator.open(OperatorContext(path, _no_state, _no_state, clock=ports.clock, random=ports.random))
        operator.on_error = node.on_error or OnError.FAIL
    reader = Reader(
        name,
        (part.source, part.partition),
        opened,
        start=part.offset,
        end=None if region.ends is None else region.ends[part.source, part.partition],
        decoding=decoding,
        chain=chain,
        batch_records=region.settings.batch_records,
        clock=ports.clock,
    )
    reader.acknowledges_at_once = not region.promise.keeps
    return reader


def _guide(region: RegionWorld, position: Position) -> Guide | None:
    """Return the guide of a region that follows: a journal that was given whole, or one that will be fed."""
    rows = region.settings.follow
    if rows is None and region.lead is None:
        return None
    guide = Guide(position)
    if rows is not None:
        guide.feed(rows.get(region.plan.id, ()))
        guide.closed = True
    return guide


def _tail(region: RegionWorld, sequencer: Sequencer) -> list[JournalTail]:
    """Return what feeds the guide of a region that follows another version."""
    if region.lead is None or sequencer.guide is None:
        return []
    ports, name = region.world.ports, f"{region.job}/{region.plan.id}/tail"
    return [JournalTail(name, region.lead, sequencer.guide, sequencer, threads=ports.threads, clock=ports.clock)]


def _ticker(region: RegionWorld, sequencer: Sequencer) -> list[Ticker]:
    """Return the ticker of a region in which time makes a difference."""
    plan = region.plan
    periods = [] if plan.clock_period is None else [plan.clock_period / 2_000]
    timed = [source.event_time for source in plan.sources if source.event_time is not None]
    periods += [(event_time.idle_after_ms or 1_000) / 4_000 for event_time in timed]
    if not periods or region.world.follows:
        return []
    name = f"{region.job}/{plan.id}/ticker"
    return [Ticker(name, sequencer, region.world.ports.clock, min(periods))]


class _Builder:
    """Builds stages and connects them, upstream first."""

    def __init__(self, region: RegionWorld, position: Position) -> None:
        self.stages: list[Stage] = []
        self.outputs: list[SinkOutput] = []
        self.writing: list[ImmediateOutput] = []
        """Those of the outputs that write at once: actors."""

        self.views: list[ViewBuffer] = []
        self._region = region
        self._position = position
        self._coverage = coverage(region.plan, position.since) if position.since > MIN_TIME else Coverage()
        self._parts: dict[StagePlan, list[Stage]] = {}
        self._operators: dict[tuple[Node, int], Operator] = {}
        self._outlets: dict[tuple[Node, int, str], list[Emit]] = {}
        self._sequencer_wake: list[Callable[[], None]] = []
        self._inlets: dict[str, list[Channel]] = {source.id: [] for source in region.plan.sources}
        """Channels that the sequencer fills, by source."""

        self._dead: dict[str, list[Channel]] = {source.id: [] for source in region.plan.sources}
        """Channels for what the readers left out, by source."""

    async def add_stage(self, plan: StagePlan) -> None:
        """Build all parts of a stage and connect them to what feeds them."""
        parts = [await self._stage(plan, part) for part in range(plan.parts)]
        self._parts[plan] = parts
        self.stages += parts
        for index, feed in enumerate(plan.feeds):
            # Dead letters are in the order of their records, whoever wrote them: as if all came by one feed.
            number = 0 if plan.nodes[0].kind == DEAD_LETTERS else index
            if feed.stage is None:
                self._feed_by_sequencer(feed, number, parts)
            else:
                self._feed_by_stage(feed, number, plan, parts)

    def _feed_by_sequencer(self, feed: Feed, number: int, parts: list[Stage]) -> None:
        sources, inlets = self._region.plan.fed_by(feed), self._inlets
        if feed.output != "out":  # what a reader left out: all its operators have one outlet together
            inlets = self._dead
            sources = [source for source in sources if not inlets[source.id]]
        if sources:
            channels = [self._channel("sequencer", self._wake_sequencer, stage, number) for stage in parts]
            for source in sources:
                inlets[source.id] += channels

    def _feed_by_stage(self, feed: Feed, number: int, plan: StagePlan, parts: list[Stage]) -> None:
        assert feed.stage is not None
        for index, sender in enumerate(self._parts[feed.stage]):
            receivers = parts if plan.shuffled or plan.parts == 1 else [parts[index]]
            channels = [self._channel(sender.name, sender.wake, receiver, number) for receiver in receivers]
            sender.outputs += channels
            outlet = Shuffle(sender, channels) if len(channels) > 1 else Forward(sender, channels[0])
            self._connect(feed.node, index, feed.output, outlet)

    def sequencer(self, readers: list[Reader]) -> Sequencer:
        """Build the sequencer that feeds the stages."""
        region, plan = self._region, self._region.plan
        sequencer = Sequencer(
            f"{region.job}/{plan.id}/sequencer",
            Sequencing(self._position, step=plan.step, clock_longest=plan.clock_longest),
            readers,
            self._inlets,
            self._dead,
            clock=region.world.ports.clock,
            event_times={source.id: source.event_time for source in plan.sources},
            clock_period=plan.clock_period,
            bound=region.settings.bound,
            batch_records=region.settings.batch_records,
            guide=_guide(region, self._position),
        )
        self._sequencer_wake.append(sequencer.wake)
        return sequencer

    def _wake_sequencer(self) -> None:
        for wake in self._sequencer_wake:
            wake()

    def _channel(self, sender: str, wake_sender: Callable[[], None], receiver: Stage, feed: int) -> Channel:
        name = f"{sender} > {receiver.name}"
        channel = Channel(name, wake_sender, receiver.wake, progress=self._position.sequence, feed=feed)
        receiver.inputs.append(channel)
        return channel

    async def _stage(self, plan: StagePlan, part: int) -> Stage:
        region = self._region
        chain = Chain([], [], list(plan.holds))
        name = f"{region.job}/{plan.id}" + (f"[{part}]" if plan.parts > 1 else "")
        for node, hold in zip(plan.nodes, plan.holds, strict=True):
            operator = await self._operator(node, chain)
            operator.open(self._context(plan, node, part, hold, chain.durables))
            operator.on_error = node.on_error or OnError.FAIL
            self._operators[node, part] = operator
            chain.operators.append(operator)
            take = counted_in(operator, operator.taking())
            if node in plan.entries:
                chain.entries.append(take)
            for source, output in node.inputs:
                if source in plan.nodes:
                    self._connect(source, part, output, take)
        return Stage(name, chain, clock=region.world.ports.clock, interval=region.settings.checkpoint_every_ms / 1_000)

    async def _operator(self, node: Node, chain: Chain) -> Operator:
        if node.view is not None:
            return self._view(node.view, chain)
        if node.sink is not None:
            return await self._sink(node, node.sink, chain)
        return _operator(node)

    def _view(self, name: str, chain: Chain) -> Operator:
        overlay = self._region.overlays.get(name)
        buffer = ViewBuffer(name) if overlay is None else ShownViewBuffer(name, overlay)
        chain.durables.append(buffer)
        self.views.append(buffer)
        self._region.figures.view_rows.setdefault(name, 0)
        return ViewOperator(buffer)

    async def _sink(self, node: Node, sink: Sink, chain: Chain) -> Operator:
        region = self._region
        found = region.targets[sink.id]
        writer = sink.writer(found.partitions)
        if region.promise.at_once:
            for partition in range(found.partitions):  # who begins asks this first: what has failed is opened anew
                await found.target.last_stamp(partition, region.job, sink.id)
            name = f"{region.job}/{node.id}/writing"
            seconds = region.settings.checkpoint_every_ms / 1_000
            clock = region.world.ports.clock
            output = ImmediateOutput(name, writer, found.target, found.committer, clock=clock, interval=seconds)
            chain.outlets.append(output)
            self.writing.append(output)
            self.outputs.append(output)
            return SinkOperator(output.write)
        row = OperatorRow(region.store, "rows", f"{node.id}:stamps")
        await expect_what_is_there(row, found.target, found.partitions, region.job, sink.id, region.incarnation)
        pending = PendingOutput(writer, row, job=region.job, sink=sink.id, incarnation=region.incarnation)
        chain.durables.append(pending)
        self.outputs.append(found.committer)
        return SinkOperator(pending.write)

    def _context(self, plan: StagePlan, node: Node, part: int, hold: int, durables: list[Durable]) -> OperatorContext:
        store, keeps = self._region.store, self._region.promise.keeps
        groups = groups_of_part(part, plan.parts)

        def keyed_state(name: str) -> KeyedState:
            database = f"state:{node.id}:{name}"
            if not keeps:
                return VolatileState(store, database, groups)
            state = KeyedState(store, database, groups)
            durables.append(state)
            return state

        def row(name: str) -> OperatorRow:
            opened = OperatorRow(store, "rows", f"{node.id}:{name}:{part}")
            if keeps:
                durables.append(opened)
            return opened

        horizon = self._position.horizon
        watermark = horizon if horizon in (MIN_TIME, MAX_TIME) else horizon - 1 - hold
        path = f"{self._region.job}/{node.id}" + (f"[{part}]" if plan.parts > 1 else "")
        ports = self._region.world.ports
        since = self._coverage.windows.get(node.id, MIN_TIME)
        return OperatorContext(
            path, keyed_state, row, watermark, ports.clock, ports.random, since, self._position.clock
        )

    def _connect(self, node: Node, part: int, output: str, emit: Emit) -> None:
        """Let *emit* take what *node* gives on *output*, beside whoever takes it already."""
        taking = self._outlets.setdefault((node, part, output), [])
        taking.append(emit)
        operator = self._operators[node, part]
        operator.connect(output, counted_out(operator, taking[0] if len(taking) == 1 else partial(_to_all, taking)))


def _to_all(emits: list[Emit], batch: Batch) -> None:
    for emit in emits:
        emit(batch)


def _operator(node: Node) -> Operator:
    assert node.build is not None, f"{node!r} has no operator"
    operator = node.build()
    assert operator.emit is nowhere, f"{node!r} was built twice into one operator"
    return operator


def _no_state(name: str) -> Any:
    raise AssertionError(f"an operator before event time asked for state {name!r}")
