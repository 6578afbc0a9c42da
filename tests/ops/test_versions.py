"""Versions from the command line: replay, diff, promote, roll back, retire; exit codes, JSON, real processes."""

import json
import signal
import subprocess
import sys
import time
from math import inf
from pathlib import Path
from random import Random

import pytest

from streamactors.durable.store import Restored
from streamactors.job.folders import job_folder
from streamactors.ops.replay_progress import Chase, Course, Sample, bytes_before

ROOT = Path(__file__).parents[2]
RULE = """
import streamactors as sa
pipeline = sa.Pipeline("quiz")
answers = pipeline.topic("answers").event_time("at", disorder=50, idle_after="100ms")
points = answers.map(lambda a: {{"quiz": a["quiz"], "at": a["at"], "points": {rule}}}, name="points")
by_quiz = points.key_by("quiz")
by_quiz.aggregate(points=sa.sum("points")).to_view("points")
by_quiz.map(lambda a: {{"quiz": a["quiz"], "points": 2 * a["points"]}}, name="twice").key_by("quiz").aggregate(
    points=sa.sum("points")
).to_view("twice")
by_quiz.window(sa.Tumbling(1000)).early(every="100ms").count().to_view("windows")
points.to_topic("graded")
"""
WRONG, RIGHT = "int(a['points'])", "a['points']"


@pytest.fixture
def program(tmp_path):
    def write(name, rule):
        path = tmp_path / name
        path.write_text(RULE.format(rule=rule))
        return path

    return write


def answers(count, start=0):
    return b"".join(
        b'{"quiz":"%c","at":%d,"points":%s}\n' % (b"abc"[n % 3], 7 * n, b"1.5" if n % 5 == 0 else b"1.0")
        for n in range(start, start + count)
    )


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def rows(answer):
    return [json.loads(line) for line in answer.lines]


def shown(command, data_dir, view, *more):
    answer = command("view", "show", "--data", data_dir, view, "--json", *more)
    assert answer.code == 0, answer.err
    return {str(row["key"]): row["value"] for row in rows(answer)}


@pytest.fixture
def served(command, spawn, data_dir, program):
    """A data folder in which v1 has counted 300 answers by the wrong rule, and does not run."""
    command("log", "append", "--data", data_dir, "answers", file=answers(300))
    code, _, err = ended(spawn("run", program("wrong.py", WRONG), "--data", data_dir, "--until-end"))
    assert code == 0, err
    return data_dir


@pytest.fixture
def replayed(served, spawn, program):
    """The same, with v2 beside it that knows the right rule."""
    code, out, err = ended(spawn("replay", program("right.py", RIGHT), "--data", served, "--as", "v2"))
    assert code == 0, err
    assert "quiz: caught up; 300 records" in out
    return served


