"""The record of a checkpoint: what one commit is given, and what the store keeps of it beside the operators' rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streamactors.core.codec import encode_value, seal

from .writing import Delta, big


@dataclass(slots=True)
class Checkpoint:
    """All of one epoch of one region, as one commit stores it."""

    region: str
    attempt: int
    epoch: int
    position: Any
    """Where the sources and event time stand; anything that MessagePack holds."""

    journal: list[Any] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    created_ms: int = 0
    horizon: int | None = None
    """Below which event time is complete at the position, ms; None: it has not begun, has ended, or there is none."""

    stats: dict[str, Any] = field(default_factory=dict)
    """Joined to the summary that ``checkpoints`` returns, such as ``duration_ms``."""


@dataclass(frozen=True, slots=True)
class CommitStats:
    """What a commit handed to LMDB: bytes of keys and values, and the rows put or deleted."""

    bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A region's newest checkpoint."""

    region: str
    attempt: int
    epoch: int
    position: Any
    created_ms: int


def own_rows(checkpoint: Checkpoint) -> list[Delta]:
    """Return what the store itself keeps of an epoch: its position, and its part of the journal."""
    newest = {
        "attempt": checkpoint.attempt,
        "epoch": checkpoint.epoch,
        "position": checkpoint.position,
        "created_ms": checkpoint.created_ms,
    }
    rows = [Delta("regions", puts=[(checkpoint.region.encode(), seal(encode_value(newest)))])]
    if checkpoint.journal:
        entries = seal(encode_value(checkpoint.journal))
        rows.append(Delta(f"journal:{checkpoint.region}", puts=[(big(checkpoint.epoch), entries)]))
    return rows


def summary_of(checkpoint: Checkpoint, stats: CommitStats) -> dict[str, Any]:
    """Return what ``Store.checkpoints`` tells people about an epoch."""
    return {
        "epoch": checkpoint.epoch,
        "attempt": checkpoint.attempt,
        "created_ms": checkpoint.created_ms,
        "duration_ms": 0,
        "bytes": stats.bytes,
        "entries": stats.entries,
        **checkpoint.stats,
    }
