"""``streamactors savepoint``: take one, list them, look into one, start from one, try a migration on one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import click
import msgspec

from streamactors.core.errors import Damaged, PipelineError, UsageError
from streamactors.core.ports import Disk
from streamactors.core.sizes import shown_size
from streamactors.durable.catalogue import FIRST, Catalogue, Versions
from streamactors.durable.files import RealDisk
from streamactors.durable.savepoint import Counts, SavepointHead
from streamactors.durable.savepoint_files import SUFFIX, check_all, open_savepoint
from streamactors.durable.sharing import read_briefly
from streamactors.graph.plan import plan
from streamactors.job.fit import told
from streamactors.job.folders import check_label, job_folder, lock_of_version, version_folder
from streamactors.job.migration import Report
from streamactors.job.migration import dry_run as try_migrations
from streamactors.job.savepoints import FOLDER, Code, Sinks, Start, start_from, write

from .cli import data_option
from .failures import FAILED, OK, complain
from .jobs import existing, served_version
from .loading import load
from .output import iso_time, say, to_json, write_json_lines, write_table

json_option = click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")


def consent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the flags that accept what other code does to stored state."""
    command = click.option(
        "--drop",
        "dropped",
        metavar="OPERATOR",
        multiple=True,
        help="Drop the state of this operator, which the pipeline does not have any more.",
    )(command)
    return click.option(
        "--fresh",
        metavar="OPERATOR",
        multiple=True,
        help="Let this operator start empty, if it is new or what is stored does not fit it.",
    )(command)


sinks_option = click.option(
    "--sinks",
    type=click.Choice([mode.value for mode in Sinks]),
    help="For a start from a savepoint. continue: go on writing targets where the savepoint stands. shadow: write to "
    "targets that bear the version's label. reset: write behind what targets show.",
)


# Create, list, show. --------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job")
@click.option("--version", metavar="LABEL", help="Of this version, instead of the one that is served.")
@click.option("--to", "path", type=click.Path(path_type=Path), help="The file; default: in DIR/savepoints/JOB.")
@json_option
def create(data_dir: Path, job: str, version: str | None, path: Path | None, *, as_json: bool) -> int:
    """Write the newest checkpoint of JOB, which runs or not, to a file from which a job can start."""
    folder = job_folder(existing(data_dir), job)
    version = version or served_version(folder)
    started = time.monotonic()
    with read_briefly(version_folder(data_dir, job, version)) as store:
        found = write(RealDisk(), store, data_dir, path, _now_ms())
    if as_json:
        write_json_lines([{"path": str(found.path), **_head(found.head), **_sums(found.counts)}])
        return OK
    epochs = ", ".join(f"{region} at {epoch}" for region, epoch in found.epochs.items())
    say(
        f"{found.path}: {job}/{version}, {epochs}; {found.entries:,} rows, {shown_size(found.path.stat().st_size)} in "
        f"{time.monotonic() - started:.1f} s"
    )
    return OK


@click.command("list")
@data_option
@click.argument("job", required=False)
@json_option
def list_savepoints(data_dir: Path, job: str | None, *, as_json: bool) -> int:
    """Print the savepoints of JOB, or of each job, in DIR/savepoints, the oldest first."""
    paths = sorted((existing(data_dir) / FOLDER).glob(f"{job or '*'}/*{SUFFIX}"))
    rows = sorted((_listed(RealDisk(), path) for path in paths), key=lambda row: (row["job"], row["created_ms"]))
    if as_json:
        write_json_lines(rows)
        return OK
    write_table(
        ["job", "version", "time", "epochs", "size", "path"],
        (
            [
                row["job"],
                row["version"],
                iso_time(row["created_ms"]),
                row["damage"] or ", ".join(f"{name} {epoch}" for name, epoch in row["epochs"].items()),
                shown_size(row["size"]),
                row["path"],
            ]
            for row in rows
        ),
    )
    return OK


