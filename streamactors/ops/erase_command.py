"""``streamactors forget``: delete one key from topics, views and state, and say what went. erasing.py does it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from streamactors.core.errors import UsageError
from streamactors.core.sizes import shown_size
from streamactors.durable.subject import subject

from .cli import data_option
from .erasing import Erasing, JobPart, Partition, Report
from .failures import FAILED, OK, exit_code
from .output import say, write_json_lines

_RANGES_SHOWN = 20


@click.command()
@data_option
@click.argument("key")
@click.option(
    "--field",
    "fields",
    metavar="FIELD",
    multiple=True,
    help="Also records whose value has KEY in this field. May be given again.",
)
@click.option("--topic", "topics", metavar="TOPIC", multiple=True, help="Only this topic. May be given again.")
@click.option("--job", "jobs", metavar="JOB", multiple=True, help="Only this job. May be given again.")
@click.option("--anywhere", is_flag=True, help="Also rows under a list that has KEY behind its first item.")
@click.option("--dry-run", is_flag=True, help="Only say what would go; works while jobs run.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="The report as one object.")
def forget(
    data_dir: Path,
    key: str,
    fields: tuple[str, ...],
    topics: tuple[str, ...],
    jobs: tuple[str, ...],
    *,
    anywhere: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """
    Delete what the data folder holds of KEY, a person's id say, for good, and report what went.

    Records with that key, or with KEY in a --field, lose value and key; offsets stay. Rows under KEY, or under a list
    that begins with it, go from views and from the state of operators. Jobs, and processes that write the topics, have
    to be stopped first.
    """
    whose = subject(key, fields=fields, anywhere=anywhere)
    erasing = Erasing(data_dir, whose, topics=topics, jobs=jobs, dry_run=dry_run)
    if not (dry_run or yes):
        _ask(data_dir)
    report = erasing.run()
    if as_json:
        write_json_lines([report])
    else:
        for line in _lines(report):
            say(line)
    if dry_run or not report.not_done:
        return OK
    codes = {exit_code(error) for error in erasing.errors}
    return codes.pop() if len(codes) == 1 and len(erasing.errors) == len(report.not_done) else FAILED


def _ask(data_dir: Path) -> None:
    if not sys.stdin or not sys.stdin.isatty():
        raise UsageError("nobody can be asked whether this is to go: there is no terminal. Give --yes.")
    if not click.confirm(f"Delete all of this key from {data_dir}, for good? (--dry-run shows what)", err=True):
        raise UsageError("nothing was deleted.")


def _lines(report: Report) -> Iterator[str]:
    done = "to be " if report.dry_run else ""
    for partition in report.topics:
        yield from _partition_lines(partition, done)
    for job in report.jobs:
        yield from _job_lines(job)
    for place in report.mentions:
        yield f"mentioned: {place.where}, {_count(place.count, 'row')} under other keys; not deleted"
    for remains in report.remains:
        yield f"still there: {remains.where} contains the key's text, {_count(remains.count, 'time')}"
    if report.left_out:
        yield f"left out: {', '.join(report.left_out)}"
    yield f"out of reach: {'; '.join(report.outside)}"
    for not_done in report.not_done:
        yield f"NOT DONE: {not_done.what}: {not_done.why}"
    what = _count(report.found, "record or row", "records and rows")
    yield f"would delete {what}" if report.dry_run else f"deleted {what}"


def _partition_lines(partition: Partition, done: str) -> Iterator[str]:
    where = f"topic {partition.topic}/{partition.partition}"
    if partition.records:
        shown = [f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in partition.offsets[:_RANGES_SHOWN]]
        more = ", ..." if len(partition.offsets) > _RANGES_SHOWN else ""
        yield (
            f"{where}: {_count(partition.records, 'record')} ({shown_size(partition.bytes)}), "
            f"offsets {', '.join(shown)}{more}; {_count(partition.segments, 'segment')} {done}written anew"
        )
    if partition.torn_files:
        size = shown_size(partition.torn_bytes)
        yield f"{where}: {_count(partition.torn_files, 'file')} of what crashes have cut off ({size}) {done}removed"


def _job_lines(job: JobPart) -> Iterator[str]:
    kinds = (("view", job.views, "row"), ("state", job.state, "entry"), ("waiting output for", job.pending, "record"))
    for kind, counts, unit in kinds:
        for name, count in counts.items():
            yield f"job {job.job} {job.version}: {kind} {name}, {_count(count, unit)}"
    if job.bytes_after is not None:
        sizes = f"{shown_size(job.bytes_before)}, now {shown_size(job.bytes_after)}"
        yield f"job {job.job} {job.version}: its file was written anew without free pages ({sizes})"


def _count(count: int, one: str, many: str | None = None) -> str:
    several = many or (one[:-1] + "ies" if one.endswith("ry") else one + "s")
    return f"{count:,} {one if count == 1 else several}"
