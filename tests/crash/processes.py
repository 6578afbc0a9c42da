"""Cheap real processes: a server that has everything imported forks a child for each life.

A Python process that imports the product takes a third of a second to start, a fork 10 ms. The server has one thread
and has opened nothing (no LMDB, no log, no loop), so what it forks is as good as a process started anew: its own pid,
files, locks, threads, real ``SIGKILL``. tests/crash/README.md says what is started the slow way all the same.

    test ── start(what, stdin, stdout, stderr: descriptors) ──▶ server ── fork ──▶ child: tests/crash/child.py
         ◀─ pid, later: how it ended ─────────────────────────

If the test dies, the server reads the end of its socket, kills its children and ends.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 120
"""A child that has not ended by then hangs: a finding."""


class Child:
    """A process that was started. What it wrote is in ``out`` and ``err`` after its end."""

    def __init__(self, server: Server, pid: int, what: dict[str, Any], out: Path, err: Path) -> None:
        self.pid = pid
        self.what = what
        self._server = server
        self._out, self._err = out, err

    def __repr__(self) -> str:
        return f"Child({self.pid}, {self.what})"

    @property
    def out(self) -> bytes:
        return self._out.read_bytes()

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal's number, or None while it lives."""
        self._server.receive(0)
        return self._server.codes.get(self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; harmless when it has ended."""
        self._server.send({"kill": self.pid, "signal": int(number)})

    def wait(self) -> int:
        """Return how it ended."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while self.pid not in self._server.codes:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill(signal.SIGABRT)
                raise AssertionError(f"{self} did not end in {WAIT_SECONDS_MAX} s; on standard error:\n{self.err}")
            self._server.receive(left)
        return self._server.codes[self.pid]

    def done(self) -> bytes:
        """Wait for its end, which must be a good one; return what it wrote."""
        code = self.wait()
        assert code == 0, f"{self} ended with {code}:\n{self.err}"
        return self.out


class Server:
    """Starts children. Use it as a context manager."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="crash-")
        self._started = 0
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.processes", str(other.fileno())],
                cwd=ROOT,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait()
        self._folder.cleanup()

    def start(self, what: dict[str, Any], *, stdin: int | None = None) -> Child:
        """Start a child that does *what*; see child.py."""
        self._started += 1
        out = Path(self._folder.name) / f"{self._started}.out"
        err = out.with_suffix(".err")
        with Path(os.devnull).open("rb") as nothing, out.open("wb") as write_out, err.open("wb") as write_err:
            handed = [nothing.fileno() if stdin is None else stdin, write_out.fileno(), write_err.fileno()]
            socket.send_fds(self._socket, [json.dumps(what).encode()], handed)
        pid = None
        while pid is None:
            pid = self.receive(WAIT_SECONDS_MAX)
        return Child(self, pid, what, out, err)

    def command(self, *arguments: str) -> bytes:
        """Run ``streamactors`` with *arguments*; return what it writes."""
        return self.start({"command": list(arguments)}).done()

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())

    def receive(self, seconds: float) -> int | None:
        """Take messages for up to *seconds*; return at the first. A pid if that says what was started."""
        while select.select([self._socket], [], [], seconds)[0]:
            data = self._socket.recv(1 << 16)
            assert data, "the server of processes has died"
            message = json.loads(data)
            if "started" in message:
                return int(message["started"])
            self.codes[message["ended"]] = message["code"]
            if seconds:
                return None
        return None


# The server's own process. --------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> None:
    """Start and reap children until the other side is gone."""
    from tests.crash import child

    gc.freeze()  # children then share the pages of what is imported
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close the socket
    signal.set_wakeup_fd(write)
    alive: set[int] = set()
    while True:
        readable = select.select([connection, read], [], [])[0]
        if read in readable:
            os.read(read, 1 << 10)
            _reap(connection, alive)
        if connection not in readable:
            continue
        data, handed, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        if not data:
            break
        message = json.loads(data)
        if "kill" in message:
            if message["kill"] in alive:  # not reaped yet, so the number is still his
                os.kill(message["kill"], message["signal"])
            continue
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
            _become(message, handed, [connection.fileno(), read, write], child.live)
        for descriptor in handed:
            os.close(descriptor)
        alive.add(pid)
        connection.send(json.dumps({"started": pid}).encode())
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _become(message: dict[str, Any], handed: Sequence[int], close: Sequence[int], live: Any) -> None:
    """Be the child; never return."""
    code = 70
    try:
        for number, descriptor in enumerate(handed):
            os.dup2(descriptor, number)
        for descriptor in {*handed, *close}:
            os.close(descriptor)
        code = live(message)
    except BaseException:  # noqa: BLE001 - said, and the process ends
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(connection: socket.socket, alive: set[int]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        alive.discard(pid)
        connection.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
