"""Making, retaining and deleting topics, beside jobs and other processes."""

import asyncio
import json
import subprocess
from random import Random

import pytest

from streamactors.durable import appender
from streamactors.durable.log import Log
from streamactors.durable.segment import segment_bases, segment_name
from streamactors.ops import topic_commands

READER = """
import streamactors as sa
p = sa.Pipeline("reader")
p.topic("t").on_error("dead_letter").map(lambda n: n).to_topic("out")
"""


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 400)


@pytest.fixture
def reader(tmp_path):
    path = tmp_path / "reader.py"
    path.write_text(READER)
    return path


def append(data_dir, count, start=0, partitions=1, name="t"):
    """Append numbers, each in a frame of its own."""

    async def go():
        async with Log(data_dir) as log:
            topic = await log.create_topic(name, partitions)
            for n in range(start, start + count):
                await topic.append(b"%d" % n)

    asyncio.run(go())


def segments(data_dir, partition=0, name="t"):
    """Return (base, bytes) of each segment file."""
    folder = data_dir / "log" / name / str(partition)
    bases = segment_bases([path.name for path in folder.iterdir()])
    return [(base, (folder / segment_name(base)).stat().st_size) for base in bases]


def until_end(spawn, reader, data_dir):
    """Run the job; return exit code and standard error."""
    process = spawn("run", reader, "--data", data_dir, "--until-end", "--no-progress")
    err = process.communicate()[1].decode()
    return process.returncode, err


# Create. --------------------------------------------------------------------------------------------------------------


def test_a_topic_is_made_once(command, data_dir):
    assert command("log", "create", "--data", data_dir, "t", "--partitions", "3").out == b"created t (3 partitions)\n"
    again = command("log", "create", "--data", data_dir, "t")
    assert (again.code, again.out) == (0, b"t is there already (3 partitions)\n")
    other = command("log", "create", "--data", data_dir, "t", "--partitions", "2")
    assert other.code == 2 and "has 3 partitions, not 2" in other.err


@pytest.mark.parametrize("arguments", [["../t"], [""], ["t", "--partitions", "0"], ["t", "--partitions", "x"], []])
def test_what_can_t_be_made_is_a_usage_error(command, data_dir, arguments):
    answer = command("log", "create", "--data", data_dir, *arguments)
    assert answer.code == 2 and answer.err.startswith("streamactors: ") and "Traceback" not in answer.err


# Retain. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_what_is_too_much_goes_from_the_front_and_no_more(command, data_dir, small_segments, seed):
    random = Random(seed)
    append(data_dir, random.randint(1, 60))
    before = segments(data_dir)
    limit = random.randint(0, sum(size for _, size in before) + 100)

    planned = command("log", "retain", "--data", data_dir, "t", "--larger-than", f"{limit}B", "--dry-run", "--json")
    assert segments(data_dir) == before
    done = command("log", "retain", "--data", data_dir, "t", "--larger-than", f"{limit}B", "--json")
    after = segments(data_dir)

    left = before[:]
    while len(left) > 1 and sum(size for _, size in left) > limit:
        left.pop(0)
    assert after == left
    assert planned.out == done.out
    (told,) = map(json.loads, done.lines)
    assert told["removed_segments"] == len(before) - len(left)
    assert told["removed_bytes"] == sum(size for _, size in before) - sum(size for _, size in left)
    assert told["first_offset"] == left[0][0]
    values = [int(line) for line in command("log", "read", "--data", data_dir, "t").lines]
    assert values == list(range(left[0][0], values[-1] + 1))


def test_what_is_too_old_goes(command, data_dir, small_segments, monkeypatch):
    append(data_dir, 30)
    assert command("log", "retain", "--data", data_dir, "t", "--older-than", "1h").out.endswith(
        b"removed 0 segments of t, 0 B\n"
    )
    clock = topic_commands.time.time_ns
    monkeypatch.setattr(topic_commands.time, "time_ns", lambda: clock() + 3_601 * 10**9)
    command("log", "retain", "--data", data_dir, "t", "--older-than", "1h")
    assert len(segments(data_dir)) == 1  # the last stays


