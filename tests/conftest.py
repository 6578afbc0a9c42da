"""Fixtures of general use. What only one folder needs lives in that folder's conftest.py."""

from pathlib import Path

import pytest
from hypothesis import settings

# Fresh examples in each run, also where CI=true (there Hypothesis by itself repeats the same ones for ever). A failure
# prints the blob that repeats it. No deadline: a test is slow when the machine is busy, and that proves nothing.
settings.register_profile("house", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("house")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
