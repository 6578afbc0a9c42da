"""SQLite tables: values, keys and columns; what is refused, and when; other programs at the same file."""

import asyncio
import json
import math
import sqlite3
from datetime import UTC, datetime
from enum import IntEnum, StrEnum

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.sqlite import SqliteTable
from connectors.sqlite.cells import cell, key_cells, quoted
from connectors.sqlite.writer import decode_rows
from streamactors.core.batch import Batch, Kind
from streamactors.core.connectors import Payload, Stamp, World
from streamactors.core.keys import canonical_key, canonical_keys
from streamactors.durable.realtime import real_ports
from streamactors.testing.source import Script


class Event(msgspec.Struct, omit_defaults=True):
    user: str
    score: float = 0.0
    tags: list[str] = msgspec.field(default_factory=list, name="labels")


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Opened:
    """A table with its target, outside of a job."""

    def __init__(self, sink, folder):
        self.sink, self.folder = sink, folder

    async def __aenter__(self):
        self.ports = real_ports()
        world = World(self.folder, self.ports, None)
        try:
            await self.sink.partitions(world)
            self.target = await self.sink.target(world)
        except BaseException:
            await self.ports.threads.close()
            raise
        self.writer = self.sink.writer(1)
        return self

    async def __aexit__(self, *error):
        await self.target.close()
        await self.ports.threads.close()

    async def write(self, *batches):
        for each in batches:
            self.writer.write(each)
        for payload in self.writer.take():
            await self.target.write(payload)


def batch(values, keys=None, windows=None, kinds=None):
    return Batch(values, None, None if keys is None else canonical_keys(keys), windows=windows, kinds=kinds)


def ask(path, sql, *values):
    connection = sqlite3.connect(path)
    try:
        found = connection.execute(sql, values).fetchall()
        connection.commit()
        return found
    finally:
        connection.close()


def make(path, *statements):
    for sql in statements:
        ask(path, sql)


# Values. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (True, 1),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (1.5, 1.5),
        (math.inf, math.inf),
        ("a'\"\0ä", "a'\"\0ä"),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"x"), b"x"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        ([1, {"b": 2, "a": None}], '[1,{"a":null,"b":2}]'),
        (("a", 1), '["a",1]'),
        ({}, "{}"),
        (Event("u"), '{"user":"u"}'),
    ],
)
async def test_a_value_is_stored_as_it_is_or_as_json(tmp_path, value, stored):
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.write(batch([{"v": value}]))
    [(found,)] = ask(tmp_path / "x.db", "SELECT v FROM t")
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (2**63, "does not fit into the 64 bits"),
        (-(2**63) - 1, "does not fit into the 64 bits"),
        (math.nan, "stores NaN as NULL"),
        ([math.nan], "JSON text has no NaN"),
        ({"deep": {"er": [math.inf]}}, "JSON text has no NaN"),
        (object(), "unsupported"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_it_would_change_is_refused_with_the_record(value, why):
    writer = SqliteTable("x.db", "t").writer(1)
    with pytest.raises(sa.BadRecord, match=f"(?s)table t of x.db can't handle record .*{why}"):
        writer.write(batch([{"v": 1}, {"v": value}]))
    assert writer.take() == [], "none of the batch is taken"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=4),
            st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
            | st.text(st.characters(exclude_categories=["Cs"]))
            | st.binary(),
            max_size=4,
        ),
        max_size=8,
    )
)
async def test_any_names_and_values_come_back(tmp_path_factory, records):
    """Names are quoted, values are never part of a statement."""
    folder = tmp_path_factory.mktemp("sqlite")
    names = {}
    for name in (name for record in records for name in record):
        names.setdefault(name.lower(), name)
    records = [{n: v for n, v in record.items() if names[n.lower()] == n} for record in records]
    columns = list(names.values()) or ["none"]
    table = 'a "t"; --'
    async with Opened(SqliteTable(folder / "x.db", table, columns), folder) as opened:
        await opened.write(batch(records))
    found = ask(folder / "x.db", f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(table)}")
    assert found == [tuple(record.get(name) for name in columns) for record in records]


# Columns. -------------------------------------------------------------------------------------------------------------


