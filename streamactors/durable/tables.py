"""What a partition remembers of its writers: each producer's last sequence, each sink's last stamp. Pure.

A retried append must be harmless, and a sink's commit must happen once, however often it is tried: both are decided
here by comparing with what the log itself holds, never by what a caller believes.

Each frame carries what it changes. Each segment starts with a frame of the whole tables, so opening a partition reads
its last segment only, and retention may remove the others.

  (P1) An append with a producer's sequence is written only if the sequence is greater than that producer's last.
  (P2) A stamped append is written only if the last stamp of its (job, sink) is the one that it expects. If it is
       already its own, there is nothing to do. Anything else is SinkConflict: a guess would lose or repeat records.

Producers that have gone can't be told from silent ones. Above PRODUCERS_KEPT, the ones that have been silent longest
are forgotten at the next segment; the only consequence is that a retry of theirs, older than a segment, would be taken
for new. Stamps are never forgotten: there is one for each (job, sink).
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import msgspec

from streamactors.core.errors import SinkConflict

from .frames import Stamp

PRODUCERS_KEPT = 10_000
"""Producers that a new segment starts with: more than one partition meets at a time, in half a megabyte."""

OFFSET_UNKNOWN = -1
"""The answer to a retry that is older than its producer's last append: it is durable; where, is no longer known."""

Producer = tuple[str, int]
"""(a producer's id, the sequence of its append)"""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(tuple[list[tuple[str, int, int]], list[tuple[str, str, str, int, int, int]]]).decode


class Tables:
    """The producers' and the stamps' table of one partition."""

    def __init__(self) -> None:
        self._producers: dict[str, tuple[int, int]] = {}  # id -> (last sequence, its first offset); last active last
        self._stamps: dict[tuple[str, str], Stamp] = {}

    def seen(self, producer: Producer) -> int | None:
        """Return the offset of an append that is already in the log, or None if it is new (P1)."""
        last, offset = self._producers.get(producer[0], (-1, OFFSET_UNKNOWN))
        if producer[1] > last:
            return None
        return offset if producer[1] == last else OFFSET_UNKNOWN

    def last_stamp(self, job: str, sink: str) -> Stamp | None:
        """Return the stamp of the last commit of *sink*."""
        return self._stamps.get((job, sink))

    def admits(self, stamp: Stamp, expect: Stamp | None, where: str) -> bool:
        """Return whether the commit is to be written (P2); False if it is done already."""
        last = self._stamps.get((stamp.job, stamp.sink))
        if last == stamp:
            return False
        if last == expect:
            return True
        raise SinkConflict(
            f"{where} shows {last} for sink {stamp.sink} of job {stamp.job}; commit {stamp} expected {expect}. "
            "Another run of this job has written there since, or the job's state is older than its output. "
            "Nothing was written. Start the job from the state that belongs to this output, or with a new output."
        )

    def note_producer(self, producer: Producer, offset: int) -> None:
        """Remember that *producer*'s append is in the log at *offset*."""
        self._producers.pop(producer[0], None)
        self._producers[producer[0]] = (producer[1], offset)

    def note_stamp(self, stamp: Stamp) -> None:
        """Remember that the commit is in the log."""
        self._stamps[stamp.job, stamp.sink] = stamp

    def encode(self) -> bytes:
        """Return the whole tables, as a new segment starts with them."""
        for name in list(self._producers)[: max(0, len(self._producers) - PRODUCERS_KEPT)]:
            del self._producers[name]
        return encode_changes([(name, *last) for name, last in self._producers.items()], list(self._stamps.values()))

    def apply(self, extras: bytes) -> None:
        """Take over what a frame changes; on a new segment's first frame, everything."""
        if not extras:
            return
        producers, stamps = _decode(extras)
        for name, sequence, offset in producers:
            self.note_producer((name, sequence), offset)
        for fields in stamps:
            self.note_stamp(Stamp(*fields))


def stamps_in(extras: bytes) -> list[Stamp]:
    """Return the stamps in what a frame changes."""
    return [Stamp(*fields) for fields in _decode(extras)[1]] if extras else []


def encode_changes(producers: list[tuple[str, int, int]], stamps: list[Stamp]) -> bytes:
    """Return what a frame changes, (id, sequence, first offset) for each producer; nothing for nothing."""
    if not producers and not stamps:
        return b""
    rows: list[tuple[Any, ...]] = [astuple(stamp) for stamp in stamps]
    return _encode((producers, rows))
