"""What check_sink writes, epoch by epoch, and what must then be visible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streamactors.core.batch import Batch, Kind
from streamactors.core.keys import canonical_keys

Visible = Any
"""Of a sink that appends: for each partition, its values in order. Of one with upserts: {(key, window start): value}"""

Epoch = list[Batch]

_SMALL, _LARGE, _HUGE = 5, 300_000, 5_000_000  # characters of a text; four large ones make several payloads
_WINDOW_MS = 1_000

_APPENDS: tuple[list[tuple[int, int]], ...] = (
    [(3, _SMALL)],
    [(4, _SMALL), (1, _SMALL), (5, _SMALL)],
    [],
    [(2, _SMALL)],
    [(5, _LARGE), (3, _SMALL)],
    [(1, _SMALL)],
)
"""Epochs of batches: (values, characters of each)."""

_UPSERTS: tuple[list[str], ...] = (
    ["+a 0", "+b 0", "+c 0"],
    ["+b 0", "-c 0", "+a 1", "+b 0"],  # a correction of a correction
    [],
    ["+c 0", "-a 0", "+a 0", "+d 0", "-d 0"],
    ["+large-1 0", "+large-2 0", "+large-3 0", "+large-4 0", "+large-5 0", "+e 0"],
    ["-nobody 0", "-b 0", "-large-3 0"],
)
"""Epochs of rows: there or gone, key, window."""


class Appends:
    """Epochs of numbered values, and the comparison of what an appending sink shows."""

    def __init__(self, value: Callable[[int, str], Any], *, huge: bool = False) -> None:
        self._value = value
        self._made = 0
        self._by_epoch: list[list[str]] = []
        self.epochs: list[Epoch] = []
        for epoch in ([(1, _HUGE)], [(1, _SMALL)]) if huge else _APPENDS:
            made = [self._batch(count, characters) for count, characters in epoch]
            self.epochs.append(made)
            self._by_epoch.append([comparable(value) for batch in made for value in batch.values])

    def _batch(self, count: int, characters: int) -> Batch:
        numbers = range(self._made, self._made + count)
        self._made += count
        values = [self._value(number, f"{number} ä".ljust(characters, "x")) for number in numbers]
        keys = canonical_keys([f"key-{number % 5 if characters < _LARGE else 0}" for number in numbers])
        return Batch(values, list(numbers), keys, offsets=numbers)

    def require(self, visible: Visible, least: int, most: int) -> None:
        """Require all of the epochs up to *least*, nothing behind *most*, in order, once."""
        wanted = [value for epoch in self._by_epoch[:least] for value in epoch]
        allowed = [value for epoch in self._by_epoch[:most] for value in epoch]
        shown = [[comparable(value) for value in partition] for partition in visible]
        flat = [value for partition in shown for value in partition]
        if repeated := {value[:80] for value in flat if flat.count(value) > 1}:
            raise AssertionError(f"visible more than once: {sorted(repeated)}")
        if lost := [value[:80] for value in wanted if value not in flat]:
            raise AssertionError(f"{len(lost)} of {len(wanted)} values are not visible (epoch {least} is): {lost[:3]}")
        if early := [value[:80] for value in flat if value not in allowed]:
            raise AssertionError(f"{len(early)} values are visible and should not be: {early[:3]}")
        for number, partition in enumerate(shown):
            if partition != [value for value in allowed if value in partition]:
                raise AssertionError(f"partition {number} is not in the order in which it was written")


class Upserts:
    """Epochs of rows that replace and delete each other, and the comparison of what a sink with upserts shows."""

    def __init__(self, value: Callable[[int, str], Any], *, windowed: bool, huge: bool = False) -> None:
        self._value, self._windowed = value, windowed
        self._made = 0
        self._tables: list[dict[tuple[Any, Any], str]] = []
        self.epochs: list[Epoch] = []
        for epoch in (["+huge 0"], ["+a 0"]) if huge else _UPSERTS:
            self._add(epoch)

    def _add(self, rows: Sequence[str]) -> None:
        table = dict(self._tables[-1]) if self._tables else {}
        there = Kind.ON_TIME if self._windowed else Kind.UPDATE
        keys, values, windows, kinds = [], [], [], []
        for row in rows:
            key, window = row[1:].split()
            self._made += 1
            characters = _HUGE if key == "huge" else _LARGE if key.startswith("large") else _SMALL
            value = None if row[0] == "-" else self._value(self._made, f"{key} ä".ljust(characters, "x"))
            start = int(window) * _WINDOW_MS
            keys.append(key)
            values.append(value)
            windows.append((start, start + _WINDOW_MS))
            kinds.append(Kind.DELETE if row[0] == "-" else there)
            table[key, start if self._windowed else None] = "" if row[0] == "-" else comparable(value)
        ends = [end - 1 for _, end in windows]
        whole = Batch(values, ends, canonical_keys(keys), windows=windows if self._windowed else None, kinds=kinds)
        half = (len(rows) + 1) // 2
        self.epochs.append([part for part in (whole.slice(0, half), whole.slice(half, len(rows))) if len(part)])
        self._tables.append({identity: value for identity, value in table.items() if value})

    def require(self, visible: Visible, least: int, most: int) -> None:
        """Require that each row is as after the epoch *least*, or as after *most*."""
        before, after = ({} if not epoch else self._tables[epoch - 1] for epoch in (least, most))
        shown = {identity: comparable(value) for identity, value in visible.items()}
        for identity in sorted({*shown, *before, *after}, key=repr):
            found, allowed = shown.get(identity), (before.get(identity), after.get(identity))
            if found not in allowed:
                wanted = " or ".join(sorted({"no row" if one is None else one[:80] for one in allowed}))
                raise AssertionError(f"row {identity} is {found and found[:80]}, should be {wanted} (epoch {most})")


Script = Appends | Upserts
_json = msgspec.json.Encoder(order="deterministic").encode


def comparable(value: Any) -> str:
    """Return *value* as text that is equal where values are."""
    return _json(value).decode()
