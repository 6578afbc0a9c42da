"""``streamactors deadletters``: what failed is listed, shown, and put back once, whatever is killed."""

import asyncio
import json
import shutil
import subprocess
from collections import Counter
from random import Random, SystemRandom

import pytest

from streamactors.durable import appender
from streamactors.durable.erasure import erase
from streamactors.durable.files import RealDisk
from streamactors.durable.log import Log
from streamactors.ops import retries
from tests.crash.processes import Server

FLOW = """
import sys
import streamactors as sa

p = sa.Pipeline("quiz", on_error="dead_letter")
rule = (lambda n: n) if "mended" in sys.argv else (lambda n: 10 // (n % 3))
numbers = p.topic("numbers", int)
numbers.map(rule, name="rule").to_topic("out")
p.items([0, 1]).map(lambda n: 1 // n, name="inverse").to_topic("inverses")
keyed = p.topic("ups", int).key_by(lambda n: n % 2).count()
keyed.map(lambda n: 1 // (n - 1), name="result").to_view("v")
"""


@pytest.fixture
def flow(tmp_path):
    path = tmp_path / "quiz.py"
    path.write_text(FLOW)
    return path


@pytest.fixture
def letters(spawn, data_dir, flow):
    """A data folder with dead letters of all kinds."""

    async def go():
        async with Log(data_dir) as log:
            topic = await log.create_topic("numbers", 2)
            values = [b"x" if n == 5 else b"%d" % n for n in range(12)]
            await topic.append_many(values, keys=[f"key {n}" for n in range(12)])
            await (await log.create_topic("ups")).append(b"1")

    asyncio.run(go())
    until_end(spawn, flow, data_dir)
    return data_dir


def until_end(spawn, flow, data_dir, *arguments):
    process = spawn("run", flow, "--data", data_dir, "--until-end", "--no-progress", "--", *arguments)
    err = process.communicate()[1]
    assert process.returncode == 0, err


def rows(answer):
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.lines]


def records(command, data_dir, topic="numbers"):
    """Return (partition, key, value) of each record."""
    answer = command("log", "read", "--data", data_dir, topic, "--meta")
    return [(row["partition"], row["key"], json.dumps(row["value"])) for row in map(json.loads, answer.lines)]


def failing(command, data_dir):
    """The oracle: what can't be handled of the first twelve records, with partition and key."""
    bad = {json.dumps(n) for n in range(0, 12, 3)} | {json.dumps({"$base64": "eA=="})}
    return Counter(record for record in records(command, data_dir)[:12] if record[2] in bad)


# List and show. -------------------------------------------------------------------------------------------------------


def test_all_letters_are_listed_with_where_their_records_stand(command, letters):
    listed = rows(command("deadletters", "list", "--data", letters, "quiz", "--json"))
    of_numbers = [row for row in listed if row["source"] == "numbers"]
    assert {row["operator"] for row in listed} == {"topic numbers", "quiz/rule", "quiz/inverse", "quiz/result"}
    read = {
        (row["partition"], row["offset"]): row["value"]
        for row in map(json.loads, command("log", "read", "--data", letters, "numbers", "--meta").lines)
    }
    assert sorted(json.dumps(read[row["partition"], row["offset"]]) for row in of_numbers) == sorted(
        record[2] for record in failing(command, letters)
    )
    assert all(row["retried"] is None and row["append_time_ms"] > 1_600_000_000_000 for row in listed)
    rules = rows(command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "rule"))
    assert rules == [row for row in listed if row["operator"] == "quiz/rule"]
    last = rows(
        command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "rule", "--limit", "1")
    )
    assert last == rules[-1:]
    table = command("deadletters", "list", "--data", letters, "quiz")
    assert len(table.lines) == len(listed) + 1 and b"ZeroDivisionError" in table.out


