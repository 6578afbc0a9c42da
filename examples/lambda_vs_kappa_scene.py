"""What is around the two systems of lambda_vs_kappa.py: what arrives, what is true, and how the run looks."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import streamactors as sa

DAYS, TICKS = 4, 20  # a school day has 20 ticks of half an hour, from 8:00 on
CRASH, RESTART = TICKS + 6, TICKS + 9  # the tick in which they die, and the first in which they run again
HALF_POINTS, MENDED = 2 * TICKS, 2 * TICKS + 8  # the first tick with half points; the one in which the rule is mended
PROMOTED = MENDED + 1
EVENTS = {
    CRASH - 1: "before the crash",
    CRASH: "the live side dies",
    RESTART - 1: "still down",
    RESTART: "it runs again",
    HALF_POINTS: "the first half points",
    MENDED: "the rule is mended",
    PROMOTED: "the second version is served",
}
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000  # ms
FIRST_DAY = 1_757_289_600_000  # 8 September 2025, 0:00 UTC

QUIZZES = ("algebra", "biology", "chemistry", "english", "french")
DELAYS, OF_A_HUNDRED = (MINUTE // 2, 15 * MINUTE, 5 * HOUR), (95, 4, 1)  # at most so late, and how many of a hundred


def arrivals(records: int) -> Iterator[list[bytes]]:
    """Yield the submissions of each tick, as they arrive."""
    chance = random.Random(2025)
    per_tick = records // (DAYS * TICKS)
    for tick in range(DAYS * TICKS):
        parts = 1 if tick < HALF_POINTS else 2  # of a point
        yield [
            json.dumps(
                {
                    "quiz_id": chance.choice(QUIZZES),
                    "user_id": chance.randrange(600),
                    "score": round(parts * min(100, chance.gauss(60, 15))) / parts,
                    "submitted_at": began(tick) + 30 * MINUTE * number // per_tick - delay(chance),
                }
            ).encode()
            for number in range(per_tick)
        ]


def delay(chance: random.Random) -> int:
    return chance.randrange(chance.choices(DELAYS, OF_A_HUNDRED)[0])


def began(tick: int) -> int:
    return FIRST_DAY + tick // TICKS * DAY + 8 * HOUR + tick % TICKS * 30 * MINUTE


def true_counts(lines: Iterable[bytes]) -> Counter[tuple[str, int]]:
    """Count by the right rule: no layers, no engine, nothing that could die."""
    counts: Counter[tuple[str, int]] = Counter()
    for line in lines:
        submission = json.loads(line)
        if submission["score"] >= 50:
            counts[submission["quiz_id"], submission["submitted_at"] - submission["submitted_at"] % HOUR] += 1
    return counts


def error(shown: Counter[tuple[str, int]], truth: Counter[tuple[str, int]]) -> int:
    """By how many submissions a view is wrong, in all its rows together."""
    return sum(abs(shown[key] - truth[key]) for key in shown.keys() | truth.keys())


class Cost:
    """What a system has spent: records handled, each as often as it was, and seconds of CPU."""

    records = 0
    seconds = 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count what the process spends in the block."""
        began = time.process_time()
        yield
        self.seconds += time.process_time() - began


async def until(condition: Callable[[], bool]) -> None:
    """Return when it is so."""
    while not condition():  # noqa: ASYNC110 - it is looked at from outside: nobody there would tell us
        await asyncio.sleep(0.002)


class Sample(NamedTuple):
    """Behind a tick, or a night: the errors, and what has been spent so far."""

    at: str
    event: str  # what has just happened; empty for an ordinary tick
    lambda_error: int
    kappa_error: int
    lambda_records: int
    kappa_records: int
    lambda_seconds: float
    kappa_seconds: float


def sample(when: tuple[str, str], truth: Counter[tuple[str, int]], lambda_: Any, kappa: Any) -> Sample:
    """Ask both systems for their view and their cost."""
    spent = [lambda_.cost.records, kappa.cost.records, lambda_.cost.seconds, kappa.cost.seconds]
    return Sample(*when, error(lambda_.view(), truth), error(kappa.view(), truth), *spent)