async def test_a_struct_has_all_its_fields_those_with_defaults_too(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t", type=Event), tmp_path) as opened:
        assert ask(tmp_path / "x.db", "SELECT * FROM t") == [], "the table is there before the first value"
        await opened.write(batch([Event("u"), Event("v", 2.5, ["a"])]))
    assert ask(tmp_path / "x.db", "SELECT user, score, labels FROM t") == [("u", 0.0, "[]"), ("v", 2.5, '["a"]')]


async def test_values_without_fields_are_the_column_value(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.write(batch([1, "x", [1]]))
    assert ask(tmp_path / "x.db", "SELECT value FROM t") == [(1,), ("x",), ("[1]",)]


async def test_the_first_value_tells_the_columns_and_another_field_is_refused_in_the_stage(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.write(batch([{"a": 1, "b": 2}, {"b": 3}]))
        with pytest.raises(sa.BadRecord, match=r"its field 'c' is none of the table's columns a, b. Name all columns"):
            opened.writer.write(batch([{"c": 1}]))
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:  # the next process
        with pytest.raises(sa.BadRecord, match="'c' is none of"):
            opened.writer.write(batch([{"c": 1}]))
        await opened.write(batch([{"b": 4}]))
    assert ask(tmp_path / "x.db", "SELECT a, b FROM t") == [(1, 2), (None, 3), (None, 4)]


def test_a_bad_first_value_does_not_tell_the_columns():
    writer = SqliteTable("x.db", "t").writer(1)
    with pytest.raises(sa.BadRecord):
        writer.write(batch([{"wrong": math.nan}]))
    writer.write(batch([{"a": 1}]))
    [payload] = writer.take()
    assert decode_rows(payload.data).columns == ["a"]


@pytest.mark.parametrize(
    ("statement", "sink", "why"),
    [
        ("CREATE TABLE t (a)", {"columns": ["a", "b"]}, "it has no column b; its columns are a"),
        ("CREATE TABLE t (a, b, c NOT NULL)", {"columns": ["a", "b"]}, "its column c is NOT NULL"),
        ("CREATE TABLE t (other)", {"type": Event}, "it has no column user, score, labels"),
        (
            "CREATE TABLE t (key, value)",
            {"upserts": True},
            r"upserts need a primary key or unique index of exactly \(key",
        ),
        ("CREATE TABLE t (key PRIMARY KEY, x)", {"upserts": True, "key": ("a", "b")}, "it has no column a, b"),
        ("CREATE VIEW t AS SELECT 1 AS a", {"columns": ["a"]}, "is a view"),
    ],
)
async def test_a_table_that_does_not_fit_is_refused_before_anything_runs(tmp_path, statement, sink, why):
    make(tmp_path / "x.db", statement)
    pipeline = sa.Pipeline("p")
    pipeline.source(Script([{"a": 1}])).key_by("a").to(SqliteTable(tmp_path / "x.db", "t", **sink))
    with pytest.raises(sa.PipelineError, match=why):
        async with sa.run(pipeline, tmp_path / "data"):
            pass


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t (A TEXT, b REAL, id INTEGER PRIMARY KEY NOT NULL, made DEFAULT 7)",
        "CREATE TABLE T (b, a, made DEFAULT 7 NOT NULL)",
    ],
)
async def test_a_table_of_somebody_elses_with_more_columns_is_taken(tmp_path, statement):
    make(tmp_path / "x.db", statement)
    for columns in (["a", "b"], None):
        async with Opened(SqliteTable(tmp_path / "x.db", "t", columns), tmp_path) as opened:
            await opened.write(batch([{"a": "x", "b": 1}]))
    assert ask(tmp_path / "x.db", "SELECT a, b, made FROM t") == [("x", 1, 7)] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"table": ""},
        {"table": "sqlite_x"},
        {"table": "streamactors_stamps"},
        {"columns": "abc"},
        {"columns": []},
        {"columns": ["a", "A"]},
        {"columns": ["a\0"]},
        {"upserts": True, "key": ("a", "a")},
    ],
)
def test_names_that_can_not_be_are_refused_at_once(wrong):
    with pytest.raises(sa.UsageError, match="table"):
        SqliteTable(**{"path": "x.db", "table": "t"} | wrong)


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "x.db").write_text("hello " * 1_000)
    with pytest.raises(sa.UsageError, match="no SQLite database"):
        async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path):
            pass


