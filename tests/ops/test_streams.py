"""Standard streams as callers leave them: closed, full, a terminal that obeys what data says."""

import json
import subprocess
import sys

import pytest

import streamactors as sa
from tests.ops.conftest import ROOT
from tests.ops.test_inspecting import counting, run

HOSTILE = "a\x1b[2J\nb\r\x9b31m\u2028\u202e"

PIPELINE = """
import streamactors as sa
pipeline = sa.Pipeline("words")
pipeline.items(["a", "b", "a"]).key_by(lambda word: word).count().to_view("words")
"""


def shell(arguments: list[object], redirection: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "streamactors", *map(str, arguments)]
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirection}', "sh", *command], cwd=ROOT, capture_output=True, check=False
    )


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_job_runs_whichever_standard_streams_are_closed(tmp_path, redirection):
    file = tmp_path / "words.py"
    file.write_text(PIPELINE)
    done = shell(["run", file, "--data", tmp_path / "data", "--finish"], redirection)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    shown = shell(["view", "show", "--data", tmp_path / "data", "words", "--json"], "")
    assert [json.loads(line) for line in shown.stdout.splitlines()] == [
        {"key": "a", "value": 2},
        {"key": "b", "value": 1},
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["view", "show", "totals"], ["log", "info"]], ids=str)
def test_a_closed_standard_output_is_no_error(tmp_path, arguments):
    run(counting(), tmp_path)
    (tmp_path / "log").mkdir(exist_ok=True)
    data = ["--data", tmp_path] if arguments != ["--help"] else []
    done = shell([*arguments, *data], ">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_is_right_where_no_message_can_be_written(tmp_path, redirection):
    assert shell(["log", "info", "--data", tmp_path / "nowhere"], redirection).returncode == 2


def test_what_data_holds_gives_a_terminal_no_orders(command, tmp_path):
    pipeline = sa.Pipeline("hostile")
    pipeline.items([HOSTILE]).key_by(lambda text: text).reduce(lambda old, new: new).to_view("rows")
    run(pipeline, tmp_path)
    lines = command("view", "show", "--data", tmp_path, "rows").out.decode().split("\n")
    assert lines[1:] == [r"a\x1b[2J\nb\r\x9b31m\u2028\u202e  a\x1b[2J\nb\r\x9b31m\u2028\u202e", ""]


def test_text_of_any_language_is_shown_as_it_is(command, tmp_path):
    texts = ["naïve", "日本\u3000語", "👩\u200d🚀", "שלום", "a\\nb"]
    pipeline = sa.Pipeline("languages")
    pipeline.items(texts).key_by(lambda text: text).count().to_view("rows")
    run(pipeline, tmp_path)
    shown = command("view", "show", "--data", tmp_path, "rows").out.decode()
    assert all(text in shown for text in texts)


def test_a_message_about_a_hostile_name_gives_no_orders_either(command, tmp_path):
    run(counting(), tmp_path)
    answer = command("view", "show", "--data", tmp_path, HOSTILE)
    assert answer.code == 2 and "\x1b" not in answer.err and "a\\x1b[2J" in answer.err
