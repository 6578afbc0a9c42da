"""What can be seen of a running job: plain data, cheap to take, for people and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamactors.core.times import MIN_TIME
from streamactors.flow.reader import Reader
from streamactors.flow.sequencing import PartitionPosition
from streamactors.flow.stage import Stage

if TYPE_CHECKING:
    from .region import RegionSupervisor


class OperatorStatus(msgspec.Struct):
    """One operator of a stage."""

    name: str
    """Its path, such as ``quiz-counts/window``."""

    records_in: int
    records_out: int
    """On all its outputs together."""

    late: int
    """Records that came when their window was gone, since the job first started."""


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
    """``running``; ``restarting``; ``ended``; ``finished``: its input is complete, by an earlier run."""

    attempt: int
    restarts: int
    records: int
    """Numbered in this run; those that a restart read again count again."""

    watermark: int
    checkpoint: CheckpointStatus
    waiting_for: list[str]
    """Who has not handed over the epoch that is being aligned."""

    partitions: list[PartitionStatus]
    stages: list[StageStatus]


class JobStatus(msgspec.Struct):
    """A job."""

    job: str
    state: str
    regions: list[RegionStatus]


def region_status(region: RegionSupervisor) -> RegionStatus:
    """Return what is seen of *region* now."""
    running = region.running
    if running is None:
        state = "finished" if region.finished else "ended" if region.ended else "restarting"
        if region.last is not None:
            return msgspec.structs.replace(region.last, state=state, restarts=region.restarts)
        nothing = CheckpointStatus(0, 0.0, 0, 0)
        return RegionStatus(region.id, state, region.attempt, region.restarts, 0, MIN_TIME, nothing, [], [], [])
    report = running.coordinator.report
    sequencing = running.sequencer.sequencing
    return RegionStatus(
        id=region.id,
        state="running",
        attempt=region.attempt,
        restarts=region.restarts,
        records=running.sequencer.records + (0 if region.last is None else region.last.records),
        watermark=sequencing.watermark,
        checkpoint=CheckpointStatus(report.epoch, report.ms, report.bytes, report.at_ms),
        waiting_for=sorted(running.coordinator.waiting_for),
        partitions=[_partition(reader, sequencing.partitions[reader.partition]) for reader in running.readers],
        stages=[_stage(stage) for stage in running.stages],
    )


def _partition(reader: Reader, position: PartitionPosition) -> PartitionStatus:
    return PartitionStatus(position.source, position.partition, position.offset, reader.end, position.idle)


def _stage(stage: Stage) -> StageStatus:
    return StageStatus(
        name=stage.name,
        operators=[
            OperatorStatus(operator.name, operator.records_in, operator.records_out, operator.late_records)
            for operator in stage.operators
        ],
        mailbox_records=sum(channel.records for channel in stage.inputs),
        mailbox_records_max=sum(channel.records_max for channel in stage.inputs),
        watermark=stage.watermark,
    )
