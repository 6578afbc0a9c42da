"""Commands in this process, for speed; what is about a process (signals, a killed one) starts a real one."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamactors.ops import append_command, cli

ROOT = Path(__file__).parents[2]


@dataclass
class Answer:
    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[bytes]:
        return self.out.splitlines()


@pytest.fixture
def command(capfdbinary, monkeypatch, tmp_path) -> Callable[..., Answer]:
    """Run a command; *file* and *pipe* are its standard input, as what their names say."""

    def run(*arguments, file: bytes = b"", pipe: list[bytes] | None = None) -> Answer:
        capfdbinary.readouterr()
        if pipe is None:
            path = tmp_path / "stdin"
            path.write_bytes(file)
            stdin = os.open(path, os.O_RDONLY)
            writer = None
        else:
            stdin, writing = os.pipe()
            writer = threading.Thread(target=_feed, args=(writing, pipe))
            writer.start()
        monkeypatch.setattr(append_command, "_STDIN", stdin)
        try:
            code = cli.invoke([str(argument) for argument in arguments])
        finally:
            os.close(stdin)
            if writer is not None:
                writer.join()
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Answer(code, out, err.decode())

    return run


def _feed(writing: int, blocks: list[bytes]) -> None:
    try:
        for block in blocks:
            os.write(writing, block)
    except BrokenPipeError:
        pass  # the command refused a line
    finally:
        os.close(writing)


@pytest.fixture
def spawn():
    """Start ``streamactors`` as a process of its own; ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments, **options) -> subprocess.Popen[bytes]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen(
            [sys.executable, "-m", "streamactors", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            **options,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:  # closes its pipes, and waits
            process.kill()
