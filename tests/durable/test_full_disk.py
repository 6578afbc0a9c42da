"""A real full disk, of a few megabytes: store and log refuse what does not fit, and go on when there is room."""

from pathlib import Path

import pytest

from .small_disk import run_on_small_disk

CHILD = Path(__file__).parent / "full_disk_child.py"


@pytest.mark.parametrize(
    "scenario",
    ["store_goes_on", "reserve_saves_the_last", "opening", "log_goes_on"],
)
def test_on_a_full_disk(tmp_path, scenario, record_property):
    record_property("said", run_on_small_disk(tmp_path / "disk", 8, CHILD, scenario).strip())
