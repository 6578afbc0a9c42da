"""``streamactors run`` as a process: exit codes, signals, what it prints."""

import json
import os
import pty
import re
import signal
import subprocess

import pytest

COUNTING = """
import streamactors as sa
pipeline = sa.Pipeline("counting")
keyed = pipeline.topic("numbers").event_time("at").key_by("k")
keyed.count().to_view("counts")
"""
FAILING = """
import streamactors as sa
pipeline = sa.Pipeline("failing")
def divide(value):
    return 1 / (value - 2)
pipeline.items([0, 1, 2]).map(divide).to_topic("out")
"""


@pytest.fixture
def program(tmp_path):
    def write(text: str):
        path = tmp_path / "users.py"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def numbers(command, data_dir):
    """A data folder with a topic of six events."""
    lines = b"".join(b'{"k":"%c","at":%d}\n' % (key, n) for n, key in enumerate(b"abacab"))
    command("log", "append", "--data", data_dir, "numbers", file=lines)
    return data_dir


def ended(process):
    out, err = process.communicate()
    return process.returncode, out.decode(), err.decode()


def counts(command, data_dir):
    answer = command("view", "show", "--data", data_dir, "counts", "--json")
    return {row["key"]: row["value"] for row in map(json.loads, answer.lines)}


# How a run ends. ------------------------------------------------------------------------------------------------------


def test_a_run_until_the_end_can_be_continued_and_finished(command, spawn, numbers, program):
    path = program(COUNTING)

    code, out, _ = ended(spawn("run", path, "--data", numbers, "--until-end"))
    assert code == 0 and out.startswith("counting: read to the end; 6 records in ")
    command("log", "append", "--data", numbers, "numbers", file=b'{"k":"z","at":9}\n')
    code, out, _ = ended(spawn("run", path, "--data", numbers, "--finish", "--checkpoint-every", "1s"))
    assert code == 0 and out.startswith("counting: finished; 1 record in ")
    assert counts(command, numbers) == {"a": 3, "b": 2, "c": 1, "z": 1}

    code, out, _ = ended(spawn("run", path, "--data", numbers))
    assert code == 0 and out.startswith("counting: was finished by an earlier run, its input is complete; 0 records")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_drains(command, spawn, numbers, program, number):
    process = spawn("run", program(COUNTING), "--data", numbers)
    assert b"started" in process.stderr.readline()
    process.send_signal(number)

    code, out, err = ended(process)

    assert code == 0 and out.startswith("counting: drained; ")
    assert "draining: a last checkpoint, then the end. Once more kills at once" in err


def test_a_second_signal_kills_even_while_a_function_keeps_the_loop(spawn, data_dir, program):
    busy = (
        "import streamactors as sa\ndef spin(value):\n    print('spins', flush=True)\n    while True:\n        pass\n"
    )
    path = program(busy + "p = sa.Pipeline('busy')\np.items([1]).map(spin).to_topic('out')\n")
    process = spawn("run", path, "--data", data_dir)
    assert process.stdout.readline() == b"spins\n"

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # two of a kind may arrive as one

    code, _, err = ended(process)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert err.splitlines()[-1] == "streamactors: killed; the next run goes on from the last checkpoint."


def test_a_signal_while_a_job_starts_gives_the_start_up(spawn, data_dir, program):
    text = "import asyncio, streamactors as sa\np = sa.Pipeline('slow')\np.items([1]).to_topic('out')\n"
    text += "@p.before_start\nasync def wait(log):\n    print('waits', flush=True)\n    await asyncio.Event().wait()\n"
    process = spawn("run", program(text), "--data", data_dir)
    assert process.stdout.readline() == b"waits\n"

    process.send_signal(signal.SIGTERM)

    code, out, _ = ended(process)
    assert (code, out) == (0, "slow: given up while it was starting; nothing was read\n")


# Whose fault it is. ---------------------------------------------------------------------------------------------------


def test_a_job_that_fails_names_record_and_line_and_exits_with_1(spawn, data_dir, program):
    text = FAILING.replace("import streamactors as sa", "import streamactors as sa", 1)
    code, out, err = ended(spawn("run", program(text), "--data", data_dir, "--until-end"))

    assert code == 1 and out == ""
    assert "streamactors: job failing gave up" in err
    assert "streamactors: cause: BadRecord: operator failing/map can't handle record 2 (items/0 at offset 2)" in err
    assert re.search(r'users.py", line \d+, in divide', err) and "ZeroDivisionError" in err
    assert "transforms.py" not in err


