"""``streamactors run``: one pipeline, alone in its process.

What belongs to a process and not to the library is here: signals, the event loop, logging, the garbage collector.

How it ends:

    SIGINT or SIGTERM, once     the job drains: nothing more is read, one last checkpoint, exit code 0. While the job
                                is still starting there is nothing to drain: the start is given up
    the same again              the process ends at once, 128 + the signal's number; the next run recovers
    --until-end, --finish       when the durable ends, as they were at the start, are reached
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from streamactors.core.errors import UsageError
from streamactors.flow.sequencer import Bound
from streamactors.graph.pipeline import Pipeline
from streamactors.job.options import OPTIONS, from_flags, from_variables, misspelt
from streamactors.job.runner import Job
from streamactors.job.runner import run as run_job
from streamactors.job.settings import Settings
from streamactors.job.status import JobStatus

from . import logs
from .cli import data_option
from .failures import OK, SIGNALLED, complain
from .loading import file_settings, load
from .output import say
from .progress import Rate, progress_line, reasons_shown, records_of, summary_line
from .savepoint_commands import consent_options, sinks_option

if TYPE_CHECKING:
    from .display import Display

FRAME_SECONDS = 0.25
"""Between two frames of the display: four a second are seen as motion, and cost nothing."""

VIEWS_EVERY_FRAMES = 4
"""Views are read once a second: it is the one thing in a frame that costs milliseconds."""

LINE_SECONDS = 5.0
"""Between two log lines while something happens; twelve times as much while nothing does."""

GC_YOUNG_OBJECTS = 50_000
"""Objects between two young collections. A batch makes some thousands, so at Python's default of 700 to 2,000 each one
is collected several times while it is in use; hardly anything here is cyclic. A job that embeds us keeps its own."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* a flag for each setting. None is the default: then a variable, or the program, decides."""
    for option in reversed(OPTIONS):
        kind = option.kind
        helped = f"{option.meaning} [{'|'.join(kind.choices)}]" if kind.choices else option.meaning
        helped = f"{helped} ({option.default})"
        command = click.option(option.flag, option.parameter, metavar=kind.metavar, help=helped)(command)
    return command


@click.command()
@click.argument("target", metavar="FILE.py[:NAME]")
@data_option
@click.option("--until-end", is_flag=True, help="Stop at the ends of the input as they are now; windows stay open.")
@click.option("--finish", is_flag=True, help="The same, but the input is complete: all windows close, for good.")
@click.option(
    "--as", "label", metavar="LABEL", help="Run this version; one that is not served follows the one that is."
)
@click.option("--from-savepoint", metavar="PATH", type=click.Path(path_type=Path), help="Start from a savepoint.")
@sinks_option
@consent_options
@settings_options
@click.option("--no-progress", is_flag=True, help="Log lines instead of the display; as without a terminal.")
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="text", show_default=True, help="Of log lines.")
@click.option("--metrics-port", metavar="N", type=click.IntRange(0, 65_535), help="Serve metrics for Prometheus there.")
@click.option("--metrics-host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="For --metrics-port.")
@click.argument("arguments", metavar="[-- ARGS]", nargs=-1, type=click.UNPROCESSED)
def run(
    target: str,
    data_dir: Path,
    arguments: tuple[str, ...],
    *,
    until_end: bool,
    finish: bool,
    label: str | None,
    from_savepoint: Path | None,
    sinks: str | None,
    fresh: tuple[str, ...],
    dropped: tuple[str, ...],
    no_progress: bool,
    log_format: str,
    metrics_port: int | None,
    metrics_host: str,
    **flags: str | None,
) -> int:
    """
    Run the pipeline NAME of FILE.py, or the only one there is, until Ctrl-C.

    NAME may be a function that returns a pipeline. ARGS are the file's sys.argv. Ctrl-C drains: one last checkpoint,
    then the end; a second one kills. Either way the next run goes on from the last checkpoint.

    For each setting, a flag comes before its STREAMACTORS_ variable, and that before `settings = Settings(...)` in the
    file.
    """
    if until_end and finish:
        raise UsageError("--until-end and --finish exclude each other: windows stay open, or they close. Give one.")
    bound = Bound.UNTIL_END if until_end else Bound.FINISH if finish else None
    for variable, meant in misspelt(os.environ).items():
        complain(f"{variable} is no setting and changes nothing. Was {meant} meant?")
    _settings(Settings(), bound, flags)  # says what is wrong with them before the file runs
    pipeline = load(target, arguments)
    settings = _settings(file_settings(), bound, flags)
    if label is not None:
        settings = replace(settings, version=label)
    if from_savepoint is not None or sinks is not None:
        settings = replace(settings, from_savepoint=from_savepoint, sinks=sinks)
    settings = replace(settings, fresh=settings.fresh.union(fresh), dropped=settings.dropped.union(dropped))
    display = None if no_progress or not _is_terminal() else _display(pipeline)
    _log_to(display, log_format)
    run = Run(pipeline, data_dir, settings, display, None if metrics_port is None else (metrics_host, metrics_port))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run.main())


def _settings(program: Settings, bound: Bound | None, flags: Mapping[str, str | None]) -> Settings:
    """Return what the program has set, changed by variables, and those by flags."""
    settings = from_flags(from_variables(program, os.environ), flags)
    return settings if bound is None else replace(settings, bound=bound)


