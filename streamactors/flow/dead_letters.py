"""What happens to a record that an operator can't handle, and what is kept of it.

    fail           the region fails, starts again, and fails at the same record until somebody mends one of the two
    skip           the record is left out, and counted
    dead_letter    the record is left out, counted, and written to a topic with all that is needed to understand it and
                   to put it back in

The policy is an operator's own (``stream.on_error(...)``). What is left out is gone for everything behind that operator
and for nothing else: other branches of the stream still have it. On an upsert stream the row's earlier result is taken
back, as ``filter`` does it: it belongs to a value that is no longer the newest.

A dead letter is an output like any other: it goes through the region's sequence into a sink with stamps, so in
exactly-once mode each is written once, however often the process dies in between. Nothing in it depends on the clock.
"""

from __future__ import annotations

import traceback
from enum import Enum
from typing import Any

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.errors import BadRecord, shown

TRACEBACK_CHARACTERS_MAX = 8_192
"""The end of a traceback that is kept: it names what raised. More would make a dead letter larger than its record."""

SHOWN_CHARACTERS_MAX = 1_000
"""Of the value as the operator saw it."""

TOPIC_PREFIX = "dead-letters."


class OnError(Enum):
    """What happens to a record that an operator can't handle. See the module's header."""

    FAIL = "fail"
    SKIP = "skip"
    DEAD_LETTER = "dead_letter"


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that was left out, and why."""

    operator: str
    """Path of the operator, such as ``quiz-counts/map``."""

    source: str | None
    partition: int | None
    offset: int | None
    """Where the record was read; None for what came from no record, such as a window's result."""

    error: str
    """Type and message of what was raised."""

    traceback: str
    value: str
    """The value as the operator saw it, as text, cut."""

    original: bytes | None
    """The record's bytes as they stand in the source; None when the source has none."""


def topic_of(job: str, region: str) -> str:
    """Return the topic that holds the dead letters of a region."""
    return f"{TOPIC_PREFIX}{job}.{region}"


def dead_letter(bad: BadRecord, batch: Batch, row: int) -> Batch:
    """Return the dead letter of a row of *batch*, as a batch of one."""
    cause = bad.__cause__ if bad.__cause__ is not None else bad
    place = bad.place
    letter = DeadLetter(
        operator=bad.operator,
        source=None if place is None else place.source,
        partition=None if place is None else place.partition,
        offset=None if place is None else place.offset,
        error=bad.reason,
        traceback="".join(traceback.format_exception(cause))[-TRACEBACK_CHARACTERS_MAX:],
        value=shown(batch.values[row])[:SHOWN_CHARACTERS_MAX],
        original=_original(batch, row),
    )
    offsets = batch.offsets[row : row + 1] if len(batch.offsets) else ()
    return Batch([letter], offsets=offsets, origin=batch.origin)


def _original(batch: Batch, row: int) -> bytes | None:
    if batch.origin is None or not len(batch.offsets):
        return None
    (record,) = batch.origin.originals([batch.offsets[row]])
    return _bytes(record)


def _bytes(record: Any) -> bytes | None:
    """Return a record as bytes; what stands as an object in a list is shown as JSON, where it can be."""
    if isinstance(record, bytes | bytearray | memoryview):
        return bytes(record)
    try:
        return msgspec.json.encode(record)
    except (TypeError, ValueError, OverflowError):
        return None