def test_what_a_job_needs_stays_unless_forced(command, data_dir, spawn, reader, small_segments):
    append(data_dir, 20)
    until_end(spawn, reader, data_dir)
    append(data_dir, 40, start=20)

    kept = command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B", "--json")
    (told,) = map(json.loads, kept.lines)
    assert (told["needed_from"], told["needed_by"]) == (20, "reader/v1")
    bases = [base for base, _ in segments(data_dir)]
    assert bases[0] <= 20 < bases[1]
    assert command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B").lines[1].split()[-2:] == [
        b"20",
        b"reader/v1",
    ]
    until_end(spawn, reader, data_dir)
    assert [int(n) for n in command("log", "read", "--data", data_dir, "out").lines] == list(range(60))

    append(data_dir, 30, start=60)
    assert command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B", "--force").code == 0
    assert len(segments(data_dir)) == 1 and segments(data_dir)[0][0] > 60
    code, err = until_end(spawn, reader, data_dir)
    assert code == 2 and "retention has removed" in err


def test_retention_works_beside_a_process_that_writes(command, data_dir, spawn, small_segments):
    append(data_dir, 40)
    writer = spawn("log", "append", "--data", data_dir, "t", stdin=subprocess.PIPE)
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow", "--from", "40")
    writer.stdin.write(b"40\n")
    writer.stdin.flush()
    assert follower.stdout.readline() == b"40\n"

    assert command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B").code == 0
    assert len(segments(data_dir)) == 1
    writer.stdin.write(b"41\n")
    writer.stdin.flush()
    assert follower.stdout.readline() == b"41\n"
    assert writer.communicate()[0].startswith(b"appended 2 lines")


def test_who_does_not_know_what_a_job_needs_removes_nothing(command, data_dir, spawn, reader, small_segments):
    append(data_dir, 40)
    until_end(spawn, reader, data_dir)
    before = segments(data_dir)
    (data_dir / "jobs" / "reader" / "v1" / "data.mdb").write_bytes(b"")
    answer = command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B")
    assert answer.code == 5 and segments(data_dir) == before
    assert command("log", "retain", "--data", data_dir, "t", "--larger-than", "0B", "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t"], "nothing says what is old"),
        (["t", "--older-than", "7"], "--older-than: '7' is not a duration"),
        (["t", "--larger-than", "7"], "--larger-than: '7' is not a size"),
        (["no", "--older-than", "7d"], "there is no topic no"),
        (["../t", "--older-than", "7d"], "can't name a topic"),
    ],
)
def test_a_retention_that_makes_no_sense_is_refused(command, data_dir, arguments, message):
    append(data_dir, 1)
    answer = command("log", "retain", "--data", data_dir, *arguments)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1


# Delete. --------------------------------------------------------------------------------------------------------------


def test_a_deleted_topic_is_gone_and_may_be_made_anew(command, data_dir):
    append(data_dir, 5, partitions=2)
    assert command("log", "delete", "--data", data_dir, "t", "--yes").out == b"deleted t\n"
    assert command("log", "info", "--data", data_dir, "--json").out == b""
    assert list((data_dir / "log").iterdir()) == []
    append(data_dir, 1, start=7)
    assert command("log", "read", "--data", data_dir, "t").out == b"7\n"


def test_nothing_is_deleted_unasked(command, data_dir):
    append(data_dir, 1)
    answer = command("log", "delete", "--data", data_dir, "t")
    assert answer.code == 2 and "there is no terminal. Give --yes" in answer.err
    assert command("log", "read", "--data", data_dir, "t").out == b"0\n"