def end_of(tick: int) -> tuple[str, str]:
    """Return when a tick ends, and what is told of it."""
    minutes = (began(tick) - FIRST_DAY) % DAY // MINUTE + 30
    return f"day {tick // TICKS + 1}, {minutes // 60}:{minutes % 60:02}", EVENTS.get(
        tick, "school is out" * ends_day(tick)
    )


def night_after(tick: int) -> tuple[str, str]:
    return f"day {tick // TICKS + 1}, night", "batch run"


def ends_day(tick: int) -> bool:
    return tick % TICKS == TICKS - 1


def table(samples: list[Sample]) -> str:
    """Return what there is to tell as a table in Markdown, and what it took."""
    lines = [
        "| when | what | error of Lambda | error of Kappa | records, Lambda | records, Kappa |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in samples:
        if one.event:
            figures = (one.lambda_error, one.kappa_error, one.lambda_records, one.kappa_records)
            lines.append(f"| {one.at} | {one.event} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    before, last = samples[-2:]
    batch = last.lambda_records - before.lambda_records, last.lambda_seconds - before.lambda_seconds
    lines += [
        "",
        f"Seconds of CPU: Lambda {last.lambda_seconds:.2f}, Kappa {last.kappa_seconds:.2f}.",
        f"The last batch run: {batch[0]:,} records, {batch[1]:.2f} s of CPU.",
    ]
    return "\n".join(lines)


LAMBDA, KAPPA = "#d1691c", "#1f6fb2"


def draw(samples: list[Sample], path: Path) -> Any:
    """Draw errors above and costs below into a file; return the figure."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise sa.UsageError("the picture needs matplotlib: pip install matplotlib") from error

    # Text stays text, and ids don't change from run to run: a small file that shows only what is new.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lambda", "font.size": 9.5, "font.family": "sans-serif"}):
        figure = Figure(figsize=(9.6, 6.6), layout="constrained")
        panels = figure.subplot_mosaic([["errors", "errors"], ["records", "seconds"]], height_ratios=[1.5, 1])
        titles = {
            "errors": "Submissions counted wrong, all rows together (logarithmic)",
            "records": "Records handled so far",
            "seconds": "Seconds of CPU so far",
        }
        for name, title in titles.items():
            panels[name].set_title(title, loc="left", fontweight="bold")
        plot(panels["errors"], [one.lambda_error for one in samples], [one.kappa_error for one in samples])
        plot(panels["records"], [one.lambda_records for one in samples], [one.kappa_records for one in samples])
        plot(panels["seconds"], [one.lambda_seconds for one in samples], [one.kappa_seconds for one in samples])
        tell(panels["errors"], max(one.kappa_error for one in samples))
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)
    return figure


def plot(axes: Any, of_lambda: list[float], of_kappa: list[float]) -> None:
    """Draw both curves over the days; a night is as wide as a tick."""
    axes.plot(of_lambda, color=LAMBDA, label="Lambda", linewidth=1.8)
    axes.plot(of_kappa, color=KAPPA, label="Kappa", linewidth=1.8)
    axes.set_xticks([day * (TICKS + 1) + TICKS / 2 for day in range(DAYS)], [f"day {day + 1}" for day in range(DAYS)])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, len(of_lambda))
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for night in range(TICKS, len(of_lambda), TICKS + 1):
        axes.axvline(night, color="#999999", linewidth=0.8, linestyle=":")


def tell(axes: Any, greatest: int) -> None:
    """Write into the upper panel what happens when."""
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(-1, greatest * 8)
    axes.yaxis.set_major_formatter("{x:,g}")  # the scale has brought its own
    for first, last, colour, text in (
        (CRASH, RESTART, "#e9e9e9", "the live side\nis down"),
        (HALF_POINTS, MENDED, "#fbe6e6", "half points,\nwrong rule"),
    ):
        left, right = place(first), place(last)
        axes.axvspan(left, right, color=colour, linewidth=0)
        axes.text((left + right) / 2, greatest * 6, text, ha="center", va="top")
    axes.text(TICKS - 0.6, greatest * 6, "batch run\neach night", ha="right", va="top", color="#666666")
    axes.legend(loc="upper right", frameon=False)


def place(tick: int) -> int:
    """Return which sample a tick is: those of nights lie between."""
    return tick + tick // TICKS
