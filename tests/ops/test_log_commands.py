import asyncio
import json
import signal
import subprocess
import sys

import msgspec
import pytest

from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.ops import append_command
from tests.ops.conftest import ROOT

THREE = b'{"id":"a","n":1}\n{"id":"b","n":2}\n{"id":"a","n":3}\n'


def values(answer):
    return [json.loads(line) for line in answer.lines]


# Append. --------------------------------------------------------------------------------------------------------------


def test_lines_of_a_file_are_appended_as_they_stand(command, data_dir):
    answer = command("log", "append", "--data", data_dir, "t", file=THREE)

    assert (answer.code, answer.out, answer.err) == (0, b"appended 3 lines to t (1 partition), durable\n", "")
    assert command("log", "read", "--data", data_dir, "t").out == THREE


def test_lines_of_a_pipe_are_appended_as_they_stand(command, data_dir):
    answer = command("log", "append", "--data", data_dir, "t", pipe=[THREE[:20], THREE[20:-1]])

    assert (answer.code, answer.out) == (0, b"appended 3 lines to t (1 partition), durable\n")
    assert command("log", "read", "--data", data_dir, "t").out == THREE


def test_a_file_with_a_bad_line_leaves_the_log_as_it_was(command, data_dir, monkeypatch):
    monkeypatch.setattr(append_command, "CHUNK_BYTES", 8)  # the bad line is in another block than the first

    answer = command("log", "append", "--data", data_dir, "t", file=THREE + b"oops\n")

    assert answer.code == 2
    assert answer.err.startswith("streamactors: line 4: not one JSON value: JSON is malformed")
    assert answer.out == b"appended 0 lines to t: the file was checked first\n"
    assert command("log", "info", "--data", data_dir, "--json").out == b""  # the topic was not even made


def test_of_a_pipe_nothing_from_the_bad_lines_chunk_on_is_kept(command, data_dir, monkeypatch):
    monkeypatch.setattr(append_command, "CHUNK_BYTES", 64)
    good = b"".join(b'{"n":%d}\n' % n for n in range(1_000))

    answer = command("log", "append", "--data", data_dir, "t", pipe=[good, b"oops\n", good])

    assert answer.code == 2
    assert answer.err.startswith("streamactors: line 1,001: not one JSON value")
    kept = command("log", "read", "--data", data_dir, "t").out
    said = int(answer.out.split()[1].replace(b",", b""))
    assert kept == b"".join(good.splitlines(keepends=True)[:said])
    assert said < 1_001


@pytest.mark.parametrize("source", ["file", "pipe"])
def test_bad_lines_can_be_left_out_and_are_counted(command, data_dir, source):
    given = b'{"n":1}\nx\n\n{"n":2}'
    standard_input = {"file": given} if source == "file" else {"pipe": [given]}

    answer = command("log", "append", "--data", data_dir, "t", "--skip-bad", **standard_input)

    assert (answer.code, answer.out) == (0, b"appended 2 lines to t (1 partition), durable; skipped 2 bad\n")
    assert [line.split(":")[1] for line in answer.err.splitlines()] == [" skipped line 2", " skipped line 3"]
    assert command("log", "read", "--data", data_dir, "t").out == b'{"n":1}\n{"n":2}\n'


def test_only_so_many_bad_lines_are_named(command, data_dir):
    answer = command("log", "append", "--data", data_dir, "t", "--skip-bad", file=b"x\n" * 1_000)
    assert answer.out.endswith(b"skipped 1,000 bad\n")
    assert len(answer.err.splitlines()) == append_command.BAD_LINES_SHOWN


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_key_decides_the_partition(command, data_dir, how):
    standard_input = {"file": THREE} if how == "file" else {"pipe": [THREE]}
    answer = command("log", "append", "--data", data_dir, "t", "--partitions", "4", "--key", "id", **standard_input)
    assert answer.out == b"appended 3 lines to t (4 partitions), durable\n"

    rows = values(command("log", "read", "--data", data_dir, "t", "--meta"))

    assert {row["key"] for row in rows} == {"a", "b"}
    assert all(row["key"] == row["value"]["id"] for row in rows)
    of_a = [(row["partition"], row["value"]["n"]) for row in rows if row["key"] == "a"]
    assert len({partition for partition, _ in of_a}) == 1 and [n for _, n in of_a] == [1, 3]