@pytest.mark.parametrize(("topic", "use"), [("t", "reads"), ("out", "writes"), ("dead-letters.reader.t", "writes")])
def test_a_topic_of_a_job_is_deleted_only_by_force(command, data_dir, spawn, reader, topic, use):
    append(data_dir, 1)
    asyncio.run(_bad_record(data_dir))
    until_end(spawn, reader, data_dir)
    answer = command("log", "delete", "--data", data_dir, topic, "--yes")
    assert answer.code == 2 and f"topic {topic} is in use: job reader/v1 {use} it" in answer.err
    assert (data_dir / "log" / topic / "topic.json").exists()
    assert command("log", "delete", "--data", data_dir, topic, "--force").code == 0
    assert not (data_dir / "log" / topic).exists()


async def _bad_record(data_dir):
    async with Log(data_dir) as log:
        await (await log.topic("t")).append(b"x")


def test_a_topic_that_another_process_writes_is_deleted_only_by_force(command, data_dir, spawn):
    append(data_dir, 1)
    writer = spawn("log", "append", "--data", data_dir, "t", stdin=subprocess.PIPE)
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow")
    assert follower.stdout.readline() == b"0\n"
    writer.stdin.write(b"1\n")
    writer.stdin.flush()
    assert follower.stdout.readline() == b"1\n"

    answer = command("log", "delete", "--data", data_dir, "t", "--yes")
    assert answer.code == 4 and f"being written by process {writer.pid}. Nothing was deleted" in answer.err
    writer.stdin.write(b"2\n")
    writer.stdin.flush()
    assert follower.stdout.readline() == b"2\n"

    assert command("log", "delete", "--data", data_dir, "t", "--force").code == 0
    out, err = follower.communicate()
    assert (follower.returncode, out) == (2, b"")
    assert b"topic t was deleted by another process, while it was read here, at offset 3" in err
    assert b"Traceback" not in err and len(err.splitlines()) == 1
    out, err = writer.communicate(b"3\n")
    assert writer.returncode == 5 and b"was deleted by another process, by force" in err and b"Traceback" not in err
    assert out == b"appended 2 lines to t (1 partition), durable\n"


def test_a_job_whose_source_is_deleted_fails_with_the_reason(command, data_dir, spawn, reader):
    append(data_dir, 1)
    job = spawn("run", reader, "--data", data_dir, "--no-progress")
    follower = None
    while follower is None or follower.stdout.readline() != b"0\n":  # until the job has made its topic and written
        assert job.poll() is None, job.communicate()[1]
        follower = spawn("log", "read", "--data", data_dir, "out", "--follow")
    assert command("log", "delete", "--data", data_dir, "t", "--force").code == 0
    _, err = job.communicate()
    assert job.returncode == 2 and b"topic t was deleted by another process" in err and b"Traceback" not in err


def test_a_killed_deletion_is_completed_by_the_next(command, data_dir, spawn, monkeypatch):
    append(data_dir, 1)
    append(data_dir, 1, name="other")
    follower = spawn("log", "read", "--data", data_dir, "t", "--follow")
    assert follower.stdout.readline() == b"0\n"
    with monkeypatch.context() as killed:
        killed.setattr(topic_commands, "_remove_topic", lambda folder: None)
        command("log", "delete", "--data", data_dir, "t", "--yes")
    assert [json.loads(line)["topic"] for line in command("log", "info", "--data", data_dir, "--json").lines] == [
        "other"
    ]
    append(data_dir, 1, start=9)  # a new one of that name

    command("log", "delete", "--data", data_dir, "other", "--yes")
    assert follower.communicate()[1].startswith(b"streamactors: topic t was deleted")
    assert sorted(path.name for path in (data_dir / "log").iterdir()) == ["t"]
    assert command("log", "read", "--data", data_dir, "t").out == b"9\n"


def test_a_log_that_stays_open_sees_the_new_topic_of_the_name(command, data_dir):
    async def go():
        async with Log(data_dir) as log:
            before = await log.create_topic("t")
            reading = before.partition(0).reader()
            assert await reading.read() == []
            await asyncio.to_thread(command, "log", "delete", "--data", data_dir, "t", "--yes")
            assert await log.topic("t") is None
            topic = await log.create_topic("t", 3)
            assert topic.partitions == 3
            await topic.append(b"1")

    asyncio.run(go())
