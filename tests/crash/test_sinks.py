"""A job writes into every sink and is killed again and again; in the end each shows every record once.

The oracle is plain: what was appended. Another program, a thread of ours, moves finished parts away all the time, so a
part that became visible twice is met by its own name at the new place, or its records are there twice.
"""

import json
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.crash.lives import ended_badly
from tests.crash.points import KILLED

pytestmark = pytest.mark.crash

PIPELINE = str(Path(__file__).with_name("sinks_pipeline.py"))
SMALL_BATCH = 16
AGE_SECONDS_MAX = 0.4
START_SECONDS_MAX = 60
WINDOW_MS = 1_000


class Mover(threading.Thread):
    """Another program: takes each part out of its folder as soon as it is there."""

    def __init__(self, folders):
        super().__init__(daemon=True)
        self.folders = folders  # from -> to
        self.moved = 0
        self.twice = []
        self._over = threading.Event()

    def run(self):
        for target in self.folders.values():
            target.mkdir(parents=True)
        while not self._over.wait(0.001):
            self.move()

    def move(self):
        for source, target in self.folders.items():
            for part in source.glob("[!.]*"):
                if (target / part.name).exists():
                    self.twice.append(part.name)
                part.rename(target / part.name)
                self.moved += 1

    def end(self):
        self._over.set()
        self.join()
        self.move()


class Sinks:
    """One folder, lives of the job in it, and the comparison."""

    def __init__(self, server, folder, random, *only):
        folder.mkdir(parents=True)
        self.only = only
        self.server, self.folder, self.random = server, folder, random
        self.data, self.out = folder / "data", folder / "data" / "out"
        self.given = []
        self.reached = Counter()
        self.lives = 0
        self.mover = Mover({self.out / name: folder / f"moved-{name}" for name in ("lines", "columns")})
        self.mover.start()

    def append(self, count):
        start = len(self.given)
        made = [
            {"n": n, "key": f"k{self.random.randrange(9)}", "at": 10_000 + n * 20 - self.random.randrange(900)}
            for n in range(start, start + count)
        ]
        self.given += made
        source = self.folder / "numbers.jsonl"
        source.write_text("".join(json.dumps(value) + "\n" for value in made))
        with source.open("rb") as stdin:
            command = ["log", "append", "--data", str(self.data), "numbers"]
            self.server.start({"command": command}, stdin=stdin.fileno()).done()

    def start(self, *bound, every="1ms", **more):
        how = ["--data", str(self.data), "--no-progress", "--checkpoint-every", every, *bound]
        command = ["run", PIPELINE, *how, "--", str(self.out), *self.only]
        return self.server.start({"command": command, "batch_records": SMALL_BATCH, **more})

    def kill_at_a_random_time(self):
        job = self.start(every=self.random.choice(["1ms", "5ms", "20ms"]))
        moved, shown = self.mover.moved, self.random.random() < 0.8  # most die when something of them was visible
        deadline = time.monotonic() + START_SECONDS_MAX
        while ("started" not in job.err or (shown and self.mover.moved == moved)) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, AGE_SECONDS_MAX))
        assert job.code is None, ended_badly(job, job.code or 0)
        job.kill()
        assert job.wait() == -signal.SIGKILL, ended_badly(job, 0)

    def live(self, label=None, nth=1):
        """Run to the end of the input, or die at a point; return whether it did."""
        self.lives += 1
        trace = self.folder / f"{self.lives}.trace"
        points = {} if label is None else {"label": label, "nth": nth}
        job = self.start("--until-end", points=points, trace=str(trace))
        code = job.wait()
        lines = trace.read_text().splitlines()
        self.reached.update(line for line in lines if not line.startswith(KILLED))
        died = lines[-1:] == [f"{KILLED}{label}"]
        assert code == (-signal.SIGKILL if died else 0), ended_badly(job, code)
        return died

    def finish(self):
        self.append(30)
        self.live()
        self.mover.end()
        assert not self.mover.twice, f"came twice: {self.mover.twice}"
        wanted = [(value["n"], value["key"], value["at"]) for value in self.given]
        lines = [self.values(path) for path in sorted((self.folder / "moved-lines").iterdir())]
        assert sorted(value for part in lines for value in part) == wanted
        for partition in (0, 1):
            parts = sorted((self.folder / "moved-lines").glob(f"*-p000{partition}-*"))
            numbers = [n for path in parts for n, _, _ in self.values(path)]
            assert numbers == sorted(numbers)
        left = [path.name for path in self.out.rglob(".*") if path.name.endswith((".staged", ".new"))]
        assert not left
        if not self.only:
            self.check_others(wanted)

    def check_others(self, wanted):
        columns = [pq.read_table(path).to_pylist() for path in sorted((self.folder / "moved-columns").iterdir())]
        assert [tuple(row.values()) for part in columns for row in part] == wanted
        copied = self.server.command("log", "read", "--data", str(self.data), "copy").splitlines()
        assert sorted(self.value(line) for line in copied) == wanted
        connection = sqlite3.connect(self.out / "x.db")
        found = connection.execute("SELECT n, key, at FROM numbers").fetchall()
        totals = connection.execute("SELECT key, n, last FROM totals").fetchall()
        windows = connection.execute("SELECT key, window_start, value FROM windows").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        assert found == wanted
        last = {key: n for n, key, _ in wanted}
        counts = Counter(key for _, key, _ in wanted)
        assert sorted(totals) == sorted((key, counts[key], last[key]) for key in counts)
        in_windows = Counter((key, at - at % WINDOW_MS) for _, key, at in wanted)
        assert sorted(windows) == sorted((key, start, count) for (key, start), count in in_windows.items())

    def value(self, line):
        value = json.loads(line)
        return value["n"], value["key"], value["at"]

    def values(self, path):
        return [self.value(line) for line in path.read_bytes().splitlines()]


def test_at_random_times_while_another_program_moves_parts_away(server, tmp_path, chance, say):
    kills = 12
    sinks = Sinks(server, tmp_path / "world", chance)
    for _ in range(kills):
        sinks.append(300)
        sinks.kill_at_a_random_time()
    before = sinks.mover.moved
    sinks.finish()
    say(f"{kills} kills, {len(sinks.given)} records, {before} parts moved away before the last life")
    assert before > kills // 2


def test_at_operations_on_a_folder_of_parts(server, tmp_path, chance, say):
    """Lives in one folder, each killed at a point that none was killed at; what recovery adds to the list joins it."""
    sinks = Sinks(server, tmp_path / "world", chance, "lines")
    sinks.append(60)
    sinks.live()
    killed = set()
    for _ in range(20):
        ahead = sorted(label for label in sinks.reached if "out/" in label and label not in killed)
        label = chance.choice(ahead)
        sinks.append(40)
        if sinks.live(label, nth=chance.randint(1, 2)):
            killed.add(label)
    points = sum("out/" in label for label in sinks.reached)
    sinks.finish()
    say(f"killed at {len(killed)} of {points} points")
    assert len(killed) > 10
