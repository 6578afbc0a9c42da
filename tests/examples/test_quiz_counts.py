import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from streamactors.core.errors import UsageError
from streamactors.durable.store import Store
from tests.examples.conftest import ENVIRONMENT, ROOT

EXAMPLE = "examples/quiz_counts.py"
MINUTE = 60_000
WINDOW = LATENESS = 10 * MINUTE
STEP = 10 * MINUTE
DISORDER = MINUTE
BEGINNING = -(2**63)


def counted(lines):
    """Of one partition: one range, from its beginning to its end."""
    return counted_by([{"kind": "read", "partition": 0, "first": 0, "end": len(lines)}], [lines])


def counted_by(journal, partitions):
    """
    Return what the example has to find, by the rule of docs/cli.md: the views, and the lines that are too late.

    *journal* has its entries, *partitions* the lines of each.
    """
    counts, late, scores = Counter(), [], defaultdict(list)
    greatest = dict.fromkeys(range(len(partitions)), BEGINNING)
    horizon = BEGINNING
    for entry in journal:
        assert entry["kind"] in ("read", "clock", "flush")  # in a run until the end no partition is idle
        for line in partitions[entry["partition"]][entry["first"] : entry["end"]] if entry["kind"] == "read" else ():
            submission = json.loads(line)
            quiz, at = submission["quiz_id"], submission["submitted_at"]
            scores[quiz].append(float(submission["score"]))
            start = at - at % WINDOW
            if start + WINDOW + LATENESS <= horizon:
                late.append(line)
            else:
                counts[quiz, start] += 1
            greatest[entry["partition"]] = max(greatest[entry["partition"]], at)
            if BEGINNING not in greatest.values():
                reach = min(greatest.values()) - DISORDER
                horizon = max(horizon, reach - reach % STEP)
    totals = {quiz: {"count": len(of), "mean_score": pytest.approx(sum(of) / len(of))} for quiz, of in scores.items()}
    return dict(counts), totals, late


def submissions(count: int) -> list[str]:
    """Out of order by seconds, minutes and hours; with fields and forms that the example did not expect."""
    chance = random.Random(7)
    lines = []
    for n in range(count):
        delay = chance.choice([0, 5_000, 30_000, 15 * MINUTE, 3 * 60 * MINUTE]) if chance.random() < 0.3 else 0
        submission = {
            "submission_id": n // 2,  # repeated ids count
            "quiz_id": chance.choice(["algebra", "biology", "日本語"]),
            "user_id": n,
            "score": chance.choice([n % 101, 0.5]),  # an int is a score, too
            "comment": 'two\nlines, "quoted"',
            "submitted_at": 1_700_000_000_000 + n * 10_000 - delay,
            **({"unknown": {"kept": [n]}} if n % 3 else {}),
        }
        lines.append(json.dumps(submission, ensure_ascii=bool(n % 2)))
    return lines


def check(view, streamactors, data_dir, lines):
    counts, totals, late = counted(lines)
    assert view("quiz_counts") == counts
    assert view("quiz_totals") == totals
    assert streamactors("log", "read", "--data", data_dir, "late").splitlines() == late
    assert sum(counts.values()) + len(late) == len(lines)
    return late


def test_submissions_of_a_users_own_are_counted_and_late_ones_are_kept_whole(streamactors, view, data_dir):
    lines = submissions(3_000)
    streamactors("log", "append", "--data", data_dir, "submissions", stdin="\n".join(lines))

    streamactors("run", EXAMPLE, "--data", data_dir, "--until-end")

    late = check(view, streamactors, data_dir, lines)
    assert len(late) > 50 and any("unknown" in line for line in late)


def test_a_stop_and_more_submissions_equal_one_run(streamactors, view, data_dir):
    lines = submissions(2_000)
    for part in (lines[:700], lines[700:]):
        streamactors("log", "append", "--data", data_dir, "submissions", stdin="\n".join(part))
        streamactors("run", EXAMPLE, "--data", data_dir, "--until-end", "--checkpoint-every", "20ms")

    check(view, streamactors, data_dir, lines)


def test_with_four_partitions_the_journal_says_which_submissions_were_late(streamactors, view, data_dir):
    lines = submissions(4_000)
    append = ("log", "append", "--data", data_dir, "submissions", "--partitions", 4, "--key", "user_id")
    for part in (lines[:1_500], lines[1_500:]):
        streamactors(*append, stdin="\n".join(part))
        streamactors("run", EXAMPLE, "--data", data_dir, "--until-end")

    read = ("log", "read", "--data", data_dir, "submissions", "--partition")
    partitions = [streamactors(*read, number).splitlines() for number in range(4)]
    journal = map(json.loads, streamactors("journal", "--data", data_dir, "quiz-counts", "--json").splitlines())
    counts, totals, late = counted_by(journal, partitions)
    assert view("quiz_counts") == counts and len(late) > 50
    assert view("quiz_totals") == totals
    assert streamactors("log", "read", "--data", data_dir, "late").splitlines() == late
    assert all(partitions) and sum(map(len, partitions)) == len(lines)


def test_without_a_topic_it_simulates_a_class_day_and_says_so(python, streamactors, view, data_dir):
    run = python("-m", "streamactors", "run", EXAMPLE, "--data", data_dir, "--until-end", "--", 5_000)

    assert run.returncode == 0, run.stderr
    assert "no topic submissions: filling it with a simulated class day of 5,000" in run.stderr
    lines = streamactors("log", "read", "--data", data_dir, "submissions").splitlines()
    assert len(lines) == 5_000
    assert len({json.loads(line)["submission_id"] for line in lines}) < 5_000
    assert check(view, streamactors, data_dir, lines)

    again = python("-m", "streamactors", "run", EXAMPLE, "--data", data_dir, "--until-end", "--", 5_000)
    assert "filling" not in again.stderr
    check(view, streamactors, data_dir, lines)


def test_a_users_own_topic_is_left_alone(streamactors, view, data_dir):
    lines = submissions(3)
    streamactors("log", "append", "--data", data_dir, "submissions", stdin="\n".join(lines))
    streamactors("run", EXAMPLE, "--data", data_dir, "--until-end")
    check(view, streamactors, data_dir, lines)


def read_so_far(data_dir) -> int:
    """Return the offset that the last checkpoint holds; 0 before there is one."""
    try:
        with Store.open(data_dir / "jobs/quiz-counts/v1", read_only=True) as store:
            restored = store.restore("submissions")
    except UsageError:
        return 0
    return 0 if restored is None else restored.position["partitions"][0]["offset"]


@pytest.mark.crash
def test_killed_in_the_middle_and_run_again_the_numbers_are_right(streamactors, view, data_dir):
    lines = submissions(40_000)
    streamactors("log", "append", "--data", data_dir, "submissions", stdin="\n".join(lines))
    command = [sys.executable, "-m", "streamactors", "run", EXAMPLE, "--data", data_dir, "--checkpoint-every", "2ms"]

    kills = []
    for share in (0, 8_000, 16_000):  # each time when it has come further
        with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
            while read_so_far(data_dir) <= share:
                with pytest.raises(subprocess.TimeoutExpired):  # it has not ended
                    process.wait(0.001)
            os.kill(process.pid, signal.SIGKILL)
        kills.append(read_so_far(data_dir))
    assert min(kills) < len(lines)
    streamactors("run", EXAMPLE, "--data", data_dir, "--until-end")

    check(view, streamactors, data_dir, lines)
    attempts = {
        json.loads(line)["attempt"] for line in streamactors("checkpoints", "--data", data_dir, "--json").splitlines()
    }
    assert len(attempts) >= 2  # it was really continued, not begun anew
