"""Standing by: of several processes that could run a job, one does, and when it is gone another takes over.

The workers of a web service are such processes. Nobody is elected and nobody counts heartbeats: the job's lock is one
of the operating system, which gives it up with the process that holds it, however that ends. Whoever stands by tries to
take it, again and again; whoever gets it goes on from the last checkpoint.

    try ──▶ runs ──▶ the block is left: drains, and the lock is free
     ▲  └─▶ Held: waits TRY_SECONDS, or until the block is left
     └────────┘

If the one that runs is killed, the job stands still for up to TRY_SECONDS and the time of a recovery; nothing is lost,
because what was appended is in the log. If it hangs without ending, nobody takes over: it may be writing.

A job that gives up is not tried again here: restarts are used up, and the next try would meet the same. Another process
that stands by does try, and gives up in its turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from streamactors.core.errors import Held
from streamactors.graph.pipeline import Pipeline

from .runner import Job, run

TRY_SECONDS = 0.5
"""Between two tries to take the job's lock: how long the job may stand still when its process was killed. A try costs
some milliseconds."""


class StandBy:
    """A job that runs here, or elsewhere. Made by ``stand_by``."""

    def __init__(self, job: str) -> None:
        self.name = job
        self.job: Job | None = None
        """The job, while it runs in this process."""

        self.holder: int | None = None
        """The process that ran it at the last try; None when it ran here, or when that is not known."""

        self.error: Exception | None = None
        """Why it runs here no more: it gave up."""

        self._leaving = asyncio.Event()
        self._tried = asyncio.Event()
        self._log = logging.getLogger(f"streamactors.{job}")

    def __repr__(self) -> str:
        return f"StandBy({self.name}: {self})"

    def __str__(self) -> str:
        if self.error is not None:
            return f"gave up: {self.error}"
        if self.job is not None:
            return self.job.state.value
        return f"stands by, process {self.holder} runs the job" if self._tried.is_set() else "starting"

    async def _keep_trying(
        self, start: Callable[[], Any], around: Callable[[Job], AbstractContextManager[Any]]
    ) -> None:
        try:
            while not self._leaving.is_set() and not await self._try(start, around):
                await self._wait(TRY_SECONDS)
        except Exception as error:
            self.error = error
            raise
        finally:
            self._tried.set()

    async def _try(self, start: Callable[[], Any], around: Callable[[Job], AbstractContextManager[Any]]) -> bool:
        """Run the job to its end; False when another process runs it."""
        try:
            async with start() as job:
                self.job, self.holder = job, None
                self._tried.set()
                with around(job):
                    await self._until_over(job)
        except Held as held:
            if held.pid != self.holder or not self._tried.is_set():
                self._log.info("process %s runs the job; this one stands by, and takes over when it is gone", held.pid)
            self.holder = held.pid
            self._tried.set()
            return False
        finally:
            self.job = None
        return True

    async def _until_over(self, job: Job) -> None:
        """Return when the block is left, or the job has ended."""
        tasks = {asyncio.create_task(self._leaving.wait()), asyncio.create_task(job.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # leaving the job's block raises what it failed with

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._leaving.wait(), seconds)
        except TimeoutError:
            return


@asynccontextmanager
async def stand_by(
    pipeline: Pipeline,
    data_dir: Path | str,
    *,
    around: Callable[[Job], AbstractContextManager[Any]] = lambda _: nullcontext(),
    **options: Any,
) -> AsyncIterator[StandBy]:
    """
    Run *pipeline* while the block runs, unless another process does: then stand by, and take over when that is gone.

    When the block begins it is known who runs the job. Leaving it drains, if the job runs here.

    Args:
        around:
            Makes a context in which the job runs: ``ops.metrics.register``, say.

        pipeline, data_dir, options:
            As for ``run``.

    Raises:
        What ``run`` raises, except Held: at the beginning when the job can't start, at the end when it gave up.
    """
    standing = StandBy(pipeline.name)
    start = lambda: run(pipeline, data_dir, **options)  # noqa: E731 - a context that is entered at each try
    task = asyncio.create_task(standing._keep_trying(start, around), name=f"{pipeline.name} stands by")  # noqa: SLF001
    try:
        await standing._tried.wait()  # noqa: SLF001 - one unit
        if standing.error is None:
            yield standing
    finally:
        standing._leaving.set()  # noqa: SLF001 - one unit
        await task
