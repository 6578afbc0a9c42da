"""``streamactors explain``: why a key of a view has its value.

The pipeline's file is the one that the catalogue has noted for the version, unless the command names another. It is
loaded as ``run`` loads it. What comes out is told in the order in which it happened; then, what it was made with.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from streamactors.core.errors import StreamActorsError, UsageError
from streamactors.durable.catalogue import Catalogue, Version
from streamactors.durable.files import RealDisk
from streamactors.graph.pipeline import Pipeline
from streamactors.job.folders import job_folder
from streamactors.kappa.explaining import ABSENT, Explanation
from streamactors.kappa.explaining import explain as explain_key
from streamactors.kappa.stepping import Stepper, choose
from streamactors.kappa.steps import Step

from .cli import data_option
from .failures import FAILED, OK, complain
from .inspect_commands import key_of
from .jobs import existing
from .loading import load
from .output import base64_object, iso_time, say, to_json, write_json_lines, write_table
from .run_command import tune_garbage_collection

LIMIT = 100
"""Rows of the table, where nobody says how many: what one reads. JSON has all of them, because a program may."""

_CELL_CHARACTERS_MAX = 80
"""Of a value in the table; JSON has it whole."""


@click.command()
@data_option
@click.argument("arguments", metavar="JOB VIEW KEY [-- ARGS]", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One object a step, and a last one that sums up.")
@click.option(
    "--pdb",
    metavar="[OPERATOR]",
    is_flag=False,
    flag_value="",
    help="Run again, and stop in your function at the last record that concerns the key.",
)
@click.option("--version", "label", metavar="LABEL", help="Of the job. Default: the one that is served.")
@click.option("--file", "target", metavar="FILE.py[:NAME]", help="The code. Default: the file it was last run from.")
@click.option("--limit", metavar="N", type=click.IntRange(2), help=f"The first and the last, N in all. Table: {LIMIT}.")
@click.option("--original", is_flag=True, help="Show records as they stand in the source, too.")
def explain(
    data_dir: Path,
    arguments: tuple[str, ...],
    *,
    as_json: bool,
    pdb: str | None,
    label: str | None,
    target: str | None,
    limit: int | None,
    original: bool,
) -> int:
    """
    Print what made the value of KEY in VIEW of JOB: the records, in the order in which they were handled.

    KEY is JSON, as for `view show --key`: '"algebra"', or '["algebra", 1700000400000]' for the results of windows. The
    job may run meanwhile, or not; nothing is changed. ARGS are the file's sys.argv.

    Exit code 1: what came out is not what is stored, or nothing ever concerned such a key.
    """
    existing(data_dir)
    arguments, pdb = _untangled(data_dir, arguments, pdb)
    if len(arguments) < 3:
        raise UsageError("explain needs JOB, VIEW and KEY. See `streamactors explain --help`.")
    job, view, key_json, *rest = arguments
    key = key_of(key_json, "")
    version = _version(data_dir, job, label)
    pipeline = load(_target(version, job, target), rest, job=job)
    tune_garbage_collection()
    limit = limit if limit is not None or as_json else LIMIT
    asked = explain_key(pipeline, data_dir, view, key, version=version.label, original=original, limit=limit)
    explained = asyncio.run(asked)
    if pdb is not None:
        return _step_through(explained, pipeline, data_dir, pdb or None)
    if as_json:
        write_json_lines([*map(step_object, _shown(explained, limit)), summary_object(explained)])
    else:
        _print(explained, limit, original=original)
    _warn(explained)
    nothing = explained.stored is ABSENT and not explained.steps
    return OK if explained.agrees and not nothing else FAILED


def _untangled(data_dir: Path, arguments: tuple[str, ...], pdb: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return arguments and OPERATOR, where ``--pdb JOB VIEW KEY`` was taken for ``--pdb OPERATOR ...``."""
    if pdb and not job_folder(data_dir, arguments[0]).is_dir() and job_folder(data_dir, pdb).is_dir():
        return (pdb, *arguments), ""
    return arguments, pdb


def _version(data_dir: Path, job: str, label: str | None) -> Version:
    versions = Catalogue(RealDisk(), job_folder(data_dir, job)).read() if (data_dir / "jobs").is_dir() else None
    if versions is None:
        known = ", ".join(sorted(folder.name for folder in (data_dir / "jobs").glob("*"))) or "none"
        raise UsageError(f"there is no job {job} in {data_dir}. Jobs there: {known}.")
    return versions.version(label or versions.serving)


