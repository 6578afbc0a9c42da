"""What a partition's writer has done: counted a frame at a time, never by record, for as long as the log is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from streamactors.core.histogram import DURATIONS, Histogram


@dataclass
class Appends:
    """Of one partition, by this process. Written in the partition's lane, read anywhere."""

    monotonic: Callable[[], float] = lambda: 0.0
    """The clock's; without one, all syncs take no time."""

    records: int = 0
    bytes: int = 0
    """Of frames, as they are on disk."""

    sync_seconds: Histogram = field(default_factory=lambda: Histogram.of(*DURATIONS))

    def sync(self, sync: Callable[[], None]) -> None:
        """Let *sync* wait for the disk, and note for how long; also when it fails."""
        began = self.monotonic()
        try:
            sync()
        finally:
            self.sync_seconds.observe(self.monotonic() - began)

    def note(self, records: int, size: int) -> None:
        """A frame is durable."""
        self.records += records
        self.bytes += size

    def add(self, other: Appends) -> None:
        """Count what *other* has counted."""
        self.note(other.records, other.bytes)
        self.sync_seconds.add(other.sync_seconds)
