"""Putting originals back: the record of each dead letter into the topic that it came from, once, whatever happens.

What was put back is written down in a topic of its own, ``retried.<job>.<region>``, of one partition, in this order:

    1. an intent for each record: which one, so also where it goes. The intent's key is the record's key
    2. the original is appended to the partition that it came from, by the producer ("retry:<that topic>", the
       intent's offset)
    3. a mark: all intents below an offset are done, and where the originals stand now

  (R1) A record has one intent, ever: who writes intents holds the topic's writer's lock, and has read all of them.
  (R2) Sequences are offsets of intents, and originals are appended in the order of their intents. So in each partition
       they rise, and an append that is repeated is recognised by the log itself (tables.py, P1).

If we are killed behind 1, the next retry does 2 and 3 for the intents that have no mark, and so repeats appends whose
answer was lost. There is one producer for all letters of a region: with one for each, ten thousand letters would make
the log forget everybody else's sequences.

Records are named, not letters: a promotion puts other letters into the places of the old ones, and two operators may
have left out the same record. Only a topic can take a record back, and only as long as it holds the original, because
its key stands nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import msgspec

from streamactors.core.errors import StorageError, UsageError
from streamactors.durable.frames import Records
from streamactors.durable.log import Log, Topic
from streamactors.durable.tables import OFFSET_UNKNOWN
from streamactors.flow.dead_letters import TOPIC_PREFIX

from .letters import Letter, Record, chunks

GROUP_LETTERS = 500
"""Letters whose intents are one append, and whose originals wait together: few enough that little is repeated after a
kill, enough that they share a few syncs."""

_PREFIX = "retried."


class _Intent(msgspec.Struct, tag="intent"):
    record: Record

    @property
    def target(self) -> tuple[str, int]:
        return self.record[0], self.record[1]


class _Mark(msgspec.Struct, tag="done"):
    below: int  # this offset, all intents are done
    places: list[tuple[int, int]]  # since the mark before: an intent's offset, and its original's; -1: not known


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Intent | _Mark).decode


class _Erased(UsageError):
    """The record is one that `streamactors forget` has erased."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an original was put back."""

    topic: str
    partition: int
    offset: int | None
    """None: not known, or not done yet."""

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}" + ("" if self.offset is None else f" at {self.offset}")


@dataclass
class _Known:
    """What the topic of retries says."""

    intents: dict[int, tuple[_Intent, bytes | None]] = field(default_factory=dict)  # by offset, with the key
    places: dict[Record, Place] = field(default_factory=dict)
    done_below: int = 0

    def note(self, offset: int, value: bytes, key: bytes | None) -> None:
        record = _decode(value)
        if isinstance(record, _Intent):
            self.intents[offset] = record, key
            self.places[record.record] = Place(*record.target, None)
            return
        for fulfilled, place in record.places:
            if fulfilled in self.intents:  # else it was erased, as the letter was
                intent, _ = self.intents[fulfilled]
                self.places[intent.record] = Place(*intent.target, None if place == OFFSET_UNKNOWN else place)
        self.done_below = record.below

    def pending(self) -> list[tuple[int, _Intent, bytes | None]]:
        return [(offset, *found) for offset, found in self.intents.items() if offset >= self.done_below]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a letter that was to be put back."""

    letter: Letter
    place: Place | None = None
    key: bytes | None = None
    """Of its record."""

    refused: str | None = None
    already: bool = False
    """It was put back before."""

    together: bool = False
    """It goes back with another of the letters that were chosen, which is about the same record."""

    @property
    def goes(self) -> bool:
        """Whether its original is to be appended."""
        return self.place is not None and not self.already and not self.together


def retries_topic(letters: Topic) -> str:
    """Return the name of the topic that says which of *letters* were put back."""
    return _PREFIX + letters.name.removeprefix(TOPIC_PREFIX)


async def put_back_so_far(log: Log, letters: Topic) -> dict[Record, Place]:
    """Return where records of *letters* were put back. Only reads."""
    topic = await log.topic(retries_topic(letters))
    return {} if topic is None else (await _read(topic)).places


async def retry(log: Log, letters: Topic, chosen: Sequence[Letter], *, dry_run: bool = False) -> list[Outcome]:
    """
    Put the originals of *chosen*, letters of one region, back into their topics; return what became of each.

    A job that reads the topic meets them again at its end, in all its branches: also those that handled them before.

    Raises:
        Held: another process writes one of those topics, or retries the same letters; nothing was changed.
    """
    if dry_run:
        return await _all_judged(log, await put_back_so_far(log, letters), chosen)
    topic = await log.create_topic(retries_topic(letters))
    await topic.partition(0).claim()  # (R1)
    retries = _Retries(log, topic, await _read(topic))
    await retries.finish()
    outcomes = await _all_judged(log, retries.known.places, chosen)
    going = [outcome for outcome in outcomes if outcome.goes]
    await retries.take_locks({_intent_of(outcome.letter).target for outcome in going})
    for start in range(0, len(going), GROUP_LETTERS):
        await retries.put_back(going[start : start + GROUP_LETTERS])
    return [retries.told(outcome) for outcome in outcomes]


class _Retries:
    """One retry under way; holds the lock on the topic of retries."""

    def __init__(self, log: Log, topic: Topic, known: _Known) -> None:
        self._log = log
        self._own = topic.partition(0)
        self._producer = f"retry:{topic.name}"
        self._originals: dict[Record, bytes | None] = {}  # what is put back now
        self.known = known

    async def take_locks(self, targets: set[tuple[str, int]]) -> None:
        """Take the writer's locks of the partitions that get something, so that a refusal comes before any intent."""
        for name, number in sorted(targets):
            await (await self._target(name)).partition(number).claim()

    async def put_back(self, outcomes: Sequence[Outcome]) -> None:
        """Write intents for letters that can be put back, and fulfil them."""
        intents = [_intent_of(outcome.letter) for outcome in outcomes]
        originals = [outcome.letter.content.original for outcome in outcomes]
        self._originals = {intent.record: data for intent, data in zip(intents, originals, strict=True)}
        values = [_encode(intent) for intent in intents]
        keys = [outcome.key for outcome in outcomes]
        first = await self._own.append(Records.of(values, keys))
        for offset, (value, key) in enumerate(zip(values, keys, strict=True), first):
            self.known.note(offset, value, key)
        await self.finish()

    async def finish(self) -> None:
        """Fulfil the intents that have no mark (R2)."""
        pending = self.known.pending()
        if not pending:
            return
        await self.take_locks({intent.target for _, intent, _ in pending})
        # The locks are there, so each task comes to the partition's queue at once: in this order.
        places = await asyncio.gather(*(self._append(offset, intent, key) for offset, intent, key in pending))
        mark = _Mark(
            pending[-1][0] + 1, [(offset, place) for (offset, _, _), place in zip(pending, places, strict=True)]
        )
        self.known.note(await self._own.append(Records.of([_encode(mark)])), _encode(mark), None)

    def told(self, outcome: Outcome) -> Outcome:
        """Return *outcome* with where the original stands now."""
        if outcome.refused is not None:
            return outcome
        return replace(outcome, place=self.known.places[_intent_of(outcome.letter).record])

    async def _append(self, sequence: int, intent: _Intent, key: bytes | None) -> int:
        name, number = intent.target
        original = self._originals.get(intent.record)
        if original is None:  # the intent is of a retry that was killed
            try:
                original = await self._original(intent.record)
            except _Erased:  # since then; it must not come back
                return OFFSET_UNKNOWN
        partition = (await self._target(name)).partition(number)
        return await partition.append(Records.of([original], [key]), producer=(self._producer, sequence))

    async def _original(self, record: Record) -> bytes:
        source, number, offset, checksum = record
        try:
            original, _ = await _standing(self._log, source, number, offset)
        except _Erased:
            raise
        except UsageError as error:
            raise UsageError(
                f"{error}, and a retry that was killed had not put it back yet. {self._way_out}"
            ) from error
        if crc32(original) != checksum:
            raise UsageError(
                f"a retry that was killed was to put {source}/{number} at {offset} back, where another record stands "
                f"now. {self._way_out}"
            )
        return original

    @property
    def _way_out(self) -> str:
        return f"Delete topic {self._own.topic} if all letters may be put back once more."

    async def _target(self, name: str) -> Topic:
        topic = await self._log.topic(name)
        if topic is None:
            raise StorageError(
                f"topic {name} was deleted while records were being put back into it. Make it again, and repeat."
            )
        return topic