def test_one_letter_is_shown_with_everything(command, letters):
    rules = rows(command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "quiz/rule"))
    position = rules[0]["position"]
    shown = command("deadletters", "show", "--data", letters, "quiz", position)
    assert shown.code == 0
    for part in (b"operator  quiz/rule", b"put back  no", b"Traceback (most recent call last)", b"10 // (n % 3)"):
        assert part in shown.out
    (row,) = rows(command("deadletters", "show", "--data", letters, "quiz", position, "--json"))
    assert row | rules[0] == row and row["original"] % 3 == 0 and "ZeroDivisionError" in row["traceback"]
    undecodable = rows(
        command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "topic numbers")
    )
    (row,) = rows(command("deadletters", "show", "--data", letters, "quiz", undecodable[0]["position"], "--json"))
    assert row["original"] == {"$base64": "eA=="}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nope"], "there is no job nope"),
        (["show", "quiz", "7"], "is no position of a dead letter"),
        (["show", "quiz", "numbers/0/700"], "there is no dead letter at numbers/0/700"),
        (["show", "quiz", "numbers/9/0"], "there is no dead letter at numbers/9/0"),
        (["show", "quiz", "other/0/0"], "Regions with dead letters: items, numbers, ups"),
        (["retry", "quiz"], "say which letters, and none is there"),
        (["retry", "quiz", "--all", "--operator", "rule"], "exclude each other"),
        (["retry", "quiz", "--operator", "nobody"], "has no dead letter of operator nobody"),
        (["retry", "quiz", "--offset", "numbers/0/x"], "is no position"),
        (["retry", "nope", "--all"], "there is no job nope"),
    ],
)
def test_what_is_not_there_is_a_usage_error(command, letters, arguments, message):
    name, *rest = arguments
    answer = command("deadletters", name, "--data", letters, *rest)
    assert answer.code == 2 and message in answer.err and len(answer.err.splitlines()) == 1


