"""Log lines: the page lists them all, the levels mean what it says, the library sets up nothing."""

import ast
import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamactors as sa
from streamactors.ops.logs import formatter
from streamactors.testing.source import Crash, Pause, Script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
AT_ONCE = {"backoff_first": 0.001, "backoff_max": 0.001}


def calls(folder: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node


def logged(call: ast.Call) -> tuple[str, ast.expr] | None:
    """(level, message) of a call that logs."""
    match call.func:
        case ast.Attribute(
            value=ast.Attribute(attr="_log" | "_logger") | ast.Name(id="_log" | "logger"), attr=level
        ) if level in LEVELS:
            return ("error" if level == "exception" else level), call.args[0]
        case ast.Attribute(value=ast.Name(id="self"), attr="_log"):  # the runner's own
            return "info", call.args[0]
    return None


def test_the_page_lists_every_message_with_its_level():
    found = [one for folder in ("streamactors", "connectors") for _, call in calls(folder) if (one := logged(call))]
    assert all(isinstance(message, ast.Constant) for _, message in found), "a message is one literal, values beside it"
    in_source = {(level.upper(), message.value.replace("\n", "\\n")) for level, message in found}
    listed = set(re.findall(r"^\| (DEBUG|INFO|WARNING|ERROR|CRITICAL) \| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert not in_source - listed, "docs/logging.md has no row for these"
    assert not listed - in_source, "docs/logging.md has rows that nothing logs"


def test_each_logger_is_one_of_those_that_the_page_names():
    patterns = re.findall(r"^## `(streamactors[^`]*)`", PAGE, re.MULTILINE)
    assert patterns
    for path, call in calls("streamactors"):
        if ast.unparse(call.func) == "logging.getLogger" and path.name != "simulate.py":
            name = call.args[0]
            text = name.value if isinstance(name, ast.Constant) else re.sub(r"\{[^}]*\}", "*", ast.unparse(name)[2:-1])
            shown = {re.sub(r"<\w+>", "*", pattern) for pattern in patterns}
            # Room is handed "<job>.<region>", one name for two.
            assert text in shown or path.name == "room.py", f"{path}: {text}"


def test_the_library_sets_up_no_handler_and_changes_no_level():
    """But the command line, whose process it is, and the simulator, which is quiet about what it breaks on purpose."""
    for path, call in calls("streamactors"):
        name = ast.unparse(call.func).rpartition(".")[2]
        if name in {"basicConfig", "addHandler", "setLevel", "dictConfig", "StreamHandler"}:
            assert path.name in {"run_command.py", "simulate.py"}, f"{path}:{call.lineno} {name}"


def script_job(script, data_dir, **restarts):
    pipeline = sa.Pipeline("job")
    pipeline.source(script).key_by(str).count().to_view("counts")
    policy = sa.RestartPolicy(**AT_ONCE, **restarts)
    return sa.run(pipeline, data_dir, settings=sa.Settings(restarts=policy, checkpoint_every_ms=20))


def lines(caplog):
    return [(record.levelname, record.name, record.getMessage()) for record in caplog.records]


async def test_a_start_a_restart_and_an_end_are_a_line_each_however_many_records_there_are(data_dir, caplog):
    with caplog.at_level(logging.INFO):
        async with script_job(Script([*["a"] * 5_000, Crash(), "b", Pause()]), data_dir) as job:
            await job.catch_up()
    found = lines(caplog)
    assert {name for _, name, _ in found} == {"streamactors.job.script"}
    assert [level for level, _, _ in found] == ["INFO", "WARNING", "INFO", "INFO"]
    started, restarted, again, ended = (message for _, _, message in found)
    assert started == "attempt 1 runs, from checkpoint 0"
    assert re.fullmatch(r"failed, and starts again from its checkpoint in \d\.\d\d s: the script says .*", restarted)
    assert again.startswith("attempt 2 runs, from checkpoint ")
    assert ended.startswith("ended at checkpoint ")


async def test_a_region_that_gives_up_is_one_error(data_dir, caplog):
    with pytest.raises(sa.JobFailed):
        async with script_job(Script([Crash(), Crash(), Crash(), Pause()]), data_dir, restarts_max=1) as job:
            await job.wait()
    errors = [message for level, _, message in lines(caplog) if level == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("gives up after 1 restarts, and the job with it: the script says")
    assert ".." not in errors[0]


def test_a_line_as_json_is_one_object_whatever_is_in_the_message():
    try:
        raise ValueError("ä\nb")
    except ValueError as error:
        record = logging.LogRecord("streamactors.job", logging.ERROR, "f", 1, '%s "said"\n%d', ("é", 3), None)
        record.exc_info = (type(error), error, error.__traceback__)
    record.created, record.msecs = 0.25, 250.0
    text = formatter("json").format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("traceback").endswith("ValueError: ä\nb")
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "ERROR",
        "logger": "streamactors.job",
        "message": 'é "said"\n3',
    }


def test_a_run_writes_its_lines_as_it_is_told(command, spawn, data_dir, tmp_path):
    command("log", "append", "--data", data_dir, "numbers", file=b'{"k":"a"}\n')
    program = tmp_path / "users.py"
    program.write_text(
        "import streamactors as sa\n"
        "pipeline = sa.Pipeline('counting')\n"
        "pipeline.topic('numbers').key_by('k').count().to_view('counts')\n"
    )
    process = spawn("run", program, "--data", data_dir, "--log-format", "json")
    first = json.loads(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    found = [first, *map(json.loads, rest.decode().splitlines())]
    assert process.returncode == 0
    assert {line["logger"] for line in found} <= {"streamactors.counting", "streamactors.counting.numbers"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
