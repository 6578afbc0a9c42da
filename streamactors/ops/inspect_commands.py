"""``streamactors view show``, ``checkpoints`` and ``journal``: a job's state as others see it, while it runs or not.

All of them open the job's store to read, in this process, beside whoever writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from streamactors.core.errors import UsageError
from streamactors.durable.store import Store
from streamactors.durable.views import View, ViewReader

from .cli import data_option
from .failures import FAILED, OK, complain
from .jobs import served_version
from .output import iso_time, to_json, write_json_lines, write_table

_GONE = object()

version_option = click.option("--version", metavar="LABEL", help="Of this version, instead of the one that is served.")


# Views. ---------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("name")
@click.option(
    "--key", "key_json", metavar="JSON", help="Only the row of this key, such as '\"algebra\"' or '[\"a\", 0]'."
)
@click.option("--json", "as_json", is_flag=True, help='One {"key": ..., "value": ...} a line.')
@version_option
def show(data_dir: Path, name: str, key_json: str | None, version: str | None, *, as_json: bool) -> int:
    """
    Print the rows of view NAME in the order of their keys; exit code 1 when --key names a row that is not there.

    NAME may be JOB/NAME, and has to be when two jobs have a view of that name.
    """
    job, _, view_name = name.rpartition("/")
    with ExitStack() as stack:
        view = _find(stack, data_dir, job or None, view_name, version)
        if key_json is None:
            _print_rows(view.items(), as_json=as_json)
            return OK
        key = key_of(key_json)
        value = view.get(key, _GONE)
        if value is _GONE:
            complain(f"view {name} has no row with key {key_json}.")
            return FAILED
        _print_rows([(key, value)], as_json=as_json)
    return OK


def key_of(key_json: str, given_as: str = "--key ") -> Any:
    """Return the key that is written as JSON, or refuse it; *given_as* is what stands before it in the command."""
    try:
        key = msgspec.json.decode(key_json)
    except msgspec.MsgspecError as error:
        quoted = f"{given_as}'{to_json(key_json)}'"
        raise UsageError(
            f"{given_as}{key_json} is not JSON ({error}). Text needs quotes of its own: {quoted}."
        ) from error
    if isinstance(key, dict):
        raise UsageError(f"{given_as}{key_json}: an object can't be a key.")
    return key


def _find(stack: ExitStack, data_dir: Path, job: str | None, name: str, version: str | None) -> View:
    """Return the one view of that name, over all jobs."""
    found: list[tuple[str, View]] = []
    known: list[str] = []
    for store in _stores(stack, data_dir, job, version):
        reader = ViewReader(store)
        owner = _job_of(store)
        names = set(reader.names()) | _planned(store)
        known += [f"{owner}/{other}" for other in sorted(names)]
        if name in names:
            found.append((owner, reader[name]))
    if not found:
        raise UsageError(f"there is no view {name} in {data_dir}. Views there: {', '.join(known) or 'none'}.")
    if len(found) > 1:
        owners = " or ".join(f"{owner}/{name}" for owner, _ in found)
        raise UsageError(f"more than one job has a view {name}. Say which: {owners}.")
    return found[0][1]


def _planned(store: Store) -> set[str]:
    """Return the views that the job's plan has, written or not."""
    plan = store.plan or {}
    nodes = [node for region in plan.values() for node in region.get("operators", {})]
    return {node.removeprefix("view.") for node in nodes if node.startswith("view.")}


def _print_rows(rows: Iterable[tuple[Any, Any]], *, as_json: bool) -> None:
    if as_json:
        write_json_lines({"key": key, "value": value} for key, value in rows)
        return
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    key_columns = len(first[0]) if isinstance(first[0], tuple | list) else 0
    fields = list(first[1]) if isinstance(first[1], dict) else []
    head = [f"key[{index}]" for index in range(key_columns)] or ["key"]
    write_table([*head, *(map(str, fields) if fields else ["value"])], _cells([first], rows, key_columns, fields))