def test_a_pipeline_that_is_refused_exits_with_3(spawn, data_dir, program):
    text = "import streamactors as sa\np = sa.Pipeline('x')\np.items([1]).to_view('v')\n"
    code, out, err = ended(spawn("run", program(text), "--data", data_dir))
    assert (code, out) == (3, "") and "users.py:3" in err and "Traceback" not in err


def test_a_pipeline_that_does_not_fit_its_checkpoint_exits_with_3(spawn, numbers, program):
    assert ended(spawn("run", program(COUNTING), "--data", numbers, "--until-end"))[0] == 0
    changed = program(COUNTING.replace("keyed.count()", "keyed.count(name='other')"))
    code, _, err = ended(spawn("run", changed, "--data", numbers, "--until-end"))
    assert code == 3 and "does not fit its checkpoint" in err


def test_a_job_that_runs_already_exits_with_4_and_names_the_process(spawn, numbers, program):
    path = program(COUNTING)
    first = spawn("run", path, "--data", numbers)
    assert b"started" in first.stderr.readline()

    code, out, err = ended(spawn("run", path, "--data", numbers))

    assert (code, out) == (4, "") and f"process {first.pid}" in err


def test_an_error_of_the_users_file_exits_with_2(spawn, data_dir, program):
    code, _, err = ended(spawn("run", program("1 / 0\n"), "--data", data_dir))
    assert code == 2 and 'users.py", line 1' in err and "runpy" not in err and "loading.py" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--until-end", "--finish"], "exclude each other"),
        (["--checkpoint-every", "soon"], "'soon' is not a duration"),
        (["--checkpoint-every", "0ms"], "is below 1"),
        (["--nope"], "No such option"),
        ([], "there is no topic numbers"),
    ],
)
def test_flags_that_make_no_sense_are_one_message(command, data_dir, program, spawn, flags, message):
    code, out, err = ended(spawn("run", program(COUNTING), "--data", data_dir, *flags))
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if line.startswith("streamactors: ")]
    assert len(said) == 1 and message in said[0] and "Traceback" not in err


def test_a_bug_of_ours_shows_its_traceback(command, data_dir, monkeypatch):
    from streamactors.durable.log import Log

    async def broken(self, name):
        raise AssertionError("L1: impossible")

    monkeypatch.setattr(Log, "topic", broken)
    answer = command("log", "read", "--data", data_dir, "t")
    assert answer.code == 1 and "Traceback" in answer.err and "AssertionError: L1: impossible" in answer.err


def test_a_folder_that_is_nobodys_to_write_exits_with_5(command, tmp_path):
    (tmp_path / "data").write_text("a file")
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "log").write_text("a file")
    answer = command("log", "append", "--data", tmp_path / "data2", "t", file=b"1\n")
    assert answer.code == 5 and answer.err.startswith("streamactors: ") and "Traceback" not in answer.err
    assert command("log", "append", "--data", tmp_path / "data", "t", file=b"1\n").code == 2


# What is seen of it. --------------------------------------------------------------------------------------------------


def test_a_terminal_shows_the_display(spawn, numbers, program):
    mine, theirs = pty.openpty()
    process = spawn("run", program(COUNTING), "--data", numbers, stderr=theirs)
    os.close(theirs)
    parts = ("counting  running", "records/s", "numbers/0", "6/6", "view counts: 3 rows")
    seen = ""
    while not all(part in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen) for part in parts):
        seen += os.read(mine, 65_536).decode("utf-8", "replace")
    process.send_signal(signal.SIGINT)
    while True:
        try:
            seen += os.read(mine, 65_536).decode("utf-8", "replace")
        except OSError:  # the other side is closed
            break
    os.close(mine)
    out = process.stdout.read()
    assert process.wait() == 0 and out.startswith(b"counting: drained; 6 records")
    assert "draining" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back


def test_without_progress_a_terminal_gets_log_lines(spawn, numbers, program):
    mine, theirs = pty.openpty()
    process = spawn("run", program(COUNTING), "--data", numbers, "--until-end", "--no-progress", stderr=theirs)
    os.close(theirs)
    assert process.wait() == 0
    line = os.read(mine, 65_536).decode()
    os.close(mine)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO streamactors\.counting: started", line)
    assert "\x1b" not in line


def test_it_is_a_module_too(spawn):
    process = spawn("--help", stdout=subprocess.PIPE)
    out, _ = process.communicate()
    assert process.returncode == 0 and b"Exit codes:" in out
