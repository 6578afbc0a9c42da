"""Why nothing moves: from plain facts about a region to sentences for whoever is woken at night. Pure.

Each sentence names who waits, for whom, and since when; so that the next step is to look at that one. They come in the
order in which one would look: what the supervisor does, what has been handed out of the process, what the user's code
does, then the way of the records from the last stage back to the source, then event time.

Most of these waits are how the engine works (a mailbox is full when its stage is the slowest), so a sentence is not a
complaint. What is shown where, and when, is up to who shows it: ops/display.py and the progress lines do when nothing
has moved for some seconds.

Times of day are UTC. A wait of less than PATIENCE_SECONDS is no news.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from streamactors.core.batch import Window
from streamactors.core.times import MIN_TIME

from .states import State

PATIENCE_SECONDS = 1.0
"""Waits below it are not told: an epoch takes some ms, a slow disk some hundred."""

_NAMED = 3
"""Of a list: more names than that say less."""


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """One partition of a source."""

    source: str
    partition: int
    offset: int
    end: int
    reach: int = MIN_TIME
    """Its greatest event time minus the allowed disorder, ms; MIN_TIME while it has brought nothing."""

    disorder: int = 0
    quiet: float | None = None
    """Seconds for which its reader has waited at the durable end, with all it had read taken."""

    idle: bool = False
    idle_after_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.source}/{self.partition}"


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage."""

    name: str
    records: int
    """In its mailboxes."""

    records_max: int
    full: bool = False
    """Whether a mailbox of it has no room."""

    blocked: bool = False
    """Whether it waits for room behind it."""

    per_second: float | None = None
    """Records that it handles in a second, when it is known."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """The oldest call in flight of an operator that awaits."""

    operator: str
    function: str
    seconds: float
    calls: int
    """In flight."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a region at one moment. Seconds are durations up to now."""

    state: State
    error: str | None = None
    """The last failure."""

    attempt: int = 1
    restart_in: float | None = None
    back_with: tuple[str, Sequence[str]] | None = None
    """(the region that failed, regions that still stop), when it restarts together with others."""

    room: str | None = None
    """Why it waits for room."""

    handed: tuple[int, str, float] | None = None
    """(epoch, to whom, seconds): what somebody outside has not answered for."""

    writing: Sequence[tuple[str, float]] = ()
    """(sink, seconds): writes at once that are under way."""

    aligning: tuple[int, float, Sequence[str]] | None = None
    """(epoch, seconds, who has not handed over)."""

    calls: Sequence[CallFacts] = ()
    stages: Sequence[StageFacts] = ()
    """Downstream of each other, the first one first."""

    stood: float = 0.0
    """Seconds since a record was numbered."""

    held: bool = False
    """Whether numbering waits for a checkpoint."""

    exhausted: bool = False
    """Whether nothing more will be numbered."""

    follows: bool = False
    wanted: tuple[str, int, int] | None = None
    """(source, partition, offset) that the journal which is followed wants next, and that is not there."""

    partitions: Sequence[PartitionFacts] = ()
    live: bool = True
    horizon: int = MIN_TIME
    """The watermark + 1."""

    timed: bool = False
    """Whether the region has event time."""

    paced: bool = False
    """Whether event time goes on with the clock when all partitions are idle."""

    windows: Sequence[tuple[str, Window]] = field(default=())
    """(operator, the window that it fires next)."""


def reasons(facts: Facts) -> list[str]:
    """Return why the region does not move, or what it moves as fast as; the most telling first."""
    found = [*_of_supervisor(facts), *_outside(facts), *_calls(facts)]
    if facts.state in (State.RUNNING, State.DRAINING, State.WAITING):
        found += [*_epoch(facts), *_mailboxes(facts)]
        if not facts.exhausted:
            found += [*_input(facts), *_windows(facts)]
    return found


