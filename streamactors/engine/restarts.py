"""Restart intensity: how often a failure is answered by another start, and how long to wait before it.

The rule of Erlang/OTP's supervisors (max restarts in a window, else the failure goes up) with exponential backoff and
full jitter. Pure: time and randomness come in, a delay or None comes out.

    "give up" too early   a service that is away for a minute takes the job down with it
    "give up" too late    a record that fails every time keeps the machine busy for hours before anybody is told

Source: Erlang/OTP design principles, "Supervisor behaviour: tuning the intensity and period".
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often, how fast. Durations in seconds."""

    restarts_max: int = 5
    """Restarts within ``window`` before the failure goes up. 0: the first failure is final."""

    window: float = 60.0
    """How far back restarts count."""

    backoff_first: float = 0.1
    """The longest wait before the first restart; doubles with each one in the window."""

    backoff_max: float = 10.0
    """No wait is longer than this."""


class RestartIntensity:
    """Count failures and decide: wait so many seconds, or give up."""

    def __init__(self, policy: RestartPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._random = rng
        self._failures: deque[float] = deque()

    def on_failure(self, now: float) -> float | None:
        """Note a failure at *now* (monotonic seconds); return the seconds to wait, or None to give up."""
        while self._failures and self._failures[0] <= now - self._policy.window:
            self._failures.popleft()
        self._failures.append(now)
        count = len(self._failures)
        if count > self._policy.restarts_max:
            return None
        ceiling = min(self._policy.backoff_max, self._policy.backoff_first * 2.0 ** (count - 1))
        # Half fixed, half random: regions that fell together don't come back together, and none comes back at once.
        return ceiling * (0.5 + 0.5 * self._random.random())
