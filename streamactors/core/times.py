"""Durations and instants: everything is an int of milliseconds, UTC."""

from __future__ import annotations

import re
from datetime import timedelta

MIN_TIME = -(2**63)
"""The start of time: the watermark before anything is known."""

MAX_TIME = 2**63 - 1
"""The end of time: the watermark when no more input can come."""

Duration = int | float | str | timedelta

_UNITS = {"ms": 1, "s": 1_000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)\s*", re.ASCII)


def duration_ms(value: Duration) -> int:
    """Return *value* in whole milliseconds: ``"10min"``, ``"200ms"``, a timedelta, or a number of ms."""
    if isinstance(value, timedelta):
        return round(value.total_seconds() * 1_000)
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ValueError(
                f"{value!r} is not a duration. Write a number with a unit (ms, s, min, h, d), "
                "such as '10min' or '200ms'."
            )
        return round(float(match[1]) * _UNITS[match[2]])
    if isinstance(value, bool) or value != int(value):
        raise ValueError(f"{value!r} is not a duration in whole milliseconds. Write it with a unit, such as '1.5s'.")
    return int(value)


def shown(ms: int) -> str:
    """Return a duration as people write it, in the largest unit that divides it."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def clamp_time(value: int) -> int:
    """Keep a computed time inside the 64-bit range: beyond it means the end or the start of time."""
    return MAX_TIME if value > MAX_TIME else MIN_TIME if value < MIN_TIME else value