def _of_supervisor(facts: Facts) -> Iterator[str]:
    after = f" after {facts.error}" if facts.error else ""
    match facts.state:
        case State.STARTING:
            yield "is being built from its last checkpoint"
        case State.RESTARTING if facts.handed is not None:
            epoch, to, seconds = facts.handed
            yield f"restarts when {to} has answered for epoch {epoch}, which it has had for {lasted(seconds)}{after}"
        case State.RESTARTING if facts.back_with is not None:
            failed, stopping = facts.back_with
            if stopping:
                yield f"restarts together with {failed}, when {_listed(sorted(stopping))} has stopped"
            else:
                yield f"restarts in {lasted(facts.restart_in or 0.0)} together with {failed}{after}"
        case State.RESTARTING if facts.restart_in is not None:
            yield f"restarts in {lasted(facts.restart_in)}{after}"
        case State.RESTARTING:
            yield f"is being built from its last checkpoint{after}"
        case State.WAITING:
            yield f"waits for room, and goes on by itself: {facts.room}"
        case State.STOPPING:
            yield "stops where it stands; the next start goes on from the last checkpoint"
        case State.FAILED:
            yield f"gave up{after}"
        case State.DRAINING:
            yield "drains: reads nothing more and takes its last checkpoint"


def _outside(facts: Facts) -> Iterator[str]:
    if facts.handed is not None and facts.state is not State.RESTARTING and facts.handed[2] >= PATIENCE_SECONDS:
        epoch, to, seconds = facts.handed
        if to.startswith("sink "):
            yield f"{to} has taken no record for {lasted(seconds)} (commit of epoch {epoch} pending)"
        else:
            yield f"epoch {epoch} has been with {to} for {lasted(seconds)}"
    for sink, seconds in facts.writing:
        if seconds >= PATIENCE_SECONDS:
            yield f"sink {sink} has taken no record for {lasted(seconds)} (a write is pending)"


def _calls(facts: Facts) -> Iterator[str]:
    for call in facts.calls:
        if call.seconds >= PATIENCE_SECONDS:
            others = f", the oldest of {call.calls} calls" if call.calls > 1 else ""
            yield f"operator {call.operator} has awaited {call.function} for {lasted(call.seconds)}{others}"


def _epoch(facts: Facts) -> Iterator[str]:
    if facts.aligning is None or facts.aligning[1] < PATIENCE_SECONDS:
        return
    epoch, seconds, waiting = facts.aligning
    behind = next((stage for stage in facts.stages if stage.name in waiting and stage.records), None)
    if behind is not None:
        where = f"{behind.name}, behind {behind.records:,} records in its mailbox"
    else:
        where = _listed(sorted(waiting))
    yield f"epoch {epoch} has waited {lasted(seconds)} for {where}"


def _mailboxes(facts: Facts) -> Iterator[str]:
    for stage in facts.stages:
        if stage.full and not stage.blocked:  # the others that are full wait for one that is not blocked
            speed = f": it handles {stage.per_second:,.0f} records/s" if stage.per_second is not None else ""
            yield f"the mailbox of {stage.name} is full ({stage.records:,} of {stage.records_max:,} records){speed}"


def _input(facts: Facts) -> Iterator[str]:
    if facts.held:
        yield "reading waits for a checkpoint: what is not durable yet has reached a limit"
    if facts.wanted is not None:
        source, partition, offset = facts.wanted
        yield f"the journal that is followed wants record {offset} of {source}/{partition}, which is not there"
    if facts.follows or facts.stood < PATIENCE_SECONDS or not facts.partitions:
        return
    backlog = [part for part in facts.partitions if part.offset < part.end]
    if backlog:
        if not facts.held and not any(stage.full for stage in facts.stages):
            first = backlog[0]
            yield (
                f"waits for records of {_listed(list(map(str, backlog)))}, from offset {first.offset} on, which are "
                f"being read and decoded, for {lasted(facts.stood)} so far"
            )
        return
    sources = sorted({part.source for part in facts.partitions})
    number = len(facts.partitions)
    ends = "the partition is at its end" if number == 1 else f"all {number} partitions are at their ends"
    yield f"nothing to read from {_listed(sources)}: {ends}"