def test_the_whole_story_of_a_wrong_rule(command, replayed):
    (first, second) = rows(command("versions", "--data", replayed, "quiz", "--json"))
    assert (first["version"], first["serving"], first["state"], first["follows"]) == ("v1", True, "stopped", None)
    assert (second["version"], second["serving"], second["lag_records"], second["follows"]) == ("v2", False, 0, "v1")
    assert (
        first["position"] and first["position"]["answers"]["partitions"] == second["position"]["answers"]["partitions"]
    )
    assert first["code"].endswith("wrong.py") and second["code"].endswith("right.py") and len(second["digest"]) == 64

    answer = command("diff", "--data", replayed, "quiz", "v1", "v2", "--json")
    assert answer.code == 1
    *changed, total = rows(answer)
    assert total == {"equal": False, "added": 0, "removed": 0, "changed": 6, "only_in": {}, "erased_records": {}}
    assert [(c["view"], c["key"], c["change"]) for c in changed] == [
        (view, key, "changed") for view in ("points", "twice") for key in "abc"
    ]
    assert changed[0]["old"] == {"points": 100} and changed[0]["new"] == {"points": 110.0}
    assert command("diff", "--data", replayed, "quiz", "v1", "v2", "--view", "windows").code == 0

    assert shown(command, replayed, "points")["a"] == {"points": 100}
    assert shown(command, replayed, "points", "--version", "v2")["a"] == {"points": 110.0}
    answer = command("promote", "--data", replayed, "quiz", "v2")
    assert (answer.code, answer.out) == (0, b"quiz: v2 is served\n")
    assert command("promote", "--data", replayed, "quiz", "v2").out == b"quiz: v2 is served already\n"
    assert shown(command, replayed, "points")["a"] == {"points": 110.0}
    assert b'"points":1.5' in command("log", "read", "--data", replayed, "graded").out
    assert b'"points":1.5' not in command("log", "read", "--data", replayed, "graded.v1").out

    answer = command("retire", "--data", replayed, "quiz", "v2")
    assert answer.code == 2 and "served, or about to be" in answer.err
    assert command("rollback", "--data", replayed, "quiz").out == b"quiz: v1 is served\n"
    assert shown(command, replayed, "points")["a"] == {"points": 100}
    assert b'"points":1.5' not in command("log", "read", "--data", replayed, "graded").out
    answer = command("rollback", "--data", replayed, "quiz")
    assert answer.code == 0 and b"no other version before it" in answer.out

    assert command("retire", "--data", replayed, "quiz", "v2").code == 0
    assert not list(job_folder(replayed, "quiz").glob("*v2*"))
    assert not list((replayed / "log").glob("*v2*"))
    assert command("retire", "--data", replayed, "quiz", "v2").code == 2
    assert [row["version"] for row in rows(command("versions", "--data", replayed, "--json"))] == ["v1"]


def test_an_unchanged_program_gives_an_empty_diff(command, spawn, served, program):
    code, _, err = ended(spawn("replay", program("again.py", WRONG), "--data", served, "--as", "v2"))
    assert code == 0, err
    answer = command("diff", "--data", served, "quiz", "v1", "v2", "--json")
    assert answer.code == 0
    assert rows(answer) == [
        {"equal": True, "added": 0, "removed": 0, "changed": 0, "only_in": {}, "erased_records": {}}
    ]


def test_a_version_that_is_behind_is_not_promoted_and_the_error_says_what_to_run(command, spawn, replayed, program):
    command("log", "append", "--data", replayed, "answers", file=answers(50, 300))
    assert ended(spawn("run", program("wrong.py", WRONG), "--data", replayed, "--until-end"))[0] == 0
    answer = command("promote", "--data", replayed, "quiz", "v2")
    assert answer.code == 2
    assert "v2 does not run, and is 50 records behind v1" in answer.err and "streamactors replay" in answer.err
    assert rows(command("versions", "--data", replayed, "--json"))[1]["handover"] is None
    answer = command("diff", "--data", replayed, "quiz", "v1", "v2", "--timeout", "0.1")
    assert answer.code == 2 and "v2 is 50 records behind v1" in answer.err
    assert ended(spawn("replay", program("right.py", RIGHT), "--data", replayed, "--as", "v2"))[0] == 0
    assert command("promote", "--data", replayed, "quiz", "v2").code == 0


def test_what_makes_no_sense_is_refused(command, spawn, replayed, program):
    replay = ("replay", program("other.py", "7"), "--data", replayed)
    for more, said in [
        (("--as", "v1"), "v1 is the version that is served"),
        (("--as", "v2"), "is other code now"),
        (("--as", "v3", "--from", "1970-01-01"), "is known before 0 (1970-01-01T00:00:00.000Z)"),
    ]:
        code, _, err = ended(spawn(*replay, *more))
        assert code == 2 and said in err, err
    for arguments, said in [
        (("promote", "quiz", "v9"), "no version v9; its versions are v1, v2"),
        (("diff", "quiz", "v1", "v9"), "no version v9"),
        (("diff", "quiz", "v1", "v2", "--view", "none"), "has a view none. Views there: points, twice, windows"),
        (("rollback", "nobody"), "no job nobody"),
        (("retire", "quiz", "v9"), "no version v9"),
        (("retire", "quiz", "v1"), "served, or about to be"),
    ]:
        answer = command(arguments[0], "--data", replayed, *arguments[1:])
        assert answer.code == 2 and said in answer.err, answer.err


