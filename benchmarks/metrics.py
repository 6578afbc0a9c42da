"""What metrics cost: the windowed count with its metrics scraped over HTTP each second, against the same without.

    python -m benchmarks metrics

A paired comparison: the two sides run next to each other in time, which of them first alternates, and the figure is
the ratio of a pair, so that what the machine does to both falls out. The interval is Student's, at 95 %, over the
logarithms of the ratios. The scraper lives in the measured process, so its side of HTTP is in the figure as well.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import streamactors as sa
from streamactors.ops import metrics

from .inputs import SUBMISSIONS, submissions
from .measuring import Measurement, Options, Side, measure, run_loop
from .windowed import count_windows

PAIRS = 20
SCRAPE_SECONDS = 1.0
_STUDENT = {2: 12.71, 3: 4.30, 5: 2.78, 10: 2.262, 15: 2.145, 20: 2.093, 30: 2.045}
"""Two-sided 95 % quantiles, by the number of pairs; between two of them the wider one counts."""


def plain(data: str) -> Measurement:
    """Count windows; nobody looks."""
    return run_loop(count_windows(Path(data)))


def scraped(data: str) -> Measurement:
    """Count windows, scraped each second."""
    taken: list[float] = []

    @contextmanager
    def around(job: sa.Job) -> Iterator[None]:
        with metrics.register(job), metrics.serve(0) as port, _scraper(port, taken):
            yield

    measured = run_loop(count_windows(Path(data), around=around))
    measured.figures = {"scrapes": taken}
    return measured


@contextmanager
def _scraper(port: int, taken: list[float]) -> Iterator[None]:
    """Scrape while the block runs, the first time at once; note how long each took."""
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            began = time.perf_counter()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    answer.read()
            except OSError:
                if over.is_set():  # the server went first
                    return
                raise
            taken.append(time.perf_counter() - began)
            over.wait(SCRAPE_SECONDS)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # Not joined here: a scrape under way waits for this very loop, which we would hold.


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of *ratios*, and the ends of its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < min(_STUDENT):
        return math.exp(mean), 0.0, math.inf
    quantile = min(value for count, value in _STUDENT.items() if count <= len(logs))
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def run(options: Options) -> None:
    """Compare the two, in pairs."""
    made = submissions(options.cache, 5_000 if options.quick else SUBMISSIONS)
    sides = [Side(name, f"benchmarks.metrics:{name}", {"data": str(made.data)}) for name in ("plain", "scraped")]
    pairs: list[dict[str, Measurement]] = []
    for number in range(1 if options.quick else PAIRS):
        order = sides if number % 2 == 0 else sides[::-1]
        pairs.append({side.name: measure(side, options) for side in order})
    if len({one.answer for pair in pairs for one in pair.values()}) != 1:
        raise SystemExit("the sides do not agree, so their times mean nothing")
    scrapes = [seconds for pair in pairs for seconds in (pair["scraped"].figures or {})["scrapes"]]
    print(f"\nmetrics, scraped each second ({made.count:,} records, {len(pairs)} pairs; outputs equal)")
    for figure in ("seconds", "cpu"):
        ratios = [getattr(pair["scraped"], figure) / getattr(pair["plain"], figure) for pair in pairs]
        mean, low, high = interval(ratios)
        median = statistics.median(getattr(pair["plain"], figure) for pair in pairs)
        print(f"  {figure:<8} {median:.2f} without; with metrics {mean:.3f} x, 95 % interval {low:.3f} to {high:.3f}")
    print(f"  {len(scrapes)} scrapes, median {statistics.median(scrapes) * 1_000:.1f} ms, both ends of HTTP included")
