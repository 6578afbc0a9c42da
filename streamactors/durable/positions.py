"""Positions that are kept for good: where a region stood once, so that another version can begin there.

A checkpoint's own row is overwritten by the next one. Some of them leave their position behind, in the database
``positions:<region>``, in the transaction of the checkpoint (E1):

    number → epoch, horizon (up to which event time was complete), position

When? When event time has moved on by ``POSITION_GAP_MS``, or by a share of all that was read where that is less: a
stream of a minute has positions inside it as well. A backlog has one for each checkpoint at most.

How long? By the ruler: position n stays until n + POSITIONS_DENSE * 2^z is stored, where 2^z is the greatest power of 2
that divides n. So at any age the gap between neighbours is a fixed share of the age, below 1 %, and their number grows
with the logarithm of time: some 2,000 after ten years. Each one that is stored takes one away at most. The first stays.

Cost: nothing for most checkpoints; for one that leaves its position, two rows.

If we crash: position and checkpoint are there together, or neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lmdb

from streamactors.core.codec import decode_value, encode_value, seal, unseal
from streamactors.core.limits import POSITION_GAP_MS, POSITION_SHARE, POSITIONS_DENSE

from .checkpoint import Checkpoint
from .snapshot import Snapshot
from .writing import big


@dataclass(frozen=True, slots=True)
class Kept:
    """A position that was kept."""

    number: int
    epoch: int
    horizon: int
    """Event time was complete below it, ms."""

    position: Any


def positions_of(region: str) -> str:
    """Return the database in which the positions of *region* are kept."""
    return f"positions:{region}"


def is_due(first: int, last: int, horizon: int) -> bool:
    """Return whether a position at *horizon* is kept, behind those of which the horizons are *first* and *last*."""
    return horizon - last >= min(POSITION_GAP_MS, max(1, (horizon - first) // POSITION_SHARE))


def gone_with(number: int) -> int | None:
    """Return the number of the position that goes when *number* is stored; None: none does."""
    gone = number - POSITIONS_DENSE * (number & -number)
    return gone if gone > 0 else None


def keep_position(transaction: lmdb.Transaction[bytes], handle: Any, checkpoint: Checkpoint, place: str) -> None:
    """Keep the position of *checkpoint* if it is time for one. *place* says where, for errors."""
    assert checkpoint.horizon is not None, f"{place}: there is no event time to keep a position by"
    cursor = transaction.cursor(handle)
    number = 0
    if cursor.last():
        number = int.from_bytes(cursor.key(), "big") + 1
        last = _row(cursor.value(), place)["horizon"]
        cursor.first()
        if not is_due(_row(cursor.value(), place)["horizon"], last, checkpoint.horizon):
            return
    row = {"epoch": checkpoint.epoch, "horizon": checkpoint.horizon, "position": checkpoint.position}
    transaction.put(big(number), seal(encode_value(row)), db=handle)
    gone = gone_with(number)
    if gone is not None:
        transaction.delete(big(gone), db=handle)


def kept_positions(snapshot: Snapshot, region: str) -> list[Kept]:
    """Return the positions of *region* that are there, oldest first."""
    database = positions_of(region)
    place = snapshot.place(database)
    return [Kept(int.from_bytes(key, "big"), **_row(stored, place)) for key, stored in snapshot.scan(database)]


def _row(stored: bytes, place: str) -> Any:
    return decode_value(unseal(stored, f"database {place}"))
