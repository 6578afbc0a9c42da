"""Which metrics there are: one table, read from a job's status. Pure; docs/metrics.md is tested against it.

Names follow Prometheus: a prefix, base units, ``_total`` behind what only rises. Labels are bounded by the pipeline and
the topics, never by data: job, region, operator, stage, view, sink, source, partition. What has the same labels is
added up: an operator's parts, a topic's partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from streamactors.core.histogram import Histogram
from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.durable.appends import Appends
from streamactors.job.states import State
from streamactors.job.status import JobStatus, RegionStatus

Value = int | float | Histogram
Sample = tuple[tuple[str, ...], Value]
"""(values of the labels, value)"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What metrics are read from."""

    jobs: list[tuple[JobStatus, float]]
    """Statuses, and how many seconds old each is."""

    appends: list[dict[str, Appends]]
    """Of each log, by topic."""

    now: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    read: Callable[[Seen], Iterator[Sample]]


def _jobs(read: Callable[[JobStatus], Iterator[Sample]]) -> Callable[[Seen], Iterator[Sample]]:
    """Read each job; the label ``job`` comes first."""

    def read_all(seen: Seen) -> Iterator[Sample]:
        for status, _ in seen.jobs:
            for labels, value in read(status):
                yield (status.job, *labels), value

    return read_all


def _regions(read: Callable[[RegionStatus], Iterator[Sample]]) -> Callable[[Seen], Iterator[Sample]]:
    """Read each region of each job."""
    return _jobs(lambda status: (sample for region in status.regions for sample in read(region)))


def _region(read: Callable[[RegionStatus], Value | None]) -> Callable[[Seen], Iterator[Sample]]:
    """Read one value of each region; none where there is None. The labels are job and region."""
    return _jobs(lambda status: (((one.id,), value) for one in status.regions if (value := read(one)) is not None))


def _states(region: RegionStatus) -> Iterator[Sample]:
    for state in State:
        yield (region.id, state.value), int(region.state == state.value)


def _operators(figure: str) -> Callable[[Seen], Iterator[Sample]]:
    return _regions(lambda region: (((name,), getattr(of, figure)) for name, of in region.run.operators.items()))


def _calls(region: RegionStatus) -> Iterator[Sample]:
    return (((operator.name,), operator.calls) for stage in region.stages for operator in stage.operators)


def _stages(figure: str) -> Callable[[Seen], Iterator[Sample]]:
    return _regions(lambda region: (((stage.name,), getattr(stage, figure)) for stage in region.stages))


def _lag(region: RegionStatus) -> Iterator[Sample]:
    for part in region.partitions:
        yield (part.source, str(part.partition)), max(0, part.end - part.offset)


def _idle(region: RegionStatus) -> Iterator[Sample]:
    return (((part.source,), int(part.idle)) for part in region.partitions)


def _incidents(status: JobStatus) -> Iterator[Sample]:
    yield ("blocked",), status.blocked
    yield ("awaits",), sum(region.run.hung_calls for region in status.regions)


def _watermark_lag(seen: Seen) -> Iterator[Sample]:
    for status, _ in seen.jobs:
        for region in status.regions:
            if MIN_TIME < region.watermark < MAX_TIME:
                yield (status.job, region.id), seen.now - region.watermark / 1_000


def _topics(figure: str) -> Callable[[Seen], Iterator[Sample]]:
    return lambda seen: (((topic,), getattr(of, figure)) for log in seen.appends for topic, of in log.items())


def _age(seen: Seen) -> Iterator[Sample]:
    return (((status.job,), age) for status, age in seen.jobs)


_REGION, _OPERATOR, _STAGE, _TOPIC = ("job", "region"), ("job", "operator"), ("job", "stage"), ("topic",)

