"""Where a job keeps what it keeps, inside the data folder."""

from __future__ import annotations

import time
from pathlib import Path

from streamactors.core.errors import Held, PipelineError, UsageError
from streamactors.core.ports import Disk, Lock
from streamactors.graph.nodes import check_name

LOCK = "job.lock"
"""In a version's folder: held while it runs."""

LOCK_TRIES, LOCK_TRY_SECONDS = 4, 0.05
"""Of the version's lock: commands hold it for milliseconds; longer than this only a job does."""


CATALOGUE_FILES = "versions."
"""What the names of a catalogue's own files begin with, which stand beside the folders of versions."""


def check_label(label: str) -> None:
    """Refuse a label that can't be a version's folder: ``.`` or an empty one would be the folder of the whole job."""
    try:
        check_name("version", label)
    except PipelineError as error:
        raise UsageError(str(error)) from None
    if label.startswith(CATALOGUE_FILES):
        raise UsageError(f"{label!r} can't be the name of a version: the catalogue's own files begin so.")


def job_folder(data_dir: Path, job: str) -> Path:
    """Return the folder of a job: its catalogue, and a folder for each version. Refuse a name that leads elsewhere."""
    try:
        check_name("job", job)
    except PipelineError as error:
        raise UsageError(str(error)) from None
    return data_dir / "jobs" / job


def version_folder(data_dir: Path, job: str, version: str) -> Path:
    """Return where a version of a job keeps its state."""
    return job_folder(data_dir, job) / version


def lock_of_version(disk: Disk, folder: Path) -> Lock:
    """Take the lock of the version in *folder*, which is made; raise Held when it runs. For the thread of a lane."""
    disk.make_folder(folder)
    for _ in range(LOCK_TRIES - 1):
        try:
            return disk.lock(folder / LOCK)
        except Held:
            time.sleep(LOCK_TRY_SECONDS)
    return disk.lock(folder / LOCK)