def _listed(disk: Disk, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"path": str(path), "size": path.stat().st_size, "damage": None}
    try:
        with open_savepoint(disk, path) as decoder:
            return {**found, **_head(decoder.head)}
    except (Damaged, UsageError) as error:
        nothing = {"job": path.parent.name, "version": "", "created_ms": 0, "epochs": {}}
        return {**found, **nothing, "damage": str(error)}


def _head(head: SavepointHead) -> dict[str, Any]:
    epochs = {name: region.epoch for name, region in head.regions.items()}
    same = {name: getattr(head, name) for name in ("job", "version", "incarnation", "created_ms", "release")}
    return {**same, "guarantee": head.guarantee, "epochs": epochs}


def _sums(counts: Counts) -> dict[str, int]:
    return {"rows": sum(rows for rows, _ in counts.values()), "bytes": sum(size for _, size in counts.values())}


@click.command()
@click.argument("path", metavar="SAVEPOINT", type=click.Path(path_type=Path))
@json_option
def show(path: Path, *, as_json: bool) -> int:
    """Print what SAVEPOINT holds, when all of it was read and checked."""
    with open_savepoint(RealDisk(), path) as decoder:
        counts, head = check_all(decoder), decoder.head
    regions = [_region(name, region, head, counts) for name, region in head.regions.items()]
    if as_json:
        write_json_lines([{**_head(head), **_sums(counts), "digest": decoder.digest, "regions": regions}])
        return OK
    say(f"job {head.job}, version {head.version}, incarnation {head.incarnation}, {head.guarantee or 'exactly-once'}")
    say(f"taken {iso_time(head.created_ms)} by release {head.release}; digest {decoder.digest}")
    for region in regions:
        say(f"region {region['region']}, epoch {region['epoch']}, watermark {iso_time(region['watermark'])}")
        write_table(
            ["partition", "offset", "latest event"],
            (
                [f"{p['source']}/{p['partition']}", p["offset"], iso_time(p["time_max"])]
                for p in region["position"]["partitions"]
            ),
        )
        write_table(
            ["operator", "keeps", "rows", "bytes"],
            ([o["operator"], told(o["schema"], ""), o["rows"], o["bytes"]] for o in region["operators"]),
        )
    return OK


def _region(name: str, stands: Any, head: SavepointHead, counts: Counts) -> dict[str, Any]:
    operators = (head.plan or {}).get(name, {}).get("operators", {})
    horizon = stands.position["horizon"]
    return {
        "region": name,
        "epoch": stands.epoch,
        "created_ms": stands.created_ms,
        "watermark": horizon - 1 if abs(horizon) < 2**62 else horizon,
        "position": stands.position,
        "journal": counts.get(f"journal:{name}", [0, 0])[0],
        "operators": [
            {"operator": operator, "schema": schema, **_kept(operator, counts)}
            for operator, schema in operators.items()
        ],
    }


def _kept(operator: str, counts: Counts) -> dict[str, int]:
    own = {f"pending:{operator}", f"view:{operator.removeprefix('view.')}" if operator.startswith("view.") else ""}
    found = [size for name, size in counts.items() if name in own or name.startswith(f"state:{operator}:")]
    return {"rows": sum(rows for rows, _ in found), "bytes": sum(size for _, size in found)}


