"""Failures of regions as plain data, and who is told: the user's ``on_failure``.

When is it called?       After each failure of a region, when it is decided what follows, before that is done.
How often?               Once for each failure; one that comes while the region is being stopped is told as well.
In what order?           Of the failures, as far as they are called; async ones run side by side.
May it block?            A plain function should not: it runs in the event loop. An async one may take its time; no
                         restart waits for it. At the job's end it is awaited for up to GRACE_SECONDS.
What follows an error?   It is logged. Whatever the function does, the job goes on as it would have without it.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Literal

import msgspec

from streamactors.core.errors import BadRecord, RecordPlace

from .states import said

GRACE_SECONDS = 5.0
"""How long the end of a job waits for async ``on_failure`` calls: a message to a pager takes a second or two; nobody
wants a shutdown to hang on a pager that is away."""

Decision = Literal["restarts", "gave up", "stops"]


class Failure(msgspec.Struct, frozen=True):
    """A failure of a region. Plain data: it can be logged, sent, kept."""

    job: str
    region: str
    operator: str | None
    """Path of what failed, such as ``quiz-counts/map``, a sink's id, or an actor's name; None when it is not known."""

    place: RecordPlace | None
    """The record, where one record is to blame: source, partition, offset."""

    error: str
    """One line: the type of the error and what it says."""

    traceback: str
    attempt: int
    """The attempt that failed, from 1 on, over all starts of the job."""

    decision: Decision
    """``restarts``; ``gave up``: the job fails; ``stops``: it was being stopped, or taken back, anyway."""

    restarts_in: float | None
    """Seconds, when it restarts."""

    at_ms: int
    """Wall clock, ms since the epoch, UTC."""

    def __str__(self) -> str:
        what = f"{self.decision} in {self.restarts_in:.2f} s" if self.restarts_in is not None else self.decision
        where = f" at {self.operator}" if self.operator else ""
        return f"region {self.region} of job {self.job} failed{where}, attempt {self.attempt}, {what}: {self.error}"


OnFailure = Callable[[Failure], Awaitable[None] | None]


def failure_of(
    error: Exception, *, job: str, region: str, actor: str | None, attempt: int, delay: float | None, now_ms: int
) -> Failure:
    """Return *error* as plain data; *delay* None means that the region gave up."""
    bad = error if isinstance(error, BadRecord) else None
    return Failure(
        job=job,
        region=region,
        operator=bad.operator if bad is not None else actor,
        place=bad.place if bad is not None else None,
        error=said(error),
        traceback="".join(traceback.format_exception(error)),
        attempt=attempt,
        decision="gave up" if delay is None else "restarts",
        restarts_in=delay,
        at_ms=now_ms,
    )


class FailureReports:
    """Calls ``on_failure``, so that it can't hurt. See the module's header."""

    def __init__(self, job: str, on_failure: OnFailure | None) -> None:
        self._on_failure = on_failure
        self._log = logging.getLogger(f"streamactors.{job}")
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, failure: Failure) -> None:
        """Call the function; return without waiting for what it awaits."""
        if self._on_failure is None:
            return
        try:
            answer = self._on_failure(failure)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - nobody cancelled us: nothing is awaited here
            self._log.exception("on_failure itself failed; the job goes on as if it had not been called")
            return
        if isawaitable(answer):
            task = asyncio.create_task(self._await(answer), name=f"on_failure of region {failure.region}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for calls that still run, up to GRACE_SECONDS; then cancel them."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=GRACE_SECONDS)
        for task in late:
            self._log.warning(
                "on_failure has not returned %g s after the job's end and is cancelled. Give what it awaits a timeout.",
                GRACE_SECONDS,
            )
            task.cancel()
        if late:  # one that swallows even that is left to itself
            await asyncio.wait(late, timeout=GRACE_SECONDS)

    async def _await(self, answer: Awaitable[None]) -> None:
        try:
            await answer
        except asyncio.CancelledError:
            pass  # by close, or raised by the function: the same to us
        except Exception:  # noqa: BLE001 - whatever it is, it is not the job's
            self._log.exception("on_failure itself failed; the job goes on as if it had not been called")
