"""Damage as a user meets it: the command line names file and place and ends with code 5; a copy put back mends it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamactors import open_views

PIPELINE = """
from streamactors import Pipeline

pipeline = Pipeline("counts")
lines = pipeline.topic("lines")
lines.key_by(lambda value: value % 3).count().to_view("counts")
lines.to_topic("copies")
"""
PAGE = 4_096


def streamactors(*arguments, given=None):
    command = [sys.executable, "-X", "faulthandler", "-m", "streamactors", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


def rows(data):
    with open_views(data, "counts") as views:
        return dict(views["counts"].items())


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A data folder with a job that has counted 3,000 records, and its pipeline's file."""
    folder = tmp_path_factory.mktemp("healthy")
    data, file = folder / "data", folder / "counts.py"
    file.write_text(PIPELINE)
    lines = "".join(f"{n}\n" for n in range(3_000))
    assert streamactors("log", "append", "--data", data, "lines", given=lines).returncode == 0
    assert streamactors("run", file, "--data", data, "--until-end").returncode == 0
    return data, file


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 // PAGE * PAGE])


STATE = "jobs/counts/v1/data.mdb"
SEGMENT = f"log/lines/0/{0:020d}.segment"


@pytest.mark.parametrize(
    ("path", "damage", "says"),
    [
        (STATE, cut_in_half, "the file was cut"),
        (STATE, lambda path: path.write_bytes(b""), "the file was cut"),
        (STATE, lambda path: path.unlink(), "a job has had its state in this folder"),
        (STATE, lambda path: path.write_bytes(bytes(path.stat().st_size)), "LMDB can't read its pages"),
        (SEGMENT, lambda path: path.unlink(), "restore them from a copy"),
        (SEGMENT, lambda path: path.write_bytes(path.read_bytes()[:200]), "at position"),
        (SEGMENT, lambda path: flip(path, path.stat().st_size // 2), "at position"),
    ],
    ids=["state cut", "state empty", "state gone", "state zeros", "segment gone", "segment cut", "segment flipped"],
)
def test_damage_is_told_with_its_file_and_mended_by_a_copy(healthy, tmp_path, path, damage, says):
    copy, file = healthy
    data = tmp_path / "data"
    shutil.copytree(copy, data)
    before = rows(data)
    damage(data / path)

    found = streamactors("log", "append", "--data", data, "lines", given="1\n" * 3)
    again = streamactors("run", file, "--data", data, "--until-end")
    if path == STATE:
        assert found.returncode == 0, found.stderr
        assert again.returncode == 5, again.stderr
        assert says in again.stderr
        assert str(Path(path).parent) in again.stderr
    else:
        assert found.returncode == 5, found.stderr
        assert says in found.stderr
        assert "log/lines/0" in found.stderr
        assert rows(data) == before, "views stay readable"
    shutil.copytree(copy, data, dirs_exist_ok=True)
    assert streamactors("run", file, "--data", data, "--until-end").returncode == 0
