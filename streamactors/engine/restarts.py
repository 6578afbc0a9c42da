"""Restart intensity: how often a failure is answered by another start, and how long to wait before it.

The rule of Erlang/OTP's supervisors (max restarts in a window, else the failure goes up) with exponential backoff and
full jitter. Pure: time and randomness come in, a delay or None comes out.

    "give up" too early   a service that is away for a minute takes the job down with it
    "give up" too late    a record that fails every time keeps the machine busy for hours before anybody is told

What restarts is the policy's ``scope``:

    region    the region that failed: regions share nothing, so the others can't have been hurt by it. The default
    all       every region of the job: for pipelines whose regions must not drift apart while one of them is away, such
              as a region that reads the topic which another one writes and a person who compares the two
    none      nothing: the first failure is final, for a job that something else starts again

Source: Erlang/OTP design principles, "Supervisor behaviour: tuning the intensity and period".
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

from streamactors.core.errors import UsageError

Scope = Literal["region", "all", "none"]

_DOUBLINGS_MAX = 64
"""Of the backoff: beyond any patience, and below where a float overflows."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What restarts, how often, how fast. Durations in seconds."""

    scope: Scope = "region"
    """What a failure takes back to its checkpoint; see the module's header."""

    restarts_max: int = 5
    """Restarts within ``window`` before the failure goes up. 0: the first failure is final."""

    window: float = 60.0
    """How far back restarts count."""

    backoff_first: float = 0.1
    """The longest wait before the first restart; doubles with each one in the window."""

    backoff_max: float = 10.0
    """No wait is longer than this."""

    def __post_init__(self) -> None:
        """Refuse what can't be followed."""
        if self.scope not in get_args(Scope):
            raise UsageError(f"restart policy: scope={self.scope!r} is none of {', '.join(get_args(Scope))}. Give one.")
        for name in ("restarts_max", "window", "backoff_first", "backoff_max"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= 0:  # nan too
                raise UsageError(f"restart policy: {name}={value!r} is no number from 0 on. Give one.")

    @property
    def limit(self) -> int:
        """Restarts that are allowed in the window."""
        return 0 if self.scope == "none" else self.restarts_max


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
        if count > self._policy.limit:
            return None
        return backoff(self._policy.backoff_first, self._policy.backoff_max, count, self._random)


def backoff(first: float, longest: float, failures: int, rng: random.Random) -> float:
    """Return how long to wait after so many *failures*: at most *first*, doubled with each but the first."""
    ceiling = min(longest, first * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    # Half fixed, half random: what failed together does not come back together, and nothing comes back at once.
    return ceiling * (0.5 + 0.5 * rng.random())
