"""Versions under kills: an unchanged program gives an empty diff, targets hold each record of their version once."""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash
PROGRAM = str(Path(__file__).with_name("versioned.py"))
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
LABELS = ("v1", "v2")


class Pair:
    """Two versions of the same program, each killed and started again, over a topic that grows."""

    def __init__(self, server, folder, chance, parts):
        self.data, self.folder = folder / "data", folder
        self.parts, self._server, self._chance = parts, server, chance
        self.made = self.kills = 0
        self.lives = {}
        self.append(60)
        self.start("v1", "--until-end").done()

    def append(self, records):
        lines = []
        for n in range(self.made, self.made + records):
            late = self._chance.choice((0, 0, 0, 10, 60, 250, 600))
            lines.append(json.dumps({"key": self._chance.choice("abcde"), "n": n, "at": 5 * n - late}))
        self.made += records
        read, write = os.pipe()
        os.write(write, "\n".join(lines).encode())
        os.close(write)
        self.command("log", "append", "events", "--partitions", "2", stdin=read).done()
        os.close(read)

    def command(self, *arguments, **more):
        what = [arguments[0]] if arguments[0] != "log" else list(arguments[:2])
        rest = arguments[len(what) :]
        return self._server.start({"command": [*what, "--data", str(self.data), *rest]}, **more)

    def start(self, label, *flags):
        arguments = ["run", PROGRAM, "--data", str(self.data), "--as", label, "--no-progress", *flags]
        variables = {
            "VERSIONED_MARK": label,
            "VERSIONED_DATABASE": str(self.folder / "out.db"),
            "VERSIONED_PARTS": str(self.parts),
        }
        what = {"command": [*arguments, "--checkpoint-every", "10ms"], "batch_records": 16, "variables": variables}
        self.lives[label] = self._server.start(what)
        return self.lives[label]

    def kill(self, label):
        self.lives[label].kill()
        self.lives[label].wait()
        self.kills += 1

    def listed(self):
        return [json.loads(line) for line in self.command("versions", "versioned", "--json").done().splitlines()]

    def wait_all_read(self):
        deadline = time.monotonic() + 60
        while min(map(offset_of, self.listed())) < self.made:
            assert time.monotonic() < deadline, self.listed()
            for label in LABELS:
                assert self.lives[label].code is None, (label, self.lives[label].err)

    def end(self):
        for label in reversed(LABELS):
            self.lives[label].kill(signal.SIGTERM)
            assert self.lives[label].wait() == 0, self.lives[label].err


def offset_of(row):
    return sum(part["offset"] for region in row["position"].values() for part in region["partitions"])


@pytest.mark.parametrize("parts", [1, 4])
def test_whoever_is_killed_whenever_nothing_differs_and_targets_hold_every_record_once(
    server, tmp_path, chance, say, parts
):
    pair = Pair(server, tmp_path, chance, parts)
    for label in LABELS:
        pair.start(label)
    while len(pair.listed()) < len(LABELS):
        assert pair.lives["v2"].code is None, pair.lives["v2"].err
    serving = "v1"
    for turn in range(ROUNDS):
        pair.append(chance.randrange(20, 60))
        for label in chance.sample(LABELS, chance.randint(0, 2)):
            time.sleep(chance.uniform(0, 0.3))
            pair.kill(label)
            pair.start(label)
        if turn % 2:
            wanted = chance.choice(LABELS)
            promotion = pair.command("promote", "versioned", wanted, "--timeout", "60")
            if chance.random() < 0.7:
                time.sleep(chance.uniform(0, 0.5))
                victim = chance.choice((*LABELS, "promotion"))
                if victim == "promotion":
                    promotion.kill()
                    promotion.wait()
                    promotion = pair.command("promote", "versioned", wanted, "--timeout", "60")
                else:
                    pair.kill(victim)
                    pair.start(victim)
            code = promotion.wait()
            refused = code == 2 and "does not run" in promotion.err  # it was killed when the command looked
            assert code == 0 or refused, promotion.err
            serving = serving if refused else wanted
            assert [row["version"] for row in pair.listed() if row["serving"]] == [serving]
    pair.wait_all_read()
    diff = pair.command("diff", "versioned", "v1", "v2", "--json")
    assert diff.wait() == 0, diff.out.decode() + diff.err
    pair.end()
    shadow = next(label for label in LABELS if label != serving)
    connection = sqlite3.connect(tmp_path / "out.db")
    for label, suffix in ((serving, ""), (shadow, shadow)):
        once = [(n, label) for n in range(pair.made)]
        topic = f"written.{suffix}" if suffix else "written"
        lines = pair.command("log", "read", topic).done().splitlines()
        assert sorted((row["n"], row["by"]) for row in map(json.loads, lines)) == once
        table = f"written__{suffix}" if suffix else "written"
        assert sorted(connection.execute(f"SELECT n, by FROM {table}").fetchall()) == once
    connection.close()
    say(f"{pair.kills} kills, {pair.made} records, {serving} serves")