# Keys. ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, True, 1.0, 2**64 - 1, '["a",1]', "[]", (b"x",), (math.nan,)])
def test_keys_that_could_be_taken_for_others_are_refused(key):
    writer = SqliteTable("x.db", "t", upserts=True).writer(1)
    with pytest.raises(sa.BadRecord, match="its key"):
        writer.write(batch([{"v": 1}], [key]))


KEYS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["[", "[a]", "[1]x", "1", '["a"]', "null"]),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=3),
    st.tuples(st.one_of(st.text(max_size=2), st.integers(-3, 3), st.none(), st.booleans(), st.floats(-2, 2))),
)


@given(KEYS, KEYS)
def test_two_keys_never_become_one(one, other):
    try:
        cells = [key_cells(canonical_key(key), 1) for key in (one, other)]
    except (ValueError, TypeError):
        return
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE t (key PRIMARY KEY)")
        connection.executemany("INSERT OR IGNORE INTO t VALUES (?)", cells)
        [(count,)] = connection.execute("SELECT count(*) FROM t")
    finally:
        connection.close()
    assert (count == 1) == (canonical_key(one) == canonical_key(other))


async def test_tuple_keys_have_a_column_for_each_item_where_it_has_a_name(tmp_path):
    sink = SqliteTable(tmp_path / "x.db", "t", upserts=True, key=("quiz", "user"))
    async with Opened(sink, tmp_path) as opened:
        await opened.write(batch([{"n": 1}, {"n": 2, "user": "u"}, {"n": 3}], [("q", "v"), ("q", "u"), ("q", "v")]))
        with pytest.raises(sa.BadRecord, match="is no tuple of 2"):
            opened.writer.write(batch([{"n": 1}], ["q"]))
        with pytest.raises(sa.BadRecord, match="its field 'user' is 'x', but"):
            opened.writer.write(batch([{"n": 1, "user": "x"}], [("q", "v")]))
    assert ask(tmp_path / "x.db", "SELECT quiz, user, n FROM t ORDER BY n") == [("q", "u", 2), ("q", "v", 3)]


operations = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.booleans(), st.integers(0, 99)), max_size=6),
    max_size=5,
)


