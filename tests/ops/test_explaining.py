"""``streamactors explain`` as one calls it: what it prints, its exit codes, the debugger with a scripted keyboard."""

import asyncio
import io
import json
import re
import sys

import pytest

import streamactors as sa

PIPELINE = """
import msgspec
import streamactors as sa


class Answer(msgspec.Struct):
    quiz: str
    points: int
    at: int


def doubled(answer):
    twice = answer.points * 2
    return msgspec.structs.replace(answer, points=twice)


def add(total, points):
    return total + points


def early_field(answer):
    return answer


pipeline = sa.Pipeline("quiz", on_error="skip")
answers = pipeline.topic("answers", Answer).map(early_field, name="before").event_time("at")
scored = answers.map(doubled, name="doubled").key_by("quiz")
scored.map(lambda answer: answer.points).reduce(add, name="added").to_view("totals")
scored.window(sa.Tumbling("10s")).count().to_view("windows")
other = sa.Pipeline("other")
other.items([{"k": 1}]).key_by("k").count().to_view("ones")
"""
ANSWERS = [("a", 1, 1_000), ("b", 2, 2_000), ("a", 3, 12_000), ("a", 4, 3_000), ("b", 5, 25_000)]


@pytest.fixture
def answered(data_dir, tmp_path, command):
    """A data folder in which the answers were counted by the pipeline of a file."""
    file = tmp_path / "quiz.py"
    file.write_text(PIPELINE)
    lines = [b'{"quiz": "%s", "points": %d, "at": %d}\n' % (quiz.encode(), points, at) for quiz, points, at in ANSWERS]
    assert command("log", "append", "--data", data_dir, "answers", file=b"".join(lines)).code == 0
    assert (
        command("run", f"{file}", "--data", data_dir, "--until-end").code == 2
    )  # two pipelines: it must be said which
    assert command("run", f"{file}:pipeline", "--data", data_dir, "--until-end", "--no-progress").code == 0
    return data_dir


def objects(answer):
    return [json.loads(line) for line in answer.lines]


def test_json_has_an_object_for_each_record_and_a_last_one_that_sums_up(command, answered):
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"', "--json", "--original")
    *steps, summary = objects(answer)
    assert answer.code == 0 and answer.err == ""
    assert [(step["what"], step["source"], step["partition"], step["offset"]) for step in steps] == [
        ("record", "answers", 0, 0), ("record", "answers", 0, 2), ("record", "answers", 0, 3),
    ]  # fmt: skip
    assert [step["value"] for step in steps] == [2, 6, 8] and [step["time"] for step in steps] == [1_000, 12_000, 3_000]
    assert [step["then"] for step in steps] == [{"kind": "update", "value": value} for value in (2, 8, 16)]
    assert json.loads(steps[0]["original"]) == {"quiz": "a", "points": 1, "at": 1_000}
    assert summary["what"] == "summary" and summary["stored"] == summary["explained"] == {"value": 16}
    assert summary["agrees"] is True and summary["same_code"] is True and summary["records"] == 3
    assert summary["read"] == 5 and summary["file"].endswith("quiz.py") and len(summary["sha256"]) == 64
    assert [one["id"] for one in summary["operators"]][-2:] == ["map", "added"]
    assert all(re.fullmatch(r"quiz\.py:\d+", one["where"]) for one in summary["operators"])


def test_a_window_shows_its_firing_and_what_came_too_late(command, answered):
    *steps, summary = objects(command("explain", "--data", answered, "quiz", "windows", '["a", 0]', "--json"))
    assert [step["what"] for step in steps] == ["record", "shown", "late"]
    assert steps[1]["kind"] == "final" and steps[1]["value"] == 1 and steps[1]["watermark"] == 9_999
    assert steps[2]["offset"] == 3 and steps[2]["late_by_ms"] == 0
    assert (summary["records"], summary["late"]) == (1, 1)