async def _read(topic: Topic) -> _Known:
    known, partition = _Known(), topic.partition(0)
    async for chunk in chunks(partition, await partition.first_offset(), partition.durable_end()):
        for offset, value, key in zip(range(chunk.first, chunk.end), chunk.values(), chunk.keys(), strict=True):
            try:
                known.note(offset, value, key)
            except msgspec.MsgspecError as error:
                raise UsageError(
                    f"{topic.name} at offset {offset} is no note of a retry ({error}): somebody else has written into "
                    "it. Delete that topic if all letters may be put back once more."
                ) from error
    return known


async def _all_judged(log: Log, known: dict[Record, Place], letters: Sequence[Letter]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    going: set[Record | None] = set()
    for letter in letters:
        outcome = await _judged(log, known, letter)
        outcomes.append(replace(outcome, together=outcome.goes and letter.record in going))
        if outcome.goes:
            going.add(letter.record)
    return outcomes


async def _judged(log: Log, known: dict[Record, Place], letter: Letter) -> Outcome:
    """Return whether the record of *letter* was put back before, can be, or why not."""
    content, record = letter.content, letter.record
    if content.source is None:
        return Outcome(letter, refused="it came from no record: it is a result, such as a window's")
    if record is None:
        return Outcome(letter, refused=f"source {content.source} keeps no bytes of a record")
    if place := known.get(record):
        return Outcome(letter, place, already=True)
    source, number, offset, _ = record
    try:
        original, key = await _standing(log, source, number, offset)
    except UsageError as error:
        return Outcome(letter, refused=str(error))
    if original != content.original:
        return Outcome(letter, refused=f"{letter.origin} holds another record now")
    return Outcome(letter, Place(source, number, None), key)


async def _standing(log: Log, source: str, number: int, offset: int) -> tuple[bytes, bytes | None]:
    """Return value and key of the record that stands in a topic at *offset*. Raises UsageError: none can be read."""
    try:
        topic = await log.topic(source)
    except UsageError:  # the source's name can't be a topic's
        topic = None
    if topic is None or number >= topic.partitions:
        raise UsageError(f"source {source} is no topic of this log; only a topic can take a record back")
    partition = topic.partition(number)
    if not await partition.first_offset() <= offset < partition.durable_end():
        raise UsageError(f"retention has removed {source}/{number} at {offset}, and with it the record's key")
    found = [(chunk.values()[0], chunk.keys()[0]) async for chunk in chunks(partition, offset, offset + 1)]
    if not found:
        raise _Erased(f"{source}/{number} at {offset} was erased")
    return found[0]


def _intent_of(letter: Letter) -> _Intent:
    assert letter.record is not None, "judged before"
    return _Intent(letter.record)
