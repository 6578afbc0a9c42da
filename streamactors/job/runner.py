"""The runner: a job is a pipeline with a name, running.

    async with streamactors.run(pipeline, "data") as job:
        ...                       # job.views, job.log, job.status(), await job.checkpoint()
                                  # leaving the block drains: one last checkpoint, then it ends

Start, in numbered steps that the code repeats; each may refuse, and then nothing has been changed by those behind it:

    1. the pipeline is planned, and its sources     PipelineError
       can give again what the guarantee needs
    2. the version's lock is taken                  Held, with the holder's pid
    3. ``before_start`` functions run
    4. the store is made, of a savepoint or from a  UsageError
       time, if asked for; opened; its identity checked
    5. the stored plan and guarantee are compared   PipelineError
       with the new; state is changed to fit
    6. sources and sinks are opened
    7. each region gets its supervisor

How it ends: *drain* reads nothing more, takes a last checkpoint, commits the sinks; event time does not move. *stop*
ends at once; the next start recovers. A region that gives up stops the others, whether somebody waits for the job or
not, and the job fails with all causes.

Two jobs may run in one loop. There is no signal handler here, and no thread outlives the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from streamactors.core.connectors import Guarantee, JobWatcher, Source, World
from streamactors.core.errors import JobFailed, PipelineError, UsageError
from streamactors.core.ports import Lock, Ports
from streamactors.core.times import Duration, duration_ms
from streamactors.durable.catalogue import FIRST, Catalogue, Versions
from streamactors.durable.log import Log
from streamactors.durable.realtime import RealThreads, real_ports
from streamactors.durable.sharing import close, open_to_write, reading
from streamactors.durable.store import Restored, Store
from streamactors.durable.views import Overlay, ViewReader
from streamactors.flow.sequencer import Bound
from streamactors.flow.sequencing import PartitionId
from streamactors.graph.pipeline import Pipeline
from streamactors.graph.plan import RegionPlan, plan

from .failures import FailureReports, OnFailure
from .folders import check_label, job_folder, lock_of_version, version_folder
from .following import Lead
from .following import refuse_sources as refuse_to_follow
from .from_time import Beginning, began_at, begin_at, note_coverage
from .guarantees import PROMISES, guarantee_of, refuse_sources, refuse_switch
from .region import Crew, RegionSupervisor, state_lane
from .room import Room
from .savepoints import Code, Savepoint, Sinks, Start, Taking, go_on, start_from
from .settings import Settings
from .states import State, job_state
from .status import JobStatus, region_status
from .succession import CATALOGUE_LANE, Succession
from .swapping import addresses_of, complete
from .watchdog import Watch, watch
from .wiring import RegionWorld, RunningRegion

CATCH_UP_POLL_SECONDS = 0.002
"""How often ``catch_up`` and ``checkpoint`` look whether what they wait for was read: finer than a checkpoint takes,
and only while somebody waits for it."""


class Job:
    """A running pipeline. Made by ``run``."""

    def __init__(
        self,
        pipeline: Pipeline,
        data_dir: Path,
        ports: Ports,
        settings: Settings,
        log: Log | None,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.name = pipeline.name
        self.log = log if log is not None else Log(data_dir, ports)
        """The log of the data folder: append to a topic, or read one."""

        self.views: ViewReader
        """The job's views: as of the last checkpoint, or as they are now where the guarantee shows changes at once."""

        self._pipeline = pipeline
        self._data_dir = data_dir
        self._catalogue = Catalogue(ports.disk, job_folder(data_dir, pipeline.name))
        self._folder: Path
        self._succession: Succession
        self._succeeding: asyncio.Task[None] | None = None
        self._ports = ports
        self._settings = settings
        follows = settings.follow is not None
        self._world = World(data_dir, ports, self.log, settings.bound is not Bound.LIVE or follows, follows)
        self._own_log = log is None
        self._store: Store | None = None
        self._lock: Lock | None = None
        self._served: Path | None = None  # folder of the version that is served, when that is another one
        self._taking = Taking(ports, pipeline.name, data_dir)
        self._trial: str | None = None  # the label that its targets bear, because it began as a trial
        self._logger = logging.getLogger(f"streamactors.{pipeline.name}")
        self._opened: list[Source] = []
        self._crew = Crew(FailureReports(pipeline.name, on_failure))
        self._regions = self._crew.regions
        self._watch: Watch | None = None
        self._tasks: dict[asyncio.Task[None], RegionSupervisor] = {}
        self._overlays: dict[str, Overlay] = {}

    def __repr__(self) -> str:
        return f"Job({self.name!r}, {self.state})"

    @property
    def state(self) -> State:
        """What its regions' states make of it: see job/states.py. It equals its name, such as ``"running"``."""
        return job_state(region.state for region in self._regions)

    @property
    def following(self) -> str | None:
        """The version whose journal this one follows; None: it is served, and decides."""
        return self._succession.following

    async def wait(self) -> None:
        """Return when the run has ended; raise JobFailed when a region gave up."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        tasks = [task for task in self._tasks if task.done() and not task.cancelled()]
        errors = [error for task in tasks if (error := task.exception()) is not None]
        failures = [error for error in errors if isinstance(error, Exception)]
        if len(failures) < len(errors):  # what is no Exception is nobody's to wrap: it goes on as it is
            raise next(error for error in errors if not isinstance(error, Exception))
        if failures:
            names = ", ".join(self._tasks[task].id for task in tasks if task.exception() is not None)
            raise JobFailed(f"job {self.name} gave up on region {names}: {failures[0]}", failures)

    async def drain(self) -> None:
        """Read nothing more, take a last checkpoint, commit the sinks, end. Event time does not move."""
        for region in self._regions:
            region.drain()
        await self.wait()

    async def stop(self) -> None:
        """End at once, without a last checkpoint; the next start goes on from the one before."""
        for region in self._regions:
            region.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def checkpoint(self) -> dict[str, int]:
        """Take a checkpoint now: what was read before the call is durable, and visible, when it returns.

        At-most-once has no checkpoints: what was read is handled, written, and visible to other processes as well.

        A region that has ended took its last one then. Refused when all have. When a region restarts, its next attempt
        takes the checkpoint; when one gives up, this raises JobFailed.
        """
        self._refuse_if_over()
        going = [region for region in self._regions if not self._is_over(region)]
        return {region.id: await self._checkpoint(region, read_so_far) for region in going}

    async def catch_up(self) -> None:
        """Return when all that is durable in the sources now is counted, and visible: read your own writes.

        Cost: a checkpoint. A file is read up to the length that it had when the job started.
        """
        for region in self._regions:
            await self._checkpoint(region, lambda running: {reader.partition: reader.end for reader in running.readers})
        self._refuse_if_over()

    def _is_over(self, region: RegionSupervisor) -> bool:
        return next(task for task, other in self._tasks.items() if other is region).done()

    def _refuse_if_over(self) -> None:
        self._raise_if_failed()
        if all(task.done() for task in self._tasks):
            raise UsageError(f"job {self.name} has {self.state}: nothing is read or checkpointed any more.")

    async def _checkpoint(
        self, region: RegionSupervisor, wanted: Callable[[RunningRegion], dict[PartitionId, int]]
    ) -> int:
        """Return the epoch of a checkpoint that holds all below the offsets that *wanted* tells of a running region.

        It must be one of an attempt that has read so far: an attempt that begins meanwhile has gone back. One that
        begins without memory is asked anew, because what was read before is gone.
        """
        asked: RunningRegion | None = None
        ends: dict[PartitionId, int] = {}
        while not self._is_over(region):
            running = region.running
            if running is not None:
                if asked is None or (running is not asked and not region.world.promise.keeps):
                    asked, ends = running, wanted(running)
                if region.has_read(ends):
                    epoch = await running.coordinator.request()
                    if epoch is not None:
                        return epoch
            await self._ports.clock.sleep(CATCH_UP_POLL_SECONDS)
        self._refuse_if_over()
        return 0 if region.last is None else region.last.checkpoint.epoch

    async def savepoint(self, path: Path | str | None = None) -> Savepoint:
        """
        Take a checkpoint, and write it, the stream going on meanwhile, to a file from which a job can start.

        Args:
            path: Where; nothing may be there. None: in the data folder's ``savepoints``.

        Raises:
            UsageError: there is a file, or the guarantee keeps no state.
        """
        if not PROMISES[self._settings.guarantee].keeps:
            raise UsageError(f"job {self.name}: at-most-once keeps no state, so there is nothing to save.")
        assert self._store is not None, "a job that runs has its store open"
        await self.checkpoint()
        return await self._taking.take(self._store, path)

    def status(self) -> JobStatus:
        """Return what can be seen of the job now: state, and for each region its operators and last checkpoint."""
        regions = [region_status(region) for region in self._regions]
        blocked = 0 if self._watch is None else self._watch.incidents()
        return JobStatus(self.name, self.state.value, regions, blocked, self.version)

    # Start and end; called by ``run``. --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the numbered steps of the module's header."""
        plans = plan(self._pipeline)  # 1
        refuse_sources(plans, self._settings.guarantee)
        code = Code(self._pipeline, plans, self._settings.fresh, self._settings.dropped)
        threads, lane = self._ports.threads, state_lane(self.name)
        self._take_part(await threads.run(CATALOGUE_LANE, self._versions))
        targets = addresses_of(plans, self._succession.following)
        await threads.run(lane, self._take_lock)  # 2
        self._succession.begin(await threads.run(CATALOGUE_LANE, self._versions))  # nobody changes it from here on
        for prepare in self._pipeline.preparations:  # 3
            await prepare(self.log)
        await threads.run(lane, self._make_state, code)
        store = await threads.run(lane, self._open_store)  # 4
        if PROMISES[self._settings.guarantee].at_once:
            views = [node.view for region in plans for stage in region.stages for node in stage.nodes]
            self._overlays = {view: Overlay() for view in views if view is not None}
        self.views = ViewReader(store, self._overlays)
        identity = await threads.run(
            lane, lambda: store.identity(self.name, version=self.version, new_id=self._ports.new_id())
        )
        await threads.run(lane, self._check_plan, store, code)  # 5
        self._trial = self.version if (store.origin or {}).get("trial") else None
        if self._settings.sync:
            await threads.run(lane, store.make_reserve)
        for region in plans:  # 6
            await self._region(region, store, identity.incarnation)
        await self._succession.register([] if self._trial else targets, self._pipeline.file, began_at(store))
        for supervisor, region in zip(self._regions, plans, strict=True):  # 7
            task = asyncio.create_task(supervisor.run(), name=f"{self.name}/{supervisor.id}")
            task.add_done_callback(partial(self._on_sources_over, [source.source for source in region.sources]))
            task.add_done_callback(self._on_region_over)
            self._tasks[task] = supervisor
        self._succeeding = asyncio.create_task(self._succession.run(self._regions), name=f"{self.name}/succession")
        # (In a simulation time stands while code runs, and there is no other thread.)
        if self._settings.watchdog_ms and isinstance(threads, RealThreads):
            self._watch = watch(self._settings.watchdog_ms, self._look)

    def _on_sources_over(self, sources: Sequence[Source], _: asyncio.Task[None]) -> None:
        self._tell(sources)

    def _on_region_over(self, task: asyncio.Task[None]) -> None:
        """Half a pipeline is not an answer: a region that gave up stops the others."""
        if not task.cancelled() and task.exception() is not None:
            for region in self._regions:
                region.stop()

    def _look(self) -> None:
        """About once a second, while the watchdog looks."""
        for region in self._regions:
            region.look()

    async def close(self) -> None:
        """Release everything; harmless at any point of a start that failed."""
        if self._succeeding is not None:
            self._succeeding.cancel()
            await asyncio.wait([self._succeeding])
        await self.stop()
        await self._crew.reports.close()
        if self._watch is not None:
            self._watch.end()
        self._tell(list(self._opened))
        for region in self._regions:
            await region.world.close_targets()
        await self._taking.close()
        if self._own_log:
            await self.log.close()
        await self._ports.threads.run(state_lane(self.name), self._release)

    # In the lane. What these take is noted there: a start that is cancelled meanwhile would not hear of it, and then
    # ``close``, which comes behind them in the lane, could not give it back.

    def _take_lock(self) -> None:
        self._lock = lock_of_version(self._ports.disk, self._folder)

    def _open_store(self) -> Store:
        self._store = open_to_write(self._folder, sync=self._settings.sync, quota_bytes=self._settings.quota_bytes)
        return self._store

    def _make_state(self, code: Code) -> None:
        settings, path, folder = self._settings, self._settings.from_savepoint, self._folder
        if settings.from_time is None and path is None:
            return
        served = None if self._served is None else reading(self._served)
        if settings.from_time is not None:
            beginning = Beginning(self.name, self.version, folder, settings.from_time, self._ports.new_id())
            begin_at(beginning, code.plans, served, sync=settings.sync)
        if path is not None:
            new_id, sinks = self._ports.new_id(), Sinks(settings.sinks)
            start = Start(path, sinks, folder, self.name, self.version, new_id, code, settings.guarantee)
            start_from(start, self._ports.disk, served, sync=settings.sync)
            self._logger.info("version %s starts from %s, sinks %s", self.version, path, settings.sinks)

    def _release(self) -> None:
        if self._store is not None:
            close(self._store)
        if self._lock is not None:
            self._lock.release()

    async def _region(self, region: RegionPlan, store: Store, incarnation: str) -> None:
        ends: dict[str, Sequence[int | None]] = {}
        for source in region.sources:
            ends[source.id] = await source.source.ends(self._world)
            self._opened.append(source.source)
        bounded, origin = self._world.bounded, store.origin or {}
        threads, lane = self._ports.threads, state_lane(self.name)
        room = Room(
            self._ports.clock, lambda: threads.run(lane, store.give_up_reserve), name=f"{self.name}.{region.id}"
        )
        world = RegionWorld(
            job=self.name,
            incarnation=incarnation,
            plan=region,
            world=self._world,
            store=store,
            commit=lambda checkpoint: room.until_done(lambda: threads.run(lane, store.commit, checkpoint)),
            room=room,
            settings=self._settings,
            partitions={source: len(of) for source, of in ends.items()},
            ends={(source, part): end for source, of in ends.items() for part, end in enumerate(of)}
            if bounded
            else None,
            targets={},
            overlays=self._overlays,
            resets=origin.get("sinks") == Sinks.RESET.value,
            trial=self._trial,
        )
        part = self._succession.part
        world.follow(await self._lead(region), None if part is None else part.shadow)
        supervisor = RegionSupervisor(world, self._crew)  # from here on ``close`` closes the targets
        if part is None:
            supervisor.begin_at_rest()
        else:
            await world.open_targets()

    def _versions(self) -> Versions | None:
        """Return what the catalogue says, when what is left of an exchange of targets is done."""
        disk, now_ms = self._ports.disk, self._ports.clock.now_ms()
        return complete(self._catalogue, disk, self._data_dir, self.name, now_ms) or self._catalogue.read()

    def _take_part(self, versions: Versions | None) -> None:
        """Find out which version this is, and whether it decides or follows."""
        served = FIRST if versions is None else versions.serving
        self.version = served if self._settings.version is None else self._settings.version
        check_label(self.version)
        self._folder = version_folder(self._data_dir, self.name, self.version)
        if versions is not None and versions.serving != self.version:
            self._served = version_folder(self._data_dir, self.name, versions.serving)
        self._succession = Succession(
            self.version,
            job=self.name,
            data_dir=self._data_dir,
            ports=self._ports,
            restore=self._restore,
            to_end=self._settings.bound is not Bound.LIVE,
        )
        self._succession.begin(versions)
        label = None if versions is None or versions.is_first(self.version) else self.version
        self._world = replace(self._world, label=label)
        following = self._succession.following
        if following is not None and not PROMISES[self._settings.guarantee].keeps:
            raise PipelineError(
                f"job {self.name}: version {self.version} follows the journal of {following}, and "
                f"{self._settings.guarantee.value} keeps no place in it. Run it as exactly-once or at-least-once."
            )

    async def _lead(self, region: RegionPlan) -> Lead | None:
        """Return what *region* follows, or refuse a pipeline that can't follow it."""
        lead = self._succession.lead(region.id)
        if lead is not None:
            sources = {source.id for source in region.sources}
            await self._ports.threads.run(state_lane(self.name), refuse_to_follow, lead, sources, self.name)
        return lead

    def _restore(self, region: str) -> Restored | None:
        assert self._store is not None, "a checkpoint is asked for before the store was opened"
        return self._store.restore(region)

    def _tell(self, sources: Sequence[Source]) -> None:
        """Tell those of *sources* that must hear it, once, that this job reads no more from them."""
        for source in sources:
            if source in self._opened:
                self._opened.remove(source)
                if isinstance(source, JobWatcher):
                    source.job_ended()

    def _check_plan(self, store: Store, code: Code) -> None:
        """Let the code go on with the stored checkpoint, or refuse it."""
        refuse_switch(store, self._settings.guarantee, self._folder)
        fit = go_on(store, code, self._settings.guarantee)
        note_coverage(store, code.plans)
        if fit is not None and fit.changed:
            self._logger.info("goes on with other code than its checkpoint was made by\n%s", fit.table())


