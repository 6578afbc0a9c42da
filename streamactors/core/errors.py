"""Errors, told apart by whose fault they are and what to do next.

    StreamActorsError
    ├── PipelineError       the pipeline is wrong: change the code it names
    ├── UsageError          a call, a flag or a setting is wrong: call again, corrected
    ├── Unacknowledged      the job ended first: what was sent may or may not be counted
    ├── BadRecord           one record can't be handled: fix the record, or the function it names
    ├── Held                another process has it: its pid is in the message
    ├── StorageError        the disk said no: make room, repair, then start again
    │   ├── QuotaFull       no room: disk or quota is full; nothing was written. It goes on when there is room
    │   ├── Damaged         bytes that were durable are not what was written
    │   └── LogClosed       the partition was closed, by its owner or after a failed fsync
    ├── SinkConflict        a target shows a stamp that this job can't explain
    └── JobFailed           restarts are used up; its causes are inside

Every message says what happened, what it means and what to do, with the values. Invariants are not here: a broken
one is an AssertionError, because no user can mend it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What an operating system answers when a disk, a user's quota or a file may hold no more."""


class StreamActorsError(Exception):
    """Anything that this library reports to its user."""


class PipelineError(StreamActorsError):
    """The pipeline can't mean what it says; found when the graph is built or when the job starts."""


class UsageError(StreamActorsError):
    """A call, a flag or a setting that makes no sense."""


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """Where a record stands: source and partition by name and number, offset of the record there."""

    source: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.source}/{self.partition} at offset {self.offset}"


def shown(value: object) -> str:
    """Return ``repr(value)``; if that raises, what can be said without it. A record must not hide its own error."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - whatever it is, the record is not told by it
        return f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"


def text_of(error: BaseException) -> str:
    """Return what *error* says of itself; if that raises, that it does."""
    try:
        return str(error)
    except Exception as raised:  # noqa: BLE001 - whatever it is, the first error is what matters
        return f"<its str() raises {type(raised).__name__}>"


class BadRecord(StreamActorsError):
    """A record that a decoder or a user function refused, with operator and place."""

    def __init__(
        self, operator: str, place: RecordPlace | None, record: object, reason: str, row: int | None = None
    ) -> None:
        text = shown(record)
        text = text if len(text) <= 200 else text[:200] + "…"
        where = f" ({place})" if place is not None else ""
        super().__init__(f"operator {operator} can't handle record {text}{where}: {reason}")
        self.operator, self.place, self.reason = operator, place, reason
        self.row = row  # of the batch that the operator was given, where it can go on without it


class Unacknowledged(StreamActorsError):
    """A job ended before all that was sent to it was known to be safe: it may or may not have been counted."""


class Held(StreamActorsError):
    """Another process, or another job of this one, has the lock."""

    def __init__(self, what: str, pid: int | None) -> None:
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{what} is in use by {holder}. Stop it first; a dead holder's lock is taken over by itself.")
        self.pid = pid


class StorageError(StreamActorsError):
    """The disk, or what is on it, does not allow this."""


class QuotaFull(StorageError):
    """There is no room, on the disk or in a quota; nothing was written. The same may succeed later."""


class Damaged(StorageError):
    """What was durable can't be read back as it was written."""


class LogClosed(StorageError):
    """The partition takes no more appends."""


class SinkConflict(StreamActorsError):
    """The target's stamp is neither the one before this commit nor its own; a guess would lose or repeat."""


class JobFailed(ExceptionGroup[Exception], StreamActorsError):
    """The job gave up: restarts are used up. The causes are inside, the last one last."""
