"""A region's supervisor: attempts, each from the last checkpoint, until the run ends or restarts are used up.

One attempt, in numbered steps that the code repeats:

    1. the attempt is raised, durably: what still bears the old one can't be committed any more
    2. the last checkpoint is read: position, and with it all state
    3. pending output that a checkpoint holds and a target does not show is committed (E2); also when there is nothing
       more to run, because the input was complete: what the last epoch of all wrote may be among it
    4. actors are wired and started, from the end of the stream to its source
    5. one of them fails: all are stopped, newest first. Then it is decided what follows, and who wants to hear it is
       told. Again from 1 after a backoff with jitter, but never before the writer's thread and the targets have
       answered for all that they were handed, however long that takes: it would land after the rewind
    6. all of them end: the run is over, or the region rests: it is to go on with another part (job/succession.py)

More failures than the policy allows, in its window or since the last checkpoint: the failure goes up, with what failed
last and why. (The second count is for a record that fails every time and takes longer to reach than the window.)

With the policy's scope "all", a failure takes the other regions back as well: they stop where they stand, and all start
again when the last of them has stopped and the backoff is over. They have one count of failures together.

A stop that meets a failure wins: what fails while it is being stopped is told and logged, and starts nothing. But an
error that no attempt could mend goes up all the same, because the next start would meet it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

import msgspec

from streamactors.core.errors import Damaged, Held, PipelineError, SinkConflict, UsageError
from streamactors.core.ports import Clock
from streamactors.engine.actor import STOP_GRACE_SECONDS, ActorGroup
from streamactors.engine.restarts import RestartIntensity, RestartPolicy
from streamactors.flow.sequencing import PartitionId

from .coordinator import Coordinator
from .facts import calling
from .failures import Failure, FailureReports, failure_of
from .following import Lead
from .room import is_full
from .states import Life, State
from .status import RegionStatus, operators_of, region_status
from .watchdog import awaited_by
from .wiring import RegionWorld, RunningRegion, wire

_FINAL = (PipelineError, UsageError, Held, Damaged, SinkConflict, AssertionError)
"""Errors that another attempt can't mend: the pipeline is wrong, what was durable is not there any more, or we are."""


class Gathering:
    """A restart that several regions begin together: when all have stopped, and not before a time."""

    def __init__(self, because: str, regions: Iterable[str], not_before: float) -> None:
        self.because = because
        """The region that failed."""

        self.missing = set(regions)
        """Regions that have not stopped yet."""

        self.not_before = not_before
        """Monotonic seconds."""

        self._complete = asyncio.Event()

    def arrive(self, region: str) -> None:
        """Note that *region* has stopped, or is over."""
        self.missing.discard(region)
        if not self.missing:
            self._complete.set()

    async def wait(self, clock: Clock) -> None:
        """Return when it is time to start."""
        await self._complete.wait()
        await clock.sleep(max(0.0, self.not_before - clock.monotonic()))


@dataclass
class Crew:
    """What the supervisors of a job have in common."""

    reports: FailureReports
    regions: list[RegionSupervisor] = field(default_factory=list)
    shared: RestartIntensity | None = None
    """The one count of failures, where all regions restart together."""

    def intensity(self, policy: RestartPolicy, random: Random) -> RestartIntensity:
        """Return what counts a region's failures."""
        if policy.scope != "all":
            return RestartIntensity(policy, random)
        self.shared = self.shared or RestartIntensity(policy, random)
        return self.shared

    def take_back(self, failed: RegionSupervisor, delay: float, now: float) -> None:
        """Let all regions that are not over go back to their checkpoints, because *failed* has to."""
        going = [region for region in self.regions if not region.state.is_final and not region.stopping]
        gathering = Gathering(failed.id, [region.id for region in going], now + delay)
        for region in going:
            region.join(gathering)


