"""What sliding windows cost by size / slide: the window operator alone, with its state in a store.

    python -m benchmarks sliding

A pane of 1 s holds 200 records of 1,000 keys; each pane a window ends and fires for all keys that it holds. What a
record costs should not depend on how many windows it is in; a firing costs by its results, and for each result by the
logarithm of the number of panes (flow/panes.py). Times are processor time, firings those of windows that are full.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from streamactors.core.batch import Batch
from streamactors.core.keys import CanonicalKey
from streamactors.core.times import MAX_TIME
from streamactors.durable.state import KeyedState, OperatorRow
from streamactors.durable.store import Store
from streamactors.flow.aggregates import count
from streamactors.flow.operator import OperatorContext
from streamactors.flow.window_operator import WindowOperator
from streamactors.flow.windows import Sliding

from .measuring import Measurement, Options, Side, in_turn

PANE_MS, RECORDS, KEYS = 1_000, 200, 1_000
RATIOS = (1, 10, 100, 1_000)


def ours(ratio: int, panes: int) -> Measurement:
    """Fold and fire *panes* panes; time the two apart, the firings once windows are full."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder), sync=False) as store:
        operator = WindowOperator(Sliding(ratio * PANE_MS, PANE_MS), count())
        operator.open(
            OperatorContext(
                "sliding",
                lambda name: KeyedState(store, f"state:{name}"),
                lambda name: OperatorRow(store, "rows", name),
            )
        )
        return _drive(operator, ratio, panes)


def _drive(operator: WindowOperator, ratio: int, panes: int) -> Measurement:
    shown = [0, 0]  # rows, and the records that they count

    def note(batch: Batch) -> None:
        shown[0] += len(batch)
        shown[1] += sum(batch.values)

    operator.emit = note
    choose = random.Random(1)
    folding = 0.0
    firing: list[float] = []
    results: list[int] = []
    for pane in range(panes + ratio):
        keys: list[CanonicalKey] = [f"quiz-{choose.randrange(KEYS)}" for _ in range(RECORDS)]
        times = [pane * PANE_MS + place * PANE_MS // RECORDS for place in range(RECORDS)]
        began = time.process_time()
        operator.on_batch(Batch(list(keys), times, keys))
        folded, before = time.process_time(), shown[0]
        operator.on_watermark((pane + 1) * PANE_MS - 1)
        folding += folded - began
        if pane >= ratio:
            firing.append(time.process_time() - folded)
            results.append(shown[0] - before)
    operator.on_watermark(MAX_TIME)
    figures = {
        "records": (panes + ratio) * RECORDS / folding,
        "firing": statistics.fmean(firing),
        "longest": max(firing),
        "results": statistics.fmean(results),
    }
    answer = shown[1] / ratio / (panes + ratio)  # each record counts in so many windows
    return Measurement(folding + sum(firing), answer=str(answer), figures=figures)


def run(options: Options) -> None:
    """Compare the ratios."""
    ratios, panes = (RATIOS[:2], 20) if options.quick else (RATIOS, 1_000)
    sides = [Side(str(ratio), "benchmarks.sliding:ours", {"ratio": ratio, "panes": panes}) for ratio in ratios]
    print(f"\nsliding windows by size / slide ({RECORDS} records a pane, {KEYS:,} keys; each record in each window)")
    heads = ("size/slide", "records/s", "a firing", "longest", "results", "a result", "peak")
    print("  {:>10} {:>11} {:>10} {:>10} {:>8} {:>10} {:>8}".format(*heads))
    for name, measured in in_turn(sides, options).items():
        all_figures = [one.figures or {} for one in measured]
        found = {key: statistics.median([figures[key] for figures in all_figures]) for key in all_figures[0]}
        mean_ms, longest_ms = found["firing"] * 1e3, found["longest"] * 1e3
        each, peak = found["firing"] / found["results"] * 1e6, max(one.peak_mb for one in measured)
        print(
            f"  {name:>10} {found['records']:>11,.0f} {mean_ms:>7.2f} ms {longest_ms:>7.2f} ms "
            f"{found['results']:>8,.0f} {each:>7.2f} µs {peak:>5.0f} MB"
        )
