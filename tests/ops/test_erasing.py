"""``streamactors forget``: nothing of the key is left in any file, all else is as it was, and the job goes on."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random

import msgspec
import pytest

from connectors.topic import TopicSink, without_records
from streamactors import Bound, Log, Pipeline, Settings, Tumbling, count, open_views, run
from streamactors.core.batch import Batch
from streamactors.core.connectors import Payload, Stamp, World
from streamactors.durable.files import RealDisk
from streamactors.durable.register import read_register
from streamactors.durable.store import Store
from streamactors.durable.subject import subject

ROOT = Path(__file__).parents[2]
HER = "ada@example.org"
SECRET = "her-secret-answer"
USERS = [HER, "bob@example.org", "eve", "mallory@example.org", *(f"user-{n}" for n in range(8))]
SOURCES = 3


class Event(msgspec.Struct):
    """What is counted."""

    user: str
    quiz: str
    at: int
    answer: str
    n: int


def events(first, number, seed):
    """Return that many events; hers hold a secret."""
    random = Random(seed)
    made = []
    for n in range(first, first + number):
        user = random.choice([HER, *USERS])
        answer = f"{SECRET}-{n}" if user == HER else f"answer-{n}"
        made.append(Event(user, random.choice(["algebra", "latin"]), n * 1_000, answer, n))
    return made


def pipeline(name="counts"):
    """Her key in views, in windows, in state without a view, in a topic, in dead letters."""
    made = Pipeline(name)
    source = made.topic("events", Event)
    timed = source.event_time("at", disorder="5s", idle_after=None)
    by_user = timed.key_by("user")
    by_user.aggregate(count=count()).to_view("users")
    by_user.window(Tumbling("1min")).allowed_lateness("1min").count().to_view("user_windows")
    by_user.map_with_state(_last).to_topic(f"last-{name}", partitions=2)
    timed.key_by("quiz").count().to_view("quizzes")

    def refuse(event):
        if event.n % 20 == 7:
            raise ValueError(f"refused {event.answer}")
        return event.n

    timed.map(refuse).on_error("dead_letter").to_topic(f"numbers-{name}")
    return made


def _last(event, last):
    return [event.user, last, event.answer], event.answer


async def append(data, made):
    async with Log(data) as log:
        topic = await log.create_topic("events", SOURCES)
        for start in range(0, len(made), 10):
            some = made[start : start + 10]
            await topic.append_many([msgspec.json.encode(e) for e in some], keys=[e.user for e in some])


async def work(data, name="counts", **how):
    """Run to the end of the input; a hang is a failure."""
    settings = Settings(bound=Bound.UNTIL_END, checkpoint_every_ms=20, **how)
    async with asyncio.timeout(60), run(pipeline(name), data, settings=settings) as job:
        await job.wait()


def views(data, name="counts"):
    with open_views(data, name) as found:
        return {view: dict(found[view].items()) for view in ("users", "user_windows", "quizzes")}


def without_her(views):
    """The oracle: what views have to be, from what they were."""
    return {
        "users": {key: value for key, value in views["users"].items() if key != HER},
        "user_windows": {key: value for key, value in views["user_windows"].items() if key[0] != HER},
        "quizzes": views["quizzes"],
    }


async def topics(data):
    """Return {(topic, partition, offset): (key, value)} of all topics."""
    rows = {}
    async with Log(data) as log:
        for name in await log.topics():
            topic = await log.topic(name)
            for number in range(topic.partitions):
                reader = topic.partition(number).reader(0)
                while chunks := await reader.read():
                    for chunk in chunks:
                        for offset, key, value in zip(
                            range(chunk.first, chunk.end), chunk.keys(), chunk.values(), strict=True
                        ):
                            rows[name, number, offset] = (key, bytes(value))
                await reader.close()
    return rows


def about_her(row):
    """Whether a record, as it was, is hers: the oracle knows that a letter's original is base64."""
    key, value = row
    letter = msgspec.json.decode(value)
    original = letter.get("original") if isinstance(letter, dict) else None
    if original is not None:
        return HER.encode() in msgspec.json.decode(f'"{original}"', type=bytes)
    return key == HER.encode()


