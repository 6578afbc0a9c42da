import asyncio
import json

import pytest

import streamactors as sa
from streamactors.durable.store import Store

EVENTS = [{"k": key, "n": n, "at": n * 1_000} for n, key in enumerate(["a", "b", "a", "c", "a", "b"])]


def counting(name: str = "counting") -> sa.Pipeline:
    pipeline = sa.Pipeline(name)
    keyed = pipeline.items(EVENTS).event_time("at").key_by("k")
    keyed.window(sa.Tumbling("2s")).count().to_view("windows")
    keyed.aggregate(count=sa.count(), mean=sa.mean("n")).to_view("totals")
    keyed.filter(lambda event: False).count().to_view("nothing")
    return pipeline


def run(pipeline: sa.Pipeline, data_dir, bound=sa.Bound.FINISH) -> None:
    async def to_the_end():
        async with sa.run(pipeline, data_dir, settings=sa.Settings(bound=bound)) as job:
            await job.wait()

    asyncio.run(to_the_end())


@pytest.fixture
def counted(data_dir):
    """A data folder in which the events were counted."""
    run(counting(), data_dir)
    return data_dir


def rows(answer):
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.lines]


# Views. ---------------------------------------------------------------------------------------------------------------


def test_a_view_is_shown_row_by_row_in_the_order_of_its_keys(command, counted):
    assert rows(command("view", "show", "--data", counted, "totals", "--json")) == [
        {"key": "a", "value": {"count": 3, "mean": 2.0}},
        {"key": "b", "value": {"count": 2, "mean": 3.0}},
        {"key": "c", "value": {"count": 1, "mean": 3.0}},
    ]


def test_a_key_of_several_items_is_a_list(command, counted):
    found = rows(command("view", "show", "--data", counted, "windows", "--key", '["a", 2000]', "--json"))
    assert found == [{"key": ["a", 2000], "value": 1}]


def test_a_row_that_is_not_there_is_exit_code_1(command, counted):
    answer = command("view", "show", "--data", counted, "totals", "--key", '"z"', "--json")
    assert (answer.code, answer.out) == (1, b"")
    assert answer.err == 'streamactors: view totals has no row with key "z".\n'


@pytest.mark.parametrize(("key", "message"), [("a", """--key '"a"'"""), ("{}", "can't be a key")])
def test_a_key_that_can_be_none_is_a_usage_error(command, counted, key, message):
    answer = command("view", "show", "--data", counted, "totals", "--key", key)
    assert answer.code == 2 and message in answer.err


def test_a_view_is_a_table_for_people(command, counted):
    assert command("view", "show", "--data", counted, "totals").out.decode().splitlines() == [
        "key  count  mean",
        "a        3     2",
        "b        2     3",
        "c        1     3",
    ]
    assert command("view", "show", "--data", counted, "windows").lines[0] == b"key[0]  key[1]  value"


def test_a_view_without_rows_is_there_and_empty(command, counted):
    answer = command("view", "show", "--data", counted, "nothing")
    assert (answer.code, answer.out) == (0, b"")


def test_a_view_that_no_job_has_is_a_usage_error_that_names_those_there_are(command, counted):
    answer = command("view", "show", "--data", counted, "totalz")
    assert answer.code == 2 and "counting/nothing, counting/totals, counting/windows" in answer.err


def test_a_view_of_two_jobs_has_to_be_named_with_its_job(command, counted):
    run(counting("other"), counted)

    answer = command("view", "show", "--data", counted, "totals")
    assert answer.code == 2 and "counting/totals or other/totals" in answer.err
    assert len(rows(command("view", "show", "--data", counted, "other/totals", "--json"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["view", "show", "totals"], "there is no job in"),
        (["checkpoints"], "there is no job in"),
        (["journal", "nope"], "there is no job nope"),
    ],
)
def test_without_a_job_there_is_nothing_to_show(command, data_dir, arguments, message):
    answer = command(*arguments, "--data", data_dir)
    assert answer.code == 2 and message in answer.err


# Checkpoints and journal. ---------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_the_newest_last(command, counted):
    found = rows(command("checkpoints", "--data", counted, "--json"))

    assert list(found[0]) == ["job", "region", "epoch", "attempt", "created_ms", "duration_ms", "bytes", "entries"]
    assert [row["epoch"] for row in found] == sorted(row["epoch"] for row in found)
    assert (found[-1]["job"], found[-1]["region"], found[-1]["attempt"]) == ("counting", "items", 1)
    head, *lines = command("checkpoints", "--data", counted, "counting").lines
    assert head.split()[:4] == [b"job", b"region", b"epoch", b"attempt"] and len(lines) == len(found)


def test_the_journal_says_what_was_read_in_which_order(command, counted):
    assert rows(command("journal", "--data", counted, "counting", "--json")) == [
        {"job": "counting", "region": "items", "kind": "read", "source": "items", "partition": 0, "first": 0, "end": 6},
        {"job": "counting", "region": "items", "kind": "finish"},
    ]


def test_each_kind_of_entry_has_its_fields(command, counted):
    """Of a run that saw idle partitions and a clock; here as a checkpoint tells of it."""
    from streamactors.durable.checkpoint import Checkpoint

    entries = [
        ("read", "items", 0, 6, 8), ("read", "items", 0, 8, 9), ("idle", "items", 0), ("clock", 1_000),
        ("pace", 5_999), ("flush",),
    ]  # fmt: skip
    with Store.open(counted / "jobs/counting/v1") as store:
        attempt = store.begin_attempt("items")
        store.commit(Checkpoint("items", attempt, 1_000, None, entries))

    found = rows(command("journal", "--data", counted, "--json"))[2:]

    assert [{name: value for name, value in row.items() if name not in ("job", "region")} for row in found] == [
        {"kind": "read", "source": "items", "partition": 0, "first": 6, "end": 9},  # neighbours are joined
        {"kind": "idle", "source": "items", "partition": 0},
        {"kind": "clock", "time": 1_000},
        {"kind": "pace", "watermark": 5_999},
        {"kind": "flush"},
    ]
    table = command("journal", "--data", counted).out.decode()
    assert "items/0 offsets 6 to 8" in table and "watermark 1970-01-01T00:00:05.999Z" in table


def test_a_stored_value_that_is_damaged_is_exit_code_5(command, counted):
    path = counted / "jobs/counting/v1/data.mdb"
    stored = path.read_bytes()
    assert stored.count(b"\xa5count\x03") >= 1  # the totals of "a"
    path.write_bytes(stored.replace(b"\xa5count\x03", b"\xa5count\x07"))

    answer = command("view", "show", "--data", counted, "totals", "--json")
    assert answer.code == 5 and "checksum" in answer.err
