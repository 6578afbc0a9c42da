"""The log against the bare file: both sides in one run, one process, one thread of records; ratios of medians.

    python -m benchmarks.log [FOLDER]

    append     1,000 records of 200 bytes, durable, one append after the other; raw is pwrite + fdatasync of those bytes
    grouped    as many appends of one record at the same time; raw is one pwrite + fdatasync for each
    read       records a second from Reader.read, with ``values()`` (a bytes object each) and without
    idle       processor time of a process that waits for another one's appends
    wake       from the durable append to the reader's wake-up, in the writer's process

Raw and ours take turns, so that whatever else the disk does meets both.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from streamactors.durable.frames import Records
from streamactors.durable.log import Log
from streamactors.durable.partition import Partition

RECORDS, RECORD_BYTES, ROUNDS, TURN = 1_000, 200, 20, 20
VALUES = [b"%06d" % number + b"x" * (RECORD_BYTES - 6) for number in range(RECORDS)]
BLOB = b"\n".join([*VALUES, b""])


class RawFile:
    """What a program without a log would do."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._position = 0

    def append(self, data: bytes) -> None:
        os.pwrite(self._fd, data, self._position)
        os.fdatasync(self._fd)
        self._position += len(data)

    def close(self) -> None:
        os.close(self._fd)


def row(name: str, ours: str, raw: str = "", ratio: str = "") -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name:<44} {ours:>16} {raw:>16} {ratio:>8} {peak:>6} MB", flush=True)


async def appends(partition: Partition, raw: RawFile) -> None:
    makes = {
        "append, values": lambda: Records.of(VALUES),
        "append, lines": lambda: Records.from_lines(BLOB, RECORDS),
        "append, lines of our JSON encoder": lambda: Records.from_json_lines(BLOB, RECORDS),
    }
    for name, make in makes.items():
        ours, bare = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(TURN):
                raw.append(BLOB)
            between = time.perf_counter()
            for _ in range(TURN):
                await partition.append(make())
            bare.append((between - started) / TURN)
            ours.append((time.perf_counter() - between) / TURN)
        compare(name, statistics.median(ours), statistics.median(bare))


async def grouped(partition: Partition, raw: RawFile) -> None:
    ours, bare = [], []
    for _ in range(5):
        started = time.perf_counter()
        for value in VALUES[:100]:
            raw.append(value)
        between = time.perf_counter()
        await asyncio.gather(*(partition.append(Records.of([value])) for value in VALUES[:100]))
        bare.append(between - started)
        ours.append(time.perf_counter() - between)
    compare("100 appends of 1 record at a time, grouped", statistics.median(ours), statistics.median(bare))


def compare(name: str, ours: float, raw: float) -> None:
    row(name, f"{ours * 1e3:.2f} ms", f"{raw * 1e3:.2f} ms", f"{raw / ours:.2f} x")


async def reads(partition: Partition, *, split: bool) -> float:
    reader, count = partition.reader(), 0
    started = time.perf_counter()
    while chunks := await reader.read(16_384):
        for chunk in chunks:
            count += len(chunk.values()) if split else chunk.count
    seconds = time.perf_counter() - started
    await reader.close()
    return count / seconds


async def idle(folder: Path) -> float:
    """Return the share of a core that ten waiting readers take; they can't know that nobody writes."""
    async with Log(folder) as log:
        topic = await log.create_topic("idle", 10)
        waiting = [asyncio.create_task(topic.partition(number).reader().wait()) for number in range(10)]
        before = time.process_time()
        await asyncio.sleep(3)
        used = time.process_time() - before
        for task in waiting:
            task.cancel()
    return used / 3


async def wakes(partition: Partition) -> float:
    delays = []
    for _ in range(200):
        reader = partition.reader(partition.durable_end())
        waiting = asyncio.create_task(reader.wait())
        await asyncio.sleep(0)
        await partition.append(Records.of(VALUES[:1]))
        durable = time.perf_counter()
        await waiting
        delays.append(time.perf_counter() - durable)
        await reader.close()
    return statistics.median(delays)


async def measure(folder: Path) -> None:
    row("", "streamactors", "raw file", "ratio")
    raw = RawFile(folder / "raw")
    async with Log(folder) as log:
        partition = (await log.create_topic("bench")).partition(0)
        await appends(partition, raw)
        await grouped(partition, raw)
        bulk = (await log.create_topic("bulk")).partition(0)
        for _ in range(100):
            await bulk.append(Records.from_lines(BLOB * 10, RECORDS * 10))
        row("read 1,000,000, values()", f"{max([await reads(bulk, split=True) for _ in range(3)]) / 1e6:.2f} M/s")
        row(
            "read 1,000,000, checked chunks", f"{max([await reads(bulk, split=False) for _ in range(3)]) / 1e6:.2f} M/s"
        )
        single = (await log.create_topic("single")).partition(0)
        for value in VALUES:
            await single.append(Records.of([value]))
        rate = max([await reads(single, split=True) for _ in range(3)])
        row("read frames of one record, values()", f"{rate / 1e6:.2f} M/s")
        row("durable append to wake-up, same process", f"{await wakes(partition) * 1e6:.0f} µs")
    raw.close()
    row("waiting for another process", f"{await idle(folder) * 100:.2f} % CPU")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        asyncio.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
