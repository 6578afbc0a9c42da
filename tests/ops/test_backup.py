"""Backups of folders whose jobs run in other processes, and what becomes of a start from the copy."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random, SystemRandom

import pytest

from streamactors.durable import appender
from streamactors.durable.files import RealDisk
from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.durable.store import Store
from streamactors.ops import backup, staging
from tests.ops.conftest import ROOT

FIRST = """
import streamactors as sa
p = sa.Pipeline("first")
numbers = p.topic("numbers", int).on_error("dead_letter")
numbers.map(lambda n: n * 2).to_topic("doubled", partitions=2)
numbers.key_by(lambda n: n % 7).count().to_view("counts")
"""
SECOND = """
import streamactors as sa
p = sa.Pipeline("second")
p.topic("doubled", int).map(lambda n: n + 1).to_topic("plus_one")
"""
CIRCLE = """
import sys
import streamactors as sa
source, sink = sys.argv[1:]
p = sa.Pipeline(f"{source}-{sink}")
p.topic(source, int).filter(lambda n: n < 1_000_000_000).map(lambda n: n + 1).to_topic(sink)
"""


@pytest.fixture
def programs(tmp_path):
    paths = {}
    for name, text in (("first", FIRST), ("second", SECOND), ("circle", CIRCLE)):
        paths[name] = tmp_path / f"{name}.py"
        paths[name].write_text(text)
    return paths


def apart(coroutine):
    """Run it in a thread of its own: the command that it comes in between may have a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def append(data_dir, values, partitions=2, name="numbers"):
    async def go():
        async with Log(data_dir) as log:
            topic = await log.create_topic(name, partitions)
            for number in range(partitions):
                await topic.partition(number).append(Records.of(values[number::partitions]))

    apart(go())


def contents(data_dir, name):
    """Return the values of each partition."""

    async def go():
        async with Log(data_dir) as log:
            topic = await log.topic(name)
            found = []
            for number in range(topic.partitions):
                values, reader = [], topic.partition(number).reader(await topic.partition(number).first_offset())
                while chunks := await reader.read():
                    values += [value for chunk in chunks for value in chunk.values()]
                await reader.close()
                found.append(values)
            return found

    return apart(go())


def view(data_dir, job, name):
    with Store.open(data_dir / "jobs" / job / "v1", read_only=True) as store:
        from streamactors.durable.views import ViewReader

        return dict(ViewReader(store)[name].items())


def until_end(spawn, programs, data_dir, *names):
    for name in names:
        process = spawn("run", programs[name], "--data", data_dir, "--until-end", "--no-progress")
        err = process.communicate()[1].decode()
        assert process.returncode == 0, err


def check_against_the_oracle(data_dir):
    """All that the jobs made is what plain Python makes of the copied input: nothing is missing, nothing is twice."""
    numbers = [value for values in contents(data_dir, "numbers") for value in values]
    good = [int(n) for n in numbers if n != b"x"]
    doubled = [int(value) for values in contents(data_dir, "doubled") for value in values]
    assert Counter(doubled) == Counter(n * 2 for n in good)
    assert Counter(int(n) for n in contents(data_dir, "plus_one")[0]) == Counter(n + 1 for n in doubled)
    assert view(data_dir, "first", "counts") == Counter(n % 7 for n in good)
    letters = [json.loads(letter) for letter in contents(data_dir, "dead-letters.first.numbers")[0]]
    assert len({(letter["partition"], letter["offset"]) for letter in letters}) == len(letters) == numbers.count(b"x")


# While jobs run. ------------------------------------------------------------------------------------------------------


