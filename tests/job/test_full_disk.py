"""A job on a real full disk: it waits and goes on by itself, and what was acknowledged is counted once."""

from pathlib import Path

import pytest

from tests.durable.small_disk import run_on_small_disk

CHILD = Path(__file__).parent / "full_disk_child.py"


@pytest.mark.parametrize(
    "scenario", ["goes_on", "goes_on_at_least_once", "drains", "drains_without_reserve", "stops", "starts"]
)
def test_a_job_on_a_full_disk(tmp_path, scenario, record_property):
    record_property("said", run_on_small_disk(tmp_path / "disk", 8, CHILD, scenario).strip()[:300])