def read_so_far(running: RunningRegion) -> dict[PartitionId, int]:
    """Return the offset behind what was read of each partition."""
    return {key: partition.offset for key, partition in running.sequencer.sequencing.partitions.items()}


def _changed(settings: Settings, checkpoint_every: Duration | None, guarantee: Guarantee | str | None) -> Settings:
    """Return *settings* with what ``run`` was given beside them."""
    if checkpoint_every is not None:
        settings = replace(settings, checkpoint_every_ms=duration_ms(checkpoint_every))
    return replace(settings, guarantee=guarantee_of(guarantee or settings.guarantee))


@asynccontextmanager
async def run(
    pipeline: Pipeline,
    data_dir: Path | str,
    *,
    checkpoint_every: Duration | None = None,
    guarantee: Guarantee | str | None = None,
    settings: Settings | None = None,
    on_failure: OnFailure | None = None,
    log: Log | None = None,
    ports: Ports | None = None,
) -> AsyncIterator[Job]:
    """
    Run *pipeline* in this event loop while the block runs; leaving the block drains it.

    Args:
        pipeline:
            What to run. Its name is the job's: state is found again by it.

        data_dir:
            Folder of log and state; made when it is not there. One process at a time runs a job of this name in it.

        checkpoint_every:
            Time between checkpoints: how far views and sinks follow behind. Default 200 ms.

        guarantee:
            What a crash may do to the result: ``exactly-once`` (the default), ``at-least-once`` or ``at-most-once``.

        settings:
            Everything else.

        on_failure:
            Called with a Failure for each failure of a region, plain or async. Whatever it does, the job goes on.

        log:
            A Log of this folder that is open already, to share it.

        ports:
            The outside world; a simulation brings its own.

    Raises:
        PipelineError: the pipeline, or a stored checkpoint with it, makes no sense; nothing was changed.

        Held: another process runs this job; its pid is in the message.

        JobFailed: on leaving the block, when a region used up its restarts.
    """
    settings = _changed(settings or Settings(), checkpoint_every, guarantee)
    own_ports = ports is None
    ports = ports if ports is not None else real_ports()
    job = Job(pipeline, Path(data_dir), ports, settings, log, on_failure)
    try:
        await job.start()
        yield job
        await job.drain()
    finally:
        await job.close()
        if own_ports:
            await ports.threads.close()
