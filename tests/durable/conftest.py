"""A world of one process: a simulated disk, a clock that stands, lanes that run in the loop and can be held back."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from streamactors.core.ports import Ports
from streamactors.durable.log import Log
from streamactors.testing.disk import SimDisk

DATA = Path("/data")


class StandingClock:
    """Time goes on only when a test says so."""

    def __init__(self):
        self.ms = 1_000_000
        self._sleeps = []

    def now_ms(self):
        return self.ms

    def monotonic(self):
        return self.ms / 1_000

    async def sleep(self, seconds):
        woken = asyncio.get_running_loop().create_future()
        self._sleeps.append((self.ms + seconds * 1_000, woken))
        await woken

    def advance(self, ms):
        self.ms += ms
        for due, woken in self._sleeps:
            if due <= self.ms and not woken.done():
                woken.set_result(None)
        self._sleeps = [(due, woken) for due, woken in self._sleeps if not woken.done()]

    @property
    def sleeping(self):
        return sum(not woken.done() for _, woken in self._sleeps)


class InlineThreads:
    """Work is done in the loop, at once, unless the gate is closed."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, lane, work, *args):
        await asyncio.sleep(0)
        if lane != "read":
            await self.gate.wait()
        return work(*args)

    async def close(self):
        pass


class World:
    """Ports, and the logs opened with them."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.disk = SimDisk(self.random)
        self.clock = StandingClock()
        self.threads = InlineThreads()

    def log(self):
        return Log(DATA, Ports(self.clock, self.disk, self.threads, self.random))

    async def partition(self, name="t"):
        return (await self.log().create_topic(name)).partition(0)

    def crash(self, *, power=None):
        self.disk = self.disk.crash(power=power)
        self.threads = InlineThreads()

    def count(self, label):
        """Return a list that grows by a path with each operation of that kind."""
        seen = []
        self.disk.on_operation = lambda what, path: seen.append(path) if what == label else None
        return seen

    def refuse(self, label, error):
        """Let the disk say no, once."""

        def hook(what, path):
            if what == label:
                self.disk.on_operation = None
                raise error

        self.disk.on_operation = hook


@pytest.fixture
async def world():
    return World(7)


@pytest.fixture
def new_world():
    return World


@pytest.fixture
def read_all():
    async def read_all(partition, start=0):
        reader = partition.reader(start)
        values = []
        while chunks := await reader.read():
            values += [value for chunk in chunks for value in chunk.values()]
        return values

    return read_all
