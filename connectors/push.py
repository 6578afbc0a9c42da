"""Push: a source that other code of the same event loop gives records to, from the handler of a web service say.

    answers = Push(Submission)
    pipeline.source(answers)...
    async with run(pipeline, "data", settings=Settings(guarantee=Guarantee.AT_LEAST_ONCE)):
        await answers.send(submission)        # returns when the record is safe

*Safe* is what the job's guarantee makes of it: at-least-once: the checkpoint that holds the record is durable;
at-most-once: it was read; behind ``through_log``: it is durable in the log (and then the job may be exactly-once).

Until then the record is kept here, and counts: at most ``records_max`` records and ``bytes_max`` bytes wait, and a
sender waits for room (B). When an attempt of the job fails, the next one is given everything that is not safe, in the
order in which it was sent.

Values go through JSON on their way: what comes out is what a topic would give, whatever the sender does with its object
afterwards, and a value that is not of the declared type is the sender's error, not the job's.

  (U1) A send returns only when all its records are safe. When it raises UsageError, none was taken. When it raises
       Unacknowledged, the job has ended and each of them may or may not be counted.
  (U2) No send waits for a job that has ended: ``job_ended`` answers all of them.
  (U3) Offsets count from where the reader starts. What lies below that is in a durable checkpoint: it is safe.

A process that dies takes with it what was sent and is not safe. Its senders were not answered: that is the contract
with the outside, which sends again.

A send that is cancelled is not taken back: its records are counted, or not, as if it had gone on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from streamactors.core.batch import Batch
from streamactors.core.connectors import EndOfInput, Replay, World
from streamactors.core.errors import Unacknowledged, UsageError
from streamactors.core.limits import MAILBOX_BYTES_MAX, MAILBOX_RECORDS_MAX, RECORD_BYTES_MAX

T = TypeVar("T")


class Push(Generic[T]):
    """
    A source that is sent to. See the module's header.

    Args:
        type:
            Of a value; what is sent is checked against it. None: whatever JSON can hold.

        id:
            Name of the source in the job; two of one pipeline need two names.

        records_max:
            Records that wait to be safe, at most; a sender waits for room. (At-least-once, that is the most that is
            taken in one checkpoint interval.)

        bytes_max:
            Bytes of them, as JSON; a single larger record is taken alone.
    """

    replay = Replay.UNACKNOWLEDGED
    encoding = "json"
    """Of the original records."""

    def __init__(
        self,
        type: type[T] | None = None,  # noqa: A002 - the contract's name
        *,
        id: str = "push",  # noqa: A002 - the contract's name
        records_max: int = MAILBOX_RECORDS_MAX,
        bytes_max: int = MAILBOX_BYTES_MAX,
    ) -> None:
        if records_max < 1 or bytes_max < 1:
            raise UsageError(f"push {id}: records_max={records_max}, bytes_max={bytes_max}. Give at least 1 of each.")
        self.id = id
        self.type = type
        self.closed = False
        """Whether nothing more will be sent."""

        self._records_max = records_max
        self._bytes_max = bytes_max
        self._encode = msgspec.json.Encoder(order="deterministic").encode
        self._decode = msgspec.json.Decoder(Any if type is None else type).decode
        self._session: _Session | None = None

    def __str__(self) -> str:
        return "what is pushed"

    def __repr__(self) -> str:
        waiting = 0 if self._session is None else len(self._session.records)
        return f"Push({self.id!r}, {waiting} not safe)"

    async def send(self, value: T) -> None:
        """Give one record to the job; see ``send_many``."""
        await self.send_many([value])

    async def send_many(self, values: Iterable[T]) -> None:
        """
        Give *values* to the job, in their order, and return when all are safe.

        Waits while there is no room. Values of concurrent calls are not mixed.

        Raises:
            UsageError: none was taken: no job reads here (yet, or any more), a value is not of the type, or the call
            comes from another event loop.

            Unacknowledged: the job ended before all were safe; each may or may not have been counted.
        """
        records = [self._checked(value) for value in values]
        session = self._open_session()
        call = _Call(len(records))
        async with session.turn:
            for value, line in records:
                if not await session.room(len(line)):
                    call.give_up()
                    break
                session.add(_Pushed(value, line, call))
        await call.until_safe()
        if call.taken < len(records) or call.unsafe:
            raise self._unanswered(call, len(records))

    def close(self) -> None:
        """Say that nothing more will be sent: a bounded run ends when all that was sent is read."""
        self.closed = True
        if self._session is not None:
            self._session.more.set()

    # The source. ------------------------------------------------------------------------------------------------------

    async def ends(self, world: World) -> list[None]:
        """Take records from now on; where it ends is not known before ``close``."""
        if self._session is not None:
            raise UsageError(f"push {self.id} is read by a running job already. Give each job a Push of its own.")
        self._session = _Session(self._records_max, self._bytes_max)
        return [None]

    async def reader(self, world: World, partition: int, start: int) -> _PushReader:
        """Return a reader that is given all that is not safe, from offset *start* on."""
        if self._session is None:
            await self.ends(world)
        assert self._session is not None, "it was made by ends()"
        self._session.rewind(start)
        return _PushReader(self, self._session, start)

    def job_ended(self) -> None:
        """Answer all who wait (U2); take nothing more until the next job."""
        if self._session is not None:
            self._session.end_all()
            self._session = None

    def _checked(self, value: T) -> tuple[Any, bytes]:
        try:
            line = self._encode(value)
            decoded = self._decode(line)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:  # ValueError: msgspec's own among them
            raise UsageError(
                f"push {self.id}: {_short(value)} was not taken: {error}. Send what JSON can hold"
                f"{'' if self.type is None else f', of type {_name(self.type)}'}."
            ) from error
        if len(line) > RECORD_BYTES_MAX:
            raise UsageError(
                f"push {self.id}: a record of {len(line):,} bytes was not taken; limits.RECORD_BYTES_MAX is "
                f"{RECORD_BYTES_MAX:,}. Store it elsewhere and send where it is."
            )
        return decoded, line

    def _open_session(self) -> _Session:
        if self.closed:
            raise UsageError(f"push {self.id} was closed: nothing more can be sent. Keep it open while you send.")
        if self._session is None:
            raise UsageError(
                f"no job reads push {self.id}, nothing was taken. Send while its job runs, inside `async with run(...)`"
                "; a job that has ended or failed reads no more (job.state, job.wait())."
            )
        if self._session.loop is not asyncio.get_running_loop():
            raise UsageError(
                f"push {self.id} was sent to from another event loop than its job's, nothing was taken. Use "
                "asyncio.run_coroutine_threadsafe(push.send(...), loop), or append to a topic."
            )
        return self._session

    def _unanswered(self, call: _Call, records: int) -> Exception:
        if not call.taken:
            return UsageError(
                f"the job that reads push {self.id} ended while a send waited for room: nothing was taken."
            )
        return Unacknowledged(
            f"push {self.id}: the job ended before {call.unsafe:,} of {call.taken:,} records were known to be safe: "
            f"they may or may not have been counted; {records - call.taken:,} more were not taken. See job.wait() for "
            "why it ended; send them again where counting twice does less harm than losing them."
        )


class _Call:
    """One send: how many of its records were taken, and how many of these are not safe."""

    def __init__(self, records: int) -> None:
        self.taken = 0
        self.unsafe = 0
        self._left = records  # not safe, taken or not
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer_if(records == 0)

    def take(self) -> None:
        self.taken += 1
        self.unsafe += 1

    def safe(self) -> None:
        self.unsafe -= 1
        self._left -= 1
        self._answer_if(self._left == 0)

    def give_up(self) -> None:
        self._answer_if(True)

    async def until_safe(self) -> None:
        """Return when all is safe, or nothing will be any more."""
        if self.taken:
            await self._answered

    def _answer_if(self, due: bool) -> None:  # noqa: FBT001 - a condition
        if due and not self._answered.done():
            self._answered.set_result(None)


@dataclass(slots=True)
class _Pushed:
    value: Any
    line: bytes
    call: _Call


class _Session:
    """What was sent to one job and is not safe, in order; the first has offset ``base``."""

    def __init__(self, records_max: int, bytes_max: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn = asyncio.Lock()
        """Held by the sender whose records are being taken: in the order of the calls, never mixed."""

        self.more = asyncio.Event()
        self.records: list[_Pushed] = []
        self.base = 0
        self._given = 0  # of records, to the reader of this attempt
        self._bytes = 0
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._ended = False
        self._room: asyncio.Event = asyncio.Event()

    @property
    def end(self) -> int:
        return self.base + len(self.records)

    async def room(self, size: int) -> bool:
        """Return True when *size* bytes more may wait (B), False when the job has ended."""
        while (
            not self._ended
            and self.records
            and not (len(self.records) < self._records_max and self._bytes + size <= self._bytes_max)
        ):
            self._room.clear()
            await self._room.wait()
        return not self._ended

    def add(self, pushed: _Pushed) -> None:
        pushed.call.take()
        self.records.append(pushed)
        self._bytes += len(pushed.line)
        self.more.set()

    def give(self, first: int, count: int) -> list[_Pushed]:
        at = first - self.base
        given = self.records[at : at + count]
        self._given = at + len(given)
        return given

    def acknowledge(self, end: int) -> None:
        count = min(end - self.base, self._given)
        if count <= 0:
            return
        safe, self.records = self.records[:count], self.records[count:]
        self.base += count
        self._given -= count
        for pushed in safe:
            self._bytes -= len(pushed.line)
            pushed.call.safe()
        self._room.set()

    def rewind(self, start: int) -> None:
        """A new attempt begins at *start* (U3)."""
        self.acknowledge(start)
        self.base, self._given = start, 0

    def end_all(self) -> None:
        """Answer every call; what is here is not safe, and nobody will make it so."""
        self._ended = True
        for pushed in self.records:
            pushed.call.give_up()
        self._room.set()


class _PushReader:
    def __init__(self, push: Push[Any], session: _Session, start: int) -> None:
        self._push = push
        self._session = session
        self._next = start

    async def read(self, records_max: int) -> tuple[Batch, int] | None:
        given, first = self._session.give(self._next, records_max), self._next
        if not given:
            return None
        self._next += len(given)
        lines = [pushed.line for pushed in given]
        origin = _PushOrigin(self._push.id, first, lines)
        values = [pushed.value for pushed in given]
        return Batch(values, offsets=range(first, self._next), origin=origin, bytes=sum(map(len, lines))), self._next

    def end(self) -> int:
        return self._session.end

    async def wait(self) -> None:
        while self._session.end <= self._next:
            if self._push.closed:
                raise EndOfInput
            self._session.more.clear()
            await self._session.more.wait()

    async def acknowledge(self, end: int) -> None:
        self._session.acknowledge(end)

    async def close(self) -> None:
        """What was given and is not safe stays in the session, for the next attempt."""


@dataclass(frozen=True, slots=True)
class _PushOrigin:
    source: str
    first: int
    lines: list[bytes]
    partition: int = 0

    def originals(self, offsets: Sequence[int]) -> list[bytes]:
        return [self.lines[offset - self.first] for offset in offsets]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:200] + "…"


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
