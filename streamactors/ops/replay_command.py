"""``streamactors replay``: other code over the whole log, beside the version that is served, until it has caught up.

It is a run of a version that follows. What is special: it yields to others (a lower priority, of which the disk hears
too), it shows how far it is, and it ends by itself. Killed, it goes on from its checkpoint when it is started again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import click

from streamactors.core.errors import UsageError
from streamactors.durable.catalogue import digest_of
from streamactors.durable.files import RealDisk
from streamactors.durable.segment import segment_bases, segment_name
from streamactors.durable.store import Restored
from streamactors.job.folders import check_label
from streamactors.job.runner import Job
from streamactors.job.settings import Settings
from streamactors.job.status import JobStatus
from streamactors.kappa.promotion import Versioned

from .cli import data_option
from .loading import file_settings, load
from .replay_progress import Chase, Course, Sample, bytes_before, offsets_of, time_of
from .run_command import LINE_SECONDS, Run, _is_terminal, _log_to, _loop_factory, _settings, settings_options

NICE = 10
"""Added to the process's niceness: beside a busy process it then gets about a tenth of a core that both want, on a core
of its own all of it. Linux derives the priority at the disk from it."""

SAMPLE_SECONDS = 0.1
"""Between two looks at both versions' checkpoints: half of the usual interval."""


@click.command()
@click.argument("target", metavar="FILE.py[:NAME]")
@data_option
@click.option("--as", "label", metavar="LABEL", required=True, help="What to call this version.")
@click.option(
    "--from",
    "since",
    metavar="earliest|TIME",
    help="Where it begins: with the first record, or before an event time (ISO 8601, UTC, or ms).  [default: earliest]",
)
@click.option("--keep-following", is_flag=True, help="Go on when it has caught up, until it is promoted or Ctrl-C.")
@click.option("--go-on", is_flag=True, help="With the state that other code left under this label.")
@settings_options
@click.option("--no-progress", is_flag=True, help="Log lines instead of a bar; as without a terminal.")
@click.argument("arguments", metavar="[-- ARGS]", nargs=-1, type=click.UNPROCESSED)
def replay(
    target: str,
    data_dir: Path,
    arguments: tuple[str, ...],
    *,
    label: str,
    since: str | None,
    keep_following: bool,
    go_on: bool,
    no_progress: bool,
    **flags: str | None,
) -> int:
    """
    Run the log through FILE.py as version LABEL, beside the version that is served, until it has caught up.

    It reads what that one has read, in the same order, and writes views, topics and tables of its own. Killed, it goes
    on where its last checkpoint stands when it is started again.
    """
    time = None if since in (None, "earliest") else time_given(str(since))
    _settings(Settings(), None, flags)  # says what is wrong with them before the file runs
    pipeline = load(target, arguments)
    versioned = Versioned(data_dir, pipeline.name)
    _refuse(versioned, label, pipeline.file, go_on=go_on)
    if since == "earliest":
        _refuse_later_beginning(versioned, label)
    settings = replace(_settings(file_settings(), None, flags), version=label, from_time=time)
    show = None if no_progress or not _is_terminal() else Bar()
    _log_to(None, "text")
    os.nice(NICE)
    run = Replay(pipeline, data_dir, settings, None)
    run.versioned, run.bar, run.keep_following = versioned, show, keep_following
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run.main())


def _refuse(versioned: Versioned, label: str, code: str | None, *, go_on: bool) -> None:
    """Refuse to replay what is served, and to go on with the state of other code."""
    check_label(label)
    found = versioned.versions()
    if found.serving == label:
        raise UsageError(
            f"job {found.job}: {label} is the version that is served, and decides itself what it reads. Replay under "
            "another label: --as LABEL."
        )
    if label not in found or go_on or not versioned.places(label):
        return
    version = found.version(label)
    if version.digest and version.digest != digest_of(code):
        raise UsageError(
            f"job {found.job}: the state of {label} was made by {version.code}, and {code} is other code now: half of "
            f"the result would be the old one's. Run `streamactors retire` for {found.job} {label}, then replay; or "
            "choose another label; or --go-on, if the change makes no difference to what was counted."
        )


