"""A region's supervisor: attempts, each from the last checkpoint, until the run ends or restarts are used up.

One attempt, in numbered steps that the code repeats:

    1. the attempt is raised, durably: what still bears the old one can't be committed any more
    2. the last checkpoint is read: position, and with it all state
    3. pending output that a checkpoint holds and a target does not show is committed (E2); also when there is nothing
       more to run, because the input was complete: what the last epoch of all wrote may be among it
    4. actors are wired and started, from the end of the stream to its source
    5. one of them fails: all are stopped, newest first; commits that are on their way are waited for (the
       coordinator's last act); after a backoff with jitter, again from 1
    6. all of them end: the run is over

More failures than the policy allows, in its window or since the last checkpoint: the failure goes up, with what failed
last and why. (The second count is for a record that fails every time and takes longer to reach than the window.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from streamactors.core.errors import Damaged, Held, PipelineError, SinkConflict, UsageError
from streamactors.engine.actor import ActorGroup
from streamactors.engine.restarts import RestartIntensity
from streamactors.flow.sequencing import PartitionId

from .status import RegionStatus, region_status
from .wiring import RegionWorld, RunningRegion, position_of, wire

_FINAL = (PipelineError, UsageError, Held, Damaged, SinkConflict, AssertionError)
"""Errors that another attempt can't mend: the pipeline is wrong, what was durable is not there any more, or we are."""


class RegionSupervisor:
    """Run one region. See the module's header."""

    def __init__(self, region: RegionWorld) -> None:
        self.restarts = 0
        self.attempt = 0
        self.running: RunningRegion | None = None
        self.finished = False
        """Whether the region's input is complete: it has been run with ``finish``."""

        self.ended = False
        """Whether the run has come to its end."""

        self.last: RegionStatus | None = None
        """What was seen of the last attempt when it ended."""

        self.on_running: Callable[[], None] = lambda: None
        self._region = region
        self._intensity = RestartIntensity(region.settings.restarts, region.world.ports.random)
        self._log = logging.getLogger(f"streamactors.{region.job}.{region.plan.id}")
        self._draining = False
        self._stopping = False
        self._stuck = 0  # failures since the checkpoint _stuck_at
        self._stuck_at = -1
        self._group: ActorGroup | None = None

    @property
    def id(self) -> str:
        """The region's id."""
        return self._region.plan.id

    async def run(self) -> None:
        """Run to the end; raise what used up the restarts."""
        clock = self._region.world.ports.clock
        while not self.finished:
            try:
                await self._attempt()
            except _FINAL:
                raise
            except Exception as error:
                if self._stopping:  # it goes down with what it was asked to give up anyway
                    self._log.warning("region %s failed while it was stopped: %s", self.id, error)
                    return
                delay = self._intensity.on_failure(clock.monotonic())
                if delay is None or self._makes_no_progress():
                    raise
                self.restarts += 1
                self._log.warning("region %s failed and starts again in %.2f s: %s", self.id, delay, error)
                await clock.sleep(delay)
            else:
                self.ended = True
                return

    def _makes_no_progress(self) -> bool:
        """Whether as many attempts as there may be restarts have ended at the same checkpoint."""
        restored = self._region.store.restore(self.id)
        epoch = 0 if restored is None else restored.epoch
        self._stuck = self._stuck + 1 if epoch == self._stuck_at else 1
        self._stuck_at = epoch
        return self._stuck > self._region.settings.restarts.restarts_max

    def has_read(self, ends: Mapping[PartitionId, int]) -> bool:
        """Return whether the running attempt has numbered everything up to *ends*."""
        if self.running is None:
            return False
        partitions = self.running.sequencer.sequencing.partitions
        return all(partitions[key].offset >= end for key, end in ends.items())

    def drain(self) -> None:
        """Read nothing more, take a last checkpoint, end."""
        self._draining = True
        if self.running is not None:
            self.running.sequencer.drain()

    def stop(self) -> bool:
        """Stop where it stands; recovery does the rest. Return False when no attempt is running."""
        self._stopping = True
        if self._group is not None:
            self._group.stop()
        return self._group is not None

    async def _attempt(self) -> None:
        region = self._region
        threads, lane = region.world.ports.threads, state_lane(region.job)
        self.attempt = await threads.run(lane, region.store.begin_attempt, region.plan.id)  # 1
        restored = region.store.restore(region.plan.id)  # 2
        for target in region.targets.values():  # 3
            with region.store.snapshot() as snapshot:
                rows = snapshot.scan(target.committer.database)
            await target.committer.recover(rows)
        if position_of(region, restored).finished:
            self.finished = True
            return
        running = await wire(region, self.attempt, restored)  # 4
        self.running, self._group = running, ActorGroup(running.actors)
        if self._draining:
            running.sequencer.drain()
        self.on_running()
        try:
            await self._group.run()  # 5, 6
        finally:
            self.last = region_status(self)
            self.running = self._group = None


def state_lane(job: str) -> str:
    """Return the lane of the thread that writes a job's state."""
    return f"state/{job}"