@pytest.mark.crash
def test_each_of_many_copies_of_a_running_folder_is_as_good_as_a_crash(command, spawn, data_dir, programs, tmp_path):
    values = [b"x" if n % 50 == 17 else b"%d" % n for n in range(2_000)]
    append(data_dir, values)
    until_end(spawn, programs, data_dir, "first", "second")
    feed = spawn("log", "append", "--data", data_dir, "numbers", "--skip-bad", stdin=subprocess.PIPE)
    quick = ["--checkpoint-every", "3ms", "--no-progress"]
    jobs = [spawn("run", programs[name], "--data", data_dir, *quick) for name in ("first", "second")]
    for turn in range(6):
        for n in range(300):
            feed.stdin.write(b"%d\n" % (10_000 + 1_000 * turn + n))
        feed.stdin.flush()
        copy = tmp_path / f"copy{turn}"
        answer = command("backup", "--data", data_dir, copy)
        assert answer.code == 0, answer.err
        target = tmp_path / f"restored{turn}" if turn % 2 else copy  # a copy is a data folder, too
        if turn % 2:
            assert command("restore", copy, "--data", target).code == 0
        until_end(spawn, programs, target, "first", "second")
        check_against_the_oracle(target)
    feed.stdin.close()
    feed.wait()
    for job in jobs:
        job.terminate()
        assert job.wait() == 0, job.stderr.read()
    until_end(spawn, programs, data_dir, "first", "second")
    check_against_the_oracle(data_dir)


def test_a_commit_that_the_copied_state_does_not_know_is_left_out_and_made_again(
    command, spawn, data_dir, programs, tmp_path, monkeypatch
):
    """The job goes on between the copy of its state and that of the log: the worst moment, and made to happen."""
    append(data_dir, [b"%d" % n for n in range(100)])
    append(data_dir, [b"x"] * 2)
    until_end(spawn, programs, data_dir, "first", "second")
    before = list(map(len, contents(data_dir, "doubled")))

    copy_topic = backup._copy_topic
    moved = []

    def move_on_then_copy(*arguments):
        if not moved:
            moved.append(True)
            append(data_dir, [b"%d" % n for n in range(1_000, 1_100)])
            until_end(spawn, programs, data_dir, "first", "second")
        return copy_topic(*arguments)

    monkeypatch.setattr(backup, "_copy_topic", move_on_then_copy)
    assert command("backup", "--data", data_dir, tmp_path / "copy").code == 0

    copy = tmp_path / "copy"
    assert list(map(len, contents(copy, "doubled"))) == before < list(map(len, contents(data_dir, "doubled")))
    assert contents(copy, "numbers") == contents(data_dir, "numbers")
    until_end(spawn, programs, copy, "first", "second")
    check_against_the_oracle(copy)
    assert contents(copy, "doubled") == contents(data_dir, "doubled")  # (T1): the same, in the same order


def test_copy_and_original_are_different_incarnations(command, spawn, data_dir, programs, tmp_path):
    append(data_dir, [b"1", b"x"])
    until_end(spawn, programs, data_dir, "first")
    command("backup", "--data", data_dir, tmp_path / "copy")
    command("restore", tmp_path / "copy", "--data", tmp_path / "a")
    command("restore", tmp_path / "copy", "--data", tmp_path / "b")
    found = set()
    for folder in (data_dir, tmp_path / "copy", tmp_path / "a", tmp_path / "b"):
        with Store.open(folder / "jobs" / "first" / "v1", read_only=True) as store:
            found.add(store.identity().incarnation)
    assert len(found) == 4


def test_jobs_that_write_for_each_other_are_copied_whole_or_refused_by_name(
    command, spawn, data_dir, programs, tmp_path, monkeypatch
):
    append(data_dir, [b"1"], 1, "a")
    append(data_dir, [b"1"], 1, "b")

    def both():
        for source, sink in (("a", "b"), ("b", "a")):
            how = ["--data", data_dir, "--until-end", "--no-progress", "--", source, sink]
            process = spawn("run", programs["circle"], *how)
            assert process.communicate() and process.returncode == 0

    both()
    assert command("backup", "--data", data_dir, tmp_path / "quiet").code == 0

    copy_job, copied = backup._copy_job, []

    def move_on_after_the_first(*arguments):
        if copied:
            both()
        copied.append(True)
        return copy_job(*arguments)

    monkeypatch.setattr(backup, "_copy_job", move_on_after_the_first)
    answer = command("backup", "--data", data_dir, tmp_path / "moving")
    assert answer.code == 2 and "they write for each other. Stop one of them" in answer.err
    assert not (tmp_path / "moving" / "backup.json").exists()