def _cells(first: list[Any], rest: Iterator[Any], key_columns: int, fields: list[Any]) -> Iterator[list[Any]]:
    """Spread keys of several items, and values of several fields, over columns where a row has them."""
    for rows in (first, rest):
        for key, value in rows:
            if key_columns and isinstance(key, tuple | list) and len(key) == key_columns:
                keys = list(key)
            else:
                keys = [to_json(key) if not isinstance(key, str | int | float) else key] + [""] * (key_columns - 1)
            if fields and isinstance(value, dict) and list(value) == fields:
                yield keys + list(value.values())
            else:
                yield [*keys, value, *[""] * (len(fields) - 1)]


# Checkpoints and journal. ---------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="One object a checkpoint.")
@version_option
def checkpoints(data_dir: Path, job: str | None, version: str | None, *, as_json: bool) -> int:
    """Print the newest checkpoints of JOB, or of each job, by region, the newest last."""
    with ExitStack() as stack:
        rows = [
            {
                "job": _job_of(store),
                "region": region,
                **{field: summary[field] for field in ("epoch", "attempt", "created_ms", "duration_ms")},
                "bytes": summary["bytes"],
                "entries": summary["entries"],
            }
            for store in _stores(stack, data_dir, job, version)
            for region in store.regions()
            for summary in store.checkpoints(region)
        ]
    if as_json:
        write_json_lines(rows)
    else:
        head = ["job", "region", "epoch", "attempt", "time", "ms", "bytes", "entries"]
        write_table(
            head, ([iso_time(cell) if name == "created_ms" else cell for name, cell in r.items()] for r in rows)
        )
    return OK


@click.command()
@data_option
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="One object an entry.")
@version_option
def journal(data_dir: Path, job: str | None, version: str | None, *, as_json: bool) -> int:
    """Print what JOB, or each job, has read and in which order, with all that drove its time."""
    with ExitStack() as stack:
        entries = _entries(list(_stores(stack, data_dir, job, version)))
        if as_json:
            write_json_lines(entries)
        else:
            write_table(["job", "region", "kind", "what"], map(_entry_cells, entries))
    return OK


def _entries(stores: list[Store]) -> Iterator[dict[str, Any]]:
    from streamactors.flow.sequencing import joined

    fields = {"read": ("source", "partition", "first", "end"), "idle": ("source", "partition")}
    for store in stores:
        owner = _job_of(store)
        for region in store.regions():
            for kind, *rest in joined(store.journal(region)):
                names = fields.get(kind, {"pace": ("watermark",), "clock": ("time",)}.get(kind, ()))
                yield {"job": owner, "region": region, "kind": kind, **dict(zip(names, rest, strict=True))}


def _entry_cells(entry: dict[str, Any]) -> list[Any]:
    match entry["kind"]:
        case "read":
            what = f"{entry['source']}/{entry['partition']} offsets {entry['first']} to {entry['end'] - 1}"
        case "idle":
            what = f"{entry['source']}/{entry['partition']}"
        case "pace":
            what = f"watermark {iso_time(entry['watermark'])}"
        case "clock":
            what = iso_time(entry["time"])
        case _:
            what = ""
    return [entry["job"], entry["region"], entry["kind"], what]


# Stores. --------------------------------------------------------------------------------------------------------------


def _stores(stack: ExitStack, data_dir: Path, job: str | None, version: str | None) -> Iterator[Store]:
    """Yield the stores of the named job, or of all, open to read until *stack* closes: of *version*, or as served."""
    jobs = sorted(folder for folder in (data_dir / "jobs").glob("*") if folder.is_dir())
    folders = {folder.name: folder / (version or served_version(folder)) for folder in jobs}
    folders = {name: folder for name, folder in folders.items() if (folder / "data.mdb").exists()}
    if not data_dir.is_dir():
        raise UsageError(f"there is no folder {data_dir}. Check --data.")
    if version is not None and not folders:
        raise UsageError(f"no job in {data_dir} has a version {version} that has run. See `streamactors versions`.")
    if job is not None and job not in folders:
        raise UsageError(f"there is no job {job} in {data_dir}. Jobs there: {', '.join(folders) or 'none'}.")
    if not folders:
        raise UsageError(f"there is no job in {data_dir}: none was run with this folder yet.")
    for name, folder in folders.items():
        if job is None or job == name:
            yield stack.enter_context(Store.open(folder, read_only=True))


def _job_of(store: Store) -> str:
    return store.folder.parent.name