class RegionSupervisor:
    """Run one region. See the module's header."""

    def __init__(self, region: RegionWorld, crew: Crew) -> None:
        clock = region.world.ports.clock
        self.life = Life(region.plan.id, clock.now_ms())
        self.restarts = 0
        self.attempt = 0
        self.running: RunningRegion | None = None
        self.stopping = False
        self.ending: Coordinator | None = None
        """Of the attempt before, as long as what it handed to a thread or a target may not be answered."""

        self.restart_at: float | None = None
        """Monotonic time of the next attempt, while it is waited for."""

        self.gathering: Gathering | None = None
        """The common restart that this one waits for."""

        self.last: RegionStatus | None = None
        """What was seen of the last attempt when it ended."""

        self.world = region
        self._crew = crew
        self.clock = clock
        self._intensity = crew.intensity(region.settings.restarts, region.world.ports.random)
        self._log = logging.getLogger(f"streamactors.{region.job}.{region.plan.id}")
        self._draining = False
        self._stuck = 0  # failures since the checkpoint _stuck_at
        self._stuck_at = -1
        self._group: ActorGroup | None = None
        self._failed: str | None = None  # who failed in the last attempt
        self._task: asyncio.Task[None] | None = None
        self._seen = (0, 0, clock.monotonic())  # attempt, records, when they were first seen
        self._awaited: dict[str, object] = {}  # by operator: the row whose call has been told as one that hangs
        self._between = False  # two attempts: nobody is there to be asked to stop
        self._resting = False
        self._at_rest = asyncio.Event()
        self._woken = asyncio.Event()  # it rests no more
        self._open = True  # the targets
        region.room.on_change = self._on_room
        crew.regions.append(self)

    @property
    def id(self) -> str:
        """The region's id."""
        return self.world.plan.id

    @property
    def state(self) -> State:
        """See job/states.py."""
        return self.life.state

    async def run(self) -> None:
        """Run to the end; raise what used up the restarts."""
        self._task = asyncio.current_task()
        try:
            if self._resting:
                await self._until_woken()
            while not self.state.is_final and not self.stopping:
                await self._attempt_and_decide()
        except asyncio.CancelledError:
            if not self.stopping:
                raise
        except BaseException as error:
            if isinstance(error, Exception):
                self._log.error(
                    "gives up after %d restarts, and the job with it: %s. Mend what it names and start again: what the "
                    "last checkpoint, %d, holds is safe",
                    self.restarts,
                    str(error).removesuffix("."),
                    0 if self.last is None else self.last.checkpoint.epoch,
                )
            self._to(State.FAILED, error)
            raise
        finally:
            if not self.state.is_final:
                self._to(State.ENDED if self.stopping else State.FAILED)
            self._at_rest.set()
            if self.gathering is not None:
                self.gathering.arrive(self.id)
            await self._abandon()

    async def _attempt_and_decide(self) -> None:
        try:
            await self._attempt()
        except Exception as error:  # noqa: BLE001 - it is told, and raised again when it is final
            delay = self._decide(error)
            if delay is None:
                return
            self._to(State.RESTARTING, error)
            self._log.warning("failed, and starts again from its checkpoint in %.2f s: %s", delay, error)
            now = self.clock.monotonic()
            self.restart_at = now + delay
            if self.world.settings.restarts.scope == "all" and self.gathering is None:
                self._crew.take_back(self, delay, now)
        else:
            if self.state.is_final or self.stopping:
                return
            if self.gathering is None:
                if self._resting and not self._draining:
                    await self._until_woken()
                else:
                    self._log.info("ended at checkpoint %d", 0 if self.last is None else self.last.checkpoint.epoch)
                    self._to(State.ENDED)
                return
        self.restarts += 1
        await self._until_time()

    def _decide(self, error: Exception) -> float | None:
        """Return the seconds to wait for the next attempt; None when it was being stopped; raise when it gives up."""
        final = isinstance(error, _FINAL) or (self._draining and is_full(error))
        if not final and (self.stopping or self.gathering is not None):
            self._log.warning("failed while it was being stopped, which starts nothing: %s", error)
            self._tell(msgspec.structs.replace(self._failure(error, None), decision="stops"))
            return None if self.stopping else 0.0
        delay = None if final else self._intensity.on_failure(self.clock.monotonic())
        if delay is not None and self._makes_no_progress():
            delay = None
        self._tell(self._failure(error, delay))
        if delay is None:
            raise error
        return delay

    def _failure(self, error: Exception, delay: float | None) -> Failure:
        return failure_of(
            error,
            job=self.world.job,
            region=self.id,
            actor=self._failed,
            attempt=self.attempt,
            delay=delay,
            now_ms=self.clock.now_ms(),
        )

    def _tell(self, failure: Failure) -> None:
        self._crew.reports.tell(failure)

    def _makes_no_progress(self) -> bool:
        """Whether as many attempts as there may be restarts have ended at the same checkpoint."""
        restored = self.world.store.restore(self.id)
        epoch = 0 if restored is None else restored.epoch
        self._stuck = self._stuck + 1 if epoch == self._stuck_at else 1
        self._stuck_at = epoch
        return self._stuck > self.world.settings.restarts.limit

    async def _until_time(self) -> None:
        """Return when the next attempt may begin: what was handed over is answered, and the wait is over."""
        self._between = True
        try:
            if self.ending is not None:
                self._say_who_has_not_answered(self.ending)
                await self.ending.answered()
                self.ending = None
            if self.gathering is None and self.restart_at is not None:
                await self.clock.sleep(max(0.0, self.restart_at - self.clock.monotonic()))
            while (gathering := self.gathering) is not None:  # another one may come while we wait
                self.restart_at = gathering.not_before
                gathering.arrive(self.id)
                await gathering.wait(self.clock)
                self.gathering = None if self.gathering is gathering else self.gathering
        finally:
            self._between = False
            self.restart_at = None

    def _say_who_has_not_answered(self, ending: Coordinator) -> None:
        handed = ending.handed_over
        if ending.commits and handed is not None:
            self._log.warning(
                "starts again when %s has answered for epoch %d: not before, or records might count twice",
                handed.to,
                handed.epoch,
            )

    async def rest(self) -> None:
        """Take a last checkpoint, end the attempt, let the targets go: ``go_on`` begins the next. Or all is over."""
        self._resting = True
        if self.running is not None:
            self.running.sequencer.drain()
        await self._at_rest.wait()
        if self._open:
            self._open = False
            await self.world.close_targets()

    def begin_at_rest(self) -> None:
        """Wait for ``go_on`` before the first attempt; the targets are not open yet."""
        self._resting, self._open = True, False

    async def go_on(self, lead: Lead | None, shadow: str | None) -> None:
        """Begin again, following *lead*, or deciding; with the targets that *shadow* names."""
        self.world.follow(lead, shadow)
        await self.world.open_targets()
        self._open = True
        self._resting = False
        if not self.state.is_final:
            self._at_rest.clear()
        self._woken.set()

    async def _until_woken(self) -> None:
        if self.ending is not None:  # who rests has nothing with a thread or a target any more
            await self.ending.answered()
            self.ending = None
        self._to(State.RESTARTING)
        self._between = True
        self._woken.clear()
        self._at_rest.set()
        try:
            await self._woken.wait()
        finally:
            self._between = False
        if self._draining:
            self._to(State.DRAINING)
            self._to(State.ENDED)

    async def _abandon(self) -> None:
        """Nothing follows: cancel a commit that the stop's grace was too short for; the next start recovers."""
        if self.ending is not None:
            await self.ending.abandon()
            self.ending = None

    def has_read(self, ends: Mapping[PartitionId, int]) -> bool:
        """Return whether the running attempt has numbered everything up to *ends*."""
        if self.running is None:
            return False
        partitions = self.running.sequencer.sequencing.partitions
        return all(partitions[key].offset >= end for key, end in ends.items())

    def stood(self) -> float:
        """Return for how many seconds no record has been numbered, as far as somebody looked."""
        now, records = self.clock.monotonic(), 0 if self.running is None else self.running.sequencer.records
        if (self.attempt, records) != self._seen[:2]:
            self._seen = (self.attempt, records, now)
        return now - self._seen[2]

    def look(self) -> None:
        """Look, about once a second, whether records come, and whether a call does not return."""
        self.stood()
        bound = self.world.settings.await_ms / 1_000
        calls = calling(self.running) if self.running is not None and bound else ()
        seen, self._awaited = self._awaited, {}
        for operator in calls:
            row, seconds = operator.in_flight.oldest_row, operator.oldest_seconds
            known = seen.get(operator.name)
            told = known is not None and known == row
            if seconds >= bound and not told:
                self.world.figures.hung_calls += 1
                self._log.warning(
                    "operator %s has awaited %s for %.0f s. No checkpoint is complete before it returns. Give the call "
                    "a timeout; await_ms sets the bound, 0 none.",
                    operator.name, awaited_by(operator), seconds,
                )  # fmt: skip
            if seconds >= bound:
                self._awaited[operator.name] = row

    def drain(self) -> None:
        """Read nothing more, take a last checkpoint, end."""
        self._draining = True
        self._woken.set()
        self.world.room.end()
        if self.running is not None:
            if self.state in (State.RUNNING, State.WAITING):
                self._to(State.DRAINING)
            self.running.sequencer.drain()

    def stop(self) -> None:
        """Stop where it stands; recovery does the rest."""
        if self.stopping or self.state.is_final:
            return
        self.stopping = True
        self._to(State.STOPPING)
        self.world.room.close()
        if self._group is not None:
            self._group.stop()
        elif self._task is not None and self._between:
            self._task.cancel()
        elif self._task is not None:  # an attempt is being built, and will see it; unless foreign code hangs
            asyncio.get_running_loop().call_later(STOP_GRACE_SECONDS, self._task.cancel)

    def join(self, gathering: Gathering) -> None:
        """Go back to the checkpoint, and start again with the others."""
        self.gathering = gathering
        if self.id != gathering.because:
            self._log.warning("goes back to its checkpoint, as region %s has to", gathering.because)
            self._to(State.RESTARTING)
        if self._group is not None:
            self._group.stop()

    def _on_room(self) -> None:
        if self.world.room.waiting is not None and self.state is not State.STOPPING:
            self._to(State.WAITING)
        elif self.state is State.WAITING and self.running is not None:
            self._to(self._under_way)

    @property
    def _under_way(self) -> State:
        return State.DRAINING if self._draining else State.RUNNING

    def _to(self, state: State, error: BaseException | None = None) -> None:
        self.life.to(state, self.clock.now_ms(), error)

    async def _attempt(self) -> None:
        region = self.world
        threads, lane = region.world.ports.threads, state_lane(region.job)
        self._failed = None
        region.room.begin()
        self.attempt = await region.room.until_done(
            lambda: threads.run(lane, region.store.begin_attempt, region.plan.id)
        )  # 1
        restored = region.store.restore(region.plan.id)  # 2
        for target in region.targets.values():  # 3
            with region.store.snapshot() as snapshot:
                rows = snapshot.scan(target.committer.database)
            await target.committer.recover(rows)
        if restored is not None and restored.position["finished"]:
            if not self.stopping:
                self._log.info("has nothing to do: an earlier run came to the end of its input, which was complete")
                self._to(State.FINISHED)
            return
        running = await wire(region, self.attempt, restored)  # 4
        self.running, self._group = running, ActorGroup(running.actors)
        if self._draining or self._resting:
            running.sequencer.drain()
        if self.stopping or self.gathering is not None:
            self._group.stop()  # they start, see it, and release what they hold
        else:
            self._to(self._under_way)
            self._log.info("attempt %d runs, from checkpoint %d", self.attempt, running.coordinator.report.epoch)
        try:
            await self._group.run()  # 5, 6
        finally:
            self.last = region_status(self)
            region.figures.add_attempt(*operators_of(running))
            self._note_end(running, self._group)
            self.running = self._group = None

    def _note_end(self, running: RunningRegion, group: ActorGroup) -> None:
        """Remember who failed, and who may still have something of ours."""
        self._failed, coordinator = group.failed, running.coordinator
        if isinstance(coordinator, Coordinator):  # another one awaits its commits itself, and the lane keeps the order
            self.ending = coordinator
            if group.failed == coordinator.name and coordinator.handed_over is not None:
                self._failed = coordinator.handed_over.to


def state_lane(job: str) -> str:
    """Return the lane of the thread that writes a job's state."""
    return f"state/{job}"