def files_with(data, *texts):
    return [
        (str(path.relative_to(data)), text)
        for path in sorted(data.rglob("*"))
        if path.is_file()
        for text in texts
        if text.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A data folder in which a job has read 400 events, twice started."""
    data = tmp_path_factory.mktemp("begun") / "data"

    async def live():
        for part in range(2):
            await append(data, events(part * 200, 200, part))
            await work(data)

    asyncio.run(live())
    return data


@pytest.fixture
def data(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "data"))


def report_of(answer):
    assert len(answer.lines) == 1, (answer.out, answer.err)
    return json.loads(answer.lines[0])


def test_nothing_of_her_is_left_in_any_file_and_all_else_is_as_it_was(command, data):
    """Her id and her answers are looked for in the bytes of every file: log, LMDB, register."""
    assert files_with(data, HER, SECRET), "there is something to be deleted"
    rows, shown = asyncio.run(topics(data)), views(data)

    answer = command("forget", "--data", data, HER, "--yes", "--json")
    assert answer.code == 0, answer
    assert files_with(data, HER, SECRET) == []
    report = report_of(answer)
    assert report["not_done"] == report["remains"] == report["mentions"] == []

    left = asyncio.run(topics(data))
    assert left == {place: row for place, row in rows.items() if not about_her(row)}
    assert views(data) == without_her(shown)
    by_topic = Counter()
    for part in report["topics"]:
        by_topic[part["topic"]] += part["records"]
    assert by_topic == Counter({name: 0 for name, _, _ in rows} | Counter(p[0] for p in rows.keys() - left.keys()))
    (job,) = report["jobs"]
    assert job["views"] == {"users": 1, "user_windows": sum(key[0] == HER for key in shown["user_windows"])}
    assert any("map_with_state" in name for name in job["state"]) and job["bytes_after"] <= job["bytes_before"]


def test_a_dry_run_tells_the_same_and_changes_nothing(command, data):
    before = {path: path.read_bytes() for path in data.rglob("*.segment")} | {"views": views(data)}
    dry = report_of(command("forget", "--data", data, HER, "--dry-run", "--json"))
    assert {path: path.read_bytes() for path in data.rglob("*.segment")} | {"views": views(data)} == before
    real = report_of(command("forget", "--data", data, HER, "--yes", "--json"))
    for part in (*dry["topics"], *real["topics"]):
        assert part["bytes"] >= 0
    assert dry["topics"] == real["topics"]
    assert [(j["views"], j["state"], j["pending"]) for j in dry["jobs"]] == [
        (j["views"], j["state"], j["pending"]) for j in real["jobs"]
    ]


def test_a_second_time_finds_nothing(command, data):
    command("forget", "--data", data, HER, "--yes")
    answer = command("forget", "--data", data, HER, "--yes")
    assert answer.code == 0 and answer.lines[-1] == b"deleted 0 records and rows"


def test_the_job_goes_on_exactly_for_all_others_and_she_begins_anew(command, data):
    """The oracles: a job of which nothing was deleted, and plain counting."""
    more = events(400, 150, 9)
    untouched = Path(shutil.copytree(data, data.parent / "untouched"))
    command("forget", "--data", data, HER, "--yes")
    for folder in (data, untouched):
        asyncio.run(append(folder, more))
        asyncio.run(work(folder))

    after = views(data)
    assert without_her(after) == without_her(views(untouched))
    made = [*events(0, 200, 0), *events(200, 200, 1), *more]
    assert after["users"] == {
        user: {"count": n} for user, n in (Counter(e.user for e in made if e.user != HER) | her_since(more)).items()
    }
    assert after["quizzes"] == Counter(e.quiz for e in made), "what others' keys have counted stays"
    lasts = [
        msgspec.json.decode(value)
        for (name, *_), (_, value) in asyncio.run(topics(data)).items()
        if name == "last-counts"
    ]
    assert next(last for user, last, _ in lasts if user == HER) is None, "her state began anew"


def her_since(made):
    return Counter(e.user for e in made if e.user == HER)


def replayed(data, tmp_path, name):
    """Follow the job's journal from its start, in a copy of the folder; then event time ends. Its views."""
    copy = Path(shutil.copytree(data, tmp_path / name))
    with Store.open(copy / "jobs" / "counts" / "v1", read_only=True) as store:
        journal = [*store.journal("events"), ("finish",)]
    asyncio.run(work(copy, "again", follow={"events": journal}))
    return views(copy, "again")


def test_a_replay_of_the_journal_gives_all_other_keys_the_same(command, data, tmp_path):
    """What her records had counted under other keys is missing, and the register says which records those were."""
    before = replayed(data, tmp_path, "before")
    command("forget", "--data", data, HER, "--yes")
    again = replayed(data, tmp_path, "after")

    assert again["users"] == without_her(before)["users"]
    assert again["user_windows"] == without_her(before)["user_windows"]
    missing = sum(before["quizzes"].values()) - sum(again["quizzes"].values())
    folders = [data / "log" / "events" / str(number) for number in range(SOURCES)]
    named = [entry for folder in folders for entry in read_register(RealDisk(), folder)]
    assert missing == sum(entry.records for entry in named) > 0
    assert all(entry.done for entry in named)


@pytest.mark.parametrize("seed", range(4))
def test_event_time_without_her_is_never_ahead_so_nobody_else_loses_a_record(command, tmp_path, seed):
    """Hers had moved event time as well. Without them it is behind: what was late may count, never the reverse."""
    data, random, made = tmp_path / "data", Random(seed), events(0, 300, seed)
    for event in made:
        event.at += random.choice([0, 0, 0, 400_000 * (event.user == HER), -150_000])
        event.at = max(0, event.at)
    asyncio.run(append(data, made))
    asyncio.run(work(data))
    before = replayed(data, tmp_path, "before")
    command("forget", "--data", data, HER, "--yes")
    again = replayed(data, tmp_path, "after")

    others = without_her(before)["user_windows"]
    assert all(again["user_windows"].get(key, 0) >= counted for key, counted in others.items())
    assert sum(again["user_windows"].values()) > sum(others.values()), "some of others had been late because of hers"
    assert again["users"] == without_her(before)["users"], "what no window bounds is the same"


def test_a_replay_over_a_topic_of_which_all_was_erased_comes_to_its_end(command, data):
    with Store.open(data / "jobs" / "counts" / "v1", read_only=True) as store:
        journal = list(store.journal("events"))
    for user in USERS:
        assert command("forget", "--data", data, user, "--topic", "events", "--yes").code == 0
    asyncio.run(work(data, "again", follow={"events": journal}))
    assert views(data, "again") == {"users": {}, "user_windows": {}, "quizzes": {}}
    asyncio.run(work(data, "afresh"))
    asyncio.run(append(data, events(400, 20, 3)))
    asyncio.run(work(data, "afresh"))
    assert sum(views(data, "afresh")["quizzes"].values()) == 20


@pytest.mark.crash
def test_killed_at_any_change_and_run_again_it_is_done(command, begun, tmp_path):
    """By SIGKILL, before each write, sync, rename, transaction and copy."""
    rows, shown = asyncio.run(topics(begun)), views(begun)
    kept = {place: row for place, row in rows.items() if not about_her(row)}
    kill_at, killed = 1, True
    points = 0
    while killed:
        data = Path(shutil.copytree(begun, tmp_path / str(kill_at)))
        arguments = ["forget", "--data", str(data), HER, "--yes"]
        ended = child(kill_at, arguments)
        killed = ended.returncode < 0
        between = asyncio.run(topics(data))
        assert kept.items() <= between.items() <= rows.items()
        assert without_her(views(data)) == without_her(shown)
        again = command(*arguments)
        assert again.code == 0, again
        assert files_with(data, HER, SECRET) == []
        assert asyncio.run(topics(data)) == kept and views(data) == without_her(shown)
        assert not list(data.rglob("*.new")) and not list(data.rglob("compacted"))
        shutil.rmtree(data)
        points += 1
        kill_at += 1 + kill_at // 3  # each of the first, then some of the many writes of the same kind
    assert points > 10


def child(kill_at, arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.ops.erase_child", str(kill_at), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )


def test_while_the_job_runs_it_is_refused_with_the_pid_and_nothing_is_changed(data):
    """A dry run works meanwhile."""
    asyncio.run(append(data, events(400, 1, 1)))
    before = {path: path.read_bytes() for path in (data / "log" / "events").rglob("*.segment")}

    async def beside():
        async with run(pipeline(), data):
            refused = await asyncio.to_thread(child_command, ("forget", "--data", data, HER, "--yes"))
            dry = await asyncio.to_thread(child_command, ("forget", "--data", data, HER, "--dry-run"))
            return refused, dry

    refused, dry = asyncio.run(beside())
    assert refused.returncode == 4 and refused.stdout == b""
    assert b"in use: job counts v1 by process %d" % os.getpid() in refused.stderr
    assert b"Nothing was deleted. Stop them" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert dry.returncode == 0 and b"would delete" in dry.stdout.splitlines()[-1]


def test_a_writer_of_a_topic_is_named_too(data):
    async def beside():
        async with Log(data) as log:
            await (await log.topic("events")).append(b"{}", key="bob@example.org")
            return await asyncio.to_thread(child_command, ("forget", "--data", data, HER, "--yes"))

    refused = asyncio.run(beside())
    assert refused.returncode == 4 and b"topic events/" in refused.stderr
    assert b"by process %d" % os.getpid() in refused.stderr


def child_command(arguments):
    return child(1_000_000, list(map(str, arguments)))


def test_a_topic_or_job_that_is_not_there_is_refused(command, data):
    for flag in ("--topic", "--job"):
        answer = command("forget", "--data", data, HER, flag, "nobody", "--yes")
        assert answer.code == 2 and "nobody" in answer.err and "There are: " in answer.err
    assert files_with(data, HER)


def test_who_reads_the_state_keeps_its_file_and_is_named(command, data):
    """The rows are gone; their bytes are not, and that is said, with exit code and pid."""
    with closing(_reader(data)) as reader:
        answer = child_command(("forget", "--data", data, HER, "--yes"))
        assert answer.returncode == 4, answer
        assert b"NOT DONE: job counts v1: free pages" in answer.stdout and b"%d" % os.getpid() in answer.stdout
        assert HER not in dict(reader["users"].items())
    assert files_with(data, HER)
    assert command("forget", "--data", data, HER, "--yes").code == 0
    assert files_with(data, HER, SECRET) == []


def _reader(data):
    from streamactors.job.served import ServedViews

    views = ServedViews(data, "counts")
    dict(views["users"].items())
    return views


def test_a_reader_that_follows_sees_no_error_and_what_comes_after(command, data):
    """It stands at the end with the old file open, which is exchanged and then written on by another process."""

    async def follow():
        async with Log(data) as log:
            partitions = [(await log.topic("events")).partition(number) for number in range(SOURCES)]
            readers = [partition.reader(0) for partition in partitions]
            before = [await _all(reader) for reader in readers]
            assert (await asyncio.to_thread(child_command, ("forget", "--data", data, HER, "--yes"))).returncode == 0
            await append(data, events(400, 60, 4))
            after = [await _all(reader) for reader in readers]
            return before, after

    before, after = asyncio.run(follow())
    assert sum(map(len, before)) == 400
    assert sorted(msgspec.json.decode(value)["n"] for values in after for value in values) == list(range(400, 460))


async def _all(reader):
    values = []
    while chunks := await reader.read():
        values += [value for chunk in chunks for value in chunk.values()]
    return values


def test_records_without_keys_are_found_by_a_field_and_numbers_in_both_forms(command, tmp_path):
    lines = [{"id": 7, "x": "seven"}, {"id": "7", "x": "text"}, {"id": 77, "x": "other"}, {"x": 7}, [7], 7]
    data = tmp_path / "data"
    command("log", "append", "--data", data, "t", file=b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    report = report_of(command("forget", "--data", data, "7", "--field", "id", "--yes", "--json"))
    assert report["topics"][0]["offsets"] == [[0, 2]]
    read = command("log", "read", "--data", data, "t")
    assert list(map(json.loads, read.lines)) == lines[2:]
    assert read.err == "streamactors: t/0: offsets 0 to 1 were erased; nothing is printed for it.\n"
    meta = list(map(json.loads, command("log", "read", "--data", data, "t", "--meta").lines))
    assert meta[:2] == [{"partition": 0, "offset": n, "erased": True, "value": None} for n in (0, 1)]
    assert [line["offset"] for line in meta] == list(range(6))


def test_log_info_shows_what_was_erased_and_when(command, tmp_path):
    data = tmp_path / "data"
    command("log", "append", "--data", data, "t", "--key", "id", file=b'{"id":"a"}\n{"id":"somebody"}\n')
    command("forget", "--data", data, "somebody", "--yes")
    info = report_of(command("log", "info", "--data", data, "t", "--json"))["partitions"][0]
    assert (info["records"], info["erased"]) == (2, 1)
    (entry,) = info["erasures"]
    assert entry["offsets"] == [[1, 2]] and entry["done"] and entry["at_ms"] > 0 and "somebody" not in json.dumps(info)
    assert info["newest_append_time_ms"] is not None
    assert b"erased" in command("log", "info", "--data", data).lines[0]


def test_without_a_terminal_it_wants_to_be_told(command, data):
    answer = command("forget", "--data", data, HER)
    assert answer.code == 2 and "Give --yes" in answer.err
    assert files_with(data, HER)


def test_only_what_was_named_is_touched_and_the_rest_is_listed(command, data):
    shown = views(data)
    report = report_of(command("forget", "--data", data, HER, "--topic", "events", "--yes", "--json"))
    assert {part["topic"] for part in report["topics"]} == {"events"} and report["jobs"] == []
    assert "job counts v1" in report["left_out"] and "topic last-counts" in report["left_out"]
    assert views(data) == shown and {place["where"] for place in report["remains"]} >= {"jobs/counts/v1/data.mdb"}


@pytest.mark.parametrize(
    ("text", "key", "first", "anywhere"),
    [
        ("ada", "ada", True, True),
        ("ada", ("ada", 5), True, True),
        ("ada", (("ada", "x"), 5), True, True),
        ("ada", ("algebra", "ada"), False, True),
        ("ada", "adam", False, False),
        ("ada", b"ada", False, False),
        ("7", 7, True, True),
        ("7", "7", True, True),
        ("7", 7.0, False, False),
        ("1", True, False, False),
        ("7", (3, 7), False, True),
        ("007", 7, False, False),
        ('["t", 7]', ("t", 7), True, True),
        ('["t", 7]', (("t", 7), 0), True, True),
    ],
)
def test_which_keys_are_hers(text, key, first, anywhere):
    assert subject(text).has_key(key) is first
    assert subject(text, anywhere=True).has_key(key) is anywhere


# What the command can't reach by itself. ------------------------------------------------------------------------------


def exporting(folder):
    """Her events in JSON lines: output in a form of the sink's own, in files of another program."""
    made = Pipeline("export")
    made.topic("events", Event).map(lambda event: [event.user, event.answer]).to_json_lines(folder)
    return made


async def export(data):
    settings = Settings(bound=Bound.UNTIL_END, checkpoint_every_ms=20)
    async with asyncio.timeout(60), run(exporting(data.parent / "exported"), data, settings=settings) as job:
        await job.wait()


def test_output_that_only_its_sink_can_read_is_told_and_goes_with_later_checkpoints(command, tmp_path):
    data = tmp_path / "data"
    asyncio.run(append(data, events(0, 50, 1)))
    asyncio.run(export(data))
    answer = command("forget", "--data", data, HER, "--yes", "--json")
    report = report_of(answer)
    assert answer.code == 1 and "payloads in its checkpoint mention the key" in report["not_done"][0]["why"]
    assert "what job export v1 has written to" in report["outside"][0]
    assert [place["where"] for place in report["remains"]] == ["jobs/export/v1/data.mdb"]

    for more in (60, 70):
        asyncio.run(append(data, [e for e in events(more, 10, 1) if e.user != HER]))
        asyncio.run(export(data))
    answer = command("forget", "--data", data, HER, "--yes", "--json")
    assert answer.code == 0 and report_of(answer)["remains"] == []
    assert files_with(data, HER, SECRET) == [] and files_with(tmp_path / "exported", HER), (
        "the sink's files are its own"
    )


def test_rows_under_other_keys_are_told_and_a_key_further_behind_goes_on_demand(command, tmp_path):
    data = tmp_path / "data"
    made = Pipeline("pairs")
    source = made.topic("events", Event)
    source.key_by(lambda event: (event.quiz, event.user)).count().to_view("pairs")
    source.key_by("quiz").map_with_state(_last).to_view("lasts")

    async def work():
        await append(data, [Event(HER, quiz, 0, SECRET, 0) for quiz in ("algebra", "latin")])
        async with run(made, data, settings=Settings(bound=Bound.UNTIL_END)) as job:
            await job.wait()

    asyncio.run(work())
    answer = command("forget", "--data", data, HER, "--yes", "--json")
    report = report_of(answer)
    told = {place["where"].removeprefix("job pairs v1: "): place["count"] for place in report["mentions"]}
    assert answer.code == 0 and told["view:pairs"] == told["view:lasts"] == 2 and report["remains"]

    report = report_of(command("forget", "--data", data, HER, "--anywhere", "--yes", "--json"))
    assert report["jobs"][0]["views"] == {"pairs": 2}
    assert "view:pairs" not in str(report["mentions"]) and "view:lasts" in str(report["mentions"])


def test_a_key_too_long_for_lmdb_goes_as_well(command, tmp_path):
    data, long = tmp_path / "data", "x" * 600
    made = Pipeline("long")
    made.topic("events", Event).key_by("user").count().to_view("users")

    async def work():
        await append(data, [Event(user, "q", 0, "a", 0) for user in (long, "eve", long + "y")])
        async with run(made, data, settings=Settings(bound=Bound.UNTIL_END)) as job:
            await job.wait()

    asyncio.run(work())
    report = report_of(command("forget", "--data", data, long, "--yes", "--json"))
    assert report["jobs"][0]["views"] == {"users": 1}
    with open_views(data, "long") as views:
        assert dict(views["users"].items()) == {"eve": 1, long + "y": 1}


def test_output_that_waits_for_a_topic_is_committed_with_tombstones(tmp_path):
    """As after a crash between checkpoint and commit: offsets are what they would have been."""
    sink = TopicSink("out")
    writer = sink.writer(1)
    users = [HER, "eve", HER]
    writer.write(Batch([f"{SECRET}-{n}" if user == HER else n for n, user in enumerate(users)], keys=list(users)))
    (payload,) = writer.take()
    left, erased = without_records(payload.data, subject(HER).has_record)
    assert erased == 2 and HER.encode() not in left and SECRET.encode() not in left
    assert without_records(left, subject(HER).has_record) == (left, 0)

    async def commit():
        async with Log(tmp_path) as log:
            await log.create_topic("out")
            target = await sink.target(World(tmp_path, None, log))
            await target.commit(Payload(0, left), Stamp("j", "s", "i", 1, 1, 1), None)
            reader = (await log.topic("out")).partition(0).reader(0)
            chunks = await reader.read()
            assert await reader.read() == [] and reader.position == 3
            return [(chunk.first, chunk.values(), chunk.keys()) for chunk in chunks]

    assert asyncio.run(commit()) == [(1, [b"1"], [b"eve"])]


def test_a_damaged_segment_is_told_with_exit_code_5_and_the_rest_is_done(command, data):
    segment = max((data / "log" / "last-counts").rglob("*.segment"), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    answer = command("forget", "--data", data, HER, "--yes")
    assert (
        answer.code == 5
        and b"NOT DONE: topic last-counts/" in answer.out
        and b"restore the partition's folder" in answer.out
    )
    assert {name for name, _ in files_with(data, HER, SECRET)} == {str(segment.relative_to(data))}
