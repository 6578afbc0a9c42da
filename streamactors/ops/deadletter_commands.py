"""``streamactors deadletters list``, ``show`` and ``retry``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from streamactors.core.errors import UsageError
from streamactors.durable.log import Log, Topic

from .cli import data_option
from .failures import OK, USAGE, complain
from .jobs import existing
from .letters import Letter, Record, letter_at, letter_topics, read_letters
from .lines import refused
from .output import base64_object, iso_time, say, write_json_lines, write_table
from .retries import Outcome, Place, put_back_so_far
from .retries import retry as put_back

_NAMED = 20
"""Refused letters that are named one by one; beyond that they are only counted."""

_Found = list[tuple[Letter, Place | None]]


# List. ----------------------------------------------------------------------------------------------------------------


@click.command("list")
@data_option
@click.argument("job")
@click.option("--operator", metavar="NAME", help="Only of this operator: its path, or its name without the job's.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Only the last N of each region.")
@click.option("--json", "as_json", is_flag=True, help="One object a letter.")
def list_letters(data_dir: Path, job: str, operator: str | None, limit: int | None, *, as_json: bool) -> int:
    """Print the dead letters of JOB: what failed, where its record was read, and whether it was put back."""
    found = asyncio.run(_list(existing(data_dir), job, operator, limit))
    if as_json:
        write_json_lines(_summary(letter, place) for letter, place in found)
    else:
        write_table(["position", "operator", "record", "error", "put back"], _rows(found))
    return OK


async def _list(data_dir: Path, job: str, operator: str | None, limit: int | None) -> _Found:
    found: _Found = []
    async with Log(data_dir) as log:
        for region, topic in (await letter_topics(log, data_dir, job)).items():
            places = await put_back_so_far(log, topic)
            last: deque[Letter] = deque(maxlen=limit)
            async for letter in read_letters(region, topic):
                if operator is None or letter.of_operator(operator):
                    last.append(letter)
            found += [(letter, _where(places, letter)) for letter in last]
    return found


def _where(places: dict[Record, Place], letter: Letter) -> Place | None:
    return None if letter.record is None else places.get(letter.record)


def _summary(letter: Letter, place: Place | None) -> dict[str, Any]:
    content = letter.content
    return {
        "position": letter.position,
        "operator": content.operator,
        "source": content.source,
        "partition": content.partition,
        "offset": content.offset,
        "error": content.error,
        "append_time_ms": letter.append_time_ms,
        "retried": _place(place),
    }


def _place(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    return {"topic": place.topic, "partition": place.partition, "offset": place.offset}


def _rows(found: _Found) -> Iterator[list[Any]]:
    for letter, place in found:
        error = letter.content.error.splitlines()[0] if letter.content.error else ""
        yield [letter.position, letter.content.operator, letter.origin, error, "" if place is None else str(place)]


# Show. ----------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job")
@click.argument("position")
@click.option("--json", "as_json", is_flag=True, help="As an object.")
def show(data_dir: Path, job: str, position: str, *, as_json: bool) -> int:
    """Print all that is known of the dead letter at POSITION, as `list` calls it: bytes, error, traceback."""
    letter, place = asyncio.run(_show(existing(data_dir), job, position))
    content = letter.content
    if as_json:
        original = None if content.original is None else _json_or_base64(content.original)
        more = {"value": content.value, "traceback": content.traceback, "original": original}
        write_json_lines([_summary(letter, place) | more])
        return OK
    facts = [
        ("operator", content.operator),
        ("record", letter.origin or "none: it is a result, such as a window's"),
        ("left out", iso_time(letter.append_time_ms)),
        ("put back", "no" if place is None else str(place)),
        ("error", content.error),
        ("value", content.value),
    ]
    for name, what in facts:
        say(f"{name:<9} {what}")
    say(f"original{'' if content.original is not None else '  none: the source keeps no bytes'}")
    if content.original is not None:
        say(_pretty(content.original))
    say(content.traceback.rstrip())
    return OK


async def _show(data_dir: Path, job: str, position: str) -> tuple[Letter, Place | None]:
    async with Log(data_dir) as log:
        topics = await letter_topics(log, data_dir, job)
        letter = await letter_at(position, topics)
        places = await put_back_so_far(log, topics[letter.region])
        return letter, _where(places, letter)


def _json_or_base64(data: bytes) -> Any:
    return base64_object(data) if refused(data) is not None else msgspec.Raw(msgspec.json.format(data, indent=-1))


def _pretty(data: bytes) -> str:
    """Return bytes as people read them: JSON with line breaks, text as it is, anything else as Python writes it."""
    if refused(data) is None:
        return msgspec.json.format(data, indent=2).decode()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return repr(data)
    return text if text.isprintable() else repr(data)


# Retry. ---------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job")
@click.option("--operator", metavar="NAME", help="Those of this operator.")
@click.option("--offset", "positions", metavar="POSITION", multiple=True, help="This one; may be given again.")
@click.option("--all", "everything", is_flag=True, help="All that were not put back yet.")
@click.option("--dry-run", is_flag=True, help="Only say what would go where.")
@click.option("--json", "as_json", is_flag=True, help="One object a letter.")
def retry(
    data_dir: Path,
    job: str,
    operator: str | None,
    positions: tuple[str, ...],
    *,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """
    Put the records of dead letters back into the topics that they came from, each once, however often it is tried.

    Mend the pipeline first: it meets them again, in all its branches. Nobody else may be writing those topics
    meanwhile.
    """
    ways = sum([operator is not None, bool(positions), everything])
    if ways != 1:
        what = "exclude each other" if ways else "say which letters, and none is there"
        raise UsageError(f"--operator, --offset and --all {what}. Give one of them.")
    outcomes = asyncio.run(_retry(existing(data_dir), job, operator, positions, dry_run=dry_run))
    if as_json:
        write_json_lines(_outcome(outcome) for outcome in outcomes)
    else:
        _tell(outcomes, dry_run=dry_run)
    return USAGE if any(outcome.refused for outcome in outcomes) else OK


async def _retry(
    data_dir: Path, job: str, operator: str | None, positions: Sequence[str], *, dry_run: bool
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with Log(data_dir) as log:
        topics = await letter_topics(log, data_dir, job)
        named = {letter.position: letter for letter in [await letter_at(text, topics) for text in positions]}
        for region, topic in topics.items():
            chosen = await _chosen(region, topic, operator, [*named.values()] if positions else None)
            if chosen:
                outcomes += await put_back(log, topic, chosen, dry_run=dry_run)
    if operator is not None and not outcomes:
        raise UsageError(f"job {job} has no dead letter of operator {operator}. See `streamactors deadletters list`.")
    return outcomes


async def _chosen(region: str, topic: Topic, operator: str | None, named: list[Letter] | None) -> list[Letter]:
    if named is not None:
        return [letter for letter in named if letter.region == region]
    letters = read_letters(region, topic)
    return [letter async for letter in letters if operator is None or letter.of_operator(operator)]


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "position": outcome.letter.position,
        "retried": _place(outcome.place),
        "already": outcome.already,
        "together": outcome.together,
        "refused": outcome.refused,
    }


def _tell(outcomes: list[Outcome], *, dry_run: bool) -> None:
    going = [outcome for outcome in outcomes if outcome.goes]
    refusals = [outcome for outcome in outcomes if outcome.refused is not None]
    for outcome in going:
        say(f"{outcome.letter.position} to {outcome.place}")
    for outcome in refusals[:_NAMED]:
        complain(f"{outcome.letter.position} can't be put back: {outcome.refused}.")
    if len(refusals) > _NAMED:
        complain(f"{len(refusals) - _NAMED:,} more can't be put back.")
    parts = [f"{'would put' if dry_run else 'put'} back {len(going):,} record{'' if len(going) == 1 else 's'}"]
    already = sum(outcome.already for outcome in outcomes)
    together = sum(outcome.together for outcome in outcomes)
    parts += [f"{already:,} put back before"] if already else []
    parts += [f"{together:,} put back with another letter"] if together else []
    parts += [f"{len(refusals):,} refused"] if refusals else []
    say("; ".join(parts))
