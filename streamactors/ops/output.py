"""What commands write on standard output: bytes, JSON lines, tables of aligned columns."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from streamactors.core.times import MAX_TIME, MIN_TIME

PAGE_ROWS = 1_024
"""Rows that are aligned together: enough that columns hardly ever move, few enough that the first row comes at once."""

_GAP = "  "

_ORDERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it: control characters, line breaks, turns of the direction of writing."""


def write(data: bytes) -> None:
    """Write all of *data* behind what was written before."""
    # With PYTHONUNBUFFERED the stream is the bare file, whose write may take less than it is given.
    rest = memoryview(data)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]


def flush() -> None:
    """Hand what was written to the reader now."""
    sys.stdout.buffer.flush()


def printable(text: str, *, lines: bool = False) -> str:
    """Return *text* with what a terminal would obey escaped, as it may come from data; line breaks stay in *lines*."""
    return _ORDERS.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Write text, a line or several."""
    write(printable(text, lines=True).encode("utf-8", "replace") + b"\n")
    flush()


def write_json_lines(rows: Iterable[Any]) -> None:
    """Write one JSON value a line."""
    encoder = msgspec.json.Encoder(enc_hook=_other)
    rows = iter(rows)
    while page := list(islice(rows, PAGE_ROWS)):
        write(b"".join([encoder.encode(row) + b"\n" for row in page]))
    flush()


def to_json(value: Any) -> str:
    """Return *value* as JSON text."""
    return msgspec.json.encode(value, enc_hook=_other).decode()


def write_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under a head, numbers to the right; nothing but the head when there are none."""
    rows = iter(rows)
    widths = [len(title) for title in head]
    right = [True] * len(head)
    page = list(islice(rows, PAGE_ROWS))
    for index in range(len(head)):
        right[index] = all(isinstance(row[index], int | float) or row[index] == "" for row in page) and bool(page)
    pending: list[Sequence[Any]] = [head, *page]
    while pending:
        cells = [[_cell(cell) for cell in row] for row in pending]
        widths = [max(width, *map(len, column)) for width, column in zip(widths, zip(*cells, strict=True), strict=True)]
        for line in _aligned(cells, widths, right):
            write(line.encode("utf-8", "replace") + b"\n")
        pending = list(islice(rows, PAGE_ROWS))
    flush()


def _aligned(cells: list[list[str]], widths: list[int], right: list[bool]) -> Iterator[str]:
    for row in cells:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        yield _GAP.join(padded).rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value if isinstance(value, str) else to_json(value))


def base64_object(data: bytes) -> dict[str, str]:
    """Return how bytes that are no JSON text are written: ``{"$base64": "..."}``."""
    return {"$base64": base64.b64encode(data).decode()}


def iso_time(ms: int) -> str:
    """Return an instant as ISO 8601 in UTC, to the millisecond; what no calendar knows as a number."""
    if ms == MIN_TIME:
        return "none"
    if ms == MAX_TIME:
        return "the end"
    try:
        time = datetime.fromtimestamp(ms / 1_000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(ms)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lines_of(count: int) -> str:
    """Return ``1 line``, ``2 lines``."""
    return counted(count, "line")


def counted(count: int, what: str) -> str:
    """Return ``1 record``, ``2 records``."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _other(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")
