"""Wait for a fact instead of a duration: every other task is blocked on something."""

from __future__ import annotations

import asyncio

_QUIET_TURNS = 4
"""Turns of the loop in which no task could go on. What a task's end calls is no task, and may wake one a turn later,
through as many futures that stand for others (gather, shield) as there are turns."""


async def settle() -> None:
    """
    Return once every other task is blocked on something.

    Replaces ``sleep`` in tests. Only awaits inside this loop are waited for; work handed to a thread is not.
    """
    me = asyncio.current_task()
    quiet = 0
    while quiet < _QUIET_TURNS:
        going = any(_can_go_on(task) for task in asyncio.all_tasks() if task is not me)
        quiet = 0 if going else quiet + 1
        await asyncio.sleep(0)


def _can_go_on(task: asyncio.Task[object]) -> bool:
    waiter: asyncio.Future[object] | None = getattr(task, "_fut_waiter", None)
    return not task.done() and (waiter is None or waiter.done())