def test_a_job_without_dead_letters_has_none(command, spawn, data_dir, tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("import streamactors as sa\np = sa.Pipeline('plain')\np.items([1]).to_topic('o')\n")
    until_end(spawn, path, data_dir)
    assert command("deadletters", "list", "--data", data_dir, "plain", "--json").out == b""
    answer = command("deadletters", "retry", "--data", data_dir, "plain", "--all")
    assert (answer.code, answer.out) == (0, b"put back 0 records\n")


# Retry. ---------------------------------------------------------------------------------------------------------------


def test_originals_go_back_with_their_keys_once_however_often_it_is_tried(command, spawn, letters, flow):
    before, expected = records(command, letters), failing(command, letters)
    dry = command("deadletters", "retry", "--data", letters, "quiz", "--all", "--dry-run")
    assert (
        dry.out.splitlines()[-1].startswith(b"would put back 6 records; 1 refused")
        and records(command, letters) == before
    )
    one = rows(command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "rule"))[-1]
    assert command("deadletters", "retry", "--data", letters, "quiz", "--offset", one["position"]).code == 0
    for _ in range(3):
        answer = command("deadletters", "retry", "--data", letters, "quiz", "--all")
        assert answer.code == 2  # an item of a list can't go back
    assert b"put back 0 records; 6 put back before; 1 refused" in answer.out
    assert "source items is no topic of this log" in answer.err

    assert Counter(records(command, letters)) - Counter(before) == expected
    for row in rows(command("deadletters", "list", "--data", letters, "quiz", "--json")):
        assert (row["retried"] is not None) == (row["source"] in {"numbers", "ups"})
    until_end(spawn, flow, letters, "mended")
    out = Counter(int(value) for _, _, value in records(command, letters, "out"))
    assert out == Counter(10 // (n % 3) for n in range(12) if n % 3 and n != 5) + Counter(range(0, 12, 3))


def test_what_fails_again_is_a_new_letter(command, spawn, letters, flow):
    rule = ["deadletters", "retry", "--data", letters, "quiz", "--operator", "rule"]
    assert command(*rule).out.endswith(b"put back 4 records\n")
    until_end(spawn, flow, letters)
    assert command(*rule).out.endswith(b"put back 4 records; 4 put back before\n")


TWO = """
import sys
import streamactors as sa

def strict(n):
    if str(n) in sys.argv: raise ValueError(f"{n} is bad")
    return n

p = sa.Pipeline("two", on_error="dead_letter")
numbers = p.topic("numbers", int)
numbers.map(strict, name="left").to_topic("left")
numbers.map(strict, name="right").to_topic("right")
"""


@pytest.fixture
def two(data_dir, tmp_path, command, spawn):
    """A job of two branches that both left out 3 and 5 of the numbers 0 to 5, and its file."""
    file = tmp_path / "two.py"
    file.write_text(TWO)
    assert command("log", "append", "--data", data_dir, "numbers", file=b"0\n1\n2\n3\n4\n5\n").code == 0
    until_end(spawn, file, data_dir, "3", "5")
    return file


def served_from(command, data_dir, file, *bad):
    """Replay *file*, in which the numbers *bad* still fail, as v2, and promote that."""
    replay = ["replay", file, "--data", data_dir, "--as", "v2", "--no-progress", "--", *bad]
    assert command(*replay).code == 0
    assert command("promote", "--data", data_dir, "two", "v2").code == 0


def test_a_record_that_two_operators_left_out_goes_back_once(command, data_dir, two):
    retry = ["deadletters", "retry", "--data", data_dir, "two", "--all"]
    assert command(*retry, "--dry-run").out.endswith(b"would put back 2 records; 2 put back with another letter\n")
    assert command(*retry).out.endswith(b"put back 2 records; 2 put back with another letter\n")
    assert command(*retry).out.endswith(b"put back 0 records; 4 put back before\n")
    assert command("log", "read", "--data", data_dir, "numbers").lines[6:] == [b"3", b"5"]


def test_letters_of_the_version_that_is_served_now_are_no_others_in_their_places(command, data_dir, two):
    first = rows(command("deadletters", "list", "--data", data_dir, "two", "--json"))[0]
    retry = ["deadletters", "retry", "--data", data_dir, "two"]
    assert first["offset"] == 3 and command(*retry, "--offset", first["position"]).code == 0
    served_from(command, data_dir, two, "5")
    listed = rows(command("deadletters", "list", "--data", data_dir, "two", "--json"))
    assert [(row["offset"], row["retried"]) for row in listed] == [(5, None), (5, None)]
    assert command(*retry, "--all").code == 0
    assert command("log", "read", "--data", data_dir, "numbers").lines[6:] == [b"3", b"5"]


def test_what_a_killed_retry_promised_is_done_behind_a_promotion_too(command, data_dir, two, monkeypatch):
    async def killed(*_):
        raise OSError(5, "killed here")

    with monkeypatch.context() as patch:
        patch.setattr(retries._Retries, "_append", killed)
        first = rows(command("deadletters", "list", "--data", data_dir, "two", "--json"))[0]
        assert command("deadletters", "retry", "--data", data_dir, "two", "--offset", first["position"]).code == 5
    served_from(command, data_dir, two, "5")
    command("deadletters", "retry", "--data", data_dir, "two", "--all")
    assert command("log", "read", "--data", data_dir, "numbers").lines[6:] == [b"3", b"5"]


def test_what_was_erased_since_a_retry_was_killed_does_not_come_back(command, data_dir, two, monkeypatch):
    async def killed(*_):
        raise OSError(5, "killed here")

    retry = ["deadletters", "retry", "--data", data_dir, "two", "--all"]
    with monkeypatch.context() as patch:
        patch.setattr(retries._Retries, "_append", killed)
        assert command(*retry).code == 5
    erase(RealDisk(), data_dir / "log" / "numbers" / "0", lambda key, value: value == b"3", lambda: "0" * 32, 0)
    command(*retry)
    assert command("log", "read", "--data", data_dir, "numbers").lines[5:] == [b"5"]


def test_an_erased_key_leaves_the_other_letters_places_as_they_are(command, letters):
    rule = ["deadletters", "retry", "--data", letters, "quiz", "--operator", "rule"]
    assert command(*rule).code == 0
    before = rows(command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "rule"))
    assert command("forget", "--data", letters, "key 3", "--yes").code == 0
    after = rows(command("deadletters", "list", "--data", letters, "quiz", "--json", "--operator", "rule"))
    assert len(after) == len(before) - 1 and all(row in before for row in after)
    assert command(*rule).out.endswith(b"put back 0 records; 3 put back before\n")