# Restore. -------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("path", metavar="SAVEPOINT", type=click.Path(path_type=Path))
@sinks_option
@click.option("--as", "label", metavar="LABEL", help="Of the version that is made; default: the one that is served.")
@click.option("--code", metavar="FILE.py[:NAME]", help="Change the state to fit this pipeline now, not when it starts.")
@consent_options
def restore(
    data_dir: Path,
    path: Path,
    sinks: str | None,
    label: str | None,
    code: str | None,
    fresh: tuple[str, ...],
    dropped: tuple[str, ...],
) -> int:
    """Make the state of a version of SAVEPOINT: `streamactors run` goes on from there. The version has none yet."""
    if sinks is None:
        raise UsageError(f"say what becomes of targets outside: --sinks {'|'.join(mode.value for mode in Sinks)}.")
    disk = RealDisk()
    with open_savepoint(disk, path) as decoder:
        job = decoder.head.job
    catalogue = Catalogue(disk, job_folder(data_dir, job))
    versions = catalogue.read()
    if label is None:
        label = FIRST if versions is None else versions.serving
    check_label(label)
    folder = version_folder(data_dir, job, label)
    start = Start(path, Sinks(sinks), folder, job, label, token_hex(16), _code(code, fresh, dropped))
    lock = lock_of_version(disk, folder)
    try:
        if versions is None or versions.serving == label:
            fit = start_from(start, disk, None)
        else:
            with read_briefly(version_folder(data_dir, job, versions.serving)) as served:
                fit = start_from(start, disk, served)
        catalogue.change(job, label, _now_ms(), _begins(label))
    finally:
        lock.release()
    if fit is not None and fit.changed:
        say(fit.table())
    say(f"made {job}/{label} of {path}, sinks {sinks}")
    return OK


def _begins(label: str) -> Callable[[Versions], None]:
    def change(found: Versions) -> None:
        found.begin(label, _now_ms())

    return change


def _code(target: str | None, fresh: tuple[str, ...], dropped: tuple[str, ...]) -> Code | None:
    if target is None:
        if fresh or dropped:
            raise UsageError("--fresh and --drop accept what other code does: give --code FILE.py too.")
        return None
    pipeline = load(target, ())
    return Code(pipeline, plan(pipeline), frozenset(fresh), frozenset(dropped))


# Migrate. -------------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done. It is done by `run` and by `savepoint restore`.")
@click.argument("target", metavar="FILE.py[:NAME]")
@click.argument("path", metavar="SAVEPOINT", type=click.Path(path_type=Path))
@consent_options
@json_option
def migrate(
    target: str, path: Path, fresh: tuple[str, ...], dropped: tuple[str, ...], *, dry_run: bool, as_json: bool
) -> int:
    """
    Say whether the pipeline of FILE.py can go on with SAVEPOINT, and what its migrations make of each entry.

    Exit code 1 when an entry fails, 3 when the pipeline does not fit.
    """
    if not dry_run:
        raise UsageError("a savepoint is never changed: give --dry-run. A start from it migrates what it makes of it.")
    code = _code(target, fresh, dropped)
    assert code is not None, "FILE.py was given"
    with open_savepoint(RealDisk(), path) as decoder:
        fit = code.fit({name: was for name, was in (decoder.head.plan or {}).items() if name in decoder.head.regions})
        if fit.changed:
            complain(f"{code.pipeline.name} is other code than that of {path}:\n{fit.table()}")
        if fit.refused:
            raise PipelineError(f"{code.pipeline.name} does not fit {path}: see above. Nothing was changed.")
        reports = try_migrations(code.refit(fit, only_report=True), decoder)
    if as_json:
        write_json_lines(map(msgspec.to_builtins, reports))
    else:
        for report in reports:
            _tell(report)
        if not reports:
            say("no migration has anything to do")
    return FAILED if any(report.failed for report in reports) else OK


def _tell(report: Report) -> None:
    say(
        f"operator {report.operator}: {report.seen:,} entries seen, {report.changed:,} changed, {report.deleted:,} "
        f"deleted, {report.failed:,} failed"
    )
    for what, samples in (("for example", report.samples), ("failed", report.failures)):
        if samples:
            write_table([what, "window", "before", "after"], _cells(samples))


def _cells(samples: list[Any]) -> Iterator[list[Any]]:
    for sample in samples:
        before, after = (value if isinstance(value, str) else to_json(value) for value in (sample.before, sample.after))
        yield [to_json(sample.key), "" if sample.namespace is None else sample.namespace, before, after]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