def test_people_get_a_table_and_the_code(command, answered):
    answer = command("explain", "--data", answered, "quiz", "windows", '["a", 0]')
    text = answer.out.decode()
    assert text.startswith('windows ["a",0] = 1\njob quiz, version v1, as of checkpoint ')
    assert re.search(
        r'^record +answers/0 at 0 +1970-01-01T00:00:01.000Z +{"quiz":"a","points":2,"at":1000}$', text, re.MULTILINE
    )
    assert "its window went just now, event time at 1970-01-01T00:00:09.999Z" in text and "final, event time at" in text
    assert "records that count: 1, late: 1, left out: 0, read again: 5" in text
    assert "the code that the job was last run from" in text
    assert re.search(r"^doubled +map doubled +quiz.py:\d+$", text, re.MULTILINE)


def test_a_limit_keeps_the_first_and_the_last_and_says_how_many_are_between(command, answered):
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"', "--json", "--limit", 2)
    first, omitted, last, summary = objects(answer)
    assert (first["offset"], omitted, last["offset"]) == (0, {"what": "omitted", "steps": 1}, 3)
    assert summary["records"] == 3
    assert "... 1 more" in command("explain", "--data", answered, "quiz", "totals", '"a"', "--limit", 2).out.decode()


def test_other_code_than_that_which_ran_is_said_and_another_value_is_exit_code_1(command, answered, tmp_path):
    file = tmp_path / "quiz.py"
    file.write_text(PIPELINE + "\n# a comment\n")
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"')
    assert answer.code == 0 and "the code has changed: version v1 was last run from" in answer.err
    assert "NOT the code that the job was last run from" in answer.out.decode()

    fixed = tmp_path / "fixed.py"
    fixed.write_text(PIPELINE.replace("points * 2", "points * 3"))
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"', "--file", f"{fixed}:pipeline", "--json")
    summary = objects(answer)[-1]
    assert answer.code == 1 and summary["explained"] == {"value": 24} and summary["stored"] == {"value": 16}
    assert summary["agrees"] is False and "what came out, 24, is not what is stored, 16" in answer.err


