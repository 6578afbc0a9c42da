"""Where a job keeps what it keeps, inside the data folder."""

from __future__ import annotations

from pathlib import Path


def job_folder(data_dir: Path, job: str) -> Path:
    """Return the folder of a job: its catalogue, and a folder for each version."""
    return data_dir / "jobs" / job


def version_folder(data_dir: Path, job: str, version: str) -> Path:
    """Return where a version of a job keeps its state."""
    return job_folder(data_dir, job) / version
