"""``streamactors versions``, ``diff``, ``promote``, ``rollback``, ``retire``: versions of a job, from outside.

The commands work beside processes that run the versions, and without one. Their rules are in kappa/promotion.py and
kappa/differing.py; here are words and forms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from streamactors.core.errors import UsageError
from streamactors.durable.catalogue import Versions
from streamactors.durable.files import RealDisk
from streamactors.durable.register import read_register
from streamactors.durable.sharing import read_briefly
from streamactors.durable.store import Restored
from streamactors.job.folders import version_folder
from streamactors.job.from_time import since_of
from streamactors.job.swapping import folders_of
from streamactors.kappa.differing import Change, at_one_place, changes, covered, standing, views_of
from streamactors.kappa.promotion import NotInTime, Versioned, lag_records

from .cli import data_option
from .failures import FAILED, OK, complain
from .jobs import all_jobs, existing
from .output import iso_time, say, to_json, write_json_lines, write_table

PLACE_TRY_SECONDS = 0.005
"""Between two looks whether two versions stand at the same place: a follower stands there for most of an epoch."""

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)


# Versions. ------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="One object a version.")
def versions(data_dir: Path, job: str | None, *, as_json: bool) -> int:
    """Print the versions of JOB, or of each job: which is served, who runs, where each stands."""
    names = [job] if job is not None else _job_names(existing(data_dir))
    rows = [row for name in names for row in _rows(Versioned(existing(data_dir), name))]
    if as_json:
        write_json_lines(rows)
        return OK
    head = ["job", "version", "serving", "follows", "state", "records", "behind", "created", "since", "code"]
    write_table(head, map(_cells, rows))
    return OK


def _job_names(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "jobs").glob("*") if path.is_dir() and _has_versions(path))


def _has_versions(folder: Path) -> bool:
    return (folder / "versions.json").exists() or any(folder.glob("*/data.mdb"))


def _rows(versioned: Versioned) -> Iterator[dict[str, Any]]:
    found = versioned.versions()
    serving = versioned.places(found.serving)
    for version in found.versions:
        places = versioned.places(version.label)
        pid = versioned.pid(version.label)
        yield {
            "job": found.job,
            "version": version.label,
            "serving": version.label == found.serving,
            "follows": found.followed_by(version.label),
            "state": "stopped" if pid is None else "running",
            "pid": pid or None,
            "position": {region: _position(restored) for region, restored in places.items()},
            "lag_records": lag_records(places, serving),
            "handover": _handover(found, version.label),
            "created_ms": version.created_ms,
            "code": version.code,
            "digest": version.digest,
            "since": version.since if version.since == "earliest" else int(version.since),
            "covers_from": {region: since_of(restored) for region, restored in places.items()},
        }


def _position(restored: Restored) -> dict[str, Any]:
    parts = [
        {name: part[name] for name in ("source", "partition", "offset")} for part in restored.position["partitions"]
    ]
    return {"epoch": restored.epoch, "entries": restored.position["entries"], "partitions": parts}


def _handover(found: Versions, label: str) -> str | None:
    """Return how far a change is of which *label* is the aim."""
    handover = found.handover
    if handover is None or handover.to != label:
        return None
    return "exchanging" if handover.exchanging else "asked" if handover.at is None else "yielded"


def _cells(row: dict[str, Any]) -> list[Any]:
    records = sum(part["offset"] for region in row["position"].values() for part in region["partitions"])
    state = row["state"] if row["pid"] is None else f"{row['state']} ({row['pid']})"
    serving = "yes" if row["serving"] else row["handover"] or ""
    created = iso_time(row["created_ms"]) if row["created_ms"] else ""
    cells = [row["job"], row["version"], serving, row["follows"] or "", state, records, row["lag_records"], created]
    since = row["since"] if row["since"] == "earliest" else iso_time(row["since"])
    return [*cells, since, row["code"]]


# Diff. ----------------------------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job")
@click.argument("old")
@click.argument("new")
@click.option("--view", "only", metavar="NAME", help="Only this view.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Print at most N rows; all are counted.")
@click.option("--json", "as_json", is_flag=True, help="One object a row that differs, and one that sums up.")
@timeout_option
def diff(
    data_dir: Path,
    job: str,
    old: str,
    new: str,
    *,
    only: str | None,
    limit: int | None,
    as_json: bool,
    timeout: float,
) -> int:
    """
    Print which rows of JOB's views differ between versions OLD and NEW; exit code 1 when some do.

    Both are compared where they stand at the same place of the journal: whatever differs, the code made it so. Where
    one of them began at a time, windows are compared that have all their records behind it, and nothing else.
    """
    versioned = Versioned(existing(data_dir), job)
    found = versioned.versions()
    folders = [version_folder(data_dir, job, found.version(label).label) for label in (old, new)]
    for label, folder in zip((old, new), folders, strict=True):
        if not (folder / "data.mdb").exists():
            raise UsageError(f"job {job}: version {label} has not run yet, so there is nothing to compare.")
    with at_one_place(folders[0], folders[1], _again(job, old, new, timeout, data_dir)) as (mine, its):
        coverage = _coverage(folders)
        views, others = views_of(mine).union(coverage[0]), views_of(its).union(coverage[1])
        if only is not None and only not in views | others:
            known = ", ".join(sorted(views | others)) or "none"
            raise UsageError(f"job {job}: neither {old} nor {new} has a view {only}. Views there: {known}.")
        wanted = {only} if only is not None else views | others
        first_starts = _first_starts(job, (old, new), coverage, wanted & views & others)
        alone = [(old, sorted(wanted & views - others)), (new, sorted(wanted & others - views))]
        tally = _Tally(limit, as_json=as_json)
        tally.erased, tally.covers_from = _erased(data_dir, standing(mine)), first_starts
        for view in sorted(wanted & views & others):
            if first_starts.get(view, 0) is not None:
                for change in changes(view, mine, its, first_starts.get(view)):
                    tally.add(change)
    return tally.sum_up(old, new, {label: names for label, names in alone if names})


def _coverage(folders: Sequence[Path]) -> list[dict[str, int | None]]:
    """Return what is right in versions that began at a time: see ``Store.coverage``."""
    found = []
    for folder in folders:
        with read_briefly(folder) as store:
            found.append(store.coverage)
    return found


def _first_starts(
    job: str, labels: Sequence[str], coverage: Sequence[dict[str, int | None]], views: set[str]
) -> dict[str, int | None]:
    """Return which rows of *views* can be compared, where a version began at a time; refuse when there are none."""
    found = {view: start for view, start in covered(*coverage).items() if view in views}
    if found and not any(found.get(view, 0) is not None for view in views):
        began = " and ".join(label for label, of in zip(labels, coverage, strict=True) if of)
        raise UsageError(
            f"job {job}: {began} began at a time, and nothing in {', '.join(sorted(views))} can be compared: rows "
            "there hold what was read before it. Only views of windows can. To compare all, replay --from earliest "
            "under another label."
        )
    return found


def _erased(data_dir: Path, stands: dict[str, Restored]) -> dict[str, int]:
    """Return how many records that both have read were erased from the log, by topic."""
    found: dict[str, int] = {}
    for part in (part for restored in stands.values() for part in restored.position["partitions"]):
        for erasure in read_register(RealDisk(), data_dir / "log" / part["source"] / str(part["partition"])):
            inside = sum(max(0, min(end, part["offset"]) - first) for first, end in erasure.offsets)
            if inside:
                found[part["source"]] = found.get(part["source"], 0) + inside
    return found


def _again(
    job: str, old: str, new: str, timeout: float, data_dir: Path
) -> Callable[[dict[str, Restored], dict[str, Restored]], None]:
    """Return what waits a little between two looks, and gives up after *timeout*."""
    deadline = time.monotonic() + timeout

    def again(first: dict[str, Restored], second: dict[str, Restored]) -> None:
        if time.monotonic() < deadline:
            time.sleep(PLACE_TRY_SECONDS)
            return
        behind, ahead, lag = new, old, lag_records(second, first)
        if not lag:
            behind, ahead, lag = old, new, lag_records(first, second)
        raise UsageError(
            f"job {job}: {old} and {new} did not stand at the same place within {timeout:g} s: {behind} is {lag:,} "
            f"records behind {ahead}. Let it catch up (`streamactors replay FILE.py --data {data_dir} --as {behind}`, "
            "with --keep-following while the other runs), then compare."
        )

    return again


class _Tally:
    """Prints what differs, and counts it."""

    def __init__(self, limit: int | None, *, as_json: bool) -> None:
        self._limit = limit
        self._as_json = as_json
        self._counts = {"added": 0, "removed": 0, "changed": 0}
        self._page: list[Change] = []
        self.erased: dict[str, int] = {}
        """Records of sources that were erased from the log: one version may have counted them, and the other not."""

        self.covers_from: dict[str, int | None] = {}
        """By view, the first start of a window that is compared; None: it is not compared. Empty: all is."""

    def add(self, change: Change) -> None:
        shown = sum(self._counts.values())
        self._counts[change.change] += 1
        if self._limit is None or shown < self._limit:
            self._page.append(change)
            if len(self._page) >= 1_024:
                self._write()

    def _write(self) -> None:
        page, self._page = self._page, []
        if self._as_json:
            write_json_lines(
                {"view": c.view, "key": c.key, "change": c.change, "old": c.old, "new": c.new} for c in page
            )
            return
        for c in page:
            what = {"added": f"+ {to_json(c.new)}", "removed": f"- {to_json(c.old)}"}
            say(f"{c.view} {to_json(c.key)}: {what.get(c.change, f'{to_json(c.old)} -> {to_json(c.new)}')}")

    def sum_up(self, old: str, new: str, alone: dict[str, list[str]]) -> int:
        """Write the last line; return the exit code."""
        self._write()
        total = sum(self._counts.values())
        equal = not total and not alone
        if self._as_json:
            partly = {"covers_from": self.covers_from} if self.covers_from else {}
            last = {"equal": equal, **self._counts, "only_in": alone, "erased_records": self.erased, **partly}
            write_json_lines([last])
        else:
            for view, start in sorted(self.covers_from.items()):
                rows = "not compared, as a version began at a time and it holds what was before"
                say(f"{view}: " + (rows if start is None else f"compared are windows from {iso_time(start)} on"))
            for label, names in alone.items():
                say(f"only {label} has {', '.join(names)}; not compared")
            for topic, records in self.erased.items():
                say(f"{records:,} records of {topic} were erased: a version that read it before has counted them")
            parts = ", ".join(f"{count:,} {kind}" for kind, count in self._counts.items())
            say(f"{old} and {new} are equal" if equal else f"{old} and {new} differ: {parts}")
        return OK if equal else FAILED


# Promote, roll back, retire. ------------------------------------------------------------------------------------------


@click.command()
@data_option
@click.argument("job")
@click.argument("label")
@click.option("--force", is_flag=True, help="Although other jobs read topics that are exchanged, or LABEL lacks rows.")
@timeout_option
def promote(data_dir: Path, job: str, label: str, *, force: bool, timeout: float) -> int:
    """
    Let version LABEL of JOB be served from here on: its views, its topics, its tables.

    Not within --timeout: the request is withdrawn, exit code 1.
    """
    versioned = Versioned(existing(data_dir), job, complain)
    found = versioned.versions()
    if not force and found.serving != label:
        _refuse_readers(data_dir, found, label)
        _refuse_later_beginning(data_dir, found, label)
    try:
        done = versioned.promote(label, timeout=timeout)
    except NotInTime as error:
        complain(str(error))
        return FAILED
    say(f"{job}: {label} is served" + ("" if done else " already"))
    _tell_folders(versioned.versions(), label)
    return OK


@click.command()
@data_option
@click.argument("job")
@click.option("--force", is_flag=True, help="Although other jobs read topics that are exchanged.")
@timeout_option
def rollback(data_dir: Path, job: str, *, force: bool, timeout: float) -> int:
    """Go back to the version of JOB that was served before; or withdraw a promotion that is not finished."""
    versioned = Versioned(existing(data_dir), job, complain)
    found = versioned.versions()
    if not force and found.handover is None and found.before is not None:
        _refuse_readers(data_dir, found, found.before)
    try:
        label = versioned.roll_back(timeout=timeout)
    except NotInTime as error:
        complain(str(error))
        return FAILED
    if label is None:
        say(f"{job}: {found.serving} is served, and no other version before it; nothing was changed")
        return OK
    say(f"{job}: {label} is served")
    _tell_folders(versioned.versions(), label)
    return OK


@click.command()
@data_option
@click.argument("job")
@click.argument("label")
def retire(data_dir: Path, job: str, label: str) -> int:
    """Forget version LABEL of JOB: its state and views are deleted, and topics and tables that it wrote beside."""
    stays = Versioned(existing(data_dir), job).retire(label)
    say(f"{job}: {label} is gone, with its state")
    for folder in stays:
        say(f"its files stay in {folder}")
    return OK


def _refuse_readers(data_dir: Path, found: Versions, label: str) -> None:
    """Refuse to exchange a topic under another job that stands somewhere in it."""
    both = [*found.version(found.serving).targets, *found.version(label).targets]
    topics = {place for kind, place, *_ in both if kind == "topic"}
    readers = sorted(
        f"{job.label} reads {topic}"
        for job in all_jobs(data_dir)
        if job.name != found.job
        for topic in topics & job.reads
    )
    if readers:
        raise UsageError(
            f"job {found.job}: a promotion exchanges topics, and {'; '.join(readers)}: its offsets would mean other "
            f"records. Start the reader anew under another name behind the promotion, or let it read "
            f"TOPIC.{found.serving}, which the old output is called then. --force promotes all the same."
        )


def _refuse_later_beginning(data_dir: Path, found: Versions, label: str) -> None:
    """Refuse to serve a version that lacks what was before the time at which it began."""
    folder = version_folder(data_dir, found.job, found.version(label).label)
    if not any(since_of(restored) for restored in Versioned(data_dir, found.job).places(label).values()):
        return
    with read_briefly(folder) as store:
        coverage = store.coverage
    lacking = [
        f"{view} has no window before {iso_time(start)}" if start is not None else f"{view} lacks what was before"
        for view, start in sorted(coverage.items())
    ]
    raise UsageError(
        f"job {found.job}: {label} began at a time: {'; '.join([*lacking, 'what it writes begins there as well'])}. "
        "To serve all, `streamactors replay --from earliest` under another label and promote that; --force "
        "promotes all the same."
    )


def _tell_folders(found: Versions, label: str) -> None:
    for folder in folders_of(found.version(label)):
        sys.stderr.write(f"streamactors: files can't be exchanged in one step: {label} goes on writing {folder}\n")