METRICS = (
    # The job and its regions.
    Metric(
        "streamactors_job_info",
        "gauge",
        ("job", "version"),
        "1; which version of the job runs.",
        _jobs(lambda status: iter([((status.version,), 1)])),
    ),
    Metric(
        "streamactors_region_state",
        "gauge",
        ("job", "region", "state"),
        "1 for the state that the region is in, 0 for the others.",
        _regions(_states),
    ),
    Metric(
        "streamactors_restarts_total",
        "counter",
        _REGION,
        "Attempts that began after a failure, of this region or one that takes it back.",
        _region(lambda region: region.restarts),
    ),
    Metric(
        "streamactors_watchdog_incidents_total",
        "counter",
        ("job", "kind"),
        "Functions that the watchdog has named: blocked (the event loop, by any job in it) or awaits (a call).",
        _jobs(_incidents),
    ),
    Metric(
        "streamactors_status_age_seconds",
        "gauge",
        ("job",),
        "How old the job's figures are: well above 0 while its event loop does not answer.",
        _age,
    ),
    # Records.
    Metric(
        "streamactors_records_total",
        "counter",
        _REGION,
        "Records that were read and numbered; those that a restart reads again count again.",
        _region(lambda region: region.records),
    ),
    Metric(
        "streamactors_operator_records_in_total",
        "counter",
        _OPERATOR,
        "Records that an operator was given, in all its parts.",
        _operators("records_in"),
    ),
    Metric(
        "streamactors_operator_records_out_total",
        "counter",
        _OPERATOR,
        "Records that an operator gave, on all its outputs.",
        _operators("records_out"),
    ),
    Metric(
        "streamactors_late_records_total",
        "counter",
        _OPERATOR,
        "Records that came when their windows were gone.",
        _operators("late"),
    ),
    Metric(
        "streamactors_refused_records_total",
        "counter",
        _OPERATOR,
        "Records that an error policy left out: skip or dead_letter. Sources decode, so they are operators here.",
        _regions(lambda region: (((name,), count) for name, count in region.run.refused.items())),
    ),
    Metric(
        "streamactors_async_calls",
        "gauge",
        _OPERATOR,
        "Calls of an operator's async function in flight.",
        _regions(_calls),
    ),
    Metric(
        "streamactors_mailbox_records",
        "gauge",
        _STAGE,
        "Records that wait in front of a stage.",
        _stages("mailbox_records"),
    ),
    Metric(
        "streamactors_mailbox_records_max",
        "gauge",
        _STAGE,
        "Records that may wait there now; follows the stage's speed.",
        _stages("mailbox_records_max"),
    ),
    # Time and place in the input.
    Metric(
        "streamactors_watermark_lag_seconds",
        "gauge",
        _REGION,
        "Wall clock minus watermark. Absent before the first event time, and when event time has ended.",
        _watermark_lag,
    ),
    Metric(
        "streamactors_partition_lag",
        "gauge",
        ("job", "source", "partition"),
        "Offsets from the next record to read to the source's durable end: records, or bytes of a file.",
        _regions(_lag),
    ),
    Metric(
        "streamactors_partitions_idle",
        "gauge",
        ("job", "source"),
        "Partitions that don't hold event time back, because nothing came for a while.",
        _regions(_idle),
    ),
    # Checkpoints, views, sinks.
    Metric(
        "streamactors_epoch",
        "gauge",
        _REGION,
        "Number of the last checkpoint. A restart may skip numbers.",
        _region(lambda region: region.checkpoint.epoch),
    ),
    Metric(
        "streamactors_checkpoint_duration_seconds",
        "histogram",
        _REGION,
        "From the barrier's request to the sinks' answers. Its count is that of epochs.",
        _region(lambda region: region.run.checkpoint_seconds),
    ),
    Metric(
        "streamactors_checkpoint_bytes",
        "histogram",
        _REGION,
        "Bytes of rows in a checkpoint.",
        _region(lambda region: region.run.checkpoint_bytes),
    ),
    Metric(
        "streamactors_view_rows_changed_total",
        "counter",
        ("job", "view"),
        "Rows of a view that checkpoints changed or deleted.",
        _regions(lambda region: (((view,), rows) for view, rows in region.run.view_rows.items())),
    ),
    Metric(
        "streamactors_view_age_seconds",
        "gauge",
        _REGION,
        "For how long something has been read that no checkpoint shows. 0: views show all that was read.",
        _region(lambda region: region.view_age_ms / 1_000),
    ),
    Metric(
        "streamactors_sink_pending_bytes",
        "gauge",
        ("job", "sink"),
        "Output that the target has not answered for.",
        _regions(lambda region: (((sink.sink,), sink.waiting_bytes) for sink in region.sinks)),
    ),
    # The log, as this process writes it.
    Metric(
        "streamactors_log_appended_records_total",
        "counter",
        _TOPIC,
        "Records that this process appended, durably.",
        _topics("records"),
    ),
    Metric(
        "streamactors_log_appended_bytes_total",
        "counter",
        _TOPIC,
        "Bytes of their frames on disk.",
        _topics("bytes"),
    ),
    Metric(
        "streamactors_log_sync_duration_seconds",
        "histogram",
        _TOPIC,
        "How long a sync of a partition took. Its count is that of frames.",
        _topics("sync_seconds"),
    ),
)


def read(metric: Metric, seen: Seen) -> dict[tuple[str, ...], Value]:
    """Return the metric's values, by the values of its labels."""
    found: dict[tuple[str, ...], Value] = {}
    for labels, value in metric.read(seen):
        so_far = found.get(labels)
        if isinstance(value, Histogram):
            if isinstance(so_far, Histogram):
                so_far.add(value)
            else:
                found[labels] = value.copy()
        else:
            assert not isinstance(so_far, Histogram), f"{metric.name} is a histogram and a number"
            found[labels] = value if so_far is None else so_far + value
    return found
