"""How a run is followed: samples of its status, a rate over the last seconds, words for them. Pure.

Durations and lags are written as people say them, instants as ISO 8601 in UTC.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from streamactors.core.times import MAX_TIME, MIN_TIME
from streamactors.job.status import JobStatus, RegionStatus
from streamactors.job.why import duration_text

from .output import counted, iso_time

RATE_SECONDS = 3.0
"""The stretch of time over which a rate is taken: short enough to follow, long enough to be read."""

REASONS_SHOWN = 3
"""Of a region: the most telling ones come first."""


@dataclass
class Rate:
    """Records a second, over the last RATE_SECONDS."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, seconds: float, records: int) -> float:
        """Note that *records* were read until *seconds*; return the rate."""
        self.samples.append((seconds, records))
        while len(self.samples) > 2 and self.samples[1][0] <= seconds - RATE_SECONDS:
            self.samples.popleft()
        elapsed = seconds - self.samples[0][0]
        return max(0.0, records - self.samples[0][1]) / elapsed if elapsed > 0 else 0.0


def records_of(status: JobStatus) -> int:
    """Return how many records the run has read."""
    return sum(region.records for region in status.regions)


def late_of(region: RegionStatus) -> int:
    """Return how many records came too late for their windows, since the job first started."""
    return sum(operator.late for stage in region.stages for operator in stage.operators)


def progress_line(region: RegionStatus, rate: float, now_ms: int) -> str:
    """Return what a region does as one line of a log."""
    done, end = sum(p.offset for p in region.partitions), sum(p.end for p in region.partitions)
    share = f" ({done / end:.0%})" if end else ""
    parts = [f"{rate:,.0f} records/s", f"offset {done:,} of {end:,}{share}", watermark_text(region.watermark, now_ms)]
    parts += [checkpoint_text(region), f"{late_of(region):,} late", f"{region.restarts} restarts"]
    if region.state != "running":
        parts.insert(0, region.state)
    return ", ".join(parts)


def reasons_shown(region: RegionStatus, rate: float) -> list[str]:
    """Return why a region does not move, where nothing has for the time of a rate, or where it does not run."""
    return region.reasons[:REASONS_SHOWN] if not rate or region.state != "running" else []


def checkpoint_text(region: RegionStatus) -> str:
    """Return the last checkpoint: epoch, ms, bytes."""
    last = region.checkpoint
    if not last.epoch:
        return "no checkpoint yet"
    if not last.at_ms:
        return f"epoch {last.epoch}"
    return f"epoch {last.epoch} in {last.ms:.1f} ms with {last.bytes:,} bytes"


def watermark_text(watermark: int, now_ms: int) -> str:
    """Return where event time is, and how far behind the clock."""
    if watermark == MIN_TIME:
        return "no event time yet"
    if watermark == MAX_TIME:
        return "event time has ended"
    return f"watermark {iso_time(watermark)}, {duration_text(now_ms - watermark)} behind"


def summary_line(status: JobStatus, how: str, seconds: float, *, rated: bool) -> str:
    """Return the last line of a run; *rated* where the time was not spent on waiting for input."""
    records = records_of(status)
    epochs = ", ".join(str(region.checkpoint.epoch) for region in status.regions)
    rate = f", {records / seconds:,.0f} records/s" if rated and seconds > 0 else ""
    restarts = sum(region.restarts for region in status.regions)
    read = f"{counted(records, 'record')} in {seconds:.2f} s{rate}"
    return f"{status.job}: {how}; {read}; checkpoint {epochs}, {counted(restarts, 'restart')}"