@pytest.mark.parametrize("made", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(epochs=operations)
async def test_upserts_are_what_a_dict_would_be(tmp_path_factory, epochs, made):
    folder, wanted = tmp_path_factory.mktemp("sqlite"), {}
    if made:  # by somebody else, without the end of the window
        make(folder / "x.db", "CREATE TABLE t (key, window_start, n, UNIQUE (window_start, key))")
    async with Opened(SqliteTable(folder / "x.db", "t", upserts=True), folder) as opened:
        for rows in epochs:
            kinds = [Kind.DELETE if gone else Kind.CORRECTION for _, _, gone, _ in rows]
            windows = [(start * 10, start * 10 + 10) for _, start, _, _ in rows]
            values = [None if gone else {"n": n} for _, _, gone, n in rows]
            await opened.write(batch(values, [key for key, *_ in rows], windows, kinds))
            for key, start, gone, n in rows:
                wanted.pop((key, start * 10), None) if gone else wanted.update({(key, start * 10): n})
    exists = ask(folder / "x.db", "SELECT 1 FROM sqlite_master WHERE name = 't'")
    found = ask(folder / "x.db", "SELECT key, window_start, n FROM t") if exists else []
    assert {(key, start): n for key, start, n in found} == wanted and len(found) == len(wanted)


async def test_what_a_row_leaves_out_is_gone_when_it_is_replaced(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t", ["a", "b"], upserts=True), tmp_path) as opened:
        await opened.write(batch([{"a": 1, "b": 2}], ["k"]))
        await opened.write(batch([{"a": 3}], ["k"]))
    assert ask(tmp_path / "x.db", "SELECT * FROM t") == [("k", 3, None)]


def test_payloads_are_canonical():
    one, other = (SqliteTable("x.db", "t", ["a", "b"]).writer(1) for _ in range(2))
    one.write(batch([{"a": {"x": 1, "y": 2}, "b": 1}]))
    other.write(batch([{"a": {"y": 2, "x": 1}, "b": 1}]))
    [payload], [same] = one.take(), other.take()
    assert payload.data == same.data == msgspec.msgpack.encode(msgspec.msgpack.decode(payload.data))


# Other programs. ------------------------------------------------------------------------------------------------------

STAMPS = [Stamp("j", "s", "i", epoch, 1, 1) for epoch in (1, 2, 3)]


def payload(writer, value):
    writer.write(batch([{"n": value}]))
    [made] = writer.take()
    return made


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
async def test_a_file_keeps_its_journal_mode_and_others_read_and_write_beside_us(tmp_path, mode):
    make(tmp_path / "x.db", f"PRAGMA journal_mode = {mode}", "CREATE TABLE other (n)")
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        for number in range(5):
            await opened.write(batch([{"n": number}]))
            ask(tmp_path / "x.db", "INSERT INTO other VALUES (?)", number)
            assert ask(tmp_path / "x.db", "SELECT count(*) FROM t") == [(number + 1,)]
    assert ask(tmp_path / "x.db", "PRAGMA journal_mode") == [(mode if mode != "truncate" else "delete",)]
    assert ask(tmp_path / "x.db", "SELECT n FROM other") == [(n,) for n in range(5)]


async def test_a_file_of_ours_is_in_wal_mode_and_each_commit_is_synced(tmp_path, monkeypatch):
    asked = []
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.ports.threads.run(
            opened.target._lane,
            lambda: asked.extend(
                opened.target._connected().execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ),
        )
    assert asked == ["wal", 3]


async def test_a_reader_with_an_open_transaction_does_not_hold_up_a_commit(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t", busy_seconds=0.1), tmp_path) as opened:
        await opened.write(batch([{"n": 1}]))
        reader = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        await opened.write(batch([{"n": 2}]))
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,), "its snapshot"
        reader.close()
    assert ask(tmp_path / "x.db", "SELECT n FROM t") == [(1,), (2,)]


async def test_a_writer_that_keeps_the_lock_makes_a_clear_error_and_nothing_is_written(tmp_path):
    async with Opened(SqliteTable(tmp_path / "x.db", "t", busy_seconds=0.05), tmp_path) as opened:
        await opened.target.commit(payload(opened.writer, 1), STAMPS[0], None)
        holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        second = payload(opened.writer, 2)
        with pytest.raises(
            sa.StorageError, match=r"held the lock of the file for more than 0.05 s.*nothing was written"
        ):
            await opened.target.commit(second, STAMPS[1], STAMPS[0])
        holder.execute("ROLLBACK")
        holder.close()
        await opened.target.commit(second, STAMPS[1], STAMPS[0])
    assert ask(tmp_path / "x.db", "SELECT n FROM t") == [(1,), (2,)]


async def test_a_job_waits_for_a_busy_file_through_restarts_and_loses_nothing(tmp_path):
    make(tmp_path / "x.db", "PRAGMA journal_mode = wal", "CREATE TABLE t (n)")
    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    pipeline = sa.Pipeline("p")
    pipeline.source(Script([{"n": n} for n in range(100)])).to(SqliteTable(tmp_path / "x.db", "t", busy_seconds=0.02))
    async with asyncio.timeout(60), sa.run(pipeline, tmp_path / "data", checkpoint_every="20ms") as job:
        holder.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(job.catch_up())
        while "StorageError" not in str(job.status()) and not any(r.restarts for r in job._regions):
            await asyncio.sleep(0.005)
        holder.execute("ROLLBACK")
        await waiting
    holder.close()
    assert ask(tmp_path / "x.db", "SELECT n FROM t") == [(n,) for n in range(100)]


@pytest.mark.parametrize("again", [False, True])
async def test_a_file_that_was_exchanged_is_noticed_though_it_is_open(tmp_path, again):
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.target.commit(payload(opened.writer, 1), STAMPS[0], None)
        for path in tmp_path.glob("x.db*"):
            path.rename(path.with_name(path.name.replace("x.db", "old.db")))
        if again:
            make(tmp_path / "x.db", "CREATE TABLE t (n)")
        with pytest.raises(sa.SinkConflict, match="shows None"):
            await opened.target.commit(payload(opened.writer, 2), STAMPS[1], STAMPS[0])


async def test_the_last_stamp_is_made_durable_before_it_is_believed(tmp_path):
    """A process that died between writing its commit and syncing it leaves a stamp that is only shown."""
    async with Opened(SqliteTable(tmp_path / "x.db", "t"), tmp_path) as opened:
        await opened.target.commit(payload(opened.writer, 1), STAMPS[0], None)
        watcher = sqlite3.connect(tmp_path / "x.db")
        before = watcher.execute("PRAGMA data_version").fetchone()
        assert await opened.target.last_stamp(0, "j", "s") == STAMPS[0]
        assert watcher.execute("PRAGMA data_version").fetchone() != before, "a commit of its own, and so a sync"
        watcher.close()


async def test_two_jobs_and_four_sinks_share_a_file(tmp_path):
    path = tmp_path / "x.db"

    def pipeline(name):
        pipeline = sa.Pipeline(name)
        stream = pipeline.source(Script([{"k": f"{name}-{n % 3}", "n": n} for n in range(200)]))
        stream.to_sqlite(path, "events")
        stream.key_by("k").count().to_sqlite(path, f"counts {name}")
        return pipeline

    async def life(name):
        async with asyncio.timeout(60), sa.run(pipeline(name), tmp_path / "data", checkpoint_every="5ms") as job:
            await job.catch_up()

    await asyncio.gather(life("one"), life("two"))
    events = ask(path, "SELECT k, n FROM events")
    for name in ("one", "two"):
        assert [n for k, n in events if k.startswith(name)] == list(range(200))
        counts = dict(ask(path, f'SELECT key, value FROM "counts {name}"'))
        assert counts == {f"{name}-0": 67, f"{name}-1": 67, f"{name}-2": 66}
    assert len(ask(path, "SELECT * FROM streamactors_stamps")) == 4


async def test_windows_with_corrections_are_the_view_beside_them(tmp_path):
    events = [{"k": f"k{n % 4}", "at": (n * 137) % 5_000 + n * 20} for n in range(400)]
    pipeline = sa.Pipeline("p")
    windows = (
        pipeline.source(Script(events))
        .event_time("at", disorder="1s")
        .key_by("k")
        .window(sa.Tumbling("1s"))
        .allowed_lateness("3s")
    )
    results = windows.aggregate(n=sa.count(), last=sa.max("at"))
    results.to_view("windows")
    results.to_sqlite(tmp_path / "x.db", "windows")
    async with sa.run(pipeline, tmp_path / "data", settings=sa.Settings(bound=sa.Bound.FINISH)) as job:
        await job.wait()
        view = {(key, start): (value["n"], value["last"]) for (key, start), value in job.views["windows"].items()}
    rows = ask(tmp_path / "x.db", "SELECT key, window_start, window_end, n, last FROM windows")
    assert {(key, start): (n, last) for key, start, _, n, last in rows} == view and len(rows) == len(view) > 20
    assert all(end == start + 1_000 for _, start, end, _, _ in rows)


def test_a_table_of_upserts_needs_a_key(tmp_path):
    with pytest.raises(sa.PipelineError, match="no key to keep rows by"):
        sa.Pipeline("p").source(Script([])).to_sqlite("x.db", "t", upserts=True)


def test_corrections_into_an_appending_table_are_refused(tmp_path):
    counts = sa.Pipeline("p").source(Script([])).key_by("k").count()
    with pytest.raises(sa.PipelineError, match="sink sqlite"):
        counts.to(SqliteTable("x.db", "t"))


def test_cells_say_json_of_anything_plain():
    assert json.loads(cell({"a": [1, 2.5, "x", None, True]})) == {"a": [1, 2.5, "x", None, True]}
    assert isinstance(payload(SqliteTable("x.db", "t").writer(1), 1), Payload)
