"""Sizes: everything is an int of bytes."""

from __future__ import annotations

import re

_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*", re.ASCII | re.IGNORECASE)


def size_bytes(text: str) -> int:
    """Return what *text* says in bytes: ``"10GB"`` is 10,000,000,000, ``"64MiB"`` is 67,108,864."""
    match = _TEXT.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(
            f"{text!r} is not a size. Write a number with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB), such as "
            "'10GB' or '64MiB'."
        )
    return round(float(match[1]) * _UNITS[match[2].lower()])


def shown_size(size: int) -> str:
    """Return a number of bytes as people write it."""
    if size < 1_000:
        return f"{size} B"
    value, unit = float(size), "B"
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007 - the last one is used
        value /= 1_000
        if value < 999.5:
            break
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