def _refuse_later_beginning(versioned: Versioned, label: str) -> None:
    """Refuse to call the state of a version that began at a time one that began with the first record."""
    found = versioned.versions()
    if label in found and found.version(label).since != "earliest":
        raise UsageError(
            f"job {found.job}: {label} began at {found.version(label).since}. Leave --from out to go on with it, "
            "`streamactors retire` it first, or choose another label."
        )


def time_given(text: str) -> int:
    """Return the event time that *text* names, ms; refuse what names none."""
    try:
        if text.lstrip("-").isdecimal():
            return int(text)
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"--from {text}: this is no time ({error}). Give earliest, or an event time: ISO 8601, in UTC where "
            "nothing else is said (2025-09-08T10:00Z), or ms since the epoch."
        ) from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1_000)


@dataclass
class Replay(Run):
    """A run that follows until it has caught up."""

    versioned: Versioned = field(init=False)
    keep_following: bool = False
    bar: Bar | None = None
    _caught_up: bool = False
    _promoted: bool = False
    _chase: Chase = field(default_factory=Chase)
    _course: Course = field(default_factory=Course)

    def _until(self) -> str:
        until = "until it is promoted or Ctrl-C" if self.keep_following else "until it has caught up"
        return f"follows the version that is served, {until}"

    def _how(self, status: JobStatus) -> str:
        if self._promoted:
            return "is served now, and this replay is over: run it with `streamactors run`"
        return "caught up" if self._caught_up else super()._how(status)

    async def _watch(self, job: Job) -> None:
        label = job.version
        said = time.monotonic()
        with self._shown() as show:
            while True:
                following = job.following
                if following is None:
                    self._end(job, promoted=True)
                    return
                mine, its = await asyncio.to_thread(self._stand, label, following)
                self._course.add(self._sample(mine, its))
                show(self._course)
                if self.bar is None and time.monotonic() - said >= LINE_SECONDS:
                    said = time.monotonic()
                    self._log("%s", self._course.text())
                if self._chase.caught_up(mine, its) and not self._caught_up:
                    self._caught_up = True
                    self._log("%s has caught up with %s", label, following)
                    if not self.keep_following:
                        self._end(job)
                        return
                await asyncio.sleep(SAMPLE_SECONDS)

    def _end(self, job: Job, *, promoted: bool = False) -> None:
        self._promoted = promoted
        self._draining = asyncio.create_task(job.drain())
        self._draining.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _stand(self, label: str, following: str) -> tuple[dict[str, Restored], dict[str, Restored]]:
        return self.versioned.places(label), self.versioned.places(following)

    def _sample(self, mine: dict[str, Restored], its: dict[str, Restored]) -> Sample:
        read = {key: at for restored in mine.values() for key, at in offsets_of(restored).items()}
        goal = {key: at for restored in its.values() for key, at in offsets_of(restored).items()}
        done_bytes = goal_bytes = 0
        for (source, partition), end in goal.items():
            at = min(read.get((source, partition), 0), end)
            segments = _segments(self.data_dir / "log" / source / str(partition)) or [(0, end)]
            done_bytes += bytes_before(segments, end, at)
            goal_bytes += bytes_before(segments, end, end)
        records = sum(read.values())
        return Sample(time.monotonic(), done_bytes, goal_bytes, records, time_of(mine), time_of(its))

    @contextmanager
    def _shown(self) -> Iterator[Callable[[Course], None]]:
        if self.bar is None:
            yield lambda _: None
            return
        with self.bar as bar:
            yield bar.show


def _segments(folder: Path) -> list[tuple[int, int]]:
    """Return first offset and bytes of each segment of a topic's partition; nothing where it is no topic's."""
    bases = segment_bases(RealDisk().names(folder))
    return [(base, (folder / segment_name(base)).stat().st_size) for base in bases]


class Bar:
    """The progress bar of a terminal, on standard error."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._progress = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=False)
        self._task = self._progress.add_task("", total=None)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, course: Course) -> None:
        """Draw how far it is."""
        last = course.last
        self._progress.update(self._task, total=max(1, last.goal), completed=last.done, description=course.text())
