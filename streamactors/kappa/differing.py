"""Differing: which rows of two versions' views differ, at one place of the journal.

Because of (T1), two versions that have read the same journal to the same place differ only by their code. So both are
looked at where they stand at the same place (``place_of``): at rest that is where they ended; while one follows the
other it comes again with each checkpoint, because who follows takes one as soon as he has caught up.

Rows are compared as they are stored: equal bytes are equal, and nothing is decoded that does not differ. Both sides are
read in the order of their keys, in chunks, so memory is flat. Pure but for ``at_one_place``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamactors.core.codec import decode_value, unseal
from streamactors.core.errors import UsageError
from streamactors.core.keys import decode_key, plain_key
from streamactors.durable.rows import Row, read_row
from streamactors.durable.sharing import read_briefly
from streamactors.durable.snapshot import Snapshot
from streamactors.durable.store import Restored
from streamactors.durable.views import view_database, view_of
from streamactors.job.succession import place_of

CHUNK_ROWS = 4_096
"""Rows of each side in memory. Fewer: the call costs more than the rows. More gains nothing."""

Rows = Callable[[bytes | None], list[Row]]
"""Up to CHUNK_ROWS rows behind a key, in order; fewer: there are no more."""


@dataclass(frozen=True, slots=True)
class Change:
    """A row that differs."""

    view: str
    key: Any
    change: str
    """``added``, ``removed`` or ``changed``."""

    old: Any = None
    new: Any = None


def differing(old: Rows, new: Rows, chunk: int = CHUNK_ROWS) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield (key, old value, new value) of the rows that differ, in the order of the keys; None: there is none."""
    left, right = old(None), new(None)
    while left or right:
        ends = [side[-1][0] for side in (left, right) if len(side) == chunk]  # what is behind is not known yet
        if not ends:
            yield from _differing_rows(left, right)
            return
        end = min(ends)
        yield from _differing_rows(_up_to(left, end), _up_to(right, end))
        left, right = _behind(old, left, end, chunk), _behind(new, right, end, chunk)


def _up_to(rows: list[Row], end: bytes) -> list[Row]:
    return rows[: bisect_right(rows, end, key=_key)]


def _behind(rows: Rows, read: list[Row], end: bytes, chunk: int) -> list[Row]:
    """Return the next chunk behind *end*; where *read* was the last one, what of it is behind."""
    return rows(end) if len(read) == chunk else read[bisect_right(read, end, key=_key) :]


def _differing_rows(left: list[Row], right: list[Row]) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    if left == right:
        return
    old, new = dict(left), dict(right)
    for key in sorted({key for key, _ in old.items() ^ new.items()}):
        yield key, old.get(key), new.get(key)


def _key(row: Row) -> bytes:
    return row[0]


def changes(view: str, old: Snapshot, new: Snapshot, since: int | None = None) -> Iterator[Change]:
    """Yield what differs between two snapshots in a view; with *since*, in rows of windows that start no earlier."""
    database = view_database(view)

    def rows_of(snapshot: Snapshot) -> Rows:
        return lambda after: snapshot.scan(database, after=after, limit=CHUNK_ROWS)

    for key, was, now in differing(rows_of(old), rows_of(new)):
        encoded, old_value = (b"", None) if was is None else read_row(old.place(database), 0, key, was)
        encoded, new_value = (encoded, None) if now is None else read_row(new.place(database), 0, key, now)
        shown = plain_key(decode_key(encoded))
        if since is None or _starts(shown, since):
            kind = "removed" if now is None else "added" if was is None else "changed"
            yield Change(view, shown, kind, old_value, new_value)


def _starts(key: Any, since: int) -> bool:
    """Return whether *key* is that of a window's result, and the window starts at *since* or later."""
    return isinstance(key, list | tuple) and len(key) == 2 and type(key[1]) is int and key[1] >= since


def covered(old: dict[str, int | None], new: dict[str, int | None]) -> dict[str, int | None]:
    """Return which rows of views can be compared, of which *old* and *new* say what is right: ``Store.coverage``.

    By view the first start of a window; None: no row. A view that is not there is compared whole.
    """
    found: dict[str, int | None] = {}
    for view in old.keys() | new.keys():
        starts = [one[view] for one in (old, new) if view in one]
        known = [start for start in starts if start is not None]
        found[view] = max(known) if len(known) == len(starts) else None
    return found


def views_of(snapshot: Snapshot) -> set[str]:
    """Return the views that a snapshot holds rows of, or once held."""
    return {name for database in snapshot.databases() if (name := view_of(database)) is not None}


# Where both stand. ----------------------------------------------------------------------------------------------------


def standing(snapshot: Snapshot) -> dict[str, Restored]:
    """Return the newest checkpoint of each region in a snapshot."""
    found = {}
    for key, stored in snapshot.scan("regions"):
        region = key.decode()
        found[region] = Restored(region, **decode_value(unseal(stored, f"regions, key {region}")))
    return found


@contextmanager
def at_one_place(
    old: Path, new: Path, again: Callable[[dict[str, Restored], dict[str, Restored]], None]
) -> Iterator[tuple[Snapshot, Snapshot]]:
    """
    Give snapshots of both stores in which all regions that both have stand at the same place.

    Args:
        old, new: Folders of two versions.

        again: Called with where they stand when that differs; it waits a little, or raises.

    Raises UsageError: a version has no checkpoint yet.
    """
    with read_briefly(old) as first, read_briefly(new) as second:
        while True:
            # The follower's first: until the other is taken, that can only have gone on, and both meet again later.
            with second.snapshot() as its, first.snapshot() as mine:
                stands = standing(mine), standing(its)
                common = stands[0].keys() & stands[1].keys()
                if not common:
                    empty = old if not stands[0] else new
                    raise UsageError(
                        f"there is no checkpoint in {empty} that could be compared: that version has not run yet. Let "
                        "it run first."
                    )
                if all(place_of(stands[0][region]) == place_of(stands[1][region]) for region in common):
                    yield mine, its
                    return
            again(*stands)
