"""The storm: a job under load, killed at random times, most of them while output is pending.

One process appends to the topic what comes through a pipe, all the time; another runs the quiz example, live. Both are
``streamactors`` as it is. The job is killed again and again, sometimes drained instead; now and then the appending
process is killed as well. What a job's sinks were given and no checkpoint holds yet is counted in memory that survives
it (``OutputCounter``): most kills wait, at their random time, until there is some.

In the end ``World.check`` compares everything.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.crash.lives import World, append_arguments, ended_badly, run_arguments
from tests.crash.points import OutputCounter
from tests.crash.processes import Child, Server

PERIODS = ("1ms", "10ms", "50ms", "200ms")
AGE_SECONDS_MAX = 0.6
WAIT_SECONDS_MAX = 2.0
"""How long a kill may wait for pending output; then it comes all the same."""

START_SECONDS_MAX = 60
TICK_SECONDS = 0.002
LINES_A_TICK = 12


@dataclass
class Killed:
    """What was so when a job was killed."""

    written: int
    cut: int
    committed: int

    @property
    def pending(self) -> bool:
        """Output was lost with the process, as far as the coordinator knew."""
        return self.written > self.committed

    @property
    def mid_epoch(self) -> bool:
        """Of that, some belonged to an epoch whose barrier had not come."""
        return self.written > self.cut


class Storm:
    """See the module's header."""

    def __init__(self, server: Server, folder: Path, partitions: int, random: Random) -> None:
        self.world = World(server, folder, partitions, random, late=0.3)
        self.kills: list[Killed] = []
        self.appender_kills = 0
        self.drains = 0
        self._server, self._folder, self._partitions, self._random = server, folder, partitions, random
        self._appender: Child | None = None
        self._pipe = -1
        self._given: list[bytes] = []
        self._unsent = b""

    def __repr__(self) -> str:
        pending, mid = sum(k.pending for k in self.kills), sum(k.mid_epoch for k in self.kills)
        return (
            f"{len(self.kills)} kills at random times, {pending} with pending output, {mid} in mid-epoch; "
            f"{self.appender_kills} of the appending process, {self.drains} drains; {self.world.input.made} records"
        )

    def run(self, kills: int) -> None:
        """Kill the job that often, then compare."""
        self.world.append(50)
        try:
            while len(self.kills) < kills:
                self._life()
        finally:
            self._end_appender(kill=False)
        self.world.finish()

    def _life(self) -> None:
        counter = OutputCounter(self._folder / f"{len(self.kills)}-{self.drains}.counter")
        command = run_arguments(self.world.data, live=True, every=self._random.choice(PERIODS))
        job = self._server.start({"command": command, "counter": str(counter.path)})
        if self._random.random() < 0.1:
            self._feed(job, START_SECONDS_MAX, until=lambda: "started" in job.err)
            self._drain(job)
        else:
            self._feed(job, self._random.uniform(0, AGE_SECONDS_MAX))
            if self._random.random() < 0.85:
                self._feed(job, WAIT_SECONDS_MAX, until=lambda: counter.written > counter.cut)
            self._kill(job, counter)
        counter.close()
        if self._random.random() < 0.1:
            self._end_appender(kill=True)

    def _kill(self, job: Child, counter: OutputCounter) -> None:
        job.kill()
        code = job.wait()
        assert code == -signal.SIGKILL, ended_badly(job, code)
        self.kills.append(Killed(counter.written, counter.cut, counter.committed))
        self.world.kills["run", "at a random time"] += 1

    def _drain(self, job: Child) -> None:
        job.kill(signal.SIGTERM)
        code = job.wait()
        assert code == 0, ended_badly(job, code)
        self.drains += 1

    # --- the appending process -----------------------------------------------------------------------------------

    def _feed(self, job: Child, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Give lines to the appending process for *seconds*, or until something is so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            if self._appender is None:
                self._start_appender()
            if len(self._unsent) < 1 << 16:
                lines = self.world.input.take(LINES_A_TICK)
                self._given += lines
                self._unsent += b"\n".join([*lines, b""])
            self._send()
            time.sleep(TICK_SECONDS)
        assert job.code is None, ended_badly(job, job.code or 0)

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._pipe, self._unsent) :]
        except BlockingIOError:  # the pipe is full
            return

    def _start_appender(self) -> None:
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._given, self._unsent = [], b""
        command = append_arguments(self.world.data, self._partitions)
        self._appender = self._server.start({"command": command}, stdin=read)
        os.close(read)

    def _end_appender(self, *, kill: bool) -> None:
        appender, self._appender = self._appender, None
        if appender is None:
            return
        if kill:
            appender.kill()
            assert appender.wait() == -signal.SIGKILL
            self.world.unanswered.append((self._given, False))
            self.appender_kills += 1
        else:
            os.set_blocking(self._pipe, True)
            while self._unsent:
                self._send()
        os.close(self._pipe)
        if not kill:
            answer = appender.done().decode()
            assert answer.startswith(f"appended {len(self._given):,} lines to submissions"), answer
            self.world.answered += self._given
