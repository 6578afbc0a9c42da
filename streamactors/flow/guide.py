"""The guide: a journal that a region follows instead of deciding anew. Pure.

It is fed with the journal's rows as far as they are durable, and says what comes next. What was done already is told by
the region's position alone, not by counting rows: a journal's ranges may be cut anywhere, by its checkpoints and by
who follows it. So the same position is found again in any journal that holds the same decisions: that of the version
that made them, and that of one which followed it.

    an entry counts as begun    when its first record, or its mark, was numbered: ``Position.entries`` of them
    a range goes on             while the next row reads on in the same partition: still the same entry
    a row is done               when its entry was begun, and for a range, when the partition was read up to its end
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .sequencing import Entry, Position


class Guide:
    """See the module's header."""

    def __init__(self, position: Position) -> None:
        self.closed = False
        """Whether nothing more will be fed: behind its last row the run ends."""

        self._position = position
        self._offsets = {(part.source, part.partition): part for part in position.partitions}
        self._rows: deque[tuple[int, Entry]] = deque()  # (entries that were begun with it, row), not known to be done
        self._entries = 0  # that the rows which were fed begin
        self._last: tuple[str, int] | None = None  # partition of the range that the last row may go on with

    def feed(self, rows: Iterable[Entry]) -> None:
        """Add rows, in the order of the journal."""
        for row in map(tuple, rows):
            reads = (row[1], row[2]) if row[0] == "read" else None
            if reads is None or reads != self._last:
                self._entries += 1
            self._last = reads
            if not self._is_done(self._entries, row):
                self._rows.append((self._entries, row))

    @property
    def next(self) -> Entry | None:
        """The row that is to be done next; None when all that were fed are done."""
        while self._rows and self._is_done(*self._rows[0]):
            self._rows.popleft()
        return self._rows[0][1] if self._rows else None

    def __len__(self) -> int:
        return len(self._rows)

    def _is_done(self, entries: int, row: Entry) -> bool:
        begun = self._position.entries
        if entries > begun:
            return False
        # A range may have grown since we did what there was of it.
        return entries < begun or row[0] != "read" or self._offsets[row[1], row[2]].offset >= row[4]