def _target(version: Version, job: str, target: str | None) -> str:
    if target is not None:
        return target
    if not version.code:
        raise UsageError(
            f"nobody noted from which file job {job}, version {version.label}, was run. Name it: --file FILE.py."
        )
    if not Path(version.code).is_file():
        raise UsageError(
            f"job {job}, version {version.label}, was last run from {version.code}, which is not there any more. Name "
            "the file that has its code: --file FILE.py."
        )
    return version.code


# Steps as objects. ----------------------------------------------------------------------------------------------------


def _shown(explained: Explanation, limit: int | None) -> Iterator[Step | int]:
    """Yield the steps; with a limit, the first and the last of them, and between them how many are left out."""
    steps = explained.steps
    total = sum(explained.counts[what] for what in ("record", "late", "left_out", "result"))
    if limit is None or len(steps) <= limit:
        yield from steps
        return
    first, last = steps[: limit - limit // 2], steps[-(limit // 2) :]
    yield from first
    yield max(1, total - sum(step.what != "shown" for step in [*first, *last]))
    yield from last


def step_object(step: Step | int) -> dict[str, Any]:
    """Return a step as a plain object; an int stands for so many that are not shown."""
    if isinstance(step, int):
        return {"what": "omitted", "steps": step}
    found: dict[str, Any] = {"what": step.what, "operator": step.operator}
    for name in ("source", "partition", "offset", "time", "late_by_ms", "error", "kind", "watermark"):
        if (value := getattr(step, name)) is not None:
            found[name] = value
    if step.what == "left_out":
        found["certain"] = step.certain
    if step.window is not None:
        found |= {"key": plain(step.key), "window": list(step.window)}
    found["value"] = plain(step.value)
    if step.original is not None:
        found["original"] = _text(step.original)
    if step.then is not None:
        found["then"] = {"kind": step.then.kind, "value": plain(step.then.value)}
    return found


def summary_object(explained: Explanation) -> dict[str, Any]:
    """Return what the whole comes to."""
    return {
        "what": "summary",
        "job": explained.job,
        "version": explained.version.label,
        "view": explained.view,
        "key": plain(explained.key),
        "region": explained.region,
        "epoch": explained.epoch,
        "stored": _row(explained.stored),
        "explained": _row(explained.value),
        "agrees": explained.agrees,
        "records": explained.counts["record"],
        "late": explained.counts["late"],
        "left_out": explained.counts["left_out"],
        "read": explained.read,
        "missing": [
            {"source": source, "partition": part, "first": first} for (source, part), first in explained.missing.items()
        ],
        "file": explained.file,
        "sha256": explained.digest,
        "noted_file": explained.version.code or None,
        "noted_sha256": explained.version.digest or None,
        "same_code": explained.same_code,
        "operators": [
            {"id": node.id, "kind": node.kind, "where": node.where, "detail": node.detail}
            for node in explained.operators
        ],
    }


def _row(value: Any) -> dict[str, Any] | None:
    """Return what a view shows: None for no row, else an object, because None may be a value."""
    return None if value is ABSENT else {"value": plain(value)}


def plain(value: Any) -> Any:
    """Return *value* as what has a JSON form: itself, or its text."""
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
    return value


def _text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64_object(data)


# For people. ----------------------------------------------------------------------------------------------------------


def _print(explained: Explanation, limit: int | None, *, original: bool) -> None:
    version = explained.version
    say(f"{explained.view} {to_json(plain(explained.key))} = {_value(explained.stored)}")
    say(f"job {explained.job}, version {version.label}, as of checkpoint {explained.epoch} of {explained.region}")
    say("")
    head = ["", "record", "event time", "value", "view", "note"] + (["original"] if original else [])
    write_table(head, (_cells(step, original=original) for step in _shown(explained, limit)))
    counts = explained.counts
    say("")
    say(
        f"records that count: {counts['record']:,}, late: {counts['late']:,}, left out: {counts['left_out']:,}, "
        f"read again: {explained.read:,}"
    )
    say("")
    say(f"code  {explained.file or 'of no file'}")
    if explained.digest:
        say(f"      sha256 {explained.digest}{_same(explained)}")
    write_table(
        ["operator", "what", "where"],
        ([node.id, f"{node.kind} {node.detail}", node.where] for node in explained.operators),
    )


def _same(explained: Explanation) -> str:
    if explained.same_code is None:
        return ", nobody noted from which code the job was run"
    return f", {'' if explained.same_code else 'NOT '}the code that the job was last run from"


def _cells(step: Step | int, *, original: bool) -> list[str]:
    if isinstance(step, int):
        return [f"... {step:,} more", *[""] * (6 if original else 5)]
    place = step.place
    shown = step if step.what == "shown" else step.then
    cells = [
        {"left_out": "left out"}.get(step.what, step.what),
        "" if place is None else f"{place[0]}/{place[1]} at {place[2]}",
        "" if step.time is None else iso_time(step.time),
        "" if step.what == "shown" else _value(step.value),
        "" if shown is None else ("(no row)" if shown.kind == "delete" else _value(shown.value)),
        _note(step),
    ]
    return [*cells, _value(None if step.original is None else _text(step.original))] if original else cells


def _note(step: Step) -> str:
    """Say what there is to say about a step."""
    at = "" if step.watermark is None else f", event time at {iso_time(step.watermark)}"
    match step.what:
        case "late":
            gone = f"{step.late_by_ms:,} ms of event time ago" if step.late_by_ms else "just now"
            return f"its window went {gone}{at}"
        case "left_out":
            unsure = "" if step.certain else "; its key was not known, it may be another's"
            return f"by {step.operator}: {step.error}{unsure}"
        case "result":
            start, end = step.window or (0, 0)
            span = f"{iso_time(start)} to {iso_time(end)}"
            return f"{step.kind} result of {step.operator}, key {to_json(plain(step.key))}, {span}"
        case "shown":
            return f"{(step.kind or '').replace('_', ' ')}{at}"
    return (step.then.kind or "") if step.then is not None and step.then.kind != "update" else ""


def _value(value: Any) -> str:
    if value is ABSENT:
        return "(no row)"
    text = "" if value is None else to_json(plain(value))
    return text if len(text) <= _CELL_CHARACTERS_MAX else text[: _CELL_CHARACTERS_MAX - 3] + "..."


def _warn(explained: Explanation) -> None:
    """Say on standard error what makes the explanation doubtful."""
    if explained.same_code is False:
        complain(
            f"the code has changed: version {explained.version.label} was last run from {explained.version.code} with "
            f"sha256 {explained.version.digest[:12]}..., this explanation is of {explained.file} with sha256 "
            f"{explained.digest[:12]}...."
        )
    for (source, partition), first in explained.missing.items():
        complain(
            f"{source}/{partition} begins at offset {first} by now: what was before it can't be read again, and is not "
            "in this explanation."
        )
    if not explained.agrees:
        out, stored = _value(explained.value), _value(explained.stored)
        complain(f"what came out, {out}, is not what is stored, {stored}. {_why_not(explained)}")
    elif explained.stored is ABSENT and not explained.steps:
        complain(f"view {explained.view} has no row with this key, and no record ever concerned it.")


def _why_not(explained: Explanation) -> str:
    if explained.same_code is not True:
        return "It was made by other code: name the file that has it, --file FILE.py."
    if explained.missing:
        return "Records that made it are no longer there."
    return (
        "The same code made another value of the same records in the same order: a function of it depends on more than "
        "its arguments (the clock, random numbers, the network, the order of a set), or on the order in which branches "
        "of one stream meet again in a union, which is that of the batches; or what is stored was made by other code "
        "before this. If it is none of these, please report it."
    )


# The debugger. --------------------------------------------------------------------------------------------------------


def _step_through(explained: Explanation, pipeline: Pipeline, data_dir: Path, operator: str | None) -> int:
    """Run again, and stop in the user's function at the last record."""
    last = explained.last
    if last is None or last.place is None:
        raise UsageError(f"no record concerned {to_json(plain(explained.key))}, so there is none to stop at.")
    chosen = choose(_reached(explained), operator)
    source, partition, offset = last.place
    node = next(node for node in explained.operators if node.id == chosen)
    say(f"> {last.what} {source}/{partition} at {offset}, in {chosen} ({node.where})")
    stepper = Stepper(last.place, explained.target.key, chosen)
    again = explain_key(
        pipeline, data_dir, explained.view, explained.key, version=explained.version.label, limit=2, dress=stepper.dress
    )
    try:
        asyncio.run(again)
    except StreamActorsError:
        if not stepper.left:
            raise
    if not stepper.stopped:
        complain(
            f"operator {chosen} called no function of yours for this record; reduce, say, takes the first one of a key "
            "as it is. Name another operator: --pdb OPERATOR."
        )
        return FAILED
    sys.stdout.flush()
    return OK


def _reached(explained: Explanation) -> Sequence[Any]:
    """Return the operators that a record reaches under its own name: none behind the firing of a window."""
    behind: set[Any] = set()
    for node in explained.operators:
        if any(feeding in behind or feeding.kind == "window" for feeding, _ in node.inputs):
            behind.add(node)
    return [node for node in explained.operators if node not in behind]