def test_lines_without_a_key_go_round(command, data_dir):
    command("log", "append", "--data", data_dir, "t", "--partitions", "2", file=b"0\n1\n2\n3\n")
    assert command("log", "read", "--data", data_dir, "t", "--partition", "1").out == b"1\n3\n"


def test_another_number_of_partitions_is_refused_before_anything_is_read(command, data_dir):
    command("log", "append", "--data", data_dir, "t", "--partitions", "2", file=b"1\n")
    answer = command("log", "append", "--data", data_dir, "t", "--partitions", "3", file=b"oops\n")
    assert answer.code == 2 and "t has 2 partitions, not 3" in answer.err and answer.out == b""


def test_an_empty_input_makes_the_topic(command, data_dir):
    answer = command("log", "append", "--data", data_dir, "t", "--partitions", "3")
    assert (answer.code, answer.out) == (0, b"appended 0 lines to t (3 partitions), durable\n")


def test_a_file_that_changes_after_it_was_checked_is_refused(command, data_dir, monkeypatch, tmp_path):
    checked = append_command.check_file

    def check_then_change(checker):
        blocks = checked(checker)
        (tmp_path / "stdin").write_bytes(b"oops\n")
        return blocks

    monkeypatch.setattr(append_command, "check_file", check_then_change)
    answer = command("log", "append", "--data", data_dir, "t", file=b"1234\n")

    assert answer.code == 2 and "changed while it was read" in answer.err
    assert answer.out == b"appended 0 lines to t (1 partition), durable\n"


def test_a_closed_input_is_a_usage_error(data_dir):
    """Its number is that of whatever is opened first: never read it."""
    command = f"{sys.executable} -m streamactors log append --data {data_dir} t <&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("streamactors: standard input is closed")


def test_a_topic_that_another_process_writes_is_held(command, data_dir, spawn):
    writer = spawn("log", "append", "--data", data_dir, "t", stdin=subprocess.PIPE)
    writer.stdin.write(b"1\n")
    writer.stdin.flush()
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow")
    while not follower.stdout.readline():  # until the writer's first line is there
        follower.communicate()
        follower = spawn("log", "read", "--data", data_dir, "t", "--follow")

    answer = command("log", "append", "--data", data_dir, "t", file=b"2\n")

    assert answer.code == 4 and f"process {writer.pid}" in answer.err
    assert answer.out == b"appended 0 lines to t (1 partition), durable\n"


def test_a_slow_producers_line_is_durable_before_the_next_one_comes(command, data_dir, spawn):
    command("log", "append", "--data", data_dir, "t")
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow", "--meta")
    writer = spawn("log", "append", "--data", data_dir, "t", stdin=subprocess.PIPE)
    for n in range(3):
        writer.stdin.write(b"%d\n" % n)
        writer.stdin.flush()
        assert json.loads(follower.stdout.readline())["offset"] == n  # seen before the next is sent

    out, _ = writer.communicate()
    assert (writer.returncode, out) == (0, b"appended 3 lines to t (1 partition), durable\n")
    follower.send_signal(signal.SIGINT)
    out, err = follower.communicate()
    assert (follower.returncode, out, err) == (0, b"", b"")


# Read. ----------------------------------------------------------------------------------------------------------------


def test_reading_begins_at_an_offset(command, data_dir):
    command("log", "append", "--data", data_dir, "t", file=b"0\n1\n2\n")
    assert command("log", "read", "--data", data_dir, "t", "--from", "1").out == b"1\n2\n"
    assert command("log", "read", "--data", data_dir, "t", "--from", "3").out == b""


def test_meta_adds_where_and_when(command, data_dir):
    command("log", "append", "--data", data_dir, "t", file=b'{"a": 1.50}\n2\n')
    answer = command("log", "read", "--data", data_dir, "t", "--meta")

    assert b'"value":{"a": 1.50}}' in answer.lines[0]  # as it stands
    first, second = values(answer)
    assert list(first) == ["partition", "offset", "key", "append_time_ms", "value"]
    assert (second["partition"], second["offset"], second["key"], second["value"]) == (0, 1, None, 2)
    assert first["append_time_ms"] == second["append_time_ms"] > 1_600_000_000_000