@pytest.mark.parametrize("label", ["", ".", "..", "../quiz/v1", "versions.json"])
def test_what_is_no_label_is_neither_retired_nor_run(command, spawn, replayed, program, label):
    """An empty variable in a script must not mean the folder of the whole job, nor the version that is served."""
    answer = command("retire", "--data", replayed, "quiz", label)
    assert answer.code == 2 and "can't be the name of a version" in answer.err, answer.err
    for what in ("replay", "run"):
        code, _, err = ended(spawn(what, program("other.py", "7"), "--data", replayed, "--as", label))
        assert code == 2 and "can't be the name of a version" in err, err
    assert shown(command, replayed, "points") and shown(command, replayed, "points", "--version", "v2")


def test_a_version_that_runs_takes_over_from_one_that_does_not_and_the_other_way_round(
    command, spawn, replayed, program
):
    second = spawn("run", program("right.py", RIGHT), "--data", replayed, "--as", "v2")
    until(lambda: [row["state"] for row in listed(command, replayed)] == ["stopped", "running"])
    assert command("promote", "--data", replayed, "quiz", "v2").code == 0
    command("log", "append", "--data", replayed, "answers", file=answers(50, 300))
    until(lambda: [offset_of(row) for row in listed(command, replayed)] == [300, 350])
    answer = command("promote", "--data", replayed, "quiz", "v1")
    assert answer.code == 2 and "v1 does not run, and is 50 records behind v2" in answer.err
    first = spawn("run", program("wrong.py", WRONG), "--data", replayed, "--as", "v1")
    until(lambda: [offset_of(row) for row in listed(command, replayed)] == [350, 350])
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert command("rollback", "--data", replayed, "quiz").code == 0
    command("log", "append", "--data", replayed, "answers", file=answers(50, 350))
    until(lambda: [offset_of(row) for row in listed(command, replayed)] == [400, 350])
    first.send_signal(signal.SIGTERM)
    code, _, err = ended(first)
    assert code == 0, err


def test_a_promotion_that_takes_too_long_is_withdrawn(command, spawn, replayed, program):
    command("log", "append", "--data", replayed, "answers", file=answers(50, 300))
    stopped = spawn("run", program("right.py", RIGHT), "--data", replayed, "--as", "v2")
    until(lambda: listed(command, replayed)[1]["state"] == "running")
    stopped.send_signal(signal.SIGSTOP)  # it runs, and does nothing
    assert ended(spawn("run", program("wrong.py", WRONG), "--data", replayed, "--until-end"))[0] == 0
    answer = command("promote", "--data", replayed, "quiz", "v2", "--timeout", "0.3")
    assert answer.code == 1 and "v2 was not served within 0.3 s; it is 50 records behind v1" in answer.err
    assert listed(command, replayed)[1]["handover"] is None


def listed(command, data_dir):
    return rows(command("versions", "--data", data_dir, "--json"))


def test_a_promotion_while_both_run_loses_and_repeats_nothing(command, spawn, served, program):
    first = spawn("run", program("wrong.py", WRONG), "--data", served, "--as", "v1")
    second = spawn("run", program("right.py", RIGHT), "--data", served, "--as", "v2")
    until(lambda: [row["state"] for row in listed(command, served)] == ["running", "running"])
    count = 300
    for label in ("v2", "v1", "v2"):
        command("log", "append", "--data", served, "answers", file=answers(50, count))
        count += 50
        answer = command("promote", "--data", served, "quiz", label)
        assert answer.code == 0, answer.err
        command("log", "append", "--data", served, "answers", file=answers(50, count))
        count += 50
    for process in (first, second):
        assert process.poll() is None, ended(process)
    until(lambda: [offset_of(row) for row in listed(command, served)] == [count, count])
    assert command("diff", "--data", served, "quiz", "v1", "v2", "--view", "windows").code == 0
    for process in (second, first):
        process.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
        assert code == 0, err
    for topic in ("graded", "graded.v1"):
        graded = sorted(json.loads(line)["at"] for line in command("log", "read", "--data", served, topic).lines)
        assert graded == [7 * n for n in range(count)]