def test_a_topic_that_another_process_writes_takes_nothing_back_and_nothing_is_noted(command, spawn, letters):
    writer = spawn("log", "append", "--data", letters, "numbers", "--skip-bad", stdin=subprocess.PIPE)
    follower = spawn("log", "read", "--data", letters, "numbers", "--follow", "--from", "3")
    writer.stdin.write(b"100\n101\n")
    writer.stdin.flush()
    while follower.stdout.readline() not in {b"100\n", b"101\n"}:
        pass
    while True:  # until it has both partitions
        info = json.loads(command("log", "info", "--data", letters, "numbers", "--json").out)
        if info["records"] == 14:
            break
    answer = command("deadletters", "retry", "--data", letters, "quiz", "--operator", "rule")
    assert answer.code == 4 and f"process {writer.pid}" in answer.err
    writer.communicate()
    answer = command("deadletters", "retry", "--data", letters, "quiz", "--operator", "rule")
    assert answer.code == 0 and b"put back 4 records\n" in answer.out


def test_what_retention_has_removed_or_others_replaced_is_refused_with_the_reason(command, letters, spawn, monkeypatch):
    retry = ["deadletters", "retry", "--data", letters, "quiz", "--operator", "rule"]
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 1)

    async def roll():
        async with Log(letters) as log:
            topic = await log.topic("numbers")
            for number in range(2):
                for _ in range(2):
                    await topic.append(
                        b"7", key=next(k for k in map(str, range(99)) if topic._choose(k.encode()) == number)
                    )

    asyncio.run(roll())
    command("log", "retain", "--data", letters, "numbers", "--larger-than", "0B", "--force")
    answer = command(*retry)
    assert (
        answer.code == 2
        and "retention has removed numbers/" in answer.err
        and "0 records; 4 refused" in str(answer.out)
    )
    command("log", "delete", "--data", letters, "numbers", "--force")
    assert "source numbers is no topic of this log" in command(*retry).err

    async def other():
        async with Log(letters) as log:
            await (await log.create_topic("numbers", 2)).append_many([b"7"] * 20)

    asyncio.run(other())
    assert "holds another record now" in command(*retry).err


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


@pytest.mark.crash
def test_a_retry_that_is_killed_anywhere_is_completed_by_the_next(server, command, letters, tmp_path, record_property):
    seed = SystemRandom().getrandbits(32)
    record_property("said", f"seed {seed}")
    random = Random(seed)
    before, expected = records(command, letters), failing(command, letters)
    data, trace = tmp_path / "copy", tmp_path / "trace"
    retry = ["deadletters", "retry", "--data", str(data), "quiz", "--operator", "rule"]
    rest = ["deadletters", "retry", "--data", str(data), "quiz", "--all"]

    def killed(points):
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(letters, data)
        trace.write_bytes(b"")
        server.start({"command": retry, "trace": str(trace), "points": points}).wait()
        return trace.read_text().splitlines()

    reached = Counter(line for line in killed({}) if "write" in line or "sync" in line or "store" in line)
    assert sum(reached.values()) > 20
    for label, times in reached.items():
        nth = random.randint(1, times)
        assert killed({"label": label, "nth": nth})[-1] == f"KILLED at {label}"
        for again in (retry, rest, rest):
            command(*again)
        assert Counter(records(command, data)) - Counter(before) == expected, (label, nth)
