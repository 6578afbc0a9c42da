"""Examples are run as a user runs them: by command, in a process of their own. What looks at the folder is not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ops.conftest import command  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with these arguments in the repository, to its end."""

    def run(*arguments, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def streamactors(python, command) -> Callable[..., str]:  # noqa: F811
    """Run a command that succeeds; return what it printed. A process of its own costs 20 times as much as a look."""

    def run(*arguments, stdin: str = "") -> str:
        if arguments[0] != "run":
            answer = command(*arguments, file=stdin.encode())
            assert answer.code == 0, answer.err
            return answer.out.decode()
        done = python("-m", "streamactors", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def view(streamactors, data_dir):
    """Read a view of the data folder as a dict; keys that are lists are tuples."""

    def read(name: str) -> dict:
        rows = map(json.loads, streamactors("view", "show", "--data", data_dir, name, "--json").splitlines())
        return {tuple(row["key"]) if isinstance(row["key"], list) else row["key"]: row["value"] for row in rows}

    return read