def test_a_key_that_nothing_ever_concerned_is_exit_code_1(command, answered):
    answer = command("explain", "--data", answered, "quiz", "totals", '"z"')
    assert answer.code == 1 and "no record ever concerned it" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quiz", "totals"], "needs JOB, VIEW and KEY"),
        (["nope", "totals", '"a"'], "there is no job nope"),
        (["quiz", "totals", "a"], "is not JSON"),
        (["quiz", "totalz", '"a"'], "has no view totalz. Its views: totals, windows"),
        (["quiz", "totals", '"a"', "--version", "v2"], "has no version v2"),
        (["quiz", "totals", '"a"', "--file", "nope.py"], "there is no file nope.py"),
        (["quiz", "totals", '"a"', "--pdb", "windows"], "does not pass an operator windows"),
        (["quiz", "totals", '"a"', "--pdb", "key_by"], "operator key_by has no function that could be stopped in"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(command, answered, arguments, message):
    answer = command("explain", "--data", answered, *arguments)
    assert answer.code == 2 and message in answer.err


def test_a_file_that_is_gone_or_has_no_such_pipeline_is_named(command, answered, tmp_path):
    (tmp_path / "quiz.py").write_text("import streamactors as sa\nx = sa.Pipeline('else')\n")
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"')
    assert answer.code == 2 and "has no Pipeline quiz at module level" in answer.err
    (tmp_path / "quiz.py").unlink()
    answer = command("explain", "--data", answered, "quiz", "totals", '"a"')
    assert answer.code == 2 and "is not there any more" in answer.err and "--file FILE.py" in answer.err


def test_a_file_inside_a_package_may_import_from_beside_itself(command, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "app_with_pipeline" / "flows"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "keys.py").write_text("def key(value):\n    return value % 2\n")
    (package / "counting.py").write_text(
        "import streamactors as sa\nfrom ..keys import key\n"
        "flow = sa.Pipeline('packaged')\nflow.items([1, 2, 3]).key_by(key).count().to_view('counts')\n"
    )
    assert command("run", package / "counting.py", "--data", data_dir, "--until-end", "--no-progress").code == 0
    answer = command("explain", "--data", data_dir, "packaged", "counts", "1", "--json")
    assert answer.code == 0 and [step.get("offset") for step in objects(answer)] == [0, 2, None]


def test_a_job_that_was_run_from_no_file_asks_for_one(command, data_dir):
    code = "import streamactors as sa\nflow = sa.Pipeline('nameless')\nflow.items([1]).key_by(str).count().to_view('v')"
    names: dict = {}
    exec(compile(code, "<typed>", "exec"), names)

    async def to_the_end():
        async with sa.run(names["flow"], data_dir, settings=sa.Settings(bound=sa.Bound.FINISH)) as job:
            await job.wait()

    asyncio.run(to_the_end())
    answer = command("explain", "--data", data_dir, "nameless", "v", '"1"')
    assert answer.code == 2 and "nobody noted from which file" in answer.err


# The debugger. --------------------------------------------------------------------------------------------------------


def debugged(command, monkeypatch, data_dir, keys, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
    return command("explain", "--data", data_dir, *arguments)


@pytest.mark.parametrize(
    ("operator", "function", "keys", "shown"),
    [
        ([], "add", ["p total", "p points", "c"], ["(Pdb) 8", "(Pdb) 8"]),
        (["doubled"], "doubled", ["p answer.points", "n", "n", "p twice", "c"], ["(Pdb) 4", "(Pdb) 8"]),
        (["before"], "early_field", ["p answer.at", "c"], ["(Pdb) 3000"]),
        (["map"], "<lambda>", ["p answer.points", "c"], ["(Pdb) 8"]),
        (["doubled"], "doubled", ["n", "n", "n", "n", "n", "n"], ["--Return--"]),
    ],
)
def test_the_debugger_stops_in_the_function_at_the_last_record(
    command, monkeypatch, answered, operator, function, keys, shown
):
    answer = debugged(command, monkeypatch, answered, keys, "quiz", "totals", '"a"', "--pdb", *operator)
    text = answer.out.decode()
    assert answer.code == 0, answer.err
    assert text.startswith("> record answers/0 at 3, in ") and f"){function}()" in text
    for line in shown:
        assert line in text
    assert text.count(f"){function}()") <= 1 + keys.count("n"), "it stops once"
    assert "/streamactors/" not in text and "<frozen" not in text, "it stops in the user's code alone"


def test_the_debugger_may_be_left_and_asked_for_before_the_job(command, monkeypatch, answered):
    answer = debugged(command, monkeypatch, answered, ["q"], "--pdb", "quiz", "totals", '"b"')
    assert answer.code == 0 and answer.out.startswith(b"> record answers/0 at 4, in added") and answer.err == ""


def test_leaving_the_debugger_changes_nothing(command, monkeypatch, answered):
    debugged(command, monkeypatch, answered, ["q"], "quiz", "totals", '"a"', "--pdb")
    assert command("explain", "--data", answered, "quiz", "totals", '"a"').code == 0
    assert sys.gettrace() is None or "pdb" not in repr(sys.gettrace())


def test_a_function_that_is_not_called_for_the_record_is_said(command, monkeypatch, answered, data_dir, tmp_path):
    command("log", "append", "--data", data_dir, "answers", file=b'{"quiz": "c", "points": 1, "at": 30000}\n')
    assert (
        command("run", f"{tmp_path / 'quiz.py'}:pipeline", "--data", data_dir, "--until-end", "--no-progress").code == 0
    )
    answer = debugged(command, monkeypatch, answered, ["c"], "quiz", "totals", '"c"', "--pdb")
    assert answer.code == 1 and "called no function of yours for this record" in answer.err
