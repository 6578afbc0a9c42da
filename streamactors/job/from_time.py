"""From a time: a version that begins in the middle of the journal that it follows.

The version that is served has kept positions (durable/positions.py). For each region the last one is taken of which all
that was read before it has event time before the time that was asked for; the *boundary* is where that ends: no record
before the position has event time at the boundary or later. So windows that start there or later have all their records
behind the position, and come out as if everything had been read. What else there is can't be right, and is left out, or
named (graph/coverage.py).

How a version's store is made, before it first runs, whole or not at all (savepoint_files.making_store):

    regions      the position, with the boundary in it (``Position.since``): so every checkpoint and savepoint has it
    attempts     those of the version that is served
    journal      what led to the position: who follows this version, once it is served, counts from the first entry
    positions    those up to this one
    meta         identity; ``origin``: which time was asked for

State is empty. Event time stands where it stood, rounded down to the new program's step: records of windows that have
fired by then are of windows that are left out.

If we crash: there is no store, and the next start makes it; or it is there, and the next start goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from streamactors.core.codec import encode_value, seal
from streamactors.core.errors import UsageError
from streamactors.core.times import MIN_TIME
from streamactors.durable.positions import Kept, positions_of
from streamactors.durable.savepoint_files import chunks, making_store
from streamactors.durable.sharing import read_briefly
from streamactors.durable.store import Delta, Restored, Store
from streamactors.durable.writing import big
from streamactors.flow.sequencing import Position
from streamactors.graph.coverage import coverage
from streamactors.graph.plan import RegionPlan


@dataclass(frozen=True, slots=True)
class Beginning:
    """A version that is to begin at a time."""

    job: str
    version: str
    folder: Path
    """Of the version; the caller holds its lock."""

    time: int
    """Event time, ms."""

    new_id: str


def boundary_of(position: Position) -> int:
    """Return the least event time that is greater than those of all records before *position*."""
    return max(part.time_max for part in position.partitions) + 1


def begin_at(begin: Beginning, plans: Sequence[RegionPlan], served: Store | None, *, sync: bool = True) -> None:
    """
    Make the state of a version that begins at a time, if that was not done before.

    Synchronous. All or nothing: until this returns there is no state.

    Raises UsageError: the version began elsewhere, or no position is known for that time; it names one that is.
    """
    if (begin.folder / "data.mdb").exists():
        with read_briefly(begin.folder) as store:
            _refuse_other_beginning(begin, store)
        return
    if served is None:
        raise UsageError(
            f"job {begin.job}: {begin.version} is to begin at a time, and there is no version before it that could "
            "have noted where that is. Let the job run first, or replay --from earliest."
        )
    places = [_place(begin, plan, served) for plan in plans]
    with making_store(begin.folder, sync=sync) as store:
        store.identity(begin.job, version=begin.version, new_id=begin.new_id)
        for plan, place in zip(plans, places, strict=True):
            _load(store, served, plan.id, *place)
        store.amend([_row("meta", "origin", {"from_time": begin.time})])


def _refuse_other_beginning(begin: Beginning, store: Store) -> None:
    """Refuse to go on with a version that began elsewhere than is asked for now."""
    began = began_at(store)
    if began != begin.time:
        where = "with the first record" if began is None else f"at {began}"
        raise UsageError(
            f"job {begin.job}: {begin.version} began {where}, not at {begin.time}. Leave --from out to go on with it, "
            "`streamactors retire` it first, or choose another label."
        )


def began_at(store: Store) -> int | None:
    """Return the event time that was asked for when the version began; None: it began with the first record."""
    found = (store.origin or {}).get("from_time")
    return None if found is None else int(found)


def note_coverage(store: Store, plans: Sequence[RegionPlan]) -> None:
    """Store which rows of views are right in a version that began at a time, for whoever compares without its code."""
    found: dict[str, int | None] = {}
    for plan in plans:
        since = since_of(store.restore(plan.id))
        if since is not None:
            found |= coverage(plan, since).views
    if found != store.coverage:
        store.save_coverage(found)


def since_of(restored: Restored | None) -> int | None:
    """Return the boundary of a region that began at a time; None: it began with the first record."""
    since = MIN_TIME if restored is None else restored.position.get("since", MIN_TIME)
    return None if since == MIN_TIME else int(since)


# Where, and what is stored. -------------------------------------------------------------------------------------------


def _place(begin: Beginning, plan: RegionPlan, served: Store) -> tuple[Kept, Position]:
    """Return the last position of which all records are before the time, as it was kept and as we begin at it."""
    if plan.step is None:
        raise UsageError(
            f"job {begin.job}: region {plan.id} has no event time, so there is no place in it that a time could mean. "
            "Replay --from earliest."
        )
    kept = served.positions(plan.id)
    found: tuple[Kept, Position] | None = None
    for one in kept:
        position = msgspec.convert(one.position, Position)
        if boundary_of(position) <= begin.time:
            found = one, position
    if found is None:
        raise UsageError(_none_kept(begin, plan.id, kept))
    position = found[1]
    position.since = boundary_of(position)
    position.horizon -= position.horizon % plan.step
    return found


def _none_kept(begin: Beginning, region: str, kept: list[Kept]) -> str:
    if not kept:
        first = "None was kept at all: the version that is served has not come far enough since it keeps them."
    else:
        least = boundary_of(msgspec.convert(kept[0].position, Position))
        first = f"The first time for which there is one is {least} ({_iso(least)})."
    return (
        f"job {begin.job}: no position of region {region} is known before {begin.time} ({_iso(begin.time)}). {first} "
        "Give a later time, or replay --from earliest."
    )


def _iso(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "beyond the calendar"


def _load(store: Store, served: Store, region: str, kept: Kept, position: Position) -> None:
    """Put into a new store what belongs to a region that begins at *position*, which was *kept*."""
    restored = served.restore(region)
    assert restored is not None, f"region {region} has kept a position and no checkpoint"
    newest = {
        "attempt": restored.attempt,
        "epoch": kept.epoch,
        "position": msgspec.to_builtins(position),
        "created_ms": restored.created_ms,
    }
    store.amend([_row("attempts", region, restored.attempt), _row("regions", region, newest)])
    with served.snapshot() as snapshot:
        for database, last in ((f"journal:{region}", kept.epoch), (positions_of(region), kept.number)):
            for rows in chunks(snapshot, database):
                store.amend([Delta(database, puts=[row for row in rows if row[0] <= big(last)])])
                if rows[-1][0] > big(last):
                    break


def _row(database: str, key: str, value: Any) -> Delta:
    return Delta(database, puts=[(key.encode(), seal(encode_value(value)))])
