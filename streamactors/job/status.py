"""What can be seen of a running job: plain data, cheap to take, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from streamactors.core.times import MIN_TIME
from streamactors.flow.async_calls import AsyncOperator
from streamactors.flow.operator import Operator
from streamactors.flow.reader import Reader
from streamactors.flow.sequencing import PartitionPosition
from streamactors.flow.stage import Stage

from .facts import facts_of
from .figures import RunFigures
from .why import reasons

if TYPE_CHECKING:
    from .region import RegionSupervisor
    from .wiring import RunningRegion


class OperatorStatus(msgspec.Struct):
    """One operator of a stage."""

    name: str
    """Its path, such as ``quiz-counts/window``."""

    records_in: int
    records_out: int
    """On all its outputs together."""

    late: int
    """Records that came when their window was gone, since the job first started."""

    refused: int = 0
    """Records that its error policy left out, in this run."""

    calls: int = 0
    """Of its async function, in flight."""

    oldest_call_ms: int = 0
    """For how long the oldest of them has been."""


class StageStatus(msgspec.Struct):
    """One stage: operators that are fused into one actor."""

    name: str
    operators: list[OperatorStatus]
    mailbox_records: int
    mailbox_records_max: int
    """What the mailboxes admit now: a slow stage gets less."""

    watermark: int
    """ms; the least int64 before there is one."""


class PartitionStatus(msgspec.Struct):
    """One partition of a source."""

    source: str
    partition: int
    offset: int
    """Of the next record to number."""

    end: int
    """Behind the last durable record."""

    idle: bool
    refused: int = 0
    """Records that could not be decoded, or had no time, and were left out, in this run."""


class SinkStatus(msgspec.Struct):
    """A sink outside."""

    sink: str
    waiting_bytes: int
    """What the target has not answered for."""


class CheckpointStatus(msgspec.Struct):
    """The last checkpoint."""

    epoch: int
    ms: float
    """From the barrier's request to the sinks' answers."""

    bytes: int
    at_ms: int


class RegionStatus(msgspec.Struct):
    """A region."""

    id: str
    state: str
    """See job/states.py; ``finished``: its input is complete, by an earlier run."""

    attempt: int
    restarts: int
    records: int
    """Numbered in this run; those that a restart read again count again."""

    watermark: int
    checkpoint: CheckpointStatus
    waiting_for: list[str]
    """Who has not handed over the epoch that is being aligned, and the calls in flight that it waits for."""

    partitions: list[PartitionStatus]
    stages: list[StageStatus]
    since_ms: int = 0
    """When it entered its state, wall clock."""

    error: str | None = None
    """The last failure, in one line; stays when the region runs again."""

    error_ms: int = 0
    reasons: list[str] = []
    """Why it does not move, or what it moves as fast as, in sentences; see job/why.py."""

    sinks: list[SinkStatus] = []
    view_age_ms: float = 0.0
    """How old what other processes see of the views is, compared with what was read. 0: they see all of it."""

    run: RunFigures = msgspec.field(default_factory=RunFigures)
    """What was done in this run, over all attempts: nothing in it goes back."""


class JobStatus(msgspec.Struct):
    """A job."""

    job: str
    state: str
    regions: list[RegionStatus]
    blocked: int = 0
    """How often the watchdog found the event loop blocked since jobs run in it."""

    version: str = ""
    """Which version of the job it is."""


def region_status(region: RegionSupervisor) -> RegionStatus:
    """Return what is seen of *region* now."""
    life, running = region.life, region.running
    return msgspec.structs.replace(
        _of_attempt(region) if region.running is not None else region.last or _nothing(region),
        state=life.state.value,
        attempt=region.attempt,
        restarts=region.restarts,
        since_ms=life.since_ms,
        error=life.error,
        error_ms=life.error_ms,
        reasons=reasons(facts_of(region)),
        run=region.world.figures.with_attempt(*(([], []) if running is None else operators_of(running))),
    )


def operators_of(running: RunningRegion) -> tuple[list[Operator], list[Operator]]:
    """Return the operators of an attempt: before the sequencer, and behind it."""
    before = [operator for reader in running.readers for operator in reader.refusing]
    return before, [operator for stage in running.stages for operator in stage.operators]


def _nothing(region: RegionSupervisor) -> RegionStatus:
    no_checkpoint = CheckpointStatus(0, 0.0, 0, 0)
    return RegionStatus(region.id, "", region.attempt, region.restarts, 0, MIN_TIME, no_checkpoint, [], [], [])


def _of_attempt(region: RegionSupervisor) -> RegionStatus:
    running = region.running
    assert running is not None, f"region {region.id} does not run"
    coordinator, report = running.coordinator, running.coordinator.report
    sequencing = running.sequencer.sequencing
    return RegionStatus(
        id=region.id,
        state="running",
        attempt=region.attempt,
        restarts=region.restarts,
        records=running.sequencer.records + (0 if region.last is None else region.last.records),
        watermark=sequencing.watermark,
        checkpoint=CheckpointStatus(report.epoch, report.ms, report.bytes, report.at_ms),
        waiting_for=[_waiting(name, running.stages) for name in sorted(running.coordinator.waiting_for)],
        partitions=[_partition(reader, sequencing.partitions[reader.partition]) for reader in running.readers],
        stages=[_stage(stage) for stage in running.stages],
        sinks=[SinkStatus(output.sink, output.waiting_bytes) for output in running.outputs],
        view_age_ms=(region.clock.monotonic() - coordinator.shown_until) * 1_000 if coordinator.unseen else 0.0,
    )


def _partition(reader: Reader, position: PartitionPosition) -> PartitionStatus:
    return PartitionStatus(
        position.source, position.partition, position.offset, reader.end, position.idle, reader.refused
    )


def _operator(operator: Operator) -> OperatorStatus:
    status = OperatorStatus(
        operator.name,
        operator.records_in,
        operator.records_out,
        operator.late_records,
        operator.refused_records,
    )
    if isinstance(operator, AsyncOperator):
        status.calls = operator.in_flight.calling
        status.oldest_call_ms = int(operator.oldest_seconds * 1_000)
    return status


def _waiting(name: str, stages: Sequence[Stage]) -> str:
    """Return who is waited for, and for which calls."""
    operators = [_operator(operator) for stage in stages if stage.name == name for operator in stage.operators]
    calling = next((operator for operator in operators if operator.calls), None)
    if calling is None:
        return name
    return f"{name} ({calling.calls} calls in flight, the oldest for {calling.oldest_call_ms / 1_000:.1f} s)"


def _stage(stage: Stage) -> StageStatus:
    return StageStatus(
        name=stage.name,
        operators=[_operator(operator) for operator in stage.operators],
        mailbox_records=sum(channel.records for channel in stage.inputs),
        mailbox_records_max=sum(channel.records_max for channel in stage.inputs),
        watermark=stage.watermark,
    )