def _windows(facts: Facts) -> Iterator[str]:
    if not facts.timed or not facts.live or facts.stood < PATIENCE_SECONDS or facts.follows:
        return
    if facts.partitions and all(part.idle for part in facts.partitions):
        yield _all_idle(facts)
        return
    for operator, (start, end) in facts.windows:
        if facts.horizon >= end:
            continue
        name = f"window {_time_of_day(start)} ({instant(start)}) of {operator}"
        behind = [part for part in facts.partitions if not part.idle and part.reach < end]
        if len(behind) < sum(not part.idle for part in facts.partitions) or _none_yet(behind):
            for part in behind[:_NAMED]:
                yield f"{name} waits for {_behind(part)}"
        elif behind:
            newest = max(behind, key=lambda part: part.reach)
            seen = newest.reach + newest.disorder
            wanted = instant(end + newest.disorder)
            yield f"{name} waits for a record from {wanted} on; the newest is of {instant(seen)}"


def _none_yet(partitions: Sequence[PartitionFacts]) -> bool:
    return any(part.reach == MIN_TIME for part in partitions)


def _behind(part: PartitionFacts) -> str:
    name = f"partition {part.partition} of {part.source}"
    if part.quiet is not None and part.offset >= part.end:
        never = ", has never had a record" if part.reach == MIN_TIME else ""
        idle = "never idle" if part.idle_after_ms is None else f"not idle before {lasted(part.idle_after_ms / 1_000)}"
        return f"{name}, which has had nothing for {lasted(part.quiet)}{never} and is {idle}"
    stands = "has brought no event time yet" if part.reach == MIN_TIME else f"has come to {instant(part.reach)}"
    return f"{name}, which {stands}, with offsets {part.offset:,} to {part.end:,} still to read"


def _all_idle(facts: Facts) -> str:
    if facts.horizon == MIN_TIME and all(part.reach == MIN_TIME for part in facts.partitions):
        return "all partitions are idle and none has had a record: event time has not begun"
    if facts.paced:
        return "all partitions are idle; event time goes on with the clock"
    waiting = "".join(
        f"; window {instant(start)} of {operator} stays open" for operator, (start, _) in facts.windows[:1]
    )
    return f"all partitions are idle; event time stands until the next record{waiting}"


def _listed(names: Sequence[str]) -> str:
    shown, more = list(names[:_NAMED]), len(names) - _NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def lasted(seconds: float) -> str:
    """Return a duration in seconds as people say it."""
    return duration_text(round(seconds * 1_000))


def duration_text(ms: int) -> str:
    """Return a duration with two or three significant figures: ``1.2 s``, ``15 min``, ``3.4 days``."""
    size = abs(ms)
    for unit, unit_ms, until in (
        ("ms", 1, 1_000),
        ("s", 1_000, 120_000),
        ("min", 60_000, 7_200_000),
        ("h", 3_600_000, 172_800_000),
        ("days", 86_400_000, 730 * 86_400_000),
    ):
        if size < until:
            number = ms / unit_ms
            return f"{number:.0f} {unit}" if unit == "ms" or abs(number) >= 10 else f"{number:.1f} {unit}"
    return f"{ms / (365.25 * 86_400_000):.1f} years"


def instant(ms: int) -> str:
    """Return an instant in UTC, as exact as it is round: ``2026-05-01T10:00Z``; what no calendar knows as a number."""
    time = _calendar(ms)
    if time is None:
        return str(ms)
    exact = "minutes" if ms % 60_000 == 0 else "seconds" if ms % 1_000 == 0 else "milliseconds"
    return time.isoformat(timespec=exact).replace("+00:00", "Z")


def _time_of_day(ms: int) -> str:
    time = _calendar(ms)
    return str(ms) if time is None else f"{time:%H:%M:%S}" if ms % 60_000 else f"{time:%H:%M}"


def _calendar(ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ms / 1_000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
