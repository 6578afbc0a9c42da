"""Panes put together: the accumulator of a window from those of its panes, without merging each of them each time.

Sliding windows share most of their panes: of 1,440 the next window has 1,439. So stretches of panes are merged once and
kept. A *block* of level k is 2**k panes that begin at a multiple of 2**k; it is made of two blocks of the level below.
A window is the fewest blocks that fit into it, from left to right:

    panes      0 1 2 3 4 5 6 7 8 9 …             window [3, 10)  =  [3]  [4 5 6 7]  [8 9]
    blocks     └─┘ └─┘ └─┘ └─┘ └─┘
               └─────┘ └─────┘
               └─────────────┘

With n panes in a window a firing merges up to 2 log2(n) blocks for each key, half of that on average; and a pane's
entries are merged into each level once, in which the entries of one key become one. A record changes its pane alone.

  (P1) What is returned for a window is a function of its panes' accumulators, and of nothing else: the grouping is that
       of the numbers of the panes, on a grid that never moves, and a block that is not kept is made again. So float
       sums don't depend on when a window is looked at, on what was looked at before, or on a restart (T1).
  (P2) A block that is kept equals what its panes would give now. A record that comes into a pane which is in such
       blocks changes them at once, for its key: ``change``. There are few such records: blocks are made of panes which
       the watermark has passed.

If we crash: blocks are gone. They are no state; the first firing after a restart makes those that it needs again.

Why not two stacks, or subtraction: a float that was added can't be taken out again, and two stacks group by when they
were turned over, so that (P1) would need their state in each checkpoint.

Source: FlatFAT, Tangwongsan et al., "General incremental sliding-window aggregation", 2015, without its root.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from streamactors.core.keys import CanonicalKey
from streamactors.core.limits import CACHE_ENTRIES_MAX

from .aggregates import Aggregate
from .windows import Windows

if TYPE_CHECKING:
    from streamactors.durable.state import KeyedState

Entries = dict[CanonicalKey, Any]
"""Accumulators by key."""

Block = tuple[int, int]
"""(level, number): pane number * 2**level and the 2**level - 1 behind it."""


def blocks_of(first: int, behind: int) -> Iterator[Block]:
    """Yield the fewest blocks that make up the panes *first* to *behind* - 1, in order."""
    while first < behind:
        level = (behind - first).bit_length() - 1
        if first:
            level = min(level, (first & -first).bit_length() - 1)
        yield level, first >> level
        first += 1 << level


class Panes:
    """Put windows together from the panes in a keyed state. See the module's header."""

    def __init__(
        self,
        aggregate: Aggregate,
        windows: Windows,
        state: KeyedState,
        name: str,
        *,
        keys: list[CanonicalKey] | None = None,
        entries_max: int = CACHE_ENTRIES_MAX,
    ) -> None:
        """
        Begin without blocks.

        Args:
            aggregate: What is kept for a key.

            windows: Says which panes a window has.

            state: Holds the panes, each in the namespace of its start.

            name: The operator, for errors.

            keys: The only ones that matter; None: all.

            entries_max: More are not kept by ``trim``; what goes is made again when it is needed.
        """
        self._aggregate = aggregate
        self._windows = windows
        self._state = state
        self._name = name
        self._keys = keys
        self._entries_max = entries_max
        self._blocks: dict[Block, Entries] = {}
        self._level_max = 0

    def window(self, start: int) -> Entries:
        """Return the accumulators of a window by key, in no order."""
        found: Entries = {}
        for block in self._blocks_of(start):
            found = self._both(found, self._block(block))
        return found

    def one(self, start: int, key: CanonicalKey) -> Any:
        """Return what a window has for one key, or None."""
        found = None
        for block in self._blocks_of(start):
            acc = self._some(block, (key,)).get(key)
            if acc is not None:
                found = acc if found is None else self._aggregate.merge([found], [acc], self._name)[0]
        return found

    def change(self, pane: int, keys: Iterable[CanonicalKey]) -> None:
        """Take note that the state has other accumulators in *pane* for some keys (P2)."""
        if not self._blocks:
            return
        number = self._number(pane)
        for level in range(1, self._level_max + 1):
            number >>= 1
            if (kept := self._blocks.get((level, number))) is not None:
                left, right = (self._some((level - 1, half), keys) for half in (2 * number, 2 * number + 1))
                kept.update(self._both(left, right))

    def forget(self, start: int) -> None:
        """Forget the blocks that begin before the pane that starts at *start*: no window will ask for them."""
        first = self._number(start)
        self._blocks = {block: kept for block, kept in self._blocks.items() if block[1] << block[0] >= first}

    def trim(self) -> None:
        """Forget blocks while they hold more than the limit: small ones first, which are soon made again."""
        excess = sum(map(len, self._blocks.values())) - self._entries_max
        if excess > 0:
            for block in sorted(self._blocks):
                excess -= len(self._blocks.pop(block))
                if excess <= 0:
                    return

    def _number(self, pane: int) -> int:
        return (pane - self._windows.offset) // self._windows.pane

    def _blocks_of(self, start: int) -> Iterator[Block]:
        first = self._number(start)
        return blocks_of(first, first + self._windows.panes)

    def _block(self, block: Block) -> Entries:
        """Return all that a block holds; not to be changed."""
        level, number = block
        if not level:
            return self._pane(number)
        kept = self._blocks.get(block)
        if kept is None:
            kept = self._both(self._block((level - 1, 2 * number)), self._block((level - 1, 2 * number + 1)))
            self._blocks[block] = kept
            self._level_max = max(self._level_max, level)
        return kept

    def _pane(self, number: int) -> Entries:
        if self._keys is not None:
            return self._some((0, number), self._keys)
        return self._state.entries(self._start(number))

    def _some(self, block: Block, keys: Iterable[CanonicalKey]) -> Entries:
        """Return what a block holds for some keys."""
        level, number = block
        if level:
            held = self._block(block)
            return {key: held[key] for key in keys if key in held}
        keys = list(keys)
        accs = self._state.get_many(self._start(number), keys)
        return {key: acc for key, acc in zip(keys, accs, strict=True) if acc is not None}

    def _start(self, number: int) -> int:
        return self._windows.start(number * self._windows.pane + self._windows.offset)

    def _both(self, older: Entries, newer: Entries) -> Entries:
        """Return what two stretches of time hold together: a dict of its own."""
        together = older | newer
        keys = list(filter(older.__contains__, newer))
        if keys:
            old, new = list(map(older.__getitem__, keys)), list(map(newer.__getitem__, keys))
            together.update(zip(keys, self._aggregate.merge(old, new, self._name), strict=True))
        return together