def test_what_is_no_json_line_is_still_one_line(command, data_dir):
    async def append():
        async with Log(data_dir) as log:
            topic = await log.create_topic("t")
            keys = [b"\xff", b"k", None, None, None]
            raw = [msgspec.msgpack.encode({"a": 1}), b'{"a":\n 1}', b"", b" 7 ", b'"ok"']
            await topic.partition(0).append(Records.of(raw, keys))

    asyncio.run(append())
    answer = command("log", "read", "--data", data_dir, "t")
    assert answer.lines == [b'{"$base64":"gaFhAQ=="}', b'{"a":1}', b'{"$base64":""}', b" 7 ", b'"ok"']
    rows = values(command("log", "read", "--data", data_dir, "t", "--meta"))
    assert [row["value"] for row in rows] == [{"$base64": "gaFhAQ=="}, {"a": 1}, {"$base64": ""}, 7, "ok"]
    assert [row["key"] for row in rows[:3]] == [{"$base64": "/w=="}, "k", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no topic nope"),
        (["t", "--partition", "1"], "partitions 0 to 0, no 1"),
        (["t", "--from", "2"], "holds offsets 0 to 0"),
        (["t", "--from", "2", "--follow"], "the next one will be 1"),
        (["../t"], "can't name a topic"),
    ],
)
def test_what_is_not_there_is_a_usage_error(command, data_dir, arguments, message):
    command("log", "append", "--data", data_dir, "t", file=b"1\n")
    answer = command("log", "read", "--data", data_dir, *arguments)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1


def test_following_shows_what_each_partition_gets(command, data_dir, spawn):
    command("log", "append", "--data", data_dir, "t", "--partitions", "2", file=b"0\n1\n")
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow", "--meta")
    seen = {json.loads(follower.stdout.readline())["value"] for _ in range(2)}
    command("log", "append", "--data", data_dir, "t", file=b"2\n3\n")
    seen |= {json.loads(follower.stdout.readline())["value"] for _ in range(2)}
    assert seen == {0, 1, 2, 3}


def test_a_reader_that_leaves_is_no_error(command, data_dir, spawn):
    text = b'"%s"\n' % (b"x" * 500) * 1_000
    assert command("log", "append", "--data", data_dir, "t", file=text).code == 0
    process = spawn("log", "read", "--data", data_dir, "t")
    assert process.stdout.read(10) == text[:10]
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


# Info. ----------------------------------------------------------------------------------------------------------------


def test_info_says_what_each_partition_holds(command, data_dir):
    command("log", "append", "--data", data_dir, "t", "--partitions", "2", file=b"0\n1\n2\n")
    command("log", "append", "--data", data_dir, "empty")

    empty, topic = values(command("log", "info", "--data", data_dir, "--json"))

    assert (empty["topic"], empty["records"], empty["newest_append_time_ms"]) == ("empty", 0, None)
    assert (topic["topic"], topic["records"], topic["segments"]) == ("t", 3, 2)
    first, second = topic["partitions"]
    assert (first["partition"], first["first_offset"], first["end_offset"], first["records"]) == (0, 0, 2, 2)
    assert (second["partition"], second["end_offset"], second["bytes"] > 0) == (1, 1, True)
    assert topic["newest_append_time_ms"] == max(p["newest_append_time_ms"] for p in topic["partitions"])


def test_info_is_a_table_for_people(command, data_dir):
    command("log", "append", "--data", data_dir, "t", file=b"0\n")
    head, row = command("log", "info", "--data", data_dir, "t").lines
    assert head.split()[:5] == [b"topic", b"partition", b"first", b"end", b"records"]
    assert row.split()[:5] == [b"t", b"0", b"0", b"1", b"1"]
    assert head.index(b"newest") == row.index(b"20")  # columns stand below their names


def test_a_folder_that_is_not_there_is_a_usage_error(command, data_dir):
    assert command("log", "info", "--data", data_dir / "no").code == 2
    assert not (data_dir / "no").exists()
