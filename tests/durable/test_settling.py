"""What a writer had committed who was killed before he could show it: seen by everybody once somebody settles it."""

import os
import signal
import subprocess
import sys

from streamactors.durable.sharing import read_briefly, settle
from streamactors.durable.store import Store

WRITER = """
import pathlib, struct, sys
from streamactors.durable.store import Store

folder = pathlib.Path(sys.argv[1])
with Store.open(folder) as store:
    store.begin_attempt("events")
    store.begin_attempt("events")
    with (folder / "lock.mdb").open("r+b") as lock:
        lock.seek(48)  # which transaction readers are given; in LMDB 0.9 on 64 bits
        shown = struct.unpack("<Q", lock.read(8))[0]
        lock.seek(48)
        lock.write(struct.pack("<Q", shown - 1))
        lock.flush()
    writing = store._environment.begin(write=True)  # as one is in a commit
    print("ready", flush=True)
    sys.stdin.read()
"""
READER = """
import lmdb, sys

environment = lmdb.open(sys.argv[1], readonly=True)
print("ready", flush=True)
sys.stdin.read()
"""


def process(code, folder):
    command = [sys.executable, "-c", code, str(folder)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert started.stdout.readline() == b"ready\n"
    return started


def attempts(folder):
    with read_briefly(folder) as store, store.snapshot() as snapshot:
        return snapshot.scan("attempts")


def test_what_a_killed_writer_had_committed_and_not_shown_is_seen_once_it_is_settled(tmp_path):
    """A promotion notes where a version that was killed has ended: a place too early would split the journal in two."""
    folder = tmp_path / "v1"
    with Store.open(folder) as store:
        store.begin_attempt("events")
    first = attempts(folder)
    reader = process(READER, folder)  # while somebody has it open, LMDB looks at nothing anew
    writer = process(WRITER, folder)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    shown = attempts(folder)
    settle(folder)
    settled = attempts(folder)
    reader.communicate()
    assert first != shown != settled
