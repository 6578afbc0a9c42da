"""The live display of a run in a terminal. Imported only when one is shown: rich takes longer to load than a job.

A frame is a function of the status, the rate and the views' rows; it is drawn by ``draw`` and printed by Display. It
is written to standard error, so that what a user's code prints on standard output stays apart.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamactors.durable.views import ViewReader
from streamactors.job.status import JobStatus, PartitionStatus, RegionStatus

from .output import iso_time, printable, to_json
from .progress import checkpoint_text, late_of, reasons_shown, records_of, watermark_text

ROWS_SHOWN = 3
"""Rows of each view: enough to see it move, few enough that several views fit."""

ROWS_SCANNED_MAX = 2_000
"""Rows of a view that are looked at for the top ones: about 3 ms of the event loop, once a second."""

PARTITIONS_SHOWN = 8
"""Bars; the other partitions are one line together."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A view to show."""

    name: str
    windowed: bool
    """Its keys are [key, window start]."""


@dataclass(frozen=True, slots=True)
class TopRows:
    """What is shown of a view."""

    spec: ViewSpec
    rows: list[tuple[Any, Any]]
    total: int


def top_rows(views: ViewReader, specs: Sequence[ViewSpec]) -> list[TopRows]:
    """Return of each view the rows with the greatest values; where there are windows, of the newest ones."""
    found = []
    for spec in specs:
        view = views[spec.name]
        rows = islice(view.items(), ROWS_SCANNED_MAX)
        found.append(TopRows(spec, heapq.nlargest(ROWS_SHOWN, rows, key=lambda row: _rank(spec, row)), len(view)))
    return found


def _rank(spec: ViewSpec, row: tuple[Any, Any]) -> tuple[Any, ...]:
    key, value = row
    if isinstance(value, dict):
        value = next((item for item in value.values() if isinstance(item, int | float)), 0)
    number = value if isinstance(value, int | float) else 0
    return (key[-1], number) if spec.windowed and isinstance(key, tuple) else (0, number)


def draw(status: JobStatus, rate: float, now_ms: int, views: Sequence[TopRows]) -> RenderableType:
    """Return one frame."""
    head = Text.assemble(
        (status.job, "bold"), f"  {status.state}  ", (f"{rate:,.0f} records/s", "bold green"),
        f"  {records_of(status):,} read in this run",
    )  # fmt: skip
    parts: list[RenderableType] = [head]
    for region in status.regions:
        parts += _region(region, rate, now_ms)
    for top in views:
        parts += _view(top)
    return Group(*parts)


def _region(region: RegionStatus, rate: float, now_ms: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    restarts = Text(str(region.restarts), "bold red" if region.restarts else "")
    for name, what in (
        ("event time", Text(watermark_text(region.watermark, now_ms))),
        ("checkpoint", Text(checkpoint_text(region))),
        ("late", Text(f"{late_of(region):,}")),
        ("restarts", restarts if region.state == "running" else Text.assemble(restarts, f" ({region.state})")),
    ):
        lines.append(Text.assemble((f"  {name:<11}", "dim"), what))
    why = (f"  {'why':<11}", "dim")
    lines += [Text.assemble(why, (reason, "yellow")) for reason in reasons_shown(region, rate)]
    lines.append(_partitions(region.partitions))
    return lines


def _partitions(partitions: Sequence[PartitionStatus]) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(no_wrap=True)
    shown = list(partitions[:PARTITIONS_SHOWN])
    bars = [(f"  {p.source}/{p.partition}", p.offset, p.end, "idle" if p.idle else "") for p in shown]
    if rest := partitions[PARTITIONS_SHOWN:]:
        bars.append((f"  {len(rest)} more", sum(p.offset for p in rest), sum(p.end for p in rest), ""))
    for name, offset, end, note in bars:
        bar = ProgressBar(total=max(end, 1), completed=offset if end else 1, width=30)
        table.add_row(Text(name, "dim"), bar, f"{offset:,}/{end:,}", Text(note, "dim"))
    return table


def _view(top: TopRows) -> list[RenderableType]:
    windowed = top.spec.windowed
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    of = "newest windows" if windowed else "greatest"
    for key, value in top.rows:
        cells = _value_cells(value)
        if windowed and isinstance(key, tuple) and isinstance(key[-1], int):
            keys = [_text(item) for item in key[:-1]] + [iso_time(key[-1])[:16].replace("T", " ")]
        else:
            keys = [_text(item) for item in (key if isinstance(key, tuple) else (key,))]
        table.add_row(*(Text("  " + cell if index == 0 else cell) for index, cell in enumerate(keys + cells)))
    return [Text(f"view {top.spec.name}: {top.total:,} rows, the {of} first", "bold"), table]


def _value_cells(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{printable(str(name))} {_text(item)}" for name, item in islice(value.items(), 4)]
    return [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = printable(value if isinstance(value, str) else to_json(value))
    return text if len(text) <= 40 else text[:39] + "…"


class Display(logging.Handler):
    """Draws frames in place; log lines and what the user's code prints scroll by above them."""

    def __init__(self, specs: Sequence[ViewSpec]) -> None:
        super().__init__()
        self._specs = specs
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._views: list[TopRows] = []

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def show(self, status: JobStatus, rate: float, now_ms: int, views: ViewReader | None) -> None:
        """Draw a frame; without *views*, with the rows of the one before."""
        if views is not None:
            self._views = top_rows(views, self._specs)
        self._live.update(draw(status, rate, now_ms, self._views), refresh=True)

    def stop(self) -> None:
        """Leave the last frame where it is, and give the terminal back; harmless when repeated."""
        self._live.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log line above the frame."""
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