def offset_of(row):
    return sum(part["offset"] for region in row["position"].values() for part in region["partitions"])


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


READER = """
import json, sys
from pathlib import Path
import streamactors as sa
data_dir, stop = sys.argv[1], Path(sys.argv[2])
seen, reads = set(), 0
with sa.open_views(data_dir, "quiz") as views:
    while not stop.exists():
        with views.snapshot() as view:
            points, twice = (sum(value["points"] for _, value in view(name).items()) for name in ("points", "twice"))
        assert twice == 2 * points, f"a mixture: {points} and {twice}"
        assert sum(1 for _ in views["points"].items()) == 3
        seen.add(points)
        reads += 1
        print(points, flush=True) if reads == 1 else None
print(json.dumps({"reads": reads, "seen": sorted(seen)}))
"""


def test_readers_see_one_version_at_a_time_across_views_and_never_fail(command, replayed, tmp_path):
    """In v2 each quiz has more points than in v1; what one snapshot shows is the sum of one of them, in all views."""
    stop = tmp_path / "stop"
    start = [sys.executable, "-c", READER, str(replayed), str(stop)]
    readers = [subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == b"300\n"
        for _ in range(10):
            for label in ("v2", "v1"):
                assert command("promote", "--data", replayed, "quiz", label).code == 0
    finally:
        stop.touch()
        answers = [ended(reader) for reader in readers]
    for code, out, err in answers:
        assert code == 0, err
        told = json.loads(out)
        assert told["seen"] == [300, 330.0], told
        assert told["reads"] > 20


def test_records_that_were_erased_are_named_by_a_diff(command, spawn, served, program):
    forgotten = command("forget", "--data", served, "a", "--field", "quiz", "--topic", "answers", "--yes")
    assert forgotten.code == 0, forgotten.err
    code, _, err = ended(spawn("replay", program("again.py", WRONG), "--data", served, "--as", "v2"))
    assert code == 0, err
    *_, total = rows(command("diff", "--data", served, "quiz", "v1", "v2", "--json"))
    assert total["erased_records"] == {"answers": 100} and total["removed"] > 0


def test_a_version_that_one_program_lacks_a_view_of_is_told(command, spawn, served, program, tmp_path):
    path = program("more.py", WRONG)
    path.write_text(path.read_text() + 'by_quiz.count().to_view("counts")\n')
    code, _, err = ended(spawn("replay", path, "--data", served, "--as", "v2"))
    assert code == 0, err
    answer = command("diff", "--data", served, "quiz", "v1", "v2")
    assert answer.code == 1 and b"only v2 has counts; not compared" in answer.out


def test_a_promotion_is_refused_while_another_job_reads_what_is_exchanged(command, spawn, replayed, tmp_path):
    path = tmp_path / "reading.py"
    path.write_text(
        "import streamactors as sa\n"
        'pipeline = sa.Pipeline("reading")\n'
        'pipeline.topic("graded").key_by("quiz").count().to_view("read")\n'
    )
    assert ended(spawn("run", path, "--data", replayed, "--until-end"))[0] == 0
    answer = command("promote", "--data", replayed, "quiz", "v2")
    assert answer.code == 2 and "reading/v1 reads graded" in answer.err
    assert command("promote", "--data", replayed, "quiz", "v2", "--force").code == 0


def test_a_replay_that_keeps_following_ends_when_it_is_promoted_or_stopped(command, spawn, served, program):
    first = spawn("run", program("wrong.py", WRONG), "--data", served)
    replay = ("replay", program("right.py", RIGHT), "--data", served, "--as", "v2", "--keep-following")
    second = spawn(*replay)
    until(lambda: [offset_of(row) for row in listed(command, served)] == [300, 300])
    command("log", "append", "--data", served, "answers", file=answers(50, 300))
    until(lambda: [offset_of(row) for row in listed(command, served)] == [350, 350])
    second.send_signal(signal.SIGINT)
    code, out, err = ended(second)
    assert (code, "drained" in out or "caught up" in out) == (0, True), err
    third = spawn(*replay)
    until(lambda: listed(command, served)[1]["state"] == "running")
    answer = command("promote", "--data", served, "quiz", "v2")
    assert answer.code == 0, answer.err
    code, out, err = ended(third)
    assert code == 0 and "is served now, and this replay is over" in out, err
    first.send_signal(signal.SIGTERM)
    assert ended(first)[0] == 0


def test_dead_letters_take_part_as_topics_do(command, spawn, served, program):
    path = program("strict.py", "1 / (a['at'] % 700)")
    path.write_text(path.read_text().replace('name="points")', 'name="points").on_error("dead_letter")'))
    code, _, err = ended(spawn("replay", path, "--data", served, "--as", "v2"))
    assert code == 0, err
    topic = "dead-letters.quiz.answers"
    assert len(command("log", "read", "--data", served, f"{topic}.v2").lines) == 3
    assert command("promote", "--data", served, "quiz", "v2").code == 0
    assert len(command("log", "read", "--data", served, topic).lines) == 3
    assert command("rollback", "--data", served, "quiz").code == 0
    assert command("log", "read", "--data", served, topic).code == 2
    assert len(command("log", "read", "--data", served, f"{topic}.v2").lines) == 3


def test_a_replay_that_is_killed_goes_on_from_its_checkpoint(command, spawn, data_dir, program):
    command("log", "append", "--data", data_dir, "answers", file=answers(30_000))
    assert ended(spawn("run", program("wrong.py", WRONG), "--data", data_dir, "--until-end"))[0] == 0
    replay = ("replay", program("right.py", RIGHT), "--data", data_dir, "--as", "v2", "--checkpoint-every", "10ms")
    kills = 0
    while True:
        process = spawn(*replay, "--batch-records", "64")
        try:
            process.wait(timeout=0.9)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    code, out, err = ended(process)
    assert code == 0, err
    assert b"graded" not in out.encode() and "caught up" in out
    assert command("diff", "--data", data_dir, "quiz", "v1", "v2", "--view", "windows").code == 0
    graded = sorted(json.loads(line)["at"] for line in command("log", "read", "--data", data_dir, "graded.v2").lines)
    assert graded == [7 * n for n in range(30_000)]


# How far a replay is: pure. -------------------------------------------------------------------------------------------


def standing(epoch, offset, entries=1):
    part = {"source": "answers", "partition": 0, "offset": offset, "time_max": offset}
    return {"answers": Restored("answers", 1, epoch, {"partitions": [part], "entries": entries}, 0)}


def test_a_version_that_does_not_move_has_to_be_reached():
    chase = Chase()
    goal = standing(9, 100, entries=2)
    assert not chase.caught_up({}, goal)
    assert not chase.caught_up(standing(1, 99, entries=2), goal)
    assert not chase.caught_up(standing(1, 100, entries=1), goal)
    assert chase.caught_up(standing(2, 100, entries=2), goal)


def test_one_that_runs_is_caught_up_with_when_no_more_than_its_newest_checkpoint_is_left():
    chase = Chase()
    assert not chase.caught_up(standing(1, 50), standing(9, 100))
    assert not chase.caught_up(standing(1, 90), standing(10, 200))
    assert chase.caught_up(standing(2, 100), standing(10, 200))
    assert not chase.caught_up(standing(2, 100), standing(11, 300))


def test_the_time_left_is_by_what_the_goal_leaves_of_the_rate():
    course = Course()
    course.add(Sample(0.0, 0, 1_000, 0))
    assert course.seconds_left is None
    course.add(Sample(2.0, 400, 1_200, 4))
    assert course.seconds_left == pytest.approx(800 / 100)
    assert course.records_rate == 2
    course.add(Sample(4.0, 500, 1_500, 5))
    assert course.seconds_left == inf
    course.add(Sample(20.0, 1_600, 1_600, 16))
    assert course.seconds_left == 0
    assert course.text() == "100.0% of 1,600 bytes, 1 records/s, nothing left"


@pytest.mark.parametrize(("offset", "expected"), [(0, 0), (5, 50), (10, 100), (15, 300), (20, 500), (99, 500)])
def test_bytes_before_an_offset_are_those_of_whole_segments_and_a_share_of_its_own(offset, expected):
    assert bytes_before([(0, 100), (10, 400)], 20, offset) == expected


# From a time. ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(command, data_dir, program):
    """A data folder in which v1 has counted 1,200 answers by the wrong rule, in twelve pieces."""
    for piece in range(12):
        command("log", "append", "--data", data_dir, "answers", file=answers(100, 100 * piece))
        answer = command("run", program("wrong.py", WRONG), "--data", data_dir, "--until-end", "--no-progress")
        assert answer.code == 0, answer.err
    return data_dir


def test_a_replay_from_a_time_is_compared_where_it_can_be_and_served_only_by_force(command, spawn, grown, program):
    again = ("replay", program("again.py", WRONG), "--data", grown, "--as", "v2")
    code, _, err = ended(spawn(*again, "--from", "1970-01-01T00:00:04.000Z"))
    assert code == 0, err
    (first, second) = listed(command, grown)
    since = second["covers_from"]["answers"]
    assert (first["since"], first["covers_from"], second["since"]) == ("earliest", {"answers": None}, 4_000)
    assert 2_000 < since <= 4_000
    answer = command("diff", "--data", grown, "quiz", "v1", "v2", "--json")
    covers = {"points": None, "twice": None, "windows": since}
    assert (answer.code, rows(answer)[-1]["equal"], rows(answer)[-1]["covers_from"]) == (0, True, covers)
    answer = command("diff", "--data", grown, "quiz", "v1", "v2")
    assert (
        b"points: not compared" in answer.out and b"windows: compared are windows from 1970-01-01T00:00:0" in answer.out
    )
    answer = command("diff", "--data", grown, "quiz", "v1", "v2", "--view", "points")
    assert answer.code == 2 and "v2 began at a time, and nothing in points can be compared" in answer.err
    answer = command("promote", "--data", grown, "quiz", "v2")
    assert answer.code == 2 and "windows has no window before 1970-01-01T00:00:0" in answer.err
    assert command("promote", "--data", grown, "quiz", "v2", "--force").code == 0
    assert command("rollback", "--data", grown, "quiz").code == 0
    assert ended(spawn(*again))[0] == 0
    for since, said in [("earliest", "v2 began at 4000"), ("4001", "v2 began at 4000"), ("noon", "this is no time")]:
        code, _, err = ended(spawn(*again, "--from", since))
        assert code == 2 and said in err, err
    code, _, err = ended(spawn(*again[:-1], "v3", "--from", "-5"))
    assert code == 2 and "no position of region answers is known before -5" in err and "--from earliest" in err


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_from_a_time_that_is_killed_goes_on(command, spawn, grown, program, seed):
    random = Random(seed)
    rule = "a['points'] if a['at'] % 5 else 0"
    again = ("replay", program("again.py", rule.replace("'", '"')), "--data", grown, "--no-progress")
    more = ("--as", "v2", "--from", str(random.randint(1_500, 8_000)), "--checkpoint-every", "5ms")
    for _ in range(6):
        process = spawn(*again, *more)
        time.sleep(random.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, err = ended(spawn(*again, *more))
    assert code == 0, err
    answer = command("diff", "--data", grown, "quiz", "v1", "v2", "--json")
    assert answer.code == 0 and rows(answer)[-1]["equal"], "what is counted does not depend on points"
    since = listed(command, grown)[1]["covers_from"]["answers"]
    its = [
        row["key"][1] for row in rows(command("view", "show", "--data", grown, "windows", "--version", "v2", "--json"))
    ]
    mine = [row["key"][1] for row in rows(command("view", "show", "--data", grown, "windows", "--json"))]
    assert sorted(its) == sorted(start for start in mine if start >= since) and its
