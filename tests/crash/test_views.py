"""What other processes see while a job is killed again and again, and what they can't do to it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.crash.lives import ended_badly, rows_of

pytestmark = pytest.mark.crash
PAIRS = str(Path(__file__).with_name("pairs.py"))
KILLS = 12


class Pairs:
    """The job of pairs.py over a topic that grows."""

    def __init__(self, server, folder):
        self.data = folder / "data"
        self.store = str(self.data / "jobs" / "pairs" / "v1")
        self._server = server
        self._made = 0
        self.append(10)
        self.run("--until-end").done()

    def append(self, records):
        lines = "".join(f'{{"n": {(self._made + i) ** 2 % 17}}}\n' for i in range(records))
        self._made += records
        read, write = os.pipe()
        os.write(write, lines.encode())
        os.close(write)
        appended = self._server.start({"command": ["log", "append", "--data", str(self.data), "numbers"]}, stdin=read)
        os.close(read)
        appended.done()

    def run(self, *flags):
        arguments = ["run", PAIRS, "--data", str(self.data), "--no-progress", "--checkpoint-every", "2ms", *flags]
        return self._server.start({"command": arguments, "batch_records": 8})

    def epoch(self):
        return rows_of(self._server, self.data, "pairs")["epochs"]["numbers"]

    def size(self):
        return (Path(self.store) / "data.mdb").stat().st_size

    def wait_epochs(self, epochs, job):
        """Append and look until so many epochs have passed."""
        wanted = self.epoch() + epochs
        while self.epoch() < wanted:
            assert job.code is None, ended_badly(job, job.code)
            self.append(20)


def test_no_snapshot_of_another_process_shows_a_mixture_of_epochs(server, tmp_path, chance, say):
    pairs = Pairs(server, tmp_path)
    stop = tmp_path / "stop"
    look = {"do": "look", "folder": pairs.store, "region": "numbers", "stop": str(stop)}
    looking = server.start(look)
    for _ in range(KILLS):
        job = pairs.run()
        for _ in range(chance.randint(1, 4)):
            pairs.append(chance.randint(1, 300))
            shown = {}
            for line in server.command("view", "show", "--data", str(pairs.data), "both", "--json").splitlines():
                (side, n), count = json.loads(line).values()
                shown.setdefault(n, {})[side] = count
            assert all(sides["a"] == sides["b"] for sides in shown.values()), shown
        job.kill()
        assert job.wait() == -signal.SIGKILL, ended_badly(job, job.code)
        assert looking.code is None, ended_badly(looking, looking.code)
    pairs.run("--until-end").done()
    stop.touch()
    seen = json.loads(looking.done())
    say(f"{KILLS} kills; {seen['looks']} looks saw {seen['changes']} epochs")
    assert seen["changes"] > KILLS, "the views changed while they were looked at"


def test_a_reader_killed_in_the_middle_of_a_read_holds_up_nobody_and_nothing(server, tmp_path, say):
    """It leaves a read transaction in LMDB's table, which pins the pages of its epoch until somebody clears it."""
    pairs = Pairs(server, tmp_path)
    job = pairs.run()
    pairs.wait_epochs(3, job)
    reader = server.start({"do": "hold", "folder": pairs.store})
    while reader.out != b"held\n":
        assert reader.code is None, ended_badly(reader, reader.code)
        time.sleep(0.001)
    reader.kill()
    assert reader.wait() == -signal.SIGKILL
    pairs.wait_epochs(3, job)
    size, epoch = pairs.size(), pairs.epoch()
    pairs.wait_epochs(20, job)
    grown = (pairs.size() - size) / (pairs.epoch() - epoch)
    job.kill()
    assert job.wait() == -signal.SIGKILL
    # The journal and the summaries of checkpoints grow by a row each epoch; pinned pages are all that an epoch writes.
    assert grown < 10_000, f"the file grows by {grown:,.0f} bytes an epoch"
    say(f"{grown:,.0f} bytes an epoch")
