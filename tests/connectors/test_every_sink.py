"""check_sink over every sink of the house: what is visible is exactly what the checkpoints hold."""

import json
import sqlite3

import pytest

import streamactors as sa
from connectors.part_files import JsonLinesFolder, ParquetFolder
from connectors.sqlite import SqliteTable
from connectors.topic import TopicSink
from streamactors.testing import sink_scripts
from streamactors.testing.check_sink import check_sink


def by_partition(folder, partitions, values_of):
    """Return the values of all parts, by partition, in the order of the parts' names."""
    found = [[] for _ in range(partitions)]
    for path in sorted(folder.glob("[!.]*")):
        found[int(path.name.split("-p")[1][:4])] += values_of(path)
    return found


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def topic(folder):
    found = []
    async with sa.Log(folder) as log:
        opened = await log.topic("out")
        for number in range(opened.partitions):
            reader, values = opened.partition(number).reader(0), []
            while chunks := await reader.read():
                values += [json.loads(value) for chunk in chunks for value in chunk.values()]
            await reader.close()
            found.append(values)
    return found


def rows(folder, table="out"):
    connection = sqlite3.connect(folder / "out.db")
    connection.row_factory = sqlite3.Row
    try:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] if there else []
    finally:
        connection.close()


def table(folder):
    found = {}
    for row in rows(folder):
        start, _ = row.pop("window_start", None), row.pop("window_end", None)
        found[row.pop("key"), start] = row
    return found


def parquet(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.fixture
def tenth(monkeypatch):
    """An epoch of several parts has a tenth of its bytes, and so have the limits that cut it; there are 200 lives."""
    large, small = sink_scripts._LARGE, sink_scripts._LARGE // 10
    appends = tuple(
        [(count, small if size == large else size) for count, size in epoch] for epoch in sink_scripts._APPENDS
    )
    monkeypatch.setattr(sink_scripts, "_LARGE", small)
    monkeypatch.setattr(sink_scripts, "_APPENDS", appends)
    for module in ("connectors.topic", "connectors.sqlite.writer"):
        monkeypatch.setattr(f"{module}.PENDING_CHUNK_BYTES", 100_000)
    for module in ("writers", "parquet"):
        monkeypatch.setattr(f"connectors.part_files.{module}.PART_BYTES_MAX", 100_000)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_topic(tmp_path, tenth, partitions):
    attacks = await check_sink(lambda folder: TopicSink("out", partitions), topic, folder=tmp_path)
    assert any("part 2 of" in attack for attack in attacks)


async def test_sqlite_appending(tmp_path):
    attacks = await check_sink(
        lambda folder: SqliteTable(folder / "out.db", "out"), lambda folder: [rows(folder)], folder=tmp_path
    )
    assert any("part 2 of" in attack for attack in attacks)


async def test_sqlite_with_upserts(tmp_path, tenth):
    attacks = await check_sink(
        lambda folder: SqliteTable(folder / "out.db", "out", upserts=True), table, folder=tmp_path
    )
    assert any("part 2 of" in attack for attack in attacks)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_json_lines(tmp_path, tenth, partitions):
    attacks = await check_sink(
        lambda folder: JsonLinesFolder(folder / "out", partitions),
        lambda folder: by_partition(folder / "out", partitions, lines),
        folder=tmp_path,
    )
    assert any("part 2 of" in attack for attack in attacks)


async def test_parquet(tmp_path, tenth):
    attacks = await check_sink(
        lambda folder: ParquetFolder(folder / "out", 2),
        lambda folder: by_partition(folder / "out", 2, parquet),
        folder=tmp_path,
    )
    assert any("part 2 of" in attack for attack in attacks)
