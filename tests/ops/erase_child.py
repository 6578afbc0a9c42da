"""``streamactors forget`` as a process that is killed at its n-th change of the disk: see test_erasing.py."""

import os
import signal
import sys
from pathlib import Path

from streamactors.durable import compaction
from streamactors.durable.files import RealDisk, RealFile
from streamactors.durable.store import Store
from streamactors.ops import cli


def main(kill_at: int, arguments: list[str]) -> int:
    """Run the command; die before its *kill_at*-th change."""
    left = kill_at

    def dying(owner, name):
        function = getattr(owner, name)

        def call(*values, **options):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*values, **options)

        setattr(owner, name, call)

    for owner, names in (
        (RealFile, ("write", "sync", "truncate")),
        (RealDisk, ("rename", "remove", "sync_folder")),
        (Store, ("amend", "close")),
        (Path, ("replace", "mkdir", "rglob")),
        (compaction, ("copy_rows", "sync_path")),
    ):
        for name in names:
            dying(owner, name)
    code = cli.invoke(arguments)
    sys.stderr.write(f"changes: {kill_at - left}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
