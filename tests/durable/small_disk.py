"""A real disk of a few megabytes, for one process: a tmpfs in a mount namespace of its own, gone with the process."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


@cache
def _can_mount():
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run_on_small_disk(folder, megabytes, *command):
    """Run ``python *command* folder`` where *folder* is a disk of its own; return what it printed."""
    if not _can_mount():
        pytest.skip("no disk can be mounted here: neither root nor user namespaces")
    folder.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", _MOUNT, "sh", f"{megabytes}m", str(folder)]
    done = subprocess.run(
        [*mounted, sys.executable, "-X", "faulthandler", *map(str, command), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Filling:
    """What somebody else has put onto the disk."""

    def __init__(self, folder, name="filling"):
        self._path = Path(folder) / name

    def fill(self, leave=0):
        """Take all room but *leave* bytes."""
        with self._path.open("wb", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue
            if leave:
                file.truncate(file.tell() - leave)

    def clear(self):
        """Make room again."""
        self._path.unlink()