def _is_terminal() -> bool:
    """Whether standard error can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it does not install everywhere, and nothing depends on it
        return None
    return uvloop.new_event_loop


def _display(pipeline: Pipeline) -> Display:
    from .display import Display, ViewSpec

    nodes = [node for node in pipeline.graph.nodes if node.view is not None]
    return Display([ViewSpec(str(node.view), node.shape.windowed) for node in nodes])


def _log_to(display: Display | None, log_format: str) -> None:
    handler = display if display is not None else logging.StreamHandler()
    handler.setFormatter(logs.formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


@dataclass
class Run:
    """One run, from its start to its last line."""

    pipeline: Pipeline
    data_dir: Path
    settings: Settings
    display: Display | None
    metrics: tuple[str, int] | None = None
    """Host and port where metrics are served."""

    signals: int = 0
    _main: asyncio.Task[Any] | None = None
    _job: Job | None = None
    _draining: asyncio.Task[None] | None = None
    _rate: Rate = field(default_factory=Rate)

    async def main(self) -> int:
        """Run to the end; return the exit code."""
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        before = {number: signal.signal(number, self._handler(loop)) for number in _SIGNALS}
        try:
            with ExitStack() as stack:
                return await self._run(self._serve_metrics(stack))
        except asyncio.CancelledError:
            if not self.signals:
                raise
            say(f"{self.pipeline.name}: given up while it was starting; nothing was read")
            return OK
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _serve_metrics(self, stack: ExitStack) -> Callable[[Job], AbstractContextManager[None]]:
        """Serve metrics until *stack* closes, where that is asked for; return what shows a job's."""
        if self.metrics is None:
            return lambda _: nullcontext()
        from .metrics import register, serve

        host, port = self.metrics
        self._log("metrics at http://%s:%d/metrics", host, stack.enter_context(serve(port, host)))
        return register

    async def _run(self, shown: Callable[[Job], AbstractContextManager[Any]]) -> int:
        try:
            async with run_job(self.pipeline, self.data_dir, settings=self.settings) as job:
                self._job, started = job, time.monotonic()
                self._rate.add(started, 0)
                tune_garbage_collection()
                self._log("started, checkpoint every %d ms, %s", self.settings.checkpoint_every_ms, self._until())
                watching = asyncio.create_task(self._watch(job))
                try:
                    with shown(job):
                        await job.wait()
                finally:
                    watching.cancel()
                    with suppress(asyncio.CancelledError):
                        await watching
                status, ended = job.status(), time.monotonic()
                if self.display is not None:
                    self.display.show(
                        status, self._rate.add(time.monotonic(), records_of(status)), _now_ms(), job.views
                    )
        finally:
            if self.display is not None:
                self.display.stop()
        bounded = self.settings.bound is not Bound.LIVE and not self.signals
        say(summary_line(status, self._how(status), ended - started, rated=bounded))
        return OK

    def _until(self) -> str:
        return {
            Bound.LIVE: "until Ctrl-C, which drains",
            Bound.UNTIL_END: "until the ends of the input as they are now",
            Bound.FINISH: "until the end of the input, which is complete",
        }[self.settings.bound]

    def _how(self, status: JobStatus) -> str:
        if status.state == "finished":
            return "was finished by an earlier run, its input is complete"
        if self.signals:
            return "drained"
        return {Bound.UNTIL_END: "read to the end", Bound.FINISH: "finished"}.get(self.settings.bound, "ended")

    # --- following it ------------------------------------------------------------------------------------------

    async def _watch(self, job: Job) -> None:
        if self.display is not None:
            self.display.start()
            await self._draw(job, self.display)
        else:
            await self._write_lines(job)

    async def _draw(self, job: Job, display: Display) -> None:
        frame = 0
        while True:
            status = job.status()
            rate = self._rate.add(time.monotonic(), records_of(status))
            display.show(status, rate, _now_ms(), job.views if frame % VIEWS_EVERY_FRAMES == 0 else None)
            frame += 1
            await asyncio.sleep(FRAME_SECONDS)

    async def _write_lines(self, job: Job) -> None:
        said, quiet = -1, 0
        while True:
            await asyncio.sleep(LINE_SECONDS)
            status = job.status()
            rate = self._rate.add(time.monotonic(), records_of(status))
            quiet = quiet + 1 if records_of(status) == said else 0
            for region in status.regions:
                logger = logging.getLogger(f"streamactors.{status.job}.{region.id}")
                if quiet % 12 == 0:
                    logger.info("%s", progress_line(region, rate, _now_ms()))
                for reason in reasons_shown(region, rate) if quiet % 12 in (0, 1) else ():
                    logger.info("why nothing moves: %s", reason)
            said = records_of(status)

    def _log(self, message: str, *values: object) -> None:
        logging.getLogger(f"streamactors.{self.pipeline.name}").info(message, *values)

    # --- signals -----------------------------------------------------------------------------------------------

    def _handler(self, loop: asyncio.AbstractEventLoop) -> Callable[[int, FrameType | None], None]:
        """Return a handler that works also while a user's function keeps the loop."""

        def on_signal(number: int, _: FrameType | None) -> None:
            self.signals += 1
            if self.signals > 1:
                self._kill(number)
            loop.call_soon_threadsafe(self._drain)

        return on_signal

    def _drain(self) -> None:
        if self._job is None:
            assert self._main is not None, "signals are handled behind the beginning of main"
            self._main.cancel()
            return
        self._log("draining: a last checkpoint, then the end. Once more kills at once")
        self._draining = asyncio.create_task(self._job.drain())
        self._draining.add_done_callback(lambda task: task.cancelled() or task.exception())  # main waits for the same

    def _kill(self, number: int) -> NoReturn:
        if self.display is not None:
            os.write(2, b"\x1b[?25h\n")  # the cursor, which the display hides
        complain("killed; the next run goes on from the last checkpoint.")
        os._exit(SIGNALLED + number)


def tune_garbage_collection() -> None:
    """Collect seldom: what a batch makes is gone before a collection could find anything."""
    gc.collect()
    gc.freeze()  # modules and code stay; no collection needs to look at them again
    gc.set_threshold(GC_YOUNG_OBJECTS, 20, 20)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