def test_what_retention_removes_meanwhile_is_noticed(command, spawn, data_dir, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(appender, "SEGMENT_BYTES_MAX", 200)
    for n in range(10):
        append(data_dir, [b"%d" % n] * 4)
    until_end(spawn, programs, data_dir, "first")
    copy_topic, moved = backup._copy_topic, []

    def retain_then_copy(folder, *arguments):
        if not moved:
            moved.append(True)
            for n in range(10):
                append(data_dir, [b"%d" % n] * 4)
            until_end(spawn, programs, data_dir, "first")

            async def retain():
                async with Log(data_dir) as log:
                    await (await log.topic("numbers")).retain(max_bytes=0)

            apart(retain())
        return copy_topic(folder, *arguments)

    monkeypatch.setattr(backup, "_copy_topic", retain_then_copy)
    answer = command("backup", "--data", data_dir, tmp_path / "copy")
    assert answer.code == 5 and "Make the backup again" in answer.err
    answer = command("backup", "--data", data_dir, tmp_path / "copy")  # it leaves nothing that is in the way
    assert answer.code == 0
    until_end(spawn, programs, tmp_path / "copy", "first")


# What is refused. -----------------------------------------------------------------------------------------------------


def test_a_damaged_frame_is_not_copied_in_silence(command, data_dir, tmp_path):
    append(data_dir, [b"%d" % n for n in range(100)], 1)
    (segment,) = (data_dir / "log" / "numbers" / "0").glob("*.segment")
    bad = bytearray(segment.read_bytes())
    bad[-10] ^= 1
    segment.write_bytes(bad)
    answer = command("backup", "--data", data_dir, tmp_path / "copy")
    assert answer.code == 5 and str(segment) in answer.err and "does not check out" in answer.err
    assert list((tmp_path / "copy").iterdir()) == []


def test_what_makes_no_sense_is_refused(command, data_dir, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    nothing = command("backup", "--data", data_dir, tmp_path / "copy")
    assert nothing.code == 2 and "is no data folder" in nothing.err
    append(data_dir, [b"1"], 1)
    for arguments, code, message in [
        (["backup", "--data", tmp_path / "no", tmp_path / "copy"], 2, "there is no folder"),
        (["backup", "--data", data_dir, data_dir / "copy"], 2, "lies inside"),
        (["backup", "--data", data_dir, full], 2, "is not empty: mine"),
        (["backup", "--data", data_dir, full / "mine"], 2, "is no folder"),
        (["backup", "--data", data_dir], 2, "Missing argument"),
        (["restore", data_dir, "--data", tmp_path / "r"], 2, "is no backup: there is no backup.json"),
        (["restore", tmp_path / "no", "--data", tmp_path / "r"], 2, "is no backup"),
    ]:
        answer = command(*arguments)
        assert (answer.code, message in answer.err) == (code, True), answer
        assert "Traceback" not in answer.err and len(answer.err.splitlines()) == 1
    assert not (tmp_path / "r").exists()
    assert command("backup", "--data", data_dir, tmp_path / "copy").code == 0
    assert command("restore", tmp_path / "copy", "--data", full).code == 2
    assert command("restore", tmp_path / "copy", "--data", data_dir).code == 2
    assert [path.name for path in full.iterdir()] == ["mine"]


def test_two_at_a_time_are_refused_with_the_pid(command, data_dir, tmp_path):
    append(data_dir, [b"1"], 1)
    lock = RealDisk().lock(data_dir / "maintenance.lock")
    for arguments in (
        ["backup", "--data", data_dir, tmp_path / "copy"],
        ["log", "retain", "--data", data_dir, "numbers", "--older-than", "1d"],
        ["log", "delete", "--data", data_dir, "numbers", "--yes"],
    ):
        answer = command(*arguments)
        assert answer.code == 4 and "maintenance.lock is in use by process" in answer.err
    lock.release()


@pytest.mark.parametrize("change", ["flip", "cut", "lose", "path", "manifest", "format"])
def test_a_backup_that_is_not_as_it_was_written_is_not_restored(command, data_dir, tmp_path, change):
    append(data_dir, [b"%d" % n for n in range(100)], 1)
    copy = tmp_path / "copy"
    command("backup", "--data", data_dir, copy)
    (segment,) = (copy / "log" / "numbers" / "0").glob("*.segment")
    manifest, data = copy / "backup.json", segment.read_bytes()
    match change:
        case "flip":
            segment.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        case "cut":
            segment.write_bytes(data[:-1])
        case "lose":
            segment.unlink()
        case "path":
            manifest.write_text(manifest.read_text().replace("log/numbers/topic.json", "log/../../topic.json"))
        case "manifest":
            manifest.write_text(manifest.read_text()[:-20])
        case "format":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    answer = command("restore", copy, "--data", tmp_path / "r")
    assert answer.code == (2 if change == "format" else 5), answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "r").exists() or {path.name for path in (tmp_path / "r").iterdir()} <= {"maintenance.lock"}


# Killed. --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class DyingDisk:
    """A disk whose n-th change never comes: the process has died before it."""

    def __init__(self, inner, left):
        self._inner, self._left = inner, left

    def __getattr__(self, name):
        call = getattr(self._inner, name)
        if name not in {"open", "write", "sync", "rename", "sync_folder"}:
            return call

        def counted(*arguments, **flags):
            self._left[0] -= 1
            if self._left[0] < 0:
                raise Killed
            result = call(*arguments, **flags)
            return DyingDisk(result, self._left) if name == "open" else result

        return counted


@pytest.fixture
def dying(monkeypatch):
    """Kill what copies at its n-th change of the disk: nothing is tidied up behind it."""

    def die(n, run):
        """Return how many changes there would have been to come; negative when it was killed."""
        left = [n]
        with monkeypatch.context() as patched:
            patched.setattr(staging, "RealDisk", lambda: DyingDisk(RealDisk(), left))
            patched.setattr(staging.Staging, "give_up", lambda self: None)
            with suppress(Killed):
                run()
        return left[0]

    return die


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.crash
def test_a_copy_that_is_killed_anywhere_is_none_and_the_same_command_completes_it(
    command, spawn, data_dir, programs, tmp_path, dying, record_property
):
    seed = SystemRandom().getrandbits(32)
    record_property("said", f"seed {seed}")
    append(data_dir, [b"%d" % n for n in range(40)] + [b"x"])
    until_end(spawn, programs, data_dir, "first", "second")
    copy, target = tmp_path / "copy", tmp_path / "target"

    def back_up():
        return command("backup", "--data", data_dir, copy)

    def restore():
        return command("restore", copy, "--data", target)

    for n in chosen(Random(seed), 10**6 - dying(10**6, back_up)):
        shutil.rmtree(copy)
        assert dying(n, back_up) < 0
        if not (copy / "backup.json").exists():
            assert restore().code == 2
            assert back_up().code == 0
        assert restore().code == 0
        shutil.rmtree(target)
    total = 10**6 - dying(10**6, restore)
    for n in chosen(Random(seed), total):
        shutil.rmtree(target)
        assert dying(n, restore) < 0
        again = restore()
        assert again.code == 0 or ("is not empty" in again.err and not staging.interrupted(target)), again.err
        assert sorted(path.name for path in target.iterdir()) == ["jobs", "log", "maintenance.lock"]
    until_end(spawn, programs, target, "first", "second")
    check_against_the_oracle(target)


def chosen(random, total):
    """The last changes, by which the copy becomes one, and some of those before."""
    assert total > 30
    return [*range(total - 16, total), *random.sample(range(total - 16), 12)]


def test_a_restore_of_another_backup_does_not_complete_an_interrupted_one(command, data_dir, tmp_path, monkeypatch):
    append(data_dir, [b"1"], 1)
    command("backup", "--data", data_dir, tmp_path / "one")
    append(data_dir, [b"2"], 1)
    command("backup", "--data", data_dir, tmp_path / "two")
    with monkeypatch.context() as patched:
        patched.setattr(staging, "finish", lambda folder: None)
        command("restore", tmp_path / "one", "--data", tmp_path / "r")
    answer = command("restore", tmp_path / "two", "--data", tmp_path / "r")
    assert answer.code == 2 and "unfinished restore of another backup" in answer.err
    assert command("restore", tmp_path / "one", "--data", tmp_path / "r").code == 0
    assert contents(tmp_path / "r", "numbers") == [[b"1"]]


# What it costs and shows. ---------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_folder(data_dir, tmp_path):
    append(data_dir, [b'"%s"' % (b"y" * 1_000)] * 8_000, 1)
    segment = next((data_dir / "log" / "numbers" / "0").glob("*.segment"))
    for _ in range(12):
        append(data_dir, [b'"%s"' % (b"y" * 1_000)] * 8_000, 1)
    assert segment.stat().st_size > 60_000_000
    code = (
        "import resource, sys\nfrom streamactors.ops import cli\nimport streamactors.ops.backup_commands\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert cli.invoke(sys.argv[1:]) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    for arguments in (
        ["backup", "--data", data_dir, tmp_path / "copy"],
        ["restore", tmp_path / "copy", "--data", tmp_path / "r"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        grown = int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1_024)
        assert grown < 60_000_000, f"{arguments[0]} of 104 MB took {grown:,} bytes of memory"
    assert contents(tmp_path / "r", "numbers") == contents(data_dir, "numbers")


def test_progress_is_shown_when_asked_for_and_json_says_what_there_is(command, data_dir, tmp_path):
    append(data_dir, [b"1", b"2", b"3"], 1)
    answer = command("backup", "--data", data_dir, tmp_path / "copy", "--progress", "--json")
    assert "copied" in answer.err and "numbers" in answer.err
    told = json.loads(answer.out)
    assert (told["topics"], told["jobs"], told["files"]) == ({"numbers": [[0, 3]]}, {}, 2)
    answer = command("restore", tmp_path / "copy", "--data", tmp_path / "r")
    assert answer.err == "" and answer.out.startswith(b"restored ")


def test_what_sources_and_partitions_have_noted_is_copied_too(command, data_dir, tmp_path):
    append(data_dir, [b"1"], 1)
    (data_dir / "sources").mkdir()
    (data_dir / "sources" / "clock.1s.ticks").write_bytes(b"noted")
    (data_dir / "sources" / "clock.1s.ticks.lock").write_bytes(b"1")
    (data_dir / "savepoints" / "quiz").mkdir(parents=True)
    (data_dir / "savepoints" / "quiz" / "one").write_bytes(b"saved")
    (data_dir / "savepoints" / "quiz" / "two.unfinished").write_bytes(b"sa")
    (data_dir / "log" / "numbers" / "0" / "erasures.json").write_text('{"erasures":[],"format":1}')
    command("backup", "--data", data_dir, tmp_path / "copy")
    command("restore", tmp_path / "copy", "--data", tmp_path / "r")
    copied = sorted(str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert copied == [
        "log/numbers/0/00000000000000000000.segment",
        "log/numbers/0/erasures.json",
        "log/numbers/topic.json",
        "maintenance.lock",
        "savepoints/quiz/one",
        "sources/clock.1s.ticks",
    ]
